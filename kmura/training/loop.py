"""The only fit loop: any `Learner`, trained into a run folder, resumable after every epoch."""

import abc
import contextlib
import dataclasses
import gc
import importlib.metadata
import logging
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

import kmura
from kmura import kinds
from kmura.config import differences
from kmura.data.dataset import Dataset
from kmura.errors import InputError, reason
from kmura.files import replacing
from kmura.runs.checkpoint import STATE, LastCheckpoint
from kmura.runs.run import (
    LOSSES,
    RunDescription,
    RunFolder,
    claimed,
    drop_run,
    read_run,
    write_run,
    write_summaries,
)
from kmura.training.callbacks import StopOnNonFiniteLoss, non_finite_loss

log = logging.getLogger("kmura")


class Learner(abc.ABC):
    """What differs between kinds of learning, for `train`.

    Attributes:
        model: the compiled keras.Model that is fitted.
        saved: the keras.Model that `best.keras` holds, with all weights of `model`.
        steps: batches per epoch.
        monitor: the score that chooses the best epoch, a name that `validate` returns; larger is better, unless it is
            one of `kmura.runs.run.LOSSES`.
        loss: the name of the validation loss that `validate` returns: training stops where it is not a number, and of
            epochs with an equal `monitor` the one with the lower loss is the better one.
    """

    model: keras.Model
    saved: keras.Model
    steps: int
    monitor: str
    loss: str = "val_loss"

    @abc.abstractmethod
    def batches(self, first: int, last: int) -> tf.data.Dataset:
        """The batches of the epochs `first` to `last` - 1, counted from 0, `steps` batches each.

        They have to be a function of the epochs alone, so that a resumed run sees what an undisturbed run sees.
        """

    @abc.abstractmethod
    def validate(self) -> dict[str, float]:
        """The scores of the model as it is now, `monitor` and `loss` among them."""

    def knobs(self) -> Sequence[keras.callbacks.Callback]:
        """Callbacks that set what an epoch trains with; they run before all others."""
        return ()

    def callbacks(self, history: Sequence[Mapping[str, Any]]) -> Sequence[keras.callbacks.Callback]:
        """Further callbacks of this kind; they see all scores in their logs.

        Args:
            history: the rows of the epochs that a resumed run has behind it.
        """
        return ()

    def has_stopped(self, history: Sequence[Mapping[str, Any]]) -> bool:
        """Whether early stopping has ended a run with this history."""
        return False

    @property
    def variables(self) -> list[keras.Variable]:
        """Everything that a checkpoint holds: weights, random states, moments of the optimizer."""
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
    """The history of a run that is trained to its last epoch, from the checkpoint in its folder if there is one.

    To be used inside `session`.

    Args:
        learner: what is trained, and how.
        folder: where `last/`, `best.keras` and `history.csv` are kept.
        epochs: stop after this many.
        resume: False begins anew whatever the folder holds.
        initial: values of `learner.variables` to begin a new run with; None takes those that they have.
        worth_keeping: a best epoch below this score leaves no `best.keras`.
        on_start: called when everything that training needs is there, before anything is written.
        callbacks: further Keras callbacks; they see all scores in their logs.

    Raises:
        InputError: a damaged checkpoint, a loss that is not a number, a full disk.
    """
    last = LastCheckpoint(folder.last, learner.variables)
    epochs_done, state = (last.restore() if resume else None) or (0, {"history": []})
    if learner.has_stopped(state["history"]):
        log.info("%s: %s had stopped falling, nothing is left to train", folder.path, learner.loss)
        epochs = epochs_done
    if epochs_done == 0 and initial is not None:
        for variable, value in zip(learner.variables, initial, strict=True):
            variable.assign(value)
    batches = learner.batches(epochs_done, epochs) if epochs_done < epochs else None
    on_start()
    if epochs_done:
        done = f"going on after epoch {epochs_done} of" if epochs_done < epochs else "done are all of"
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
                shuffle=False,  # the data set is in its order already
                verbose=0,
            )
        if len(keeper.history) < epochs and learner.has_stopped(keeper.history):
            log.info("%s: stopped early, %s has stopped falling", folder.path, learner.loss)
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
    """A trained run of any kind in `RUNS/AREA/PHASE/`; it goes on from its last finished epoch if there is one.

    Args:
        dataset: what it is trained on.
        phase: the name of the run.
        config: the configuration bundle of the kind.
        kind: a name of `kmura.kinds.KINDS`, whose learner is trained.
        runs: where runs live.
        fresh: begin anew and drop what the run folder holds.
        callbacks: further Keras callbacks; they see all scores in their logs.
        command: noted in `run.json`.

    Raises:
        InputError: a run folder of another configuration or other records, and what the learner and `train` raise.
    """
    folder = RunFolder(Path(runs) / dataset.area / phase)
    description = describe(dataset, phase, config, kind=kind, command=command)
    with claimed(folder.path):
        started = not fresh and (folder.last / STATE).is_file()
        check_claim(folder, description, fresh, started, growing="train.epochs")

        def on_start():
            if fresh:
                drop_run(folder.path)  # only now, when everything that the new run needs is there
            write_run(folder, description)

        with session(config), dataset.readable_errors():
            learner = kinds.part(kind, "learner")(dataset, config, load_weights=not started)
            history = train(
                learner, folder, epochs=config.train.epochs, resume=not fresh, on_start=on_start, callbacks=callbacks
            )
        write_run(folder, dataclasses.replace(description, finished=True))
        write_summaries(runs, learner.monitor)
        return run_result(folder, history, learner.monitor)


