"""The tf.data pipelines of training and evaluation: from an index and its images to batches."""

import numpy as np
import tensorflow as tf

from kmura.config import AugmentConfig, DataConfig, MixConfig
from kmura.data.augment import RandomAffine, RandomIntensity
from kmura.data.decoded import image_source
from kmura.data.index import Index
from kmura.data.mixing import RandomMix
from kmura.errors import InputError
from kmura.tasks import Task
from kmura.workers import processors


def train_batches(
    index: Index,
    task: Task,
    *,
    data: DataConfig,
    augment: AugmentConfig,
    mix: MixConfig | None,
    batch_size: int,
    seed: int,
    epochs: int,
    first_epoch: int,
    balanced: bool,
) -> tf.data.Dataset:
    """Returns augmented batches of the epochs `first_epoch` to `epochs` - 1; see `kmura.data.dataset.Dataset.train`."""
    rows = index.known()
    if not len(rows):
        raise InputError(
            f"no image of area {index.area}, split {index.split} in {index.records} has a known label; "
            "add labelled images and build the records again"
        )
    steps = batches_of(len(rows), batch_size)
    images_of = image_source(index, data)
    ids = task.ids(index.labels, index.keys["area"])
    targets = tf.constant(task.targets(ids))
    # float32 under every dtype policy: 16-bit floats would round pixels in 0..255
    moves = (augment.rotation, augment.area_scale, augment.shift, augment.shear, augment.flip)
    affine = RandomAffine(*moves, crop=augment.crop, aspect=augment.aspect, dtype="float32")
    intensity = RandomIntensity(augment.brightness, augment.contrast, dtype="float32")
    mixing = None
    if mix and mix.until_epoch:
        how = {"mode": mix.mode, "per": mix.per, "if_zero": mix.if_zero}
        mixing = RandomMix(mix.mixup_alpha, mix.cutmix_alpha, mix.aug_p, **how, dtype="float32")

    groups = _by_class(ids, rows, task) if balanced else [rows]
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

    return in_parallel(tf.data.Dataset.range(first_epoch * steps, max(first_epoch, epochs) * steps), batch)


def eval_batches(index: Index, task: Task, *, data: DataConfig, batch_size: int) -> tf.data.Dataset:
    """Returns batches of a whole split in the order of the records; see `kmura.data.dataset.Dataset.eval`."""
    images_of = image_source(index, data)
    columns = {
        "label": tf.constant(task.targets(task.ids(index.labels, index.keys["area"]))),
        **{name: tf.constant(index.keys[name].tolist()) for name in ("patient", "study")},
        "path": tf.constant(index.keys["image"].tolist()),
    }

    def batch(step) -> dict[str, tf.Tensor]:
        rows = tf.range(step * batch_size, tf.minimum((step + 1) * batch_size, len(index)))
        return {
            "image": tf.cast(images_of(rows), tf.float32),
            **{name: tf.gather(column, rows) for name, column in columns.items()},
        }

    return in_parallel(tf.data.Dataset.range(batches_of(len(index), batch_size)), batch)


def _by_class(ids: np.ndarray, rows: np.ndarray, task: Task) -> list[np.ndarray]:
    """Returns the rows of each class that occurs."""
    if ids.shape[1] > 1:
        raise InputError(
            f"train.sampling=balanced does not support {task.name} tasks, whose images can have several classes; "
            "set train.sampling=natural"
        )
    return [rows[ids[rows, 0] == value] for value in np.unique(ids[rows, 0])]


def _order(groups: list[np.ndarray], number: int, rng: np.random.Generator) -> np.ndarray:
    """Returns `number` rows in random order, equally many of each group (up to a difference of one).

    All rows of a group are drawn before any of them is repeated.
    """
    drawn = []
    for place, group in enumerate(groups):
        wanted = (number + place) // len(groups)
        passes = [rng.permutation(group) for _ in range(-(-wanted // len(group)))]
        drawn.append(np.concatenate(passes)[:wanted] if passes else group[:0])
    return rng.permutation(np.concatenate(drawn)) if len(drawn) > 1 else drawn[0]


def batches_of(images: int, batch_size: int) -> int:
    """Returns the number of batches of `images` images; the last batch may be smaller."""
    return -(-images // batch_size)


def in_parallel(steps: tf.data.Dataset, batch) -> tf.data.Dataset:
    """Returns the batches of the steps, in order, computed in parallel and prefetched."""
    at_a_time = processors() + 2  # AUTOTUNE uses one per core, and a core is idle while its batch waits
    return steps.map(batch, num_parallel_calls=at_a_time, deterministic=True).prefetch(tf.data.AUTOTUNE)
