"""Every image file is decoded to 8-bit pixels or rejected with a reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from picture_files import png, tiff
from PIL import Image

from kmura.records.images import UnreadableImage, decode_image, encode_image, encode_png, image_from_array
from kmura.records.remarks import Remark, remarks_note, remarks_on

RAMP = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (20, 1))


def saved(image: Image.Image, kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes, channels=1) -> np.ndarray:
    return np.asarray(decode_image(data, channels))


def test_gray_png_keeps_every_pixel():
    assert (pixels(saved(Image.fromarray(RAMP))) == RAMP).all()


def test_16_bit_data_is_scaled_by_its_used_bit_depth():
    twelve_bits = RAMP.astype(np.uint16) * 16
    assert (pixels(saved(Image.fromarray(twelve_bits))) == RAMP).all()
    sixteen_bits = RAMP.astype(np.uint16) * 256
    assert (pixels(saved(Image.fromarray(sixteen_bits))) == RAMP).all()


def test_a_float_image_is_stretched_to_the_full_range():
    found = pixels(saved(Image.fromarray(RAMP.astype(np.float32) / 1000 - 3), "TIFF"))
    assert (found == np.round(RAMP * (255 / 252)).astype(np.uint8)).all()


def test_a_palette_image_is_decoded_to_colours_not_indices():
    image = Image.fromarray(RAMP).quantize(256)
    assert np.abs(pixels(saved(image)).astype(int) - RAMP).max() <= 2


def test_transparency_is_composited_on_black():
    rgba = np.dstack([RAMP, RAMP, RAMP, np.where(np.arange(64) < 32, 0, 255) * np.ones((20, 1))]).astype(np.uint8)
    found = pixels(saved(Image.fromarray(rgba, "RGBA")))
    assert (found[:, :32] == 0).all() and (found[:, 32:] == RAMP[:, 32:]).all()


def test_cmyk_images_are_converted_to_rgb():
    image = Image.fromarray(RAMP).convert("RGB").convert("CMYK")
    assert np.abs(pixels(saved(image, "TIFF")).astype(int) - RAMP).max() <= 1


def test_one_bit_images_become_black_and_white():
    found = pixels(saved(Image.fromarray(RAMP > 100)))
    assert set(np.unique(found)) == {0, 255}


def test_an_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated by 90 degrees counterclockwise
    assert pixels(saved(Image.fromarray(RAMP), exif=exif)).shape == RAMP.shape[::-1]


def test_colour_is_preserved_with_three_channels():
    red = np.dstack([RAMP, 0 * RAMP, 0 * RAMP])
    assert (pixels(saved(Image.fromarray(red)), channels=3) == red).all()
    assert pixels(saved(Image.fromarray(red))).ndim == 2


def declares(width: int, height: int) -> bytes:
    """Returns a PNG whose header declares a size that differs from its data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"not an image at all\n" * 10, "not an image file"),
        (saved(Image.fromarray(RAMP))[:-40], "damaged or cut off"),
        (saved(Image.fromarray(RAMP))[:60], "damaged or cut off"),
        (saved(Image.new("L", (1, 1))), "1 x 1 pixels, smaller than 8"),
        (declares(30_000, 30_000), "more than 100,000,000"),
        (declares(12_000, 9_000), "declares 12000 x 9000 pixels, more than 100,000,000"),
        (declares(64, 64), "damaged or cut off"),
        (saved(Image.fromarray(np.full((20, 20), np.nan, np.float32)), "TIFF"), "not finite"),
    ],
)
def test_an_unusable_file_is_rejected_with_a_reason(data, reason):
    with pytest.raises(UnreadableImage, match=reason):
        decode_image(data)


