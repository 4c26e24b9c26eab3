"""MixUp and CutMix as Keras layers, and a layer that chooses between them at random.

All layers take the dictionary {"images": [B, H, W, C], "labels": [B, L]} and an explicit `seed`, as do the layers of
`augment`. With a seed they are pure functions, so a resumed epoch mixes the same images.
"""

import keras
import tensorflow as tf


def beta(shape, alpha, seed) -> tf.Tensor:
    """Returns numbers ~ Beta(alpha, alpha), float32, for any alpha > 0; a pure function of `seed` (integers [2]).

    The ratio of two gamma variates is computed from their logarithms, because most gamma variates underflow for small
    alpha (0.017 is a published value). Gamma(a) = Gamma(a + 1) U^(1 / a) (Marsaglia & Tsang 2000, section 6).
    """
    alpha = tf.cast(alpha, tf.float32)
    pair = tf.concat([[2], shape], axis=0)
    gammas = tf.random.stateless_gamma(pair, seed=tf.stack([seed[0], seed[1] + 1]), alpha=alpha + 1)
    uniform = tf.random.stateless_uniform(pair, seed=seed, minval=1e-30, alg="philox")
    log_gammas = tf.math.log(gammas) + tf.math.log(uniform) / alpha
    return tf.sigmoid(log_gammas[0] - log_gammas[1])


