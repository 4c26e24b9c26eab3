"""Input files of predictions, their names, and decoding of DICOM."""

import io
import os

import numpy as np
import pytest
from command import kmura_main
from conftest import textured
from dicom_files import RAMP, dicom, lut
from PIL import Image

from kmura.errors import InputError
from kmura.prediction.sources import list_images, map_files
from kmura.records.dicom import decode_dicom, is_dicom
from kmura.records.image_files import Tally
from kmura.records.images import UnreadableImage
from kmura.records.remarks import remarks_on


def names(images):
    return [image.name for image in images]


@pytest.fixture
def tree(tmp_path):
    for study in ("XR_HAND/patient00001/study1_positive", "XR_WRIST/patient00001/study1_positive"):
        (tmp_path / "MURA-v1.1" / "valid" / study).mkdir(parents=True)
        for view in (1, 2):
            textured(view).save(tmp_path / "MURA-v1.1" / "valid" / study / f"image{view}.png")
    return tmp_path / "MURA-v1.1"


def test_a_folder_is_searched_recursively_and_other_files_are_ignored(tree):
    (tree / "valid" / "._image1.png").write_bytes(b"")
    (tree / "valid" / ".hidden").mkdir()
    textured(0).save(tree / "valid" / ".hidden" / "a.png")
    (tree / "notes.txt").write_text("")
    (tree / "IM0001").write_bytes(bytes(128) + b"DICM")
    (tree / "README").write_text("no image")
    found = list_images([tree])
    assert len(found) == 5 and str(tree / "IM0001") in names(found)
    assert found[-1].study == "XR_WRIST/patient00001/study1_positive"
    assert [image.study for image in found].count("XR_HAND/patient00001/study1_positive") == 2


def test_images_can_be_grouped_by_folder_or_not_at_all(tree):
    assert {image.study for image in list_images([tree], "none")} == {""}
    studies = {image.study for image in list_images([tree], "folder")}
    assert studies == {str(path.parent) for path in tree.rglob("image1.png")}
    with pytest.raises(InputError, match="group 'study' is unknown; choose one of auto, folder, none"):
        list_images([tree], "study")


def test_studies_of_the_same_name_in_two_trees_are_distinguished(tree, tmp_path):
    import shutil

    shutil.copytree(tree, tmp_path / "copy")
    assert len({image.study for image in list_images([tree, tmp_path / "copy"])}) == 4


def test_duplicate_files_are_predicted_once(tree, monkeypatch):
    image = next(tree.rglob("image1.png"))
    monkeypatch.chdir(image.parent)
    assert len(list_images([image, "image1.png", image.parent])) == 2


def test_a_csv_lists_images_and_studies(tree):
    (tree / "a.csv").write_text("label,Image,study\n1,valid/x.png,A\n0,valid\\y.png,\n,,\n", encoding="utf-8-sig")
    found = list_images([tree / "a.csv"])
    assert [(image.name, image.study) for image in found] == [("valid/x.png", "A"), ("valid/y.png", "")]
    assert found[0].path == tree / "valid" / "x.png"
    assert {image.study for image in list_images([tree / "a.csv"], "none")} == {""}
    (tree / "gaps.csv").write_text("image,study\nvalid/x.png,A\n,B\n")
    tally = Tally()
    assert len(list_images([tree / "gaps.csv"], tally=tally)) == 1
    assert [item.examples for item in tally.passed_over()] == [(f"{tree}/gaps.csv, row 2",)]


def test_the_lists_of_mura_are_supported(tree):
    lines = [f"MURA-v1.1/{path.relative_to(tree).as_posix()}" for path in sorted(tree.rglob("*.png"))]
    (tree / "valid_image_paths.csv").write_text("\n".join(lines))
    found = list_images([tree / "valid_image_paths.csv"])
    assert len(found) == 4 and all(image.path.is_file() for image in found)
    assert found[0].study == "XR_HAND/patient00001/study1_positive"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "lists no images"),
        (b"image\n", "lists no images"),
        (b"path,study\na.png,1\n", "has no column image, but path, study"),
        (b"image\n\xff\xfe\n", "cannot be read"),
    ],
)
def test_a_csv_without_images_is_rejected(tmp_path, text, message):
    (tmp_path / "a.csv").write_bytes(text)
    with pytest.raises(InputError, match=message):
        list_images([tmp_path / "a.csv"])