def test_a_flipped_bit_in_a_png_is_detected():
    data = bytearray(saved(Image.fromarray(RAMP)))
    data[len(data) // 2] ^= 4
    with pytest.raises(UnreadableImage, match="damaged"):
        decode_image(bytes(data))


@pytest.mark.parametrize("shape", [(20, 64), (1, 9), (33, 17, 3)])
def test_encoded_png_is_lossless_and_readable_by_pillow_and_tensorflow(shape):
    import tensorflow as tf

    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    data = encode_png(image)
    with Image.open(io.BytesIO(data)) as opened:
        opened.verify()
    assert (np.asarray(Image.open(io.BytesIO(data))) == image).all()
    assert (tf.io.decode_png(data).numpy().reshape(shape) == image).all()


def test_large_images_are_reduced_to_the_longest_side():
    data, height, width = encode_image(Image.new("L", (1000, 500), 77), max_side=512)
    found = np.asarray(Image.open(io.BytesIO(data)))
    assert (height, width) == found.shape == (256, 512)
    assert (found == 77).all()


def test_small_images_are_not_enlarged():
    assert encode_image(Image.new("L", (100, 50)), max_side=512)[1:] == (50, 100)


def test_jpeg_is_close_to_the_original():
    data, *_ = encode_image(Image.fromarray(RAMP), "jpeg", quality=95)
    assert np.abs(pixels(data).astype(int) - RAMP).mean() < 2


def test_arrays_of_another_type_are_rejected():
    with pytest.raises(UnreadableImage, match="float32"):
        image_from_array(RAMP.astype(np.float32))


DEEP = RAMP.astype(np.uint16) * 16  # 12 bits
RGB_DEEP = np.stack([DEEP, DEEP, DEEP], -1)
OPAQUE = np.full_like(DEEP, 65535)


@pytest.mark.parametrize(
    "data",
    [
        png(RGB_DEEP),
        png(np.stack([DEEP, OPAQUE], -1)),
        png(np.dstack([RGB_DEEP, OPAQUE])),
        *(tiff(RGB_DEEP, 2, order=order, deflate=deflate) for order in "<>" for deflate in (False, True)),
        *(tiff(np.dstack([RGB_DEEP, OPAQUE]), 2, order=order, extra=extra) for order in "<>" for extra in (1, 2)),
        b"P6 64 20 65535\n" + RGB_DEEP.astype(">u2").tobytes(),
    ],
)
def test_16_bit_colours_are_scaled_by_their_used_bit_depth_as_gray_is(data):
    assert (pixels(data) == RAMP).all() and (pixels(data, channels=3) == RAMP[..., None]).all()


def test_hidden_pixels_do_not_count_as_used_bits():
    alpha = np.where(np.arange(64) < 32, 0, 65535).astype(np.uint16) * np.ones((20, 1), np.uint16)
    data = png(np.stack([np.where(alpha, DEEP, 65535), alpha], -1))
    assert (pixels(data)[:, 32:] == RAMP[:, 32:]).all() and (pixels(data)[:, :32] == 0).all()


def test_16_bit_colours_in_planes_are_refused_with_a_reason():
    for deflate in (False, True):
        with pytest.raises(UnreadableImage, match="plane by plane; save it with interleaved"):
            decode_image(tiff(RGB_DEEP, 2, planar=True, deflate=deflate))
    assert (pixels(tiff(np.stack([RAMP] * 3, -1), 2, planar=True)) == RAMP).all()


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_a_tiff_whose_zero_is_white_is_inverted(kind, order, deflate):
    values = RAMP if kind == np.uint8 else DEEP.astype(kind)
    white, black = (tiff(values, photometric, order=order, deflate=deflate) for photometric in (0, 1))
    if (kind, order) == (np.uint16, ">"):
        with pytest.raises(UnreadableImage, match="TIFF with pixels that are not supported"):
            decode_image(white)
    else:
        assert (pixels(white) == 255 - pixels(black)).all()


@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_the_byte_order_of_a_compressed_tiff_does_not_change_its_pixels(kind):
    right = pixels(tiff(DEEP.astype(kind), 1))
    assert (pixels(tiff(DEEP.astype(kind), 1, order=">", deflate=True)) == right).all() and right.std() > 50


def test_a_png_with_large_texts_and_profiles_is_read():
    text = np.random.default_rng(0).integers(65, 90, 2_000_000, dtype=np.uint8).tobytes()
    packed = zlib.compress(text)
    for chunk in (
        (b"zTXt", b"Comment\0\0" + packed),
        (b"tEXt", b"Comment\0" + text),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + packed),
        (b"zTXt", b"Raw profile type exif\0\0" + packed),
        (b"iCCP", b"profile\0\0" + packed),
        (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(90_000_000))),
    ):
        assert (pixels(png(RAMP, [chunk])) == RAMP).all() and (pixels(png(RAMP, after=[chunk])) == RAMP).all()


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


