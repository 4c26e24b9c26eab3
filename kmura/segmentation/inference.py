"""Class probabilities of whole volumes from the slices of one plane."""

from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from kmura.data.slices import SliceSampler, volume_batches
from kmura.data.volumes import PLANE_AXES

BATCH = 8  # slices per prediction


def probabilities(logits, *, background: bool):
    """Returns class probabilities [..., K] with the background first, from the logits of a U-Net.

    Args:
        logits: [..., K], or [..., K - 1] of independent maps without background.
        background: whether there is a map of the background. Without, the background has what the most probable region
            leaves.
    """
    if background:
        return tf.nn.softmax(tf.cast(logits, tf.float32))
    regions = tf.sigmoid(tf.cast(logits, tf.float32))
    rest = 1 - tf.reduce_max(regions, axis=-1, keepdims=True)
    both = tf.concat([rest, regions], axis=-1)
    return both / tf.reduce_sum(both, axis=-1, keepdims=True)


def slice_probabilities(
    model: keras.Model,
    sampler: SliceSampler,
    place: int,
    shape: Sequence[int],
    plane: str,
    *,
    background: bool = True,
    flips: bool = False,
    mirrored: np.ndarray | None = None,
    batch_size: int = BATCH,
) -> Iterator[np.ndarray]:
    """Yields the class probabilities of the slices of a volume in order, float32 [rows, columns, K] of the volume.

    Pixels that the size of the network's slices cuts off are background.

    Args:
        model: the U-Net.
        sampler: slices of the volume.
        place: of the volume in the sampler.
        shape: of the volume, [Z, Y, X].
        plane: anatomical plane of the slices.
        background: see `probabilities`.
        flips: average with the prediction for the mirrored slice (not in sagittal slices, which have no mirror image).
        mirrored: class number -> class number on the other side, for `flips`.
        batch_size: slices per prediction.
    """
    across, row, column = PLANE_AXES[plane]
    window = [_overlap(shape[axis], count) for axis, count in zip((row, column), sampler.size, strict=True)]
    (rows, inner_rows), (columns, inner_columns) = window
    for images in volume_batches(sampler, place, shape[across], batch_size):
        values = probabilities(model(images, training=False), background=background)
        if flips and plane != "sagittal":
            turned = tf.reverse(images, axis=[2])
            if sampler.coordinate:
                turned = tf.concat([turned[..., :-1], -turned[..., -1:]], axis=-1)
            other = probabilities(model(turned, training=False), background=background)
            values = (values + tf.gather(tf.reverse(other, axis=[2]), mirrored, axis=-1)) / 2
        for value in values.numpy():
            whole = np.zeros((shape[row], shape[column], value.shape[-1]), np.float32)
            whole[..., 0] = 1
            whole[rows, columns] = value[inner_rows, inner_columns]
            yield whole


def class_numbers(slices: Iterator[np.ndarray], shape: Sequence[int], plane: str) -> np.ndarray:
    """Returns the most probable class of every voxel, uint8 [Z, Y, X], from the slices of one plane."""
    numbers = np.zeros(shape, np.uint8)
    moved = np.moveaxis(numbers, PLANE_AXES[plane][0], 0)
    for number, value in enumerate(slices):
        moved[number] = value.argmax(axis=-1)
    return numbers


def _overlap(side: int, count: int) -> tuple[slice, slice]:
    """Where a side of the volume and of the network's slice overlap: (in the volume, in the slice)."""
    first = (side - count) // 2
    begin, end = max(0, first), min(side, first + count)
    return slice(begin, end), slice(begin - first, end - first)
