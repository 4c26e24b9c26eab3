"""MixUp and CutMix of a batch as Keras layers, and the choice between them.

All take the dictionary {"images": [B, H, W, C], "labels": [B, L]} and an explicit `seed`, as the layers of `augment`:
inside a data set they are then pure functions, so that an epoch that is resumed mixes the same images.
"""

import keras
import tensorflow as tf


def beta(shape, alpha, seed) -> tf.Tensor:
    """Numbers ~ Beta(alpha, alpha), float32, for any alpha > 0; a pure function of `seed` (integers [2]).

    A ratio of gammas, taken between logarithms: for alpha = 0.017 (a published value) most gammas are smaller than the
    smallest float. Gamma(a) = Gamma(a + 1) U^(1 / a) (Marsaglia & Tsang 2000, section 6).
    """
    alpha = tf.cast(alpha, tf.float32)
    pair = tf.concat([[2], shape], axis=0)
    gammas = tf.random.stateless_gamma(pair, seed=tf.stack([seed[0], seed[1] + 1]), alpha=alpha + 1)
    uniform = tf.random.stateless_uniform(pair, seed=seed, minval=1e-30, alg="philox")
    log_gammas = tf.math.log(gammas) + tf.math.log(uniform) / alpha
    return tf.sigmoid(log_gammas[0] - log_gammas[1])


class _Mixing(keras.layers.Layer):
    """What mixing layers share: when they act, where their random numbers come from, and their config."""

    def __init__(self, alpha: float = 0.2, *, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        if alpha < 0:
            raise ValueError(f"alpha is {alpha}; 0 (off) or more is needed")
        self.alpha = alpha
        self.seed = seed
        self.generator = keras.random.SeedGenerator(seed)

    def call(self, batch, seed=None, training=None):
        """The mixed batch, both entries float32.

        Args:
            batch: {"images": [B, H, W, C], "labels": [B, L]}; labels one-hot or 0/1, never class ids.
            seed: integers [2], or None to draw from the layer's own generator.
            training: False returns the batch unchanged.
        """
        images, labels = tf.cast(batch["images"], tf.float32), tf.cast(batch["labels"], tf.float32)
        if training is False or self.alpha == 0:
            return {"images": images, "labels": labels}
        seed = tf.cast(self.generator.next() if seed is None else seed, tf.int32)
        seeds = tf.random.split(seed, 3)
        number = tf.shape(images)[0]
        partner = tf.random.experimental.stateless_shuffle(tf.range(number), seed=seeds[0])
        weight = beta([number], self.alpha, seeds[1])
        images, weight = self.mix(images, tf.gather(images, partner), weight, seeds[2])
        weight = weight[:, None]
        return {"images": images, "labels": weight * labels + (1 - weight) * tf.gather(labels, partner)}

    def compute_output_shape(self, input_shape, *_, **__):
        return input_shape

    def get_config(self):
        return super().get_config() | {"alpha": self.alpha, "seed": self.seed}


@keras.saving.register_keras_serializable("kmura")
class MixUp(_Mixing):
    """Each image and its label mixed with another of the batch (Zhang et al. 2018): l x + (1 - l) x', l ~ Beta(a, a).

    The same mixing as `keras.layers.MixUp`, which takes no explicit seed inside a data set and whose lambda is
    0/0 where both gammas underflow (small alphas).

    Args:
        alpha: a, 0 (off) or more.
        seed: of the layer's own generator.
    """

    def mix(self, images, others, weight, seed):
        """The mixed images and the share [B] that the first keep."""
        share = weight[:, None, None, None]
        return share * images + (1 - share) * others, weight


@keras.saving.register_keras_serializable("kmura")
class CutMix(_Mixing):
    """Each image with a box pasted from another of the batch (Yun et al. 2019, equations 1 and 2).

    The box has a share 1 - l of the area, l ~ Beta(a, a), its centre anywhere, and is clipped at the border; labels are
    mixed by the share of pixels really pasted. `keras.layers.CutMix` differs: it takes a factor of at most 1 and draws
    a from 0 to that factor, keeps every box inside the image, and mixes labels by the area before rounding to pixels.

    Args:
        alpha: a, 0 (off) or more.
        seed: of the layer's own generator.
    """

    def mix(self, images, others, weight, seed):
        """The images with their boxes and the share [B] of pixels that the first keep."""
        shape = tf.shape(images)
        size = tf.cast(shape[1:3], tf.float32)  # [2] rows, columns
        half = tf.sqrt(1 - weight)[:, None] * size / 2  # [B, 2]
        centre = tf.random.stateless_uniform([shape[0], 2], seed, alg="philox") * size
        first = tf.round(tf.clip_by_value(centre - half, 0.0, size))
        last = tf.round(tf.clip_by_value(centre + half, 0.0, size))

        def inside(axis, number):
            at = tf.range(tf.cast(number, tf.float32))[None, :]
            return (at >= first[:, axis : axis + 1]) & (at < last[:, axis : axis + 1])

        box = inside(0, shape[1])[:, :, None] & inside(1, shape[2])[:, None, :]  # [B, H, W]
        kept = 1 - tf.reduce_prod(last - first, axis=1) / tf.reduce_prod(size)
        return tf.where(box[..., None], others, images), kept


@keras.saving.register_keras_serializable("kmura")
class RandomMix(keras.layers.Layer):
    """A whole batch mixed with probability `probability`, by MixUp or CutMix at equal chances; else left as it is.

    Args:
        mixup_alpha, cutmix_alpha: see MixUp and CutMix; of those at 0 none is picked, both 0 leaves every batch.
        probability: 0..1, `aug_p` of the published search.
        seed: of the layer's own generator.
    """

    def __init__(self, mixup_alpha=0.2, cutmix_alpha=1.0, probability=0.5, *, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= probability <= 1:
            raise ValueError(f"probability is {probability}; 0 to 1 is needed")
        self.mixup, self.cutmix = MixUp(mixup_alpha), CutMix(cutmix_alpha)
        self.mixup.built = self.cutmix.built = True  # neither has weights
        self.probability = probability
        self.seed = seed
        self.generator = keras.random.SeedGenerator(seed)

    def call(self, batch, seed=None, training=None):
        """The mixed batch; arguments as of MixUp."""
        batch = {name: tf.cast(value, tf.float32) for name, value in batch.items()}
        choices = [layer for layer in (self.mixup, self.cutmix) if layer.alpha > 0]
        if training is False or not choices or self.probability == 0:
            return batch
        seed = tf.cast(self.generator.next() if seed is None else seed, tf.int32)
        seeds = tf.random.split(seed, 2)
        whether, which = tf.unstack(tf.random.stateless_uniform([2], seeds[0], alg="philox"))
        branches = [lambda layer=layer: layer(batch, seed=seeds[1], training=True) for layer in choices]
        pick = tf.cast(which * len(choices), tf.int32)
        return tf.cond(whether < self.probability, lambda: tf.switch_case(pick, branches), lambda: batch)

    def compute_output_shape(self, input_shape, *_, **__):
        return input_shape

    def get_config(self):
        config = {"mixup_alpha": self.mixup.alpha, "cutmix_alpha": self.cutmix.alpha, "probability": self.probability}
        return super().get_config() | config | {"seed": self.seed}
