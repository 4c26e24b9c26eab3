"""Volumes with their geometry: reading, writing, canonical orientation, and resampling between scan and label grid.

All positions are in LPS coordinates (x to the patient's left, y to posterior, z to superior), in mm, as in DICOM and
SimpleITK. Arrays are in the order of `sitk.GetArrayFromImage`: [z, y, x].
"""

import contextlib
import io
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kmura.errors import InputError, reason, remedy, unreadable
from kmura.files import check_replaceable, flush_to_disk, name_within_limit
from kmura.itk import itk_reason, simpleitk, without_warnings
from kmura.segmentation.dicom_series import OUTSIDE, read_series
from kmura.segmentation.volume_headers import check_header, not_finite, suffix_of

# numpy axis of a canonical volume [z, y, x] along which the slices of a plane are stacked
WINDOW = (-124.0, 130.0)  # HU
_TOWARDS = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}  # LPS axis and sign
TRANSFORM_SUFFIXES = (".txt", ".tfm", ".h5", ".hdf5", ".mat")
_ORTHONORMAL = 1e-3  # largest deviation of the products of the direction vectors


def read_volume(path: str | os.PathLike, *, series: str | None = None, assume_orientation: str | None = None):
    """Returns a CT volume as a 3-D sitk.Image of int16 or float32, without metadata other than its geometry.

    Integers beyond int16 and other float types become float32. The rescaling that a header states is applied.

    Args:
        path: a file (.nii, .nii.gz, .nrrd, .mha) or a folder that contains the slices of a DICOM series.
        series: Series Instance UID, for a folder with several series.
        assume_orientation: for a file that states no orientation, the anatomical directions of its axes, such as "RAS":
            the first axis towards right, the second towards anterior, the third towards superior. Files that state an
            orientation keep theirs.

    Raises:
        InputError: the file is missing, damaged, 2-D, 4-D or of an unknown format; its voxel size or its orientation is
            missing; its axes are not perpendicular; it contains NaN or infinity; a series is incomplete.
    """
    path = Path(path)
    if series is not None and path.is_file():
        raise InputError(f"{path} is a file, but series {series} is given; give the folder of the series, or no series")
    with without_warnings():
        image = read_series(path, series) if path.is_dir() else _read_file(path, assume_orientation)
    values = simpleitk().GetArrayViewFromImage(image)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise not_finite(path, values.size - int(np.isfinite(values).sum()))
    return _as_hounsfield(image)


