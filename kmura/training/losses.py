"""Losses from logits by task: Keras' own, and those it lacks."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from kmura.config import TrainConfig


@keras.saving.register_keras_serializable("kmura")
class WeightedBinaryCrossentropy(keras.losses.Loss):
    """Binary cross-entropy from logits with the positive term weighted, as torch's `BCEWithLogitsLoss(pos_weight)`.

    loss = mean of -(w y log s(x) + (1 - y) log(1 - s(x))), s the logistic function, over [B, C].

    Args:
        pos_weight: w, 0 or more; negatives / positives balances the classes. One number, or one for each label [C].
        label_smoothing: e moves the labels to y (1 - e) + e / 2.
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
        y_true = y_true * (1 - self.label_smoothing) + self.label_smoothing / 2
        weight = tf.constant(self.pos_weight, tf.float32)
        return tf.reduce_mean(tf.nn.weighted_cross_entropy_with_logits(y_true, y_pred, weight), axis=-1)

    def get_config(self):
        return super().get_config() | {"pos_weight": self.pos_weight, "label_smoothing": self.label_smoothing}


@keras.saving.register_keras_serializable("kmura")
class WeightedCategoricalCrossentropy(keras.losses.Loss):
    """Categorical cross-entropy from logits, each class with its weight (Keras' own takes none): labels [B, C].

    loss = mean over the batch of -sum_c w_c y_c log softmax(x)_c.

    Args:
        class_weights: w, one for each class; None for 1.
        label_smoothing: e moves the labels to y (1 - e) + e / C.
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
    """Keras' binary focal loss (Lin et al. 2017, eq. 4 and 5) from logits, with a plain factor that Keras has not.

    loss = mean of factor * a_t (1 - p_t)^gamma * -log p_t over [B, C]; p_t is the probability of the true side.

    Args:
        gamma: 0 or more; 0 is cross-entropy.
        factor: of the whole loss.
        alpha: a_t is alpha for positives and 1 - alpha for negatives; None weighs neither (a_t = 1).
        label_smoothing: e moves the labels to y (1 - e) + e / 2.
    """

    def __init__(
        self,
        gamma: float = 2.0,
        factor: float = 1.0,
        alpha: float | None = None,
        label_smoothing: float = 0.0,
        name="binary_focal",
        **kwargs,
    ):
        super().__init__(
            apply_class_balancing=alpha is not None,
            alpha=0.25 if alpha is None else alpha,
            gamma=gamma,
            from_logits=True,
            label_smoothing=label_smoothing,
            name=name,
            **kwargs,
        )
        self.focal = {"gamma": gamma, "factor": factor, "alpha": alpha, "label_smoothing": label_smoothing}

    def call(self, y_true, y_pred):
        return self.focal["factor"] * super().call(tf.cast(y_true, tf.float32), tf.cast(y_pred, tf.float32))

    def get_config(self):
        return {"name": self.name, "reduction": self.reduction, "dtype": self.dtype, **self.focal}


def make_loss(task: str, train: TrainConfig, balance: Sequence[float]) -> keras.losses.Loss:
    """The loss that a configuration asks for, of labels and logits [B, L].

    Args:
        task: `binary`, `multiclass` or `multilabel`.
        train: kind, focusing, factors, smoothing, and whether `balance` counts.
        balance: weights that balance the classes: of `multiclass` one for each class; else negatives / positives of
            each label [L].
    """
    smoothing = {"label_smoothing": train.label_smoothing}
    if task == "multiclass":
        weights = list(balance) if train.balance else None
        if train.loss == "cross_entropy":
            return WeightedCategoricalCrossentropy(weights, **smoothing)
        alpha = [train.focal_factor * weight for weight in weights or [1.0] * len(balance)]  # multiplies its class
        return keras.losses.CategoricalFocalCrossentropy(alpha, train.focal_gamma, from_logits=True, **smoothing)
    if train.loss == "cross_entropy":
        weights = list(balance) if train.balance else [1.0]
        return WeightedBinaryCrossentropy(weights[0] if len(weights) == 1 else weights, **smoothing)
    alpha = train.focal_alpha
    if alpha is None and train.balance:
        alpha = [weight / (1 + weight) for weight in balance]  # positives : negatives as negatives : positives
        alpha = alpha[0] if len(alpha) == 1 else alpha
    return BinaryFocalLoss(train.focal_gamma, train.focal_factor, alpha, **smoothing)
