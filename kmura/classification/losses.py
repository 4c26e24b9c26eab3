"""Losses from logits, by task: those of Keras where possible, others where Keras has none or clips probabilities."""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from kmura.config import TrainConfig
from kmura.tasks import Task


@keras.saving.register_keras_serializable("kmura")
class WeightedBinaryCrossentropy(keras.losses.Loss):
    """Binary cross-entropy from logits with the positive term weighted, as torch's `BCEWithLogitsLoss(pos_weight)`.

    loss = mean of -(w y log s(x) + (1 - y) log(1 - s(x))), s the logistic function, over [B, C]. The term of a label
    that is unknown (negative) is 0.

    Args:
        pos_weight: w, 0 or more; negatives / positives balances the classes. One number, or one per label [C].
        label_smoothing: e, 0 to 1; labels become y (1 - e) + e / 2.
    """

    def __init__(
        self, pos_weight: float | Sequence[float] = 1.0, label_smoothing: float = 0.0, name="weighted_bce", **kwargs
    ):
        super().__init__(name=name, **kwargs)
        self.pos_weight = pos_weight
        self.label_smoothing = label_smoothing

    def call(self, y_true, y_pred):
        y_pred = tf.cast(y_pred, tf.float32)
        y_true = tf.cast(y_true, tf.float32)
        known = y_true >= 0
        y_true = y_true * (1 - self.label_smoothing) + self.label_smoothing / 2
        weight = tf.constant(self.pos_weight, tf.float32)
        terms = tf.nn.weighted_cross_entropy_with_logits(y_true, y_pred, weight)
        return tf.reduce_mean(tf.where(known, terms, 0.0), axis=-1)

    def get_config(self):
        return super().get_config() | {"pos_weight": self.pos_weight, "label_smoothing": self.label_smoothing}


