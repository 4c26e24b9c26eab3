"""Losses that Keras does not have."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("kmura")
class WeightedBinaryCrossentropy(keras.losses.Loss):
    """Binary cross-entropy from logits with the positive term weighted, as torch's `BCEWithLogitsLoss(pos_weight)`.

    loss = mean of -(w y log s(x) + (1 - y) log(1 - s(x))), s the logistic function, over [B, C].

    Args:
        pos_weight: w, 0 or more; negatives / positives balances the classes.
        label_smoothing: e moves the labels to y (1 - e) + e / 2.
    """

    def __init__(self, pos_weight: float = 1.0, label_smoothing: float = 0.0, name="weighted_bce", **kwargs):
        super().__init__(name=name, **kwargs)
        self.pos_weight = pos_weight
        self.label_smoothing = label_smoothing

    def call(self, y_true, y_pred):
        y_pred = tf.cast(y_pred, tf.float32)
        y_true = tf.cast(y_true, tf.float32)
        y_true = y_true * (1 - self.label_smoothing) + self.label_smoothing / 2
        return tf.reduce_mean(tf.nn.weighted_cross_entropy_with_logits(y_true, y_pred, self.pos_weight), axis=-1)

    def get_config(self):
        return super().get_config() | {"pos_weight": self.pos_weight, "label_smoothing": self.label_smoothing}
