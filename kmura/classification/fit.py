"""`fit`: trains classifiers of one or several areas, from records to `best.keras`; resumable after every epoch."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from kmura import kinds
from kmura.classification.fold_options import options_of_folds
from kmura.classification.phases import check_phase, phase_config
from kmura.config import ClassificationConfig, TrainConfig
from kmura.data.dataset import Dataset, dataset_of
from kmura.errors import InputError
from kmura.models.build import check_model
from kmura.tasks import ALL
from kmura.training.loop import RunResult, train_run

log = logging.getLogger("kmura")


def fit_areas(
    records: str | os.PathLike,
    *,
    area: str | Sequence[str] = ALL,
    folds: int = 0,
    fold: int | None = None,
    callbacks_for: Callable[
        [Dataset, Path, ClassificationConfig], Sequence[keras.callbacks.Callback]
    ] = lambda dataset, run, config: (),
    **options,
) -> Iterator[RunResult]:
    """Trains one run per area, one after another; all areas and folds are checked before the first run starts.

    With folds, the run of an area is `RUNS/fold0/AREA/PHASE`, `RUNS/fold1/AREA/PHASE`, ...

    Args:
        records: folder of shards and manifest.
        area: `all`, the name of an area, or several names.
        folds: folds of a cross-validation, see `kmura.data.fold_index.fold_index`; 0 uses the splits of the records.
        fold: train this fold alone, counted from 0; None trains all folds.
        callbacks_for: function of data set, run folder and configuration; returns further callbacks for that run only,
            which run after the callbacks in `options`.
        **options: keyword arguments of `fit`.

    Yields:
        The result of each run.

    Raises:
        InputError: see `fit` and `options_of_folds`.
    """
    each = options_of_folds(records, folds, fold, options)
    prepared = [(of_fold, *entry) for of_fold in each for entry in prepared_areas(records, area, of_fold)]
    for of_fold, dataset, config, source in prepared:
        phase = options.get("phase", "baseline")
        own = callbacks_for(dataset, Path(of_fold.get("runs", "runs")) / dataset.area / phase, config)
        if source:
            log.info("%s: %s", dataset.area, source)
        callbacks = [*options.get("callbacks", ()), *own]
        yield fit(dataset, area=dataset.area, **of_fold | {"config": config, "callbacks": callbacks})


def prepared_areas(
    records: str | os.PathLike, area: str | Sequence[str], options: Mapping[str, Any]
) -> list[tuple[Dataset, ClassificationConfig, str]]:
    """Checks areas, and returns their data sets with the configurations that these options of `fit` give them.

    Returns:
        One tuple (data set, configuration, source of its tuned values or "") per area that gets a model.

    Raises:
        InputError: an area is unknown or lacks a class in one of its splits, a setting is unknown, or a model cannot be
            built.
    """
    every = Dataset(records)
    if area == ALL:
        names = every.of_area(ALL, _settled(ALL, options)[0].data).models()
    else:
        names = [area] if isinstance(area, str) else list(area)
    prepared = []
    for name in names:
        config, source = _settled(name, options)
        dataset = every.of_area(name, config.data)
        check_model(config.model, config.data.image_size, dataset.manifest.channels)
        check_data(dataset, config)
        prepared.append((dataset, config, source))
    return prepared


def _settled(area: str, options: Mapping[str, Any]) -> tuple[ClassificationConfig, str]:
    """Returns the configuration that these options of `fit` give an area, and the source of its tuned values or ""."""
    if options.get("config"):
        return options["config"], ""
    known = {key: options[key] for key in ("recipe", "settings", "fresh") if key in options}
    return phase_config(options.get("phase", "baseline"), area, options.get("runs", "runs"), **known)


def fit(
    records: str | os.PathLike | Dataset,
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
    """Trains a run in `RUNS/AREA/PHASE/`; it continues after its last finished epoch if there is one.

    With `train.deterministic`, a run that was killed at any time and resumed gives the same bits as an uninterrupted
    run (on a CPU).

    Args:
        records: folder of shards and manifest, or its Dataset.
        area: one area of the records, or `all` for one model of all areas.
        phase: `baseline`, `final` or `hybrid`; determines the name of the run, its default recipe and whether tuned
            values are used (see `kmura.classification.phases.phase_config`). For the phase `tune` call `kmura.tune`.
        runs: folder of all runs.
        recipe: name of a shipped recipe or path of a TOML file; None takes the recipe of the phase.
        settings: mapping `stage.key -> value`, or texts `stage.key=value`; they override recipe and tuned values.
        config: complete configuration, which replaces recipe, tuned values and settings.
        fresh: start again and delete the content of the run folder.
        callbacks: further Keras callbacks, such as a progress display; their logs contain all scores.
        command: stored in `run.json`; None stores the command line of this process.

    Raises:
        InputError: the area or phase is unknown, the model cannot be built, a split lacks a class, the run folder has
            another configuration or other records, or weights cannot be loaded.
    """
    check_phase(phase)
    if phase == "tune":
        raise InputError("phase tune is a search, not one run; call kmura.tune, or kmura fit --phase tune")
    source = ""
    if config is None:
        config, source = phase_config(phase, area, runs, recipe, settings, fresh)
    dataset = dataset_of(records, area, config.data)
    check_model(config.model, config.data.image_size, dataset.manifest.channels)
    check_data(dataset, config)
    if source:
        log.info("%s: %s", area, source)
    for note in never_reached(config):
        log.warning("%s %s: %s", area, phase, note)
    if phase == "final" and not config.mix.until_epoch and config.cam.from_epoch is None:
        log.warning(
            "%s final: mixing and CAM-erasing are both disabled, as in a baseline; set mix.until_epoch and "
            "cam.from_epoch, or use --recipe final",
            area,
        )
    return train_run(
        dataset,
        phase,
        config,
        kind=kinds.CLASSIFICATION,
        runs=runs,
        fresh=fresh,
        callbacks=callbacks,
        command=command,
    )


def never_reached(config: ClassificationConfig) -> list[str]:
    """Returns one sentence per setting without effect: its epoch is never reached, or it belongs to another loss."""
    frozen, unused = config.train.frozen_until_epoch, []
    for name in ("focal_gamma", "focal_factor"):
        if config.train.loss != "focal" and getattr(config.train, name) != getattr(TrainConfig, name):
            unused.append(f"train.{name} has no effect with train.loss={config.train.loss}; it needs the focal loss")
    late = {
        "train.slow_from_epoch": config.train.slow_from_epoch,
        "cam.from_epoch": config.cam.from_epoch,
        "the end of train.frozen_until_epoch": None if frozen is None else frozen + 1,
    }
    return unused + [
        f"{key} is {epoch}, but training ends after epoch {config.train.epochs}; reduce it or train more epochs"
        for key, epoch in late.items()
        if epoch is not None and epoch > config.train.epochs
    ]


def check_data(dataset: Dataset, config: ClassificationConfig) -> None:
    """Checks that the settings fit the task, and that the splits have all classes that training requires.

    Raises:
        InputError: a setting does not fit the task, or a split lacks a class.
    """
    task = dataset.labels
    if task.softmax and config.train.focal_alpha is not None:
        raise InputError(
            "train.focal_alpha requires a binary or multilabel model, not multiclass; use train.balance instead"
        )
    if task.by_label and task.outputs > 1 and config.train.sampling == "balanced":
        raise InputError("train.sampling=balanced requires one class per image; use train.balance for several labels")
    if config.cam.erase != "all" and task.outputs > 1:
        raise InputError(
            f"cam.erase={config.cam.erase} requires a model with one logit, this one has {task.outputs}; leave it out"
        )
    dataset.check(("train", config.train.select_on))
