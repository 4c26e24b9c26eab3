"""Heads by name: from a feature map to logits. To add one, write a function and add it to `HEADS`."""

from collections.abc import Callable

import keras

LOGITS = "logits"  # name of the Dense layer that ends every head


def logits_of(features: keras.KerasTensor, num_classes: int, dropout: float) -> keras.KerasTensor:
    """Logits [B, num_classes], float32, linear in `features` [B, channels], of which training drops a share."""
    if dropout:
        features = keras.layers.Dropout(dropout, dtype="float32", name="dropout")(features)
    return keras.layers.Dense(num_classes, dtype="float32", name=LOGITS)(features)


def linear(features: keras.KerasTensor, num_classes: int, dropout: float) -> keras.KerasTensor:
    """Logits [B, num_classes], float32, linear in the mean of `features` over the image.

    Args:
        features: [B, h, w, channels].
        num_classes: number of logits.
        dropout: share of the pooled features dropped in training.
    """
    # Pooled in float32: a mean over many bfloat16 numbers would keep 8 bits.
    pooled = keras.layers.GlobalAveragePooling2D(dtype="float32", name="pool")(features)
    return logits_of(pooled, num_classes, dropout)


HEADS: dict[str, Callable[[keras.KerasTensor, int, float], keras.KerasTensor]] = {
    "linear": linear,
}
