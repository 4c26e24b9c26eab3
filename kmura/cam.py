"""Class activation maps: weight functions, a batched engine, and erase masks. All functions work on tensors.

A method is a pure function (activations, gradients) -> weights; the map is ReLU(sum_k w_k A^k). Maps are returned raw
and not scaled to 0..1, because a scaled map that is almost empty looks as confident as any other.

Shapes: activations A and gradients g = dS/dA of a score S are [B, h, w, K]; weights are [B, 1, 1, K] or [B, h, w, K].
"""

from collections.abc import Callable, Mapping, Sequence

import keras
import tensorflow as tf

EPSILON = 1e-7

# feature map -> the fallback for images whose map is empty
FALLBACKS: Mapping[str, str | None] = {"P5": "P4", "P4": "P3", "P3": None, "S4": None}
CONVOLUTIONAL = ("P3", "P4", "P5")  # each is computed from its predecessor


def cam(activations, gradients):
    """w_k = sum_ij g (Zhou et al. 2016, eq. 2); with global average pooling, w_k is the weight of the dense layer."""
    return tf.reduce_sum(gradients, axis=(1, 2), keepdims=True)


def grad_cam(activations, gradients):
    """w_k = mean_ij g (Selvaraju et al. 2017, eq. 1)."""
    return tf.reduce_mean(gradients, axis=(1, 2), keepdims=True)


def grad_cam_pp(activations, gradients):
    """w_k = sum_ij alpha ReLU(g), alpha = g^2 / (2 g^2 + g^3 sum_ab A) (Chattopadhyay et al. 2018, eq. 19).

    The powers of g are the higher derivatives of exp(S) without the common factor exp(S).
    """
    alpha = grad_cam_pp_alpha(activations, gradients)
    return tf.reduce_sum(alpha * tf.nn.relu(gradients), axis=(1, 2), keepdims=True)


def grad_cam_pp_alpha(activations, gradients):
    """Returns alpha of `grad_cam_pp`, [B, h, w, K], as 1 / (2 + g sum_ab A), so that small gradients keep their weight.

    It is 0 where the denominator is 0, and 1/2 where g is 0, where the equation does not define it.
    """
    denominator = 2 + gradients * tf.reduce_sum(activations, axis=(1, 2), keepdims=True)
    return tf.where(tf.abs(denominator) > EPSILON, 1 / denominator, 0.0)


def grad_cam_pp_summed(activations, gradients):
    """As `grad_cam_pp` with alpha = g^2 / (2 g^2 + sum_ab A g^3), which sums the third power over the map.

    This is a common misreading of equation 19, which the older system used. Both are equal if g is the same at every
    position, as on the last feature map of a network with global average pooling.
    """
    scale = tf.reduce_max(tf.abs(gradients), axis=(1, 2, 3), keepdims=True)  # small gradients keep their weight
    g = tf.math.divide_no_nan(gradients, scale)
    # in terms of the scaled g: alpha = g^2 / (2 g^2 + scale * sum_ab A g^3)
    denominator = 2 * g**2 + scale * tf.reduce_sum(activations * g**3, axis=(1, 2), keepdims=True)
    alpha = tf.where(tf.abs(denominator) > EPSILON, g**2 / denominator, 0.0)
    return tf.reduce_sum(alpha * tf.nn.relu(gradients), axis=(1, 2), keepdims=True)


def layer_cam(activations, gradients):
    """w_kij = ReLU(g) (Jiang et al. 2021, eq. 5), a separate weight for every position."""
    return tf.nn.relu(gradients)


METHODS: Mapping[str, Callable] = {
    "cam": cam,
    "grad_cam": grad_cam,
    "grad_cam_pp": grad_cam_pp,
    "grad_cam_pp_summed": grad_cam_pp_summed,
    "layer_cam": layer_cam,
}


def weighted_map(activations, weights) -> tf.Tensor:
    """Returns the map ReLU(sum_k w_k A^k), [B, h, w]."""
    return tf.nn.relu(tf.reduce_sum(weights * activations, axis=-1))


