"""Volumes and transforms: reading, errors, geometry, atomic writing."""

import gzip
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import write_ct_series
from scipy import ndimage

from kmura.errors import InputError
from kmura.itk import simpleitk
from kmura.phantoms.ct_heads import write_heads
from kmura.segmentation.regions import REGIONS
from kmura.segmentation.volumes import (
    PLANES,
    aligned,
    back,
    canonical,
    check_rigid,
    matrix_of,
    read_labels,
    read_transform,
    read_volume,
    same_grid,
    to_gray,
    window,
    write_volume,
)

sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
UPRIGHT = (1, 0, 0, 0, 1, 0, 0, 0, 1)


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """One head, tilted by up to 20 degrees, 4 mm."""
    out = tmp_path_factory.mktemp("heads") / "heads"
    write_heads(out, heads=1, max_angle=20)
    return out


def volume(dtype=np.float32, shape=(4, 5, 6), spacing=(1, 2, 3)):
    """Returns a sitk.Image of different values with the size (6, 5, 4)."""
    image = sitk.GetImageFromArray((np.arange(np.prod(shape)).reshape(shape) - 7).astype(dtype))
    image.SetSpacing(spacing)
    image.SetOrigin((-3, 4, 5))
    return image


def values_of(image):
    return sitk.GetArrayFromImage(image)


def world(image):
    """Returns the positions [Z, Y, X, 3] of all voxels, mm, computed without SimpleITK's resampling."""
    shape = image.GetSize()[::-1]
    indices = np.stack(np.indices(shape)[::-1], axis=-1)
    directions = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    return indices @ directions.T + image.GetOrigin()


def centroids(labels):
    """Returns the centroid [3] of each class, mm."""
    classes, positions = values_of(labels), world(labels)
    return np.array([positions[classes == number].mean(axis=0) for number in np.unique(classes) if number])


def dice(first, second, number):
    return 2 * np.sum((first == number) & (second == number)) / (np.sum(first == number) + np.sum(second == number))


def refused(read, path, *parts):
    """Checks that reading gives an error of one line that contains the path and the parts."""
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(path), ";", *parts):
        assert part in message
    return message


# files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_a_volume_is_read_as_it_was_written(suffix, dtype, tmp_path):
    image = volume(dtype)
    image.SetDirection(sitk.Euler3DTransform((0, 0, 0), 0.2, -0.1, 0.4).GetMatrix())
    write_volume(image, tmp_path / "new" / f"a{suffix}")
    read = read_volume(tmp_path / "new" / f"a{suffix}")
    assert read.GetPixelID() == image.GetPixelID()
    assert np.array_equal(values_of(read), values_of(image))
    assert np.abs(world(read) - world(image)).max() < 1e-3
    assert same_grid(read, image)
    assert read.GetMetaDataKeys() == ()
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"a{suffix}"]


@pytest.mark.parametrize(
    ("dtype", "offset", "stored"),
    [
        (np.uint8, 0, sitk.sitkInt16),
        (np.int32, -1000, sitk.sitkInt16),
        (np.uint16, 60000, sitk.sitkFloat32),
        (np.float64, 0.5, sitk.sitkFloat32),
    ],
)
def test_other_types_become_int16_where_they_fit_else_float32(dtype, offset, stored, tmp_path):
    array = np.arange(2 * 3 * 4).reshape(2, 3, 4) + offset
    sitk.WriteImage(sitk.GetImageFromArray(array.astype(dtype)), str(tmp_path / "a.nii"))
    read = read_volume(tmp_path / "a.nii")
    assert read.GetPixelID() == stored
    assert np.array_equal(values_of(read), array)


def nifti(path, *edits, image=None, keep=None):
    """Writes a NIfTI file whose header is edited: (place, struct format, values)."""
    plain = path.with_name("plain.nii")
    sitk.WriteImage(volume() if image is None else image, str(plain))
    data = bytearray(plain.read_bytes())
    for place, form, values in edits:
        struct.pack_into(form, data, place, *values)
    data = bytes(data)
    if path.name.endswith(".gz"):
        data = gzip.compress(data)
    path.write_bytes(data[:keep])
    return path


