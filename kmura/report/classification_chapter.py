"""The chapter of a classifier: binary, of several classes or labels, of one area or of all areas."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kmura.evaluation.class_scores import (
    MultiScores,
    abnormality_of,
    class_units_of,
    questions_of,
)
from kmura.evaluation.evaluation import Evaluation, read_evaluation
from kmura.evaluation.scoring import LEVELS, LevelScores, ScoreOptions, Scores, units_of
from kmura.explain.explanation import Explanation
from kmura.metrics import Interval
from kmura.report import class_figures, figures
from kmura.report.chapter import Chapter, Table, Text
from kmura.report.class_figures import Curve
from kmura.report.figures import Picture
from kmura.report.published import EARLIER_CLASS_KAPPA, MURA_AREAS, PUBLISHED, SOURCE, Published
from kmura.report.run_files import facts_of, read_explored, read_gallery, read_history
from kmura.runs.run import Run
from kmura.tasks import ALL, Task

TEMPLATE = "classification.html.jinja"
READING = "classification_reading.html.jinja"
PLURAL = {"image": "images", "study": "studies"}


@dataclasses.dataclass(frozen=True)
class Question:
    """The yes/no question that a run answers of all its images.

    Attributes:
        table: its binary predictions.
        scores: of these.
        sides: names of the negative and the positive side.
        heading: of its figures.
    """

    table: pd.DataFrame
    scores: Scores
    sides: tuple[str, str]
    heading: str


@dataclasses.dataclass(frozen=True)
class KappaRow:
    """Cohen's kappa of abnormal or normal in an area, with published values.

    Attributes:
        area: its name, or `all areas`.
        studies: number of studies.
        kappa: of the run.
        published: of each entry of PUBLISHED; None where nothing is published.
    """

    area: str
    studies: int
    kappa: Interval
    published: tuple[float | None, ...]


@dataclasses.dataclass(frozen=True)
class Details:
    """What the template of classifiers shows in addition to the general parts of a chapter.

    Attributes:
        units: what it tells apart, `classes` or `labels`.
        classes: their number.
        split: whose scores are shown first.
        scores: of the run.
        answers: scores of the yes/no question, if the run answers one of all its images; else None.
        positive: name of the positive side of that question; "" without one.
        kappas: of one model over all areas, the last row of all areas; else empty.
        others: whose kappas are published, in the order of `KappaRow.published`; empty if no row has such a value.
        source: test set of the published kappas.
        earlier_kappa: of an earlier system over the same classes; None if the classes are others.
    """

    units: str
    classes: int
    split: str
    scores: Scores | MultiScores
    answers: Scores | None
    positive: str
    kappas: tuple[KappaRow, ...]
    others: tuple[Published, ...]
    source: str
    earlier_kappa: float | None

    @property
    def several(self) -> bool:
        """Whether the run is of several classes or labels."""
        return isinstance(self.scores, MultiScores)


def chapter(run: Run, number: int, eda: Path | None = None) -> Chapter:
    """Returns the chapter of a classifier.

    Args:
        run: an evaluated run.
        number: of the chapter.
        eda: the file that `kmura eda` wrote; None looks for it in the folder of the records.

    Raises:
        InputError: the run is not evaluated, or one of its files is damaged.
    """
    folder, description, task = run.folder, run.description, run.labels
    evaluation, table = read_evaluation(run)
    explored = read_explored(description, eda)
    gallery, stale = read_gallery(folder, evaluation.model_sha256)
    history = read_history(folder)
    scores = evaluation.scores
    split = "test" if "test" in scores.splits else next(iter(scores.splits))
    question = question_of(table, scores, run.area, task)
    details = _details(scores, split, question, task)
    area = "All areas" if description.area == ALL else description.area
    title = f"{area}, {description.phase}"
    names = _Names(f"run{number}", title, f"{title}, {split}")
    others = {}
    if history is not None:
        others["training"] = figures.training(f"{names.id}-training", names.of_split, history)
    if explored and explored.principal.cumulative:
        text = f"{area}, thumbnails"
        others["variance"] = figures.explained_variance(f"{names.id}-variance", text, explored.principal)
    if gallery:
        others |= _perturbations(names, gallery.explanation)
    warnings = []
    if stale:
        warnings.append(
            f"The galleries are left out, since they show an earlier model of this run; run kmura explain {run} again"
        )
    if not evaluation.has_patients:
        warnings.append(
            "These records do not identify patients: intervals resample images, and leakage between splits could not "
            "be checked."
        )
    return Chapter(
        id=names.id,
        title=title,
        area=area,
        path=str(run),
        headline=_headline(evaluation, details),
        tables=(_data(table, question, task, evaluation.has_patients),),
        explored=explored,
        notes=scores.notes,
        warnings=tuple(warnings),
        figures=_figures(names, table, question, details, run.area, task, others),
        gallery=gallery,
        facts=facts_of(description, folder),
        template=TEMPLATE,
        details=details,
        reading=READING,
        pooling=(scores.options.pooling, scores.options.top_k),
    )


@dataclasses.dataclass(frozen=True)
class _Names:
    """How the figures of a chapter are called.

    Attributes:
        id: beginning of their file names.
        of_run, of_split: ends of their titles.
    """

    id: str
    of_run: str
    of_split: str


def question_of(table: pd.DataFrame, scores: Scores | MultiScores, area: str, task: Task) -> Question | None:
    """Returns the yes/no question that a run answers of all its images, or None.

    Args:
        table: predictions of the run.
        scores: of these.
        area, task: of the run.
    """
    if isinstance(scores, Scores):
        return Question(table, scores, task.sides, "")
    if task.is_joint:
        heading = "Abnormal or normal, all areas pooled"
        return Question(abnormality_of(table, task), scores.pooled, task.sides, heading)
    tables = questions_of(table, area, task)
    if len(tables) != 1:
        return None
    (name, of_question), *_ = tables.items()
    return Question(of_question, scores.questions[name], task.sides, "As a yes/no question")


def kappa_rows(scores: MultiScores, split: str) -> tuple[KappaRow, ...]:
    """Returns Cohen's kappa of one model over all areas, abnormal or normal at study level, by area and of all areas.

    Published values of all areas are added only if the areas are those of MURA.
    """
    areas = {name: of_area for name, of_area in scores.questions.items() if split in of_area.splits}
    whole = ALL if areas.keys() == set(MURA_AREAS) else None
    rows = [(name, name, of_area) for name, of_area in areas.items()] + [("all areas", whole, scores.pooled)]
    return tuple(
        KappaRow(
            area=name,
            studies=question.splits[split]["study"].studies,
            kappa=question.splits[split]["study"].scores["kappa"],
            published=tuple(published.kappas.get(key) for published in PUBLISHED),
        )
        for name, key, question in rows
    )


def _details(scores: Scores | MultiScores, split: str, question: Question | None, task: Task) -> Details:
    kappas = kappa_rows(scores, split) if task.is_joint else ()
    is_published = any(value is not None for row in kappas for value in row.published)
    return Details(
        units="labels" if task.by_label else "classes",
        classes=len(task.classes),
        split=split,
        scores=scores,
        answers=question.scores if question else None,
        positive=question.sides[1] if question else "",
        kappas=kappas,
        others=PUBLISHED if is_published else (),
        source=SOURCE,
        earlier_kappa=EARLIER_CLASS_KAPPA if kappas and kappas[-1].published[0] is not None else None,
    )


def _headline(evaluation: Evaluation, details: Details) -> tuple[Text, ...]:
    split, select_on = details.split, evaluation.select_on
    study = details.scores.splits[split]["study"]
    held_out = "held-out " if split == "test" and select_on != split else ""
    patients = f"{study.patients} {'patients' if evaluation.has_patients else 'images as patients'}"
    if isinstance(study, LevelScores):
        sentence = (
            f"study AUC {study.scores['auc']} on {study.studies} {held_out}studies ({study.positives} "
            f"{details.positive}, {patients}); kappa {study.scores['kappa']} at threshold 0.5."
        )
    else:
        sentence = (
            f"{details.classes} {details.units}, study kappa "
            f"{study.scores['kappa']}, mean AUC {study.scores['auc']} on {study.studies} {held_out}studies "
            f"({patients})."
        )
    if details.kappas:
        pooled = details.answers.splits[split]["study"].scores
        sentence += f" Abnormal or normal in all areas: AUC {pooled['auc']}, kappa {pooled['kappa']} at threshold 0.5."
    sentence += f" The best epoch was chosen on {select_on}"
    if select_on != split:
        return (Text(f"{sentence}."),)
    return Text(f"{sentence}, the split scored here: "), Text("optimistic", strong=True), Text(".")


def _data(table: pd.DataFrame, question: Question | None, task: Task, has_patients: bool) -> Table:
    """Counts of the images of each split, with those of the positive side of a question."""
    if question:
        table, positive = question.table, (question.sides[1],)
        unknown = table["label"] < 0
    else:
        positive, unknown = (), (table[task.label_columns] < 0).all(axis=1)
    rows = []
    for split, images in table.assign(unknown=unknown).groupby("split", sort=False):
        of_side = [images[images["label"] == 1]] if question else []
        rows.append(
            (
                split,
                len(images),
                *(len(some) for some in of_side),
                _studies(images),
                *(_studies(some) for some in of_side),
                images["patient"].nunique() if has_patients else "not known",
                int(images["unknown"].sum()),
            )
        )
    heads = ("split", "images", *positive, "studies", *positive, "patients", "unknown labels")
    return Table("Data", heads, tuple(rows))


def _studies(images: pd.DataFrame) -> int:
    return len(images[["area", "study"]].drop_duplicates())


def _figures(
    names: _Names,
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


def _question_pictures(names: _Names, question: Question, split: str) -> dict[str, Picture]:
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
    pictures = {
        "roc_study": figures.roc_pr(f"{name}-roc-study", f"{what}, studies", study),
        "roc_image": figures.roc_pr(f"{name}-roc-image", f"{what}, images", image),
        "histogram": figures.histogram(f"{name}-histogram", f"{what}, studies", study, sides),
        "reliability": figures.reliability(f"{name}-reliability", f"{what}, studies", study, calibrated, sides),
        "thresholds": figures.thresholds(f"{name}-thresholds", f"{what}, studies", calibrated or study, points),
    }
    for level in LEVELS:
        cells = scores.splits[split][level].confusion
        pictures[f"confusion_{level}"] = figures.confusion(
            f"{name}-confusion-{level}", f"{what}, {level} level", cells, sides
        )
    return pictures


def _class_pictures(names: _Names, rows: pd.DataFrame, details: Details, task: Task) -> dict[str, Picture]:
    """Curves of all classes and confusion matrices at both levels; rows: predictions of the split."""
    classes, areas, scores = task.classes, task.area_names, details.scores
    of_classes, of_areas = {}, {}
    for level in reversed(LEVELS):
        level_scores, place = scores.splits[details.split][level], f"{names.of_split}, {PLURAL[level]}"
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


def _area_pictures(names: _Names, rows: pd.DataFrame, details: Details, area: str, task: Task) -> dict[str, Picture]:
    """Abnormal or normal by area: curves at both levels, kappas; rows: predictions of the split."""
    scores = details.scores
    tables = questions_of(rows, area, task)
    pictures = {}
    for level in reversed(LEVELS):
        curves = []
        for area, table in tables.items():
            units = units_of(table, level, **_pooling(scores.options))
            level_scores = scores.questions[area].splits[details.split][level]
            curves.append(_curve(area, units.label, units.probability, level_scores.scores))
        what = f"abnormal or normal by area, {names.of_split}, {PLURAL[level]}"
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


def _perturbations(names: _Names, explanation: Explanation) -> dict[str, Picture]:
    """Deletion and insertion curves of each feature map of an explanation."""
    pictures = {}
    for worth in explanation.worths:
        name, what = f"perturbation-{worth.tap}", f"{names.of_run}, {worth.tap}"
        pictures[name] = figures.perturbation(f"{names.id}-{name}", what, worth.curves, explanation.sample)
    return pictures


def _pooling(options: ScoreOptions) -> dict[str, str | int]:
    return {"pooling": options.pooling, "top_k": options.top_k}
