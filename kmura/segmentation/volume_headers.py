"""Checks the headers of NIfTI, NRRD and MetaImage files for what SimpleITK replaces by a guess without saying so.

SimpleITK reads a voxel size of 0 as 1 mm, an unknown orientation as a known one, and the end of a truncated NIfTI file
and NaN in NIfTI as zeros.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from kmura.errors import InputError, unreadable

SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha")
_NIFTI_HEADER = 348  # bytes
_SCALARS = {2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280}  # NIfTI-1 codes of integers and floats, not complex nor RGB
_FLOATS = {16: "f4", 64: "f8"}
_COPY = "copy or export it again"
_TEXT_HEADER = 65536  # bytes; headers of NRRD and MetaImage are shorter


def suffix_of(path: Path) -> str:
    """Returns the suffix of a volume, one of `SUFFIXES`.

    Raises:
        InputError: the suffix is another one; lists the known ones.
    """
    name = path.name.lower()
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.endswith(suffix):
            return suffix
    known = ", ".join(SUFFIXES)
    if name.endswith((".dcm", ".dicom")):
        raise InputError(f"{path} is one DICOM file; give the folder that contains the whole series")
    raise InputError(f"{path} has no suffix of a volume; use {known} or a folder of a DICOM series")


def check_header(path: Path) -> bool:
    """Checks that a file contains one complete 3-D volume of known voxel size; returns whether it has an orientation.

    Raises:
        InputError: the file is missing, cannot be read, is truncated or of another format; it is 2-D, 4-D or has
            several values per voxel; the voxel size is missing or not positive; a NIfTI file contains NaN or infinity.
    """
    suffix = suffix_of(path)
    check = {".nrrd": _check_nrrd, ".mha": _check_metaimage}.get(suffix, _check_nifti)
    try:
        with open(path, "rb") as file:
            return check(path, file)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the path") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is damaged: its compressed data end early or are invalid; {_COPY}") from error
    except OSError as error:
        raise unreadable(path, error) from error


def _check_nifti(path: Path, file: IO[bytes]) -> bool:
    if file.read(2) == b"\x1f\x8b":
        file.seek(0)
        file = gzip.GzipFile(fileobj=file)
    else:
        file.seek(0)
    header = file.read(_NIFTI_HEADER)
    if header[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c"):
        raise InputError(f"{path} is a NIfTI-2 file, which is not supported; save it as NIfTI-1")
    if len(header) < _NIFTI_HEADER or header[344:348] != b"n+1\0":
        raise InputError(f"{path} is not a NIfTI-1 file or is damaged; {_COPY}")
    order = "<" if struct.unpack_from("<i", header)[0] == _NIFTI_HEADER else ">"
    rank, *sizes = struct.unpack_from(f"{order}8h", header, 40)
    datatype, bits = struct.unpack_from(f"{order}2h", header, 70)
    pixdim = struct.unpack_from(f"{order}8f", header, 76)
    (start,) = struct.unpack_from(f"{order}f", header, 108)
    qform, sform = struct.unpack_from(f"{order}2h", header, 252)
    if not 1 <= rank <= 7 or min(sizes[:rank]) < 1 or not math.isfinite(start):
        raise InputError(f"{path} is damaged: its header states sizes {sizes[: max(0, min(rank, 7))]}; {_COPY}")
    if datatype not in _SCALARS:
        raise InputError(
            f"{path} has voxels of NIfTI type {datatype} (complex or colour); save it with one number each"
        )
    _check_sizes(path, sizes[:rank])
    _check_spacing(path, pixdim[1:4])
    if sform > 0:
        axes = np.reshape(struct.unpack_from(f"{order}12f", header, 280), (3, 4))[:, :3]
        _check_sform(path, axes, pixdim, also_qform=qform > 0)
    _check_data(
        path, file, int(start) - _NIFTI_HEADER, math.prod(sizes[:rank]) * bits // 8, _FLOATS.get(datatype), order
    )
    return qform > 0 or sform > 0


def _check_sform(path: Path, axes: np.ndarray, pixdim: tuple[float, ...], also_qform: bool) -> None:
    """Checks that the sform has the voxel size of pixdim and, where there is a qform, the same handedness.

    SimpleITK takes the directions of one and the voxel size of the other, which can swap left and right.
    """
    lengths = np.linalg.norm(axes, axis=0)
    if not np.allclose(lengths, pixdim[1:4], rtol=0.01):
        stated, other = (" x ".join(f"{value:.4g}" for value in row) for row in (pixdim[1:4], lengths))
        raise InputError(f"{path} states voxels of {stated} mm in pixdim and {other} mm in sform; correct its header")
    if also_qform and (np.linalg.det(axes) < 0) != (pixdim[0] < 0):  # pixdim[0] is qfac
        raise InputError(f"{path} has a qform and an sform that mirror each other; correct its header")


def _check_data(path: Path, file: IO[bytes], skip: int, length: int, kind: str | None, order: str) -> None:
    """Reads a NIfTI file to its end, which verifies its length, the checksum of gzip, and that floats are finite.

    Args:
        path: the file, for messages.
        file: at the end of the header.
        skip: bytes up to the data.
        length: bytes of the data.
        kind: NumPy's code of floats; None for integers.
        order: byte order, "<" or ">".
    """
    absent = skip - len(file.read(skip)) + length
    invalid = 0
    while block := file.read(1 << 20):
        if kind and absent > 0:
            whole = block[: min(absent, len(block)) // int(kind[1]) * int(kind[1])]
            invalid += int((~np.isfinite(np.frombuffer(whole, order + kind))).sum())
        absent -= len(block)
    if absent > 0:
        raise InputError(f"{path} is damaged: {absent} bytes are missing at its end; {_COPY}")
    if invalid:
        raise not_finite(path, invalid)


def not_finite(path: Path, count: int) -> InputError:
    """Returns the error of a volume with `count` values that are not finite."""
    return InputError(f"{path} contains {count} values that are NaN or infinite; replace them with numbers")


def _check_nrrd(path: Path, file: IO[bytes]) -> bool:
    text, end, _ = file.read(_TEXT_HEADER).replace(b"\r\n", b"\n").partition(b"\n\n")
    fields = _fields(text, b":")
    if not text.startswith(b"NRRD") or not end or not {"sizes", "dimension"} <= fields.keys():
        raise InputError(f"{path} is not an NRRD file or is damaged; {_COPY}")
    _check_sizes(path, _numbers(path, fields["sizes"]))
    if "space directions" in fields:
        vectors = [part.strip("()").split(",") for part in fields["space directions"].split() if part != "none"]
        spacing = [math.hypot(*_numbers(path, " ".join(vector))) for vector in vectors]
    else:
        spacing = [abs(value) for value in _numbers(path, fields.get("spacings", "0 0 0"))]
    _check_spacing(path, spacing)
    return "space" in fields and "space directions" in fields


def _check_metaimage(path: Path, file: IO[bytes]) -> bool:
    content = file.read(_TEXT_HEADER)
    text, mark, rest = content.partition(b"ElementDataFile")
    line, end, _ = rest.partition(b"\n")
    fields = _fields(text, b"=")
    if not mark or not end or not {"NDims", "DimSize", "ElementType"} <= fields.keys():
        raise InputError(f"{path} is not a MetaImage file or is damaged; {_COPY}")
    if int(fields.get("ElementNumberOfChannels", "1")) > 1:
        _check_sizes(path, [*_numbers(path, fields["DimSize"]), 1, int(fields["ElementNumberOfChannels"])])
    _check_sizes(path, _numbers(path, fields["DimSize"]))
    _check_spacing(path, [abs(value) for value in _numbers(path, fields.get("ElementSpacing", "0 0 0"))])
    size = fields.get("CompressedDataSize") if fields.get("CompressedData") == "True" else "0"
    start = len(text) + len(mark) + len(line) + 1
    if line.strip(b" =\r") == b"LOCAL" and size and size.isdigit():
        needed = int(size) or math.prod(map(int, fields["DimSize"].split())) * _BYTES.get(fields["ElementType"], 0)
        missing = start + needed - path.stat().st_size
        if missing > 0:
            raise InputError(f"{path} is damaged: {missing} bytes are missing at its end; {_COPY}")
    return bool(fields.keys() & {"TransformMatrix", "Orientation", "Rotation"})


_BYTES = {
    f"MET_{name}": size
    for size, names in {
        1: ("CHAR", "UCHAR"),
        2: ("SHORT", "USHORT"),
        4: ("INT", "UINT", "FLOAT"),
        8: ("DOUBLE",),
    }.items()
    for name in names
}


def _fields(text: bytes, separator: bytes) -> dict[str, str]:
    """The "name: value" lines of a text header, without comments and NRRD's "name:=value" pairs."""
    lines = [line.partition(separator) for line in text.splitlines() if not line.startswith(b"#")]
    return {
        name.decode("latin-1").strip(): value.decode("latin-1").strip()
        for name, found, value in lines
        if found and not value.startswith(b"=")
    }


