"""Synthetic CT heads with the twenty ASPECTS regions, in the file layout of CT data sets: scan, transform, label map.

A head is a set of ellipsoids in head coordinates (mm, LPS: x to the left, y to posterior, z to superior, 0 in the
middle): scalp, skull, fluid, cortex, white matter, ventricles, and ten regions on each side. It is drawn twice from the
same formulas, as labels on an aligned grid and as Hounsfield units on the grid of a tilted scan, so no interpolation
blurs either.
"""

import dataclasses
import gzip
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage

from kmura.errors import InputError, reason, remedy
from kmura.files import aside_name

EXTENT = (176.0, 216.0, 176.0)  # mm along x, y, z, of the scan and of the label map
AIR, SKIN, BONE, FLUID, WHITE, GRAY = -1000.0, 35.0, 900.0, 6.0, 27.0, 38.0  # HU
_BRAIN = (66.0, 84.0, 62.0)  # mm, half axes
# deep structures of the left side: class number, HU, centre (mm) and half axes (mm); later ones cover earlier ones
_DEEP = (
    (4, 36.0, (38.0, -6.0, 2.0), (5.0, 22.0, 14.0)),  # insula
    (3, 24.0, (16.0, -4.0, 6.0), (9.0, 20.0, 13.0)),  # internal capsule, as far as the next two leave it uncovered
    (2, 41.0, (25.0, -2.0, 3.0), (8.0, 15.0, 11.0)),  # lentiform nucleus
    (1, 43.0, (12.0, -18.0, 10.0), (6.0, 12.0, 10.0)),  # caudate
)
_VENTRICLE = ((7.0, 4.0, 16.0), (5.0, 26.0, 9.0))
# HU that the territories M1..M6 differ by, so that not only their position distinguishes them
_TERRITORY = {8: 0.0, 9: 2.0, 10: 4.0, 5: 1.0, 6: 3.0, 7: 5.0}
_SIDE = 10  # class numbers of the right side are those of the left side plus 10


