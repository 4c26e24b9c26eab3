"""`segment`: class numbers of a whole scan from the networks of one to three planes.

The probabilities of the planes pass through files, so that memory is bounded by a few slices of all classes and a few
volumes of one value per voxel.
"""

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kmura.config.segmentation import PLANES
from kmura.data.volume_dataset import PLANE_AXES, Volume
from kmura.errors import InputError, check_choice, reason
from kmura.files import locked, name_within_limit, reading_json, replacing
from kmura.itk import simpleitk
from kmura.runs.run import Run, RunFolder
from kmura.segmentation import volumes
from kmura.segmentation.plane_fusion import (
    FUSIONS,
    MAJORITY,
    PlaneWeights,
    fused_labels,
    fused_probabilities,
    quantized,
)
from kmura.segmentation.sides import facts_of
from kmura.segmentation.slice_prediction import SlicePredictor, predictor_of
from kmura.segmentation.targets import pairs, targets_of

FUSED = "fused"  # name of the run of the fusion, beside those of the planes
WEIGHTS = "fusion.json"  # in its folder
SCALE = 255  # probabilities in files are bytes
SLAB = 8  # axial slices that are fused at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentation:
    """The result of `segment`.

    Attributes:
        aligned: class numbers in the aligned space, a SimpleITK image.
        in_scan: class numbers on the grid of the scan.
        regions: one row per class, see `region_table`.
        planes: the planes that were fused.
        fusion: how.
    """

    aligned: object
    in_scan: object
    regions: pd.DataFrame
    planes: tuple[str, ...]
    fusion: str


def runs_of(model: str | os.PathLike) -> dict[str, Run]:
    """Returns plane -> run, of a run or of the folder that holds the runs of several planes (RUNS/AREA).

    Raises:
        InputError: there is no run of a plane, or the runs were trained on different classes.
    """
    path = Path(model)
    if RunFolder(path).description.is_file():
        runs = [Run(path)]
    else:
        runs = [Run(path / plane) for plane in PLANES if RunFolder(path / plane).description.is_file()]
    if not runs:
        raise InputError(
            f"{path} is neither a run of kmura segment fit nor a folder with the runs {', '.join(PLANES)}; give such a "
            "folder, for example runs/CT_HEAD"
        )
    for run in runs:
        run.part("volumes")
    if len({(run.labels.classes, str(run.description.preparation)) for run in runs}) > 1:
        raise InputError(f"the runs in {path} have different classes, windows or voxel sizes; train all of them again")
    return {run.config.data.plane: run for run in runs}