SHEARED = ((280, "<4f", (0.8, 0, 0, 0)), (296, "<4f", (0.6, 2, 0, 0)), (312, "<4f", (0, 0, 3, 0)))
DAMAGED_NIFTI = {
    "truncated": ("a.nii", {"keep": 500}, "damaged: 332 bytes are missing"),
    "truncated header": ("a.nii", {"keep": 100}, "damaged"),
    "truncated gzip": ("a.nii.gz", {"keep": 150}, "damaged"),
    "empty": ("a.nii", {"keep": 0}, "damaged"),
    "voxel size 0": ("a.nii", {"edits": [(88, "<f", (0,))]}, "no valid voxel size (1 x 2 x 0 mm)"),
    "voxel size -2": ("a.nii", {"edits": [(84, "<f", (-2,))]}, "no valid voxel size (1 x -2 x 3 mm)"),
    "voxel size NaN": ("a.nii.gz", {"edits": [(80, "<f", (np.nan,))]}, "no valid voxel size (nan x 2 x 3 mm)"),
    "no orientation": ("a.nii", {"edits": [(252, "<2h", (0, 0))]}, "states no orientation"),
    "other sform": ("a.nii", {"edits": [(252, "<2h", (0, 1)), (280, "<f", (7,))]}, "1 x 2 x 3 mm in pixdim and 7 x 2"),
    "other sform than qform": ("a.nii", {"edits": [(280, "<f", (-7,))]}, "1 x 2 x 3 mm in pixdim and 7 x 2"),
    "mirrored sform": ("a.nii", {"edits": [(280, "<f", (1,))]}, "a qform and an sform that mirror each other"),
    "sheared": ("a.nii", {"edits": [(252, "<2h", (0, 1)), *SHEARED]}, "not perpendicular"),
    "complex": ("a.nii", {"edits": [(70, "<h", (32,))]}, "complex"),
    "NIfTI-2": ("a.nii", {"edits": [(0, "<i", (540,))]}, "NIfTI-2"),
    "no sizes": ("a.nii", {"edits": [(42, "<h", (0,))]}, "its header states sizes"),
}


@pytest.mark.parametrize("case", DAMAGED_NIFTI)
def test_a_nifti_file_that_cannot_be_trusted_is_refused(case, tmp_path, capfd):
    name, options, part = DAMAGED_NIFTI[case]
    refused(read_volume, nifti(tmp_path / name, *options.get("edits", ()), keep=options.get("keep")), part)
    assert capfd.readouterr() == ("", "")  # no warnings of ITK beside the error


def test_a_sheared_sform_beside_a_valid_qform_is_ignored(tmp_path):
    sheared = ((280, "<4f", (-0.8, 0, 0, 3)), (296, "<4f", (-0.6, -2, 0, -4)), (312, "<4f", (0, 0, 3, 5)))
    assert same_grid(read_volume(nifti(tmp_path / "a.nii", *sheared)), volume())


def test_a_nifti_file_of_the_other_byte_order_is_read(tmp_path):
    image = volume(np.int16)
    data = bytearray(nifti(tmp_path / "a.nii", image=image).read_bytes())
    for place, form in ((0, "i"), (40, "8h"), (70, "2h"), (76, "8f"), (108, "3f"), (252, "2h"), (256, "18f")):
        struct.pack_into(f">{form}", data, place, *struct.unpack_from(f"<{form}", data, place))
    data[352:] = np.frombuffer(bytes(data[352:]), "<i2").astype(">i2").tobytes()
    (tmp_path / "a.nii").write_bytes(data)
    read = read_volume(tmp_path / "a.nii")
    assert same_grid(read, image)
    assert np.array_equal(values_of(read), values_of(image))


