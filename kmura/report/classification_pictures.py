"""The pictures of a classifier's chapter."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from kmura.evaluation.class_scores import MultiScores, class_units_of, questions_of
from kmura.evaluation.scoring import Counted, ScoreOptions, Scores, shown_levels, units_of
from kmura.explain.explanation import Explanation
from kmura.metrics import Interval
from kmura.report import class_figures, figures
from kmura.report.class_figures import Curve
from kmura.report.classification_details import Details, Question
from kmura.report.figures import Picture
from kmura.report.published import PUBLISHED
from kmura.tasks import Task

PLURAL = {"image": "images", "study": "studies"}


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


def figures_of(
    names: Names,
    table: pd.DataFrame,
    question: Question | None,
    details: Details,
    area: str,
    task: Task,
    others: dict[str, Picture],
) -> dict[str, dict[str, Picture]]:
    """Heading -> name -> picture; `others` are those that do not depend on the scores."""
    groups: dict[str, dict[str, Picture]] = {}
    rows = table[table["split"] == details.split]
    if isinstance(details.scores, MultiScores):
        groups[details.units.capitalize()] = _class_pictures(names, rows, details, task)
        if details.kappas:
            groups["Abnormal or normal by area"] = _area_pictures(names, rows, details, area, task)
    if question:
        groups[question.heading] = _question_pictures(names, question, details.split)
    heading = question.heading if isinstance(details.scores, Scores) else "Training"
    groups[heading] = groups.get(heading, {}) | others
    return {heading: pictures for heading, pictures in groups.items() if pictures}


def _question_pictures(names: Names, question: Question, split: str) -> dict[str, Picture]:
    """The figures of a yes/no question on a split."""
    name, what, scores, sides = names.id, names.of_split, question.scores, question.sides
    rows = question.table[question.table["split"] == split]
    pooling, calibrator = _pooling(scores.options), scores.calibrator
    study, image = (units_of(rows, level, **pooling) for level in ("study", "image"))
    calibrated = None
    if calibrator:
        fitted = {"calibrator": calibrator, "calibrated_at": scores.options.calibrate_at}
        calibrated = units_of(rows, "study", **pooling, **fitted)
    points = [(point.rule, point.threshold) for point in scores.operating_points[split]]
    levels = scores.splits[split]
    single = levels["study"].is_single_view  # then both levels are the same
    of_units = f"{what}, {'images' if single else 'studies'}"
    pictures = {"roc_study": figures.roc_pr(f"{name}-roc-study", of_units, study)}
    if not single:
        pictures["roc_image"] = figures.roc_pr(f"{name}-roc-image", f"{what}, images", image)
    pictures |= {
        "histogram": figures.histogram(f"{name}-histogram", of_units, study, sides),
        "reliability": figures.reliability(f"{name}-reliability", of_units, study, calibrated, sides),
        "thresholds": figures.thresholds(f"{name}-thresholds", of_units, calibrated or study, points),
    }
    for level in shown_levels(levels):
        place = what if single else f"{what}, {level} level"
        pictures[f"confusion_{level}"] = figures.confusion(
            f"{name}-confusion-{level}", place, levels[level].confusion, sides
        )
    return pictures


def _class_pictures(names: Names, rows: pd.DataFrame, details: Details, task: Task) -> dict[str, Picture]:
    """Curves of all classes and confusion matrices at both levels; rows: predictions of the split."""
    classes, areas, scores = task.classes, task.area_names, details.scores
    of_classes, of_areas = {}, {}
    for level in reversed(shown_levels(scores.splits[details.split])):
        level_scores = scores.splits[details.split][level]
        place = f"{names.of_split}, {_plural(level_scores)}"
        if level_scores.confusion:
            of_classes[f"classes_{level}"] = class_figures.confusion_of(
                f"{names.id}-classes-{level}", place, classes, level_scores.confusion, 2 if areas else 1
            )
        units = class_units_of(rows, level, task, **_pooling(scores.options))
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


def _plural(scores: Counted) -> str:
    return "images" if scores.is_single_view or scores.level == "image" else "studies"


def _area_pictures(names: Names, rows: pd.DataFrame, details: Details, area: str, task: Task) -> dict[str, Picture]:
    """Abnormal or normal by area: curves at both levels, kappas; rows: predictions of the split."""
    scores = details.scores
    tables = questions_of(rows, area, task)
    pictures = {}
    for level in reversed(shown_levels(scores.splits[details.split])):
        curves = []
        for area, table in tables.items():
            units = units_of(table, level, **_pooling(scores.options))
            level_scores = scores.questions[area].splits[details.split][level]
            curves.append(_curve(area, units.label, units.probability, level_scores.scores))
        units = _plural(scores.splits[details.split][level])
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


def _pooling(options: ScoreOptions) -> dict[str, str | int]:
    return {"pooling": options.pooling, "top_k": options.top_k}