def segment(
    model: str | os.PathLike,
    volume: str | os.PathLike,
    *,
    transform: str | os.PathLike | None = None,
    out: str | os.PathLike | None = None,
    aligned_out: str | os.PathLike | None = None,
    table_out: str | os.PathLike | None = None,
    probability_out: str | os.PathLike | None = None,
    fusion: str = "mean",
    flips: bool = False,
    series: str | None = None,
    orientation: str | None = None,
) -> Segmentation:
    """Segments a scan; every file is written whole or not at all, and the same call gives the same bits.

    Args:
        model: the folder of a run, or RUNS/AREA with the runs of several planes.
        volume: the scan: a file, or a folder of a DICOM series.
        transform: rigid ITK transform from the aligned space to that of the scan; None: the scan is aligned.
        out: file for the class numbers on the grid of the scan; None writes none, as for the files below.
        aligned_out: file for the class numbers in the aligned space.
        table_out: CSV file for `region_table`.
        probability_out: file for the probability of the chosen class on the grid of the scan, 0 to 1.
        fusion: `mean` of the probabilities, `majority` (the class on which two planes agree, else background), or
            `weighted` (weights fitted on val by `kmura segment fit`).
        flips: average with the prediction for the mirrored slices.
        series: UID of the series of a DICOM folder with several.
        orientation: of a NIfTI file that does not state it.

    Raises:
        InputError: a file is unusable (names it), there is no model, or a file cannot be written.
    """
    check_choice("fusion", fusion, FUSIONS)
    runs = runs_of(model)
    first = next(iter(runs.values()))
    names, preparation = first.labels.classes, first.description.preparation
    weights = fusion_weights(model, runs) if fusion == "weighted" else None
    targets = [path for path in (out, aligned_out, table_out, probability_out) if path]
    for path in targets:
        if not Path(path).resolve().parent.is_dir():
            raise InputError(f"cannot write {path}: there is no folder {Path(path).parent}; create it")
    scan = volumes.read_volume(volume, series=series, assume_orientation=orientation)
    how = volumes.read_transform(transform) if transform else None
    if how:
        volumes.check_rigid(how, what=transform)
    grid = prediction_grid(scan, how, preparation["spacing"])
    hounsfield = volumes.aligned(scan, how, grid)
    case = volume_of(hounsfield, preparation["window"], Path(volume).name)
    with _scratch(targets) as folder:
        planes = {
            plane: plane_file(predictor_of(run, flips=flips), names, case, folder / plane)
            for plane, run in runs.items()
        }
        chosen = folder / "fused"
        fuse_files(planes, case.gray.shape, len(names) + 1, fusion, weights, chosen)
        numbers, _ = strongest(chosen, len(names) + 1, hounsfield, None)
        in_scan, probability = strongest(chosen, len(names) + 1, hounsfield, (how, scan))
    regions = region_table(volumes.array_of(numbers), volumes.array_of(hounsfield), grid.GetSpacing(), names)
    if out:
        volumes.write_volume(in_scan, out)
    if aligned_out:
        volumes.write_volume(numbers, aligned_out)
    if probability_out:
        volumes.write_volume(probability, probability_out)
    if table_out:
        with replacing(Path(table_out)) as file:
            regions.to_csv(file, index=False)
    return Segmentation(numbers, in_scan, regions, tuple(runs), fusion)


def prediction_grid(scan, transform, spacing: Sequence[float]):
    """Returns an empty image in the aligned space that contains a scan, with voxels as in training.

    Without a transform its axes are those of the scan, in canonical order; with one they are those of the patient.

    Args:
        scan: the scan.
        transform: from the aligned space to that of the scan, or None.
        spacing: size of a voxel along x, y, z, mm.
    """
    sitk = simpleitk()
    axes = np.eye(3) if transform else np.array(volumes.canonical(scan).GetDirection()).reshape(3, 3)
    back = transform.GetInverse() if transform else sitk.Transform(3, sitk.sitkIdentity)
    # half a voxel beyond the first and the last centre: the whole extent
    ends = [(-0.5, count - 0.5) for count in scan.GetSize()]
    corners = np.array(
        [
            axes.T @ np.array(back.TransformPoint(scan.TransformContinuousIndexToPhysicalPoint((x, y, z))))
            for x in ends[0]
            for y in ends[1]
            for z in ends[2]
        ]
    )
    low, high, step = corners.min(axis=0), corners.max(axis=0), np.array(spacing)
    size = np.maximum(1, np.round((high - low) / step)).astype(int)
    first = (low + high) / 2 - (size - 1) / 2 * step
    grid = sitk.Image(size.tolist(), sitk.sitkUInt8)
    grid.SetSpacing(step.tolist())
    grid.SetDirection(axes.ravel().tolist())
    grid.SetOrigin((axes @ first).tolist())
    return grid


def volume_of(hounsfield, window: Sequence[float], name: str) -> Volume:
    """Returns an aligned scan as the data set has it, without labels."""
    gray = volumes.to_gray(volumes.array_of(hounsfield), *window)
    facts = facts_of(hounsfield, tuple(window))
    return Volume(name, gray, np.zeros((1, 1, 1), np.uint8), facts)


