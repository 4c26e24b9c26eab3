"""Scores of predictions over several classes or labels, and of the yes/no questions that these predictions answer.

A question is a table of binary predictions that is derived from the class probabilities and scored like that of a
binary model. The questions are: for one model over all areas, abnormal or normal in each area (the probability is the
sum over the abnormal classes); for two classes, the second class; for several labels, each label. A model over all
areas answers two more: abnormal or normal with all areas pooled, and which area an image shows.
"""

import dataclasses

import numpy as np
import pandas as pd

from kmura import metrics
from kmura.evaluation.scoring import LEVELS, ScoreOptions, Scores, score_table, with_ends
from kmura.runs.predictions import read_predictions
from kmura.runs.run import Run
from kmura.tasks import Binary, Multiclass, Task


@dataclasses.dataclass(frozen=True)
class ClassScores:
    """One class against all others.

    Attributes:
        name: of the class.
        units: number of images or studies of the class.
        scores: precision, recall, f1 (of the most probable class; for several labels at 0.5), auc, ap.
    """

    name: str
    units: int
    scores: dict[str, metrics.Interval]


@dataclasses.dataclass(frozen=True)
class ClassLevelScores:
    """Scores of one split at one level.

    Attributes:
        level: `image` or `study`.
        images, studies, patients: counts.
        scores: name -> value with its 95 % patient-bootstrap interval; see `metrics.multiclass_scores` and, for
            several labels, `metrics.multilabel_scores`.
        classes: scores of each class.
        confusion: counts by true class (row) and predicted class (column); empty for several labels.
    """

    level: str
    images: int
    studies: int
    patients: int
    scores: dict[str, metrics.Interval]
    classes: list[ClassScores]
    confusion: list[list[int]]

    @property
    def units(self) -> int:
        """The number of images or studies, depending on the level."""
        return self.images if self.level == "image" else self.studies


@dataclasses.dataclass(frozen=True)
class MultiScores:
    """All scores of a table of predictions over several classes or labels.

    Attributes:
        options: how the predictions were scored.
        splits: split -> level -> scores.
        questions: area or label -> scores of the binary table, see `questions_of`.
        pooled: for one model over all areas, scores of abnormal or normal over the pooled images and studies of all
            areas; else None.
        areas: for one model over all areas, split -> level -> scores of the predicted area, whose probability is the
            sum over its classes; else empty.
        notes: remarks that are needed to interpret the scores.
    """

    options: ScoreOptions
    splits: dict[str, dict[str, ClassLevelScores]]
    questions: dict[str, Scores]
    pooled: Scores | None
    areas: dict[str, dict[str, ClassLevelScores]]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ClassUnits:
    """The units of one split at one level, one row per unit.

    Attributes:
        label: class ids [N]; for several labels 0, 1 and -1 (unknown) [N, L].
        target: 0 or 1 for each class, -1 is unknown, [N, L].
        probability: probabilities [N, L].
        predicted: whether a class is predicted, bool [N, L]: the most probable class, or for several labels those with
            a probability of 0.5 or more.
        patient: patient ids [N].
    """

    label: np.ndarray
    target: np.ndarray
    probability: np.ndarray
    predicted: np.ndarray
    patient: np.ndarray


def binary_tables(run: Run) -> dict[str, pd.DataFrame]:
    """Returns binary predictions of a run: area (several labels: label) -> table; empty if it answers no such question.

    Raises:
        InputError: the run is not evaluated, or its predictions are damaged.
    """
    table = read_predictions(run.folder.predictions, run.labels)
    return {run.area: table} if isinstance(run.labels, Binary) else questions_of(table, run.area, run.labels)


