"""Headers of PNG and JPEG files, parsed by TensorFlow operations: size, type and orientation.

All functions take `data`, a scalar string of at least SHORTEST bytes, and work inside a graph. With them, the exported
graph rejects excessive image sizes before decoding and applies the EXIF orientation as Pillow does.
"""

import tensorflow as tf

SHORTEST = 33  # bytes: signature and header chunk of a PNG; every JPEG image is longer
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_MOST_EXIF = 1 << 16  # bytes that are parsed
_ORIENTATION = 0x0112


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


def png_extras(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns whether a PNG defines a transparent colour (chunk tRNS), bool [], and its EXIF block or "", string []."""
    size = tf.cast(tf.strings.length(data), tf.int64)

    def step(at, transparent, exif):
        head = _numbers(tf.strings.substr(data, at, 4))
        kind, length = tf.strings.substr(data, at + 4, 4), _big_endian(head, 0, 4)
        first = tf.minimum(at + 8, size - 1)
        block = tf.cond(
            kind == b"eXIf", lambda: tf.strings.substr(data, first, tf.minimum(length, _MOST_EXIF)), lambda: exif
        )
        return at + 12 + length, transparent | (kind == b"tRNS"), block

    start = (tf.constant(8, tf.int64), tf.constant(False), tf.constant(b""))
    _, transparent, exif = tf.while_loop(lambda at, *_: at + 12 <= size, step, start)
    return transparent, exif


def jpeg_exif(data: tf.Tensor) -> tf.Tensor:
    """Returns the EXIF block of a JPEG, string []; empty if there is none."""
    size = tf.cast(tf.strings.length(data), tf.int64)

    def step(at, _, __):
        head = _numbers(tf.strings.substr(data, at, 4))
        length = _big_endian(head, 2, 2)
        is_exif = (head[1] == 0xE1) & (tf.strings.substr(data, at + 4, 6) == b"Exif\0\0")
        exif = tf.cond(is_exif, lambda: tf.strings.substr(data, at + 10, tf.maximum(length - 8, 0)), lambda: b"")
        over = is_exif | (head[0] != 0xFF) | (head[1] == 0xDA)  # scan data follow
        return (
            tf.where(head[1] == 0xFF, at + 1, at + 2 + length),
            over,
            exif,
        )  # a marker may be preceded by fill bytes 0xFF

    start = (tf.constant(2, tf.int64), tf.constant(False), tf.constant(b""))
    _, _, exif = tf.while_loop(lambda at, over, _: ~over & (at + 10 < size), step, start)
    return exif


def orientation(exif: tf.Tensor) -> tf.Tensor:
    """Returns the orientation in the first directory of an EXIF block (TIFF 6.0, section 2), 1 to 8; default 1."""
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
    values = tf.concat([values, tf.constant([1], tf.int64)], 0)[:1]  # the first entry, or upright if there is none
    return tf.where((values[0] >= 1) & (values[0] <= 8), values[0], tf.constant(1, tf.int64))


def upright(image: tf.Tensor, turned: tf.Tensor) -> tf.Tensor:
    """Returns the image [h, w, C] upright.

    Args:
        image: [h, w, C].
        turned: its EXIF orientation, int64 [], 1 to 8.
    """

    def one_of(*values):
        return tf.reduce_any(turned == tf.constant(values, tf.int64))

    image = tf.cond(turned >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    image = tf.cond(one_of(2, 3, 6, 7), lambda: tf.reverse(image, [1]), lambda: image)
    return tf.cond(one_of(3, 4, 7, 8), lambda: tf.reverse(image, [0]), lambda: image)


def _numbers(data: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.io.decode_raw(data, tf.uint8), tf.int64)


def _big_endian(numbers: tf.Tensor, at: int, length: int) -> tf.Tensor:
    return tf.reduce_sum(numbers[at : at + length] * 256 ** tf.range(length - 1, -1, -1, dtype=tf.int64))
