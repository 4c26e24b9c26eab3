"""The one fit loop: a run from records to `best.keras`, resumable after every epoch."""

import contextlib
import dataclasses
import importlib.metadata
import logging
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

import kmura
from kmura.config import Config, differences, load_config
from kmura.data import pipeline
from kmura.errors import InputError, reason
from kmura.files import replacing
from kmura.models.classifier import build_model
from kmura.records.manifest import Manifest, read_manifest
from kmura.training.cam_erasing import CamErasingModel
from kmura.training.checkpoint import STATE, LastCheckpoint
from kmura.training.finite_loss import StopOnNonFiniteLoss
from kmura.training.losses import WeightedBinaryCrossentropy
from kmura.training.optimizers import AdamL2, learning_rate
from kmura.training.phases import EpochKnobs
from kmura.training.run import RunDescription, RunFolder, read_run, write_run, write_summaries
from kmura.training.validation import StudyValidation

PHASES = ("baseline",)

log = logging.getLogger("kmura")


@dataclasses.dataclass(frozen=True)
class RunResult:
    """A finished run: its folder, the rows of `history.csv`, and the best epoch's row."""

    folder: Path
    history: pd.DataFrame
    best: dict


def fit_areas(records: str | os.PathLike, *, area: str | Sequence[str] = "all", **options) -> Iterator[RunResult]:
    """One run after another for several areas; all areas are checked before the first one trains.

    Args:
        records: folder of shards and manifest.
        area: `all`, one name or several.
        **options: of `fit`.

    Raises:
        InputError: see `fit`.
    """
    manifest = read_manifest(records)
    if not manifest.areas:
        raise InputError(f"{records} holds no areas; build the records again")
    names = list(manifest.areas) if area == "all" else [area] if isinstance(area, str) else list(area)
    select_on = (options.get("config") or load_config(options.get("phase", "baseline"))).train.select_on
    for name in names:
        _check_splits(manifest, name, select_on, records)
    for name in names:
        yield fit(records, area=name, **options)


def fit(
    records: str | os.PathLike,
    *,
    area: str,
    phase: str = "baseline",
    runs: str | os.PathLike = "runs",
    config: Config | None = None,
    fresh: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    command: str | None = None,
) -> RunResult:
    """A trained run in `RUNS/AREA/PHASE/`; goes on from its last finished epoch if there is one.

    With `config.train.deterministic` a run that was killed at any moment and called again ends with the same bits as an
    undisturbed one (on CPU).

    Args:
        records: folder of shards and manifest.
        area: one area of the records.
        phase: names the run and its default recipe.
        runs: where runs live.
        config: everything that decides the outcome; default: the recipe of the phase.
        fresh: begin anew, dropping what the run folder holds.
        callbacks: further Keras callbacks (progress display); they see all scores in their logs.
        command: noted in `run.json`.

    Raises:
        InputError: unknown area or phase, a split without one of the classes, a run folder of another configuration or
            other records, weights that cannot be loaded.
    """
    if phase not in PHASES:
        raise InputError(f"phase {phase!r} is unknown; choose one of {', '.join(PHASES)}")
    config = config or load_config(phase)
    manifest = read_manifest(records)
    _check_splits(manifest, area, config.train.select_on, records)
    folder = RunFolder(Path(runs) / area / phase)
    description = _describe(manifest, records, area, phase, config, command)
    started = not fresh and (folder.last / STATE).is_file()
    _check_claim(folder, description, fresh, started)

    with _session(config), pipeline.readable_errors(records):
        steps = pipeline.steps_per_epoch(records, area, batch_size=config.train.batch_size)
        trainer = _trainer(manifest, area, config, steps, restoring=started)
        variables = [*trainer.classifier.variables, *trainer.optimizer.variables]  # weights, random states, moments
        last = LastCheckpoint(folder.last, variables)
        epochs_done, state = last.restore() if started else (0, {"history": []})
        if epochs_done < config.train.epochs:
            if epochs_done:
                log.info("%s: going on after epoch %d of %d", folder.path, epochs_done, config.train.epochs)
            rows = pipeline.row_keys(records, area, config.train.select_on)
            validation = StudyValidation(
                trainer.classifier,
                pipeline.eval_dataset(records, area, config.train.select_on, data=config.data).map(_images),
                rows,
                trainer.loss,
            )
            dataset = pipeline.train_dataset(
                records,
                area,
                data=config.data,
                augment=config.augment,
                batch_size=config.train.batch_size,
                seed=config.train.seed,
                epochs=config.train.epochs,
                first_epoch=epochs_done,
                mix=config.mix,
            )
            if fresh and folder.path.exists():
                shutil.rmtree(folder.path)  # only now, when everything that the new run needs is there
            write_run(folder, description)
            keeper = _RunKeeper(folder, last, trainer.classifier, config.train.monitor, state)
            trainer.fit(
                dataset,
                steps_per_epoch=steps,
                initial_epoch=epochs_done,
                epochs=config.train.epochs,
                callbacks=[EpochKnobs(config), StopOnNonFiniteLoss(folder.last), validation, keeper, *callbacks],
                shuffle=False,  # the data set is in its order already
                verbose=0,
            )
        else:
            keeper = _RunKeeper(folder, last, trainer.classifier, config.train.monitor, state)
            log.info("%s: all %d epochs are done", folder.path, config.train.epochs)
    write_run(folder, dataclasses.replace(description, finished=True))
    history = keeper.table()
    write_summaries(runs, config.train.monitor)
    if not history["best"].any():
        raise InputError(
            f"{folder.path}: {config.train.monitor} was never a number, no epoch is best; see {folder.history}"
        )
    return RunResult(folder.path, history, history[history["best"]].iloc[-1].to_dict())