def questions_of(table: pd.DataFrame, area: str, task: Task) -> dict[str, pd.DataFrame]:
    """Returns the yes/no questions that a table of class predictions answers.

    Args:
        table: as `kmura.runs.predictions.read_predictions` returns it.
        area, task: of the run.

    Returns:
        area (for several labels: label) -> a table with the columns of `kmura.runs.predictions.COLUMNS`.
    """
    probability = table[task.probability_columns].to_numpy(float)
    if task.by_label:
        single = len(task.classes) == 1
        return {
            area if single else name: _question(table, table[column].to_numpy(), probability[:, number])
            for number, (name, column) in enumerate(zip(task.classes, task.label_columns, strict=True))
        }
    if task.is_joint:
        return {name: rows.reset_index(drop=True) for name, rows in abnormality_of(table, task).groupby("area")}
    return {area: _question(table, table["label"].to_numpy(), probability[:, 1])} if len(task.classes) == 2 else {}


def abnormality_of(table: pd.DataFrame, task: Task) -> pd.DataFrame:
    """Returns the predictions of abnormal or normal of one model over all areas, as one binary table."""
    half, label = task.abnormal, table["label"].to_numpy()
    abnormal = np.where(label < 0, -1, label < half)
    return _question(table, abnormal, table[task.probability_columns[:half]].to_numpy(float).sum(1))


def _areas_table(table: pd.DataFrame, task: Task, areas: Task) -> pd.DataFrame:
    """Returns the class predictions of the task `areas`, whose classes are the areas of the joint `task`."""
    label, number = table["label"].to_numpy(), len(areas.classes)
    probability = table[task.probability_columns].to_numpy(float).reshape(len(table), 2, number).sum(1)
    label = np.where(label < 0, -1, label % number)
    return pd.concat(
        [
            table[["split", "area", "patient", "study", "image"]],
            pd.DataFrame(probability, table.index, areas.probability_columns).assign(label=label),
        ],
        axis=1,
    )


def _question(table: pd.DataFrame, label, probability) -> pd.DataFrame:
    probability = np.clip(probability, 0, 1)
    inside = np.clip(probability, 1e-15, 1 - 1e-15)
    logit = np.log(inside) - np.log1p(-inside)
    keys = table[["split", "area", "patient", "study", "image"]]
    return keys.assign(label=np.asarray(label, int), logit=logit, probability=probability)


def score_classes(table: pd.DataFrame, area: str, task: Task, options: ScoreOptions | None = None) -> MultiScores:
    """Scores every split of a table of class predictions.

    Raises:
        InputError: see `ScoreOptions.check`.
    """
    options = options or ScoreOptions()
    options.check()
    splits, pooled, of_areas = _split_scores(table, task, options), None, {}
    as_given = dataclasses.replace(options, calibration="none")  # a model of several classes is not calibrated
    questions = {name: score_table(rows, as_given) for name, rows in questions_of(table, area, task).items()}
    if task.is_joint:
        pooled = score_table(abnormality_of(table, task), as_given)
        which = Multiclass(task.area_names)
        of_areas = _split_scores(_areas_table(table, task, which), which, options)
    notes = [
        f"{split}: no {'images' if level == 'image' else 'studies'} of {of_class.name}; the means exclude it"
        for split, levels in splits.items()
        for level, scores in levels.items()
        for of_class in scores.classes
        if not of_class.units
    ]
    for name, scores in (questions | ({"all areas": pooled} if pooled else {})).items():
        notes += [f"{name}: {note}" for note in scores.notes]
    return MultiScores(options, splits, questions, pooled, of_areas, tuple(notes))


def _split_scores(table: pd.DataFrame, task: Task, options: ScoreOptions):
    return {
        split: {level: _level_scores(rows, level, task, options) for level in LEVELS}
        for split, rows in table.groupby("split", sort=False)
    }