@pytest.mark.parametrize(
    ("image", "part"),
    [
        (
            sitk.GetImageFromArray(np.zeros((2, 4, 5, 6), np.float32), isVector=False),
            "has 4 dimensions (6 x 5 x 4 x 2)",
        ),
        (sitk.GetImageFromArray(np.zeros((5, 6), np.float32)), "is a 2-D image (6 x 5)"),
        (sitk.GetImageFromArray(np.zeros((1, 5, 6), np.float32)), "is a 2-D image (6 x 5 x 1)"),
        (sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.float32), isVector=True), "3 values per voxel"),
    ],
    ids=["4-D", "2-D", "one slice", "vectors"],
)
def test_what_is_not_one_volume_is_refused(image, part, tmp_path):
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    refused(read_volume, tmp_path / "a.nii.gz", part)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_nrrd_and_metaimage_of_four_dimensions_are_refused(suffix, tmp_path):
    image = sitk.GetImageFromArray(np.zeros((2, 4, 5, 6), np.float32), isVector=False)
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
    refused(read_volume, tmp_path / f"a{suffix}", "has 4 dimensions (6 x 5 x 4 x 2)")


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("compressed", [False, True])
def test_truncated_nrrd_and_metaimage_are_refused(suffix, compressed, tmp_path, capfd):
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(volume(), str(path), compressed)
    path.write_bytes(path.read_bytes()[:-20])
    refused(read_volume, path)
    path.write_bytes(b"junk" * 50)
    refused(read_volume, path, "damaged")
    assert capfd.readouterr() == ("", "")


NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: 2 2 2\nendian: little\nencoding: raw\n"
META = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_SHORT\n"
META_DATA = "ElementDataFile = LOCAL\n"
TEXT_HEADERS = {
    "NRRD without voxel size": ("a.nrrd", f"{NRRD}\n", "no valid voxel size"),
    "NRRD without orientation": ("a.nrrd", f"{NRRD}spacings: 1 2 3\n\n", "states no orientation"),
    "MetaImage without voxel size": ("a.mha", META + META_DATA, "no valid voxel size"),
    "MetaImage without orientation": ("a.mha", f"{META}ElementSpacing = 1 2 3\n{META_DATA}", "states no orientation"),
    "MetaImage with sheared axes": (
        "a.mha",
        f"{META}TransformMatrix = 1 0 0 0.5 1 0 0 0 1\nElementSpacing = 1 2 3\n{META_DATA}",
        "not perpendicular",
    ),
    "MetaImage with words for numbers": ("a.mha", f"{META}ElementSpacing = a b c\n{META_DATA}", "in place of numbers"),
}


@pytest.mark.parametrize("case", TEXT_HEADERS)
def test_nrrd_and_metaimage_without_geometry_are_refused(case, tmp_path):
    name, header, part = TEXT_HEADERS[case]
    (tmp_path / name).write_bytes(header.encode() + bytes(16))
    refused(read_volume, tmp_path / name, part)


def test_files_that_are_missing_or_of_another_kind_are_refused(tmp_path):
    refused(read_volume, tmp_path / "a.nii", "does not exist")
    refused(read_volume, tmp_path / "a.png", "use .nii, .nii.gz, .nrrd, .mha or a folder")
    refused(read_volume, tmp_path / "a.dcm", "one DICOM file; give the folder")
    refused(read_volume, tmp_path, "contains no DICOM series")
    refused(lambda path: read_volume(path, series="1.2"), nifti(tmp_path / "b.nii"), "series 1.2 is given")
    (tmp_path / "a.nii").write_bytes(b"\xff\xd8" + b"x" * 1000)
    refused(read_volume, tmp_path / "a.nii", "is not a NIfTI-1 file")


@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_that_are_not_finite_are_refused(suffix, dtype, tmp_path):
    array = np.zeros((3, 4, 5), dtype)
    array[0, 0, 0], array[2, 3, 4] = np.nan, np.inf
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / f"a{suffix}"))
    refused(read_volume, tmp_path / f"a{suffix}", "contains 2 values that are NaN or infinite")


