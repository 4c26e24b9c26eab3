"""What the page says of a run over several classes or labels, beyond what it says of every run."""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd

from kmura.data.index import ALL
from kmura.evaluation.class_scores import (
    abnormality_of,
    class_units_of,
    columns_of,
    joint_areas,
    questions_of,
    sides_of,
)
from kmura.evaluation.scoring import LEVELS, units_of
from kmura.metrics import Interval
from kmura.report import class_figures
from kmura.report.class_figures import Curve
from kmura.report.figures import Picture
from kmura.report.published import MURA_AREAS, PUBLISHED
from kmura.runs.run import RunDescription

PLURAL = {"image": "images", "study": "studies"}


@dataclasses.dataclass(frozen=True)
class Parts:
    """What the page says of a run, by its task.

    Attributes:
        question: binary predictions, of the one yes/no question that the run answers of all its images; without one,
            all images, of label 0 or -1 (unknown).
        answers: scores of that question as `metrics.json` holds them, or None.
        sides: names of the negative and the positive side of that question.
        heading: of its figures.
        groups: heading -> further figures.
        kappas: see `kappa_rows`.
    """

    question: pd.DataFrame
    answers: dict[str, Any] | None
    sides: tuple[str, str]
    heading: str
    groups: dict[str, dict[str, Picture]]
    kappas: list[dict[str, Any]]


def parts_of(
    table: pd.DataFrame, scores: dict[str, Any], split: str, description: RunDescription, name: str, what: str
) -> Parts:
    """What the page says of a run, by its task.

    Args:
        table: the run's predictions.
        scores: as `metrics.json` holds them.
        split: whose figures.
        name: beginning of the figures' names.
        what: whose figures, for their titles.
    """
    task, classes = description.task, description.classes
    sides = sides_of(description.area, task, classes)
    if task == "binary":
        return Parts(table, scores, sides, "", {}, [])
    rows = table[table["split"] == split]
    heading = "Labels" if task == "multilabel" else "Classes"
    groups = {heading: class_pictures(name, what, rows, scores, split, description)}
    if joint_areas(description.area, task, classes):
        groups["Abnormal or normal by area"] = area_pictures(name, what, rows, scores, split, description)
        heading, kappas = "Abnormal or normal, all areas pooled", kappa_rows(scores, split)
        return Parts(abnormality_of(table, classes), scores["pooled"], sides, heading, groups, kappas)
    questions = list(questions_of(table, description.area, task, classes).values())
    if len(questions) == 1:
        return Parts(questions[0], *scores["questions"].values(), sides, "As a yes/no question", groups, [])
    labels, _, _ = columns_of(task, classes)
    unknown = (table[labels] < 0).all(axis=1)
    return Parts(table.assign(label=np.where(unknown, -1, 0)), None, sides, "", groups, [])


def kappa_rows(scores: dict[str, Any], split: str) -> list[dict[str, Any]]:
    """Cohen's kappa of one model over all areas, abnormal or normal on studies, by area and of all areas, beside
    what others published; on all areas only if they are those of the others."""
    found = {name: each for name, each in scores["questions"].items() if split in each["splits"]}
    whole = ALL if found.keys() == set(MURA_AREAS) else None
    return [
        {
            "area": name,
            "studies": each["splits"][split]["study"]["studies"],
            "kappa": each["splits"][split]["study"]["scores"]["kappa"],
            "published": [theirs.kappas.get(key) for theirs in PUBLISHED],
        }
        for name, key, each in (
            *((name, name, each) for name, each in found.items()),
            ("all areas", whole, scores["pooled"]),
        )
    ]


def class_pictures(
    name: str, what: str, rows: pd.DataFrame, scores: dict[str, Any], split: str, description: RunDescription
) -> dict[str, Picture]:
    """Curves of all classes and confusion matrices at both levels.

    Args:
        name: beginning of the figures' names.
        what: whose figures, for their titles.
        rows: predictions of the split.
        scores: as `metrics.json` holds them.
    """
    task, classes = description.task, description.classes
    areas = joint_areas(description.area, task, classes)
    options = {"pooling": scores["options"]["pooling"], "top_k": scores["options"]["top_k"]}
    found, which = {}, {}
    for level in reversed(LEVELS):
        ours, place = scores["splits"][split][level], f"{what}, {PLURAL[level]}"
        if ours["confusion"]:
            found[f"classes_{level}"] = class_figures.confusion_of(
                f"{name}-classes-{level}", place, classes, ours["confusion"], 2 if areas else 1
            )
        units = class_units_of(rows, level, task, classes, **options)
        columns = zip(classes, units.target.T, units.probability.T, ours["classes"], strict=True)
        curves = [_curve(*column, each["scores"]) for *column, each in columns]
        found |= _curve_pictures(name, "classes", level, f"each against the rest, {place}", curves, len(areas))
        if areas:
            matrix, title = scores["areas"][split][level]["confusion"], f"which area, {place}"
            which[f"areas_{level}"] = class_figures.confusion_of(f"{name}-areas-{level}", title, areas, matrix)
    return found | which


def area_pictures(
    name: str, what: str, rows: pd.DataFrame, scores: dict[str, Any], split: str, description: RunDescription
) -> dict[str, Picture]:
    """Abnormal or normal by area: curves at both levels, kappas; arguments as of `class_pictures`."""
    options = {"pooling": scores["options"]["pooling"], "top_k": scores["options"]["top_k"]}
    tables = questions_of(rows, description.area, description.task, description.classes)
    found = {}
    for level in reversed(LEVELS):
        curves = []
        for area, table in tables.items():
            units = units_of(table, level, **options)
            ours = scores["questions"][area]["splits"][split][level]["scores"]
            curves.append(_curve(area, units.label, units.probability, ours))
        place = f"abnormal or normal by area, {what}, {PLURAL[level]}"
        found |= _curve_pictures(name, "areas", level, place, curves)
    lines = kappa_rows(scores, split)
    theirs = [(each.name, [line["published"][place] for line in lines]) for place, each in enumerate(PUBLISHED)]
    found["kappas"] = class_figures.kappas(
        f"{name}-kappas",
        f"abnormal or normal, {what}, studies; published values are of another test set",
        [(line["area"], Interval.from_json(line["kappa"])) for line in lines],
        [(title, values) for title, values in theirs if any(value is not None for value in values)],
    )
    return found


def _curve_pictures(name: str, kind: str, level: str, what: str, curves: list[Curve], period: int = 0):
    """ROC and precision-recall curves of one level; of areas, each of images of its own, n is that of all."""
    numbers = [len(curve.label) for curve in curves]
    n = sum(numbers) if kind == "areas" else max(numbers)
    options = {"period": period} if period else {}
    return {
        f"roc_{kind}_{level}": class_figures.roc_curves(f"{name}-roc-{kind}-{level}", what, curves, n, **options),
        f"pr_{kind}_{level}": class_figures.pr_curves(f"{name}-pr-{kind}-{level}", what, curves, n, **options),
    }


def _curve(name: str, label: np.ndarray, probability: np.ndarray, scores: dict[str, Any]) -> Curve:
    known = label >= 0
    return Curve(name, label[known], probability[known], *(Interval.from_json(scores[area]) for area in ("auc", "ap")))
