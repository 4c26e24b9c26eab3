"""The mid-sagittal plane and the sides of regions."""

import numpy as np
import pytest
import SimpleITK as sitk

from kmura.errors import InputError
from kmura.phantoms.ct_heads import write_heads
from kmura.segmentation import regions
from kmura.segmentation.sides import SagittalPlane, midsagittal_plane, signed_distance
from kmura.segmentation.targets import pairs, with_sides
from kmura.segmentation.volumes import aligned, matrix_of, read_transform

sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Four heads that are tilted by up to 20 degrees about each axis."""
    out = tmp_path_factory.mktemp("heads") / "heads"
    write_heads(out, heads=4, max_angle=20)
    return out


def errors(plane, normal, point):
    """The angle (degrees) and the distance (mm) between a plane and the true one."""
    cosine = np.dot(plane.normal, normal)
    return np.degrees(np.arccos(min(1, cosine))), abs(np.dot(normal, np.subtract(plane.point, point)))


@pytest.mark.parametrize("head", [1, 2, 3, 4])
def test_the_plane_of_a_tilted_head_is_found(heads, head):
    scan = sitk.ReadImage(str(heads / f"{head}.nii.gz"))
    matrix, offset = matrix_of(read_transform(heads / f"{head}.txt"))
    angle, distance = errors(midsagittal_plane(scan), matrix[:, 0], offset)  # the plane x = 0 of label space
    assert angle < 2
    assert distance < 1


def test_a_head_that_lies_far_on_its_side_is_measured_as_well(heads):
    scan, transform = sitk.ReadImage(str(heads / "2.nii.gz")), read_transform(heads / "2.txt")
    turn = sitk.Euler3DTransform((0, 0, 0), 0, 0.6, -0.6)  # 47 degrees between left and the normal of the plane
    turned = sitk.Resample(scan, scan, sitk.CompositeTransform([transform, turn.GetInverse()]), sitk.sitkLinear, -1000)
    angle, distance = errors(midsagittal_plane(turned), np.reshape(turn.GetMatrix(), (3, 3))[:, 0], (0, 0, 0))
    assert angle < 2
    assert distance < 1


def test_the_plane_does_not_depend_on_how_the_volume_is_stored(heads):
    scan = sitk.ReadImage(str(heads / "1.nii.gz"))
    plane = midsagittal_plane(scan)
    for axes in ("RAS", "PIR", "LAS"):
        angle, distance = errors(midsagittal_plane(sitk.DICOMOrient(scan, axes)), plane.normal, plane.point)
        assert angle < 0.1
        assert distance < 0.1
    assert midsagittal_plane(scan) == plane


def test_the_plane_is_found_in_an_oblique_volume_of_thick_slices(heads):
    scan = sitk.ReadImage(str(heads / "2.nii.gz"))
    matrix, offset = matrix_of(read_transform(heads / "2.txt"))
    turn = sitk.Euler3DTransform((0, 0, 0), 0.1, 0.2, -0.15)
    grid = sitk.Image(60, 66, 36, sitk.sitkUInt8)
    grid.SetSpacing((3.5, 3.5, 6))
    grid.SetDirection(turn.GetMatrix())
    grid.SetOrigin(turn.TransformPoint((-104, -115, -105)))
    oblique = sitk.Resample(scan, grid, sitk.Transform(), sitk.sitkLinear, -1000)
    angle, distance = errors(midsagittal_plane(oblique), matrix[:, 0], offset)
    assert angle < 2.5
    assert distance < 1.5


def test_what_lies_beside_the_head_does_not_count(heads):
    scan = sitk.ReadImage(str(heads / "1.nii.gz"))
    matrix, offset = matrix_of(read_transform(heads / "1.txt"))
    values = sitk.GetArrayFromImage(scan)
    values[2:12, 40:52, 1:6] = 50  # such as a hand
    other = sitk.GetImageFromArray(values)
    other.CopyInformation(scan)
    angle, distance = errors(midsagittal_plane(other), matrix[:, 0], offset)
    assert angle < 2
    assert distance < 1


def test_volumes_without_a_head_are_refused():
    air = sitk.Image(40, 40, 40, sitk.sitkInt16) - 1000
    air.SetSpacing((4, 4, 4))
    with pytest.raises(InputError, match="contains no head"):
        midsagittal_plane(air)
    air.SetSpacing((4, 4, 0.5))
    with pytest.raises(InputError, match="covers only 160 x 160 x 20 mm"):
        midsagittal_plane(air)


def test_the_signed_distance_equals_that_of_each_voxel():
    turn = sitk.Euler3DTransform((0, 0, 0), 0.3, -0.2, 0.5)
    image = sitk.Image(4, 5, 6, sitk.sitkUInt8)
    image.SetSpacing((1, 2, 3))
    image.SetOrigin((-3, 7, 11))
    image.SetDirection(turn.GetMatrix())
    normal = np.array([2.0, -1.0, 0.5]) / np.linalg.norm([2.0, -1.0, 0.5])
    plane = SagittalPlane((1.0, 2.0, 3.0), tuple(normal))
    distances = signed_distance(plane, image)
    assert distances.shape == (6, 5, 4)
    assert distances.dtype == np.float32
    for z, y, x in ((0, 0, 0), (5, 4, 3), (2, 1, 3)):
        position = np.array(image.TransformIndexToPhysicalPoint((x, y, z)))
        assert distances[z, y, x] == pytest.approx(normal @ (position - plane.point), abs=1e-4)


def test_sides_of_merged_classes_are_those_of_the_label_map(heads):
    scan, labels = (sitk.ReadImage(str(heads / f"1{end}.nii.gz")) for end in ("", "-seg"))
    plane = midsagittal_plane(aligned(scan, read_transform(heads / "1.txt"), labels))
    classes = sitk.GetArrayFromImage(labels)
    merged = np.where(classes > 10, classes - 10, classes)
    both = with_sides(merged, signed_distance(plane, labels), regions.REGIONS)
    assert both.dtype == np.uint8
    assert np.array_equal(both, classes)
    swapped = SagittalPlane(plane.point, tuple(-value for value in plane.normal))
    assert not np.array_equal(with_sides(merged, signed_distance(swapped, labels), regions.REGIONS), classes)


def test_the_regions_are_in_the_order_of_the_published_labels():
    assert len(regions.REGIONS) == 20
    assert regions.REGIONS[:4] == ("caudate_left", "lentiform_left", "internal_capsule_left", "insula_left")
    assert regions.REGIONS[4:10] == ("M4_left", "M5_left", "M6_left", "M1_left", "M2_left", "M3_left")
    assert pairs(regions.REGIONS) == [(number, number + 10) for number in range(1, 11)]
