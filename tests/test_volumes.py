"""Volumes: files in, errors in one line, geometry kept."""

import numpy as np
import pytest
from command import kmura_main

from kmura.errors import InputError
from kmura.segmentation import volumes

sitk = pytest.importorskip("SimpleITK")
NAMES = ("core_left", "core_right")


def image_of(array, spacing=(2.0, 2.0, 3.0), origin=(-20.0, -30.0, 10.0), direction=None):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    if direction is not None:
        image.SetDirection(np.asarray(direction, float).ravel().tolist())
    return image


def blocks(shape=(12, 16, 20)):
    """Class 1 on the patient's left (large x), class 2 on the right, of different sizes."""
    array = np.zeros(shape, np.uint8)
    array[3:9, 4:11, 12:17] = 1
    array[3:7, 4:9, 3:7] = 2
    return array


@pytest.fixture
def file(tmp_path):
    def write(array, name="a.nii.gz", **geometry):
        sitk.WriteImage(image_of(array, **geometry), str(tmp_path / name))
        return tmp_path / name

    return write


def refused(call, *parts):
    with pytest.raises(InputError) as found:
        call()
    text = str(found.value)
    assert "\n" not in text and all(part in text for part in parts), text


def test_a_volume_is_read_with_its_values_and_geometry(file):
    array = np.random.default_rng(0).integers(-1000, 2000, (5, 6, 7)).astype(np.int16)
    turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    for name in ("a.nii", "b.nii.gz", "c.nrrd", "d.mha"):
        image = volumes.read_volume(file(array, name, direction=turn))
        np.testing.assert_array_equal(volumes.array_of(image), array)
        assert image.GetSpacing() == pytest.approx((2, 2, 3)) and image.GetOrigin() == pytest.approx((-20, -30, 10))
        np.testing.assert_allclose(np.reshape(image.GetDirection(), (3, 3)), turn, atol=1e-6)


def test_volumes_that_cannot_be_used_are_refused_in_one_line(file, tmp_path):
    good = np.zeros((4, 5, 6), np.int16)
    refused(lambda: volumes.read_volume(tmp_path / "none.nii"), "none.nii does not exist", "DICOM series")
    (tmp_path / "broken.nii.gz").write_bytes(b"nonsense")
    refused(lambda: volumes.read_volume(tmp_path / "broken.nii.gz"), "broken.nii.gz is not a volume", "give another")
    sitk.WriteImage(sitk.GetImageFromArray(good[0]), str(tmp_path / "flat.nii.gz"))
    refused(lambda: volumes.read_volume(tmp_path / "flat.nii.gz"), "flat.nii.gz has 2 dimensions (6 x 5)")
    several = sitk.JoinSeries([image_of(good), image_of(good)])
    sitk.WriteImage(several, str(tmp_path / "four.nii.gz"))
    refused(lambda: volumes.read_volume(tmp_path / "four.nii.gz"), "has 4 dimensions (6 x 5 x 4 x 2)")
    refused(lambda: volumes.read_volume(file(good[:1], "thin.nii.gz")), "thin.nii.gz is 6 x 5 x 1: not a volume")
    values = good.astype(np.float32)
    values[1, 1, 1] = np.nan
    refused(lambda: volumes.read_volume(file(values, "nan.nrrd")), "not numbers", "replace them")
    (tmp_path / "empty").mkdir()
    refused(lambda: volumes.read_volume(tmp_path / "empty"), "contains no DICOM series")


def header(path, **changes):
    """Changes fields of the header of an uncompressed NIfTI-1 file: name -> (offset, bytes)."""
    data = bytearray(path.read_bytes())
    for offset, value in changes.values():
        data[offset : offset + len(value)] = value
    path.write_bytes(data)
    return path


def test_a_nifti_file_without_orientation_or_voxel_size_is_refused(file):
    array = np.zeros((4, 5, 6), np.int16)
    none = {"qform": (252, b"\0\0"), "sform": (254, b"\0\0")}
    unknown = header(file(array, "unknown.nii"), **none)
    refused(lambda: volumes.read_volume(unknown), "does not state its orientation", "--orientation RAS")
    given = volumes.read_volume(unknown, orientation="RAS")
    np.testing.assert_array_equal(np.reshape(given.GetDirection(), (3, 3)), np.diag([-1, -1, 1]))
    refused(lambda: volumes.read_volume(unknown, orientation="RAR"), "orientation 'RAR' is unknown")
    sizeless = header(file(array, "sizeless.nii"), pixdim=(80, np.float32([0, 2, 2]).tobytes()))
    refused(lambda: volumes.read_volume(sizeless), "does not state the size of its voxels")


