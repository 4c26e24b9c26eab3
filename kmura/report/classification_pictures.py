"""The pictures of a classifier's chapter."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from kmura.evaluation.class_scores import class_units_of, questions_of
from kmura.evaluation.fold_scores import fold_units
from kmura.evaluation.scoring import ScoreOptions, shown_levels, units_of
from kmura.explain.explanation import Explanation
from kmura.metrics import Interval
from kmura.report import class_figures, figures
from kmura.report.class_figures import Curve
from kmura.report.classification_details import Details, Question
from kmura.report.classification_tables import plural_of
from kmura.report.figures import Picture
from kmura.report.published import PUBLISHED
from kmura.tasks import Task


@dataclasses.dataclass(frozen=True)
class Names:
    """How the figures of a chapter are called.

    Attributes:
        id: beginning of their file names.
        of_run, of_split: ends of their titles.
    """

    id: str
    of_run: str
    of_split: str


def decision_pictures(names: Names, question: Question, split: str) -> dict[str, Picture]:
    """Whether the decisions of a yes/no question are right: ROC, precision-recall and confusion, at both levels."""
    rows, levels, pictures = _rows(question, split), question.scores.splits[split], {}
    for level in reversed(shown_levels(levels)):
        units = units_of(rows, level, **pooling_of(question.scores.options))
        place = f"{names.of_split}, {plural_of(levels[level])}"
        pictures[f"roc_{level}"] = figures.roc_pr(f"{names.id}-roc-{level}", place, units)
    for level in reversed(shown_levels(levels)):
        place = names.of_split if levels[level].is_single_view else f"{names.of_split}, {level} level"
        pictures[f"confusion_{level}"] = figures.confusion(
            f"{names.id}-confusion-{level}", place, levels[level].confusion, question.sides
        )
    return pictures


def probability_pictures(names: Names, question: Question, split: str) -> dict[str, Picture]:
    """What the probabilities of a yes/no question are worth: histogram, reliability, thresholds, at both levels."""
    rows, scores, sides = _rows(question, split), question.scores, question.sides
    pooling, calibrator = pooling_of(scores.options), scores.calibrator
    points = [(point.rule, point.threshold) for point in scores.operating_points[split]]
    histograms, reliabilities, thresholds = {}, {}, {}
    for level in reversed(shown_levels(scores.splits[split])):
        units, calibrated = units_of(rows, level, **pooling), None
        if calibrator and (level == "study" or scores.options.calibrate_at == "image"):
            fitted = {"calibrator": calibrator, "calibrated_at": scores.options.calibrate_at}
            calibrated = units_of(rows, level, **pooling, **fitted)
        elif level in scores.calibrated.get(split, ()):
            calibrated = fold_units(rows, level, question.calibrators, scores.options)
        end, what = "" if level == "study" else "-image", f"{names.of_split}, {plural_of(scores.splits[split][level])}"
        chosen = points if level == "study" else []  # thresholds are chosen for studies
        name = f"{names.id}-histogram{end}"
        histograms[name] = figures.histogram(name, what, units, sides)
        name = f"{names.id}-reliability{end}"
        reliabilities[name] = figures.reliability(name, what, units, calibrated, sides)
        name = f"{names.id}-thresholds{end}"
        thresholds[name] = figures.thresholds(name, what, calibrated or units, chosen)
    return histograms | reliabilities | thresholds


def training_pictures(names: Names, history: pd.DataFrame | None) -> dict[str, Picture]:
    """Loss, accuracy, AUC and F1 by epoch, as far as the history has them; earlier versions wrote no image F1."""
    if history is None:
        return {}
    pictures = {
        name: figures.training(f"{names.id}-{name}", names.of_run, history, scores)
        for name, scores in figures.TRAINING.items()
    }
    return {name: picture for name, picture in pictures.items() if picture}


def _rows(question: Question, split: str) -> pd.DataFrame:
    return question.table[question.table["split"] == split]


def class_pictures(names: Names, rows: pd.DataFrame, details: Details, task: Task) -> dict[str, Picture]:
    """Curves of all classes and confusion matrices at both levels; rows: predictions of the split."""
    classes, areas, scores = task.classes, task.area_names, details.scores
    of_classes, of_areas = {}, {}
    for level in reversed(shown_levels(scores.splits[details.split])):
        level_scores = scores.splits[details.split][level]
        place = f"{names.of_split}, {plural_of(level_scores)}"
        if level_scores.confusion:
            of_classes[f"classes_{level}"] = class_figures.confusion_of(
                f"{names.id}-classes-{level}", place, classes, level_scores.confusion, 2 if areas else 1
            )
        units = class_units_of(rows, level, task, **pooling_of(scores.options))
        columns = zip(classes, units.target.T, units.probability.T, level_scores.classes, strict=True)
        curves = [_curve(*column, of_class.scores) for *column, of_class in columns]
        what = f"each against the rest, {place}"
        of_classes |= _curve_pictures(names.id, "classes", level, what, curves, len(areas))
        if areas:
            matrix = scores.areas[details.split][level].confusion
            of_areas[f"areas_{level}"] = class_figures.confusion_of(
                f"{names.id}-areas-{level}", f"which area, {place}", areas, matrix
            )
    return of_classes | of_areas


def area_pictures(names: Names, rows: pd.DataFrame, details: Details, area: str, task: Task) -> dict[str, Picture]:
    """Abnormal or normal by area: curves at both levels, kappas; rows: predictions of the split."""
    scores = details.scores
    tables = questions_of(rows, area, task)
    pictures = {}
    for level in reversed(shown_levels(scores.splits[details.split])):
        curves = []
        for area, table in tables.items():
            units = units_of(table, level, **pooling_of(scores.options))
            level_scores = scores.questions[area].splits[details.split][level]
            curves.append(_curve(area, units.label, units.probability, level_scores.scores))
        units = plural_of(scores.splits[details.split][level])
        what = f"abnormal or normal by area, {names.of_split}, {units}"
        pictures |= _curve_pictures(names.id, "areas", level, what, curves)
    columns = [
        (published.name, [row.published[place] for row in details.kappas]) for place, published in enumerate(PUBLISHED)
    ]
    pictures["kappas"] = class_figures.kappas(
        f"{names.id}-kappas",
        f"abnormal or normal, {names.of_split}, studies; published values are of another test set",
        [(row.area, row.kappa) for row in details.kappas],
        [(name, values) for name, values in columns if any(value is not None for value in values)],
    )
    return pictures


def _curve_pictures(
    name: str, kind: str, level: str, what: str, curves: Sequence[Curve], period: int = 0
) -> dict[str, Picture]:
    """ROC and precision-recall curves of one level. Curves of areas are of different images, whose numbers add up."""
    numbers = [len(curve.label) for curve in curves]
    n = sum(numbers) if kind == "areas" else max(numbers)
    options = {"period": period} if period else {}
    return {
        f"roc_{kind}_{level}": class_figures.roc_curves(f"{name}-roc-{kind}-{level}", what, curves, n, **options),
        f"pr_{kind}_{level}": class_figures.pr_curves(f"{name}-pr-{kind}-{level}", what, curves, n, **options),
    }


def _curve(name: str, label: np.ndarray, probability: np.ndarray, scores: dict[str, Interval]) -> Curve:
    known = label >= 0
    return Curve(name, label[known], probability[known], scores["auc"], scores["ap"])


def perturbations(names: Names, explanation: Explanation) -> dict[str, Picture]:
    """Deletion and insertion curves of each feature map of an explanation."""
    pictures = {}
    for worth in explanation.worths:
        name, what = f"perturbation-{worth.tap}", f"{names.of_run}, {worth.tap}"
        pictures[name] = figures.perturbation(f"{names.id}-{name}", what, worth.curves, explanation.sample)
    return pictures


def pooling_of(options: ScoreOptions) -> dict[str, str | int]:
    """Returns the arguments of `units_of` for the pooling of an evaluation."""
    return {"pooling": options.pooling, "top_k": options.top_k}
