"""Preprocessing in the exported graph matches that of Pillow and the records."""

import dataclasses
import io
import zlib

import numpy as np
import pytest
import tensorflow as tf
from picture_files import png
from PIL import Image
from scipy.special import expit
from test_images import declares
from test_typed import CALIBRATED

from kmura import metrics
from kmura.evaluation.calibrators import Calibrator
from kmura.records.images import decode_image
from kmura.serving.answers import calibrated, pooled
from kmura.serving.contract import Contract
from kmura.serving.pixels import decoded, model_pixels
from kmura.serving.prepare import prepared

RNG = np.random.default_rng(0)
GRAY = Image.fromarray(RNG.integers(0, 256, (40, 50)).astype(np.uint8))
RGB = Image.fromarray(RNG.integers(0, 256, (40, 50, 3)).astype(np.uint8))
RGBA = Image.fromarray(RNG.integers(0, 256, (40, 50, 4)).astype(np.uint8))


def saved(image: Image.Image, kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def deep(highest: int) -> bytes:
    return saved(Image.fromarray(RNG.integers(0, highest, (40, 50)).astype(np.uint16)))


def turned(orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "a picture", orientation
    return saved(GRAY if kind == "PNG" else RGB, kind, exif=exif)


def deep_colours(highest: int, bands: int, *chunks) -> bytes:
    pixels = RNG.integers(0, highest, (40, 50, bands)).astype(np.uint16)
    if bands in (2, 4):
        pixels[..., -1] = RNG.choice([0, 20_000, 65535], (40, 50))
        pixels[pixels[..., -1] == 0] |= 0xF000  # hidden values above the depth of the visible ones
    return png(pixels, chunks)


def exif_of(orientation: int | None) -> bytes:
    exif = Image.Exif()
    exif[0x010E] = "a picture"
    if orientation:
        exif[0x0112] = orientation
    return exif.tobytes()


def xmp(orientation: int, attribute=True) -> bytes:
    stated = (
        f' tiff:Orientation="{orientation}"' if attribute else f"><tiff:Orientation>{orientation}</tiff:Orientation"
    )
    return f"<x:xmpmeta><rdf:Description{stated}></x:xmpmeta>".encode()


def with_texts(*chunks) -> bytes:
    return png(np.asarray(GRAY), chunks)


def by_imagemagick(orientation: int, packed: bool) -> tuple[bytes, bytes]:
    block = exif_of(orientation)
    text = f"\nexif\n{len(block):8}\n".encode() + block.hex().encode() + b"\n"
    head = b"Raw profile type exif\0"
    return (b"zTXt", head + b"\0" + zlib.compress(text)) if packed else (b"tEXt", head + text)


XMP = b"XML:com.adobe.xmp\0\0\0\0\0"
LARGE_TEXT = RNG.integers(65, 90, 2_000_000, dtype=np.uint8).tobytes()
FILES = {
    "12 bits in 16-bit RGB": deep_colours(4096, 3),
    "16-bit RGB": deep_colours(65536, 3),
    "16-bit RGB of 8 bits": deep_colours(200, 3),
    "16-bit RGB, a transparent colour": deep_colours(2, 3, (b"tRNS", bytes([0, 1] * 3))),
    "12 bits in 16-bit gray and alpha": deep_colours(4096, 2),
    "12 bits in 16-bit RGBA": deep_colours(4096, 4),
    "PNG, orientation in XMP": with_texts((b"iTXt", XMP + xmp(6))),
    "PNG, orientation in an element of XMP": with_texts((b"iTXt", XMP + xmp(8, attribute=False))),
    "PNG, EXIF before XMP": with_texts((b"iTXt", XMP + xmp(6)), (b"eXIf", exif_of(3)[6:])),
    "PNG, EXIF without orientation": with_texts((b"iTXt", XMP + xmp(6)), (b"eXIf", exif_of(None)[6:])),
    "PNG, invalid orientation before XMP": with_texts((b"iTXt", XMP + xmp(6)), (b"eXIf", exif_of(9)[6:])),
    "PNG, EXIF in a text": with_texts(by_imagemagick(6, packed=False)),
    "PNG, EXIF in a compressed text": with_texts(by_imagemagick(7, packed=True)),
    "PNG, EXIF in a damaged text": with_texts((b"tEXt", b"Raw profile type exif\0\nexif\n  4\nxyz\n")),
    "PNG, large text": with_texts((b"zTXt", b"Comment\0\0" + zlib.compress(LARGE_TEXT))),
    "PNG, large compressed XMP": with_texts((b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(LARGE_TEXT))),
    "PNG, large profile": with_texts((b"iCCP", b"large\0\0" + zlib.compress(LARGE_TEXT))),
    "JPEG, orientation in XMP": saved(RGB, "JPEG", xmp=xmp(6)),
    "JPEG, EXIF before XMP": saved(RGB, "JPEG", xmp=xmp(6), exif=exif_of(3)),
    "JPEG, EXIF without orientation": saved(RGB, "JPEG", xmp=xmp(5), exif=exif_of(None)),
    "gray": saved(GRAY),
    "gray, a transparent level": saved(GRAY, transparency=100),
    "gray and alpha": saved(RGBA.convert("LA")),
    "one bit": saved(GRAY.convert("1")),
    "one bit, transparent": saved(GRAY.convert("1"), transparency=1),
    "RGB": saved(RGB),
    "RGB, a transparent colour": saved(RGB, transparency=RGB.getpixel((3, 3))),
    "RGBA": saved(RGBA),
    "palette": saved(RGB.quantize(200)),
    "palette of 4 bits": saved(RGB.quantize(9)),
    "palette, transparent": saved(RGB.quantize(9), transparency=3),
    "8 bits in 16": deep(200),
    "12 bits in 16": deep(4000),
    "16 bits": deep(65536),
    "JPEG, gray": saved(GRAY, "JPEG"),
    "JPEG": saved(RGB, "JPEG", quality=90),
    "JPEG, progressive": saved(RGB, "JPEG", progressive=True, subsampling=0),
    "JPEG, CMYK": saved(RGB.convert("CMYK"), "JPEG"),
    **{f"{kind}, orientation {number}": turned(number, kind) for kind in ("PNG", "JPEG") for number in range(1, 10)},
}


@pytest.fixture(scope="module")
def decoders():
    spec = [tf.TensorSpec([], tf.string)]

    def decoder(channels):
        return tf.function(lambda data: decoded(data, tf.constant(5), channels), input_signature=spec, autograph=False)

    return {channels: decoder(channels) for channels in (1, 3)}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", FILES)
def test_every_file_type_is_decoded_bit_identically(decoders, name, channels):
    right = np.asarray(decode_image(FILES[name], channels))
    found = decoders[channels](FILES[name]).numpy()
    assert (found == right.reshape(*right.shape[:2], channels)).all()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"not an image", "neither a PNG nor a JPEG"),
        (b"not an image at all\n" * 10, "neither a PNG nor a JPEG"),
        (saved(GRAY, "GIF"), "neither a PNG nor a JPEG"),
        (saved(GRAY, "BMP"), "neither a PNG nor a JPEG"),
        (declares(20_000, 20_000), "declares more than 100,000,000 pixels"),
        (declares(0xFFFFFFFF, 0xFFFFFFFF), "declares more than 100,000,000 pixels"),
        (saved(Image.new("L", (200, 7))), "smaller than 8 pixels"),
        (saved(GRAY)[:-40], "Invalid PNG"),
        (saved(GRAY)[:60], "Invalid PNG"),
        (saved(RGB, "JPEG")[:300], "JPEG"),
        (saved(RGB, "JPEG")[:-200], "JPEG"),
    ],
)
def test_data_that_is_not_an_image_is_an_invalid_argument(decoders, data, reason):
    with pytest.raises(tf.errors.InvalidArgumentError, match=reason):
        decoders[1](data)
    assert decoders[1](FILES["gray"]).shape == (40, 50, 1)


