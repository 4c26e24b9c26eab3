"""Reads a folder of single-slice DICOM files as one volume, also where the gantry was tilted."""

import contextlib
import dataclasses
import os
from pathlib import Path

import numpy as np

from kmura.errors import InputError
from kmura.itk import itk_reason, simpleitk

OUTSIDE = -1024.0  # HU, where a resampled scan has no data
_POSITION, _ORIENTATION, _SPACING, _FRAMES = "0020|0032", "0020|0037", "0028|0030", "0028|0008"
_ANGLE = 1e-3  # largest difference of direction cosines within a series
_UNEVEN = 0.02  # largest deviation of the distance between slices, as a fraction of it
_DRIFT = 0.1  # mm, largest deviation of slices from the line along which the table moved


@dataclasses.dataclass(frozen=True)
class _Slice:
    """The header of one file; positions and spacing are in mm."""

    name: str
    position: np.ndarray  # [3]
    axes: np.ndarray  # [2, 3], directions of the columns and of the rows
    spacing: tuple[float, float]  # along x and y
    size: tuple[int, ...]


def read_series(folder: Path, series: str | None = None):
    """Returns the volume of a DICOM series, a 3-D sitk.Image of Hounsfield units on an orthogonal grid.

    Slices are ordered by their position. Those of a tilted gantry, each of which is shifted against the one before, are
    moved within their planes (linear interpolation) to the places that they had in the patient; no slice mixes with
    another. Grid points where the scanner measured nothing are -1024 HU.

    Args:
        folder: the folder that contains the files of the slices, without subfolders.
        series: the Series Instance UID, needed where the folder contains several series.

    Raises:
        InputError: no series, several series without `series`, an unknown `series`; slices are missing, duplicated,
            unevenly spaced, of different directions or sizes; a file is damaged or has several frames.
    """
    sitk = simpleitk()
    names = _files(folder, series)
    slices = _ordered(folder, [_header(folder, name) for name in names])
    step = _step(folder, slices)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([item.name for item in slices])
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError(f"{folder} cannot be read: {itk_reason(error)}; export the series again") from error
    normal = np.cross(*slices[0].axes)
    distance = float(step @ normal)
    image.SetOrigin(slices[0].position.tolist())
    image.SetSpacing((*slices[0].spacing, distance))
    image.SetDirection(np.stack([*slices[0].axes, normal], axis=1).ravel().tolist())
    shift = step - distance * normal
    if np.abs(shift).max() * (len(slices) - 1) < 0.1 * min(slices[0].spacing):
        return image
    return _sheared(image, shift)


def _files(folder: Path, series: str | None) -> list[str]:
    """The files of the series that is asked for."""
    reader = simpleitk().ImageSeriesReader
    found = {uid: reader.GetGDCMSeriesFileNames(str(folder), uid) for uid in reader.GetGDCMSeriesIDs(str(folder))}
    if not found:
        raise InputError(f"{folder} contains no DICOM series; give the folder whose files are the slices of one series")
    listed = ", ".join(f"{uid} ({len(files)} slices)" for uid, files in sorted(found.items()))
    if series is None and len(found) > 1:
        raise InputError(f"{folder} contains {len(found)} series; choose one by its UID: {listed}")
    if series is not None and series not in found:
        raise InputError(f"{folder} contains no series {series}; choose one of: {listed}")
    return list(found[series] if series is not None else next(iter(found.values())))


def _header(folder: Path, name: str) -> _Slice:
    reader = simpleitk().ImageFileReader()
    reader.SetFileName(name)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{name} cannot be read: {itk_reason(error)}; export the series again") from error
    values = {}
    for key, count, what in (
        (_POSITION, 3, "position (ImagePositionPatient)"),
        (_ORIENTATION, 6, "orientation (ImageOrientationPatient)"),
        (_SPACING, 2, "voxel size (PixelSpacing)"),
    ):
        numbers = []
        if reader.HasMetaDataKey(key):
            with contextlib.suppress(ValueError):
                numbers = [float(part) for part in reader.GetMetaData(key).split("\\")]
        if len(numbers) != count or not np.isfinite(numbers).all() or (key == _SPACING and min(numbers) <= 0):
            fix = "export the series as one file per slice" if _frames(reader) > 1 else "export the series again"
            raise InputError(f"{name} states no valid {what}; {fix}")
        values[key] = numbers
    if _frames(reader) > 1:
        raise InputError(f"{name} has {_frames(reader)} frames; export the series as one file per slice")
    axes = np.reshape(values[_ORIENTATION], (2, 3))
    lengths = np.linalg.norm(axes, axis=1)
    if np.abs(lengths - 1).max() > 0.01 or abs(axes[0] @ axes[1]) > 0.01:
        raise InputError(f"{name} states directions that are not perpendicular unit vectors; export the series again")
    y, x = values[_SPACING]  # between rows, between columns (PS3.3, section 10.7.1.3)
    first = axes[0] / lengths[0]
    second = axes[1] - (axes[1] @ first) * first
    axes = np.stack([first, second / np.linalg.norm(second)])
    return _Slice(name, np.array(values[_POSITION]), axes, (x, y), tuple(reader.GetSize()[:2]))


