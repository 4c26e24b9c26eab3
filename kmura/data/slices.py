"""Batches of slices of volumes: random changes of the whole volume, seen through one slice.

A slice of an augmented volume is not an augmented slice: rotation, scaling, shift and deformation act in three
dimensions, so neighbouring slices of an input stay consistent and a slice can leave its plane. Positions are in mm from
the centre of the volume, in the order z, y, x. Every random number is a function of (seed, epoch, position).
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from kmura.config.segmentation import SlicesConfig, VolumeAugmentConfig
from kmura.data.pipeline import batches_of, in_parallel
from kmura.data.views import blurred
from kmura.data.volume_dataset import PLANE_AXES, Volume

BLUR_RADII = 3  # of the kernel, standard deviations
DRAWS = 14  # uniform numbers per slice, see `SliceSampler._moved` and `_changed_gray`
BORDER = 1  # zero voxels around every volume, between which and the outermost voxels values fall to zero
COARSE = 5  # positions per distance of control points at which the deformation is evaluated; linear between them


@dataclasses.dataclass(frozen=True)
class SliceTargets:
    """Which class number the network learns for each class number of the records.

    Attributes:
        table: uint8 [K], number of the records -> number of the network; 0 is background.
        mirrored: uint8 [K'], number of the network -> its number on the other side of the body.
        names: the names of the classes 1, 2, ... of the network.
    """

    table: np.ndarray
    mirrored: np.ndarray
    names: tuple[str, ...]


class SliceSampler:
    """Slices of a set of volumes, as float32 images with neighbouring slices as channels and as class numbers.

    Attributes:
        size: rows and columns of a slice, pixels.
        channels: of an image: the neighbouring slices, and the distance to the mid-sagittal plane with `coordinate`.
    """

    def __init__(self, volumes: Sequence[Volume], config: SlicesConfig, targets: SliceTargets, size: tuple[int, int]):
        """
        Args:
            volumes: at least one.
            config: plane, neighbours, sides.
            targets: class numbers of the network.
            size: rows and columns of a slice.
        """
        self.size, self.slices = size, config.slices
        self.coordinate = config.sides == "coordinate"
        self.channels = self.slices + self.coordinate
        self._axes = PLANE_AXES[config.plane]
        shapes = np.array([volume.gray.shape for volume in volumes], np.int32)
        counts = np.prod(shapes.astype(np.int64) + 2 * BORDER, axis=1)
        with tf.device("CPU"):
            self._gray = tf.constant(_joined([volume.gray for volume in volumes]))
            self._mask = tf.constant(_joined([targets.table[volume.mask] for volume in volumes]))
            self._mirrored = tf.constant(targets.mirrored)
            self._start = tf.constant(np.cumsum(counts) - counts)
            self._shape = tf.constant(shapes)
            self._spacing = tf.constant(np.array([volume.spacing for volume in volumes], np.float32))
            self._voxel = max(float(max(volume.spacing)) for volume in volumes)  # mm
            middles = [volume.middle for volume in volumes]
            self._normal = tf.constant(np.array([normal for normal, _ in middles], np.float32))
            self._offset = tf.constant(np.array([offset for _, offset in middles], np.float32))
            self._extent = tf.reduce_max(tf.cast(self._shape, tf.float32) * self._spacing, axis=0)

    def clean(self, volume, number) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns slices without changes.

        Args:
            volume: int32 [B], places of the volumes.
            number: int32 [B], slice numbers.

        Returns:
            Images float32 [B, rows, columns, channels] in 0..255 (distances in mm), class numbers uint8 [B, rows,
            columns].
        """
        points = self._grid(volume, number)
        image = self._images(points, volume, tf.zeros(tf.shape(volume), tf.bool))
        return image, self._classes(points[:, self.slices // 2], volume)

    def augmented(self, volume, number, seed, config: VolumeAugmentConfig) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns slices of randomly changed volumes; see `clean`.

        Args:
            seed: int [2]; the change of slice i of the batch depends on (seed, i) alone.
        """
        seeds = tf.random.split(seed, 3)
        batch = tf.shape(volume)[0]
        numbers = tf.random.stateless_uniform((batch, DRAWS), seeds[0], alg="philox")
        flip = numbers[:, 7] < config.flip
        points = self._moved(volume, number, numbers, flip, seeds[1], config)
        image = self._images(points, volume, flip)
        mask = self._classes(points[:, self.slices // 2], volume)
        mask = tf.where(flip[:, None, None], tf.gather(self._mirrored, tf.cast(mask, tf.int32)), mask)
        gray = _changed_gray(image[..., : self.slices], numbers[:, 8:], seeds[2], config)
        return tf.concat([gray, image[..., self.slices :]], axis=-1), mask

    def _grid(self, volume, number, step: int = 1):
        """Positions of the pixels of slices and their neighbours, mm, [B, slices, rows, columns, 3].

        With `step`: of every step-th row and column, from the first one to the last one or beyond.
        """
        shape, spacing = tf.cast(tf.gather(self._shape, volume), tf.float32), tf.gather(self._spacing, volume)
        neighbours = tf.range(self.slices, dtype=tf.float32) - self.slices // 2
        across, row, column = self._axes
        at = tf.cast(number, tf.float32)[:, None] + neighbours - (shape[:, across, None] - 1) / 2
        places = {across: at[:, :, None, None]}
        counts = [_coarse(count, step) for count in self.size]
        for axis, count, size in ((row, counts[0], self.size[0]), (column, counts[1], self.size[1])):
            # whole voxels are cut off or added, also where the difference of the sizes is odd
            first = tf.floor((shape[:, axis] - size) / 2) - (shape[:, axis] - 1) / 2
            along = first[:, None] + step * tf.range(count, dtype=tf.float32)
            places[axis] = along[:, None, :, None] if axis == row else along[:, None, None, :]
        target = tf.stack([tf.shape(volume)[0], self.slices, *counts])
        voxels = tf.stack([tf.broadcast_to(places[axis], target) for axis in range(3)], axis=-1)
        return voxels * spacing[:, None, None, None, :]

    def _moved(self, volume, number, numbers, flip, seed, config: VolumeAugmentConfig):
        """Where each pixel of the slices of the changed volume comes from, mm: the inverse of the change."""
        either = 2 * numbers - 1
        angles = either[:, :3] * math.radians(config.rotation)
        turn = rotations(angles) / (1 + either[:, 3] * config.scale)[:, None, None]
        shift = either[:, 4:7] * config.shift

        def moved(points):
            centred = tf.reshape(points - shift[:, None, None, None, :], (tf.shape(points)[0], -1, 3))
            return tf.reshape(tf.matmul(centred, turn, transpose_b=True), tf.shape(points))

        points = moved(self._grid(volume, number))
        if config.elastic:
            step = max(1, int(config.elastic_spacing / COARSE / self._voxel))
            coarse = self._displacements(moved(self._grid(volume, number, step)), seed, config)
            rows, columns = (_between(count, step) for count in self.size)
            points += tf.einsum("ri,bsijk,cj->bsrck", rows, coarse, columns)
        mirror = tf.where(flip[:, None], tf.constant([1.0, 1.0, -1.0]), tf.ones(3))
        return points * mirror[:, None, None, None, :]

    def _displacements(self, points, seed, config: VolumeAugmentConfig):
        """A smooth random displacement of each position, mm, interpolated between control points."""
        nodes = tf.cast(tf.math.ceil(self._extent / config.elastic_spacing), tf.int32) + 2
        batch = tf.shape(points)[0]
        field = config.elastic * tf.random.stateless_normal(tf.concat([batch[None], nodes, [3]], 0), seed, alg="philox")
        place = points / config.elastic_spacing + tf.cast(nodes - 1, tf.float32) / 2
        return trilinear(tf.reshape(field, [-1, 3]), place, tf.range(batch) * tf.reduce_prod(nodes), nodes[None])

    def _images(self, points, volume, flip):
        shape, start = tf.gather(self._shape, volume) + 2 * BORDER, tf.gather(self._start, volume)
        gray = trilinear(self._gray[:, None], self._voxels(points, volume) + BORDER, start, shape)[..., 0]
        image = tf.transpose(gray, (0, 2, 3, 1))
        if not self.coordinate:
            return image
        normal, offset = tf.gather(self._normal, volume), tf.gather(self._offset, volume)
        middle = points[:, self.slices // 2]
        distance = tf.einsum("brcj,bj->brc", middle, normal) - offset[:, None, None]
        return tf.concat([image, tf.where(flip[:, None, None], -distance, distance)[..., None]], axis=-1)

    def _classes(self, points, volume):
        shape = tf.gather(self._shape, volume)[:, None, None, :] + 2 * BORDER
        place = tf.cast(tf.round(self._voxels(points, volume)), tf.int32) + BORDER
        place = tf.clip_by_value(place, 0, shape - 1)
        return tf.gather(self._mask, _flat(place, shape, tf.gather(self._start, volume)[:, None, None]))

    def _voxels(self, points, volume):
        """Positions in mm as positions in voxels."""
        form = (-1, *[1] * (points.shape.rank - 2), 3)
        shape = tf.reshape(tf.cast(tf.gather(self._shape, volume), tf.float32), form)
        return points / tf.reshape(tf.gather(self._spacing, volume), form) + (shape - 1) / 2


def slice_batches(
    sampler: SliceSampler,
    rows: np.ndarray,
    empty: np.ndarray,
    *,
    augment: VolumeAugmentConfig,
    empty_share: float,
    epoch_slices: int,
    batch_size: int,
    seed: int,
    epochs: int,
    first_epoch: int,
) -> tuple[tf.data.Dataset, int]:
    """Returns augmented batches of the epochs `first_epoch` to `epochs` - 1, and the number of batches per epoch.

    A batch is a pair: images float32 [B, rows, columns, channels], class numbers uint8 [B, rows, columns]. The slices
    that are left over at the end of an epoch are not used.

    Args:
        sampler: of the volumes.
        rows: int32 [N, 2], place of the volume and number of every slice.
        empty: bool [N], whether the slice has no region.
        empty_share: share of the empty slices that an epoch draws.
        epoch_slices: largest number of slices of an epoch, drawn from those; 0 takes all.
        augment, batch_size, seed, epochs, first_epoch: of the run.
    """
    filled, rest = np.flatnonzero(~empty), np.flatnonzero(empty)
    some = round(empty_share * len(rest))
    steps = max(1, slices_drawn(empty, empty_share, epoch_slices) // batch_size)

    def order(epoch: int) -> np.ndarray:
        rng = np.random.default_rng([seed, epoch])
        chosen = np.concatenate([filled, rng.permutation(rest)[:some]])
        return np.resize(rng.permutation(chosen), steps * batch_size)

    orders = tf.constant(
        np.array([order(epoch) for epoch in range(first_epoch, epochs)]).reshape(-1, steps, batch_size)
    )
    table = tf.constant(rows.astype(np.int32))

    def batch(step):
        epoch, position = step // steps, step % steps
        volume, number = tf.unstack(tf.gather(table, orders[epoch - first_epoch, position]), axis=1)
        key = tf.stack([tf.constant(seed, tf.int64), epoch])
        image, mask = sampler.augmented(volume, number, tf.random.fold_in(key, position), augment)
        image = tf.ensure_shape(image, (batch_size, *sampler.size, sampler.channels))
        return image, tf.ensure_shape(mask, (batch_size, *sampler.size))

    return in_parallel(tf.data.Dataset.range(first_epoch * steps, max(first_epoch, epochs) * steps), batch), steps


def slices_drawn(empty: np.ndarray, empty_share: float, epoch_slices: int) -> int:
    """Returns the number of slices that an epoch draws; the arguments are those of `slice_batches`."""
    drawn = int((~empty).sum()) + round(empty_share * int(empty.sum()))
    return min(drawn, epoch_slices) if epoch_slices else drawn


def volume_batches(sampler: SliceSampler, place: int, count: int, batch_size: int) -> tf.data.Dataset:
    """Returns the unchanged slices of one volume in order, in batches of images.

    Args:
        place: of the volume.
        count: of its slices along the plane.
        batch_size: slices per batch; the last batch may be smaller.
    """

    def batch(step):
        number = tf.range(step * batch_size, tf.minimum((step + 1) * batch_size, count))
        return sampler.clean(tf.fill(tf.shape(number), place), number)[0]

    steps = tf.data.Dataset.range(batches_of(count, batch_size), output_type=tf.int32)
    return in_parallel(steps, batch)


def rotations(angles: tf.Tensor) -> tf.Tensor:
    """Returns rotation matrices [B, 3, 3] about the axes z, y and x, one after another.

    Args:
        angles: float32 [B, 3], radians.
    """
    cos, sin = tf.cos(angles), tf.sin(angles)
    zero, one = tf.zeros_like(cos[:, 0]), tf.ones_like(cos[:, 0])

    def matrix(*entries):
        return tf.reshape(tf.stack(entries, axis=-1), (-1, 3, 3))

    about_z = matrix(one, zero, zero, zero, cos[:, 0], sin[:, 0], zero, -sin[:, 0], cos[:, 0])
    about_y = matrix(cos[:, 1], zero, -sin[:, 1], zero, one, zero, sin[:, 1], zero, cos[:, 1])
    about_x = matrix(cos[:, 2], sin[:, 2], zero, -sin[:, 2], cos[:, 2], zero, zero, zero, one)
    return about_z @ about_y @ about_x


def trilinear(values, place, start, shape) -> tf.Tensor:
    """Returns arrays interpolated between their eight neighbours, float32 [B, ..., C]; outside, the border is repeated.

    Args:
        values: [M, C], all arrays one after another, each in the order z, y, x.
        place: float32 [B, ..., 3], position within the array, voxels.
        start: int [B], the first row of each array in `values`.
        shape: int32 [B, 3] or [1, 3], size of each array, 2 or more along each axis.
    """
    form = (-1, *[1] * (place.shape.rank - 2), 3)
    shape, start = tf.reshape(shape, form), tf.reshape(start, form[:-1])
    place = tf.clip_by_value(place, 0.0, tf.cast(shape - 1, tf.float32))
    low = tf.minimum(tf.cast(place, tf.int32), shape - 2)
    shares = tf.unstack((place - tf.cast(low, tf.float32))[..., None], axis=-2)
    first = _flat(low, shape, start)
    row, plane = (tf.cast(step, first.dtype) for step in (shape[..., 2], shape[..., 1] * shape[..., 2]))

    def along(axis, at):
        if axis == 3:
            return tf.cast(tf.gather(values, at), tf.float32)
        lower, upper = along(axis + 1, at), along(axis + 1, at + (plane, row, 1)[axis])
        return lower + shares[axis] * (upper - lower)

    return along(0, first)


def _joined(volumes: Sequence[np.ndarray]) -> np.ndarray:
    """Returns volumes with a border of zeros, one after another in one dimension."""
    return np.concatenate([np.pad(volume, BORDER).ravel() for volume in volumes])


def _coarse(count: int, step: int) -> int:
    """The number of positions 0, step, ... that reach the last of `count` pixels."""
    return -(-(count - 1) // step) + 1


def _between(count: int, step: int) -> np.ndarray:
    """Weights of linear interpolation from positions 0, step, ... to the pixels, float32 [count, coarse positions]."""
    distance = np.arange(count)[:, None] / step - np.arange(_coarse(count, step))
    return np.maximum(0, 1 - np.abs(distance)).astype(np.float32)


def _flat(place, shape, start):
    """The row of a voxel in an array of all volumes, one after another."""
    depth, row, column = tf.unstack(tf.cast(place, start.dtype), axis=-1)
    _, rows, columns = tf.unstack(tf.cast(shape, start.dtype), axis=-1)
    return start + (depth * rows + row) * columns + column


def _changed_gray(image, numbers, seed, config: VolumeAugmentConfig):
    """Gray values [B, rows, columns, slices] in 0..255 after gamma, contrast, brightness, blur and noise."""
    either = 2 * numbers - 1
    log_gamma = either[:, 0] * math.log1p(config.gamma)
    factor, shift = 1 + either[:, 1] * config.contrast, either[:, 2] * config.brightness
    scaled = image / 255.0
    scaled = tf.pow(scaled, tf.exp(log_gamma)[:, None, None, None])
    scaled = scaled * factor[:, None, None, None] + shift[:, None, None, None]
    if config.blur:
        scaled = blurred(scaled, numbers[:, 3] * config.blur, radius=max(1, math.ceil(BLUR_RADII * config.blur)))
    if config.noise:
        noise = tf.random.stateless_normal(tf.shape(scaled), seed, alg="philox")
        scaled += (numbers[:, 4] * config.noise)[:, None, None, None] * noise
    return 255.0 * tf.clip_by_value(scaled, 0.0, 1.0)
