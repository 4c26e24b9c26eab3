"""The content of a chapter from the files of a run, except its scores: explanation, history, data, facts."""

import base64
import dataclasses
from pathlib import Path

import pandas as pd

from kmura.errors import InputError, reason, unreadable
from kmura.evaluation.exploration import AreaData, Eda
from kmura.explain.explanation import Case, Explanation
from kmura.records.manifest import EDA
from kmura.records.schema import VERSION_1_SPLITS
from kmura.report.chapter import Gallery, ShownCase, ShownMap
from kmura.report.figures import TRAINING_COLUMNS
from kmura.runs.run import RunDescription, RunFolder, epochs_trained
from kmura.typed import read_typed


@dataclasses.dataclass(frozen=True)
class _OfModel:
    model_sha256: str


@dataclasses.dataclass(frozen=True)
class _OfRecords:
    inputs: str


def read_gallery(folder: RunFolder, model_sha256: str) -> tuple[Gallery | None, bool]:
    """Returns the explanation of a run with its pictures, and whether it is stale.

    Without an explanation, or if it is of another model than `model_sha256` (stale), the gallery is None.

    Raises:
        InputError: `explain.json` is damaged, or a picture is missing.
    """
    if not folder.explanation.is_file():
        return None, False
    command = f"kmura explain {folder.path}"
    if read_typed(_OfModel, folder.explanation, command).model_sha256 != model_sha256:
        return None, True
    explanation = read_typed(Explanation, folder.explanation, command)
    explanation = dataclasses.replace(explanation, split=_todays(explanation.split))
    return Gallery(explanation, tuple(_shown(explanation.tap, case, folder) for case in explanation.cases)), False


def _shown(tap: str, case: Case, folder: RunFolder) -> ShownCase:
    data = {name: _embedded(file, folder) for name, file in case.files.items()}
    beside = (ShownMap(look.tap, look.empty, _embedded(look.file, folder)) for look in case.beside)
    return ShownCase(case, data, (ShownMap(tap, case.empty, data["cam"]), *beside))


def _embedded(file: str, folder: RunFolder) -> str:
    path = folder.explained / file
    try:
        content = path.read_bytes()
    except OSError as error:
        command = f"kmura explain {folder.path}"
        raise InputError(f"{path} cannot be read: {reason(error)}; make it again with: {command}") from error
    return "data:image/png;base64," + base64.b64encode(content).decode()


def read_explored(description: RunDescription, eda: Path | None) -> AreaData | None:
    """Returns what `kmura eda` found in the images of a run's area; None if it was not run on the run's records.

    Args:
        description: of the run.
        eda: the file that `kmura eda` wrote; None looks for `eda.json` in the folder of the records.

    Raises:
        InputError: the file is damaged; `eda` is given and missing or of other records.
    """
    path = eda or Path(description.records) / EDA
    if eda is None and not path.is_file():
        return None
    command = f"kmura eda {description.records}"
    if read_typed(_OfRecords, path, command).inputs != description.inputs:
        if eda is None:
            return None
        raise InputError(f"{eda} is of other records than {description.records}; make it again with: {command}")
    area = read_typed(Eda, path, command).areas.get(description.area)
    if area is None:
        return None
    outliers = [dataclasses.replace(outlier, split=_todays(outlier.split)) for outlier in area.outliers]
    return dataclasses.replace(area, outliers=outliers)


def _todays(split: str) -> str:
    """The name of a split in files that may be of records of schema version 1."""
    return VERSION_1_SPLITS.get(split, split)


def read_history(folder: RunFolder) -> pd.DataFrame | None:
    """Returns the history of a run, one row per epoch; None if there is none.

    Raises:
        InputError: the file is not a table, lacks the column `epoch` or `best`, or has an epoch, loss or AUC that is
            not a number.
    """
    if not folder.history.is_file():
        return None
    fix = "repeat the kmura fit command of the run, which writes the file again from last/"
    try:
        history = pd.read_csv(folder.history)
    except OSError as error:
        raise unreadable(folder.history, error) from error
    except ValueError as error:  # as the errors of pandas are
        raise InputError(f"{folder.history} cannot be read ({' '.join(str(error).split())}); {fix}") from error
    for column in ("epoch", "best"):
        if column not in history:
            raise InputError(f"{folder.history} has no column {column}; {fix}")
    for column in history.columns.intersection(["epoch", *TRAINING_COLUMNS]):
        if not pd.api.types.is_numeric_dtype(history[column]):
            raise InputError(f"{folder.history}, column {column}, has an entry that is not a number; {fix}")
    return history


def facts_of(description: RunDescription, folder: RunFolder) -> dict[str, str]:
    """How a run was made: name -> text."""
    config = description.config
    made = {
        "records": description.records,
        "command": description.command,
        "versions": ", ".join(f"{name} {version}" for name, version in description.versions.items()),
    }
    if not hasattr(config, "model"):  # a probe
        images = f"{config.data.image_size} pixels, {config.data.resize}"
        return {"method": f"{config.probe.words}, {images}, {100 * config.probe.labels:g} % of the labels"} | made
    if folder.probe.is_file():
        how = f"probe of the frozen encoder, settings in {folder.probe}"
        return {"network": f"{config.model.words}, {config.data.image_size} pixels", "training": how} | made
    return {
        "network": f"{config.model.words}, {config.data.image_size} pixels, {config.data.resize}",
        "training": f"{epochs_trained(folder, config)}, batches of {config.train.batch_size}, Adam at "
        f"{config.train.learning_rate:g}, {description.policy}, seed {config.train.seed}",
        **made,
    }