def run_result(folder: RunFolder, history: pd.DataFrame, monitor: str) -> RunResult:
    """The result of a finished run.

    Raises:
        InputError: no epoch has a score.
    """
    if not history["best"].any():
        raise InputError(f"{folder.path}: {monitor} was never a number, no epoch is best; see {folder.history}")
    return RunResult(folder.path, history, history[history["best"]].iloc[-1].to_dict())


def describe(dataset: Dataset, phase: str, config: Any, *, kind: str, command: str | None = None) -> RunDescription:
    """What `run.json` is to say of a run that begins here and now."""
    return RunDescription(
        kind=kind,
        area=dataset.area,
        phase=phase,
        records=str(dataset.records.resolve()),
        inputs=dataset.manifest.inputs,
        channels=dataset.manifest.channels,
        config=config,
        versions={
            "kmura": kmura.__version__,
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "keras-hub": importlib.metadata.version("keras-hub"),
        },
        command=command or shlex.join(sys.argv),
        task=dataset.labels.name,
        classes=dataset.labels.classes,
        areas=dataset.labels.areas,
    )


def check_claim(folder: RunFolder, wanted: RunDescription, fresh: bool, started: bool, growing: str) -> None:
    """Refuses a folder that is no run, or that has an epoch of another configuration or other records behind it.

    Args:
        folder: of the run.
        wanted: what is asked for now.
        fresh: the folder is to be dropped.
        started: the folder holds something to go on from.
        growing: the one key that may be larger than it was.

    Raises:
        InputError: says what differs.
    """
    if fresh and folder.path.exists() and not folder.description.exists() and any(folder.path.iterdir()):
        raise InputError(f"{folder.path} is no run folder; --fresh does not delete it, choose another --runs folder")
    if not started:
        return
    before = read_run(folder.path)
    if before.kind != wanted.kind:
        raise InputError(f"{folder.path} is a run of kind {before.kind}; choose another --runs folder")
    changed = differences(before.config, wanted.config)
    stage, _, key = growing.partition(".")
    old, new = (getattr(getattr(config, stage), key) for config in (before.config, wanted.config))
    longer = len(changed) == 1 and new > old
    if growing == "train.epochs" and getattr(wanted.config.train, "schedule", "constant") != "constant":
        longer = False  # the schedule of the epochs behind it would have been another
    if changed and not longer:
        raise InputError(
            f"{folder.path} is a run of another configuration ({'; '.join(changed)}); "
            "repeat the old settings to go on, use --fresh to begin anew, or choose another --runs folder"
        )
    if before.inputs != wanted.inputs:
        raise InputError(
            f"{folder.path} was trained on other records ({before.records}); "
            "use --fresh to begin anew, or choose another --runs folder"
        )