def erase_mask(maps, q, size: tuple[int, int] | None = None, of: str = "positive") -> tf.Tensor:
    """Returns a mask float32 [B, H, W] that is 1 where the image is to be erased, otherwise 0.

    With `of="positive"`, erased is the fraction 1 - q of the pixels whose map value is positive, those with the highest
    values (the number is rounded; ties are ordered by position). A map without positive values erases nothing; a
    constant map erases the fraction 1 - q of the image. With `of="all"`, erased are the pixels above the quantile q of
    all pixels (linear interpolation); a constant map erases nothing.

    Args:
        maps: [B, H, W], any scale.
        q: in (0, 1), a number or a tensor.
        size: rows and columns H, W of the mask, to which the maps are resized first (bilinear); None keeps the size of
            the maps.
        of: `positive` or `all`, the pixels that q refers to.
    """
    if size is not None:
        maps = _resized(maps, size)
    shape = tf.shape(maps)
    flat = tf.reshape(maps, [shape[0], shape[1] * shape[2]])
    if of == "all":
        return tf.cast(maps > _quantile(flat, q)[:, None, None], tf.float32)
    positive = tf.reduce_sum(tf.cast(flat > 0, tf.float32), axis=1)
    wanted = tf.cast(tf.round((1 - tf.cast(q, tf.float32)) * positive), tf.int32)
    ordered = tf.sort(flat, axis=1, direction="DESCENDING")
    cut = tf.gather(ordered, tf.maximum(wanted - 1, 0)[:, None], batch_dims=1)  # value of the last erased pixel
    above = flat > cut
    ties = tf.cast(flat == cut, tf.int32)
    room = wanted[:, None] - tf.reduce_sum(tf.cast(above, tf.int32), axis=1, keepdims=True)
    taken = above | ((ties > 0) & (tf.cumsum(ties, axis=1) <= room))
    return tf.reshape(tf.cast(taken & (wanted[:, None] > 0), tf.float32), shape)


def _quantile(values, q) -> tf.Tensor:
    """Returns the quantile q of each row of values [B, N], [B], with linear interpolation as in NumPy."""
    ordered = tf.sort(values, axis=1)
    place = tf.cast(q, tf.float32) * tf.cast(tf.shape(values)[1] - 1, tf.float32)
    below = tf.cast(tf.floor(place), tf.int32)
    above = tf.minimum(below + 1, tf.shape(values)[1] - 1)
    low, high = tf.gather(ordered, below, axis=1), tf.gather(ordered, above, axis=1)
    return low + (high - low) * (place - tf.floor(place))


def predicted_sign(logits) -> tf.Tensor:
    """Returns d score / d logits [B, C] of the predicted class, from logits [B, C].

    One logit: +1 where p >= 0.5, otherwise -1 (evidence for normal). Several logits: one-hot of the largest.
    """
    if logits.shape[-1] == 1:
        return tf.where(logits >= 0, 1.0, -1.0)
    return tf.one_hot(tf.argmax(logits, axis=-1), logits.shape[-1])


def named_target(name: str, classes: Sequence[str]) -> Callable:
    """Returns a target for `CamEngine`, a function: logits [B, C] -> d score / d logits [B, C].

    Args:
        name: `predicted` (the predicted class) or the name of a class; for two classes `normal` and `abnormal` are
            accepted as names of the first and the second class.
        classes: names in the order of the labels; two for a single logit.

    Raises:
        ValueError: the name is unknown; lists the known names.
    """
    if name == "predicted":
        return predicted_sign
    sides = {"normal": 0, "abnormal": 1} if len(classes) == 2 else {}
    numbers = sides | {class_name: number for number, class_name in enumerate(classes)}
    if name not in numbers:
        raise ValueError(f"target {name!r} is unknown; choose one of predicted, {', '.join(numbers)}")
    number = numbers[name]

    def target(logits):
        if logits.shape[-1] == 1:
            return tf.fill(tf.shape(logits), 1.0 if number == 1 else -1.0)
        return tf.one_hot(tf.fill(tf.shape(logits)[:1], number), logits.shape[-1])

    return target


def log_odds(positive: Sequence[bool]) -> Callable:
    """Returns a target for `CamEngine`: evidence for a group of classes against the other classes.

    The target is d log(p / (1 - p)) / d logits, where p is the summed softmax probability of the group.

    Args:
        positive: for each class, whether it belongs to the group.
    """
    mask = tf.constant(list(map(bool, positive)))

    def target(logits):
        inside, outside = (tf.nn.softmax(tf.where(part, logits, logits.dtype.min), axis=-1) for part in (mask, ~mask))
        return inside - outside

    return target