def test_an_orientation_can_be_assumed_where_the_file_states_none(tmp_path):
    path = nifti(tmp_path / "a.nii", (252, "<2h", (0, 0)))
    right, anterior = read_volume(path, assume_orientation="RAS"), read_volume(path, assume_orientation="ASL")
    assert np.reshape(right.GetDirection(), (3, 3)).tolist() == [[-1, 0, 0], [0, -1, 0], [0, 0, 1]]
    assert np.reshape(anterior.GetDirection(), (3, 3)).T.tolist() == [[0, -1, 0], [0, 0, 1], [1, 0, 0]]
    assert np.array_equal(values_of(canonical(right)), values_of(volume())[:, ::-1, ::-1])
    stated = nifti(tmp_path / "b.nii")
    assert read_volume(stated, assume_orientation="RAS").GetDirection() == read_volume(stated).GetDirection()
    for letters in ("RA", "RLS", "XYZ"):
        with pytest.raises(InputError, match="is invalid; give one of L/R, A/P and S/I each"):
            read_volume(path, assume_orientation=letters)


def test_importing_the_modules_does_not_import_simpleitk():
    code = "import sys, kmura.segmentation.volumes, kmura.segmentation.sides; assert 'SimpleITK' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_simpleitk_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(InputError, match=r"run pip install '.\[ct\]' in a clone"):
        simpleitk()


# labels ---------------------------------------------------------------------------------------------------------------


def labels_file(path, array):
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    return path


def test_label_maps_become_uint8_whatever_their_type(tmp_path):
    array = np.arange(24).reshape(2, 3, 4) % 3
    for dtype in (np.uint8, np.int32, np.float32, np.float64):
        labels = read_labels(labels_file(tmp_path / "a.nii.gz", array.astype(dtype)), ("a", "b"))
        assert labels.GetPixelID() == sitk.sitkUInt8
        assert np.array_equal(values_of(labels), array)


@pytest.mark.parametrize(
    ("array", "part"),
    [
        (np.full((2, 3, 4), 0.5, np.float32), "labels that are not whole numbers"),
        (np.full((2, 3, 4), np.nan, np.float32), "contains 24 values that are NaN or infinite"),
        (np.full((2, 3, 4), 3, np.uint8), "contains the label 3; the 2 classes are numbered 1 to 2"),
        (np.full((2, 3, 4), -1, np.int16), "contains the label -1"),
        (np.full((2, 3, 4), 257, np.int16), "contains the label 257"),
        (np.zeros((2, 3, 4), np.uint8), "contains no label"),
        (np.ones((2, 2, 3, 4), np.uint8), "has 4 dimensions"),
    ],
)
def test_label_maps_that_do_not_fit_the_classes_are_refused(array, part, tmp_path):
    path = tmp_path / "a.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=False), str(path))
    refused(lambda file: read_labels(file, ("a", "b")), path, part)


def test_a_folder_is_no_label_map(tmp_path):
    refused(lambda file: read_labels(file, ("a",)), tmp_path, "is a folder")


# DICOM series ---------------------------------------------------------------------------------------------------------

SLICES = np.random.default_rng(0).integers(-1000, 1000, (6, 7, 8))
STRAIGHT = [(-10, 20, 3 * number) for number in range(6)]


def test_a_series_is_ordered_by_position_and_rescaled(tmp_path):
    write_ct_series(tmp_path, SLICES[::-1], STRAIGHT[::-1])
    image = read_volume(tmp_path)
    assert image.GetPixelID() == sitk.sitkInt16
    assert np.array_equal(values_of(image), SLICES)
    assert image.GetSpacing() == pytest.approx((3, 2, 3))
    assert image.GetOrigin() == pytest.approx((-10, 20, 0))
    assert image.GetDirection() == pytest.approx(UPRIGHT)


def test_a_fractional_slope_is_applied(tmp_path):
    write_ct_series(tmp_path, SLICES / 2, STRAIGHT, slope=0.5)
    assert np.array_equal(values_of(read_volume(tmp_path)), SLICES / 2)


def test_one_of_several_series_is_chosen_by_its_uid(tmp_path):
    first = write_ct_series(tmp_path, SLICES, STRAIGHT)
    second = write_ct_series(tmp_path, SLICES[:4] + 1, STRAIGHT[:4], first=50)
    refused(read_volume, tmp_path, "contains 2 series", f"{first} (6 slices)", f"{second} (4 slices)")
    refused(lambda path: read_volume(path, series="1.2"), tmp_path, "no series 1.2", f"{first} (6 slices)")
    assert np.array_equal(values_of(read_volume(tmp_path, series=second)), SLICES[:4] + 1)


