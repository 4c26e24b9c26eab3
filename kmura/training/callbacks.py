"""Keras callbacks of the fit loop: stop on a non-finite loss; reduce the learning rate or stop on a plateau."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras

from kmura.errors import InputError


class NonFiniteLoss(InputError):
    """The loss is not a finite number; `what` says where, without the advice of the message."""

    def __init__(self, what: str, advice: str):
        super().__init__(f"{what}; {advice}")
        self.what = what


class StopOnNonFiniteLoss(keras.callbacks.Callback):
    """Raises a NonFiniteLoss that states the epoch, the batch and the last checkpoint."""

    def __init__(self, last: Path):
        """
        Args:
            last: folder of the run's last checkpoint, from the end of the previous epoch.
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
    """Returns the error for a non-finite loss after a number of whole epochs, the last of which `last` holds."""
    kept = f"{last} holds the end of epoch {epochs}" if epochs else "no epoch was finished"
    return NonFiniteLoss(
        what,
        f"{kept}; "
        "reduce train.learning_rate, or train in float32 if precision is mixed_float16, and choose another --runs "
        "folder or start again with --fresh, which deletes this run",
    )


def plateau_callbacks(train: Any, history: Sequence[Mapping[str, Any]], loss: str) -> list[keras.callbacks.Callback]:
    """Returns ReduceLROnPlateau and EarlyStopping as configured, in their state after the epochs in `history`.

    Their state depends only on the validation losses, so it is not stored: a resumed run replays the losses of its
    finished epochs. They must come after all callbacks that set the learning rate when training begins.

    Args:
        train: has `learning_rate`, `plateau_patience`, `plateau_factor`, `plateau_min_rate` and `stop_patience`.
        history: the rows of the finished epochs.
        loss: the name of the validation loss.
    """
    callbacks = []
    if train.plateau_patience:
        callbacks.append(
            keras.callbacks.ReduceLROnPlateau(
                monitor=loss,
                mode="min",
                factor=train.plateau_factor,
                patience=train.plateau_patience,
                min_lr=min(train.plateau_min_rate, train.learning_rate),
            )
        )
    if train.stop_patience:
        callbacks.append(_early_stopping(train, loss))
    return [*callbacks, _Replay(callbacks, history)] if callbacks else []


def has_stopped(train: Any, history: Sequence[Mapping[str, Any]], loss: str) -> bool:
    """Whether early stopping has ended a run with this history; arguments as in `plateau_callbacks`."""
    if not train.stop_patience:
        return False
    stopping, model = _early_stopping(train, loss), SimpleNamespace(stop_training=False)
    stopping.set_model(model)
    stopping.on_train_begin()
    for epoch, row in enumerate(history):
        stopping.on_epoch_end(epoch, dict(row))
    return model.stop_training


def _early_stopping(train: Any, loss: str) -> keras.callbacks.EarlyStopping:
    return keras.callbacks.EarlyStopping(monitor=loss, mode="min", patience=train.stop_patience)


class _Replay(keras.callbacks.Callback):
    """Replays the logs of earlier epochs to callbacks when training begins."""

    def __init__(self, callbacks, history):
        super().__init__()
        self.others, self.history = callbacks, list(history)

    def on_train_begin(self, logs=None):
        for epoch, row in enumerate(self.history):
            for callback in self.others:
                callback.on_epoch_end(epoch, dict(row))
