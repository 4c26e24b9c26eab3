"""The options of `fit` for each fold of a cross-validation."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kmura.config.loading import load_settings
from kmura.data.dataset import Dataset
from kmura.data.fold_index import check_number
from kmura.errors import InputError


def options_of_folds(
    records: str | os.PathLike, folds: int, fold: int | None, options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Returns the options of `kmura.fit` for each fold to train: `runs` is `RUNS/foldN`, and the data are of the fold.

    Args:
        records: the records folder.
        folds: number of folds; 0 for none, or, if `fold` is given, for those of the records.
        fold: the only fold to train, counted from 0; None for all.
        options: for all folds.

    Returns:
        the options unchanged, as the only entry, if there are no folds.

    Raises:
        InputError: the number of folds is not possible, the fold is out of range, the records have other folds, or
            `data.folds` or `data.fold` is among the settings.
    """
    if not folds and fold is None:
        return [dict(options)]
    manifest = Dataset(records).manifest
    if not folds and not manifest.folds:
        raise InputError(f"--fold is {fold}, but {records} has no folds; give their number with --folds")
    folds = folds or manifest.folds
    check_number(records, manifest, folds)
    if fold is not None and not 0 <= fold < folds:
        raise InputError(f"--fold {fold} of --folds {folds}: give a fold of 0 to {max(0, folds - 1)}")
    settings = load_settings(options.get("settings", ()))
    if taken := [key for key in ("data.folds", "data.fold") if key in settings]:
        raise InputError(f"{taken[0]} is set by --{taken[0].removeprefix('data.')}; leave --set {taken[0]} out")
    each = []
    for number in range(max(1, folds)) if fold is None else [fold]:
        own = {"runs": Path(options.get("runs", "runs")) / f"fold{number}"}
        own["settings"] = settings | {"data.folds": folds, "data.fold": number}
        if config := options.get("config"):
            own["config"] = dataclasses.replace(config, data=dataclasses.replace(config.data, folds=folds, fold=number))
        each.append({**options, **own})
    return each
