"""The mid-sagittal plane of a head: the plane about which the volume is most nearly symmetric."""

import dataclasses

import numpy as np
from scipy import optimize

from kmura.itk import simpleitk
from kmura.records.manifest import VolumeFacts

GRIDS = (8.0, 4.0)  # size of a voxel in the coarse and in the fine search, mm
MOST_TILT, TILT_STEP = 24, 6  # of the coarse search about each axis, degrees
SHIFTS = (-8.0, 0.0, 8.0)  # of the plane from the centre of mass in the coarse search, mm
HEAD_WINDOW = (-200.0, 200.0)  # HU: air, soft tissue and bone


@dataclasses.dataclass(frozen=True)
class SagittalPlane:
    """A plane between the hemispheres, in the patient's coordinates (LPS).

    Attributes:
        point: a point of the plane, mm.
        normal: unit vector towards the patient's left.
    """

    point: tuple[float, float, float]
    normal: tuple[float, float, float]


def midsagittal_plane(image) -> SagittalPlane:
    """Returns the plane about which a head is most nearly symmetric.

    The volume is resampled at its reflection about a plane; the plane with the smallest mean squared difference is
    searched on a coarse grid of angles and offsets, and refined by the simplex method of Nelder and Mead. The result is
    deterministic.

    Args:
        image: CT of a head in Hounsfield units, with axes in any order, tilted by up to MOST_TILT.
    """
    coarse, fine = (_prepared(image, size) for size in GRIDS)
    centre = np.array(_centre_of_mass(fine))
    slopes = np.tan(np.radians(np.arange(-MOST_TILT, MOST_TILT + 1, TILT_STEP)))
    starts = [(back, up, shift) for back in slopes for up in slopes for shift in SHIFTS]
    start = min(starts, key=lambda values: _asymmetry(coarse, centre, values))
    simplex = np.array([start, *(np.array(start) + step for step in np.diag((0.05, 0.05, 2.0)))])
    options = {"initial_simplex": simplex, "xatol": 1e-3, "fatol": 1e-9, "maxfev": 200}
    values = optimize.minimize(
        lambda found: _asymmetry(fine, centre, found), start, method="Nelder-Mead", options=options
    ).x
    normal = _normal(values)
    return SagittalPlane(tuple(map(float, centre + values[2] * normal)), tuple(map(float, normal)))


def _normal(values) -> np.ndarray:
    """The unit normal whose components to the back and to the head are given relative to that to the left."""
    normal = np.array([1.0, values[0], values[1]])
    return normal / np.linalg.norm(normal)


def _asymmetry(head, centre: np.ndarray, values) -> float:
    """The mean squared difference of a head from its reflection; large for planes far from the head.

    Args:
        head: gray values 0..1.
        centre: of the head, mm.
        values: slopes of the normal to the back and to the head, distance of the plane from the centre, mm.
    """
    sitk, normal = simpleitk(), _normal(values)
    reflection = sitk.AffineTransform(3)
    reflection.SetMatrix((np.eye(3) - 2 * np.outer(normal, normal)).ravel().tolist())
    reflection.SetTranslation((2 * (normal @ centre + values[2]) * normal).tolist())
    mirrored = sitk.Resample(head, head, reflection, sitk.sitkLinear, 0.0)
    difference = sitk.GetArrayViewFromImage(mirrored) - sitk.GetArrayViewFromImage(head)
    return float(np.mean(difference**2))


def signed_distance(plane: SagittalPlane, image) -> np.ndarray:
    """Returns the distance of each voxel of an image to the plane, mm, positive on the left, float32 [Z, Y, X]."""
    normal, point = np.array(plane.normal), np.array(plane.point)
    axes = np.array(image.GetDirection()).reshape(3, 3)
    along = (normal @ axes) * np.array(image.GetSpacing())
    start = normal @ (np.array(image.GetOrigin()) - point)
    columns, rows, count = image.GetSize()
    x, y, z = (step * np.arange(side) for step, side in zip(along, (columns, rows, count), strict=True))
    return (start + z[:, None, None] + y[None, :, None] + x[None, None, :]).astype(np.float32)


def facts_of(hounsfield, window: tuple[float, float], sources: tuple[str, str, str] = ("", "", "")) -> VolumeFacts:
    """Returns the geometry of an aligned scan and its mid-sagittal plane.

    Args:
        hounsfield: the scan, a SimpleITK image in HU.
        window: gray values (HU) that become 0 and 255.
        sources: image, transform and labels, paths relative to the root.
    """
    plane = midsagittal_plane(hounsfield)
    axes = np.array(hounsfield.GetDirection()).reshape(3, 3)
    middle = hounsfield.TransformContinuousIndexToPhysicalPoint([(count - 1) / 2 for count in hounsfield.GetSize()])
    return VolumeFacts(
        area="",
        split="",
        size=hounsfield.GetSize(),
        spacing=hounsfield.GetSpacing(),
        origin=hounsfield.GetOrigin(),
        direction=hounsfield.GetDirection(),
        window=window,
        normal=tuple(map(float, axes.T @ np.array(plane.normal))),
        offset=float(np.array(plane.normal) @ (np.array(plane.point) - np.array(middle))),
        sources=sources,
        sha256="",
    )


def _prepared(image, grid: float):
    """The head on a grid of about this size of a voxel (mm), gray values 0..1."""
    sitk = simpleitk()
    low, high = HEAD_WINDOW
    values = sitk.Clamp(sitk.Cast(image, sitk.sitkFloat32), lowerBound=low, upperBound=high)
    values = (values - low) / (high - low)
    sigma = [max(0.0, grid / 2 - size / 2) for size in image.GetSpacing()]
    smooth = sitk.SmoothingRecursiveGaussian(values, [max(one, 0.1) for one in sigma])
    size = [max(8, round(count * step / grid)) for count, step in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    spacing = [count * step / new for count, step, new in zip(image.GetSize(), image.GetSpacing(), size, strict=True)]
    origin = image.TransformContinuousIndexToPhysicalPoint(
        [(new / old - 1) / 2 for new, old in zip(spacing, image.GetSpacing(), strict=True)]
    )
    how = (size, sitk.Transform(3, sitk.sitkIdentity), sitk.sitkLinear, origin, spacing, image.GetDirection(), 0.0)
    return sitk.Resample(smooth, *how)


def _centre_of_mass(image) -> list[float]:
    """Of the gray values, in the patient's coordinates, mm."""
    values = simpleitk().GetArrayFromImage(image).astype(np.float64)
    total = values.sum()
    if not total > 0:
        return list(image.TransformContinuousIndexToPhysicalPoint([(side - 1) / 2 for side in image.GetSize()]))
    index = [
        float((values.sum(axis=tuple(other for other in range(3) if other != axis)) @ np.arange(side)) / total)
        for axis, side in zip((2, 1, 0), image.GetSize(), strict=True)
    ]
    return list(image.TransformContinuousIndexToPhysicalPoint(index))
