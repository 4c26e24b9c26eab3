"""The mid-sagittal plane of a head, found by registering the volume with its mirror image."""

import dataclasses

import numpy as np

from kmura.records.manifest import VolumeFacts
from kmura.segmentation.volumes import simpleitk

GRID = 4.0  # mm, of the volume that is registered
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

    The volume is mirrored at the plane x = 0 through its centre of mass and registered rigidly with itself. Mirroring
    and moving is a reflection at the plane that lies half-way. The result is deterministic.

    Args:
        image: CT of a head in Hounsfield units, with axes in any order.
    """
    sitk = simpleitk()
    head = _prepared(image)
    centre = _centre_of_mass(head)
    mirror = sitk.AffineTransform(3)
    mirror.SetMatrix((-1.0, 0, 0, 0, 1, 0, 0, 0, 1))
    mirror.SetCenter(centre)
    mirrored = sitk.Resample(head, head, mirror, sitk.sitkLinear, 0.0)
    rigid = sitk.Euler3DTransform()
    rigid.SetCenter(centre)
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)  # sums of several threads would differ from run to run
    method.SetMetricAsMeanSquares()
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetInitialTransform(rigid, inPlace=True)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=1e-3, numberOfIterations=200, gradientMagnitudeTolerance=1e-8
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([1.0, 0.0])
    method.Execute(mirrored, head)
    # p of the mirrored volume -> rigid(p) in the volume; mirrored(p) = head(mirror(p)), so head(rigid(p)) looks like
    # head(mirror(p)): q -> rigid(mirror(q)) maps the head onto itself, nearly a reflection
    matrix, offset = _composed(rigid, mirror)
    return _plane_of(matrix, offset, np.array(centre))


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


def _prepared(image):
    """The head on a coarse grid, gray values 0..1."""
    sitk = simpleitk()
    low, high = HEAD_WINDOW
    values = sitk.Clamp(sitk.Cast(image, sitk.sitkFloat32), lowerBound=low, upperBound=high)
    values = (values - low) / (high - low)
    sigma = [max(0.0, GRID / 2 - size / 2) for size in image.GetSpacing()]
    smooth = sitk.SmoothingRecursiveGaussian(values, [max(one, 0.1) for one in sigma])
    size = [max(8, round(count * step / GRID)) for count, step in zip(image.GetSize(), image.GetSpacing(), strict=True)]
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


def _composed(rigid, mirror) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and offset of q -> rigid(mirror(q))."""

    def mapped(point):
        return np.array(rigid.TransformPoint(mirror.TransformPoint(point)))

    offset = mapped((0.0, 0.0, 0.0))
    return np.array([mapped(tuple(unit)) - offset for unit in np.eye(3)]).T, offset


def _plane_of(matrix: np.ndarray, offset: np.ndarray, centre: np.ndarray) -> SagittalPlane:
    """The plane of the reflection that is nearest to x -> matrix x + offset, a rotation times a reflection.

    The normal is the eigenvector of the symmetric part with the smallest eigenvalue: for a reflection it is -1. The
    plane passes half-way between the centre and its image.
    """
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    normal = vectors[:, np.argmin(values)]
    normal = normal if normal[0] > 0 else -normal
    middle = (centre + matrix @ centre + offset) / 2
    return SagittalPlane(tuple(map(float, middle)), tuple(map(float, normal)))