def _numbers(path: Path, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split()]
    except ValueError as error:
        raise InputError(
            f"{path} is damaged: its header contains {text[:60]!r} in place of numbers; {_COPY}"
        ) from error


def _check_sizes(path: Path, sizes: list) -> None:
    """Checks the sizes of all axes, of which trailing ones may be 1."""
    axes = [int(size) for size in sizes]
    if len(axes) > 4 and axes[3] == 1 and max(axes[4:]) > 1:
        raise InputError(f"{path} has {max(axes[4:])} values per voxel; save a volume with one number per voxel")
    while len(axes) > 3 and axes[-1] == 1:
        axes.pop()
    stated = " x ".join(map(str, axes))
    if len(axes) > 3:
        raise InputError(f"{path} has {len(axes)} dimensions ({stated}); save one of its volumes as a 3-D file")
    if len(axes) < 3 or min(axes) < 2:
        raise InputError(f"{path} is a 2-D image ({stated}); give a volume of several slices")


def _check_spacing(path: Path, spacing) -> None:
    if len(spacing) < 3 or not all(math.isfinite(value) and value > 0 for value in spacing):
        stated = " x ".join(f"{value:g}" for value in spacing)
        raise InputError(f"{path} has no valid voxel size ({stated} mm); correct its header or convert the scan again")
