"""`tune`: a search with KerasTuner for the values of the phase `final`, in which the model is traced once.

A trial is a run of its own in `RUNS/AREA/tune/trial_NN/`, trained by the same loop as every other run and resumed like
one. KerasTuner decides which values are tried; what it lacks stands here: median pruning, going on inside a trial, one
model for all trials; and in `oracles`: state files that no kill can damage.

Several workers share a search through KerasTuner's own environment variables, the same for all (`KERASTUNER_ORACLE_IP`,
`KERASTUNER_ORACLE_PORT`) and a `KERASTUNER_TUNER_ID` for each: `chief` for the one that only decides, any other name
for those that train. They must see the same RUNS folder.
"""

import contextlib
import dataclasses
import functools
import io
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import keras_tuner as kt
import numpy as np
import pandas as pd

from kmura import kinds
from kmura.classification.fit import check_data, prepared_areas
from kmura.classification.learner import ClassificationLearner
from kmura.classification.oracles import is_fixed, make_oracle
from kmura.classification.phases import phase_config, searched
from kmura.classification.trials import (
    RESULT,
    best_of,
    claim_values,
    drop_files,
    finish,
    is_over,
    join_summaries,
    read_history,
    read_result,
    results,
    trial_folder,
)
from kmura.config import ClassificationConfig, config_from_tables, config_json
from kmura.data.dataset import Dataset, dataset_of
from kmura.errors import InputError
from kmura.files import write_json
from kmura.runs.checkpoint import STATE
from kmura.runs.run import LOSSES, RunFolder, claimed, drop_run, write_run, write_summaries
from kmura.training.callbacks import NonFiniteLoss
from kmura.training.loop import RunResult, check_claim, describe, run_result, session, train

try:
    import resource
except ImportError:  # Windows does not have it
    resource = None

ORACLE = "oracle.json"


def tune_areas(
    records: str | os.PathLike, *, area: str | Sequence[str] = "all", **options
) -> Iterator[RunResult | None]:
    """One search after another for several areas; see `tune` and `kmura.classification.fit.fit_areas`."""
    for dataset, config, _ in prepared_areas(records, area, {"phase": "tune", **options}):
        yield tune(dataset, area=dataset.area, **options | {"config": config})


def tune(
    records: str | os.PathLike | Dataset,
    *,
    area: str,
    runs: str | os.PathLike = "runs",
    recipe: str | None = None,
    settings: Mapping[str, Any] | Iterable[str] = (),
    config: ClassificationConfig | None = None,
    fresh: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    command: str | None = None,
) -> RunResult | None:
    """Searches the values of `final` for an area, in `RUNS/AREA/tune/`; goes on where an earlier call was stopped.

    With `model.architecture = "hybrid"` it searches those of `hybrid`, in `RUNS/AREA/tune-hybrid/`.

    The folder is a run of the best trial (`best.keras`, `history.csv`) that can be evaluated like any other; beside
    that it holds `best.json` (the values, which `final` uses), `tuner_summary.csv` (a row a trial) and a folder a
    trial with its curve. `RUNS/tuner_summary.csv` joins all areas. Of the models only the best trial's stays.

    Args:
        records: folder of shards and manifest, or a Dataset of it.
        area: one area of the records.
        runs: where runs live.
        recipe: a shipped name or a TOML file, instead of `tune`.
        settings: laid over the recipe; the search itself is `tune.*` (see `kmura.config.TuneConfig`).
        config: everything that decides the outcome, instead of recipe and settings.
        fresh: begin anew, dropping what the folder holds.
        callbacks: further Keras callbacks of every trial; one with an attribute `trial` is told its name there.
        command: noted in `run.json`.

    Returns:
        The run of the best trial; None for a worker, whose chief knows it.

    Raises:
        InputError: see `kmura.fit`; a folder with a search of another space; a search in which nothing could be
            trained.
    """
    config = config or phase_config("tune", area, runs, recipe, settings)[0]
    check_search(config)
    dataset = dataset_of(records, area, config.data)
    check_data(dataset, config)
    folder = RunFolder(Path(runs) / area / searched(config)[1])
    description = describe(dataset, folder.path.name, config, kind=kinds.CLASSIFICATION, command=command)
    role = _role()
    leads = role != "worker"
    with claimed(folder.path) if leads else contextlib.nullcontext():
        started = not fresh and (folder.description.exists() if not leads else (folder.path / ORACLE).is_file())
        if leads or started:
            check_claim(folder, description, fresh, started, growing="tune.trials")

        @functools.cache
        def trainee() -> _Trainee:
            learner = ClassificationLearner(dataset, config)
            return _Trainee(learner, [variable.numpy() for variable in learner.variables])

        with session(config), dataset.readable_errors():
            if role != "chief" and not started:
                trainee()  # before anything is dropped: it may not come about
            if leads:
                if fresh:
                    drop_run(folder.path)
                write_run(folder, description)
            if not is_over(folder.path, config.tune):
                try:
                    _Search(trainee, config, folder, callbacks).search(verbose=0)
                except kt.errors.FatalError as error:
                    raise error.__cause__ or error from None
        if leads:
            finish(folder, area, config.train.monitor)
            write_run(folder, dataclasses.replace(description, finished=True))
            write_summaries(runs, config.train.monitor)
            join_summaries(Path(runs))
            return run_result(folder, pd.read_csv(folder.history), config.train.monitor)
        return None