def plane_file(predictor: SlicePredictor, names: Sequence[str], case: Volume, path: Path) -> Path:
    """Writes the probabilities of one plane as bytes [slice, row, column, K + 1], and returns the file."""
    merged = predictor.config.sides == "merged"
    across = PLANE_AXES[predictor.config.plane][0]
    distance = np.moveaxis(case.left_of_middle(), across, 0) if merged else None
    with open(path, "wb") as file:
        for number, value in enumerate(predictor.slices(case)):
            if merged:
                value = on_both_sides(value, distance[number], names)
            file.write(quantized(value).tobytes())
    return path


def on_both_sides(value: np.ndarray, distance: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Returns probabilities of all classes [..., K + 1] for those of merged ones: all is on the side of the voxel.

    Args:
        value: float32 [..., K' + 1] of `targets_of(names, merged=True)`.
        distance: signed distance to the mid-sagittal plane [...], positive on the left.
        names: of the classes of the records.
    """
    table = targets_of(names, merged=True).table
    full = value[..., table]
    for left, right in pairs(names):
        full[..., left] *= distance >= 0
        full[..., right] *= distance < 0
    return full


def fuse_files(
    planes: dict[str, Path], shape: Sequence[int], classes: int, fusion: str, weights: PlaneWeights | None, target: Path
) -> None:
    """Fuses the files of the planes into one file of bytes [K, Z, Y, X], a few axial slices at a time.

    Args:
        planes: plane -> file of `plane_file`.
        shape: of the volume, [Z, Y, X].
        classes: K, with background.
        fusion, weights: see `fused`.
        target: the file.
    """
    depth, rows, columns = shape
    with contextlib.ExitStack() as stack:
        files = {plane: stack.enter_context(open(path, "rb")) for plane, path in planes.items()}
        result = stack.enter_context(open(target, "wb"))
        result.truncate(classes * depth * rows * columns)
        for first in range(0, depth, SLAB):
            last = min(depth, first + SLAB)
            blocks = [plane_slab(file, plane, shape, classes, first, last) for plane, file in files.items()]
            whole = quantized(fused(np.stack(blocks), fusion, weights))
            for number in range(classes):
                result.seek((number * depth + first) * rows * columns)
                result.write(np.ascontiguousarray(whole[..., number]).tobytes())


def fused(block: np.ndarray, fusion: str, weights: PlaneWeights | None) -> np.ndarray:
    """Returns the fused probabilities of a block, float32 [..., K]; a majority gives 1 to one class.

    Args:
        block: [P, ..., K], see `kmura.segmentation.plane_fusion.fused_labels`.
        fusion: one of FUSIONS.
        weights: for `weighted`.
    """
    if fusion == MAJORITY and len(block) > 1:
        return np.eye(block.shape[-1], dtype=np.float32)[fused_labels(block, fusion)]
    return fused_probabilities(block, weights)


def strongest(file: Path, classes: int, image, target):
    """Returns the most probable class of every voxel and its probability, as images.

    Args:
        file: of `fuse_files`.
        classes: K, with background.
        image: gives the grid of the file.
        target: (transform, scan): interpolate the probabilities linearly on the grid of the scan; None keeps the grid.
    """
    sitk = simpleitk()
    columns, rows, depth = image.GetSize()
    like = image if target is None else target[1]
    best, number_of = None, None
    with open(file, "rb") as source:
        for number in range(classes):
            value = np.frombuffer(source.read(depth * rows * columns), np.uint8).reshape(depth, rows, columns)
            if target is not None:
                map_ = sitk.GetImageFromArray(value.astype(np.float32))
                map_.CopyInformation(image)
                value = volumes.array_of(volumes.back(map_, target[0], target[1]))
            if best is None:
                best, number_of = value.astype(np.float32), np.zeros(value.shape, np.uint8)
                continue
            above = value > best
            best[above], number_of[above] = value[above], number
    results = [sitk.GetImageFromArray(number_of), sitk.GetImageFromArray(best / SCALE)]
    for result in results:
        result.CopyInformation(like)
    return results


def region_table(
    numbers: np.ndarray, hounsfield: np.ndarray, spacing: Sequence[float], names: Sequence[str]
) -> pd.DataFrame:
    """Returns one row per class: what a reader of ASPECTS compares.

    Columns: `number`, `region`, `voxels`, `ml` (volume), `mean_hu`, `sd_hu` (of the voxels, NaN without any), and
    `asymmetry_hu`: mean on the left minus mean on the right, on the rows of both sides.

    Args:
        numbers: class numbers [Z, Y, X].
        hounsfield: the scan on the same grid, HU.
        spacing: size of a voxel, mm.
        names: of the classes 1, 2, ...
    """
    count = np.bincount(numbers.ravel(), minlength=len(names) + 1).astype(float)
    total = np.bincount(numbers.ravel(), weights=hounsfield.ravel(), minlength=len(names) + 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / count
        centred = hounsfield - mean[numbers]
        deviation = np.sqrt(
            np.bincount(numbers.ravel(), weights=(centred**2).ravel(), minlength=len(names) + 1) / count
        )
    asymmetry = np.full(len(names) + 1, np.nan)
    for left, right in pairs(names):
        asymmetry[[left, right]] = mean[left] - mean[right]
    return pd.DataFrame(
        {
            "number": np.arange(1, len(names) + 1),
            "region": list(names),
            "voxels": count[1:].astype(int),
            "ml": np.round(count[1:] * np.prod(spacing) / 1000, 3),
            "mean_hu": np.round(mean[1:], 2),
            "sd_hu": np.round(deviation[1:], 2),
            "asymmetry_hu": np.round(asymmetry[1:], 2),
        }
    )


def fusion_weights(model: str | os.PathLike, runs: dict[str, Run]) -> PlaneWeights:
    """Returns the fitted weights of the planes.

    Raises:
        InputError: there are none, or they are of other planes.
    """
    path = Path(model) / FUSED / WEIGHTS
    fix = "fit them by repeating kmura segment fit --plane all"
    with reading_json(path, fix=fix, missing=f"{path} does not exist; {fix}, or choose --fusion mean") as content:
        if sorted(content["planes"]) != sorted(runs):
            raise InputError(f"{path} has weights of the planes {', '.join(content['planes'])}; {fix}")
        return PlaneWeights(np.array([content["planes"][plane] for plane in runs]))


def plane_slab(file, plane: str, shape: Sequence[int], classes: int, first: int, last: int) -> np.ndarray:
    """Bytes [Z', Y, X, K] of some axial slices, from the file of a plane."""
    depth, rows, columns = shape
    if plane == "axial":
        file.seek(first * rows * columns * classes)
        data = file.read((last - first) * rows * columns * classes)
        return np.frombuffer(data, np.uint8).reshape(last - first, rows, columns, classes)
    count, width = (rows, columns) if plane == "coronal" else (columns, rows)
    parts = []
    for number in range(count):
        file.seek((number * depth + first) * width * classes)
        part = np.frombuffer(file.read((last - first) * width * classes), np.uint8)
        parts.append(part.reshape(last - first, width, classes))
    return np.stack(parts, axis=1 if plane == "coronal" else 2)


@contextlib.contextmanager
def _scratch(targets: Sequence[str | os.PathLike]) -> Iterator[Path]:
    """A folder for the files of the planes, beside the first result, where there is space for large files.

    What a killed process left there is removed by the next one that writes the same result.
    """
    if not targets:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    first = Path(targets[0]).resolve()
    folder = first.with_name(name_within_limit(f".{first.name}", ".planes"))
    busy = f"another process is writing {first}; wait for it, or choose another --out"
    with locked(folder.with_name(name_within_limit(f".{first.name}", ".lock")), busy, drop=True):
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            yield folder
        except OSError as error:
            raise InputError(
                f"cannot write to {folder}: {reason(error)}; free space or choose another --out"
            ) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
