"""Robustness of a segmentation: Dice of held-out heads whose scans were changed.

    python benchmarks/segmentation_robustness.py --heads HEADS --model RUNS/AREA [RUNS/AREA ...] --volumes 1 2
        [--changes none noise scale+ scale- thick tilt] [--fusion mean]

`--model` is a folder as `kmura segment predict` takes it, `--volumes` the heads (`HEADS/1.nii.gz`, ...) that no network
of it was trained on. Each scan is changed, segmented with its transform, and compared with its labels in the aligned
space:

- `noise`: Gaussian noise is added, with the standard deviation of the noise that the scan has (so that it is 1.4 x as
  large), estimated from the differences of neighbouring voxels in the head; `noise2` adds the threefold variance (2 x).
- `scale+`, `scale-`: gray values times 1.1 and 0.9.
- `thick`: slices of 5 mm, means over the slices that they contain.
- `tilt`: turned by 20 degrees about the patient's left-right axis; the transform does not know of it, the labels do.
"""

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

CHANGES = ("none", "noise", "noise2", "scale+", "scale-", "thick", "tilt")
TILT = 20  # degrees
THICKNESS = 5.0  # mm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--heads", type=Path, required=True, help="folder of scans, transforms and label maps")
    parser.add_argument("--model", type=Path, nargs="+", required=True, help="folders of runs, one column each")
    parser.add_argument("--volumes", nargs="+", required=True, help="names of held-out heads")
    parser.add_argument("--changes", nargs="+", choices=CHANGES, default=CHANGES)
    parser.add_argument("--fusion", default="mean")
    arguments = parser.parse_args()
    rows = [" | ".join(["change", *map(str, arguments.model)]), " | ".join(["---"] * (len(arguments.model) + 1))]
    print("\n".join(rows))
    for change in arguments.changes:
        cells = [f"{score(model, change, arguments):.3f}" for model in arguments.model]
        print(" | ".join([change, *cells]), flush=True)


def score(model: Path, change: str, arguments: argparse.Namespace) -> float:
    """Returns the mean Dice over the classes of all voxels of the changed heads."""
    from kmura.metrics import overlap
    from kmura.segmentation import volumes
    from kmura.segmentation.regions import REGIONS
    from kmura.segmentation.segment import segment

    total = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.volumes:
            scan = volumes.read_volume(arguments.heads / f"{name}.nii.gz")
            image, turn = changed(scan, change)
            volumes.write_volume(image, Path(folder) / "scan.nii.gz")
            transform = arguments.heads / f"{name}.txt"
            found = segment(model, Path(folder) / "scan.nii.gz", transform=transform, fusion=arguments.fusion)
            labels = volumes.read_labels(arguments.heads / f"{name}-seg.nii.gz", REGIONS)
            if turn is not None:
                labels = turned(labels, volumes.read_transform(transform), turn)
            numbers = on_grid(found.aligned, labels)
            total = total + overlap.confusion(volumes.array_of(labels), numbers, len(REGIONS) + 1)
    return float(np.nanmean(overlap.dice(total)[1:]))


def on_grid(image, grid) -> np.ndarray:
    """Returns class numbers on the grid of the labels, by nearest neighbour."""
    import SimpleITK as sitk

    from kmura.segmentation import volumes

    return volumes.array_of(sitk.Resample(image, grid, sitk.Transform(), sitk.sitkNearestNeighbor, 0))


def turned(labels, transform, turn):
    """Returns the labels of a scan that was resampled with `turn`, in the aligned space.

    The transform maps an aligned point to a point of the scan, which shows what was at turn(point).
    """
    import SimpleITK as sitk

    way = sitk.CompositeTransform([transform.GetInverse(), turn, transform])  # the last one is applied first
    return sitk.Resample(labels, labels, way, sitk.sitkNearestNeighbor, 0)


def changed(scan, change: str):
    """Returns the changed scan, and the transform with which it was resampled; None if it was not."""
    import SimpleITK as sitk

    from kmura.segmentation import volumes

    values = volumes.array_of(scan).astype(np.float32)
    if change.startswith("noise"):
        inside = (values[:, :, 1:] > 0) & (values[:, :, 1:] < 80) & (values[:, :, :-1] > 0) & (values[:, :, :-1] < 80)
        deviation = np.std((values[:, :, 1:] - values[:, :, :-1])[inside]) / np.sqrt(2)
        factor = np.sqrt(3) if change == "noise2" else 1.0
        values = values + np.random.default_rng(0).normal(0, factor * deviation, values.shape)
    elif change in ("scale+", "scale-"):
        values = values * (1.1 if change == "scale+" else 0.9)
    elif change == "thick":
        step = scan.GetSpacing()[2]
        count = max(1, round(THICKNESS / step))
        kept = len(values) // count * count
        thick = values[:kept].reshape(-1, count, *values.shape[1:]).mean(axis=1)
        image = sitk.GetImageFromArray(thick)
        image.SetSpacing((*scan.GetSpacing()[:2], step * count))
        image.SetDirection(scan.GetDirection())
        image.SetOrigin(scan.TransformContinuousIndexToPhysicalPoint((0.0, 0.0, (count - 1) / 2)))
        return image, None
    elif change == "tilt":
        middle = scan.TransformContinuousIndexToPhysicalPoint([(side - 1) / 2 for side in scan.GetSize()])
        turn = sitk.Euler3DTransform(middle, np.radians(TILT), 0.0, 0.0)
        return sitk.Resample(scan, scan, turn, sitk.sitkLinear, -1024.0), turn
    image = sitk.GetImageFromArray(values.astype(np.float32))
    image.CopyInformation(scan)
    return image, None


if __name__ == "__main__":
    main()