XMP = b'<rdf:Description tiff:Orientation="6"/>'


@pytest.mark.parametrize(
    "data",
    [
        saved(Image.fromarray(RAMP), "JPEG", quality=100, exif=exif(6)),
        saved(Image.fromarray(RAMP), "JPEG", quality=100, xmp=XMP),
        saved(Image.fromarray(RAMP), "WEBP", lossless=True, exif=exif(6)),
        saved(Image.fromarray(RAMP), "WEBP", lossless=True, xmp=XMP),
        saved(Image.fromarray(RAMP), "TIFF", tiffinfo={0x0112: 6}),
        saved(Image.fromarray(RAMP), "TIFF", tiffinfo={700: XMP}),
        *(tiff(RAMP, 1, deflate=deflate, orientation=6) for deflate in (False, True)),
        *(tiff(RGB_DEEP, 2, deflate=deflate, orientation=6) for deflate in (False, True)),
        png(RAMP, [(b"eXIf", exif(6)[6:])]),
        png(RAMP, after=[(b"eXIf", exif(6)[6:])]),
        png(RAMP, [(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)]),
        png(RGB_DEEP, [(b"eXIf", exif(6)[6:])]),
        png(DEEP, [(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)]),
    ],
)
def test_the_orientation_is_applied_wherever_it_is_stated(data):
    right = np.rot90(RAMP, -1)
    found = pixels(data).astype(int)
    assert found.shape == right.shape and np.abs(found - right).max() <= 2


def test_a_damaged_orientation_does_not_make_a_picture_unreadable():
    for block in (b"MM\0*\0\0\0\x08\xff\xff", b"garbage", b""):
        assert (pixels(png(RAMP, [(b"eXIf", block)])) == RAMP).all()


def test_pictures_that_show_next_to_nothing_are_remarked_on():
    def remarks(array, channels=1):
        return remarks_on(decode_image(saved(Image.fromarray(array.astype(np.uint8))), channels))

    assert remarks(RAMP) == remarks(np.dstack([RAMP, RAMP, RAMP]), 3) == ()
    assert remarks(0 * RAMP + 7) == ("flat: one gray level",)
    assert remarks(255 * (RAMP > 100)) == ("two gray levels",)
    assert remarks(RAMP // 20) == ("nearly black",) and remarks(255 - RAMP // 20) == ("nearly white",)
    dark = np.where(np.arange(64) < 63, RAMP // 20, RAMP)  # one column of 64 shows something
    assert remarks(dark) == ()


def test_remarks_on_many_pictures_are_one_line():
    remarks = [Remark(f"{number}.png", "nearly black") for number in range(5)] + [Remark("0.png", "odd window")]
    line = remarks_note(remarks, 9)
    assert line.startswith("5 of 9 pictures should be checked") and line.endswith("2.png (nearly black); and 2 more")
    assert "0.png (nearly black, odd window)" in line and remarks_note([], 9) == ""


@pytest.mark.parametrize(("kind", "options"), [("TIFF", {}), ("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})])
def test_the_first_of_several_frames_is_taken_with_a_remark(kind, options):
    frames = [Image.fromarray(RAMP), Image.fromarray(255 - RAMP)]
    image = decode_image(saved(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert np.abs(np.asarray(image).astype(int) - RAMP).max() <= 2
    assert remarks_on(image) == ("the first of 2 frames",)
