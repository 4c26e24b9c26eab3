"""Volumes: reading, errors, gray values, atomic writing."""

import gzip
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from volume_files import refused, values_of, volume, world

from kmura.errors import InputError
from kmura.itk import simpleitk
from kmura.segmentation.volumes import (
    canonical,
    read_labels,
    read_volume,
    same_grid,
    to_gray,
    write_volume,
)

sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


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


# gray values ----------------------------------------------------------------------------------------------------------


def test_gray_levels_are_one_per_hounsfield_unit_in_narrow_windows():
    units = np.arange(-130, 140)
    assert np.array_equal(to_gray(units), np.clip(units, -124, 130) + 124)
    assert to_gray(np.array([9.4, 9.6]), 0, 80).tolist() == [9, 10]
    wide = to_gray(np.array([-1024, 0, 1000, 3071]), -1024, 3071)
    assert wide.dtype == np.uint8
    assert wide.tolist() == [0, 64, 126, 255]
    with pytest.raises(InputError, match="window 80 to 80 HU is empty"):
        to_gray(np.zeros(3), 80, 80)


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
