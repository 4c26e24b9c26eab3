"""Antialiased resizing of images, equal to BILINEAR of Pillow up to rounding.

It takes 0.3 ms from 512 to 224 pixels on one core; `tf.image.resize(antialias=True)` takes 1.6 ms for the same result.
"""

import numpy as np
import tensorflow as tf


def resized(image: tf.Tensor, places: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Returns the resized image: weighted sums of rows, then weighted sums of columns.

    Whole rows are summed at a time; the image is transposed before the columns are summed.

    Args:
        image: uint8 [h, w, C].
        places, weights: from `axis_weights`, [2, T, S]: those of the rows, then those of the columns.

    Returns:
        uint8 [S, S, C], rounded to nearest.
    """
    shape, size = tf.shape(image), tf.shape(places)[2]
    rows = _weighed(tf.reshape(image, [shape[0], -1]), places[0], weights[0])  # [S, w * C]
    turned = tf.transpose(tf.reshape(rows, [size, shape[1], shape[2]]), [1, 0, 2])
    columns = _weighed(tf.reshape(turned, [shape[1], -1]), places[1], weights[1])  # [S, S * C]
    result = tf.transpose(tf.reshape(columns, [size, size, shape[2]]), [1, 0, 2])
    return tf.cast(result + 0.5, tf.uint8)


def axis_weights(sides: tf.Tensor, size: int, how: str, taps: int | None = None) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the source rows and columns of each pixel of the resized image, and their weights.

    The filter is a triangle around the position of the new pixel. Its half-width is the scale factor where the image
    shrinks, otherwise one source pixel.

    Args:
        sides: int64 [B, 2], height and width of each image, pixels.
        size: rows and columns of the result, S.
        how: `squash` (both sides to `size`) or `pad` (keep the aspect ratio, centre on black).
        taps: T, at least `taps_needed`; None computes it from `sides` in the graph.

    Returns:
        places int32 and weights float32, each [B, 2 (rows, columns), T, S]; with `pad` the borders have weight 0.
    """
    targets = sides * 0 + size
    if how == "pad":
        targets = tf.maximum(
            tf.constant(1, tf.int64), _fitted(sides, size, tf.reduce_max(sides, axis=1, keepdims=True))
        )
    targets = targets[:, :, None, None]
    length = tf.cast(sides, tf.float64)[:, :, None, None]
    scale = length / tf.cast(targets, tf.float64)
    reach = tf.maximum(scale, 1.0)
    new = tf.range(size, dtype=tf.int64) - (size - targets) // 2  # [B, 2, 1, S], relative to the edge of the image
    centre = (tf.cast(new, tf.float64) + 0.5) * scale - 0.5
    if taps is None:
        taps = tf.cast(tf.math.ceil(2 * tf.reduce_max(reach)), tf.int64)
    places = tf.floor(centre - reach) + tf.range(1, taps + 1, dtype=tf.float64)[:, None]  # [B, 2, T, S]
    weights = tf.nn.relu(1 - tf.abs(places - centre) / reach)
    weights = tf.where((places >= 0) & (places < length), weights, 0.0)
    weights = tf.where((new >= 0) & (new < targets), weights, 0.0)
    weights = tf.math.divide_no_nan(weights, tf.reduce_sum(weights, axis=2, keepdims=True))
    return tf.cast(tf.clip_by_value(places, 0.0, length - 1), tf.int32), tf.cast(weights, tf.float32)


def taps_needed(sides: np.ndarray, size: int, how: str) -> int:
    """Returns the maximum number of source rows or columns per pixel for images of `sides` (int64 [n, 2], pixels)."""
    targets = np.maximum(1, _fitted(sides, size, sides.max(axis=1, keepdims=True))) if how == "pad" else size
    return int(np.ceil(2 * max(1.0, float(np.max(sides / targets)))))


def covered(sides: tuple[int, int], size: int, how: str) -> tuple[slice, slice]:
    """Returns the rows and columns of the resized image that an image of `sides` (height, width) pixels covers."""
    if how != "pad":
        return slice(0, size), slice(0, size)
    lengths = [max(1, int(_fitted(side, size, max(sides)))) for side in sides]
    starts = [(size - length) // 2 for length in lengths]
    return tuple(slice(start, start + length) for start, length in zip(starts, lengths, strict=True))


def _fitted(sides, size: int, longest):
    """Returns height and width [B, 2] of the largest image of the same aspect ratio in a square of `size` pixels.

    Halves are rounded up.
    """
    return (2 * sides * size + longest) // (2 * longest)


def _weighed(rows: tf.Tensor, places: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Returns weighted sums of rows: `rows` [n, m] (numeric), `places` and `weights` [T, S] -> float32 [S, m]."""
    if places.shape[0] is None:
        return _weighed_in_loop(rows, places, weights)
    places, weights = tf.unstack(places), tf.unstack(weights[:, :, None])
    result = tf.cast(tf.gather(rows, places[0]), tf.float32) * weights[0]
    for place, weight in zip(places[1:], weights[1:], strict=True):
        with tf.control_dependencies([result]):  # sequential: distributing the terms over threads costs more
            result += tf.cast(tf.gather(rows, place), tf.float32) * weight
    return result


def _weighed_in_loop(rows: tf.Tensor, places: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Returns the sums of `_weighed`, in the same order, for a T that is known only when the graph runs."""

    def term(number):
        return tf.cast(tf.gather(rows, places[number]), tf.float32) * weights[number][:, None]

    _, result = tf.while_loop(
        lambda number, _: number < tf.shape(places)[0],
        lambda number, result: (number + 1, result + term(number)),
        (tf.constant(1), term(0)),
        shape_invariants=(tf.TensorShape([]), tf.TensorShape([None, None])),
    )
    return result
