"""Headers of PNG and JPEG files, parsed by TensorFlow operations: size, type and orientation.

All functions take `data`, a scalar string of at least SHORTEST bytes, and work inside a graph. With them, the exported
graph rejects excessive image sizes before decoding and applies the orientation wherever Pillow looks for it.
"""

from typing import NamedTuple

import tensorflow as tf

from kmura.records.png_chunks import EXIF_TEXT, MOST_COMPRESSED, MOST_TEXT, XMP

SHORTEST = 33  # bytes: signature and header chunk of a PNG; every JPEG image is longer
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_MOST_EXIF = 1 << 16  # bytes that are parsed
_ORIENTATION = 0x0112
_XMP_OF_JPEG = b"http://ns.adobe.com/xap/1.0/\0"


class PngExtras(NamedTuple):
    """What a PNG states beside its pixels.

    Attributes:
        transparent: whether it defines a transparent colour (chunk tRNS), bool [].
        exif: its EXIF block or "", string [].
        exif_text: a text chunk with EXIF as ImageMagick writes it, with its kind as prefix, or "", string [].
        xmp: its XMP packet or "", string [].
    """

    transparent: tf.Tensor
    exif: tf.Tensor
    exif_text: tf.Tensor
    xmp: tf.Tensor


def is_png(data: tf.Tensor) -> tf.Tensor:
    """Returns whether `data` begins with a PNG signature and a header chunk, bool []."""
    return (tf.strings.substr(data, 0, 8) == _PNG) & (tf.strings.substr(data, 12, 4) == b"IHDR")


def is_jpeg(data: tf.Tensor) -> tf.Tensor:
    """Returns whether `data` begins with a JPEG marker, bool []."""
    return tf.strings.substr(data, 0, 3) == _JPEG


def declared_size(data: tf.Tensor) -> tf.Tensor:
    """Returns height and width in pixels as declared in the header, int64 [2], without decoding."""

    def of_png():
        head = _numbers(tf.strings.substr(data, 16, 8))
        return tf.stack([_big_endian(head, 4, 4), _big_endian(head, 0, 4)])

    return tf.cond(is_png(data), of_png, lambda: tf.cast(tf.image.extract_jpeg_shape(data)[:2], tf.int64))


