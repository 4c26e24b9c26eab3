"""`tune`: searches values for the phase `final` with KerasTuner; trials share a model and its trace where they can.

Each trial is a run in `RUNS/AREA/tune/trial_NN/`, which is trained and resumed by the same loop as every other run.
KerasTuner chooses the values of the trials. This module adds what KerasTuner lacks: median pruning, resuming within a
trial, and one model for all trials that differ only in variable settings. The module `oracles` adds state files that a
kill cannot damage.

Several processes share a search through KerasTuner's environment variables. `KERASTUNER_ORACLE_IP` and
`KERASTUNER_ORACLE_PORT` have the same values in all processes. `KERASTUNER_TUNER_ID` is `chief` in the process that
only chooses values, and any other name in a process that trains. All processes must have access to the same RUNS
folder.
"""

import contextlib
import dataclasses
import io
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import keras_tuner as kt
import numpy as np
import pandas as pd
from keras_tuner.src import config as tuner_settings

from kmura import kinds
from kmura.classification.fit import check_data, prepared_areas
from kmura.classification.fold_options import options_of_folds
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
from kmura.training.claim import check_claim, describe
from kmura.training.loop import RunResult, run_result, session, train

try:
    import resource
except ImportError:  # Windows does not have it
    resource = None

ORACLE = "oracle.json"
tuner_settings.DEBUG = False  # otherwise KerasTuner prints a traceback for every failed trial

log = logging.getLogger(__name__)


def tune_areas(
    records: str | os.PathLike,
    *,
    area: str | Sequence[str] = "all",
    folds: int = 0,
    fold: int | None = None,
    **options,
) -> Iterator[RunResult | None]:
    """Runs one search per area and fold, one after another; see `tune` and `kmura.classification.fit.fit_areas`.

    The search of a fold sees neither the images of its test fold nor the searches of other folds.
    """
    each = options_of_folds(records, folds, fold, options)
    prepared = [(some, *entry) for some in each for entry in prepared_areas(records, area, {"phase": "tune", **some})]
    for of_fold, dataset, config, _ in prepared:
        yield tune(dataset, area=dataset.area, **of_fold | {"config": config})


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
    """Searches values of `final` for an area, in `RUNS/AREA/tune/`; continues a search that was interrupted.

    With `model.architecture = "hybrid"` it searches values of `hybrid`, in `RUNS/AREA/tune-hybrid/`.

    The folder is a run of the best trial (`best.keras`, `history.csv`) and can be evaluated like any other run. It also
    contains `best.json` (the values that `final` uses), `tuner_summary.csv` (one row per trial), and one folder per
    trial with its history. `RUNS/tuner_summary.csv` joins the summaries of all areas. Only the model of the best trial
    is kept.

    Args:
        records: folder of shards and manifest, or its Dataset.
        area: one area of the records.
        runs: folder of all runs.
        recipe: name of a shipped recipe or path of a TOML file; None takes `tune`, or `tune_hybrid` for a hybrid.
        settings: override the recipe; the keys `tune.*` configure the search (see `kmura.config.TuneConfig`).
        config: complete configuration, which replaces recipe and settings.
        fresh: start again and delete the content of the folder.
        callbacks: further Keras callbacks for every trial; the attribute `trial` of a callback that has one is set to
            the name of the trial.
        command: stored in `run.json`; None stores the command line of this process.

    Returns:
        The result of the best trial; None in a worker, since the chief writes the result.

    Raises:
        InputError: see `kmura.fit`; also if the folder has a search over another space, or if every trial failed.
    """
    config = config or phase_config("tune", area, runs, recipe, settings)[0]
    check_search(config)
    dataset = dataset_of(records, area, config.data)
    check_data(dataset, config)
    folder = RunFolder(Path(runs) / area / searched(config)[1])
    description = describe(dataset, folder.path.name, config, kind=kinds.CLASSIFICATION, command=command)
    description.warn_of_leaks()
    role = _role()
    leads = role != "worker"
    with claimed(folder.path) if leads else contextlib.nullcontext():
        started = not fresh and (folder.description.exists() if not leads else (folder.path / ORACLE).is_file())
        if leads or started:
            description = check_claim(folder, description, fresh, started, growing="tune.trials")

        trainees = _Trainees(dataset)
        with session(config, description.precision), dataset.readable_errors():
            if role != "chief" and not started:
                trainees.of(config)  # before anything is deleted, since it may fail
            if leads:
                if fresh:
                    drop_run(folder.path)
                write_run(folder, description)
            if not is_over(folder.path, config.tune):
                try:
                    _Search(trainees, config, folder, callbacks).search(verbose=0)
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
    """Returns `config` with other values for some keys `stage.key`."""
    tables = config_json(config)
    for key, value in values.items():
        stage, _, name = key.partition(".")
        tables[stage][name] = value
    return config_from_tables(tables, "trial")


