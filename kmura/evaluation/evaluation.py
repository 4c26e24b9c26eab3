"""The result of the evaluation of a classifier, and its file `metrics.json`. Does not import TensorFlow."""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import pandas as pd

from kmura import metrics
from kmura.errors import InputError
from kmura.evaluation.class_scores import ClassLevelScores, MultiScores
from kmura.evaluation.scoring import LEVELS, LevelScores, Scores, headline_split
from kmura.evaluation.subgroups import Subgroups
from kmura.files import sha256_of
from kmura.records.schema import VERSION_1_SPLITS
from kmura.runs.predictions import read_predictions
from kmura.runs.run import Run
from kmura.tasks import Binary
from kmura.typed import FieldError, from_json, other_version, read_json

# Version 1 has no number and calls the splits val and test tune and valid. Versions 1 and 2 do not state the methods of
# intervals (all are percentiles, those of shares of 0 or 1 Wilson's), and call `rmsce_debiased` `ece_debiased`.
METRICS_VERSION = 3

# fields of version 1 that contain names of splits, as the keys of their object and as their value
_KEYED_BY_SPLIT = ("splits", "calibrated", "operating_points", "areas", "localization_faithfulness")
_SPLIT_FIELDS = ("select_on", "fit_on")
_LATER_SCORES = ("npv", "f1_negative")  # files of earlier kmura lack them; they are otherwise the same


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The scores of a run, as stored in `metrics.json`.

    Attributes:
        metrics_version: of the file; see METRICS_VERSION.
        run: folder of the run, as it was given to `evaluate`.
        area, phase: of the run.
        select_on: the split that selected the best epoch.
        selected_epoch_by: the score that selected it.
        has_patients: whether the records know which images are of the same patient.
        model_sha256, predictions_sha256: of the `best.keras` and `predictions.csv` that the scores belong to.
        scores: `Scores` for a binary run, `MultiScores` for several classes or labels.
        task, classes: of the run.
        localization_faithfulness: split -> value, see `kmura.evaluation.localization`; None if it was not computed.
        subgroups: area, label or class -> scores of its subgroups; empty if none were asked for.
    """

    metrics_version: int = METRICS_VERSION
    run: str
    area: str
    phase: str
    select_on: str
    selected_epoch_by: str
    has_patients: bool
    model_sha256: str
    predictions_sha256: str
    scores: Scores | MultiScores
    task: str = Binary.name
    classes: tuple[str, ...] = ()
    localization_faithfulness: dict[str, float] | None
    subgroups: dict[str, Subgroups] = dataclasses.field(default_factory=dict)

    @property
    def is_binary(self) -> bool:
        """Whether the scores are those of one yes/no question."""
        return isinstance(self.scores, Scores)

    @property
    def split(self) -> str:
        """The split whose scores are shown first, see `headline_split`."""
        return headline_split(self.scores.splits, self.select_on, self.scores.options.fit_on)

    @classmethod
    def from_json(cls, value: Any) -> "Evaluation":
        """Returns the evaluation that the content of a `metrics.json` stands for, of versions 1 to METRICS_VERSION.

        Raises:
            FieldError: a field is missing or wrong, or the version is unknown.
        """
        version = value.get("metrics_version", 1) if isinstance(value, Mapping) else METRICS_VERSION
        if version not in range(1, METRICS_VERSION + 1):
            raise FieldError("metrics_version", f"is {version!r}, this kmura reads versions 1 to {METRICS_VERSION}")
        if version == 1:
            value = _from_version_1(value)
        if version < METRICS_VERSION:
            value = _from_version_2(value) | {"metrics_version": METRICS_VERSION}
        evaluation = from_json(cls, value)
        _check_complete(evaluation.scores)
        return evaluation


def read_evaluation(run: str | os.PathLike | Run) -> tuple[Evaluation, pd.DataFrame]:
    """Returns the evaluation of a run, and its predictions (one row per image, with today's names of the splits).

    Args:
        run: the run, or its folder.

    Raises:
        InputError: the run is not evaluated, a file is damaged, or scores, predictions and `best.keras` (if there is
            one) do not belong together.
    """
    return read_scores(Evaluation, run if isinstance(run, Run) else Run(run))


E = TypeVar("E", bound=Evaluation)


def read_scores(cls: type[E], run: Run) -> tuple[E, pd.DataFrame]:
    """Returns the `metrics.json` of a run as a `cls`, and its predictions; see `read_evaluation`."""
    folder, task, command = run.folder, run.labels, f"kmura evaluate {run}"
    value = read_json(folder.metrics, command)
    try:
        evaluation = cls.from_json(value)
    except FieldError as error:
        raise other_version(folder.metrics, error, command) from error
    if isinstance(evaluation.scores, Scores) != isinstance(task, Binary):
        raise InputError(f"{folder.metrics} is not of a {task.name} run; make it again with: {command}")
    table = read_predictions(folder.predictions, task)
    for file, digest in (
        (folder.predictions, evaluation.predictions_sha256),
        (folder.best, evaluation.model_sha256),
    ):
        if file.exists() and digest != sha256_of(file):
            raise InputError(f"{file} has changed since the run was evaluated; evaluate it again: {command}")
    return evaluation, table


def _from_version_1(value: Any, field: str = "") -> Any:
    """The content of a `metrics.json` of version 1, with the names of the splits that version 2 has."""
    if isinstance(value, Mapping):
        names = VERSION_1_SPLITS if field in _KEYED_BY_SPLIT else {}
        return {names.get(name, name): _from_version_1(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_from_version_1(item, field) for item in value]
    if field in _SPLIT_FIELDS:
        return VERSION_1_SPLITS.get(value, value)
    if field == "notes" and isinstance(value, str):
        return re.sub(r"\b(tune|valid)\b", lambda name: VERSION_1_SPLITS[name[0]], value)
    return value


def _from_version_2(value: Any, field: str = "") -> Any:
    """The content of a `metrics.json` of version 2, with the names of calibration errors that version 3 has."""
    if isinstance(value, Mapping):
        names = {"ece_debiased": "rmsce_debiased"} if field == "calibration" else {}
        return {names.get(name, name): _from_version_2(item, name) for name, item in value.items()}
    return [_from_version_2(item, field) for item in value] if isinstance(value, list) else value


def _check_complete(scores: Scores | MultiScores) -> None:
    """Checks that dictionaries have the required keys, which the types of the dataclasses cannot express.

    Raises:
        FieldError: a split lacks a level, or a level lacks a score.
    """
    if isinstance(scores, Scores):
        _check_question(scores, "scores")
        return
    _check_class_levels(scores.splits, "scores.splits")
    if scores.areas:
        _require("scores.areas", scores.areas, scores.splits)
        _check_class_levels(scores.areas, "scores.areas")
    for name, question in scores.questions.items():
        _check_question(question, f"scores.questions.{name}")
    if scores.pooled is not None:
        _require("scores.pooled.splits", scores.pooled.splits, scores.splits)
        _check_question(scores.pooled, "scores.pooled")


def _check_question(scores: Scores, path: str) -> None:
    _check_levels(scores.splits, f"{path}.splits")
    for split, levels in scores.splits.items():
        _require(f"{path}.operating_points", scores.operating_points, (split,))
        for place, point in enumerate(scores.operating_points[split]):
            here = f"{path}.operating_points.{split}[{place}]"
            names = [name for name in metrics.FROM_CONFUSION if name not in _LATER_SCORES]
            _require(f"{here}.scores", point.scores, names)
        for level, level_scores in scores.calibrated.get(split, {}).items():
            _check_level(level_scores, f"{path}.calibrated.{split}.{level}", levels["study"])


def _check_levels(splits: Mapping[str, Mapping[str, LevelScores]], path: str) -> None:
    _check_splits(splits, path)
    for split, levels in splits.items():
        for level in LEVELS:
            _check_level(levels[level], f"{path}.{split}.{level}", levels["study"])


def _check_level(scores: LevelScores, path: str, study: LevelScores) -> None:
    _require(f"{path}.scores", scores.scores, [name for name in metrics.SCORES if name not in _LATER_SCORES])
    _require(f"{path}.confusion", scores.confusion, ("tp", "fp", "fn", "tn"))
    _require(f"{path}.calibration", scores.calibration, study.calibration)
    _require(f"{path}.brier_parts", scores.brier_parts, study.brier_parts)


def _check_class_levels(splits: Mapping[str, Mapping[str, ClassLevelScores]], path: str) -> None:
    _check_splits(splits, path)
    for split, levels in splits.items():
        for level in LEVELS:
            place = f"{path}.{split}.{level}"
            _require(f"{place}.scores", levels[level].scores, ("auc", "kappa", "accuracy"))
            if not levels[level].classes:
                raise FieldError(f"{place}.classes", "is empty")


def _check_splits(splits: Mapping[str, Mapping[str, Any]], path: str) -> None:
    if not splits:
        raise FieldError(path, "is empty")
    for split, levels in splits.items():
        _require(f"{path}.{split}", levels, LEVELS)


def _require(path: str, value: Mapping[str, Any], names: Iterable[str]) -> None:
    for name in names:
        if name not in value:
            raise FieldError(f"{path}.{name}", "is missing")
