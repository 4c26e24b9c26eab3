"""`fit`: a run of an area from records to `best.keras`, resumable after every epoch."""

import dataclasses
import importlib.metadata
import logging
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import pandas as pd
import tensorflow as tf

import kmura
from kmura.classification.learner import Trainer, session
from kmura.classification.phases import check_phase, phase_config
from kmura.config import ClassificationConfig, TrainConfig, differences
from kmura.data import pipeline
from kmura.data.labels import ALL, is_joint, labelling
from kmura.errors import InputError
from kmura.models.build import check_model
from kmura.records.manifest import Manifest, read_manifest
from kmura.runs.checkpoint import STATE
from kmura.runs.run import RunDescription, RunFolder, claimed, drop_run, read_run, write_run, write_summaries

log = logging.getLogger("kmura")


@dataclasses.dataclass(frozen=True)
class RunResult:
    """A finished run: its folder, the rows of `history.csv`, and the best epoch's row."""

    folder: Path
    history: pd.DataFrame
    best: dict


def fit_areas(
    records: str | os.PathLike,
    *,
    area: str | Sequence[str] = "all",
    callbacks_for: Callable[
        [str, Path, ClassificationConfig], Sequence[keras.callbacks.Callback]
    ] = lambda area, run, config: (),
    **options,
) -> Iterator[RunResult]:
    """One run after another for several areas; all areas are checked before the first one trains.

    Args:
        records: folder of shards and manifest.
        area: `all`, one name or several.
        callbacks_for: area, run folder and configuration -> callbacks of that run alone, behind the common ones.
        **options: of `fit`.

    Raises:
        InputError: see `fit`.
    """
    names = checked_areas(records, area, options)
    for name in names:
        config, source = _settled(name, options)
        own = callbacks_for(name, Path(options.get("runs", "runs")) / name / options.get("phase", "baseline"), config)
        if source:
            log.info("%s: %s", name, source)
        callbacks = [*options.get("callbacks", ()), *own]
        yield fit(records, area=name, **options | {"config": config, "callbacks": callbacks})


def checked_areas(records: str | os.PathLike, area: str | Sequence[str], options: Mapping[str, Any]) -> list[str]:
    """The names of areas that can all be trained with these options of `fit`.

    Raises:
        InputError: an unknown area, one without both classes in its splits, an unknown setting, a model that cannot be
            built.
    """
    manifest = read_manifest(records)
    if not manifest.areas:
        raise InputError(f"{records} holds no areas; build the records again")
    names = list(manifest.areas) if area == ALL else [area] if isinstance(area, str) else list(area)
    if area == ALL and is_joint(manifest, _settled(ALL, options)[0].data.task):
        names = [ALL]
    for name in names:
        config, _ = _settled(name, options)
        check_model(config.model, config.data.image_size, manifest.channels)
        check_splits(manifest, name, config, records)
    return names


def _settled(area: str, options: Mapping[str, Any]) -> tuple[ClassificationConfig, str]:
    """The configuration that these options of `fit` mean for an area, and where its tuned values come from, or ""."""
    if options.get("config"):
        return options["config"], ""
    known = {key: options[key] for key in ("recipe", "settings", "fresh") if key in options}
    return phase_config(options.get("phase", "baseline"), area, options.get("runs", "runs"), **known)


def fit(
    records: str | os.PathLike,
    *,
    area: str,
    phase: str = "baseline",
    runs: str | os.PathLike = "runs",
    recipe: str | None = None,
    settings: Mapping[str, Any] | Iterable[str] = (),
    config: ClassificationConfig | None = None,
    fresh: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    command: str | None = None,
) -> RunResult:
    """A trained run in `RUNS/AREA/PHASE/`; goes on from its last finished epoch if there is one.

    With `train.deterministic` a run that was killed at any moment and called again ends with the same bits as an
    undisturbed one (on CPU).

    Args:
        records: folder of shards and manifest.
        area: one area of the records.
        phase: `baseline`, `final` or `hybrid`: names the run, its default recipe and whether tuned values are used (see
            `kmura.classification.phases.phase_config`). The phase `tune` is `kmura.tune`.
        runs: where runs live.
        recipe: a shipped name or a TOML file, instead of the phase's own.
        settings: `stage.key -> value`, or texts `stage.key=value`, laid over the recipe and tuned values.
        config: everything that decides the outcome, instead of recipe, tuned values and settings.
        fresh: begin anew, dropping what the run folder holds.
        callbacks: further Keras callbacks (progress display); they see all scores in their logs.
        command: noted in `run.json`.

    Raises:
        InputError: unknown area or phase, a model that cannot be built, a split without one of the classes, a run
            folder of another configuration or other records, weights that cannot be loaded.
    """
    check_phase(phase)
    if phase == "tune":
        raise InputError("phase tune is a search, not one run; call kmura.tune, or kmura fit --phase tune")
    source = ""
    if config is None:
        config, source = phase_config(phase, area, runs, recipe, settings, fresh)
    manifest = read_manifest(records)
    check_model(config.model, config.data.image_size, manifest.channels)
    check_splits(manifest, area, config, records)
    if source:
        log.info("%s: %s", area, source)
    for note in never_reached(config):
        log.warning("%s %s: %s", area, phase, note)
    if phase == "final" and not config.mix.until_epoch and config.cam.from_epoch is None:
        log.warning(
            "%s final: neither mixes nor erases, as a baseline; set mix.until_epoch and cam.from_epoch, "
            "or take --recipe final",
            area,
        )
    folder = RunFolder(Path(runs) / area / phase)
    description = describe(manifest, records, area, phase, config, command)
    with claimed(folder.path):
        started = not fresh and (folder.last / STATE).is_file()
        check_claim(folder, description, fresh, started, growing="train.epochs")

        def on_start():
            if fresh:
                drop_run(folder.path)  # only now, when everything that the new run needs is there
            write_run(folder, description)

        with session(config), pipeline.readable_errors(records):
            trainer = Trainer(records, area, config, load_weights=not started)
            history = trainer.run(config, folder, resume=not fresh, on_start=on_start, callbacks=callbacks)
        write_run(folder, dataclasses.replace(description, finished=True))
        write_summaries(runs, config.train.monitor)
        return run_result(folder, history, config.train.monitor)


