"""`fit_planes`: trains the networks of one or all planes, for one or all folds of a cross-validation."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from kmura.config import SegmentationConfig, load_config
from kmura.config.loading import load_settings
from kmura.config.segmentation import PLANES
from kmura.data.volume_dataset import VolumeDataset, only_area
from kmura.errors import InputError, check_choice
from kmura.kinds import SEGMENTATION
from kmura.segmentation.fuse import fuse_planes
from kmura.segmentation.targets import pairs, targets_of
from kmura.training.loop import RunResult, train_run

ALL_PLANES = "all"


def fit_planes(
    records: str | os.PathLike,
    *,
    area: str | None = None,
    plane: str = "axial",
    folds: int = 0,
    fold: int | None = None,
    runs: str | os.PathLike = "runs",
    recipe: str | None = None,
    settings: Mapping[str, Any] | Iterable[str] = (),
    fresh: bool = False,
    callbacks_for: Callable[[Path, SegmentationConfig], Sequence[keras.callbacks.Callback]] = lambda run, config: (),
) -> Iterator[RunResult]:
    """Trains one network after another; each continues after its last finished epoch if there is one.

    The run of a plane is `RUNS/AREA/PLANE`; with folds it is `RUNS/fold0/AREA/PLANE`, `RUNS/fold1/AREA/PLANE`, ...
    After all planes of a fold, `RUNS/AREA/fused` is written, see `kmura.segmentation.fuse`.

    Args:
        records: folder of volume records.
        area: an area of the records; None: the only one.
        plane: `axial`, `coronal`, `sagittal` or `all`.
        folds: folds over the volumes; 0 uses the splits of the records.
        fold: train this fold alone, counted from 0; None trains all folds.
        runs: folder of all runs.
        recipe: name of a shipped recipe of segmentation, or path of a TOML file; None takes the defaults.
        settings: mapping `stage.key -> value`, or texts `stage.key=value`; they override the recipe.
        fresh: start again and delete the content of the run folders.
        callbacks_for: function of run folder and configuration; returns further Keras callbacks.

    Yields:
        The result of each run.

    Raises:
        InputError: an argument or a setting is invalid, there are no volumes or too few of them, or a run folder has
            another configuration or other records.
    """
    configs = plane_configs(plane, folds, fold, recipe, settings)
    area = area or only_area(records)
    datasets = [VolumeDataset(records, area, config.data) for config in configs]
    configs = [with_chosen_sides(config, dataset.classes) for config, dataset in zip(configs, datasets, strict=True)]
    for dataset, config in zip(datasets, configs, strict=True):  # before the first run starts
        targets_of(dataset.classes, merged=config.data.sides == "merged")
        dataset.names("train"), dataset.names("val")
    for number, (dataset, config) in enumerate(zip(datasets, configs, strict=True)):
        parent = Path(runs) / f"fold{config.data.fold}" if config.data.folds else Path(runs)
        yield train_run(
            dataset,
            config.data.plane,
            config,
            kind=SEGMENTATION,
            runs=parent,
            fresh=fresh,
            callbacks=callbacks_for(parent / area / config.data.plane, config),
        )
        if plane == ALL_PLANES and (number + 1) % len(PLANES) == 0:
            fuse_planes(parent / area, records=records)


def with_chosen_sides(config: SegmentationConfig, names: Sequence[str]) -> SegmentationConfig:
    """Returns a configuration whose `data.sides` is not `auto`: merged or direct, see SlicesConfig.

    Args:
        config: of a run.
        names: of the classes 1, 2, ...
    """
    if config.data.sides != "auto":
        return config
    sides = "merged" if config.data.plane == "sagittal" and pairs(names) else "direct"
    return dataclasses.replace(config, data=dataclasses.replace(config.data, sides=sides))


def plane_configs(
    plane: str, folds: int, fold: int | None, recipe: str | None, settings: Mapping[str, Any] | Iterable[str]
) -> list[SegmentationConfig]:
    """Returns the configurations of all runs, fold by fold; see `fit_planes`.

    Raises:
        InputError: an argument or a setting is invalid.
    """
    check_choice("plane", plane, (*PLANES, ALL_PLANES))
    if fold is not None and not folds:
        raise InputError(f"fold is {fold}, but there are no folds; give their number with --folds")
    given = load_settings(settings)
    taken = [key for key in ("data.plane", "data.folds", "data.fold") if key in given]
    if taken:
        raise InputError(f"{taken[0]} is set by --{taken[0].removeprefix('data.')}; leave --set {taken[0]} out")
    config = load_config(recipe, given, SegmentationConfig)
    chosen = [fold] if fold is not None else range(max(1, folds))
    return [
        dataclasses.replace(config, data=dataclasses.replace(config.data, plane=name, folds=folds, fold=number))
        for number in chosen
        for name in (PLANES if plane == ALL_PLANES else (plane,))
    ]