def smooth(width: int, height: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (9, 9)).astype(np.uint8)).resize((width, height), Image.BICUBIC)


@pytest.mark.parametrize("how", ["squash", "pad"])
def test_images_of_any_size_are_preprocessed_bit_identically(how):
    contract = Contract(("normal", "abnormal"), image_size=48, resize=how, channels=1, max_side=64)
    sizes = [(48, 48), (64, 20), (100, 64), (65, 64), (60, 200), (500, 300), (900, 40), (30, 9), (400, 1111)]
    files = [saved(smooth(*size)) for size in sizes]
    right = np.stack([prepared(data, contract) for data in files]).astype(int)
    graph = tf.function(
        lambda data: model_pixels(data, size=48, how=how, max_side=64, channels=1),
        input_signature=[tf.TensorSpec([None], tf.string)],
        autograph=False,
    )
    found = graph(tf.constant(files)).numpy()
    assert found.dtype == np.float32 and found.shape == (len(files), 48, 48, 1)
    assert (found == right).all() and right.std() > 10
    assert graph(tf.constant([], tf.string)).shape == (0, 48, 48, 1)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"counted from 0, is\] \[1\]"):
        graph(tf.constant([files[0], b""]))


def test_resizing_with_taps_computed_in_the_graph_is_bit_identical():
    from kmura.data.resize import axis_weights, resized, taps_needed

    image = tf.constant(RNG.integers(0, 256, (310, 170, 1)).astype(np.uint8))
    sides = np.array([[310, 170]])
    spec = [tf.TensorSpec([None, None, 1], tf.uint8)]

    @tf.function(input_signature=spec, autograph=False)
    def dynamic(image):
        places, weights = axis_weights(tf.shape(image, tf.int64)[None, :2], 64, "pad")
        return resized(image, places[0], weights[0])

    places, weights = axis_weights(tf.constant(sides), 64, "pad", taps_needed(sides, 64, "pad"))
    assert (dynamic(image).numpy() == resized(image, places[0], weights[0]).numpy()).all()


