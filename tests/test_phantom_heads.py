"""Synthetic CT heads: layout, labels, bytes, errors."""

import gzip

import numpy as np
import pytest
import SimpleITK as sitk

from kmura.errors import InputError
from kmura.phantoms.ct_heads import write_heads

sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    out = tmp_path_factory.mktemp("heads") / "heads"
    write_heads(out, heads=2)
    return out


def array(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_a_head_is_a_scan_a_transform_and_a_label_map(heads):
    names = [f"{head}{end}" for head in (1, 2) for end in ("-seg.nii.gz", ".nii.gz", ".txt")]
    assert sorted(path.name for path in heads.iterdir()) == names
    scan, labels = (sitk.ReadImage(str(heads / name)) for name in ("1.nii.gz", "1-seg.nii.gz"))
    assert (scan.GetPixelID(), labels.GetPixelID()) == (sitk.sitkInt16, sitk.sitkUInt8)
    assert scan.GetSize() == labels.GetSize() == (44, 54, 44)
    assert scan.GetSpacing() == (4, 4, 4)
    assert scan.GetOrigin() == pytest.approx((-86, -106, -86))
    assert scan.GetDirection() == pytest.approx((1, 0, 0, 0, 1, 0, 0, 0, 1))
    assert sitk.ReadTransform(str(heads / "1.txt")).IsLinear()


def test_qform_and_sform_state_the_same_geometry(heads):
    header = gzip.decompress((heads / "1.nii.gz").read_bytes())[:348]
    b, c, d, x, y, z = np.frombuffer(header, "<f4", 6, 256)
    rows = np.frombuffer(header, "<f4", 12, 280).reshape(3, 4)
    a = np.sqrt(1 - b * b - c * c - d * d)
    turn = [  # NIfTI-1, method 2
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
    ]
    assert np.allclose(rows, np.column_stack([np.array(turn) * 4, (x, y, z)]))


def test_all_regions_are_present_and_those_of_the_right_mirror_those_of_the_left(heads):
    labels = array(heads / "1-seg.nii.gz")
    left, right = labels[:, :, 22:], labels[:, :, :22]  # x of LPS grows towards the left
    assert set(np.unique(left)) == set(range(11))
    assert set(np.unique(right)) == {0, *range(11, 21)}
    assert np.array_equal(np.where(right > 0, right - 10, 0)[:, :, ::-1], left)


def test_the_transform_leads_from_the_labels_to_the_scan(heads):
    scan, labels = (sitk.ReadImage(str(heads / name)) for name in ("1.nii.gz", "1-seg.nii.gz"))
    transform = sitk.ReadTransform(str(heads / "1.txt"))
    inside = array(heads / "1-seg.nii.gz") == 2

    def gray_level(chosen):
        return sitk.GetArrayFromImage(sitk.Resample(scan, labels, chosen, sitk.sitkLinear, -1000.0))[inside].mean()

    assert 34 < gray_level(transform) < 44  # the lentiform nucleus, 41 HU
    air = sitk.GetArrayFromImage(sitk.Resample(scan, labels, transform, sitk.sitkLinear, -1000.0)) < -500
    twin = np.mean(air == air[:, :, ::-1])  # aligned, a head is symmetric
    tilted = sitk.GetArrayFromImage(scan) < -500
    assert twin > 0.99 > np.mean(tilted == tilted[:, :, ::-1])


def test_regions_differ_in_their_gray_values(heads):
    scan, labels = (sitk.ReadImage(str(heads / name)) for name in ("1.nii.gz", "1-seg.nii.gz"))
    transform = sitk.ReadTransform(str(heads / "1.txt"))
    values = sitk.GetArrayFromImage(sitk.Resample(scan, labels, transform, sitk.sitkLinear, -1000.0))
    classes = array(heads / "1-seg.nii.gz")
    capsule, lentiform = (values[classes == number].mean() for number in (3, 2))
    assert lentiform - capsule > 5


def test_the_same_arguments_give_the_same_bytes_and_heads_differ(heads, tmp_path):
    write_heads(tmp_path / "again", heads=1)
    for name in ("1.nii.gz", "1.txt", "1-seg.nii.gz"):
        assert (tmp_path / "again" / name).read_bytes() == (heads / name).read_bytes()
    write_heads(tmp_path / "other", heads=1, seed=1)
    assert not np.array_equal(array(tmp_path / "other" / "1-seg.nii.gz"), array(heads / "1-seg.nii.gz"))
    assert not np.array_equal(array(heads / "2-seg.nii.gz"), array(heads / "1-seg.nii.gz"))


def test_the_files_hold_no_time_stamp(heads):
    assert (heads / "1.nii.gz").read_bytes()[4:8] == bytes(4)


def test_the_largest_angle_limits_the_tilt(tmp_path):
    write_heads(tmp_path / "upright", heads=1, spacing=8, max_angle=0)
    matrix = sitk.ReadTransform(str(tmp_path / "upright" / "1.txt")).GetParameters()[:9]
    assert np.allclose(np.reshape(matrix, (3, 3)), np.eye(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 0}, "heads is 0; give a number from 1"),
        ({"spacing": 0.5}, "spacing is 0.5; give a number from 1 to 8"),
        ({"seed": -1}, "seed is -1"),
        ({"max_angle": 90}, "max_angle is 90; give a number from 0 to 45"),
    ],
)
def test_arguments_outside_their_range_are_refused(options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        write_heads(tmp_path / "heads", **options)
    assert not (tmp_path / "heads").exists()


def test_a_folder_with_content_is_not_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty; choose a new folder"):
        write_heads(tmp_path, heads=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_nothing_remains_of_heads_that_were_interrupted(tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_heads(tmp_path / "heads", heads=2, spacing=8, progress=stop)
    assert list(tmp_path.iterdir()) == []
