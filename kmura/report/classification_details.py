"""What a classifier's chapter shows: its scores, the yes/no question that it answers, kappas beside published ones."""

import dataclasses

import pandas as pd

from kmura.evaluation.calibrators import Calibrator
from kmura.evaluation.class_scores import MultiScores, abnormality_of, questions_of
from kmura.evaluation.scoring import Scores
from kmura.metrics import Interval
from kmura.report.published import EARLIER_KAPPA, MURA_AREAS, PUBLISHED, SOURCE, Published
from kmura.tasks import ALL, Task


@dataclasses.dataclass(frozen=True)
class Question:
    """The yes/no question that a run answers of all its images.

    Attributes:
        table: its binary predictions.
        scores: of these.
        sides: names of the negative and the positive side.
        heading: of its figures.
        calibrators: of the folds of a cross-validation; else empty.
    """

    table: pd.DataFrame
    scores: Scores
    sides: tuple[str, str]
    heading: str
    calibrators: dict[int, Calibrator | None] = dataclasses.field(default_factory=dict)


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
        earlier_kappa: kappa of abnormal or normal of an earlier system over the areas of MURA; None if the areas are
            others.
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


def details_of(scores: Scores | MultiScores, split: str, question: Question | None, task: Task) -> Details:
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
        earlier_kappa=EARLIER_KAPPA if kappas and kappas[-1].published[0] is not None else None,
    )