class _RunKeeper(keras.callbacks.Callback):
    """Writes `last/`, `best.keras` and `history.csv` after every epoch.

    A new best classifier waits in `last/` until the state names it; a kill in between either repeats the epoch or
    finds it there, so that `best.keras` and the history never tell of different epochs.
    """

    def __init__(self, folder: RunFolder, last: LastCheckpoint, classifier, monitor: str, state: dict):
        super().__init__()
        self.folder, self.last, self.classifier, self.monitor = folder, last, classifier, monitor
        self.history = state["history"]
        self._promote(state.get("best_file"))
        self._write_history()

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        values = {name: float(value) for name, value in logs.items()}
        rate = float(self.model.optimizer.learning_rate)
        score = values[self.monitor]
        known = [row[self.monitor] for row in self.history if row["best"]]
        best = not np.isnan(score) and (not known or score > known[-1])
        seconds = round(time.monotonic() - self.started, 2)
        row = {"epoch": epoch + 1, **values, "learning_rate": rate, "seconds": seconds, "best": best}
        logs.update({"best": best, "learning_rate": rate, "seconds": seconds})
        self.history.append(row)
        best_file = f"best-{epoch + 1:05d}.keras" if best else None
        if best:
            try:
                self.last.folder.mkdir(parents=True, exist_ok=True)
                self.classifier.save(self.last.folder / best_file)
            except OSError as error:
                raise InputError(f"cannot write to {self.last.folder}: {reason(error)}; free space") from error
        self.last.save(epoch + 1, {"history": self.history, "best_file": best_file}, keep=best_file)
        self._promote(best_file)
        self._write_history()

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


def _images(batch):
    return batch["image"]


@contextlib.contextmanager
def _session(config: Config):
    """Seeds, precision and determinism for one run, with Keras' own state cleared before it."""
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


def _trainer(manifest: Manifest, area: str, config: Config, steps: int, restoring: bool) -> CamErasingModel:
    classifier = build_model(
        **dataclasses.asdict(config.model) | ({"weights": "none"} if restoring else {}),  # the checkpoint has them all
        image_size=config.data.image_size,
        channels=manifest.channels,
        num_classes=1,
        seed=config.train.seed,
    )
    negatives, positives = manifest.areas[area]["train"].per_class
    pos_weight = negatives / positives if config.train.balance else 1.0
    trainer = CamErasingModel(classifier, can_erase=config.cam.from_epoch is not None)
    trainer.compile(
        optimizer=AdamL2(learning_rate(config.train, steps), l2=config.train.weight_decay),
        loss=WeightedBinaryCrossentropy(pos_weight, config.train.label_smoothing),
        metrics=[keras.metrics.BinaryAccuracy(name="acc", threshold=0.0)],
        jit_compile=False,  # XLA is slower than oneDNN on CPU
    )
    trainer.optimizer.build(classifier.trainable_variables)  # otherwise Keras traces the step twice
    return trainer


def _check_splits(manifest: Manifest, area: str, select_on: str, records) -> None:
    if manifest.task != "binary":
        raise InputError(f"{records} holds {manifest.task} records; fit trains binary ones: give two-class records")
    for split in ("train", select_on):
        counts = manifest.split(area, split, records)
        for class_name, number in zip(manifest.classes, counts.per_class, strict=True):
            if number == 0:
                raise InputError(
                    f"area {area} has no {class_name} images in its {split} split of {records}; "
                    + (
                        "add some"
                        if split == "train"
                        else "build with a larger --tune-fraction or use --select-on valid"
                    )
                )


def _describe(manifest: Manifest, records, area: str, phase: str, config: Config, command) -> RunDescription:
    versions = {
        "kmura": kmura.__version__,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "keras-hub": importlib.metadata.version("keras-hub"),
    }
    return RunDescription(
        area=area,
        phase=phase,
        records=str(Path(records).resolve()),
        inputs=manifest.inputs,
        classes=manifest.classes,
        task=manifest.task,
        channels=manifest.channels,
        config=config,
        versions=versions,
        command=command or shlex.join(sys.argv),
    )


def _check_claim(folder: RunFolder, wanted: RunDescription, fresh: bool, started: bool) -> None:
    """Refuses a folder that is no run, or with an epoch of another configuration or other records behind it."""
    if fresh and folder.path.exists() and not folder.description.exists() and any(folder.path.iterdir()):
        raise InputError(f"{folder.path} is no run folder; --fresh does not delete it, choose another --runs folder")
    if not started:
        return
    there = read_run(folder.path)
    changed = differences(there.config, wanted.config)
    longer = (
        len(changed) == 1
        and changed[0].startswith("train.epochs:")
        and wanted.config.train.epochs > there.config.train.epochs
        and wanted.config.train.schedule == "constant"
    )
    if changed and not longer:
        raise InputError(
            f"{folder.path} is a run of another configuration ({'; '.join(changed)}); "
            "repeat the old settings to go on, use --fresh to begin anew, or choose another --runs folder"
        )
    if there.inputs != wanted.inputs:
        raise InputError(
            f"{folder.path} was trained on other records ({there.records}); "
            "use --fresh to begin anew, or choose another --runs folder"
        )
