"""What the first bytes of a PNG or JPEG say, read by TensorFlow's operations: size, kind and orientation.

All functions take `data`, a scalar string of at least SHORTEST bytes, and work inside a graph. They exist so that an
absurd size is refused before anything is decoded, and a turned photograph is turned back as Pillow does it.
"""

import tensorflow as tf

SHORTEST = 33  # bytes: the signature and the header chunk of a PNG; no JPEG of an image is as short
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_MOST_EXIF = 1 << 16  # bytes looked at
_ORIENTATION = 0x0112


def is_png(data: tf.Tensor) -> tf.Tensor:
    """Whether `data` begins as a PNG with a header chunk, bool."""
    return (tf.strings.substr(data, 0, 8) == _PNG) & (tf.strings.substr(data, 12, 4) == b"IHDR")


def is_jpeg(data: tf.Tensor) -> tf.Tensor:
    """Whether `data` begins as a JPEG, bool."""
    return tf.strings.substr(data, 0, 3) == _JPEG


def declared_size(data: tf.Tensor) -> tf.Tensor:
    """Height and width that the header declares, int64 [2], pixels; nothing is decoded."""

    def of_png():
        head = _numbers(tf.strings.substr(data, 16, 8))
        return tf.stack([_big_endian(head, 4, 4), _big_endian(head, 0, 4)])

    return tf.cond(is_png(data), of_png, lambda: tf.cast(tf.image.extract_jpeg_shape(data)[:2], tf.int64))


def png_depth_and_colour(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Bits a sample and colour type (0 gray, 2 RGB, 3 palette, 4 gray and alpha, 6 RGBA) of a PNG, int64 each."""
    head = _numbers(tf.strings.substr(data, 24, 2))
    return head[0], head[1]


def png_extras(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Whether a PNG names a transparent colour (chunk tRNS), bool, and its Exif block, a string, empty without."""
    size = tf.cast(tf.strings.length(data), tf.int64)

    def step(at, transparent, exif):
        head = _numbers(tf.strings.substr(data, at, 4))
        kind, length = tf.strings.substr(data, at + 4, 4), _big_endian(head, 0, 4)
        first = tf.minimum(at + 8, size - 1)
        found = tf.cond(
            kind == b"eXIf", lambda: tf.strings.substr(data, first, tf.minimum(length, _MOST_EXIF)), lambda: exif
        )
        return at + 12 + length, transparent | (kind == b"tRNS"), found

    start = (tf.constant(8, tf.int64), tf.constant(False), tf.constant(b""))
    _, transparent, exif = tf.while_loop(lambda at, *_: at + 12 <= size, step, start)
    return transparent, exif


def jpeg_exif(data: tf.Tensor) -> tf.Tensor:
    """The Exif block of a JPEG, a string, empty without."""
    size = tf.cast(tf.strings.length(data), tf.int64)

    def step(at, _, __):
        head = _numbers(tf.strings.substr(data, at, 4))
        length = _big_endian(head, 2, 2)
        here = (head[1] == 0xE1) & (tf.strings.substr(data, at + 4, 6) == b"Exif\0\0")
        exif = tf.cond(here, lambda: tf.strings.substr(data, at + 10, tf.maximum(length - 8, 0)), lambda: b"")
        over = here | (head[0] != 0xFF) | (head[1] == 0xDA)  # the scan's data follow
        return tf.where(head[1] == 0xFF, at + 1, at + 2 + length), over, exif  # a marker may have more 0xFF before it

    start = (tf.constant(2, tf.int64), tf.constant(False), tf.constant(b""))
    _, _, exif = tf.while_loop(lambda at, over, _: ~over & (at + 10 < size), step, start)
    return exif


def orientation(exif: tf.Tensor) -> tf.Tensor:
    """The orientation 1 to 8 that an Exif block (TIFF 6.0, section 2) names in its first directory, int64; else 1."""
    block = tf.cond(
        tf.strings.length(exif) > 14, lambda: tf.strings.substr(exif, 0, _MOST_EXIF), lambda: tf.constant(b"\0" * 14)
    )
    numbers = _numbers(block)
    last = tf.shape(numbers, tf.int64)[0] - 1
    little = numbers[0] == ord("I")

    def number(at, length):
        """Numbers of `length` bytes at the places `at` [N]; places beyond the end read what stands there."""
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
    values = tf.concat([values, tf.constant([1], tf.int64)], 0)[:1]  # the first, or upright
    return tf.where((values[0] >= 1) & (values[0] <= 8), values[0], tf.constant(1, tf.int64))


def upright(image: tf.Tensor, turned: tf.Tensor) -> tf.Tensor:
    """The image [h, w, C] as it is meant to be seen, by its Exif orientation 1 to 8."""

    def one_of(*values):
        return tf.reduce_any(turned == tf.constant(values, tf.int64))

    image = tf.cond(turned >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    image = tf.cond(one_of(2, 3, 6, 7), lambda: tf.reverse(image, [1]), lambda: image)
    return tf.cond(one_of(3, 4, 7, 8), lambda: tf.reverse(image, [0]), lambda: image)


def _numbers(data: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.io.decode_raw(data, tf.uint8), tf.int64)


def _big_endian(numbers: tf.Tensor, at: int, length: int) -> tf.Tensor:
    return tf.reduce_sum(numbers[at : at + length] * 256 ** tf.range(length - 1, -1, -1, dtype=tf.int64))
