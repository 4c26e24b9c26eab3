"""The mid-sagittal plane of a head, found from the symmetry of its CT volume, and the sides of its regions."""

import dataclasses

import numpy as np
from scipy import ndimage, optimize

from kmura.errors import InputError
from kmura.itk import simpleitk
from kmura.records.manifest import VolumeFacts

_GRID = 4.0  # mm, voxels of the registration
_SEARCH_GRID = 8.0  # mm, voxels of the search for a start
_SEARCH_ANGLES = np.deg2rad(np.arange(-40, 41, 8))  # about the z axis and about the y axis
_WINDOW = (20.0, 60.0)  # HU; the stroke window, so that the brain counts and not only the outline of the skull
_LEAST_EXTENT = 40.0  # mm, along each axis
_LEAST_TISSUE = 2e5  # mm^3; the head of a newborn has 5e5
_TISSUE = 25.0  # HU in the windowed volume; more is head, less is air


@dataclasses.dataclass(frozen=True)
class SagittalPlane:
    """A plane in LPS coordinates.

    Attributes:
        point: a point of the plane within the head, mm.
        normal: unit vector that points to the patient's left.
    """

    point: tuple[float, float, float]
    normal: tuple[float, float, float]


def midsagittal_plane(image) -> SagittalPlane:
    """Returns the plane of symmetry of a head, which divides it into left and right.

    The volume (stroke window, smoothed, voxels of 4 mm) is registered with its own mirror image: of all planes, the one
    whose mirroring changes the head least (mean absolute difference) is searched, first on a coarse grid of directions
    up to 40 degrees off the patient's left, then by the Nelder-Mead method over two angles and the distance. Unlike a
    rigid registration of the two images, whose six parameters also describe maps that mirror at no plane, this has no
    parameters but those of the plane. Same input, same result.

    Args:
        image: 3-D sitk.Image of a head, Hounsfield units; its directions must be right, its tilt may be unknown.

    Raises:
        InputError: the volume covers less than 40 mm along an axis or contains little tissue.
    """
    extent = [size * spacing for size, spacing in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    if min(extent) < _LEAST_EXTENT:
        stated = " x ".join(f"{length:.0f}" for length in extent)
        raise InputError(
            f"the volume covers only {stated} mm, too little for its symmetry; give a CT of the whole head"
        )
    head, middle = _head_alone(_reduced(image, _GRID))
    coarse = _Symmetry(_reduced(head, _SEARCH_GRID), middle)
    start = min(((yaw, roll, 0.0) for yaw in _SEARCH_ANGLES for roll in _SEARCH_ANGLES), key=coarse)
    simplex = np.array(start) + np.array([(0, 0, 0), (0.08, 0, 0), (0, 0.08, 0), (0, 0, 4.0)])
    fine = _Symmetry(head, middle)
    result = optimize.minimize(
        fine, start, method="Nelder-Mead", options={"initial_simplex": simplex, "xatol": 2e-3, "fatol": 1e-3}
    )
    yaw, roll, distance = result.x
    normal = _turned(yaw, roll)[0]
    return SagittalPlane(tuple((middle + distance * normal).tolist()), tuple(normal.tolist()))


def signed_distance(plane: SagittalPlane, image) -> np.ndarray:
    """Returns the distance of each voxel to a plane, float32 [Z, Y, X] in mm: positive on the patient's left."""
    normal = np.array(plane.normal)
    directions = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    x, y, z = (
        (np.arange(size) * (normal @ column)).astype(np.float32)
        for size, column in zip(image.GetSize(), directions.T, strict=True)
    )
    start = np.float32(normal @ (np.array(image.GetOrigin()) - np.array(plane.point)))
    return z[:, None, None] + y[:, None] + (x + start)


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


def _reduced(image, voxel: float):
    """The windowed and smoothed volume with cubic voxels of `voxel` mm, float32."""
    sitk = simpleitk()
    factors = [
        max(1, min(int(voxel / spacing), size))
        for spacing, size in zip(image.GetSpacing(), image.GetSize(), strict=True)
    ]
    image = sitk.Clamp(sitk.BinShrink(image, factors), sitk.sitkFloat32, *_WINDOW)
    image = sitk.SmoothingRecursiveGaussian(image, voxel / 2)
    size = [max(1, round(n * step / voxel)) for n, step in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    grid = sitk.Image(size, sitk.sitkUInt8)
    grid.SetSpacing([voxel] * 3)
    grid.SetDirection(image.GetDirection())
    grid.SetOrigin(image.GetOrigin())
    return sitk.Resample(image, grid, sitk.Transform(), sitk.sitkLinear, _WINDOW[0], sitk.sitkFloat32)


def _head_alone(image):
    """The volume with air in place of what is apart from the head, and the middle [3] of the head (LPS, mm)."""
    values = simpleitk().GetArrayFromImage(image)
    parts, count = ndimage.label(ndimage.binary_opening(values > _TISSUE))
    sizes = np.bincount(parts.ravel(), minlength=2)[1:]
    if not count or sizes.max() * _GRID**3 < _LEAST_TISSUE:
        raise InputError("the volume contains no head whose symmetry could be measured; give a CT of the whole head")
    head = ndimage.binary_dilation(parts == 1 + sizes.argmax(), iterations=2)
    place = np.argwhere(parts == 1 + sizes.argmax()).mean(axis=0)[::-1]
    alone = simpleitk().GetImageFromArray(np.where(head, values, np.float32(_WINDOW[0])))
    alone.CopyInformation(image)
    return alone, np.array(image.TransformContinuousIndexToPhysicalPoint(place.tolist()))


class _Symmetry:
    """How much a mirroring changes a head: a function of (yaw, roll, distance of the plane to the middle in mm).

    Pairs of points at the same distance on both sides of the plane are compared. Both are interpolated; comparing
    voxels with interpolated points would favour planes along the axes of the grid, where nothing is interpolated.
    """

    def __init__(self, head, middle: np.ndarray) -> None:
        self.values = simpleitk().GetArrayFromImage(head)
        to_points = np.reshape(head.GetDirection(), (3, 3)) * np.array(head.GetSpacing())
        self.to_places = np.linalg.inv(to_points)
        self.origin = self.to_places @ (middle - np.array(head.GetOrigin()))
        tissue = np.argwhere(self.values > _TISSUE)[:, ::-1] - self.origin
        reach = np.linalg.norm(tissue @ to_points.T, axis=1).max()
        step = head.GetSpacing()[0]
        axis = np.arange(-reach, reach + step, step)
        pairs = np.stack(np.meshgrid(axis[axis >= 0] + step / 2, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
        self.pairs = pairs[np.linalg.norm(pairs, axis=1) <= reach]  # [N, 3], mm along the normal and in the plane
        self.tissue = len(tissue)

    def __call__(self, parameters) -> float:
        """The sum of absolute differences, HU, of the sides of the head, per voxel of the head."""
        yaw, roll, distance = parameters
        axes = _turned(yaw, roll)
        sides = []
        for sign in (1, -1):
            points = (self.pairs * (sign, 1, 1) + (distance, 0, 0)) @ axes
            places = (points @ self.to_places.T + self.origin).T[::-1]
            sides.append(ndimage.map_coordinates(self.values, places, order=1, cval=_WINDOW[0]))
        return float(np.abs(sides[0] - sides[1]).sum(dtype=np.float64) / self.tissue)


def _turned(yaw: float, roll: float) -> np.ndarray:
    """Three perpendicular unit vectors [3, 3] (LPS), one per row; the first is left, turned by yaw and roll (radians).

    It is turned about the z axis, then upwards.
    """
    normal = np.array([np.cos(yaw) * np.cos(roll), np.sin(yaw) * np.cos(roll), np.sin(roll)])
    second = np.array([-np.sin(yaw), np.cos(yaw), 0.0])
    return np.stack([normal, second, np.cross(normal, second)])