def read_labels(path: str | os.PathLike, names: Sequence[str], *, assume_orientation: str | None = None):
    """Returns a label map as a 3-D sitk.Image of uint8 class numbers, 0 for background.

    Args:
        path: a file (.nii, .nii.gz, .nrrd, .mha).
        names: names of the classes 1, 2, ...; at most 255.
        assume_orientation: see `read_volume`.

    Raises:
        InputError: as `read_volume`; labels are not whole numbers or outside 0..len(names); no voxel has a label.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the label map as a file of .nii, .nii.gz, .nrrd or .mha")
    with without_warnings():
        image = _read_file(path, assume_orientation)
    values = simpleitk().GetArrayViewFromImage(image)
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == np.rint(values)).all()):
        raise InputError(f"{path} has labels that are not whole numbers; save the label map without interpolation")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > len(names):
        wrong = low if low < 0 else high
        raise InputError(f"{path} contains the label {wrong}; the {len(names)} classes are numbered 1 to {len(names)}")
    if high == 0:
        raise InputError(f"{path} contains no label, only background; check that it is the label map")
    return simpleitk().Cast(image, simpleitk().sitkUInt8)


def _read_file(path: Path, assume_orientation: str | None):
    """The image of a file with its geometry; the type of its voxels as stored, no metadata."""
    sitk = simpleitk()
    assumed = None if assume_orientation is None else _directions(assume_orientation)
    oriented = check_header(path)
    if not oriented and assumed is None:
        raise InputError(
            f"{path} states no orientation; correct its header, or give one: --orientation RAS (in Python "
            "assume_orientation)"
        )
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        if "orthonormal" in str(error):
            raise _not_perpendicular(path) from error
        raise InputError(f"{path} cannot be read: {itk_reason(error)}; copy or export it again") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(f"{path} is no volume with one number per voxel; save it as a 3-D file")
    if not oriented:
        image.SetDirection(assumed)
    directions = np.reshape(image.GetDirection(), (3, 3))
    if np.abs(directions.T @ directions - np.eye(3)).max() > _ORTHONORMAL:
        raise _not_perpendicular(path)
    for key in image.GetMetaDataKeys():
        image.EraseMetaData(key)
    return image


def _not_perpendicular(path: Path) -> InputError:
    return InputError(f"{path} has axes that are not perpendicular; resample it onto an orthogonal grid")


def _directions(letters: str) -> list[float]:
    """The direction matrix, row by row, of axes towards the sides that letters such as RAS name."""
    axes = [_TOWARDS.get(letter) for letter in letters.upper()]
    if len(axes) != 3 or None in axes or len({axis for axis, _ in axes}) < 3:
        raise InputError(f"assume_orientation {letters!r} is invalid; give one of L/R, A/P and S/I each, such as RAS")
    matrix = np.zeros((3, 3))
    for column, (axis, sign) in enumerate(axes):
        matrix[axis, column] = sign
    return matrix.ravel().tolist()


def _as_hounsfield(image):
    """The image as int16, if its values are whole numbers of that range, else as float32."""
    sitk = simpleitk()
    if image.GetPixelID() in (sitk.sitkInt16, sitk.sitkFloat32):
        return image
    values = sitk.GetArrayViewFromImage(image)
    limits = np.iinfo(np.int16)
    fits = values.dtype.kind in "iu" and limits.min <= values.min() and values.max() <= limits.max
    return sitk.Cast(image, sitk.sitkInt16 if fits else sitk.sitkFloat32)


def write_volume(image, path: str | os.PathLike) -> None:
    """Writes a volume to a file (.nii, .nii.gz, .nrrd, .mha) that replaces `path` when it is complete.

    Only the values and the geometry are written. Folders that are missing are created.

    Args:
        image: 3-D sitk.Image.
        path: the file; its suffix chooses the format.

    Raises:
        InputError: an unknown suffix; the target is a folder or read-only; its folder cannot be written; the disk is
            full.
    """
    sitk = simpleitk()
    path = Path(path)
    suffix = suffix_of(path)
    check_replaceable(path)
    target = Path(os.path.realpath(path))  # the file behind a link is replaced, not the link
    aside = target.with_name(name_within_limit(f".{target.name[: -len(suffix)]}", f".{os.getpid()}.part{suffix}"))
    plain = sitk.Image(image)
    for key in plain.GetMetaDataKeys():
        plain.EraseMetaData(key)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb"):  # says why a file cannot be created; SimpleITK only says that it failed
            pass
        with without_warnings():
            sitk.WriteImage(plain, str(aside), suffix != ".nii")
        check_header(aside)  # SimpleITK does not notice a full disk
        flush_to_disk(aside)
        if target.exists():
            os.chmod(aside, stat.S_IMODE(target.stat().st_mode))
        os.replace(aside, target)
    except OSError as error:
        raise InputError(f"cannot write {path}: {reason(error)}; {remedy(error)}") from error
    except RuntimeError as error:
        raise InputError(f"cannot write {path}: {itk_reason(error)}; check the space on the disk") from error
    except InputError as error:
        raise InputError(f"cannot write {path}: the written file is incomplete; free space on the disk") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()


def array_of(image) -> np.ndarray:
    """Returns a copy of the values of an image, [Z, Y, X]."""
    return simpleitk().GetArrayFromImage(image)


def canonical(image):
    """Returns the volume with its axes reordered and flipped to those closest to LPS; no value is interpolated.

    Its array [z, y, x] runs from inferior to superior, from anterior to posterior and from right to left. An oblique
    volume stays oblique.
    """
    return simpleitk().DICOMOrient(image, "LPS")


def same_grid(first, second, tolerance: float = 0.1) -> bool:
    """Whether two volumes have the same size and all corners within `tolerance` mm of each other."""
    return first.GetSize() == second.GetSize() and bool(
        np.abs(_corners(first) - _corners(second)).max(initial=0) <= tolerance
    )


def _corners(image) -> np.ndarray:
    """Positions [8, 3] of the corner voxels, mm."""
    size = image.GetSize()
    places = [[(size[axis] - 1) * (corner >> axis & 1) for axis in range(3)] for corner in range(8)]
    return np.array([image.TransformIndexToPhysicalPoint(place) for place in places])


def aligned(image, transform, grid, outside: float = OUTSIDE):
    """Returns a scan on the grid of its label map, a sitk.Image of float32 (linear interpolation).

    Args:
        image: the scan as acquired.
        transform: sitk.Transform from label space to scan space; None for the identity.
        grid: sitk.Image whose geometry the result takes.
        outside: value of points outside of the scan, HU.
    """
    sitk = simpleitk()
    return sitk.Resample(
        image, grid, transform or sitk.Transform(3, sitk.sitkIdentity), sitk.sitkLinear, outside, sitk.sitkFloat32
    )


def back(labels_or_probabilities, transform, scan):
    """Returns a result in the scan's own space: the inverse of `aligned`, for labels and probabilities.

    Args:
        labels_or_probabilities: sitk.Image in label space; integers are class numbers (nearest neighbour), floats are
            maps of probabilities (linear interpolation), also of several values per voxel.
        transform: sitk.Transform from label space to scan space, invertible; None for the identity.
        scan: sitk.Image whose geometry the result takes.
    """
    sitk = simpleitk()
    inverse = transform.GetInverse() if transform else sitk.Transform(3, sitk.sitkIdentity)
    kind = labels_or_probabilities.GetPixelIDTypeAsString()
    interpolator = sitk.sitkLinear if "float" in kind else sitk.sitkNearestNeighbor
    return sitk.Resample(labels_or_probabilities, scan, inverse, interpolator, 0.0)


def to_gray(array: np.ndarray, low: float = WINDOW[0], high: float = WINDOW[1]) -> np.ndarray:
    """Returns Hounsfield units [...] as uint8 gray levels.

    One level is one HU (0 at `low`) where the window has at most 255 HU; wider windows are scaled to 0..255.

    Raises:
        InputError: `low` is not less than `high`.
    """
    if not low < high:
        raise InputError(f"window {low:g} to {high:g} HU is empty; give a lower limit below the upper one")
    scale = np.float32(min(1.0, 255 / (high - low)))
    limited = np.clip(np.asarray(array, np.float32), np.float32(low), np.float32(high))
    return np.floor((limited - np.float32(low)) * scale + np.float32(0.5)).astype(np.uint8)


def read_transform(path: str | os.PathLike):
    """Returns the spatial transform of an ITK file, a sitk.Transform of three dimensions.

    All types that ITK knows are read, such as MatrixOffsetTransformBase (of ITK-SNAP), AffineTransform,
    Euler3DTransform, VersorRigid3DTransform, Similarity3DTransform, TranslationTransform and CompositeTransform.

    Args:
        path: a file (.txt, .tfm, .h5, .hdf5, .mat).

    Raises:
        InputError: the file is missing, damaged or of an unknown format; it contains no transform, several transforms
            that are not composed, one of two dimensions, or one of an unknown type.
    """
    path = Path(path)
    if path.suffix.lower() not in TRANSFORM_SUFFIXES:
        raise InputError(f"{path} has no suffix of an ITK transform; use {', '.join(TRANSFORM_SUFFIXES)}")
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the path") from error
    except OSError as error:
        raise unreadable(path, error) from error
    types = _transform_types(path, content)
    if len(types) > 1 and not types[0].startswith("CompositeTransform"):
        raise InputError(f"{path} contains {len(types)} separate transforms; save them as one CompositeTransform")
    try:
        with without_warnings():
            transform = simpleitk().ReadTransform(str(path))
    except RuntimeError as error:
        why = "its type is unknown" if "Could not create an instance" in str(error) else itk_reason(error)
        raise InputError(f"{path} is not an ITK transform or is damaged ({why}); export it again") from error
    if transform.GetDimension() != 3:
        raise InputError(f"{path} is a transform of {transform.GetDimension()} dimensions; give one of 3")
    if not np.isfinite(transform.TransformPoint((1.0, 2.0, 3.0))).all():
        raise InputError(f"{path} contains numbers that are not finite; export the transform again")
    return transform


def _transform_types(path: Path, content: bytes) -> list[str]:
    """The types of the transforms in a file, in their order; [] where only SimpleITK can tell."""
    if path.suffix.lower() in (".txt", ".tfm"):
        lines = content.decode("latin-1").splitlines()
        return [line.partition(":")[2].strip() for line in lines if line.startswith("Transform:")]
    if path.suffix.lower() in (".h5", ".hdf5"):
        import h5py

        with contextlib.suppress(OSError, KeyError, ValueError), h5py.File(io.BytesIO(content)) as file:
            groups = file["TransformGroup"]
            return [np.ravel(groups[key]["TransformType"][()])[0].decode() for key in sorted(groups, key=int)]
    return []


def matrix_of(transform) -> tuple[np.ndarray, np.ndarray]:
    """Returns the matrix A [3, 3] and the offset b [3] (mm) of a linear transform x -> A x + b."""
    offset = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    reach = 1000.0  # mm; keeps digits where the offset is large
    columns = [(np.array(transform.TransformPoint(tuple(row))) - offset) / reach for row in np.eye(3) * reach]
    return np.stack(columns, axis=1), offset


def check_rigid(transform, tolerance: float = 0.01, what: str | os.PathLike = "the transform") -> None:
    """Checks that a transform is a rotation and a translation.

    Args:
        transform: sitk.Transform of three dimensions.
        tolerance: largest change of a length, as a fraction (0.01: lengths change by at most 1 %).
        what: the name of the transform in the message, such as its file.

    Raises:
        InputError: it is not linear, mirrors, scales or shears.
    """
    if not transform.IsLinear():
        raise InputError(f"{what} is not linear (displacement field or B-spline); give a rigid transform")
    matrix, _ = matrix_of(transform)
    if np.linalg.det(matrix) < 0:
        raise InputError(f"{what} mirrors the volume, which would swap left and right; give a rigid transform")
    lengths = np.linalg.svd(matrix, compute_uv=False)
    worst = lengths[np.abs(lengths - 1).argmax()]
    if abs(worst - 1) > tolerance:
        raise InputError(
            f"{what} scales or shears: it changes lengths by a factor of {worst:.3f}; give a rigid transform, or raise "
            f"the tolerance of {tolerance:g}"
        )