def png_depth_and_colour(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns bits per sample and colour type of a PNG, int64 [] each.

    The colour type is 0 (gray), 2 (RGB), 3 (palette), 4 (gray and alpha) or 6 (RGBA).
    """
    head = _numbers(tf.strings.substr(data, 24, 2))
    return head[0], head[1]


def png_extras(data: tf.Tensor) -> PngExtras:
    """Returns what a PNG states beside its pixels; of several equal chunks the last counts, as in Pillow."""
    size = tf.cast(tf.strings.length(data), tf.int64)

    def step(at, extras):
        head = _numbers(tf.strings.substr(data, at, 4))
        kind, length = tf.strings.substr(data, at + 4, 4), _big_endian(head, 0, 4)
        first = tf.minimum(at + 8, size - 1)

        def replaced(condition, most, value):
            return tf.cond(condition, lambda: tf.strings.substr(data, first, tf.minimum(length, most)), lambda: value)

        def starts_with(text):
            return tf.strings.substr(data, first, len(text)) == text

        is_text = (kind == b"tEXt") & (length <= MOST_TEXT) | (kind == b"zTXt") & (length <= MOST_COMPRESSED)
        exif_text = replaced(is_text & starts_with(EXIF_TEXT + b"\0"), MOST_TEXT, extras.exif_text)
        exif_text = tf.where(is_text & starts_with(EXIF_TEXT + b"\0"), kind + exif_text, exif_text)
        is_xmp = (kind == b"iTXt") & (length <= MOST_TEXT) & starts_with(XMP + b"\0\0")  # not compressed
        return at + 12 + length, PngExtras(
            extras.transparent | (kind == b"tRNS"),
            replaced(kind == b"eXIf", _MOST_EXIF, extras.exif),
            exif_text,
            replaced(is_xmp, MOST_TEXT, extras.xmp),
        )

    empty = tf.constant(b"")
    start = (tf.constant(8, tf.int64), PngExtras(tf.constant(False), empty, empty, empty))
    return tf.while_loop(lambda at, _: at + 12 <= size, step, start)[1]


def jpeg_segments(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the EXIF block and the XMP packet of a JPEG, string [] each; empty if there is none."""
    size = tf.cast(tf.strings.length(data), tf.int64)

    def step(at, _, exif, xmp):
        head = _numbers(tf.strings.substr(data, at, 4))
        length = _big_endian(head, 2, 2)

        def is_segment(name):
            return (head[1] == 0xE1) & (tf.strings.substr(data, at + 4, len(name)) == name)

        def body(name):
            return tf.strings.substr(data, at + 4 + len(name), tf.maximum(length - 2 - len(name), 0))

        is_exif = is_segment(b"Exif\0\0") & (exif == b"")
        exif = tf.cond(is_exif, lambda: body(b"Exif\0\0"), lambda: exif)
        xmp = tf.cond(is_segment(_XMP_OF_JPEG), lambda: body(_XMP_OF_JPEG), lambda: xmp)
        over = (head[0] != 0xFF) | (head[1] == 0xDA)  # scan data follow
        return tf.where(head[1] == 0xFF, at + 1, at + 2 + length), over, exif, xmp  # 0xFF may fill before a marker

    empty = tf.constant(b"")
    start = (tf.constant(2, tf.int64), tf.constant(False), empty, empty)
    return tf.while_loop(lambda at, over, *_: ~over & (at + 10 < size), step, start)[2:]


def orientation_of_png(extras: PngExtras) -> tf.Tensor:
    """Returns the orientation of a PNG, int64 []; 1 (upright) by default."""
    exif = tf.cond(extras.exif == b"", lambda: _exif_of_text(extras.exif_text), lambda: extras.exif)
    return _first_stated(orientation(exif), _orientation_in_xmp(extras.xmp))


def orientation_of_jpeg(data: tf.Tensor) -> tf.Tensor:
    """Returns the orientation of a JPEG, int64 []; 1 (upright) by default."""
    exif, xmp = jpeg_segments(data)
    return _first_stated(orientation(exif), _orientation_in_xmp(xmp))


def _first_stated(in_exif: tf.Tensor, in_xmp: tf.Tensor) -> tf.Tensor:
    return tf.where(in_exif >= 0, in_exif, in_xmp)


def _orientation_in_xmp(xmp: tf.Tensor) -> tf.Tensor:
    """Returns the first `tiff:Orientation` of an XMP packet, int64 []; -1 if there is none."""
    pattern = r"(?s).*?tiff:Orientation(?:=\"|>)([0-9]).*"
    stated = tf.strings.regex_full_match(xmp, pattern)
    return tf.cond(
        stated,
        lambda: tf.strings.to_number(tf.strings.regex_replace(xmp, pattern, r"\1"), tf.int64),
        lambda: tf.constant(-1, tf.int64),
    )


def _exif_of_text(text: tf.Tensor) -> tf.Tensor:
    """Returns the EXIF block in a text chunk of ImageMagick: a name, a length, and the block in hexadecimal digits."""

    def block():
        packed = tf.strings.substr(text, 0, 4) == b"zTXt"
        prefix = 4 + len(EXIF_TEXT) + 1
        body = tf.cond(
            packed,
            lambda: tf.io.decode_compressed(tf.strings.substr(text, prefix + 1, MOST_COMPRESSED), "ZLIB"),
            lambda: tf.strings.substr(text, prefix, MOST_TEXT),
        )
        digits = tf.strings.regex_replace(body, r"(?s)^[^\n]*\n[^\n]*\n[^\n]*\n", "")
        digits = tf.strings.regex_replace(digits, r"\s", "")
        is_hexadecimal = tf.strings.regex_full_match(digits, "(?:[0-9a-fA-F]{2})*")
        codes = _numbers(tf.where(is_hexadecimal, digits, ""))
        values = tf.where(codes >= ord("a"), codes - ord("a") + 10, tf.where(codes >= ord("A"), codes - 55, codes - 48))
        pairs = tf.reshape(values, [-1, 2])
        letters = tf.gather(tf.constant([bytes([code]) for code in range(256)]), pairs[:, 0] * 16 + pairs[:, 1])
        exif = tf.strings.reduce_join(letters)
        named = tf.strings.substr(exif, 0, 6) == b"Exif\0\0"
        return tf.cond(named, lambda: tf.strings.substr(exif, 6, MOST_TEXT), lambda: exif)

    return tf.cond(text == b"", lambda: tf.constant(b""), block)


def orientation(exif: tf.Tensor) -> tf.Tensor:
    """Returns the orientation in the first directory of an EXIF block (TIFF 6.0, section 2), int64 [].

    It is -1 if the block states none, and 1 if it states one outside 1 to 8.
    """
    block = tf.cond(
        tf.strings.length(exif) > 14, lambda: tf.strings.substr(exif, 0, _MOST_EXIF), lambda: tf.constant(b"\0" * 14)
    )
    numbers = _numbers(block)
    last = tf.shape(numbers, tf.int64)[0] - 1
    little = numbers[0] == ord("I")

    def number(at, length):
        """Returns unsigned integers of `length` bytes at the offsets `at` [N]; offsets are clipped to the block."""
        places = tf.clip_by_value(at[:, None] + tf.range(length, dtype=tf.int64), 0, last)
        bytes_ = tf.gather(numbers, places)
        bytes_ = tf.cond(little, lambda: bytes_, lambda: tf.reverse(bytes_, [1]))
        return tf.reduce_sum(bytes_ * 256 ** tf.range(length, dtype=tf.int64), axis=1)

    directory = number(tf.constant([4], tf.int64), 4)
    entries = directory + 2 + 12 * tf.range(number(directory, 2)[0])
    entries = tf.boolean_mask(entries, entries + 12 <= last + 1)
    entries = tf.boolean_mask(entries, number(entries, 2) == _ORIENTATION)
    short = number(entries + 2, 2) == 3
    values = tf.where(short, number(entries + 8, 2), number(entries + 8, 4))
    values = tf.concat([values, tf.constant([-1], tf.int64)], 0)[0]  # the first entry, if there is one
    return tf.where((values == -1) | ((values >= 1) & (values <= 8)), values, tf.constant(1, tf.int64))


def upright(image: tf.Tensor, turned: tf.Tensor) -> tf.Tensor:
    """Returns the image [h, w, C] upright.

    Args:
        image: [h, w, C].
        turned: its EXIF orientation, int64 []; values outside 2 to 8 mean upright.
    """

    def one_of(*values):
        return tf.reduce_any(turned == tf.constant(values, tf.int64))

    image = tf.cond(one_of(5, 6, 7, 8), lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    image = tf.cond(one_of(2, 3, 6, 7), lambda: tf.reverse(image, [1]), lambda: image)
    return tf.cond(one_of(3, 4, 7, 8), lambda: tf.reverse(image, [0]), lambda: image)


def _numbers(data: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.io.decode_raw(data, tf.uint8), tf.int64)


def _big_endian(numbers: tf.Tensor, at: int, length: int) -> tf.Tensor:
    return tf.reduce_sum(numbers[at : at + length] * 256 ** tf.range(length - 1, -1, -1, dtype=tf.int64))
