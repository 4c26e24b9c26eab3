"""The chapter of a classifier: binary, of several classes or labels, of one area or of all areas."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from kmura.evaluation.evaluation import Evaluation, read_evaluation
from kmura.evaluation.scoring import LevelScores
from kmura.report import figures
from kmura.report.chapter import Chapter, Table, Text
from kmura.report.classification_details import Details, Question, details_of, question_of
from kmura.report.classification_pictures import Names, figures_of, perturbations
from kmura.report.run_files import facts_of, read_explored, read_gallery, read_history
from kmura.runs.predictions import patient_keys_of, study_keys_of
from kmura.runs.run import Run
from kmura.tasks import ALL, Task

TEMPLATE = "classification.html.jinja"
READING = "classification_reading.html.jinja"


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
    split = headline_split(scores.splits, description.config.train.select_on, scores.options.fit_on)
    question = question_of(table, scores, run.area, task)
    details = details_of(scores, split, question, task)
    area = "All areas" if description.area == ALL else description.area
    title = f"{area}, {description.phase}"
    names = Names(f"run{number}", title, f"{title}, {split}")
    others = {}
    if history is not None:
        others["training"] = figures.training(f"{names.id}-training", names.of_split, history)
    if explored and explored.principal.cumulative:
        text = f"{area}, thumbnails"
        others["variance"] = figures.explained_variance(f"{names.id}-variance", text, explored.principal)
    if gallery:
        others |= perturbations(names, gallery.explanation)
    warnings = [f"Leakage between splits: {leak}." for leak in description.leaks]
    if stale:
        warnings.append(
            f"The galleries are left out, since they show an earlier model of this run; run kmura explain {run} again"
        )
    if not evaluation.has_patients:
        warnings.append("These records do not identify patients: leakage between splits could not be checked.")
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
        figures=figures_of(names, table, question, details, run.area, task, others),
        gallery=gallery,
        facts=facts_of(description, folder),
        template=TEMPLATE,
        details=details,
        reading=READING,
        pooling=(scores.options.pooling, scores.options.top_k),
    )


def headline_split(splits: Iterable[str], *chosen: str) -> str:
    """Returns the split whose scores are shown first.

    It is `test`, or else the first split that nothing was chosen or fitted on, whatever it is called.

    Args:
        splits: splits with scores.
        chosen: splits that the best epoch, calibration and thresholds were chosen on.
    """
    splits = list(splits)
    used = {"train", *chosen}
    held_out = [split for split in splits if split not in used]
    if "test" in splits and ("test" in held_out or not held_out):
        return "test"
    return next(iter(held_out or splits))


def _headline(evaluation: Evaluation, details: Details) -> tuple[Text, ...]:
    split, select_on = details.split, evaluation.select_on
    study = details.scores.splits[split]["study"]
    held_out = "held-out " if split not in (select_on, evaluation.scores.options.fit_on) else ""
    of_study, units = ("", "images") if study.is_single_view else ("study ", "studies")
    patients = f"{study.patients} patients" if evaluation.has_patients else ""
    if isinstance(study, LevelScores):
        counts = ", ".join(filter(None, (f"{study.positives} {details.positive}", patients)))
        sentence = (
            f"{of_study}AUC {study.scores['auc']} on {study.units} {held_out}{units} ({counts}); "
            f"kappa {study.scores['kappa']} at threshold 0.5."
        )
    else:
        counts = f" ({patients})" if patients else ""
        sentence = (
            f"{details.classes} {details.units}, {of_study}kappa {study.scores['kappa']}, mean AUC "
            f"{study.scores['auc']} on {study.units} {held_out}{units}{counts}."
        )
    if details.kappas:
        pooled = details.answers.splits[split]["study"].scores
        sentence += f" Abnormal or normal in all areas: AUC {pooled['auc']}, kappa {pooled['kappa']} at threshold 0.5."
    sentence += f" The best epoch was chosen on {select_on}"
    if select_on != split:
        return (Text(f"{sentence}."),)
    return Text(f"{sentence}, the split scored here: "), Text("optimistic", strong=True), Text(".")


def _data(table: pd.DataFrame, question: Question | None, task: Task, has_patients: bool) -> Table:
    """Counts of the images of each split, with those of the positive side of a question.

    Studies are left out where every image is a study of its own.
    """
    if question:
        table, positive = question.table, (question.sides[1],)
        unknown = table["label"] < 0
    else:
        positive, unknown = (), (table[task.label_columns] < 0).all(axis=1)
    rows, single = [], _studies(table.assign(study=table["split"] + "/" + table["study"])) == len(table)
    for split, images in table.assign(unknown=unknown).groupby("split", sort=False):
        of_side = [images[images["label"] == 1]] if question else []
        rows.append(
            (
                split,
                len(images),
                *(len(some) for some in of_side),
                *(() if single else (_studies(some) for some in (images, *of_side))),
                len(np.unique(patient_keys_of(images))) if has_patients else "not known",
                int(images["unknown"].sum()),
            )
        )
    studies = () if single else ("studies", *positive)
    heads = ("split", "images", *positive, *studies, "patients", "unknown labels")
    return Table("Data", heads, tuple(rows))


def _studies(images: pd.DataFrame) -> int:
    return len(np.unique(study_keys_of(images)))
