"""Transforms of volumes: reading, rigidity, and the way between scan and labels."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from volume_files import centroids, dice, refused, values_of, volume, world

from kmura.data.volume_dataset import PLANE_AXES
from kmura.phantoms.ct_heads import write_heads
from kmura.segmentation.regions import REGIONS
from kmura.segmentation.volumes import (
    aligned,
    back,
    canonical,
    check_rigid,
    matrix_of,
    read_labels,
    read_transform,
    read_volume,
    same_grid,
    write_volume,
)

sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """One head, tilted by up to 20 degrees, 4 mm."""
    out = tmp_path_factory.mktemp("heads") / "heads"
    write_heads(out, heads=1, max_angle=20)
    return out


# transforms -----------------------------------------------------------------------------------------------------------


def rigid(kind):
    """Returns a rigid transform of a type."""
    euler = sitk.Euler3DTransform((5, -7, 9), 0.1, -0.2, 0.3, (4, 5, -6))
    if kind == "TranslationTransform":
        return sitk.TranslationTransform(3, (1, 2, 3))
    if kind == "CompositeTransform":
        return sitk.CompositeTransform([sitk.TranslationTransform(3, (1, 2, 3)), euler])
    if kind == "AffineTransform":
        transform = sitk.AffineTransform(3)
    else:
        transform = getattr(sitk, kind)()
    transform.SetCenter(euler.GetCenter())
    transform.SetMatrix(euler.GetMatrix())
    transform.SetTranslation(euler.GetTranslation())
    return transform


KINDS = (
    "AffineTransform",
    "Euler3DTransform",
    "VersorRigid3DTransform",
    "Similarity3DTransform",
    "TranslationTransform",
    "CompositeTransform",
)
POINTS = np.random.default_rng(1).normal(0, 80, (5, 3))


def moved(transform, points=POINTS):
    return np.array([transform.TransformPoint(tuple(point)) for point in points])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".txt", ".tfm", ".h5", ".hdf5"])
def test_transforms_of_all_types_are_read_as_written(kind, suffix, tmp_path):
    written = rigid(kind)
    sitk.WriteTransform(written, str(tmp_path / f"a{suffix}"))
    read = read_transform(tmp_path / f"a{suffix}")
    assert np.allclose(moved(read), moved(written), atol=1e-6)
    check_rigid(read)
    matrix, offset = matrix_of(read)
    assert np.allclose(POINTS @ matrix.T + offset, moved(written), atol=1e-6)
    assert np.allclose(moved(read.GetInverse(), moved(read)), POINTS, atol=1e-6)


def transform_text(kind, parameters, fixed="0 0 0"):
    lines = ("#Insight Transform File V1.0", "#Transform 0", f"Transform: {kind}")
    return "\n".join((*lines, f"Parameters: {parameters}", f"FixedParameters: {fixed}", ""))


@pytest.mark.parametrize("kind", ["MatrixOffsetTransformBase_double_3_3", "MatrixOffsetTransformBase_float_3_3"])
def test_the_transforms_of_itk_snap_are_read(kind, tmp_path):
    (tmp_path / "a.txt").write_text(transform_text(kind, "0 -1 0 1 0 0 0 0 1 10 20 30", "1 2 3"))
    point = np.array([4.0, 5.0, 6.0])
    turned = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]]) @ (point - (1, 2, 3)) + (1, 2, 3) + (10, 20, 30)
    assert read_transform(tmp_path / "a.txt").TransformPoint(tuple(point)) == pytest.approx(tuple(turned))


AFFINE = "AffineTransform_double_3_3"
IDENTITY = "1 0 0 0 1 0 0 0 1 0 0 0"
TRANSFORMS = {
    "empty": ("a.txt", "", "is not an ITK transform or is damaged"),
    "other text": ("a.txt", "hello", "is not an ITK transform or is damaged"),
    "unknown type": ("a.tfm", transform_text("Foo_double_3_3", "1"), "its type is unknown"),
    "too few numbers": ("a.txt", transform_text(AFFINE, "1 2 3"), "is damaged"),
    "no number": ("a.txt", transform_text(AFFINE, "nan 0 0 0 1 0 0 0 1 0 0 0"), ""),
    "two dimensions": ("a.txt", transform_text("Euler2DTransform_double_2_2", "0 1 2", "0 0"), "of 2 dimensions"),
    "several": ("a.txt", 2 * transform_text(AFFINE, IDENTITY), "contains 2 separate transforms"),
    "other HDF5": ("a.h5", "hello", "is not an ITK transform or is damaged"),
    "other suffix": ("a.json", "{}", "use .txt, .tfm, .h5"),
}


@pytest.mark.parametrize("case", TRANSFORMS)
def test_transforms_that_cannot_be_read_are_refused(case, tmp_path):
    name, text, part = TRANSFORMS[case]
    (tmp_path / name).write_text(text)
    refused(read_transform, tmp_path / name, part)


def test_a_missing_transform_is_refused(tmp_path):
    refused(read_transform, tmp_path / "a.txt", "does not exist")


def scaled(*factors):
    transform = sitk.AffineTransform(3)
    transform.Scale(factors)
    return transform


def test_transforms_that_are_not_rigid_are_refused():
    shear = sitk.AffineTransform(3)
    shear.SetMatrix((1, 0.1, 0, 0, 1, 0, 0, 0, 1))
    field = sitk.DisplacementFieldTransform(sitk.Image([4, 4, 4], sitk.sitkVectorFloat64))
    spline = sitk.BSplineTransformInitializer(sitk.Image([9, 9, 9], sitk.sitkFloat32), [3, 3, 3])
    for transform, part in (
        (scaled(-1, 1, 1), "mirrors the volume"),
        (scaled(1, 1, 1.05), "scales or shears: it changes lengths by a factor of 1.050"),
        (scaled(0, 1, 1), "scales or shears"),
        (shear, "scales or shears"),
        (field, "is not linear"),
        (spline, "is not linear"),
        (sitk.CompositeTransform([sitk.TranslationTransform(3), field]), "is not linear"),
    ):
        refused(lambda path, transform=transform: check_rigid(transform, what=path), "t.txt", part)
    check_rigid(scaled(1, 1, 1.05), tolerance=0.06)
    check_rigid(scaled(-1, -1, 1))  # half a turn


# geometry -------------------------------------------------------------------------------------------------------------


def by_scipy(image, grid, transform, order, outside):
    """Returns what resampling gives, computed by SciPy from positions."""
    target = np.reshape(moved(transform, world(grid).reshape(-1, 3)), (*grid.GetSize()[::-1], 3))
    directions = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    places = (target - image.GetOrigin()) @ np.linalg.inv(directions).T
    return ndimage.map_coordinates(
        values_of(image).astype(float), np.moveaxis(places[..., ::-1], -1, 0), order=order, cval=outside
    ), places


def test_a_scan_comes_to_the_grid_of_its_labels_as_computed_by_scipy(heads):
    scan, transform = read_volume(heads / "1.nii.gz"), read_transform(heads / "1.txt")
    grid = read_labels(heads / "1-seg.nii.gz", REGIONS)[4:40:2, 5:50:2, 3:40:2]
    expected, places = by_scipy(scan, grid, transform, 1, -1024)
    result = aligned(scan, transform, grid)
    assert same_grid(result, grid)
    assert result.GetPixelID() == sitk.sitkFloat32
    inside = np.all((places >= 0) & (places <= np.array(scan.GetSize()) - 1), axis=-1)
    outside = np.any((places < -0.5) | (places > np.array(scan.GetSize()) - 0.5), axis=-1)
    assert inside.mean() > 0.8
    assert np.abs(values_of(result) - expected)[inside].max() < 0.01
    far = sitk.TranslationTransform(3, (0, 0, 100.0))
    assert np.all(values_of(aligned(scan, far, grid))[-4:] == -1024)
    assert np.all(values_of(result)[outside] == -1024)


def test_regions_come_back_into_the_space_of_the_tilted_scan(heads):
    scan, transform = read_volume(heads / "1.nii.gz"), read_transform(heads / "1.txt")
    truth = read_labels(heads / "1-seg.nii.gz", REGIONS)
    predicted = sitk.Image(truth)
    predicted[:, :, :] = 0
    predicted = sitk.Paste(predicted, truth, [43, 54, 44], [0, 0, 0], [1, 0, 0])  # a prediction that is 4 mm off
    own_truth, _ = by_scipy(truth, scan, transform.GetInverse(), 0, 0)
    own = back(predicted, transform, scan)
    assert same_grid(own, scan)
    assert own.GetPixelID() == sitk.sitkUInt8
    assert np.mean(values_of(back(truth, transform, scan)) == own_truth) > 0.9999
    scores = [  # of all regions together; the small ones have 40 voxels
        np.mean([dice(*pair, number) for number in (5, 6, 7, 8, 9, 10, 15, 16, 17, 18, 19, 20)])
        for pair in ((values_of(predicted), values_of(truth)), (values_of(own), own_truth))
    ]
    assert 0.7 < scores[0] < 0.95
    assert abs(scores[0] - scores[1]) < 0.01
    assert np.abs(centroids(back(truth, transform, scan)) - moved(transform, centroids(truth))).max() < 1.5
    assert not np.allclose(centroids(back(truth, None, scan)), moved(transform, centroids(truth)), atol=3)


def test_probabilities_come_back_by_linear_interpolation(heads):
    scan, transform = read_volume(heads / "1.nii.gz")[::2, ::2, ::2], read_transform(heads / "1.txt")
    truth = read_labels(heads / "1-seg.nii.gz", REGIONS)
    probability = sitk.SmoothingRecursiveGaussian(sitk.Cast(truth == 6, sitk.sitkFloat32), 4.0)
    expected, places = by_scipy(probability, scan, transform.GetInverse(), 1, 0)
    inside = np.all((places >= 0) & (places <= np.array(truth.GetSize()) - 1), axis=-1)
    assert np.abs(values_of(back(probability, transform, scan)) - expected)[inside].max() < 1e-4
    both = back(sitk.Compose(probability, probability * 2), transform, scan)
    assert np.abs(values_of(both)[..., 1] - 2 * expected)[inside].max() < 2e-4


@pytest.mark.parametrize("axes", ["RAS", "LAS", "PIR", "SLA"])
def test_a_volume_stored_in_other_axes_is_the_same_after_canonical(axes, heads, tmp_path):
    labels = read_labels(heads / "1-seg.nii.gz", REGIONS)
    write_volume(sitk.DICOMOrient(labels, axes), tmp_path / "a.nii.gz")
    stored = read_labels(tmp_path / "a.nii.gz", REGIONS)
    assert not np.array_equal(values_of(stored), values_of(labels))
    assert np.array_equal(values_of(canonical(stored)), values_of(labels))
    assert same_grid(canonical(stored), labels)
    assert np.allclose(centroids(stored), centroids(labels), atol=1e-2)


def test_a_flipped_header_cannot_swap_the_sides(heads, tmp_path):
    # the same bytes as LAS and as RAS are heads that mirror each other: the canonical arrays are mirrored as well
    labels = read_labels(heads / "1-seg.nii.gz", REGIONS)
    mirrored = sitk.Image(labels)
    mirrored.SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, 1))
    write_volume(mirrored, tmp_path / "a.nii.gz")
    read = canonical(read_labels(tmp_path / "a.nii.gz", REGIONS))
    assert np.array_equal(values_of(read), values_of(labels)[:, :, ::-1])
    assert same_grid(read, labels) is False


def test_oblique_and_anisotropic_volumes_have_the_same_regions_in_world_coordinates(heads, tmp_path):
    labels = read_labels(heads / "1-seg.nii.gz", REGIONS)
    turn = sitk.Euler3DTransform((0, 0, 0), 0.2, -0.15, 0.25)
    grid = sitk.Image(60, 58, 60, sitk.sitkUInt8)
    grid.SetSpacing((3, 4, 3.5))
    matrix = np.reshape(turn.GetMatrix(), (3, 3)) * (-1, 1, -1)  # x towards the right, z towards inferior
    grid.SetDirection(matrix.ravel())
    grid.SetOrigin(turn.TransformPoint((90, -115, 105)))
    write_volume(sitk.Resample(labels, grid, sitk.Transform(), sitk.sitkNearestNeighbor, 0), tmp_path / "a.nii.gz")
    oblique = canonical(read_labels(tmp_path / "a.nii.gz", REGIONS))
    assert np.all(np.diag(np.reshape(oblique.GetDirection(), (3, 3))) > 0.9)
    assert np.abs(centroids(oblique) - centroids(labels)).max() < 2  # half of a voxel
    classes = values_of(oblique)
    left, right = (np.isin(classes, range(*span)).nonzero()[2].mean() for span in ((1, 11), (11, 21)))
    assert left > right


def test_planes_name_the_axes_of_canonical_arrays():
    # a volume whose canonical value is 1 for the most superior, 2 for the most posterior, 4 for the leftmost voxels
    image = sitk.Image(6, 5, 4, sitk.sitkUInt8)
    image.SetDirection((0, 0, 1, -1, 0, 0, 0, 1, 0))
    positions = world(image)
    array = np.zeros(image.GetSize()[::-1], np.uint8)
    for axis, value in ((2, 1), (1, 2), (0, 4)):
        array += (value * np.isclose(positions[..., axis], positions[..., axis].max())).astype(np.uint8)
    marked = sitk.GetImageFromArray(array)
    marked.CopyInformation(image)
    values = values_of(canonical(marked))
    for plane, value in (("axial", 1), ("coronal", 2), ("sagittal", 4)):
        across = PLANE_AXES[plane][0]
        assert np.all(np.take(values, -1, axis=across) & value)
        assert not np.any(np.take(values, 0, axis=across) & value)


def test_grids_are_the_same_within_a_tolerance():
    image, other = volume(), volume()
    assert same_grid(image, other)
    other.SetOrigin((-3, 4.05, 5))
    assert same_grid(image, other)
    assert not same_grid(image, other, tolerance=0.01)
    other = volume()
    other.SetSpacing((1.05, 2, 3))  # the corner at the other end moves by 0.25 mm
    assert not same_grid(image, other)
    assert not same_grid(image, volume(shape=(4, 5, 7)))