class CamEngine:
    """Computes maps of a batch in one forward pass, with a backward pass from the score to the tap only.

    The maps are computed in float32 and in inference mode. An image whose map at `tap` is empty gets the map at
    `fallback`; if both are empty, its map is empty.

    Attributes:
        compiled: the compiled version of a call, one graph per `target`, `size` and `flip`; for use outside of graphs.
    """

    def __init__(
        self, model: keras.Model, *, method: str = "grad_cam_pp", tap: str = "P5", fallback: str | None = "P4"
    ):
        """
        Args:
            model: a functional model with `feature_maps` (name -> KerasTensor), as in RadiographClassifier.
            method: a name of METHODS.
            tap: feature map to explain.
            fallback: feature map for images whose map at `tap` is empty, or None.

        Raises:
            ValueError: the method or a feature map is unknown; lists the known names.
        """
        for name, known in ((method, METHODS), (tap, model.feature_maps), (fallback or tap, model.feature_maps)):
            if name not in known:
                raise ValueError(f"{name!r} is unknown; choose one of {', '.join(known)}")
        self.weights_of = METHODS[method]
        self.tap, self.fallback = tap, fallback
        names = [tap] if fallback is None else [tap, fallback]
        needed = dict.fromkeys([*names, *model.head_sees])
        self._front = keras.Model(model.input, {name: model.feature_maps[name] for name in needed})
        self._tails = {name: _tail(model, name) for name in names}
        self.compiled = tf.function(self.__call__, reduce_retracing=True)

    def __call__(self, images, target=None, size: tuple[int, int] | None = None, flip: bool = False):
        """Returns raw maps and logits of a batch.

        Args:
            images: [B, H, W, C], the input of the model.
            target: a function logits [B, C] -> d score / d logits [B, C]; None explains the predicted class.
            size: rows and columns of the maps (bilinear resizing); None uses the size of the images.
            flip: average the map with that of the mirrored image, mirrored back, for the same target. This doubles the
                cost.

        Returns:
            maps float32 [B, rows, columns], non-negative; logits float32 [B, C] of the images that are not mirrored.
        """
        target = target or predicted_sign
        if flip:
            maps, logits = self(images, target, size)
            mirrored, _ = self(tf.reverse(images, [2]), lambda _: target(logits), size)
            return (maps + tf.reverse(mirrored, [2])) / 2, logits
        size = size or tf.shape(images)[1:3]
        features = self._front(images, training=False)
        maps, logits = self._maps(self.tap, features, target)
        maps = _resized(maps, size)
        if self.fallback is None:
            return maps, logits

        def with_fallback():
            other, _ = self._maps(self.fallback, features, target)
            empty = tf.reduce_max(maps, axis=(1, 2)) <= 0
            return tf.where(empty[:, None, None], _resized(other, size), maps)

        some_empty = tf.reduce_any(tf.reduce_max(maps, axis=(1, 2)) <= 0)
        return tf.cond(some_empty, with_fallback, lambda: maps), logits

    def _maps(self, name, features, target):
        activations = features[name]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(activations)
            logits = tf.cast(self._tails[name](features | {name: activations}), tf.float32)
        # the target is d score / d logits, so it starts the backward pass and the score itself is not needed
        gradients = tape.gradient(logits, activations, output_gradients=tf.stop_gradient(target(logits)))
        activations, gradients = tf.cast(activations, tf.float32), tf.cast(gradients, tf.float32)
        return weighted_map(activations, self.weights_of(activations, gradients)), logits


def _tail(model: keras.Model, name: str) -> Callable:
    """Returns the part of a model from one of its feature maps to the logits, in inference mode.

    It is a function of the map `name` and of all inputs of the head. Convolutional maps (P3, P4, P5) that depend on the
    map `name` are computed from it again, so that the gradient includes every path to the logits.
    """
    seen = model.head_sees
    head = keras.Model([model.feature_maps[level] for level in seen], model.output)
    after = CONVOLUTIONAL[CONVOLUTIONAL.index(name) + 1 :] if name in CONVOLUTIONAL else ()
    later = [level for level in seen if level in after]
    inner = model.get_layer("feature_maps") if later else None
    between = keras.Model(inner.output[name], {level: inner.output[level] for level in later}) if later else None

    def tail(maps):
        recomputed = between(maps[name], training=False) if later else {}
        return head([recomputed.get(level, maps[level]) for level in seen], training=False)

    return tail


def _resized(maps, size) -> tf.Tensor:
    return tf.image.resize(maps[..., None], size)[..., 0]
