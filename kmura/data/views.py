"""Pairs of views for pretraining: random changes of radiographs as Keras layers, and the batches of pairs.

The layers add to those of `kmura.data.augment` and follow the same rules: with an explicit `seed` they are pure
functions, and the change of image i of a batch depends only on (seed, i). What a view does to a radiograph, in order:

- crop, flip, rotation, shift (`RandomAffine`): another position of the patient or of the collimation.
- intensity (`RandomIntensity`): another exposure or window.
- inversion (`RandomInversion`): the other of the two conventions, bone white or bone black.
- blur (`RandomBlur`): a coarser detector, or movement.
- noise (`RandomNoise`): a lower dose.
"""

import keras
import numpy as np
import tensorflow as tf

from kmura import metrics
from kmura.config import DataConfig, ViewsConfig
from kmura.data.augment import RandomAffine, RandomIntensity, RandomLayer, uniform
from kmura.data.decoded import image_source
from kmura.data.index import Index
from kmura.data.pipeline import in_parallel
from kmura.errors import InputError
from kmura.tasks import Task

RADII = 3  # of a blur's kernel, standard deviations


@keras.saving.register_keras_serializable("kmura")
class RandomInversion(RandomLayer):
    """Exchanges black and white, 255 - x, in a random part of the images.

    Args:
        probability: of an image to be inverted.
        seed: seed of the layer's own generator, which is used in calls without a seed.
    """

    def __init__(self, probability=0.0, **kwargs):
        super().__init__(**kwargs)
        self.probability = probability

    @property
    def changes_nothing(self) -> bool:
        """Whether no image is changed."""
        return not self.probability

    def changed(self, images, seed):
        """Returns the images [B, H, W, C] float32."""
        images = tf.cast(images, tf.float32)
        chosen = uniform(images, 1, seed)[:, :, None, None] < self.probability
        return tf.where(chosen, 255.0 - images, images)

    def get_config(self):
        return {**super().get_config(), "probability": self.probability}


@keras.saving.register_keras_serializable("kmura")
class RandomBlur(RandomLayer):
    """Blurs a random part of the images with a Gaussian; pixels outside the image repeat those at the border.

    Args:
        probability: of an image to be blurred.
        sigma: minimum and maximum standard deviation, as a fraction of the image's height.
        seed: seed of the layer's own generator, which is used in calls without a seed.
    """

    def __init__(self, probability=0.0, sigma=(0.0005, 0.009), **kwargs):
        super().__init__(**kwargs)
        self.probability = probability
        self.sigma = tuple(sigma)

    @property
    def changes_nothing(self) -> bool:
        """Whether no image is changed."""
        return not self.probability or not self.sigma[1]

    def changed(self, images, seed):
        """Returns the images [B, H, W, C] float32."""
        if images.shape[1] is None:
            raise ValueError("RandomBlur needs images of a known height")
        numbers = uniform(images, 2, seed)
        low, high = (fraction * images.shape[1] for fraction in self.sigma)
        sigma = tf.where(numbers[:, 0] < self.probability, low + (high - low) * numbers[:, 1], 0.0)
        return blurred(tf.cast(images, tf.float32), sigma, radius=max(1, round(RADII * high)))

    def get_config(self):
        return {**super().get_config(), "probability": self.probability, "sigma": self.sigma}


@keras.saving.register_keras_serializable("kmura")
class RandomNoise(RandomLayer):
    """Adds Gaussian noise to a random part of the images and clips them to 0..255.

    Args:
        probability: of an image to get noise.
        std: minimum and maximum standard deviation, gray levels.
        seed: seed of the layer's own generator, which is used in calls without a seed.
    """

    def __init__(self, probability=0.0, std=(0.0, 10.0), **kwargs):
        super().__init__(**kwargs)
        self.probability = probability
        self.std = tuple(std)

    @property
    def changes_nothing(self) -> bool:
        """Whether no image is changed."""
        return not self.probability or not self.std[1]

    def changed(self, images, seed):
        """Returns the images [B, H, W, C] float32."""
        images = tf.cast(images, tf.float32)
        seeds = tf.random.split(tf.cast(seed, tf.int32), 2)
        numbers, (low, high) = uniform(images, 2, seeds[0]), self.std
        std = tf.where(numbers[:, 0] < self.probability, low + (high - low) * numbers[:, 1], 0.0)
        noise = tf.random.stateless_normal(tf.shape(images), seeds[1], alg="philox")
        return tf.where(
            std[:, None, None, None] > 0,
            tf.clip_by_value(images + std[:, None, None, None] * noise, 0.0, 255.0),
            images,
        )

    def get_config(self):
        return {**super().get_config(), "probability": self.probability, "std": self.std}


