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
            kept = f"{self.last} holds the end of epoch {self.epoch}" if self.epoch else "no epoch was finished before"
            raise NonFiniteLoss(
                f"the loss is {logs['loss']} in epoch {self.epoch + 1}, batch {batch + 1}; {kept}; "
                "lower train.learning_rate, or train in float32 if precision is mixed_float16, and begin with --fresh"
            )