@dataclasses.dataclass(frozen=True)
class _Head:
    """What distinguishes a head; lengths in mm."""

    scale: np.ndarray  # [3]
    bulge: np.ndarray  # [2, 3], amplitudes of the smooth deformation
    phase: np.ndarray  # [2, 3], radians
    skull: float  # thickness
    offset: float  # HU of all tissues
    matrix: np.ndarray  # [3, 3], rotation from label space to scan space
    shift: np.ndarray  # [3]
    noise: float  # HU

    @classmethod
    def drawn(cls, rng: np.random.Generator, max_angle: float) -> "_Head":
        angles = np.deg2rad(rng.uniform(-max_angle, max_angle, 3))
        return cls(
            scale=rng.uniform(0.94, 1.06, 3),
            bulge=rng.uniform(-2.0, 2.0, (2, 3)),
            phase=rng.uniform(0, 2 * np.pi, (2, 3)),
            skull=rng.uniform(5.0, 8.0),
            offset=rng.uniform(-2.0, 2.0),
            matrix=_rotation(angles),
            shift=rng.uniform(-4.0, 4.0, 3),
            noise=rng.uniform(3.0, 5.0),
        )

    def anatomy(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hounsfield units and class numbers [...] at points [..., 3] of label space."""
        x, y, z = np.moveaxis(points / self.scale, -1, 0)
        for amplitude, phase in zip(self.bulge, self.phase, strict=True):
            # x is only stretched, so x = 0 stays the plane between the sides
            x, y, z = (
                x * (1 + 0.02 * amplitude[0] * np.sin(y / 40 + phase[0])),
                y + amplitude[1] * np.sin(z / 35 + phase[1]),
                z + amplitude[2] * np.sin(y / 45 + phase[2]),
            )
        left = x >= 0
        side = np.where(left, 0, _SIDE)
        x = np.abs(x)
        radius = _radius((x, y, z), (0, 0, 0), _BRAIN)
        depth = (radius - 1) * min(_BRAIN)  # mm outside of the brain, about
        values = np.full(x.shape, AIR)
        for limit, tissue in ((8 + self.skull, SKIN), (2 + self.skull, BONE), (2, FLUID)):
            values[depth <= limit] = tissue
        brain = depth <= 0
        values[brain] = WHITE
        values[brain & ((radius > 0.86) | (np.abs(np.sin(y / 9) * np.sin(z / 8)) > 0.93))] = GRAY  # cortex, its folds
        values[brain & (x < 1.5) & (radius > 0.5)] = FLUID  # the fissure between the sides
        labels = np.zeros(x.shape, np.uint8)
        territory = brain & (x > 30) & (radius > 0.6)
        third = np.digitize(y, (-22.0, 14.0))
        for first, low, high in ((8, -14.0, 14.0), (5, 14.0, 42.0)):
            for number in range(3):
                part = territory & (z > low) & (z <= high) & (third == number) & (np.abs(y) < 62)
                labels[part] = first + number
                values[part] += _TERRITORY[first + number]
        for number, tissue, centre, axes in _DEEP:
            part = brain & (_radius((x, y, z), centre, axes) <= 1)
            labels[part] = number
            values[part] = tissue
        ventricle = _radius((x, y, z), *_VENTRICLE) <= 1
        values[ventricle], labels[ventricle] = FLUID, 0
        values[values > AIR] += self.offset
        return values, np.where(labels > 0, labels + side, 0).astype(np.uint8)


def _radius(place, centre, axes) -> np.ndarray:
    """The distance from the centre of an ellipsoid, 1 on its surface."""
    return np.sqrt(sum(((p - c) / a) ** 2 for p, c, a in zip(place, centre, axes, strict=True)))


def _rotation(angles: np.ndarray) -> np.ndarray:
    """The rotation matrix [3, 3] about the x, then the y, then the z axis, by angles [3] in radians."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn[[first, second], [first, second]] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def write_heads(
    out: str | os.PathLike,
    *,
    heads: int = 4,
    spacing: float = 4.0,
    seed: int = 0,
    max_angle: float = 10.0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Writes synthetic CT heads to a folder and returns the paths of the scans.

    Head N consists of `N.nii.gz` (the scan, int16 Hounsfield units, with the head tilted), `N.txt` (ITK transform from
    label space to scan space) and `N-seg.nii.gz` (uint8 class numbers 1..20 on the aligned grid: 1-10 on the left,
    11-20 on the right, in the order of the ASPECTS regions). The folder appears complete or not at all. Same arguments,
    same bytes; head N depends on the seed and on N alone.

    Args:
        out: a new or empty folder.
        heads: number of heads.
        spacing: voxel size, mm, 1 to 8.
        seed: 0 or more.
        max_angle: largest tilt about each axis, degrees, 0 to 45.
        progress: called with (heads done, heads in total).

    Raises:
        InputError: `out` exists and is not empty or cannot be written; an argument is outside its range.
    """
    out = Path(os.path.abspath(out))
    for name, value, low, high in (
        ("heads", heads, 1, 10_000),
        ("spacing", spacing, 1, 8),
        ("seed", seed, 0, 2**63),
        ("max_angle", max_angle, 0, 45),
    ):
        if not low <= value <= high:
            raise InputError(f"{name} is {value}; give a number from {low} to {high}")
    try:
        if out.exists() and not out.is_dir():
            raise InputError(f"{out} is a file; choose a new folder")
        if out.is_dir() and any(out.iterdir()):
            raise InputError(f"{out} exists and is not empty; choose a new folder or empty it first")
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = aside_name(out)
        try:
            shutil.rmtree(aside, ignore_errors=True)  # of a dead process with the same id
            aside.mkdir()
            for number in range(1, heads + 1):
                _write_head(aside, number, np.random.default_rng([seed, number]), spacing, max_angle)
                if progress:
                    progress(number, heads)
            if out.is_dir():
                out.rmdir()  # it is empty; some systems cannot rename onto a folder
            aside.rename(out)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise InputError(f"cannot write {out}: {reason(error)}; {remedy(error)}") from error
    return [out / f"{number}.nii.gz" for number in range(1, heads + 1)]


def _write_head(folder: Path, number: int, rng: np.random.Generator, spacing: float, max_angle: float) -> None:
    head = _Head.drawn(rng, max_angle)
    size = [round(extent / spacing) for extent in EXTENT]
    origin = -spacing * (np.array(size) - 1) / 2
    points = np.stack(np.meshgrid(*map(np.arange, size[::-1]), indexing="ij")[::-1], axis=-1) * spacing + origin
    _, labels = head.anatomy(points)  # [Z, Y, X]
    scan, _ = head.anatomy((points - head.shift) @ head.matrix)  # the inverse of x -> matrix x + shift
    scan = ndimage.gaussian_filter(scan, 0.5) + rng.normal(0, head.noise, scan.shape)
    scan = np.clip(scan, -1024, 3071).round().astype(np.int16)
    (folder / f"{number}.nii.gz").write_bytes(_nifti(scan, spacing, origin))
    (folder / f"{number}-seg.nii.gz").write_bytes(_nifti(labels, spacing, origin))
    (folder / f"{number}.txt").write_text(_transform(head.matrix, head.shift))


def _transform(matrix: np.ndarray, shift: np.ndarray) -> str:
    """The transform x -> matrix x + shift as ITK-SNAP writes it."""
    numbers = " ".join(repr(float(value)) for value in (*matrix.ravel(), *shift))
    return (
        "#Insight Transform File V1.0\n#Transform 0\nTransform: MatrixOffsetTransformBase_double_3_3\n"
        f"Parameters: {numbers}\nFixedParameters: 0 0 0\n"
    )


def _nifti(volume: np.ndarray, spacing: float, origin: np.ndarray) -> bytes:
    """A volume [Z, Y, X] of uint8 or int16 with axes towards left, posterior and superior, as the bytes of .nii.gz.

    Written here, so that phantoms need no SimpleITK; gzip without time stamp, so that the bytes are always the same.
    """
    code = {"u": 2, "i": 4}[volume.dtype.kind]  # NIfTI-1: uint8, int16
    depth, height, width = volume.shape
    place = (-float(origin[0]), -float(origin[1]), float(origin[2]))  # NIfTI's x and y point to right and anterior
    rows = [[-spacing, 0, 0, place[0]], [0, -spacing, 0, place[1]], [0, 0, spacing, place[2]]]
    header = bytearray(352)  # the header and four bytes that state that there are no extensions
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, width, height, depth, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, code, 8 * volume.dtype.itemsize)
    struct.pack_into("<8f", header, 76, 1, spacing, spacing, spacing, 0, 0, 0, 0)
    struct.pack_into("<3f", header, 108, 352, 1, 0)  # start of the data, slope, intercept
    header[123] = 2  # mm
    struct.pack_into("<2h", header, 252, 1, 1)  # qform and sform are the scanner's coordinates
    struct.pack_into("<6f", header, 256, 0, 0, 1, *place)  # a half turn about z
    struct.pack_into("<12f", header, 280, *np.ravel(rows))
    header[344:348] = b"n+1\0"
    return gzip.compress(
        bytes(header) + np.ascontiguousarray(volume, volume.dtype.newbyteorder("<")).tobytes(), mtime=0
    )
