"""DICOM files that others made: the pixels equal those of independent decoders, or one line says why there are none."""

import importlib.util
import io
import re
from pathlib import Path

import numpy as np
import pytest
from dicom_files import dicom

from kmura.records.decode import decoded
from kmura.records.dicom import decode_dicom
from kmura.records.images import UnreadableImage

pydicom = pytest.importorskip("pydicom")
# every line that may stand in place of a picture
REASONS = (
    r"DICOM without pixels",
    r"DICOM without the tags of an image, or damaged",
    r"DICOM without Rows and Columns, the size of the image",
    r"DICOM of PALETTE COLOR; only MONOCHROME1, MONOCHROME2, RGB and YBR are supported",
    r"DICOM whose number of frames is not a number",
    r"DICOM (compressed as RLE Lossless )?that cannot be decoded \(holds values from 0 to \d+, outside 16 bits\)",
    r"DICOM that cannot be decoded \(The number of bytes of pixel data is less than expected .*",
    r"DICOM compressed as JPEG 2000 Image Compression that cannot be decoded \(.*",
    r"3 x 3 pixels, smaller than 8 on a side",
    r"not an image file",
)


def shipped(name: str) -> Path:
    return Path(pydicom.data.get_testdata_file(name, download=False))


@pytest.mark.slow
def test_every_file_of_pydicom_becomes_the_right_pixels_or_a_reason():
    pytest.importorskip("SimpleITK")
    pytest.importorskip("gdcm")
    script = Path(__file__).parents[1] / "benchmarks" / "dicom_decoding.py"
    spec = importlib.util.spec_from_file_location("dicom_decoding", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows = module.rows()
    assert len(rows) >= 190
    for row in rows:
        if row.answer == "image":
            assert row.difference is not None and row.difference <= 0.501 and not row.disagree, row
        else:
            assert any(re.fullmatch(reason, row.answer) for reason in REASONS) and "\n" not in row.answer, row
    if importlib.util.find_spec("data_store"):
        images = {row.file for row in rows if row.answer == "image"}
        assert {f"data_store/RG{n}_{form}.dcm" for n in (1, 3) for form in ("UNCR", "UNCI", "J2KR", "J2KI")} <= images
        assert len(images) >= 150


@pytest.mark.parametrize("name", ["examples_jpeg2k.dcm", "GDCMJ2K_TextGBR.dcm", "SC_rgb_jpeg_dcmtk.dcm"])
def test_colours_are_converted_once_whatever_the_compression_does(name):
    sitk = pytest.importorskip("SimpleITK")
    pytest.importorskip("gdcm")
    right = sitk.GetArrayFromImage(sitk.ReadImage(str(shipped(name))))[0]
    assert np.abs(np.asarray(decoded(shipped(name).read_bytes(), 3)).astype(int) - right).max() <= 1


@pytest.mark.parametrize("name", ["JPGExtended.dcm", "JPEG-lossy.dcm"])
def test_lossy_jpeg_of_12_bits_is_decoded(name):
    sitk = pytest.importorskip("SimpleITK")
    pytest.importorskip("gdcm")
    values = sitk.GetArrayFromImage(sitk.ReadImage(str(shipped(name))))[0].astype(float)
    right = np.round(255 * (values - values.min()) / (values.max() - values.min()))
    assert values.max() > 255 and (np.asarray(decode_dicom(shipped(name).read_bytes())) == right).all()


def test_a_damaged_stream_of_12_bits_is_a_reason():
    pytest.importorskip("gdcm")
    dataset = pydicom.dcmread(shipped("JPGExtended.dcm"))
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xc1 no stream"])
    dataset["PixelData"].is_undefined_length = True
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    with pytest.raises(UnreadableImage, match="^DICOM compressed as JPEG Extended .* that cannot be decoded"):
        decode_dicom(buffer.getvalue())


def test_lossy_jpeg_of_12_bits_without_gdcm_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gdcm", None)
    with pytest.raises(UnreadableImage, match=r"JPEG Extended .* needs .*run pip install '\.\[dicom\]' in a clone"):
        decode_dicom(shipped("JPGExtended.dcm").read_bytes())


def test_a_frame_is_decoded_with_a_remark_and_an_absent_one_is_a_reason():
    frames = np.stack([np.full((16, 16), number, np.uint8) + np.eye(16, dtype=np.uint8) for number in range(3)])
    for number in range(3):
        picture = decode_dicom(dicom(frames), frame=number)
        assert (np.asarray(picture) == np.asarray(decode_dicom(dicom(frames[number])))).all()
    with pytest.raises(UnreadableImage, match="DICOM of 3 frames, which has no frame 4"):
        decode_dicom(dicom(frames), frame=3)
    with pytest.raises(UnreadableImage, match="DICOM of 3 frames; save"):
        decode_dicom(dicom(frames))