@pytest.mark.parametrize(
    "calibrator",
    [
        None,
        Calibrator("platt", 0.3, -1.5),
        Calibrator("temperature", 2.5),
        Calibrator("temperature", 1000.0),
        Calibrator("platt", 0.3, -1.5, limits=(-2.0, 1e6)),
        Calibrator("isotonic", knots=((-1.0, 0.1), (0.0, 0.1), (0.5, 0.7), (2.0, 0.9))),
        Calibrator("isotonic", knots=((0.3, 0.4),)),
    ],
)
def test_calibration_in_the_graph_matches_the_evaluation(calibrator):
    logit = np.r_[-1.0, 0.0, 0.5, 2.0, -3000.0, 3000.0, RNG.normal(0, 3, 50)]
    right = calibrator(logit) if calibrator else expit(logit)
    assert calibrated(calibrator, tf.constant(logit)).numpy() == pytest.approx(right, abs=1e-12)


@pytest.mark.parametrize("how", metrics.POOLINGS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_pooling_in_the_graph_matches_the_evaluation(how, count):
    probability = RNG.random(count)
    right = metrics.pool_studies(["one"] * count, probability, how, k=3).value[0]
    assert pooled(tf.constant(probability), how, 3).numpy() == pytest.approx(right, abs=1e-12)


def test_large_logits_are_calibrated_as_in_the_evaluation():
    logit = np.array([-900.0, 300.0, 40.0, -2000.0])
    calibrator = Calibrator("temperature", 1000.0)
    contract = dataclasses.replace(CALIBRATED, calibrator=calibrator, calibrated_at="image", pooling="mean")
    studies = contract.study_probabilities(np.arange(4), logit)
    assert studies.value == pytest.approx(expit(logit / 1000))
