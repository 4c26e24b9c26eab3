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
from kmura.evaluation.calibrators import logits_of
from kmura.evaluation.scoring import LEVELS, Counted, ScoreOptions, Scores, score_table
from kmura.runs.predictions import (
    check_predictions,
    further_columns,
    patient_keys_of,
    read_predictions,
    study_keys_of,
)
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
class ClassLevelScores(Counted):
    """Scores of one split at one level.

    Attributes:
        level: `image` or `study`.
        images, studies, patients: counts.
        scores: name -> value with its 95 % interval; see `metrics.multiclass_scores` and, for several labels,
            `metrics.multilabel_scores`.
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
            area if single else name: _question(table, task, table[column].to_numpy(), probability[:, number])
            for number, (name, column) in enumerate(zip(task.classes, task.label_columns, strict=True))
        }
    if task.is_joint:
        return {name: rows.reset_index(drop=True) for name, rows in abnormality_of(table, task).groupby("area")}
    return (
        {area: _question(table, task, table["label"].to_numpy(), probability[:, 1])} if len(task.classes) == 2 else {}
    )


def abnormality_of(table: pd.DataFrame, task: Task) -> pd.DataFrame:
    """Returns the predictions of abnormal or normal of one model over all areas, as one binary table."""
    half, label = task.abnormal, table["label"].to_numpy()
    abnormal = np.where(label < 0, -1, label < half)
    return _question(table, task, abnormal, table[task.probability_columns[:half]].to_numpy(float).sum(1))


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


def against_the_rest(table: pd.DataFrame, task: Task) -> dict[str, pd.DataFrame]:
    """Returns class -> binary predictions of this class against all others, for mutually exclusive classes."""
    label, probability = table["label"].to_numpy(), table[task.probability_columns].to_numpy(float)
    return {
        name: _question(table, task, np.where(label < 0, -1, label == number), probability[:, number])
        for number, name in enumerate(task.classes)
    }


def _question(table: pd.DataFrame, task: Task, label, probability) -> pd.DataFrame:
    probability = np.clip(probability, 0, 1)
    logit = logits_of(probability)
    keys = table[["split", "area", "patient", "study", "image", *further_columns(table, task)]]
    return keys.assign(label=np.asarray(label, int), logit=logit, probability=probability)


def score_classes(table: pd.DataFrame, area: str, task: Task, options: ScoreOptions | None = None) -> MultiScores:
    """Scores every split of a table of class predictions.

    Raises:
        InputError: see `ScoreOptions.check` and `kmura.runs.predictions.check_predictions`.
    """
    options = options or ScoreOptions()
    options.check()
    check_predictions(table, task, mixed_studies=options.mixed_studies)
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
    label, patient = table[task.label_columns].to_numpy(), patient_keys_of(table)
    probability = table[task.probability_columns].to_numpy(float)
    if level == "study":
        pooled = metrics.pool_classes(study_keys_of(table), probability, pooling, k=top_k, normalize=task.softmax)
        if task.by_label:  # a study has a label that any of its images has
            label = metrics.pool_classes(study_keys_of(table), label, "max", normalize=False).value.astype(int)
        else:
            label = label[pooled.first]
        patient, probability = patient[pooled.first], pooled.value
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
    # resample patients regardless of class; a class that a resample lacks is excluded from that resample's means
    draws = metrics.PatientBootstrap(units.patient, resamples=options.resamples, seed=options.seed)
    place, several = draws.place(units.patient), task.by_label
    scorer = metrics.ClassScorer(units.label, units.probability, several=several, place=place, auc=False)
    drawn = draws.scores({0: scorer})[0]
    classes = [_class_intervals(units, number, place, drawn) for number in range(len(task.classes))]
    score = metrics.multilabel_scores if several else metrics.multiclass_scores
    values = score(units.label, units.probability)
    means = {name: drawn[metrics.MEAN, name] for name in values if name != "auc"}
    scores = metrics.intervals({name: values[name] for name in means}, means)
    if len(draws.ids) > 1:
        closed = _mean_forms(units, task, classes, place, {name: float(value[0]) for name, value in values.items()})
        for name, interval in scores.items():
            if np.isnan(interval.low) and name in closed:
                scores[name] = metrics.with_width(interval.value, *closed[name], metrics.BOUNDS)
    scores["auc"] = _mean_auc(units, place)
    matrix = []
    if not several:
        matrix = metrics.confusion_matrix(units.label, units.probability.argmax(1), len(task.classes))[0]
        matrix = matrix.astype(int).tolist()
    return ClassLevelScores(
        level=level,
        images=len(known),
        studies=len(np.unique(study_keys_of(known))),
        patients=len(draws.ids),
        scores={name: scores[name] for name in values},
        classes=[
            ClassScores(name, int((target == 1).sum()), intervals)
            for name, target, intervals in zip(task.classes, units.target.T, classes, strict=True)
        ],
        confusion=matrix,
    )


def _class_intervals(units: ClassUnits, number: int, place: np.ndarray, drawn) -> dict[str, metrics.Interval]:
    """Returns the scores of a class against all others; decisions are those of the task."""
    known = units.target[:, number] >= 0
    target, place = units.target[known, number], place[known]
    of_class = {name: values[:, number] for (kind, name), values in drawn.items() if kind == metrics.CLASS}
    intervals = {}
    for names, value in (
        (("precision", "recall", "f1"), units.predicted[known, number].astype(float)),
        (("auc", "ap"), units.probability[known, number]),
    ):
        intervals |= metrics.binary_intervals(target, value, place, of_class, names=names)
    return {name: intervals[name] for name in metrics.BY_CLASS}


def _mean_auc(units: ClassUnits, place: np.ndarray) -> metrics.Interval:
    """Returns the mean of the AUCs that are defined, each class against the rest."""
    aucs, number = [], int(place.max(initial=-1)) + 1
    for target, probability in zip(units.target.T, units.probability.T, strict=True):
        known = target >= 0
        auc = metrics.clustered_auc(target[known], probability[known], place[known], number)
        aucs += [] if np.isnan(auc.value) else [auc]
    if not aucs:
        return metrics.Interval(np.nan, np.nan, np.nan)
    return metrics.mean_auc_interval(aucs, np.full(len(aucs), 1 / len(aucs)))


def _mean_forms(units: ClassUnits, task: Task, classes, place: np.ndarray, values) -> dict[str, tuple[float, float]]:
    """Returns the intervals of scores over all classes that do not depend on resamples, by score."""
    if task.by_label:
        by_label = []
        for target, probability in zip(units.target.T, units.probability.T, strict=True):
            known = target >= 0
            nothing = dict.fromkeys(metrics.SCORES, np.empty(0))
            by_label.append(metrics.binary_intervals(target[known], probability[known], place[known], nothing))
        return {name: _mean_bounds([scores[name] for scores in by_label]) for name in metrics.SCORES}
    if not len(units.label):
        return {}
    support = (units.target == 1).sum(0)
    parts = {name: [of_class[name] for of_class in classes] for name in ("recall", "f1", "ap")}
    low, high = map(float, metrics.wilson(values["accuracy"], len(np.unique(place))))
    chance = float(support @ units.predicted.sum(0)) / len(units.label) ** 2
    closed = {
        "accuracy": (low, high),
        "balanced_accuracy": _mean_bounds(parts["recall"]),
        "f1_macro": _mean_bounds(parts["f1"]),
        "f1_weighted": _mean_bounds(parts["f1"], support),
        "ap": _mean_bounds(parts["ap"]),
    }
    if chance < 1:
        closed["kappa"] = metrics.kappa_bounds(metrics.Interval(values["accuracy"], low, high), chance)
    return closed


def _mean_bounds(parts: list[metrics.Interval], sizes: np.ndarray | None = None) -> tuple[float, float]:
    """Returns the mean bounds of the scores that are defined."""
    sizes = np.ones(len(parts)) if sizes is None else sizes
    pairs = [(part, size) for part, size in zip(parts, sizes, strict=True) if not np.isnan(part.value) and size]
    if not pairs:
        return np.nan, np.nan
    defined, shares = zip(*pairs, strict=True)
    return metrics.mean_bounds(list(defined), np.array(shares) / np.sum(shares))
