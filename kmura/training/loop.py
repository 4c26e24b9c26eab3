"""The training loop: trains any `Learner` into a run folder; resumable after every epoch."""

import abc
import contextlib
import dataclasses
import gc
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from kmura import kinds
from kmura.data.dataset import Dataset
from kmura.errors import InputError, reason, remedy
from kmura.files import replacing
from kmura.runs.checkpoint import STATE, LastCheckpoint
from kmura.runs.run import (
    LOSSES,
    RunFolder,
    claimed,
    drop_run,
    write_run,
    write_summaries,
)
from kmura.training.callbacks import StopOnNonFiniteLoss, non_finite_loss
from kmura.training.claim import check_claim, describe
from kmura.training.precision import warn_if_slow

log = logging.getLogger("kmura")


class Learner(abc.ABC):
    """The interface between a kind of learning and `train`.

    Attributes:
        model: the compiled keras.Model that is fitted.
        saved: the keras.Model that is saved as `best.keras`, with all weights of `model`.
        steps: batches per epoch.
        monitor: the score that selects the best epoch, a key of the result of `validate`; larger is better, except for
            `kmura.runs.run.LOSSES`. `epoch` selects the last epoch.
        loss: the validation loss, a key of the result of `validate`. Training stops if it is not a number. Between
            epochs with an equal `monitor`, the one with the lower loss is better.
    """

    model: keras.Model
    saved: keras.Model
    steps: int
    monitor: str
    loss: str = "val_loss"

    @abc.abstractmethod
    def batches(self, first: int, last: int) -> tf.data.Dataset:
        """Returns the batches of the epochs `first` to `last` - 1, counted from 0, `steps` batches per epoch.

        They must depend only on the epoch, so that a resumed run gets the same batches as an uninterrupted run.
        """

    @abc.abstractmethod
    def validate(self) -> dict[str, float]:
        """Returns the current scores of the model, including `monitor` and `loss`."""

    def knobs(self) -> Sequence[keras.callbacks.Callback]:
        """Returns callbacks that set the hyperparameters of an epoch; they run before all others."""
        return ()

    def callbacks(self, history: Sequence[Mapping[str, Any]]) -> Sequence[keras.callbacks.Callback]:
        """Returns further callbacks of this kind; their logs contain all scores.

        Args:
            history: the rows of the finished epochs of a resumed run.
        """
        return ()

    def has_stopped(self, history: Sequence[Mapping[str, Any]]) -> bool:
        """Whether early stopping has ended a run with this history."""
        return False

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables that a checkpoint stores: weights, random states, moments of the optimizer."""
        return [*self.saved.variables, *self.model.optimizer.variables]


@dataclasses.dataclass(frozen=True)
class RunResult:
    """A finished run: its folder, the rows of `history.csv`, and the row of the best epoch."""

    folder: Path
    history: pd.DataFrame
    best: dict


def train(
    learner: Learner,
    folder: RunFolder,
    *,
    epochs: int,
    resume: bool = True,
    initial: Sequence[np.ndarray] | None = None,
    worth_keeping: float = -np.inf,
    on_start: Callable[[], None] = lambda: None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> pd.DataFrame:
    """Trains a run to its last epoch, from the checkpoint in its folder if there is one.

    Call it inside `session`.

    Args:
        learner: the model, its data and its callbacks.
        folder: the run folder, to which `last/`, `best.keras` and `history.csv` are written.
        epochs: the number of epochs, including those that are finished.
        resume: False ignores a checkpoint in the folder.
        initial: initial values of `learner.variables` for a new run; None keeps their current values.
        worth_keeping: a best epoch with a score below this is not saved as `best.keras`.
        on_start: called when all preparations have succeeded, before anything is written.
        callbacks: further Keras callbacks; their logs contain all scores.

    Returns:
        The history, one row per epoch.

    Raises:
        InputError: the checkpoint is damaged, the loss is not a number, or the disk is full.
    """
    last = LastCheckpoint(folder.last, learner.variables)
    epochs_done, state = (last.restore() if resume else None) or (0, {"history": []})
    if learner.has_stopped(state["history"]):
        log.info(
            "%s: training has ended, since %s did not improve; nothing is left to train", folder.path, learner.loss
        )
        epochs = epochs_done
    if epochs_done == 0 and initial is not None:
        for variable, value in zip(learner.variables, initial, strict=True):
            variable.assign(value)
    batches = learner.batches(epochs_done, epochs) if epochs_done < epochs else None
    on_start()
    if epochs_done:
        done = f"continuing after epoch {epochs_done} of" if epochs_done < epochs else "finished all"
        log.info("%s: %s %d epochs", folder.path, done, epochs)
    keeper = _RunKeeper(folder, last, learner, state, worth_keeping)
    if batches is not None:
        common = [StopOnNonFiniteLoss(folder.last), _Validation(learner), keeper]
        own = learner.callbacks(keeper.history)
        with _collecting_garbage_later() as first_batch:
            learner.model.fit(
                batches,
                steps_per_epoch=learner.steps,
                initial_epoch=epochs_done,
                epochs=epochs,
                callbacks=[*learner.knobs(), *common, first_batch, *own, *callbacks],
                shuffle=False,  # the data set is shuffled already
                verbose=0,
            )
        if len(keeper.history) < epochs and learner.has_stopped(keeper.history):
            log.info("%s: stopped early, since %s did not improve", folder.path, learner.loss)
    return keeper.table()


def train_run(
    dataset: Dataset,
    phase: str,
    config: Any,
    *,
    kind: str,
    runs: str | os.PathLike = "runs",
    fresh: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    command: str | None = None,
) -> RunResult:
    """Trains a run of any kind in `RUNS/AREA/PHASE/`; it continues after its last finished epoch if there is one.

    Args:
        dataset: the training and validation data.
        phase: the name of the run.
        config: the configuration bundle of the kind.
        kind: a name in `kmura.kinds.KINDS`; its learner is trained.
        runs: folder of all runs.
        fresh: start again and delete the content of the run folder.
        callbacks: further Keras callbacks; their logs contain all scores.
        command: stored in `run.json`; None stores the command line of this process.

    Raises:
        InputError: the run folder has another configuration or other records; also raised by the learner and `train`.
    """
    folder = RunFolder(Path(runs) / dataset.area / phase)
    description = describe(dataset, phase, config, kind=kind, command=command)
    description.warn_of_leaks()
    with claimed(folder.path):
        started = not fresh and (folder.last / STATE).is_file()
        description = check_claim(folder, description, fresh, started, growing="train.epochs")

        def on_start():
            if fresh:
                drop_run(folder.path)  # only now, when all preparations have succeeded
            write_run(folder, description)

        with session(config, description.precision), dataset.readable_errors():
            learner = kinds.part(kind, "learner")(dataset, config, load_weights=not started)
            history = train(
                learner, folder, epochs=config.train.epochs, resume=not fresh, on_start=on_start, callbacks=callbacks
            )
        write_run(folder, dataclasses.replace(description, finished=True))
        write_summaries(runs, learner.monitor)
        return run_result(folder, history, learner.monitor)


def run_result(folder: RunFolder, history: pd.DataFrame, monitor: str) -> RunResult:
    """Returns the result of a finished run.

    Raises:
        InputError: no epoch has a score.
    """
    if not history["best"].any():
        raise InputError(
            f"{folder.path} has no best epoch: {monitor} was not a number in any epoch; see {folder.history}"
        )
    return RunResult(folder.path, history, history[history["best"]].iloc[-1].to_dict())


@contextlib.contextmanager
def session(config: Any, policy: str) -> Iterator[None]:
    """Clears Keras' global state, then sets seed, precision and determinism for a block of training.

    Args:
        config: a bundle whose stage `train` has `seed` and `deterministic`.
        policy: the dtype policy.
    """
    warn_if_slow(policy)
    earlier = keras.config.dtype_policy()
    keras.backend.clear_session()
    keras.utils.set_random_seed(config.train.seed)
    keras.config.set_dtype_policy(policy)
    if config.train.deterministic:
        tf.config.experimental.enable_op_determinism()
    try:
        yield
    finally:
        keras.config.set_dtype_policy(earlier)
        gc.unfreeze()  # what `_collecting_garbage_later` has frozen


class _Validation(keras.callbacks.Callback):
    """Adds the learner's scores to the logs of each epoch, for the callbacks after this one."""

    def __init__(self, learner: Learner):
        super().__init__()
        self.learner = learner

    def on_epoch_end(self, epoch, logs=None):
        logs.update(self.learner.validate())


