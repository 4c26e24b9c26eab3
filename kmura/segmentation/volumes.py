"""Volumes with their geometry: files and DICOM series in, aligned and windowed arrays out; all by SimpleITK.

SimpleITK's coordinates are LPS: x to the patient's left, y to the back, z to the head, mm. Arrays are [Z, Y, X].
"""

import gzip
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kmura.errors import InputError, reason
from kmura.itk import simpleitk

AIR = -1024.0  # HU, of everything outside a scan
RIGID_TOLERANCE = 0.01  # largest difference of a rotation matrix times its transpose from the identity
GRID_TOLERANCE = 1e-3  # of origins (mm), spacings (mm) and directions
SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")
_TRANSFORM_SUFFIXES = (".txt", ".tfm", ".h5", ".hdf5", ".hdf")


def read_volume(path: str | os.PathLike, *, series: str | None = None, orientation: str | None = None):
    """Returns a scan as a three-dimensional SimpleITK image, with the values and the geometry of its file.

    Args:
        path: a file (NIfTI, NRRD, MetaImage), or a folder of a DICOM series.
        series: UID of the series, for a folder that contains several.
        orientation: of a NIfTI file that does not state it, such as `RAS`: directions towards which x, y and z grow.

    Raises:
        InputError: the file or folder does not exist, is damaged, is not a volume, or does not state its geometry.
    """
    path = Path(path)
    if path.is_dir():
        image = _series(path, series)
    else:
        image = _file(path, orientation)
    _check_geometry(image, path)
    if "float" in image.GetPixelIDTypeAsString() and not np.isfinite(array_of(image)).all():
        raise InputError(
            f"{path} contains values that are not numbers (NaN or infinite); replace them, for example by air"
        )
    return image


def read_labels(path: str | os.PathLike, names: Sequence[str]):
    """Returns a label map as a SimpleITK image of unsigned bytes: class numbers, 0 is background.

    Args:
        path: a file as `read_volume` reads it.
        names: of the classes 1, 2, ...

    Raises:
        InputError: as `read_volume`; the labels are fractions, outside the classes, or all background.
    """
    sitk = simpleitk()
    image = read_volume(path)
    values = array_of(image)
    numbers = np.unique(values)
    if (numbers != np.round(numbers)).any():
        bad = numbers[numbers != np.round(numbers)][0]
        raise InputError(
            f"{path} contains the label {bad:g}, which is no whole number; give a label map that was not interpolated"
        )
    if numbers[0] < 0 or numbers[-1] > len(names):
        bad = numbers[0] if numbers[0] < 0 else numbers[-1]
        raise InputError(
            f"{path} contains the label {int(bad)}; allowed are 0 (background) to {len(names)} ({names[-1]}); correct "
            "the labels, or give the names of all classes"
        )
    if numbers[-1] == 0:
        raise InputError(f"{path} contains no labels, only background; remove this case or correct the label map")
    return sitk.Cast(image, sitk.sitkUInt8)


def read_transform(path: str | os.PathLike):
    """Returns the transform of an ITK transform file (.txt, .tfm, .h5).

    Raises:
        InputError: the file does not exist or is no transform of three dimensions.
    """
    sitk, path = simpleitk(), Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; give an ITK transform file (.txt, .tfm or .h5)")
    if path.suffix not in _TRANSFORM_SUFFIXES:
        raise InputError(f"{path} has the suffix {path.suffix}; transforms end with {', '.join(_TRANSFORM_SUFFIXES)}")
    try:
        transform = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        raise InputError(f"{path} is not a transform that ITK can read ({_cause(error)}); write it again") from error
    if transform.GetDimension() != 3:
        raise InputError(f"{path} is a transform of {transform.GetDimension()} dimensions; three are needed")
    return transform


def check_rigid(transform, name: str | os.PathLike = "the transform", tolerance: float = RIGID_TOLERANCE) -> None:
    """Checks that a transform only turns and shifts.

    Args:
        transform: of SimpleITK, three dimensions.
        name: of its file, for the error.
        tolerance: largest entry of |A A^T - 1|, A the matrix of the transform.

    Raises:
        InputError: it mirrors, scales, shears or deforms.
    """
    if not transform.IsLinear():
        raise InputError(f"{name} is a {transform.GetName()}, which deforms; give a rigid transform")
    matrix = matrix_of(transform)[0]
    if np.linalg.det(matrix) < 0:
        raise InputError(f"{name} mirrors, which exchanges left and right; give a rigid transform")
    difference = np.abs(matrix @ matrix.T - np.eye(3)).max()
    if difference > tolerance:
        raise InputError(
            f"{name} scales or shears (its matrix differs from a rotation by {difference:.3f}, {tolerance:g} is "
            "allowed); give a rigid transform"
        )


