"""Preprocessing of encoded images with TensorFlow operations only, equal to that of records and evaluation.

Decoding, orientation by EXIF and XMP, compositing on black, scaling of 16-bit images, reduction to the longest side of
the records and resizing to the model's size: each step is bit-identical to `kmura.records.images`, which uses Pillow
(see `reduced` for the one exception).
"""

import numpy as np
import tensorflow as tf

from kmura.data.resize import axis_weights, resized
from kmura.records.images import MAX_PIXELS, MIN_SIDE, REDUCING_GAP
from kmura.serving import headers

_LANCZOS = 3.0  # half width of the filter in pixels
_BITS = 22  # fractional bits of the fixed-point weights that Pillow uses for 8-bit images
_AT_A_TIME = 4  # images of a request that are decoded in parallel; limits the memory for large images
_GRAY = (19595, 38470, 7471)  # in units of 1 / 65536: weights of red, green, blue in Pillow's luma (ITU-R 601-2)


def model_pixels(encoded: tf.Tensor, *, size: int, how: str, max_side: int | None, channels: int) -> tf.Tensor:
    """Returns images as model input, float32 [B, S, S, C] in 0..255.

    Supports PNG (1 to 16 bits; gray, RGB, palette, alpha) and JPEG (gray, RGB, CMYK) with at least MIN_SIDE pixels per
    side and at most MAX_PIXELS pixels. The size is checked in the header, before decoding.

    Args:
        encoded: bytes of image files, string [B].
        size: side S of the model input in pixels.
        how: `squash` or `pad`, see `axis_weights`.
        max_side: larger images are first reduced to this many pixels on the longest side, as in the records; None
            omits this step.
        channels: number of channels C, 1 or 3.

    Raises:
        tf.errors.InvalidArgumentError: An image is not supported (raised when the graph runs); the message states the
            reason and the index of the image in the request.
    """

    def one(inputs):
        image = decoded(*inputs, channels)
        if max_side:
            image = reduced(image, max_side)
        places, weights = axis_weights(tf.shape(image, tf.int64)[None, :2], size, how)
        return tf.ensure_shape(resized(image, places[0], weights[0]), [size, size, channels])

    spec = tf.TensorSpec([size, size, channels], tf.uint8)
    inputs = (encoded, tf.range(tf.size(encoded)))
    with tf.device("CPU"):
        return tf.cast(tf.map_fn(one, inputs, fn_output_signature=spec, parallel_iterations=_AT_A_TIME), tf.float32)