def _role() -> str:
    """Returns the role that KerasTuner's environment variables give this process: `chief`, `worker`, or `alone`.

    Raises:
        InputError: some of the variables are set and others are missing.
    """
    names = ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")
    missing = [name for name in names if not os.environ.get(name)]
    if len(missing) == len(names):
        return "alone"
    if missing:
        raise InputError(f"{missing[0]} is not set; set all of {', '.join(names)} for a shared search, or none")
    return "chief" if "chief" in os.environ["KERASTUNER_TUNER_ID"] else "worker"  # KerasTuner's own test


def check_search(config: ClassificationConfig) -> None:
    """Checks that the search has a score to maximise, and that every searched value has an effect.

    Raises:
        InputError: otherwise.
    """
    epochs, tune = config.train.epochs, config.tune
    if config.train.monitor in LOSSES:
        raise InputError(f"a search maximises a score; {config.train.monitor} is a loss, choose another train.monitor")
    erases = config.cam.from_epoch is not None and config.cam.from_epoch <= epochs
    for stage, on, fix in (
        ("cam", erases, "cam.from_epoch=1"),
        ("mix", config.mix.until_epoch, "mix.until_epoch=1000"),
    ):
        free = [key for key in searched(config)[0] if key.startswith(stage) and not is_fixed(tune, key)]
        if free and not on:
            raise InputError(f"{free[0]} is searched but never used in the {epochs} epochs of a trial; set {fix}")
    for schedule in tune.schedule:
        with_values(config, {"train.schedule": schedule})  # raises an InputError if another key excludes it
    unused = {"train.sampling is balanced": config.train.sampling == "balanced"}
    unused["train.focal_alpha is set"] = config.train.focal_alpha is not None
    for reason in (reason for reason, holds in unused.items() if holds and len(set(tune.balance)) > 1):
        raise InputError(f"train.balance is searched but not used, since {reason}; set tune.balance=[]")
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
    """The learner that trials share, and the initial values of its variables for every trial."""

    learner: ClassificationLearner
    initial: list[np.ndarray]


class _Trainees:
    """Makes the trainee of each trial. Only a trial with another value of OPTIONAL_KEYS needs another one."""

    def __init__(self, dataset: Dataset):
        self._dataset = dataset
        self._built: tuple[tuple, _Trainee] | None = None

    def of(self, config: ClassificationConfig) -> _Trainee:
        """Returns the trainee for a configuration: the last one if it fits, since each takes memory and a trace."""
        structure = config.model.dropout, config.train.schedule, config.train.balance
        if self._built is None or self._built[0] != structure:
            self._built = None
            learner = ClassificationLearner(self._dataset, config)
            self._built = structure, _Trainee(learner, [variable.numpy() for variable in learner.variables])
        return self._built[1]