def test_labels_that_cannot_be_used_are_refused_in_one_line(file):
    labels = blocks()
    assert volumes.array_of(volumes.read_labels(file(labels), NAMES)).max() == 2
    floats = file(labels.astype(np.float32), "floats.nii.gz")
    assert volumes.read_labels(floats, NAMES).GetPixelID() == sitk.sitkUInt8
    refused(lambda: volumes.read_labels(file(labels * 1.3, "x.nii.gz"), NAMES), "the label 1.3", "not interpolated")
    refused(
        lambda: volumes.read_labels(file(labels * 2, "y.nii.gz"), NAMES), "label 4; allowed are 0", "2 (core_right)"
    )
    refused(lambda: volumes.read_labels(file(-labels.astype(np.int16), "z.nii.gz"), NAMES), "label -2; allowed")
    refused(lambda: volumes.read_labels(file(0 * labels, "e.nii.gz"), NAMES), "no labels, only background")


def rigid(kind):
    angles = (0.1, -0.2, 0.3)
    euler = sitk.Euler3DTransform((1.0, 2.0, 3.0), *angles, (4.0, -5.0, 6.0))
    if kind == "Euler3DTransform":
        return euler
    if kind == "TranslationTransform":
        return sitk.TranslationTransform(3, (4.0, 5.0, 6.0))
    if kind == "CompositeTransform":
        return sitk.CompositeTransform([euler, sitk.TranslationTransform(3, (1.0, 0.0, 0.0))])
    other = {"AffineTransform": sitk.AffineTransform(3)}.get(kind) or getattr(sitk, kind)()
    other.SetMatrix(euler.GetMatrix())
    other.SetTranslation(euler.GetTranslation())
    other.SetCenter(euler.GetCenter())
    return other


@pytest.mark.parametrize("suffix", ["txt", "tfm", "h5"])
@pytest.mark.parametrize(
    "kind",
    ["Euler3DTransform", "AffineTransform", "VersorRigid3DTransform", "Similarity3DTransform", "TranslationTransform",
     "CompositeTransform"],
)  # fmt: skip
def test_transforms_of_every_type_are_read(tmp_path, kind, suffix):
    written = rigid(kind)
    sitk.WriteTransform(written, str(tmp_path / f"t.{suffix}"))
    found = volumes.read_transform(tmp_path / f"t.{suffix}")
    volumes.check_rigid(found)
    for point in np.random.default_rng(0).normal(0, 50, (5, 3)).tolist():
        assert found.TransformPoint(point) == pytest.approx(written.TransformPoint(point), abs=1e-6)
    matrix, offset = volumes.matrix_of(found)
    assert matrix @ (10, 20, 30) + offset == pytest.approx(written.TransformPoint((10.0, 20.0, 30.0)), abs=1e-6)


def test_the_transform_of_the_older_data_set_is_read(tmp_path):
    (tmp_path / "1.txt").write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: MatrixOffsetTransformBase_double_3_3\n"
        "Parameters: 0 -1 0 1 0 0 0 0 1 5 6 7\nFixedParameters: 0 0 0\n"
    )
    found = volumes.read_transform(tmp_path / "1.txt")
    volumes.check_rigid(found)
    assert found.TransformPoint((1.0, 2.0, 3.0)) == pytest.approx((3, 7, 10))


def test_transforms_that_are_not_rigid_are_refused_in_one_line(tmp_path):
    mirror = sitk.AffineTransform(3)
    mirror.SetMatrix((-1.0, 0, 0, 0, 1, 0, 0, 0, 1))
    refused(lambda: volumes.check_rigid(mirror, "m.txt"), "m.txt mirrors", "left and right")
    scale = sitk.ScaleTransform(3, (1.1, 1.0, 1.0))
    refused(lambda: volumes.check_rigid(scale, "s.txt"), "s.txt scales or shears", "0.210")
    field = sitk.DisplacementFieldTransform(sitk.Image([4, 4, 4], sitk.sitkVectorFloat64, 3))
    refused(lambda: volumes.check_rigid(field, "d.h5"), "d.h5 is a DisplacementFieldTransform, which deforms")
    (tmp_path / "bad.txt").write_text("nothing")
    refused(lambda: volumes.read_transform(tmp_path / "bad.txt"), "bad.txt is not a transform that ITK can read")
    sitk.WriteTransform(sitk.Euler2DTransform(), str(tmp_path / "two.txt"))
    refused(lambda: volumes.read_transform(tmp_path / "two.txt"), "transform of 2 dimensions")
    refused(lambda: volumes.read_transform(tmp_path / "none.txt"), "none.txt does not exist")
    (tmp_path / "a.csv").write_text("")
    refused(lambda: volumes.read_transform(tmp_path / "a.csv"), "the suffix .csv", ".txt, .tfm, .h5")