class _RunKeeper(keras.callbacks.Callback):
    """Writes `last/`, `best.keras` and `history.csv` after every epoch.

    A new best model is saved in `last/` and moved to `best.keras` once the state refers to it. After a kill in between,
    the epoch is repeated or the move is completed, so `best.keras` and the history always belong to the same epoch.
    """

    def __init__(self, folder: RunFolder, last: LastCheckpoint, learner: Learner, state: dict, worth_keeping: float):
        super().__init__()
        self.folder, self.last, self.learner, self.worth_keeping = folder, last, learner, worth_keeping
        self.history = state["history"]
        self._promote(state.get("best_file"))
        self._write_history()

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        values = {"epoch": epoch + 1} | {name: float(value) for name, value in logs.items()}
        if np.isnan(values[self.learner.loss]):  # after the last step, whose own loss was still a number
            raise non_finite_loss(f"the validation loss is nan after epoch {epoch + 1}", self.folder.last, epoch)
        rate = float(self.model.optimizer.learning_rate)
        best, score = self._is_best(values), self._score(values)
        seconds = round(time.monotonic() - self.started, 2)
        row = {**values, "learning_rate": rate, "seconds": seconds, "best": best}
        logs.update({"best": best, "learning_rate": rate, "seconds": seconds})
        self.history.append(row)
        best_file = f"best-{epoch + 1:05d}.keras" if best and score >= self.worth_keeping else None
        if best_file:
            try:
                self.last.folder.mkdir(parents=True, exist_ok=True)
                self.learner.saved.save(self.last.folder / best_file)
            except OSError as error:
                fix = remedy(error, "choose another --runs folder")
                raise InputError(f"cannot write to {self.last.folder}: {reason(error)}; {fix}") from error
        self.last.save(epoch + 1, {"history": self.history, "best_file": best_file}, keep=best_file)
        self._promote(best_file)
        self._write_history()

    def _score(self, row: Mapping[str, float]) -> float:
        """Returns the monitored score, negated for a loss, so that larger is better."""
        return (-1 if self.learner.monitor in LOSSES else 1) * row[self.learner.monitor]

    def _is_best(self, values: Mapping[str, float]) -> bool:
        """Whether an epoch is the best so far: by its score, for equal scores by the lower loss; NaN never is."""
        if np.isnan(self._score(values)):
            return False
        best = [row for row in self.history if row["best"]]
        if not best:
            return True
        (ours, our_loss), (theirs, their_loss) = (
            (self._score(row), row[self.learner.loss]) for row in (values, best[-1])
        )
        return ours > theirs or (ours == theirs and our_loss < their_loss)

    def _promote(self, best_file: str | None) -> None:
        if best_file and (self.last.folder / best_file).exists():
            os.replace(self.last.folder / best_file, self.folder.best)

    def table(self) -> pd.DataFrame:
        """Returns the history, one row per epoch; `best` marks each epoch that was better than all earlier ones."""
        return pd.DataFrame(self.history)

    def _write_history(self):
        if self.history:
            with replacing(self.folder.history) as file:
                self.table().to_csv(file, index=False)


@contextlib.contextmanager
def _collecting_garbage_later() -> Iterator[keras.callbacks.Callback]:
    """Pauses Python's garbage collector; yields a callback that resumes it after the first batch.

    Tracing creates millions of long-lived objects. Scanning them takes 2 s of DenseNet-121's first step, and 2 s
    occasionally later. They are therefore frozen until the end of the `session`.
    """

    class FirstBatch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if was_on and not gc.isenabled():
                gc.freeze()
                gc.enable()

    was_on = gc.isenabled()
    gc.disable()
    try:
        yield FirstBatch()
    finally:
        if was_on:
            gc.enable()