def class_units_of(table: pd.DataFrame, level: str, task: Task, *, pooling: str = "mean", top_k: int = 2) -> ClassUnits:
    """Returns the images or studies of a table of one split. Images without any known label are excluded."""
    table = _known(table, task)
    label, patient = table[task.label_columns].to_numpy(), table["patient"].to_numpy()
    probability = table[task.probability_columns].to_numpy(float)
    if level == "study":
        study = (table["area"] + "/" + table["study"]).to_numpy()
        pooled = metrics.pool_classes(study, probability, pooling, k=top_k, normalize=task.softmax)
        label, patient, probability = label[pooled.first], patient[pooled.first], pooled.value
    if task.by_label:
        return ClassUnits(label, label, probability, probability >= 0.5, patient)
    classes = np.arange(len(task.classes))
    target, predicted = classes == label, classes == probability.argmax(1)[:, None]
    return ClassUnits(label[:, 0], target.astype(int), probability, predicted, patient)


def _known(table: pd.DataFrame, task: Task) -> pd.DataFrame:
    return table[(table[task.label_columns] >= 0).any(axis=1)]


def _level_scores(table, level: str, task: Task, options: ScoreOptions) -> ClassLevelScores:
    known = _known(table, task)
    units = class_units_of(table, level, task, pooling=options.pooling, top_k=options.top_k)
    patient, probability = units.patient, units.probability
    weights = np.empty((0, len(patient)))
    if len(np.unique(patient)) > 1:
        # resample patients regardless of class; a class that a resample lacks is excluded from that resample's means
        rng = np.random.default_rng(options.seed)
        weights = metrics.cluster_weights(patient, resamples=options.resamples, rng=rng)
    several, number = task.by_label, len(task.classes)
    score = metrics.multilabel_scores if several else metrics.multiclass_scores
    values, drawn = (_by_class(units, several, part) for part in (None, weights))
    intervals = {name: _columns(values[name], drawn[name]) for name in values}
    scores = metrics.intervals(score(units.label, probability), score(units.label, probability, weights))
    matrix = []
    if several:  # shares over all labels: a patient counts if any label does
        behind = {
            "accuracy": units.target >= 0,
            "recall": units.target == 1,
            "specificity": units.target == 0,
            "precision": units.predicted & (units.target >= 0),
        }
        scores = with_ends(scores, {name: rows.any(axis=1) for name, rows in behind.items()}, patient)
    else:
        scores = with_ends(scores, {"accuracy": np.ones(len(patient), bool)}, patient)
        matrix = metrics.confusion_matrix(units.label, probability.argmax(1), number)[0].astype(int).tolist()
    return ClassLevelScores(
        level=level,
        images=len(known),
        studies=len(known[["area", "study"]].drop_duplicates()),
        patients=known["patient"].nunique(),
        scores=scores,
        classes=[
            ClassScores(
                name,
                int((units.target[:, place] == 1).sum()),
                with_ends(
                    {key: intervals[key][place] for key in intervals},
                    {
                        "precision": units.predicted[:, place] & (units.target[:, place] >= 0),
                        "recall": units.target[:, place] == 1,
                    },
                    patient,
                ),
            )
            for place, name in enumerate(task.classes)
        ],
        confusion=matrix,
    )


def _by_class(units: ClassUnits, several: bool, weights) -> dict[str, np.ndarray]:
    """Returns the scores of each class: name -> values [R, L]."""
    probability = units.probability
    ranked = metrics.one_vs_rest(units.target, probability, weights)
    if not several:
        matrix = metrics.confusion_matrix(units.label, probability.argmax(1), probability.shape[1], weights)
        by_class = metrics.by_class(matrix)
        return {name: by_class[name] for name in ("precision", "recall", "f1")} | ranked
    by_label = []
    for label, value in zip(units.label.T, probability.T, strict=True):
        known = label >= 0
        part = None if weights is None else weights[:, known]
        by_label.append(metrics.scores(label[known], value[known], weights=part))
    return {
        name: np.stack([scores[name] for scores in by_label], axis=1) for name in ("precision", "recall", "f1")
    } | ranked


def _columns(value: np.ndarray, drawn: np.ndarray) -> list[metrics.Interval]:
    """Returns one interval per class from values [1, L] and resampled values [R, L]."""
    intervals = metrics.intervals(dict(enumerate(value.T)), dict(enumerate(drawn.T)))
    return [intervals[place] for place in range(value.shape[1])]