def with_values(config: ClassificationConfig, values: Mapping[str, Any]) -> ClassificationConfig:
    """`config` with other values for some `stage.key`s."""
    tables = config_json(config)
    for key, value in values.items():
        stage, _, name = key.partition(".")
        tables[stage][name] = value
    return config_from_tables(tables, "trial")


def _role() -> str:
    """`alone`, or what KerasTuner's environment variables make of this process: `chief` or `worker`.

    Raises:
        InputError: some are set and others are missing.
    """
    names = ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")
    missing = [name for name in names if not os.environ.get(name)]
    if len(missing) == len(names):
        return "alone"
    if missing:
        raise InputError(f"{missing[0]} is not set; a shared search needs {', '.join(names)}, a search alone none")
    return "chief" if "chief" in os.environ["KERASTUNER_TUNER_ID"] else "worker"  # KerasTuner's own test


def check_search(config: ClassificationConfig) -> None:
    """Refuses a search of values that change nothing, or one that cannot search."""
    epochs, tune = config.train.epochs, config.tune
    if config.train.monitor in LOSSES:
        raise InputError(f"a search looks for the largest score; {config.train.monitor} is not one, set train.monitor")
    erases = config.cam.from_epoch is not None and config.cam.from_epoch <= epochs
    for stage, on, mend in (
        ("cam", erases, "cam.from_epoch=1"),
        ("mix", config.mix.until_epoch, "mix.until_epoch=1000"),
    ):
        free = [key for key in searched(config)[0] if key.startswith(stage) and not is_fixed(tune, key)]
        if free and not on:
            raise InputError(f"{free[0]} is searched but never used in the {epochs} epochs of a trial; set {mend}")
    slow = config.train.slow_from_epoch
    if "train.slow_factor" in searched(config)[0] and not is_fixed(tune, "train.slow_factor"):
        if slow is None or slow > epochs:
            raise InputError(
                f"train.slow_factor is searched but never used in the {epochs} epochs of a trial; set "
                f"train.slow_from_epoch={max(epochs, 1)} or lower, or tune.slow_factor=[0.1, 0.1]"
            )
        if tune.tuner == "hyperband":
            raise InputError("hyperband would stop trials before train.slow_factor is used; choose bayesian or random")
    if tune.tuner == "hyperband" and epochs < 3:
        raise InputError(f"hyperband has nothing to stop in trials of {epochs} epochs; give --epochs 3 or more")


@dataclasses.dataclass(frozen=True)
class _Trainee:
    """The learner that all trials share, and the values of its variables that each of them begins with."""

    learner: ClassificationLearner
    initial: list[np.ndarray]


