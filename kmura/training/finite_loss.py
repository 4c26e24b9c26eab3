"""A run whose loss is no number any more stops at once."""

import math
from pathlib import Path

import keras

from kmura.errors import InputError


class NonFiniteLoss(InputError):
    """The loss of a step is no number."""


class StopOnNonFiniteLoss(keras.callbacks.Callback):
    """Ends training with a NonFiniteLoss that names the epoch, the batch and the last good checkpoint."""

    def __init__(self, last: Path):
        """
        Args:
            last: folder of the run's last checkpoint, which holds the end of the epoch before.
        """
        super().__init__()
        self.last = last

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if not math.isfinite(logs["loss"]):
            what = f"the loss is {logs['loss']} in epoch {self.epoch + 1}, batch {batch + 1}"
            raise non_finite_loss(what, self.last, self.epoch)


def non_finite_loss(what: str, last: Path, epochs: int) -> NonFiniteLoss:
    """The error for a loss that is no number, after so many whole epochs, the last of which `last` holds."""
    kept = f"{last} holds the end of epoch {epochs}" if epochs else "no epoch was finished before"
    return NonFiniteLoss(
        f"{what}; {kept}; "
        "lower train.learning_rate, or train in float32 if precision is mixed_float16, and begin with --fresh"
    )