def decoded(data: tf.Tensor, number: tf.Tensor, channels: int) -> tf.Tensor:
    """Returns the upright image of one encoded file: uint8 [h, w, C].

    Args:
        data: bytes of the file, string [].
        number: index of the image in its request, int32 [], for error messages.
        channels: number of channels C, 1 or 3.
    """
    data = _demanding(data, tf.strings.length(data) > 0, "empty, not an image", number)
    data = _demanding(data, tf.strings.length(data) >= headers.SHORTEST, "neither a PNG nor a JPEG image", number)
    known = headers.is_png(data) | headers.is_jpeg(data)
    data = _demanding(data, known, "neither a PNG nor a JPEG image", number)
    size = headers.declared_size(data)
    small = (size[0] > 0) & (size[1] > 0) & (size[0] <= MAX_PIXELS // tf.maximum(size[1], 1))
    data = _demanding(data, small, f"declares more than {MAX_PIXELS:,} pixels", number)
    data = _demanding(data, tf.reduce_min(size) >= MIN_SIDE, f"smaller than {MIN_SIDE} pixels on a side", number)
    return tf.cond(headers.is_png(data), lambda: _from_png(data, channels), lambda: _from_jpeg(data, channels))


def _demanding(data: tf.Tensor, condition: tf.Tensor, reason: str, number: tf.Tensor) -> tf.Tensor:
    """Returns the data after asserting the condition, so that dependent operations run only if it holds."""
    text = tf.constant(f"image_bytes: {reason}; its index in the request, counted from 0, is")
    with tf.control_dependencies([tf.debugging.Assert(condition, [text, number])]):
        return tf.identity(data)


def _from_png(data: tf.Tensor, channels: int) -> tf.Tensor:
    depth, colour = headers.png_depth_and_colour(data)
    extras = headers.png_extras(data)

    def deep():
        pixels = tf.cast(tf.io.decode_png(data, 1, tf.uint16), tf.int32)
        return _with_channels(tf.bitwise.right_shift(pixels, _excess_bits(pixels)), channels)

    def deep_colours():
        pixels = tf.cast(tf.io.decode_png(data, 4, tf.uint16), tf.int32)
        colours, alpha = pixels[..., :3], pixels[..., 3:]
        visible = tf.where(alpha > 0, colours, 0)
        colours = tf.minimum(tf.bitwise.right_shift(colours, _excess_bits(visible)), 255)
        return _with_channels(_on_black(tf.concat([colours, tf.bitwise.right_shift(alpha, 8)], -1)), channels)

    def gray():
        return _with_channels(tf.io.decode_png(data, 1), channels)

    def colours():
        return _with_channels(tf.io.decode_png(data, 3), channels)

    def translucent():
        return _with_channels(_on_black(tf.io.decode_png(data, 4)), channels)

    # Pillow also ignores the transparent colour of 1-bit images
    transparent = extras.transparent & ((colour != 0) | (depth > 1))
    has_alpha = transparent | (colour == 4) | (colour == 6)
    image = tf.case(
        [
            ((colour == 0) & (depth == 16), deep),
            (depth == 16, deep_colours),
            (has_alpha, translucent),
            (colour == 0, gray),
        ],
        default=colours,
    )
    return headers.upright(image, headers.orientation_of_png(extras))


def _excess_bits(pixels: tf.Tensor) -> tf.Tensor:
    """Returns by how many bits the depth of 16-bit pixels exceeds 8, int32 []; see `kmura.records.eight_bits`."""
    return tf.reduce_sum(tf.cast(tf.reduce_max(pixels) >= 2 ** tf.range(8, 16), tf.int32))


def _from_jpeg(data: tf.Tensor, channels: int) -> tf.Tensor:
    accurate = {
        "dct_method": "INTEGER_ACCURATE"
    }  # as in Pillow; the default of TensorFlow differs by up to 15 gray levels
    gray = tf.image.extract_jpeg_shape(data)[2] == 1
    image = tf.cond(
        gray,
        lambda: _with_channels(tf.io.decode_jpeg(data, 1, **accurate), channels),
        lambda: _with_channels(tf.io.decode_jpeg(data, 3, **accurate), channels),
    )
    return headers.upright(image, headers.orientation_of_jpeg(data))


def _with_channels(pixels: tf.Tensor, channels: int) -> tf.Tensor:
    """Returns pixels [h, w, 1 or 3] in 0..255 converted to uint8 [h, w, channels]."""
    if pixels.shape[-1] == 3 and channels == 1:
        red, green, blue = tf.unstack(tf.cast(pixels, tf.int32), axis=-1)
        luma = red * _GRAY[0] + green * _GRAY[1] + blue * _GRAY[2] + 0x8000
        pixels = tf.bitwise.right_shift(luma, 16)[..., None]
    elif pixels.shape[-1] == 1 and channels == 3:
        pixels = tf.repeat(pixels, 3, axis=-1)
    return tf.cast(pixels, tf.uint8)


def _on_black(pixels: tf.Tensor) -> tf.Tensor:
    """Returns RGBA uint8 [h, w, 4] composited on black as RGB [h, w, 3], rounded as in Pillow's alpha_composite."""
    pixels = tf.cast(pixels, tf.int32)
    product = (pixels[..., :3] * pixels[..., 3:] + 0x80) * 128
    return tf.bitwise.right_shift(tf.bitwise.right_shift(product, 8) + product, 15)


def reduced(image: tf.Tensor, max_side: int) -> tf.Tensor:
    """Returns the image uint8 [h, w, C] reduced to `max_side` pixels on the longest side, as `records.images.reduced`.

    Equals Pillow's LANCZOS with a reducing gap: if the image shrinks by more than twice the gap, it is first reduced to
    means over blocks of whole pixels. Pillow selects the order of rows and columns by an estimate of the cost; for
    images slightly more than twice as high as wide the order may differ here, and pixels may differ by one gray level.
    """
    sides = tf.shape(image, tf.int64)[:2]
    longest = tf.reduce_max(sides)

    def smaller():
        scale = max_side / tf.cast(longest, tf.float64)
        target = tf.maximum(tf.cast(tf.round(tf.cast(sides, tf.float64) * scale), tf.int64), 1)
        ratio = tf.cast(sides, tf.float64) / tf.cast(target, tf.float64)
        factor = tf.maximum(tf.cast(ratio / REDUCING_GAP, tf.int64), 1)
        blocks = tf.cond(tf.reduce_any(factor > 1), lambda: _block_means(image, factor), lambda: image)
        length = tf.cast(sides, tf.float64) / tf.cast(factor, tf.float64)  # of the image, in blocks
        shape = tf.shape(blocks, tf.int64)
        rows, columns = (_lanczos(length[axis], shape[axis], target[axis]) for axis in (0, 1))
        pixels = tf.cast(blocks, tf.float64)
        low = tf.cond(  # Pillow resizes columns first except for tall images, and rounds in between
            shape[0] > 2 * shape[1],
            lambda: _along(1, columns, _along(0, rows, pixels)),
            lambda: _along(0, rows, _along(1, columns, pixels)),
        )
        return tf.ensure_shape(tf.cast(low, tf.uint8), [None, None, image.shape[-1]])

    return tf.cond(longest > max_side, smaller, lambda: image)


def _along(axis: int, weights: tf.Tensor, pixels: tf.Tensor) -> tf.Tensor:
    """Returns pixels [h, w, C] resampled along axis 0 or 1 with `weights` [new, old], rounded and clipped to 0..255.

    Weights and pixels are integers, so the sums are exact in float64.
    """
    turned = tf.transpose(pixels, [1, 0, 2]) if axis else pixels
    shape = tf.shape(turned)
    sums = tf.matmul(weights, tf.reshape(turned, [shape[0], shape[1] * shape[2]]))
    sums = tf.clip_by_value(tf.floor(sums / 2**_BITS + 0.5), 0, 255)
    result = tf.reshape(sums, [tf.shape(weights)[0], shape[1], shape[2]])
    return tf.transpose(result, [1, 0, 2]) if axis else result


def _lanczos(length: tf.Tensor, pixels: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Returns fixed-point weights [size, pixels] of old pixels for each new pixel, float64; rows sum to about 2^_BITS.

    Args:
        length: extent of the image in old pixels, which may be fractional, float64 [].
        pixels: number of old pixels, int64 [].
        size: number of new pixels, int64 [].
    """
    scale = length / tf.cast(size, tf.float64)
    centre = (tf.range(tf.cast(size, tf.float64), dtype=tf.float64) + 0.5) * scale
    away = (tf.range(tf.cast(pixels, tf.float64), dtype=tf.float64) + 0.5 - centre[:, None]) / tf.maximum(scale, 1.0)
    weights = tf.where(tf.abs(away) < _LANCZOS, _sinc(away) * _sinc(away / _LANCZOS), 0.0)
    weights *= 2**_BITS / tf.reduce_sum(weights, axis=1, keepdims=True)
    return tf.sign(weights) * tf.floor(tf.abs(weights) + 0.5)


def _sinc(x: tf.Tensor) -> tf.Tensor:
    turn = np.pi * x
    return tf.where(x == 0, tf.ones_like(x), tf.sin(turn) / tf.where(x == 0, tf.ones_like(x), turn))


def _block_means(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Returns rounded means over blocks of factor[0] x factor[1] pixels, uint8; blocks at the end may be smaller."""
    sides, channels = tf.shape(image, tf.int64)[:2], image.shape[-1]
    blocks = -(-sides // factor)
    missing = blocks * factor - sides
    padded = tf.pad(image, [[0, missing[0]], [0, missing[1]], [0, 0]])
    parts = tf.reshape(tf.cast(padded, tf.int32), [blocks[0], factor[0], blocks[1], factor[1], channels])
    whole = [tf.fill([blocks[axis] - 1], factor[axis]) for axis in (0, 1)]
    rows, columns = (tf.concat([whole[axis], [factor[axis] - missing[axis]]], 0) for axis in (0, 1))
    count = rows[:, None, None] * columns[None, :, None]
    # Pillow divides by multiplying with 2^24 / count, truncated to an integer
    share = tf.cast(2.0**32 / tf.cast(256 * count, tf.float32), tf.int64)
    sums = tf.cast(tf.reduce_sum(parts, axis=(1, 3)), tf.int64) + count // 2
    return tf.cast(tf.bitwise.right_shift(sums * share, tf.constant(24, tf.int64)), tf.uint8)