class _Mixing(keras.layers.Layer):
    """The common base of mixing layers: the `training` flag, the source of random numbers, and the config."""

    def __init__(self, alpha: float = 0.2, *, per: str = "image", seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        if alpha < 0:
            raise ValueError(f"alpha is {alpha}; 0 (off) or more is needed")
        if per not in ("image", "batch"):
            raise ValueError(f"per is {per!r}; choose image or batch")
        self.alpha = alpha
        self.per = per
        self.seed = seed
        self.generator = keras.random.SeedGenerator(seed)

    def call(self, batch, seed=None, training=None):
        """Returns the mixed batch, both entries float32.

        Args:
            batch: {"images": [B, H, W, C], "labels": [B, L]}; labels are one-hot or 0/1, not class ids. A label that
                is unknown (-1) in one of two images is unknown in their mixture.
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
        weight = beta([1 if self.per == "batch" else number], self.alpha, seeds[1])
        images, weight = self.mix(images, tf.gather(images, partner), weight, seeds[2])
        weight = weight[:, None]
        others = tf.gather(labels, partner)
        known = (labels >= 0) & (others >= 0)
        return {"images": images, "labels": tf.where(known, weight * labels + (1 - weight) * others, -1.0)}

    def compute_output_shape(self, input_shape, *_, **__):
        return input_shape

    def get_config(self):
        return super().get_config() | {"alpha": self.alpha, "per": self.per, "seed": self.seed}


@keras.saving.register_keras_serializable("kmura")
class MixUp(_Mixing):
    """MixUp (Zhang et al. 2018): mixes each image x and its label with another one x' of the batch.

    The result is l x + (1 - l) x', l ~ Beta(a, a). `keras.layers.MixUp` mixes in the same way, but it takes no explicit
    seed inside a data set, and its lambda is 0/0 if both gamma variates underflow (small alphas).

    Args:
        alpha: a, 0 (off) or more.
        per: `image` draws l for every image, `batch` once for all.
        seed: seed of the layer's own generator.
    """

    def mix(self, images, others, weight, seed):
        """Returns the mixed images and the weight [B] or [1] of `images` in them."""
        share = weight[:, None, None, None]
        return share * images + (1 - share) * others, weight


@keras.saving.register_keras_serializable("kmura")
class CutMix(_Mixing):
    """CutMix (Yun et al. 2019, equations 1 and 2): pastes a box of another image of the batch into each image.

    The box has a fraction 1 - l of the area, l ~ Beta(a, a). Its centre is uniform over the image, and it is clipped at
    the border. Labels are mixed by the fraction of pixels that are pasted. `keras.layers.CutMix` differs: it takes a
    factor of at most 1 and draws a from 0 to that factor, keeps every box inside the image, and mixes labels by the
    area before rounding to pixels.

    Args:
        alpha: a, 0 (off) or more.
        per: `image` draws l and the centre for every image, `batch` once for all.
        seed: seed of the layer's own generator.
    """

    def mix(self, images, others, weight, seed):
        """Returns the images with the pasted boxes and the fraction [B] or [1] of pixels that are unchanged."""
        shape = tf.shape(images)
        size = tf.cast(shape[1:3], tf.float32)  # [2] rows, columns
        half = tf.sqrt(1 - weight)[:, None] * size / 2  # [B, 2] or [1, 2]
        centre = tf.random.stateless_uniform([tf.shape(weight)[0], 2], seed, alg="philox") * size
        first = tf.round(tf.clip_by_value(centre - half, 0.0, size))
        last = tf.round(tf.clip_by_value(centre + half, 0.0, size))

        def inside(axis, number):
            position = tf.range(tf.cast(number, tf.float32))[None, :]
            return (position >= first[:, axis : axis + 1]) & (position < last[:, axis : axis + 1])

        box = inside(0, shape[1])[:, :, None] & inside(1, shape[2])[:, None, :]  # [B, H, W] or [1, H, W]
        kept = 1 - tf.reduce_prod(last - first, axis=1) / tf.reduce_prod(size)
        return tf.where(box[..., None], others, images), kept


@keras.saving.register_keras_serializable("kmura")
class RandomMix(keras.layers.Layer):
    """Mixes a whole batch with probability `probability`, by MixUp or CutMix.

    Args:
        mixup_alpha, cutmix_alpha: see MixUp and CutMix; a method whose alpha is 0 is not used.
        probability: 0..1, `aug_p` of the published search.
        mode: `auto` draws MixUp or CutMix with equal probability; `mixup` and `cutmix` use only that method.
        per: see MixUp and CutMix.
        if_zero: with mode `auto` and one alpha 0: `other` always uses the other method, `unmixed` leaves the batch
            unmixed if the method with alpha 0 is drawn.
        seed: seed of the layer's own generator.
    """

    def __init__(
        self,
        mixup_alpha=0.2,
        cutmix_alpha=1.0,
        probability=0.5,
        *,
        mode: str = "auto",
        per: str = "image",
        if_zero: str = "other",
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not 0 <= probability <= 1:
            raise ValueError(f"probability is {probability}; 0 to 1 is needed")
        if mode not in ("auto", "mixup", "cutmix"):
            raise ValueError(f"mode is {mode!r}; choose auto, mixup or cutmix")
        if if_zero not in ("other", "unmixed"):
            raise ValueError(f"if_zero is {if_zero!r}; choose other or unmixed")
        self.mixup, self.cutmix = MixUp(mixup_alpha, per=per), CutMix(cutmix_alpha, per=per)
        self.mode, self.per, self.if_zero = mode, per, if_zero
        self.mixup.built = self.cutmix.built = True  # neither has weights
        self.probability = probability
        self.seed = seed
        self.generator = keras.random.SeedGenerator(seed)

    def call(self, batch, seed=None, training=None):
        """Returns the mixed batch; see MixUp for the arguments."""
        batch = {name: tf.cast(value, tf.float32) for name, value in batch.items()}
        layers = {"mixup": [self.mixup], "cutmix": [self.cutmix], "auto": [self.mixup, self.cutmix]}[self.mode]
        used = [layer for layer in layers if layer.alpha > 0]
        choices = layers if self.if_zero == "unmixed" else used
        if training is False or not used or self.probability == 0:
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
        config |= {"mode": self.mode, "per": self.per, "if_zero": self.if_zero}
        return super().get_config() | config | {"seed": self.seed}
