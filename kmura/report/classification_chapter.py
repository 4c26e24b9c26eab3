"""The chapter of a classifier: binary, of several classes or labels, of one area or of all areas."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from kmura.evaluation.cross_validation import FoldsEvaluation
from kmura.evaluation.evaluation import Evaluation
from kmura.evaluation.exploration import AreaData
from kmura.evaluation.scoring import LevelScores, shown_levels
from kmura.report import eda_figures, figures
from kmura.report.chapter import Chapter, Gallery, Section, Table, Text
from kmura.report.classification_details import Details, Question, details_of, question_of
from kmura.report.classification_pictures import (
    Names,
    area_pictures,
    class_pictures,
    decision_pictures,
    perturbations,
    probability_pictures,
    training_pictures,
)
from kmura.report.classification_tables import (
    AREA_SCORES,
    area_scores,
    area_table,
    extremes,
    faithfulness_tables,
    folds_table,
    hardest_table,
    probability_table,
    report_table,
    views_of,
    views_table,
)
from kmura.report.run_files import facts_of, read_explored, read_gallery, read_history
from kmura.report.subgroup_section import subgroup_section
from kmura.runs.predictions import patient_keys_of, study_keys_of
from kmura.runs.run import Run
from kmura.tasks import ALL, Task

SCORES = "classification.html.jinja"
EXPLORED = "explored.html.jinja"
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
    evaluation, table = run.part("evaluation")(run)
    explored = read_explored(description, eda)
    gallery, stale = read_gallery(folder, evaluation.model_sha256)
    history = read_history(folder)
    scores = evaluation.scores
    split = evaluation.split
    question = question_of(table, scores, run.area, task)
    of_folds = ()
    if isinstance(evaluation, FoldsEvaluation):
        of_folds = (folds_table(evaluation),)
        if question:
            question = dataclasses.replace(question, calibrators={one.fold: one.calibrator for one in evaluation.folds})
    details = details_of(scores, split, question, task)
    area = "All areas" if description.area == ALL else description.area
    title = f"{area}, {description.phase}"
    names = Names(f"run{number}", title, f"{title}, {split}")
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
        tables=(counts_table(table, question, task, evaluation.has_patients), *of_folds),
        explored=explored,
        notes=scores.notes,
        warnings=tuple(warnings),
        sections=(
            works(names, table, question, details, task),
            fails(names, table, question, details, run.area, task),
            trusted(names, table, question, details, task),
            subgroup_section(names, evaluation.subgroups, split),
            _trained(names, history),
            _faithful(names, evaluation, gallery, run),
            _explored(names, area, explored),
        ),
        gallery=gallery,
        facts=facts_of(description, folder),
        details=details,
        reading=READING,
        pooling=(scores.options.pooling, scores.options.top_k),
    )


def works(names: Names, table: pd.DataFrame, question: Question | None, details: Details, task: Task) -> Section:
    """The scores, and which decisions are right."""
    tables, folded, pictures = (), (), {}
    if details.several:
        rows = table[table["split"] == details.split]
        pictures[details.units.capitalize()] = class_pictures(names, rows, details, task)
    if question:
        levels = question.scores.splits[details.split]
        study, *image = (
            report_table(levels[level], question.sides, details.split) for level in reversed(shown_levels(levels))
        )
        tables, folded = (study,), tuple(image)
        pictures[question.heading] = decision_pictures(names, question, details.split)
    return Section("Does it work?", "", SCORES, tables, folded, pictures)


def fails(
    names: Names, table: pd.DataFrame, question: Question | None, details: Details, area: str, task: Task
) -> Section:
    """Where wrong decisions are: by area, by number of images, and the most confident ones."""
    tables, folded, pictures, heading = [], [], {}, ""
    if details.kappas:
        rows = table[table["split"] == details.split]
        heading = "Abnormal or normal by area and by number of images"
        pictures[heading] = area_pictures(names, rows, details, area, task)
    if question:
        rows = question.table[question.table["split"] == details.split]
        options, split = question.scores.options, details.split
        known = details.scores.questions if details.kappas else {}
        place = split if question.scores.splits[split]["study"].is_single_view else f"{split}, study level"
        by_area = area_scores(rows, options, known, split) if rows["area"].nunique() > 1 else {}
        ends = extremes({name: scores.scores for name, scores in by_area.items()}, AREA_SCORES)
        if ends:
            heads = ("score", "best area", "worst area")
            tables.append(Table(f"Best and worst area on {place}", heads, tuple(ends)))
            tables += [] if details.kappas else [area_table(by_area, question.sides, place)]  # else among the scores
        views = views_of(rows, options)
        if len(views) > 1:
            tables.append(views_table(views, split))
            groups = [(title, studies, tp + tn) for title, studies, tp, _, _, tn in views]
            pictures.setdefault(heading, {})["views"] = figures.views(f"{names.id}-views", names.of_split, groups)
        hardest = hardest_table(rows, options, question.sides, split)
        folded += [hardest] if hardest else []
    return Section("Where does it fail?", "", "", tuple(tables), tuple(folded), pictures)


def trusted(names: Names, table: pd.DataFrame, question: Question | None, details: Details, task: Task) -> Section:
    """What the probabilities are worth."""
    pictures = probability_pictures(names, question, details.split) if question else {}
    ranges = probability_table(table, task)
    few = len(ranges.rows) <= 6
    text = "Points of a reliability diagram on the diagonal are probabilities that come true as often as they say."
    return Section(
        "Can the probabilities be trusted?",
        text if question else "",
        "",
        (ranges,) if few else (),
        () if few else (ranges,),
        {"": pictures},
    )


def _trained(names: Names, history: pd.DataFrame | None) -> Section:
    pictures = training_pictures(names, history)
    text = "Curves are of the split that selects the best epoch; those of training are of augmented images."
    return Section("How did the training go?", text, "", (), (), {"": pictures} if pictures else {})


def _faithful(names: Names, evaluation: Evaluation, gallery: Gallery | None, run: Run) -> Section:
    """How faithful the maps are."""
    explanation = gallery.explanation if gallery else None
    tables = faithfulness_tables(explanation, evaluation.localization_faithfulness)
    if isinstance(evaluation, FoldsEvaluation):  # has no model of its own
        return Section("Do the maps show what the model uses?")
    missing = []
    if not evaluation.localization_faithfulness:
        missing.append(f"the localization faithfulness of all images: kmura evaluate {run} --faithfulness")
    if explanation is None:
        missing.append(f"maps of examples, deletion and insertion curves: kmura explain {run}")
    text = f"Not computed yet: {'; '.join(missing)}." if missing and tables else ""
    pictures = perturbations(names, explanation) if explanation else {}
    return Section("Do the maps show what the model uses?", text, "", tuple(tables), (), {"": pictures})


def _explored(names: Names, area: str, explored: AreaData | None) -> Section:
    if explored is None:
        return Section("What do the images look like?")
    pictures = eda_figures.pictures(names.id, area, explored)
    return Section("What do the images look like?", "", EXPLORED, (), (), {"": pictures}, opened=False)


def _headline(evaluation: Evaluation, details: Details) -> tuple[Text, ...]:
    split, select_on = details.split, evaluation.select_on
    held_out = split not in (select_on, evaluation.scores.options.fit_on)
    sentence = scores_sentence(details, evaluation.has_patients, held_out)
    if isinstance(evaluation, FoldsEvaluation):
        sentence = f"{evaluation.number} folds, each predicted by a model trained without it: {sentence}"
        select_on = f"{select_on} of each fold" if select_on != split else select_on
    sentence += f" The best epoch was chosen on {select_on}"
    if select_on != split:
        return (Text(f"{sentence}."),)
    return Text(f"{sentence}, the split scored here: "), Text("optimistic", strong=True), Text(".")


def scores_sentence(details: Details, has_patients: bool, is_held_out: bool) -> str:
    """The main scores of the split that is shown first.

    Args:
        details: of the chapter.
        has_patients: whether patients are known.
        is_held_out: whether nothing was chosen or fitted on the split.
    """
    split = details.split
    study = details.scores.splits[split]["study"]
    held_out = "held-out " if is_held_out else ""
    of_study, units = ("", "images") if study.is_single_view else ("study ", "studies")
    patients = f"{study.patients} patients" if has_patients else ""
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
    return sentence


def counts_table(table: pd.DataFrame, question: Question | None, task: Task, has_patients: bool) -> Table:
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