@tf.function(jit_compile=True, reduce_retracing=True)
def blurred(images: tf.Tensor, sigma: tf.Tensor, radius: int) -> tf.Tensor:
    """Returns the images convolved with a Gaussian each, sampled at whole pixels and normalised to sum 1.

    Args:
        images: float32 [B, H, W, C].
        sigma: float32 [B], standard deviation, pixels; 0 leaves the image unchanged.
        radius: of the kernel, pixels.
    """
    place = tf.range(-radius, radius + 1, dtype=tf.float32)
    exponent = -tf.square(place[None, :]) / tf.maximum(2 * tf.square(sigma), 1e-12)[:, None]
    weights = tf.exp(exponent)
    weights = weights / tf.reduce_sum(weights, axis=1, keepdims=True)  # [B, 2 radius + 1]
    for axis in (1, 2):
        size = tf.shape(images)[axis]
        places = tf.clip_by_value(tf.range(-radius, size + radius), 0, size - 1)  # the border is repeated
        wide, result = tf.gather(images, places, axis=axis), tf.zeros_like(images)
        for number in range(2 * radius + 1):
            moved = slice(number, number + size)
            result += weights[:, number, None, None, None] * (wide[:, moved] if axis == 1 else wide[:, :, moved])
        images = result
    return images


def view_layers(views: ViewsConfig) -> list[RandomLayer]:
    """Returns the layers that make a view, in the order of their use."""
    # float32 under every dtype policy: 16-bit floats would round pixels in 0..255
    return [
        RandomAffine(
            views.rotation, views.area_scale, views.shift, 0.0, views.flip,
            crop="resized", aspect=views.aspect, dtype="float32",
        ),
        RandomIntensity(views.brightness, views.contrast, dtype="float32"),
        RandomInversion(views.invert, dtype="float32"),
        RandomBlur(views.blur, views.blur_sigma, dtype="float32"),
        RandomNoise(views.noise, views.noise_std, dtype="float32"),
    ]  # fmt: skip


def view_batches(
    index: Index,
    task: Task,
    *,
    data: DataConfig,
    views: ViewsConfig,
    positives: str,
    batch_size: int,
    seed: int,
    epochs: int,
    first_epoch: int,
) -> tf.data.Dataset:
    """Returns batches of pairs of views; see `kmura.data.dataset.Dataset.views`."""
    steps = len(index) // batch_size
    if not steps:
        raise InputError(
            f"area {index.area}, split {index.split} in {index.records} has {len(index)} images, fewer than a batch of "
            f"{batch_size}; reduce train.batch_size"
        )
    group = groups_of(index, positives)
    images_of, layers = image_source(index, data), view_layers(views)
    targets = tf.constant(task.targets(task.ids(index.labels, index.keys["area"])))
    groups = tf.constant(group.astype(np.int32))
    orders = [_pairs(group, np.random.default_rng([seed, epoch])) for epoch in range(first_epoch, epochs)]
    orders = tf.constant(np.array(orders, np.int32).reshape(-1, 2, len(index)))

    def batch(step) -> dict[str, tf.Tensor]:
        epoch, position = step // steps, step % steps
        rows = orders[epoch - first_epoch, :, position * batch_size : (position + 1) * batch_size]
        first, second = tf.unstack(rows, num=2)
        key = tf.stack([tf.constant(seed, tf.int64), epoch])
        seeds = tf.random.split(tf.random.fold_in(key, position), len(layers))
        image = images_of(tf.concat([first, second], axis=0))
        for number, layer in enumerate(layers):
            image = layer(image, seed=seeds[number])
        image = tf.ensure_shape(image, (2 * batch_size, data.image_size, data.image_size, index.manifest.channels))
        return {"image": image, "label": tf.gather(targets, first), "group": tf.gather(groups, first)}

    return in_parallel(tf.data.Dataset.range(first_epoch * steps, max(first_epoch, epochs) * steps), batch)


def groups_of(index: Index, positives: str) -> np.ndarray:
    """Returns the group of each image, int64 [N]: images of one group are positives of each other.

    Args:
        index: the images.
        positives: `image`, `study` or `patient`; studies and patients of different areas are different.

    Raises:
        InputError: no study (or patient) has two images.
    """
    if positives == "image":
        return np.arange(len(index))
    names = ("area", "patient", "study") if positives == "study" else ("area", "patient")
    group = metrics.study_keys(*(index.keys[name].fillna("").astype(str) for name in names))
    if np.bincount(group).max(initial=0) < 2:
        raise InputError(
            f"no {positives} of area {index.area}, split {index.split} in {index.records} has two images; "
            "use method.positives=image"
        )
    return group


def _pairs(group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns all rows in random order, and for each another random row of its group, or itself: [2, N]."""
    by_group = np.argsort(group, kind="stable")
    sizes = np.bincount(group)
    start = (np.cumsum(sizes) - sizes)[group[by_group]]
    size = sizes[group[by_group]]
    step = 1 + rng.integers(0, np.maximum(size - 1, 1))
    partner = np.empty(len(group), np.int64)
    partner[by_group] = by_group[start + (np.arange(len(group)) - start + step) % size]
    order = rng.permutation(len(group))
    return np.stack([order, partner[order]])