class _Search(kt.Tuner):
    """KerasTuner's loop over trials, all trained with the same learner (made when first needed)."""

    def __init__(self, trainee: Callable[[], _Trainee], config: ClassificationConfig, folder: RunFolder, callbacks):
        self.trainee, self.config, self.folder, self.callbacks = trainee, config, folder, callbacks
        self._since = time.monotonic()
        with contextlib.redirect_stdout(io.StringIO()):  # it prints that it goes on
            super().__init__(make_oracle(config), directory=str(folder.path.parent), project_name=folder.path.name)

    def _get_tuner_fname(self):
        return str(self.folder.path / ORACLE)  # what is to be gone on with, whatever the name of the process

    def save(self):
        if not self._is_worker():
            self.oracle.save()

    def reload(self):
        if not self._is_worker():
            self.oracle.reload()

    def run_trial(self, trial, *args, **kwargs):
        """Trains a trial, or goes on with it; its best score and what the summary says of it."""
        try:
            return {self.config.train.monitor: self._score(trial)}
        except NonFiniteLoss as error:
            self._record(trial, math.nan, pd.DataFrame(), "failed", 0.0)
            raise kt.errors.FailedTrialError(str(error)) from error
        except Exception as error:  # KerasTuner would call it a failed trial and try the next
            raise kt.errors.FatalError(str(error)) from error

    def _score(self, trial) -> float:
        folder = trial_folder(self.folder.path, trial.trial_id)
        values = trial.hyperparameters.values
        claim_values(folder, values)
        known = read_result(folder.path)
        if known is not None:  # trained, but the search was killed before it took note
            self._drop_files()
            return known["score"]
        epochs = values.get("tuner/epochs", self.config.train.epochs)
        earlier = values.get("tuner/trial_id")  # under Hyperband: the trial that this one continues
        if earlier is not None and not (folder.last / STATE).exists():
            before, aside = trial_folder(self.folder.path, earlier), folder.path / ".last"
            shutil.copy2(before.best, folder.best)
            shutil.rmtree(aside, ignore_errors=True)
            shutil.copytree(before.last, aside)
            os.replace(aside, folder.last)
        config = with_values(self.config, {key: values[key] for key in searched(self.config)[0]})
        history = read_history(folder)
        epochs_done = len(history)
        pruned = self._prune(trial, history) and epochs_done < epochs
        if not pruned:
            listener = _Listener(self, trial)
            for callback in self.callbacks:
                if hasattr(callback, "trial"):
                    callback.trial = trial.trial_id
            trainee = self.trainee()
            trainee.learner.configure(config)
            history = train(
                trainee.learner,
                folder,
                epochs=epochs,
                initial=trainee.initial,
                worth_keeping=self._worth_keeping(trial),
                callbacks=[listener, *self.callbacks],
            )
            pruned = len(history) < epochs and not trainee.learner.has_stopped(history.to_dict("records"))
        score = history[self.config.train.monitor].max()
        beyond = time.monotonic() - self._since - history["seconds"][epochs_done:].sum()
        self._since = time.monotonic()
        self._record(trial, score, history, "pruned" if pruned else "completed", beyond)
        self._drop_files()
        return float(score)

    def on_epoch_end(self, trial, model, epoch, logs=None):
        """Stops a trial whose score is below the median of the finished trials' at the same epoch.

        KerasTuner's own oracles see one value a trial; the curves are the `history.csv` of the trial folders.
        """
        folder = trial_folder(self.folder.path, trial.trial_id)
        if self._prune(trial, read_history(folder)):
            model.stop_training = True

    def _prune(self, trial, history: pd.DataFrame) -> bool:
        """Median pruning as Optuna does it: the best score so far against the median at this epoch."""
        tune = self.config.tune
        frozen = self.config.train.frozen_until_epoch or 0  # what it says of the epochs after is little
        if not tune.prune or tune.tuner == "hyperband" or len(history) <= frozen:
            return False
        curves = [
            read_history(RunFolder(path))[self.config.train.monitor].to_list()
            for path, result in results(self.folder.path)
            if result["status"] == "completed" and result["trial"] != trial.trial_id
        ]
        at_this_epoch = [curve[len(history) - 1] for curve in curves if len(curve) >= len(history)]
        if len(at_this_epoch) < tune.startup_trials:
            return False
        return bool(history[self.config.train.monitor].max() < np.median(at_this_epoch))

    def _record(self, trial, score: float, history: pd.DataFrame, status: str, beyond: float) -> None:
        """Writes what the summary says of a trial; from then on it has ended."""
        result = {
            "trial": trial.trial_id,
            "status": status,
            "score": float(score),
            "epochs": len(history),
            "values": {key: trial.hyperparameters.values[key] for key in searched(self.config)[0]},
            "training_seconds": round(float(history["seconds"].sum()), 2) if len(history) else 0.0,
            "other_seconds": round(beyond, 2),  # since the end of the trial before, but for the training
            "peak_memory_mb": _peak_memory(),
            "worker": self.tuner_id,
        }
        write_json(trial_folder(self.folder.path, trial.trial_id).path / RESULT, result)

    def _worth_keeping(self, trial) -> float:
        """The score that makes a trial's model the best so far: others need not be written, which takes a second."""
        best = best_of(results(self.folder.path))
        if best is None or self.config.tune.tuner == "hyperband":
            return -math.inf
        score, earlier = best[1]["score"], int(best[1]["trial"]) < int(trial.trial_id)
        return math.nextafter(score, math.inf) if earlier else score  # of equal ones the earlier is the best

    def _drop_files(self) -> None:
        if self.config.tune.tuner != "hyperband":  # which may yet go on with any trial
            drop_files(self.folder.path)


def _peak_memory() -> int | None:
    """The largest resident memory of this process so far, MB; None where the system does not report it."""
    if resource is None:
        return None
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024))


class _Listener(keras.callbacks.Callback):
    """Tells the search of each epoch; stands behind the callbacks that score and save it."""

    def __init__(self, search: _Search, trial):
        super().__init__()
        self.search, self.trial = search, trial

    def on_epoch_end(self, epoch, logs=None):
        self.search.on_epoch_end(self.trial, self.model, epoch, logs=logs)