def heights(*numbers):
    """Returns positions of slices with these numbers."""
    return [(-10, 20, 3 * number) for number in numbers]


SERIES = {
    "a missing slice": ({"positions": heights(0, 1, 2, 4, 5, 6)}, "1 slice is missing between 002.dcm and 003.dcm"),
    "missing slices": ({"positions": heights(0, 3, 4, 5, 6, 7)}, "2 slices are missing between 000.dcm and 001.dcm"),
    "uneven spacing": ({"positions": heights(0, 1, 2, 3, 4, 16 / 3)}, "005.dcm are 4.000 mm apart, others 3.000 mm"),
    "the same position": ({"positions": heights(0, 1, 2, 2, 3, 4)}, "002.dcm and 003.dcm are at the same position"),
    "a shifted slice": ({"positions": [*STRAIGHT[:3], (-10, 25, 9), *STRAIGHT[4:]]}, "003.dcm is shifted against"),
    "no position": ({"ImagePositionPatient": None}, "000.dcm states no valid position"),
    "no pixel spacing": ({"PixelSpacing": None}, "000.dcm states no valid voxel size"),
    "pixel spacing 0": ({"PixelSpacing": [0, 1]}, "000.dcm states no valid voxel size"),
    "no orientation": ({"ImageOrientationPatient": None}, "000.dcm states no valid orientation"),
    "sheared rows": ({"orientation": (1, 0, 0, 0.6, 0.8, 0)}, "000.dcm states directions that are not perpendicular"),
}


@pytest.mark.parametrize("case", SERIES)
def test_an_incomplete_series_is_refused(case, tmp_path):
    options, part = SERIES[case]
    write_ct_series(tmp_path, SLICES, **{"positions": STRAIGHT} | options)
    refused(read_volume, tmp_path, part)


def test_a_series_with_a_localizer_or_slices_of_other_sizes_is_refused(tmp_path):
    series = write_ct_series(tmp_path / "a", SLICES, STRAIGHT)
    write_ct_series(tmp_path / "a", SLICES[:1], [(0, 0, 50)], (1, 0, 0, 0, 0, -1), series=series, first=50)
    refused(read_volume, tmp_path / "a", "have different directions; remove the localizer")
    series = write_ct_series(tmp_path / "b", SLICES, STRAIGHT)
    write_ct_series(tmp_path / "b", SLICES[:1, :4], [(-10, 20, 18)], series=series, first=50)
    refused(read_volume, tmp_path / "b", "have different sizes")
    write_ct_series(tmp_path / "c", SLICES[:1], STRAIGHT[:1])
    refused(read_volume, tmp_path / "c", "a series of one slice")


@pytest.mark.parametrize("angle", [-22, 22])
@pytest.mark.parametrize("along", ["the table", "the slice"])
def test_slices_of_a_tilted_gantry_come_to_the_places_they_had_in_the_patient(angle, along, tmp_path, capfd):
    # the values are a linear function of the position, which linear interpolation reproduces
    tilt = np.deg2rad(angle)
    if along == "the table":  # as scanners write it: the planes are tilted, the table moves along z
        rows, step = np.array([0, np.cos(tilt), -np.sin(tilt)]), np.array([0, 0, 3.0])
    else:
        rows, step = np.array([0, 1.0, 0]), np.array([0, -3 * np.tan(tilt), 3.0])
    y, x = np.mgrid[:20, :8]
    places = [(-10, 20, -7) + number * step for number in range(6)]
    points = np.stack([place + 3 * x[..., None] * (1, 0, 0) + 2 * y[..., None] * rows for place in places])

    def value(position):
        return position @ (1.5, 7.0, -4.0) + 100

    write_ct_series(tmp_path, value(points).round(), places, (1, 0, 0, *rows), GantryDetectorTilt=angle)
    image = read_volume(tmp_path)
    assert capfd.readouterr() == ("", "")  # no warnings of libraries
    measured, positions = values_of(image), world(image)
    inside = measured > -1000  # the sheared grid has corners without data
    assert inside.any(axis=2).sum(axis=1).min() >= 19  # the grid has room for all 20 rows of each slice
    inside = ndimage.binary_erosion(inside, np.ones((1, 3, 1)))  # SimpleITK repeats the border for half a pixel
    assert np.abs(measured - value(positions))[inside].max() < 1.01  # rounded to whole numbers
    directions = np.reshape(image.GetDirection(), (3, 3))
    assert np.allclose(directions.T @ directions, np.eye(3))
    normal = np.cross((1, 0, 0), rows)
    assert image.GetSpacing() == pytest.approx((3, 2, step @ normal))