@keras.saving.register_keras_serializable("kmura")
class WeightedCategoricalCrossentropy(keras.losses.Loss):
    """Categorical cross-entropy from logits with class weights, which Keras' loss does not take; labels [B, C].

    loss = mean over the batch of -sum_c w_c y_c log softmax(x)_c.

    Args:
        class_weights: w, one per class [C]; None is 1.
        label_smoothing: e, 0 to 1; labels become y (1 - e) + e / C.
    """

    def __init__(
        self,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        name="weighted_cce",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        self.class_weights = None if class_weights is None else [float(weight) for weight in class_weights]
        self.label_smoothing = label_smoothing

    def call(self, y_true, y_pred):
        y_true = tf.cast(y_true, tf.float32)
        classes = y_true.shape[-1]
        y_true = y_true * (1 - self.label_smoothing) + self.label_smoothing / classes
        weights = tf.constant(self.class_weights or [1.0] * classes, tf.float32)
        return -tf.reduce_sum(weights * y_true * tf.nn.log_softmax(tf.cast(y_pred, tf.float32)), axis=-1)

    def get_config(self):
        return super().get_config() | {"class_weights": self.class_weights, "label_smoothing": self.label_smoothing}


@keras.saving.register_keras_serializable("kmura")
class BinaryFocalLoss(keras.losses.BinaryFocalCrossentropy):
    """Keras' binary focal loss (Lin et al. 2017, equations 4 and 5) from logits, times a factor.

    loss = mean of factor * a_t (1 - p_t)^gamma * -log p_t over [B, C]; p_t is the probability of the true class. The
    term of a label that is unknown (negative) is 0.

    Args:
        gamma: 0 or more; 0 is cross-entropy.
        factor: constant factor of the loss.
        alpha: a_t is alpha for positives and 1 - alpha for negatives; a number, or one per label [C]; None is a_t = 1.
        label_smoothing: e, 0 to 1; labels become y (1 - e) + e / 2.
    """

    def __init__(
        self,
        gamma: float = 2.0,
        factor: float = 1.0,
        alpha: float | Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        name="binary_focal",
        **kwargs,
    ):
        super().__init__(
            apply_class_balancing=alpha is not None,
            # 0.25 is Keras' default, which is not used; [C, 1], since `call` gives every label an axis of its own
            alpha=0.25 if alpha is None else np.array(alpha, np.float32)[..., None],
            gamma=gamma,
            from_logits=True,
            label_smoothing=label_smoothing,
            name=name,
            **kwargs,
        )
        self.factor = factor
        self.focal = {"gamma": gamma, "factor": factor, "alpha": alpha, "label_smoothing": label_smoothing}

    def call(self, y_true, y_pred):
        y_true, y_pred = tf.cast(y_true, tf.float32), tf.cast(y_pred, tf.float32)
        known = y_true >= 0
        terms = super().call(tf.where(known, y_true, 0.0)[..., None], y_pred[..., None])  # [B, C]
        return self.factor * tf.reduce_mean(tf.where(known, terms, 0.0), axis=-1)

    def get_config(self):
        return {"name": self.name, "reduction": self.reduction, "dtype": self.dtype} | self.focal


@keras.saving.register_keras_serializable("kmura")
class CategoricalFocalLoss(keras.losses.Loss):
    """Categorical focal loss from logits; labels [B, C].

    loss = mean over the batch of sum_c a_c y_c (1 - p_c)^gamma * -log p_c, p the softmax. Keras' loss clips p at 1e-7,
    so images with the largest loss have no gradient.

    Args:
        alpha: a, one per class [C]; None is 1.
        gamma, label_smoothing: see BinaryFocalLoss; labels become y (1 - e) + e / C.
    """

    def __init__(
        self,
        alpha: Sequence[float] | None = None,
        gamma: float = 2.0,
        label_smoothing: float = 0.0,
        name="categorical_focal",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        self.focal = {"alpha": alpha, "gamma": gamma, "label_smoothing": label_smoothing}

    def call(self, y_true, y_pred):
        y_true = tf.cast(y_true, tf.float32)
        classes, smoothing = y_true.shape[-1], self.focal["label_smoothing"]
        y_true = y_true * (1 - smoothing) + smoothing / classes
        alpha = tf.constant(self.focal["alpha"] or [1.0] * classes, tf.float32)
        logp = tf.nn.log_softmax(tf.cast(y_pred, tf.float32))
        return -tf.reduce_sum(alpha * y_true * (-tf.math.expm1(logp)) ** self.focal["gamma"] * logp, axis=-1)

    def get_config(self):
        return super().get_config() | self.focal


def make_loss(task: Task, train: TrainConfig, balance: Sequence[float]) -> keras.losses.Loss:
    """Returns the loss of a configuration, a function of labels and logits [B, L].

    Args:
        task: task of the model.
        train: determines the loss and its parameters, and whether `balance` is used.
        balance: weights that balance the classes [L]: with softmax one per class, else negatives / positives of each
            label.
    """
    weights = list(balance) if train.balance and train.sampling == "natural" else None  # balanced sampling needs none
    return _LOSSES[task.softmax, train.loss](train, weights, len(balance))


def _sigmoid_cross_entropy(train: TrainConfig, weights, number: int) -> keras.losses.Loss:
    weights = weights or [1.0]
    return WeightedBinaryCrossentropy(weights[0] if len(weights) == 1 else weights, train.label_smoothing)


def _sigmoid_focal(train: TrainConfig, weights, number: int) -> keras.losses.Loss:
    alpha = train.focal_alpha
    if alpha is None and weights:
        alpha = [weight / (1 + weight) for weight in weights]  # alpha : 1 - alpha is negatives : positives
        alpha = alpha[0] if len(alpha) == 1 else alpha
    return BinaryFocalLoss(train.focal_gamma, train.focal_factor, alpha, train.label_smoothing)


def _softmax_cross_entropy(train: TrainConfig, weights, number: int) -> keras.losses.Loss:
    return WeightedCategoricalCrossentropy(weights, train.label_smoothing)


def _softmax_focal(train: TrainConfig, weights, number: int) -> keras.losses.Loss:
    alpha = [train.focal_factor * weight for weight in weights or [1.0] * number]  # a factor of each class
    return CategoricalFocalLoss(alpha, train.focal_gamma, train.label_smoothing)


# (softmax over the logits?, `train.loss`) -> builder; to add a loss, add an entry
_LOSSES: dict[tuple[bool, str], Callable[..., keras.losses.Loss]] = {
    (False, "cross_entropy"): _sigmoid_cross_entropy,
    (False, "focal"): _sigmoid_focal,
    (True, "cross_entropy"): _softmax_cross_entropy,
    (True, "focal"): _softmax_focal,
}