def matrix_of(transform) -> tuple[np.ndarray, np.ndarray]:
    """Returns matrix [3, 3] and offset [3] of a linear transform x -> matrix x + offset, mm."""
    offset = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.array(transform.TransformPoint(unit)) - offset for unit in np.eye(3).tolist()]
    return np.array(columns).T, offset


def array_of(image) -> np.ndarray:
    """Returns a copy of the values of an image, [Z, Y, X]."""
    return simpleitk().GetArrayFromImage(image)


def canonical(image):
    """Returns an image whose axes x, y and z point to the patient's left, back and head as nearly as possible.

    Values and their positions in the patient stay the same; axes are exchanged and turned around.
    """
    return simpleitk().DICOMOrient(image, "LPS")


def aligned(scan, transform, grid):
    """Returns a scan on another grid, float32, linearly interpolated; outside of the scan it is air.

    Args:
        scan: the scan.
        transform: from the space of the grid to that of the scan; None is the identity.
        grid: an image whose grid is used.
    """
    sitk = simpleitk()
    how = transform or sitk.Transform(3, sitk.sitkIdentity)
    return sitk.Resample(scan, grid, how, sitk.sitkLinear, AIR, sitk.sitkFloat32)


def in_scan(image, transform, scan, *, labels: bool):
    """Returns an image of the aligned space on the grid of the scan.

    Args:
        image: class numbers, or any values.
        transform: as in `aligned`.
        scan: the scan.
        labels: nearest neighbour for class numbers, else linear; outside of the image both are 0.
    """
    sitk = simpleitk()
    how = transform.GetInverse() if transform else sitk.Transform(3, sitk.sitkIdentity)
    interpolation = sitk.sitkNearestNeighbor if labels else sitk.sitkLinear
    return sitk.Resample(image, scan, how, interpolation, 0.0, image.GetPixelID())


def same_grid(one, other, tolerance: float = GRID_TOLERANCE) -> bool:
    """Whether two images have the same size, and the same spacing, origin and directions within a tolerance."""
    return one.GetSize() == other.GetSize() and all(
        np.allclose(getattr(one, name)(), getattr(other, name)(), atol=tolerance, rtol=0)
        for name in ("GetSpacing", "GetOrigin", "GetDirection")
    )