def positions(image, number):
    """Voxels of a class as positions in the patient, mm, sorted."""
    places = np.argwhere(volumes.array_of(image) == number)[:, ::-1]
    points = np.array([image.TransformIndexToPhysicalPoint([int(one) for one in place]) for place in places])
    return np.array(sorted(np.round(points, 3).tolist()))


@pytest.mark.parametrize("code", ["RAS", "LAS", "LPS", "SPR", "ARI"])
def test_the_canonical_orientation_keeps_every_voxel_where_it_is(code):
    turned = sitk.DICOMOrient(image_of(blocks()), code)
    found = volumes.canonical(turned)
    np.testing.assert_allclose(np.reshape(found.GetDirection(), (3, 3)), np.eye(3), atol=1e-9)
    for number in (1, 2):
        np.testing.assert_allclose(positions(found, number), positions(turned, number))
    np.testing.assert_array_equal(volumes.array_of(found), blocks())


def test_resampling_is_that_of_scipy_and_outside_is_air():
    from scipy import ndimage

    rng = np.random.default_rng(0)
    array = ndimage.gaussian_filter(rng.normal(0, 300, (12, 16, 20)), 1).astype(np.float32)
    scan = image_of(array)
    turn = sitk.Euler3DTransform((0.0, 0.0, 30.0), 0.2, 0.1, -0.3, (3.0, 1.0, 2.0))
    grid = image_of(np.zeros((10, 11, 12), np.uint8), spacing=(3.0, 2.5, 2.0), origin=(-15.0, -28.0, 14.0))
    ours = volumes.array_of(volumes.aligned(scan, turn, grid))
    index = np.argwhere(np.ones(ours.shape))[:, ::-1]
    points = [turn.TransformPoint(grid.TransformIndexToPhysicalPoint([int(i) for i in one])) for one in index]
    places = np.array([scan.TransformPhysicalPointToContinuousIndex(point) for point in points])[:, ::-1].T
    expected = ndimage.map_coordinates(array, places, order=1, mode="constant", cval=np.nan).reshape(ours.shape)
    inside = np.isfinite(expected)
    assert 0.3 < inside.mean() < 1
    np.testing.assert_allclose(ours[inside], expected[inside], atol=0.05)
    limits = np.array(array.shape)[:, None]
    beyond = ((places < -0.51) | (places > limits - 0.49)).any(axis=0).reshape(ours.shape)
    assert (ours[beyond] == volumes.AIR).all()


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def test_labels_come_back_to_the_space_of_a_tilted_scan():
    big = np.zeros((24, 32, 40), np.uint8)
    big[5:18, 6:24, 6:30] = 1
    labels = image_of(big, spacing=(1.0, 1.0, 1.5))
    tilt = sitk.Euler3DTransform((0.0, -15.0, 25.0), 0.15, -0.1, 0.2, (2.0, 3.0, -1.0))
    scan = image_of(np.zeros((40, 60, 60), np.int16), spacing=(1.0, 1.0, 1.0), origin=(-35.0, -45.0, 5.0))
    there = volumes.in_scan(labels, tilt, scan, labels=True)
    back = sitk.Resample(there, labels, tilt, sitk.sitkNearestNeighbor, 0)
    assert dice(volumes.array_of(back) == 1, big == 1) > 0.96
    assert positions(there, 1).mean(axis=0) == pytest.approx(tilt.TransformPoint(positions(labels, 1).mean(0)), abs=0.2)


def test_gray_values_are_one_level_per_hounsfield_unit_in_the_usual_window():
    values = np.arange(-200, 201)
    gray = volumes.to_gray(values, -124, 130).astype(int)
    assert gray[values <= -124].max() == 0 and gray[values >= 130].min() == 255
    inside = gray[(values >= -124) & (values <= 130)]
    assert len(np.unique(inside)) == 255 and (np.diff(inside) >= 1).all()