def test_a_damaged_slice_is_refused(tmp_path):
    write_ct_series(tmp_path, SLICES, STRAIGHT)
    path = tmp_path / "003.dcm"
    path.write_bytes(path.read_bytes()[:-40])
    refused(read_volume, tmp_path)


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
        last = np.take(values, -1, axis=PLANES[plane])
        assert np.all(last & value)
        assert not np.any(np.take(values, 0, axis=PLANES[plane]) & value)


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


# gray values ----------------------------------------------------------------------------------------------------------


def test_a_window_maps_hounsfield_units_to_zero_to_one():
    values = window(np.array([-1000, -124, 3, 130, 3000], np.int16))
    assert values.dtype == np.float32
    assert values == pytest.approx([0, 0, 0.5, 1, 1])
    assert window(np.array([0.0, 20.0]), 0, 80) == pytest.approx([0, 0.25])
    with pytest.raises(InputError, match="window 80 to 80 HU is empty"):
        window(np.zeros(3), 80, 80)


def test_gray_levels_are_one_per_hounsfield_unit_in_narrow_windows():
    units = np.arange(-130, 140)
    assert np.array_equal(to_gray(units), np.clip(units, -124, 130) + 124)
    assert to_gray(np.array([9.4, 9.6]), 0, 80).tolist() == [9, 10]
    wide = to_gray(np.array([-1024, 0, 1000, 3071]), -1024, 3071)
    assert wide.dtype == np.uint8
    assert wide.tolist() == [0, 64, 126, 255]


# writing --------------------------------------------------------------------------------------------------------------


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.nii.gz"
    write_volume(volume(np.int16), path)
    before = path.read_bytes()

    def fails(image, name, *options):
        open(name, "wb").write(before[:40])
        raise RuntimeError("Exception thrown in SimpleITK\n ITK ERROR: X(0x12ab): disk gone.")

    monkeypatch.setattr(sitk, "WriteImage", fails)
    refused(lambda target: write_volume(volume(), target), path, "cannot write", ": disk gone;")
    assert path.read_bytes() == before
    monkeypatch.setattr(sitk, "WriteImage", lambda image, name, *options: open(name, "wb").write(before[:40]))
    refused(lambda target: write_volume(volume(), target), path, "incomplete; free space")
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.nii.gz"]


def test_a_written_file_replaces_the_target_of_a_link_and_keeps_its_permissions(tmp_path):
    target, link = tmp_path / "target.nii", tmp_path / "link.nii"
    write_volume(volume(), target)
    target.chmod(0o640)
    link.symlink_to(target)
    write_volume(volume() + 1, link)
    assert link.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o640
    assert np.array_equal(values_of(read_volume(target)), values_of(volume()) + 1)


def test_targets_that_cannot_be_written_are_refused(tmp_path):
    def write(path):
        write_volume(volume(), path)

    refused(write, tmp_path / "a.png", "has no suffix of a volume")
    (tmp_path / "folder.nii").mkdir()
    refused(write, tmp_path / "folder.nii", "cannot write")
    (tmp_path / "old.nii").touch(0o444)
    refused(write, tmp_path / "old.nii", "read-only")
    (tmp_path / "file").touch()
    refused(write, tmp_path / "file" / "a.nii", "cannot write")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.nii", "old.nii"]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_nothing_but_values_and_geometry_is_written(suffix, tmp_path):
    first = volume()
    first.SetMetaData("ITK_FileNotes", "Jane Doe")
    first.SetMetaData("PatientName", "Jane Doe")
    for name, image in (("a", first), ("b", volume())):
        write_volume(image, tmp_path / f"{name}{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    assert first.GetMetaData("PatientName") == "Jane Doe"