def run_result(folder: RunFolder, history: pd.DataFrame, monitor: str) -> RunResult:
    """The result of a finished run.

    Raises:
        InputError: no epoch has a score.
    """
    if not history["best"].any():
        raise InputError(f"{folder.path}: {monitor} was never a number, no epoch is best; see {folder.history}")
    return RunResult(folder.path, history, history[history["best"]].iloc[-1].to_dict())


def never_reached(config: ClassificationConfig) -> list[str]:
    """What a configuration asks for in vain: in epochs that it does not have, of another loss; a sentence each."""
    frozen, unused = config.train.frozen_until_epoch, []
    for name in ("focal_gamma", "focal_factor"):
        if config.train.loss != "focal" and getattr(config.train, name) != getattr(TrainConfig, name):
            unused.append(f"train.{name} is of the focal loss, which train.loss={config.train.loss} is not")
    late = {
        "train.slow_from_epoch": config.train.slow_from_epoch,
        "cam.from_epoch": config.cam.from_epoch,
        "the end of train.frozen_until_epoch": None if frozen is None else frozen + 1,
    }
    return unused + [
        f"{key} is {epoch}, but training ends after epoch {config.train.epochs}; set it lower, or more epochs"
        for key, epoch in late.items()
        if epoch is not None and epoch > config.train.epochs
    ]


def check_splits(manifest: Manifest, area: str, config: ClassificationConfig, records) -> None:
    """Refuses a task that the records do not serve, an area without one of the classes in a split that training needs,
    and settings that do not fit the task."""
    labels = labelling(manifest, area, config.data.task)
    if labels.task == "multiclass" and config.train.focal_alpha is not None:
        raise InputError("train.focal_alpha goes with logits of yes or no, not with classes; use train.balance instead")
    if labels.task == "multilabel" and labels.outputs > 1 and config.train.sampling == "balanced":
        raise InputError("train.sampling balanced needs one class an image; take train.balance for several labels")
    if config.cam.erase != "all" and labels.outputs > 1:
        raise InputError(
            f"cam.erase={config.cam.erase} goes with one logit; this model has {labels.outputs}, leave it out"
        )
    names = labels.classes if labels.areas else manifest.classes
    for split in ("train", config.train.select_on):
        counts = {
            f"of {name}": number
            for name, number in zip(names, labels.counts(manifest, area, split, records), strict=True)
        }
        if manifest.task == "multilabel":
            without = zip(names, labels.negatives(records, area, split), strict=True)
            counts |= {f"without {name}": number for name, number in without}
        missing = [name for name, number in counts.items() if number == 0]
        if missing:
            mend = "add some" if split == "train" else "build with a larger --val-fraction or use --select-on test"
            mend += ", or build without such an area" if labels.areas else ""
            raise InputError(
                f"area {area} has no images {' or '.join(missing)} in its {split} split of {records}; {mend}"
            )


def describe(
    manifest: Manifest, records, area: str, phase: str, config: ClassificationConfig, command
) -> RunDescription:
    """What `run.json` is to say of a run that begins here and now."""
    versions = {
        "kmura": kmura.__version__,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "keras-hub": importlib.metadata.version("keras-hub"),
    }
    labels = labelling(manifest, area, config.data.task)
    return RunDescription(
        area=area,
        phase=phase,
        records=str(Path(records).resolve()),
        inputs=manifest.inputs,
        classes=labels.classes,
        task=labels.task,
        channels=manifest.channels,
        config=config,
        versions=versions,
        command=command or shlex.join(sys.argv),
    )


def check_claim(folder: RunFolder, wanted: RunDescription, fresh: bool, started: bool, growing: str) -> None:
    """Refuses a folder that is no run, or with an epoch of another configuration or other records behind it.

    Args:
        folder: of the run.
        wanted: what is asked for now.
        fresh: the folder is to be dropped.
        started: the folder holds something to go on from.
        growing: the one key that may be larger than it was.
    """
    if fresh and folder.path.exists() and not folder.description.exists() and any(folder.path.iterdir()):
        raise InputError(f"{folder.path} is no run folder; --fresh does not delete it, choose another --runs folder")
    if not started:
        return
    there = read_run(folder.path)
    changed = differences(there.config, wanted.config)
    stage, _, key = growing.partition(".")
    before, after = (getattr(getattr(config, stage), key) for config in (there.config, wanted.config))
    longer = len(changed) == 1 and after > before
    if growing == "train.epochs" and wanted.config.train.schedule != "constant":
        longer = False  # the schedule of the epochs behind it would have been another
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