def test_volumes_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    image = image_of(blocks())
    for name in ("a.nii.gz", "a.nii", "a.nrrd", "a.mha"):
        volumes.write_volume(image, tmp_path / name)
        assert volumes.same_grid(volumes.read_volume(tmp_path / name), image)
    before = (tmp_path / "a.nii").read_bytes()
    refused(lambda: volumes.write_volume(image, tmp_path / "a.png"), "must end with one of .nii")
    refused(lambda: volumes.write_volume(image, tmp_path / "none" / "a.nii"), "there is no folder", "--out")

    def full(*arguments, **options):
        raise RuntimeError("ITK: (0): write failed: no space")

    monkeypatch.setattr(sitk, "WriteImage", full)
    refused(lambda: volumes.write_volume(image, tmp_path / "a.nii"), "cannot write", "no space")
    assert (tmp_path / "a.nii").read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


# DICOM


def slices(folder, count=6, *, tilt=0.0, skip=(), series="1.2.3.4", first=0):
    """Writes a series whose values say where they are: x + 10 z; with a tilted gantry, slices are shifted along y."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir(exist_ok=True)
    for number in range(count):
        if number in skip:
            continue
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[series, str(number)])
        one = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
        one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        one.Modality, one.SeriesInstanceUID, one.StudyInstanceUID = "CT", series, "1.2.3"
        one.PatientID, one.InstanceNumber = "p", number + 1
        one.Rows, one.Columns, one.PixelSpacing = 20, 24, [2.0, 1.5]
        one.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        one.ImagePositionPatient = [-10.0, -20.0 + tilt * number, 5.0 + 3.0 * number]
        one.SliceThickness = 3.0
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.RescaleSlope, one.RescaleIntercept = 2, -1000
        values = np.zeros((20, 24), np.int16)
        values[6:14] = 400 + np.arange(24) + 10 * number
        one.PixelData = values.tobytes()
        one.save_as(folder / f"{first + number:03}.dcm", enforce_file_format=True)
    return folder


def test_a_dicom_series_is_a_volume_in_hounsfield_units(tmp_path):
    image = volumes.read_volume(slices(tmp_path / "ct"))
    assert image.GetSize() == (24, 20, 6) and image.GetSpacing() == pytest.approx((1.5, 2.0, 3.0))
    assert image.GetOrigin() == pytest.approx((-10, -20, 5))
    assert volumes.array_of(image)[2, 8, 3] == 2 * (400 + 3 + 20) - 1000


def test_slices_of_a_tilted_gantry_are_put_where_they_were(tmp_path):
    straight = volumes.read_volume(slices(tmp_path / "straight"))
    tilted = volumes.read_volume(slices(tmp_path / "tilted", tilt=1.0))
    assert tilted.GetSize()[1] > straight.GetSize()[1] and tilted.GetOrigin() == pytest.approx((-10, -20, 5))
    values = volumes.array_of(tilted)
    for number in range(6):
        # the middle of the bright band of slice 5 lies 5 mm further back than that of slice 0
        bright = np.flatnonzero(values[number, :, 12] > -500)
        middle = tilted.TransformContinuousIndexToPhysicalPoint((12.0, float(bright.mean()), float(number)))
        assert middle[1] == pytest.approx(-20 + 2 * 9.5 + number, abs=1.1)
        assert middle[2] == pytest.approx(5 + 3 * number)


def test_series_that_cannot_be_used_are_refused_in_one_line(tmp_path):
    refused(lambda: volumes.read_volume(slices(tmp_path / "gap", skip=(3,))), "are 6.00 mm apart after 002.dcm")
    both = slices(slices(tmp_path / "two"), series="1.2.3.5", count=4, first=50)
    refused(lambda: volumes.read_volume(both), "contains 2 series", "1.2.3.4 (6 slices)", "--series")
    assert volumes.read_volume(both, series="1.2.3.5").GetSize()[2] == 4
    refused(lambda: volumes.read_volume(both, series="9"), "has no series 9")
    refused(lambda: volumes.read_volume(slices(tmp_path / "one", count=1)), "a series of one slice")


def test_without_simpleitk_one_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    code, _, err = kmura_main(monkeypatch, capsys, "segment", "build", tmp_path)
    assert code == 2 and err.count("\n") == 1
    with pytest.raises(InputError, match=r"run pip install '\.\[ct\]'"):
        volumes.canonical(None)