def _frames(reader) -> int:
    text = reader.GetMetaData(_FRAMES).strip() if reader.HasMetaDataKey(_FRAMES) else ""
    return int(text) if text.isdigit() else 1


def _ordered(folder: Path, slices: list[_Slice]) -> list[_Slice]:
    """The slices in the order of their positions, after checks that they have the same directions and sizes."""
    first = slices[0]
    for item in slices[1:]:
        names = f"{os.path.basename(first.name)} and {os.path.basename(item.name)}"
        if np.abs(item.axes - first.axes).max() > _ANGLE:
            raise InputError(f"{folder}: {names} have different directions; remove the localizer from the series")
        if item.size != first.size or not np.allclose(item.spacing, first.spacing, rtol=1e-3):
            raise InputError(f"{folder}: {names} have different sizes or pixel spacings; export the series again")
    if len(slices) < 2:
        raise InputError(f"{folder} contains a series of one slice; give a volume of several slices")
    normal = np.cross(*first.axes)
    return sorted(slices, key=lambda item: float(item.position @ normal))


def _step(folder: Path, slices: list[_Slice]) -> np.ndarray:
    """The vector [3] from a slice to the next, mm, after checks that it is the same for all."""
    positions = np.stack([item.position for item in slices])
    normal = np.cross(*slices[0].axes)
    heights = positions @ normal
    steps = np.diff(heights)
    names = [os.path.basename(item.name) for item in slices]
    usual = float(np.median(steps))
    for number, distance in enumerate(steps):
        pair = f"{names[number]} and {names[number + 1]}"
        if distance < 1e-3:
            raise InputError(f"{folder}: {pair} are at the same position; remove one, or split the series")
        absent = round(distance / usual) - 1 if usual > 0 else 0
        if absent > 0 and abs(distance - (absent + 1) * usual) <= _UNEVEN * distance:
            what = "1 slice is" if absent == 1 else f"{absent} slices are"
            raise InputError(f"{folder}: {what} missing between {pair}; export the whole series")
        if abs(distance - usual) > _UNEVEN * usual:
            raise InputError(
                f"{folder}: {pair} are {distance:.3f} mm apart, others {usual:.3f} mm; export evenly spaced slices"
            )
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    line = positions[0] + np.arange(len(slices))[:, None] * step
    off = (positions - line) @ slices[0].axes.T
    if np.abs(off).max() > _DRIFT:
        worst = names[int(np.abs(off).max(axis=1).argmax())]
        raise InputError(f"{folder}: {worst} is shifted against the other slices; export the series again")
    return step


def _sheared(image, shift: np.ndarray):
    """The volume on an orthogonal grid, of slices each of which is shifted by `shift` [3] (mm) within its plane."""
    sitk = simpleitk()
    directions = np.reshape(image.GetDirection(), (3, 3))
    width, height, depth = image.GetSize()
    spacing = image.GetSpacing()
    total = (directions.T @ shift)[:2] * (depth - 1) / spacing[:2]  # pixels along x and y, of the last slice
    before, after = np.ceil(np.maximum(0, -total)).astype(int), np.ceil(np.maximum(0, total)).astype(int)
    grid = sitk.Image([int(width + before[0] + after[0]), int(height + before[1] + after[1]), depth], sitk.sitkUInt8)
    grid.SetSpacing(spacing)
    grid.SetDirection(image.GetDirection())
    grid.SetOrigin(image.TransformIndexToPhysicalPoint([int(-before[0]), int(-before[1]), 0]))
    # a point of the patient lies at this point of the stack whose slices are not shifted
    shear = sitk.AffineTransform(3)
    shear.SetCenter(image.GetOrigin())
    shear.SetMatrix((np.eye(3) - np.outer(shift, directions[:, 2]) / spacing[2]).ravel().tolist())
    return sitk.Resample(image, grid, shear, sitk.sitkLinear, OUTSIDE, sitk.sitkFloat32)