class _Search(kt.Tuner):
    """KerasTuner's loop over trials; all trials use the same learner, which is built when it is first needed."""

    def __init__(self, trainees: _Trainees, config: ClassificationConfig, folder: RunFolder, callbacks):
        self.trainees, self.config, self.folder, self.callbacks = trainees, config, folder, callbacks
        self._since = time.monotonic()
        with contextlib.redirect_stdout(io.StringIO()):  # it prints that it resumes
            super().__init__(make_oracle(config), directory=str(folder.path.parent), project_name=folder.path.name)

    def _get_tuner_fname(self):
        return str(self.folder.path / ORACLE)  # the state to resume from; the tuner ID does not matter

    def save(self):
        if not self._is_worker():
            self.oracle.save()

    def reload(self):
        if not self._is_worker():
            self.oracle.reload()

    def run_trial(self, trial, *args, **kwargs):
        """Trains or resumes a trial, writes its result, and returns its best score."""
        try:
            return {self.config.train.monitor: self._score(trial)}
        except NonFiniteLoss as error:
            self._record(trial, math.nan, pd.DataFrame(), "failed", 0.0)
            log.warning("trial %s failed: %s; the search continues with other values", trial.trial_id, error.what)
            raise kt.errors.FailedTrialError(str(error)) from error
        except Exception as error:  # KerasTuner would count a failed trial and continue
            raise kt.errors.FatalError(str(error)) from error

    def _score(self, trial) -> float:
        folder = trial_folder(self.folder.path, trial.trial_id)
        values = trial.hyperparameters.values
        claim_values(folder, values)
        known = read_result(folder.path)
        if known is not None:  # trained, but the search was killed before it saved this
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
            trainee = self.trainees.of(config)
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
        """Stops a trial whose best score is below the median of the completed trials at the same epoch.

        KerasTuner's oracles see one value per trial; the curves are read from `history.csv` in the trial folders.
        """
        folder = trial_folder(self.folder.path, trial.trial_id)
        if self._prune(trial, read_history(folder)):
            model.stop_training = True

    def _prune(self, trial, history: pd.DataFrame) -> bool:
        """Whether to prune a trial: its best score so far is below the median at this epoch (as in Optuna)."""
        tune = self.config.tune
        frozen = self.config.train.frozen_until_epoch or 0  # its scores predict later ones poorly
        if not tune.prune or tune.tuner == "hyperband" or len(history) < max(frozen + 1, tune.prune_from_epoch):
            return False
        curves = [
            read_history(RunFolder(path))[self.config.train.monitor].to_list()
            for path, result in results(self.folder.path)
            if result["status"] == "completed" and result["trial"] != trial.trial_id
        ]
        at_this_epoch = [curve[len(history) - 1] for curve in curves if len(curve) >= len(history)]
        if len(at_this_epoch) < (tune.prune_startup_trials or tune.startup_trials):
            return False
        return bool(history[self.config.train.monitor].max() < np.median(at_this_epoch))

    def _record(self, trial, score: float, history: pd.DataFrame, status: str, beyond: float) -> None:
        """Writes the `result.json` of a trial, which marks the trial as ended."""
        result = {
            "trial": trial.trial_id,
            "status": status,
            "score": float(score),
            "epochs": len(history),
            "values": {key: trial.hyperparameters.values[key] for key in searched(self.config)[0]},
            "training_seconds": round(float(history["seconds"].sum()), 2) if len(history) else 0.0,
            "other_seconds": round(beyond, 2),  # since the end of the previous trial, without training
            "peak_memory_mb": _peak_memory(),
            "worker": self.tuner_id,
        }
        write_json(trial_folder(self.folder.path, trial.trial_id).path / RESULT, result)

    def _worth_keeping(self, trial) -> float:
        """Returns the score that makes a model the best so far; other models are not saved, which would take 1 s."""
        best = best_of(results(self.folder.path))
        if best is None or self.config.tune.tuner == "hyperband":
            return -math.inf
        score, earlier = best[1]["score"], int(best[1]["trial"]) < int(trial.trial_id)
        return math.nextafter(score, math.inf) if earlier else score  # ties: the earlier wins

    def _drop_files(self) -> None:
        if self.config.tune.tuner != "hyperband":  # it may still continue any trial
            drop_files(self.folder.path)


def _peak_memory() -> int | None:
    """Returns the peak resident memory of this process, MB; None if the system does not report it."""
    if resource is None:
        return None
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024))


class _Listener(keras.callbacks.Callback):
    """Notifies the search after each epoch; must come after the callbacks that score and save the epoch."""

    def __init__(self, search: _Search, trial):
        super().__init__()
        self.search, self.trial = search, trial

    def on_epoch_end(self, epoch, logs=None):
        self.search.on_epoch_end(self.trial, self.model, epoch, logs=logs)