def to_gray(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns gray values uint8: the window from `low` to `high` becomes 0 to 255; values outside are clipped."""
    scaled = (np.asarray(values, np.float32) - low) * (255.0 / (high - low))
    return np.clip(np.round(scaled), 0, 255).astype(np.uint8)


def write_volume(image, path: str | os.PathLike) -> None:
    """Writes an image as a file, whole or not at all.

    Raises:
        InputError: the suffix is unknown, or the file cannot be written.
    """
    sitk, path = simpleitk(), Path(path)
    suffix = next((one for one in (".nii.gz", *SUFFIXES) if path.name.endswith(one)), None)
    if suffix is None or suffix == ".mhd":
        allowed = ", ".join(one for one in SUFFIXES if one != ".mhd")
        raise InputError(f"{path} cannot be written; its name must end with one of {allowed}")
    target = path.resolve()  # a link stays a link
    if target.exists() and not target.is_file():
        raise InputError(f"{path} is not a file; give the name of a file")
    aside = target.with_name(f".{target.name.removesuffix(suffix)[:100]}.{os.getpid()}.part{suffix}")
    try:
        if not target.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {target.parent}")
        sitk.WriteImage(image, str(aside), useCompression=suffix != ".nii")
        os.replace(aside, target)
    except (RuntimeError, OSError) as error:
        cause = reason(error) if isinstance(error, OSError) else _cause(error)
        raise InputError(f"cannot write {path}: {cause}; choose another place with --out") from error
    finally:
        aside.unlink(missing_ok=True)


def _file(path: Path, orientation: str | None):
    sitk = simpleitk()
    if not path.exists():
        raise InputError(f"{path} does not exist; give a volume ({', '.join(SUFFIXES)}) or a folder of a DICOM series")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        if reader.GetDimension() == 3 or (reader.GetDimension() == 4 and reader.GetSize()[3] == 1):
            image = reader.Execute()
        else:
            image = None
    except RuntimeError as error:
        raise InputError(
            f"{path} is not a volume that SimpleITK can read ({_cause(error)}); give another file"
        ) from error
    if image is None:
        size = " x ".join(map(str, reader.GetSize()))
        raise InputError(f"{path} has {reader.GetDimension()} dimensions ({size}); give a volume of three")
    if image.GetDimension() == 4:
        image = image[:, :, :, 0]
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise InputError(
            f"{path} has {image.GetNumberOfComponentsPerPixel()} values per voxel (colours or vectors); give a volume "
            "of gray values"
        )
    if path.name.endswith((".nii", ".nii.gz")):
        _check_nifti(path, orientation)
        if orientation:
            image = _oriented(image, orientation)
    return image


def _check_nifti(path: Path, orientation: str | None) -> None:
    """Checks what a NIfTI header states; ITK silently replaces what is missing by defaults."""
    opened = gzip.open if path.name.endswith(".gz") else open
    with opened(path, "rb") as file:
        header = file.read(540)
    order = next((order for order in "<>" if struct.unpack(f"{order}i", header[:4])[0] in (348, 540)), None)
    if order is None:  # of the format ANALYZE, or damaged in a way that ITK tolerates
        return
    # byte at which the sizes and the two codes begin, in versions 1 and 2
    second = struct.unpack(f"{order}i", header[:4])[0] == 540
    sizes = struct.unpack_from(f"{order}3d", header, 112) if second else struct.unpack_from(f"{order}3f", header, 80)
    codes = struct.unpack_from(f"{order}2i", header, 344) if second else struct.unpack_from(f"{order}2h", header, 252)
    if not all(np.isfinite(size) and size > 0 for size in sizes):
        listed = ", ".join(f"{size:g}" for size in sizes)
        raise InputError(f"{path} does not state the size of its voxels (pixdim {listed}); correct its header")
    if not orientation and codes == (0, 0):
        raise InputError(
            f"{path} does not state its orientation (qform and sform are 0), so left and right are unknown; correct "
            "its header, or give the orientation, for example --orientation RAS"
        )


def _oriented(image, orientation: str):
    """The image with the directions of an orientation code; its origin becomes 0."""
    sitk = simpleitk()
    axes = {"R": (-1, 0, 0), "L": (1, 0, 0), "A": (0, -1, 0), "P": (0, 1, 0), "I": (0, 0, -1), "S": (0, 0, 1)}
    code = orientation.upper()
    if len(code) != 3 or any(letter not in axes for letter in code) or np.linalg.matrix_rank(
        [axes[letter] for letter in code]
    ) < 3:  # fmt: skip
        raise InputError(f"orientation {orientation!r} is unknown; give three letters such as RAS or LPS")
    image = sitk.Image(image)
    image.SetDirection(np.array([axes[letter] for letter in code]).T.ravel().astype(float).tolist())
    image.SetOrigin((0.0, 0.0, 0.0))
    return image


def _series(folder: Path, wanted: str | None):
    sitk = simpleitk()
    reader = sitk.ImageSeriesReader()
    found = {uid: reader.GetGDCMSeriesFileNames(str(folder), uid) for uid in reader.GetGDCMSeriesIDs(str(folder)) or ()}
    if not found:
        raise InputError(f"{folder} contains no DICOM series; give the folder with the slices of one series")
    if wanted and wanted not in found:
        raise InputError(f"{folder} has no series {wanted}; there are: {_listed(found)}")
    if not wanted and len(found) > 1:
        raise InputError(f"{folder} contains {len(found)} series: {_listed(found)}; choose one with --series UID")
    files = found[wanted or next(iter(found))]
    if len(files) < 2:
        raise InputError(f"{folder} has a series of one slice; a volume needs two or more")
    reader.SetFileNames(files)
    reader.MetaDataDictionaryArrayUpdateOn()
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError(f"the series in {folder} cannot be read ({_cause(error)}); give another folder") from error
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise InputError(f"the series in {folder} has colours; give a series of gray values")
    return _untilted(image, reader, files, folder)


def _untilted(image, reader, files: Sequence[str], folder: Path):
    """The series with the geometry of the positions of its slices: ITK ignores gaps and the tilt of the gantry."""
    sitk = simpleitk()
    keys = ("0020|0032", "0020|0037")
    if not all(reader.HasMetaDataKey(number, key) for number in range(len(files)) for key in keys):
        raise InputError(
            f"the slices in {folder} do not state their position (ImagePositionPatient, ImageOrientationPatient); "
            "give a series of an axial CT"
        )
    at = np.array([_numbers(reader.GetMetaData(number, keys[0])) for number in range(len(files))])
    row, column = _numbers(reader.GetMetaData(0, keys[1])).reshape(2, 3)
    normal = np.cross(row, column)
    heights = at @ normal
    steps = np.diff(heights)
    usual = float(np.median(steps))
    if not abs(usual) > 1e-3:
        raise InputError(f"the slices in {folder} have the same position; give the series of one acquisition")
    wrong = np.flatnonzero(np.abs(steps - usual) > 0.05 * abs(usual) + 1e-3)
    if len(wrong):
        number = int(wrong[0])
        raise InputError(
            f"the slices in {folder} are {steps[number]:.2f} mm apart after {Path(files[number]).name}, elsewhere "
            f"{usual:.2f} mm: slices are missing or of another series; give a complete series"
        )
    image.SetSpacing((*image.GetSpacing()[:2], abs(usual)))
    image.SetDirection(np.array([row, column, normal * np.sign(usual)]).T.ravel().tolist())
    image.SetOrigin(at[0].tolist())
    drift = np.diff(at, axis=0).mean(axis=0) - usual * normal  # within the plane of a slice, from one to the next
    if np.linalg.norm(drift) * (len(files) - 1) < 0.5:
        return image
    # a tilted gantry: the slices are parallel, but not above each other; resample onto an upright grid
    shear = np.eye(3) + np.outer(drift / usual, normal)
    straight = sitk.AffineTransform(3)
    straight.SetMatrix(shear.ravel().tolist())
    straight.SetCenter(at[0].tolist())
    grid = _upright_grid(image, drift, len(files))
    return sitk.Resample(image, grid, straight.GetInverse(), sitk.sitkLinear, AIR, image.GetPixelID())


def _upright_grid(image, drift: np.ndarray, count: int):
    """A grid of the same axes and voxels that contains all slices where they really are."""
    sitk = simpleitk()
    axes, spacing = np.array(image.GetDirection()).reshape(3, 3), np.array(image.GetSpacing())
    moved = axes.T @ (drift * (count - 1)) / spacing  # voxels, from the first to the last slice
    low, high = np.minimum(0, np.floor(moved)), np.maximum(0, np.ceil(moved))
    size = np.array(image.GetSize()) + np.array([high[0] - low[0], high[1] - low[1], 0])
    grid = sitk.Image([int(side) for side in size], image.GetPixelID())
    grid.SetSpacing(image.GetSpacing())
    grid.SetDirection(image.GetDirection())
    grid.SetOrigin((np.array(image.GetOrigin()) + axes @ (np.array([low[0], low[1], 0]) * spacing)).tolist())
    return grid


def _check_geometry(image, path: Path) -> None:
    if image.GetDimension() != 3 or min(image.GetSize()) < 2:
        size = " x ".join(map(str, image.GetSize()))
        raise InputError(f"{path} is {size}: not a volume; two voxels or more are needed along each of three axes")
    if not all(np.isfinite(size) and size > 0 for size in image.GetSpacing()):
        raise InputError(f"{path} does not state the size of its voxels ({image.GetSpacing()}); correct its header")
    direction = np.array(image.GetDirection()).reshape(3, 3)
    if not np.abs(direction @ direction.T - np.eye(3)).max() < RIGID_TOLERANCE:
        raise InputError(f"{path} has axes that are not perpendicular; resample it onto a grid with perpendicular axes")


def _numbers(text: str) -> np.ndarray:
    return np.array([float(part) for part in text.split("\\")])


def _listed(found: dict[str, Sequence[str]]) -> str:
    return ", ".join(f"{uid} ({len(files)} slices)" for uid, files in sorted(found.items()))


def _cause(error: Exception) -> str:
    """The last sentence of an error of ITK, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rpartition("): ")[2][:160]