@contextlib.contextmanager
def session(config: Any) -> Iterator[None]:
    """Seeds, precision and determinism for a block of training, with Keras' own state cleared before it.

    Args:
        config: a bundle whose stage `train` has `seed`, `precision` and `deterministic`.
    """
    policy = keras.config.dtype_policy()
    keras.backend.clear_session()
    keras.utils.set_random_seed(config.train.seed)
    keras.config.set_dtype_policy(config.train.precision)
    if config.train.deterministic:
        tf.config.experimental.enable_op_determinism()
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)
        gc.unfreeze()  # what `_collecting_garbage_later` has set aside


class _Validation(keras.callbacks.Callback):
    """Adds the learner's scores to the logs of each epoch, for the callbacks behind it."""

    def __init__(self, learner: Learner):
        super().__init__()
        self.learner = learner

    def on_epoch_end(self, epoch, logs=None):
        logs.update(self.learner.validate())


class _RunKeeper(keras.callbacks.Callback):
    """Writes `last/`, `best.keras` and `history.csv` after every epoch.

    A new best model waits in `last/` until the state names it; after a kill in between the epoch is either repeated or
    found there, so that `best.keras` and the history never tell of different epochs.
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
        values = {name: float(value) for name, value in logs.items()}
        if np.isnan(values[self.learner.loss]):  # the last step of the epoch: its own loss was still a number
            raise non_finite_loss(f"the validation loss is nan after epoch {epoch + 1}", self.folder.last, epoch)
        rate = float(self.model.optimizer.learning_rate)
        best, score = self._is_best(values), self._score(values)
        seconds = round(time.monotonic() - self.started, 2)
        row = {"epoch": epoch + 1, **values, "learning_rate": rate, "seconds": seconds, "best": best}
        logs.update({"best": best, "learning_rate": rate, "seconds": seconds})
        self.history.append(row)
        best_file = f"best-{epoch + 1:05d}.keras" if best and score >= self.worth_keeping else None
        if best_file:
            try:
                self.last.folder.mkdir(parents=True, exist_ok=True)
                self.learner.saved.save(self.last.folder / best_file)
            except OSError as error:
                raise InputError(f"cannot write to {self.last.folder}: {reason(error)}; free space") from error
        self.last.save(epoch + 1, {"history": self.history, "best_file": best_file}, keep=best_file)
        self._promote(best_file)
        self._write_history()

    def _score(self, row: Mapping[str, float]) -> float:
        """The monitored score with the sign that makes larger better."""
        return (-1 if self.learner.monitor in LOSSES else 1) * row[self.learner.monitor]

    def _is_best(self, values: Mapping[str, float]) -> bool:
        """Whether an epoch beats all before it: by the score, of equal scores by the lower loss; NaN never does."""
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
        """The history as a table; `best` marks each epoch that was better than all before it."""
        return pd.DataFrame(self.history)

    def _write_history(self):
        if self.history:
            with replacing(self.folder.history) as file:
                self.table().to_csv(file, index=False)


@contextlib.contextmanager
def _collecting_garbage_later() -> Iterator[keras.callbacks.Callback]:
    """A callback whose first batch ends a pause of Python's garbage collector.

    Tracing makes millions of objects that all stay: searching them for garbage takes 2 s of DenseNet-121's first step,
    and 2 s now and then later. They are set aside until the end of the `session`.
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
