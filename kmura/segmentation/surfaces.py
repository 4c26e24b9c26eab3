"""Distances between the surfaces of true and predicted regions. Needs SimpleITK (`pip install '.[ct]'`)."""

from collections.abc import Sequence

import numpy as np

from kmura.itk import simpleitk

PERCENTILE = 95


def surface_distances(
    truth: np.ndarray, predicted: np.ndarray, classes: Sequence[int], spacing: Sequence[float]
) -> dict[str, np.ndarray]:
    """Returns the distances between the surfaces of each region: `hd95` and `mean_surface_distance`, mm, [K] each.

    The surface of a region is the set of its voxels that have a face neighbour outside the region (or outside the
    volume). d(A, B) are the distances of the centres of the surface voxels of A to the nearest centre of a surface
    voxel of B. `hd95` is the larger one of the 95th percentiles of d(truth, predicted) and of d(predicted, truth) (the
    95th percentile Hausdorff distance); `mean_surface_distance` is the mean of both sets of distances together (the
    average symmetric surface distance). Both are NaN where the class is absent from the truth or from the prediction.

    Args:
        truth: class numbers, integers [Z, Y, X].
        predicted: class numbers of the same shape.
        classes: class numbers of the K regions.
        spacing: distance of neighbouring voxels along each axis of the arrays (z, y, x), mm.

    Raises:
        InputError: SimpleITK is not installed.
        ValueError: the shapes differ, or the arrays do not have three axes.
    """
    sitk = simpleitk()
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.shape != predicted.shape or truth.ndim != 3:
        raise ValueError(f"the truth has the shape {truth.shape}, the prediction {predicted.shape}; give [Z, Y, X]")
    found = {"hd95": [], "mean_surface_distance": []}
    for number in classes:
        regions = truth == number, predicted == number
        if not all(region.any() for region in regions):
            found["hd95"].append(np.nan)
            found["mean_surface_distance"].append(np.nan)
            continue
        box = _bounding_box(regions[0] | regions[1])
        one, other = (_surface(sitk, region[box], spacing) for region in regions)
        there, back = _distances(sitk, one, other), _distances(sitk, other, one)
        found["hd95"].append(max(np.percentile(there, PERCENTILE), np.percentile(back, PERCENTILE)))
        found["mean_surface_distance"].append(np.concatenate([there, back]).mean())
    return {name: np.array(values, float) for name, values in found.items()}


def _bounding_box(region: np.ndarray) -> tuple[slice, ...]:
    """Returns the smallest box that contains a region, which has a voxel."""
    box = []
    for axis in range(region.ndim):
        places = np.flatnonzero(region.any(axis=tuple(other for other in range(region.ndim) if other != axis)))
        box.append(slice(places[0], places[-1] + 1))
    return tuple(box)


def _surface(sitk, region: np.ndarray, spacing: Sequence[float]):
    """Returns the image of a region's surface voxels, with a margin of one voxel outside the region."""
    image = sitk.GetImageFromArray(np.pad(region, 1).astype(np.uint8))
    image.SetSpacing([float(size) for size in reversed(spacing)])  # SimpleITK's axes are (x, y, z)
    return sitk.BinaryContour(image, fullyConnected=False, foregroundValue=1)


def _distances(sitk, one, other) -> np.ndarray:
    """Returns the distances of the surface voxels of `one` to the nearest surface voxel of `other`, mm."""
    distance = sitk.SignedMaurerDistanceMap(other, insideIsPositive=False, squaredDistance=False, useImageSpacing=True)
    return np.abs(sitk.GetArrayViewFromImage(distance)[sitk.GetArrayViewFromImage(one) > 0])