def test_a_folder_without_images_is_rejected(tmp_path):
    with pytest.raises(InputError, match="contains no image files"):
        list_images([tmp_path])


def test_maps_have_unique_files_and_never_replace_an_image(tmp_path):
    for name in ("one/a.png", "two/a.png", "one/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        textured(0).save(tmp_path / name)
    images = list_images([tmp_path / "one" / "a.png", tmp_path / "two" / "a.png", tmp_path / "one" / "a.jpg"])
    assert [file.name for file in map_files(images, tmp_path / "maps")] == ["a.png", "a-2.png", "a.jpg.png"]
    with pytest.raises(InputError, match="would replace the image"):
        map_files(list_images([tmp_path / "one"]), tmp_path / "one")
    (tmp_path / "a.csv").write_text("image\n../../outside.png\n/tmp/absolute.png\n")
    inside = map_files(list_images([tmp_path / "a.csv"]), tmp_path / "maps")
    assert all(file.is_relative_to(tmp_path / "maps") and ".." not in file.parts for file in inside)


def test_file_names_that_are_not_utf8_are_escaped(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.png"
    with open(path, "wb") as file:
        textured(0).save(file, "PNG")
    (image,) = list_images([tmp_path])
    assert image.name.endswith("\\xff.png") and image.path.is_file()
    image.name.encode("utf-8")


def shades(data: bytes, channels=1) -> np.ndarray:
    return np.asarray(decode_dicom(data, channels)).astype(int)


def test_dicom_pixels_are_rescaled_windowed_stretched_and_inverted():
    data = dicom()
    assert is_dicom(data)
    whole = shades(data)
    assert whole.shape == (16, 64) and (whole[0, 0], whole[0, -1]) == (0, 255) and (np.diff(whole[0]) > 0).all()
    assert (shades(dicom(kind="MONOCHROME1")) == 255 - whole).all()
    # PS3.3, C.11.2.1.2: full scale from centre - 0.5 - (width - 1) / 2 to centre - 0.5 + (width - 1) / 2
    window = shades(dicom(WindowCenter=1024.5, WindowWidth=1025))
    assert (window[:, :9] == 0).all() and (window[:, 24:] == 255).all() and window[0, 16] in (127, 128)
    assert (shades(dicom(WindowCenter=[1024.5, 5], WindowWidth=[1025, 7])) == window).all()
    rescaled = dicom(RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=1048.5, WindowWidth=2049)
    assert (shades(rescaled) == window).all()
    exact = shades(dicom(WindowCenter=1024, WindowWidth=1024, VOILUTFunction="LINEAR_EXACT"))
    assert np.abs(exact - window).max() <= 1
    sigmoid = shades(dicom(WindowCenter=1024, WindowWidth=1024, VOILUTFunction="SIGMOID"))
    assert sigmoid[0, 16] in (127, 128) and 0 < sigmoid[0, 4] < window[0, 12]


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom_padding_is_black_and_excluded_from_the_value_range(kind):
    padded = np.pad(RAMP, ((0, 0), (3, 2)), constant_values=((0, 0), (60_000, 65_000)))
    found = shades(dicom(padded, kind, PixelPaddingValue=65_000, PixelPaddingRangeLimit=60_000))
    assert (found[:, 3:-2] == shades(dicom(kind=kind))).all()
    assert (found[:, :3] == 0).all() and (found[:, -2:] == 0).all()
    assert (shades(dicom(PixelPaddingValue=64)) == np.where(RAMP == 64, 0, shades(dicom()))).all()
    assert (shades(dicom(np.full_like(RAMP, 7), PixelPaddingValue=7)) == 0).all()


def test_signed_and_colour_dicom_can_be_decoded():
    signed = shades(dicom((RAMP.astype(np.int16) - 2048), WindowCenter=-1023.5, WindowWidth=1025))
    assert (signed == shades(dicom(WindowCenter=1024.5, WindowWidth=1025))).all()
    colour = np.random.default_rng(0).integers(0, 256, (16, 20, 3)).astype(np.uint8)
    assert (shades(dicom(colour, "RGB"), 3) == colour).all() and shades(dicom(colour, "RGB")).shape == (16, 20)


def test_dicom_files_without_a_radiograph_are_rejected_with_a_reason():
    for data, reason in (
        (dicom(np.stack([RAMP, RAMP])), "2 frames"),
        (dicom(Rows=20_000, Columns=20_000), "more than 100,000,000"),
        (dicom()[:-500], "cannot be decoded"),
        (dicom(kind="PALETTE COLOR"), "PALETTE COLOR"),
        (bytes(128) + b"DICM", "without pixels"),
        (b"no DICOM at all", "without pixels|cannot be decoded"),
    ):
        with pytest.raises(UnreadableImage, match=reason):
            decode_dicom(data)


def test_dicom_without_pydicom_states_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(UnreadableImage, match=r"pip install '\.\[dicom\]'"):
        decode_dicom(bytes(128) + b"DICM")


def remarks(**tags) -> tuple[str, ...]:
    return remarks_on(decode_dicom(dicom(**tags)))


@pytest.mark.parametrize(
    ("tags", "remark"),
    [
        ({"WindowCenter": 0, "WindowWidth": 0}, "window of width 0 ignored"),
        ({"WindowCenter": 2048, "WindowWidth": 0}, "window of width 0 ignored"),
        ({"WindowCenter": 2048, "WindowWidth": -4096}, "window of width -4096 ignored"),
        ({"WindowCenter": 2048, "WindowWidth": 0.5}, "window of width 0.5 ignored"),
        ({"WindowCenter": [5, 6], "WindowWidth": [0, -1]}, "window of width 0, -1 ignored"),
        ({"WindowWidth": 4096}, "window of only one number ignored"),
        ({"WindowCenter": 2048, "WindowWidth": None}, "window of only one number ignored"),
        ({"RescaleSlope": 0, "RescaleIntercept": 3}, "rescale slope 0 with intercept 3 ignored"),
    ],
)
def test_a_declaration_that_the_standard_forbids_is_ignored_with_a_remark(tags, remark):
    assert (shades(dicom(**tags)) == shades(dicom())).all() and remarks(**tags) == (remark,)


def test_absent_windows_are_no_odd_declaration_and_the_first_valid_window_is_used():
    assert remarks(WindowCenter=None, WindowWidth=None) == remarks() == ()
    assert (shades(dicom(WindowCenter=None, WindowWidth=None)) == shades(dicom())).all()
    window = shades(dicom(WindowCenter=1024.5, WindowWidth=1025))
    assert (shades(dicom(WindowCenter=[9, 1024.5], WindowWidth=[0, 1025])) == window).all()
    exact = {"VOILUTFunction": "LINEAR_EXACT", "WindowCenter": 90, "WindowWidth": 0.5}  # allowed below 1
    assert (shades(dicom(**exact)) == np.where(RAMP > 90, 255, 0)).all()
    assert remarks(WindowCenter=60_000, WindowWidth=100) == ("flat: one gray level",)


def test_a_voi_table_maps_the_values_and_takes_precedence_over_a_window():
    table = np.arange(4095, -1, -1)
    data = dicom(VOILUTSequence=lut(table, 0, 12), WindowCenter=5, WindowWidth=5)
    assert (shades(data) == np.round(255 * (4095 - RAMP.astype(float)) / 4095)).all()
    darker = dicom(VOILUTSequence=lut(table // 2, 0, 12))  # half of the declared range: as declared
    assert shades(darker).max() == 127
    inverted = shades(dicom(kind="MONOCHROME1", VOILUTSequence=lut(table, 0, 12)))
    assert np.abs(inverted - (255 - shades(data))).max() <= 1


@pytest.mark.parametrize("bits", [16, 10])
def test_a_voi_table_that_misstates_its_depth_is_scaled_by_its_values(bits):
    table = np.arange(4096)
    right = shades(dicom(VOILUTSequence=lut(table, 0, 12)))
    assert (shades(dicom(VOILUTSequence=lut(table, 0, bits))) == right).all()


def test_a_damaged_voi_table_is_ignored_with_a_remark():
    for table in (lut([1, 2, 3], 0, 99), lut([1, 2, 3], 0, 12, entries=4096)):
        data = dicom(VOILUTSequence=table, WindowCenter=1024.5, WindowWidth=1025)
        assert (shades(data) == shades(dicom(WindowCenter=1024.5, WindowWidth=1025))).all()
        assert remarks_on(decode_dicom(data)) == ("damaged VOI table ignored",)


def test_a_voi_table_may_begin_at_a_negative_value_that_is_stored_unsigned():
    signed = RAMP.astype(np.int16) - 2048
    data = dicom(signed, VOILUTSequence=lut(np.arange(4096), 65536 - 2048, 12))
    assert (shades(data) == np.round(255 * RAMP.astype(float) / 4095)).all()


@pytest.mark.parametrize("implicit", [True, False])
def test_a_missing_transfer_syntax_is_the_one_of_the_data(implicit):
    right = shades(dicom())
    assert (shades(dicom(implicit=implicit, syntax=False)) == right).all()
    assert (shades(dicom(implicit=implicit, preamble=False)) == right).all()


def test_dicom_colours_of_12_bits_keep_their_contrast():
    colour = np.random.default_rng(0).integers(0, 4096, (16, 20, 3)).astype(np.uint16)
    assert (shades(dicom(colour, "RGB"), 3) == colour >> 4).all()


def test_bits_above_the_stored_ones_are_no_gray_values():
    overlay = RAMP | np.uint16(0x8000) * (np.arange(64) % 2).astype(np.uint16)
    data = dicom(overlay, BitsStored=12, HighBit=11)
    assert (shades(data) == shades(dicom())).all()


@pytest.mark.parametrize("name", ["JPEGLosslessSV1", "JPEGLSLossless"])
def test_a_compression_without_decoder_says_what_to_install(name, monkeypatch):
    pydicom = pytest.importorskip("pydicom")
    monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.is_available", False)
    syntax = getattr(pydicom.uid, name)
    data = with_syntax(dicom(PixelData=pydicom.encaps.encapsulate([b"\xff\xd8\xff"])), syntax)
    with pytest.raises(UnreadableImage) as error:
        decode_dicom(data)
    assert str(error.value).startswith(f"DICOM compressed as {syntax.name}, which needs a decoder")
    assert str(error.value).endswith("run pip install '.[dicom]' in a clone of kmura")


def with_syntax(data: bytes, syntax: str) -> bytes:
    import pydicom

    dataset = pydicom.dcmread(io.BytesIO(data))
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset["PixelData"].is_undefined_length = True
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_the_message_of_a_failed_decoder_is_whole(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("long " * 100 + "end")

    monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.as_array", fail)
    with pytest.raises(UnreadableImage, match=r"cannot be decoded \((long ){100}end\)$"):
        decode_dicom(dicom())


@pytest.mark.parametrize("name", ["JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless"])
def test_compressed_dicom_is_decoded_with_the_extra(name, tmp_path):
    gdcm = pytest.importorskip("gdcm")
    (tmp_path / "plain.dcm").write_bytes(dicom(SOPInstanceUID="1.2.3"))
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(tmp_path / "plain.dcm"))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, name)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(tmp_path / "packed.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    assert (shades((tmp_path / "packed.dcm").read_bytes()) == shades(dicom())).all()


def test_a_patient_disc_lists_its_images_and_counts_the_rest(tmp_path):
    (tmp_path / "IMAGES").mkdir()
    (tmp_path / "IMAGES" / "IM00001").write_bytes(dicom())
    (tmp_path / "AUTORUN.INF").write_text("[autorun]")
    tally = Tally()
    assert names(list_images([tmp_path], tally=tally)) == [str(tmp_path / "IMAGES" / "IM00001")]
    assert [(item.kind, item.number) for item in tally.passed_over()] == [(".inf files", 1)]


def test_a_folder_without_images_says_what_it_contains(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"contains no image files \(passed over: 1 .txt files \(notes.txt\)\)"):
        list_images([tmp_path])


def test_a_file_that_is_given_twice_is_counted(tree, tmp_path):
    (tmp_path / "link").symlink_to(tree)
    tally = Tally()
    assert len(list_images([tree, tmp_path / "link"], tally=tally)) == 4
    assert [item.number for item in tally.passed_over()] == [4]


def test_a_csv_names_files_in_either_unicode_form(tmp_path):
    textured(0).save(tmp_path / "Bru\u0308che.png")
    (tmp_path / "1.2.840.5.6").write_bytes(dicom())
    (tmp_path / "a.csv").write_text("image,study\nBr\u00fcche.png,Bru\u0308che\n", encoding="utf-8")
    (image,) = list_images([tmp_path / "a.csv"])
    assert image.path.is_file() and image.study == "Br\u00fcche"
    (tmp_path / "b.csv").write_text("1.2.840.5.6\n")  # a list without header, of a file without suffix
    assert [image.path.name for image in list_images([tmp_path / "b.csv"])] == ["1.2.840.5.6"]


def test_maps_of_images_with_long_names_have_shorter_and_different_names(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in ("x" * 251 + ".png", "x" * 251 + ".jpg", "short.png"):
            textured(0).save(tmp_path / folder / name)
    images = list_images([tmp_path / "a", tmp_path / "b"])
    files = map_files(images, tmp_path / "cam")
    assert len(set(files)) == 6 and all(len(file.name) <= 255 for file in files)
    assert sorted(file.name for file in files if "x" not in file.name) == ["short-2.png", "short.png"]


def test_a_list_of_images_in_utf_16_is_read(tmp_path):
    (tmp_path / "list.csv").write_text("image\tstudy\na.png\té\n", encoding="utf-16")
    (image,) = list_images([tmp_path / "list.csv"])
    assert (image.name, image.study) == ("a.png", "é")


def test_boxes_in_another_encoding_are_refused_in_one_line(tmp_path):
    from kmura.explain.boxes.reading import read_boxes

    (tmp_path / "boxes.csv").write_bytes("image,x0,y0,x1,y1\né.png,1,1,2,2\n".encode("latin-1"))
    with pytest.raises(InputError, match="byte 18 is not UTF-8; save it as CSV in UTF-8, or give a CSV of boxes"):
        read_boxes(tmp_path / "boxes.csv")


def test_studies_of_two_patients_with_one_name_stay_apart(tree):
    image = sorted(tree.rglob("*.png"))[:3]
    rows = [f"{path.relative_to(tree)},study1,{patient}" for path, patient in zip(image, ("p1", "p2", ""), strict=True)]
    (tree / "list.csv").write_text("\n".join(["image,study,patient", *rows]))
    assert [item.study for item in list_images([tree / "list.csv"])] == ["p1/study1", "p2/study1", "study1"]


def test_a_csv_with_semicolons_is_read(tree):
    path = sorted(tree.rglob("*.png"))[0].relative_to(tree)
    (tree / "list.csv").write_text(f"image;study\n{path};one, two\n")
    assert [item.study for item in list_images([tree / "list.csv"])] == ["one, two"]


def test_predict_says_which_pictures_show_next_to_nothing(evaluated_run, tmp_path, monkeypatch, capsys):
    _, run = evaluated_run
    textured(1).save(tmp_path / "good.png")
    Image.new("L", (40, 40), 90).save(tmp_path / "flat.png")
    Image.fromarray(np.tile(np.array([0, 255], np.uint8), (40, 20))).save(tmp_path / "two.png")
    code, out, err = kmura_main(monkeypatch, capsys, "predict", run, tmp_path, "--format", "csv")
    assert code == 0 and out.count("\n") == 4
    (note,) = [line for line in err.splitlines() if "should be checked" in line]
    assert note.startswith("note: 2 of 3 pictures should be checked: ")
    assert "flat.png (flat: one gray level)" in note and "two.png (two gray levels" in note and "good.png" not in note
