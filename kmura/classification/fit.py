"""`fit`: classifiers of one area or several, from records to `best.keras`, resumable after every epoch."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from kmura import kinds
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
    callbacks_for: Callable[
        [Dataset, Path, ClassificationConfig], Sequence[keras.callbacks.Callback]
    ] = lambda dataset, run, config: (),
    **options,
) -> Iterator[RunResult]:
    """One run after another for several areas; all areas are checked before the first one trains.

    Args:
        records: folder of shards and manifest.
        area: `all`, one name or several.
        callbacks_for: data set, run folder and configuration -> callbacks of that run alone, after the common ones.
        **options: of `fit`.

    Raises:
        InputError: see `fit`.
    """
    for dataset, config, source in prepared_areas(records, area, options):
        phase = options.get("phase", "baseline")
        own = callbacks_for(dataset, Path(options.get("runs", "runs")) / dataset.area / phase, config)
        if source:
            log.info("%s: %s", dataset.area, source)
        callbacks = [*options.get("callbacks", ()), *own]
        yield fit(dataset, area=dataset.area, **options | {"config": config, "callbacks": callbacks})


def prepared_areas(
    records: str | os.PathLike, area: str | Sequence[str], options: Mapping[str, Any]
) -> list[tuple[Dataset, ClassificationConfig, str]]:
    """The data sets of areas that can all be trained with these options of `fit`, each with its configuration.

    Returns:
        (data set, configuration, where its tuned values come from or "") for each area that gets a model.

    Raises:
        InputError: an unknown area, one without both classes in its splits, an unknown setting, a model that cannot be
            built.
    """
    if area == ALL:
        names = Dataset(records, ALL, _settled(ALL, options)[0].data).models()
    else:
        names = [area] if isinstance(area, str) else list(area)
    prepared = []
    for name in names:
        config, source = _settled(name, options)
        dataset = Dataset(records, name, config.data)
        check_model(config.model, config.data.image_size, dataset.manifest.channels)
        check_data(dataset, config)
        prepared.append((dataset, config, source))
    return prepared


def _settled(area: str, options: Mapping[str, Any]) -> tuple[ClassificationConfig, str]:
    """The configuration that these options of `fit` mean for an area, and where its tuned values come from, or ""."""
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
    """A trained run in `RUNS/AREA/PHASE/`; it goes on from its last finished epoch if there is one.

    With `train.deterministic` a run that was killed at any moment and called again ends with the same bits as an
    undisturbed one (on CPU).

    Args:
        records: folder of shards and manifest, or a Dataset of it.
        area: one area of the records, or `all` for one model of all areas.
        phase: `baseline`, `final` or `hybrid`: names the run, its default recipe and whether tuned values are used (see
            `kmura.classification.phases.phase_config`). The phase `tune` is `kmura.tune`.
        runs: where runs live.
        recipe: a shipped name or a TOML file, instead of the phase's own.
        settings: `stage.key -> value`, or texts `stage.key=value`, laid over the recipe and tuned values.
        config: everything that decides the outcome, instead of recipe, tuned values and settings.
        fresh: begin anew and drop what the run folder holds.
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
    dataset = dataset_of(records, area, config.data)
    check_model(config.model, config.data.image_size, dataset.manifest.channels)
    check_data(dataset, config)
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
    """What a configuration asks for in vain, in epochs that it does not have or of another loss; a sentence each."""
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


def check_data(dataset: Dataset, config: ClassificationConfig) -> None:
    """Refuses settings that do not fit the task, and splits that lack a class that training needs.

    Raises:
        InputError: names the setting or the split, and the fix.
    """
    task = dataset.labels
    if task.softmax and config.train.focal_alpha is not None:
        raise InputError("train.focal_alpha goes with logits of yes or no, not with classes; use train.balance instead")
    if task.by_label and task.outputs > 1 and config.train.sampling == "balanced":
        raise InputError("train.sampling balanced needs one class an image; take train.balance for several labels")
    if config.cam.erase != "all" and task.outputs > 1:
        raise InputError(
            f"cam.erase={config.cam.erase} goes with one logit; this model has {task.outputs}, leave it out"
        )
    dataset.check(("train", config.train.select_on))
