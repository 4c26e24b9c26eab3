"""Shards to batches: the only place that builds a tf.data pipeline for training or evaluation."""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from kmura.config import AugmentConfig, DataConfig, MixConfig
from kmura.data.augment import RandomAffine, RandomIntensity
from kmura.data.decoded import image_source, readable_errors
from kmura.data.index import ALL, read_index
from kmura.data.labels import labelling, row_keys
from kmura.data.mixing import RandomMix
from kmura.errors import InputError

__all__ = ["ALL", "eval_dataset", "images_at", "readable_errors", "row_keys", "steps_per_epoch", "train_dataset"]


def train_dataset(
    records: str | os.PathLike,
    area: str,
    *,
    data: DataConfig | None = None,
    augment: AugmentConfig | None = None,
    mix: MixConfig | None = None,
    batch_size: int = 16,
    seed: int = 0,
    epochs: int = 1,
    first_epoch: int = 0,
    split: str = "train",
    balanced: bool = False,
) -> tf.data.Dataset:
    """Augmented batches of the epochs `first_epoch` to `epochs` - 1, one after another; each has `steps_per_epoch`.

    A batch is a dictionary: `image` float32 [B, S, S, C] in 0..255; `label` float32 [B, L] (binary: L = 1, 0 or 1;
    multiclass: one-hot; multilabel: 0 or 1 a class); `mixed_image` and `mixed_label`, the same where nothing
    mixes. Images whose label is not known in full are left out. The last batch of an epoch may be smaller.

    Every epoch draws all images in a new order. Order and augmentation are functions of (seed, epoch, position) alone:
    resuming at an epoch, another cache or another number of threads changes no bit.

    Args:
        records: the records folder.
        area: an area of the manifest, or `all`.
        data: size and cache of the images; None is the default DataConfig.
        augment: random changes; None is the default AugmentConfig.
        mix: what is mixed, and until which epoch; None mixes nothing.
        batch_size: images a batch, B.
        seed: 0 or more.
        epochs: the epoch to stop before.
        first_epoch: the epoch to start with, counted from 0.
        split: which split to draw from.
        balanced: an epoch, as long as ever, draws the classes equally often: images of rare ones several times, some of
            frequent ones not at all. Not for several labels.

    Raises:
        InputError: no such records, area or split; a shard missing, cut or damaged; an image that cannot be decoded
            (here where a cache is filled; else while iterating, see `readable_errors`); no image with a known label.
    """
    data, augment = data or DataConfig(), augment or AugmentConfig()
    index = read_index(records, area, split)
    rows = index.known()
    if not len(rows):
        raise InputError(f"no image of area {area}, split {split} in {records} has a known label; nothing to train on")
    steps = _batches(len(rows), batch_size)
    images_of = image_source(index, data)
    labels = labelling(index.manifest, area, data.task)
    targets = tf.constant(labels.targets(index))
    # float32 whatever the policy: batches leave in 0..255, where 16 bits would round
    affine = RandomAffine(
        augment.rotation, augment.area_scale, augment.shift, augment.shear, augment.flip, dtype="float32"
    )
    intensity = RandomIntensity(augment.brightness, augment.contrast, dtype="float32")
    mixing = (
        RandomMix(mix.mixup_alpha, mix.cutmix_alpha, mix.aug_p, dtype="float32") if mix and mix.until_epoch else None
    )

    groups = _by_class(labels.ids(index), rows, labels.task) if balanced else [rows]
    orders = [_order(groups, len(rows), np.random.default_rng([seed, epoch])) for epoch in range(first_epoch, epochs)]
    orders = tf.constant(np.array(orders, np.int32).reshape(-1, len(rows)))

    def batch(step) -> dict[str, tf.Tensor]:
        epoch, position = step // steps, step % steps
        drawn_rows = orders[epoch - first_epoch, position * batch_size : (position + 1) * batch_size]
        key = tf.stack([tf.constant(seed, tf.int64), epoch])
        seeds = tf.random.split(tf.random.fold_in(key, position), 3)
        image = intensity(affine(images_of(drawn_rows), seed=seeds[0]), seed=seeds[1])
        label = tf.gather(targets, drawn_rows)
        mixed = {"images": image, "labels": label}
        if mixing is not None:
            mixed = tf.cond(epoch < mix.until_epoch, lambda: mixing(mixed, seed=seeds[2]), lambda: mixed)
        return {"image": image, "label": label, "mixed_image": mixed["images"], "mixed_label": mixed["labels"]}

    return _mapped(tf.data.Dataset.range(first_epoch * steps, max(first_epoch, epochs) * steps), batch)


def eval_dataset(
    records: str | os.PathLike, area: str, split: str, *, data: DataConfig | None = None, batch_size: int = 32
) -> tf.data.Dataset:
    """Batches of a whole split in the order of the records, which is that of `row_keys`.

    A batch is a dictionary: `image` float32 [B, S, S, C] in 0..255; `label` float32 [B, L] as in `train_dataset`, -1
    where unknown (for a multiclass image the whole row); `patient`, `study`, `path` strings [B].

    Raises:
        InputError: as `train_dataset`; unknown labels are no error here.
    """
    index, data = read_index(records, area, split), data or DataConfig()
    images_of = image_source(index, data)
    columns = {
        "label": tf.constant(labelling(index.manifest, area, data.task).targets(index)),
        **{name: tf.constant(index.keys[name].tolist()) for name in ("patient", "study")},
        "path": tf.constant(index.keys["image"].tolist()),
    }

    def batch(step) -> dict[str, tf.Tensor]:
        rows = tf.range(step * batch_size, tf.minimum((step + 1) * batch_size, len(index)))
        return {
            "image": tf.cast(images_of(rows), tf.float32),
            **{name: tf.gather(column, rows) for name, column in columns.items()},
        }

    return _mapped(tf.data.Dataset.range(_batches(len(index), batch_size)), batch)


def images_at(
    records: str | os.PathLike, area: str, split: str, rows: Sequence[int], *, data: DataConfig | None = None
) -> np.ndarray:
    """Some images of a split as the model gets them in evaluation: float32 [len(rows), S, S, C] in 0..255.

    Args:
        records, area, split: as `eval_dataset`.
        rows: places in the order of `row_keys`.
        data: size and resizing.

    Raises:
        InputError: as `eval_dataset`.
    """
    index = read_index(records, area, split)
    data = dataclasses.replace(data or DataConfig(), cache="off")
    if not len(rows):
        return np.zeros((0, data.image_size, data.image_size, index.manifest.channels), np.float32)
    images_of = image_source(index, data)
    with readable_errors(records, area, split):
        batches = tf.data.Dataset.from_tensor_slices(np.asarray(rows, np.int64)).batch(32).map(images_of)
        return np.concatenate(list(batches.as_numpy_iterator())).astype(np.float32)


def steps_per_epoch(records: str | os.PathLike, area: str, *, batch_size: int = 16, split: str = "train") -> int:
    """The number of batches of an epoch of `train_dataset`."""
    return _batches(len(read_index(records, area, split).known()), batch_size)


def _by_class(ids: np.ndarray, rows: np.ndarray, task: str) -> list[np.ndarray]:
    """The rows of each class that has any."""
    if ids.shape[1] > 1:
        raise InputError(f"an image of a {task} task may be of several classes: train.sampling balanced is not for it")
    return [rows[ids[rows, 0] == value] for value in np.unique(ids[rows, 0])]


def _order(groups: list[np.ndarray], number: int, rng: np.random.Generator) -> np.ndarray:
    """`number` rows in random order, of each group equally many (but for one); a group is used up before it repeats."""
    drawn = []
    for place, group in enumerate(groups):
        wanted = (number + place) // len(groups)
        passes = [rng.permutation(group) for _ in range(-(-wanted // len(group)))]
        drawn.append(np.concatenate(passes)[:wanted] if passes else group[:0])
    return rng.permutation(np.concatenate(drawn)) if len(drawn) > 1 else drawn[0]


def _batches(images: int, batch_size: int) -> int:
    return -(-images // batch_size)


def _mapped(steps: tf.data.Dataset, batch) -> tf.data.Dataset:
    """The batches of these steps, in order, several made at a time and some ahead."""
    at_a_time = (os.cpu_count() or 1) + 2  # AUTOTUNE stays at one a core, which then idles where its batch is waiting
    return steps.map(batch, num_parallel_calls=at_a_time, deterministic=True).prefetch(tf.data.AUTOTUNE)
