"""The evaluation of a cross-validation: the held-out predictions of all folds, pooled, as a run of the kind `folds`."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import pandas as pd

from kmura import kinds, metrics
from kmura.errors import InputError
from kmura.evaluation.evaluation import Evaluation, read_scores
from kmura.evaluation.fold_scores import HELD_OUT, FoldScores, counts_of, missing_note, score_folds
from kmura.evaluation.scoring import ScoreOptions
from kmura.evaluation.subgroup_rules import rules_of
from kmura.evaluation.subgroups import subgroups_of
from kmura.files import replacing, sha256_of, write_json
from kmura.runs.fold_runs import FoldRuns, fold_groups, fold_of
from kmura.runs.run import Run, claimed, write_run
from kmura.typed import FieldError


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoldsEvaluation(Evaluation):
    """The scores of a cross-validation, as stored in the `metrics.json` of `RUNS/folds/AREA/PHASE`.

    The scores are those of the split `test`, which are the held-out images of all folds. `model_sha256` is empty, since
    there is a model for each fold.

    Attributes:
        number: of folds, K.
        folds: those that have a run.
        mean_auc: level -> mean of the AUCs of the folds.
    """

    number: int
    folds: tuple[FoldScores, ...]
    mean_auc: dict[str, metrics.Interval]


def evaluate_folds(
    group: FoldRuns,
    *,
    records: str | os.PathLike | None = None,
    options: ScoreOptions | None = None,
    faithfulness: bool | None = None,
    by: Sequence[str] = (),
) -> FoldsEvaluation:
    """Pools the held-out predictions of all folds and scores them; writes `RUNS/folds/AREA/PHASE`.

    Runs that were not evaluated, or with another model, are evaluated first; runs that were evaluated with other
    options are scored again, so that they are exported with the same calibration and thresholds.

    Args:
        group: the runs of the folds.
        records: folder of the records, if they have moved.
        options: pooling, calibration, thresholds, bootstrap.
        faithfulness: not available; it is measured for a run of a single fold.
        by: columns of the predictions, or conditions on them, such as `age>=18`, whose subgroups are also scored.

    Raises:
        InputError: a run has no finished epoch, the records are missing or differ from those of the runs, or an option
            is invalid.
    """
    if faithfulness:
        raise InputError("faithfulness is measured for the run of one fold; give that run alone")
    options = options or ScoreOptions()
    options.check()
    rules_of(by)
    first = group.runs[0]
    evaluated = {fold_of(run): (run, *_evaluated(run, records, options)) for run in group.runs}
    tables = {fold: table for fold, (_, _, table) in evaluated.items()}
    pooled = score_folds(tables, first.area, first.labels, options)
    folds = []
    for fold, (run, evaluation, table) in evaluated.items():
        images, studies, patients = counts_of(table[table["split"] == HELD_OUT], first.labels)
        folds.append(
            FoldScores(
                fold=fold,
                run=str(run.path.resolve()),
                model_sha256=evaluation.model_sha256,
                predictions_sha256=evaluation.predictions_sha256,
                images=images,
                studies=studies,
                patients=patients,
                auc=pooled.auc[fold],
                calibrator=pooled.calibrators[fold],
                thresholds=pooled.thresholds[fold],
            )
        )
    scores = pooled.scores
    if group.missing:
        scores = dataclasses.replace(scores, notes=(missing_note(group.missing, group.number), *scores.notes))
    folder, description = group.folder, first.description
    config = dataclasses.replace(description.config, data=dataclasses.replace(description.config.data, fold=0))
    with claimed(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
        write_run(folder, dataclasses.replace(description, kind=kinds.FOLDS, config=config, finished=True))
        with replacing(folder.predictions) as file:
            pooled.table.to_csv(file, index=False)
        evaluation = FoldsEvaluation(
            run=str(folder.path),
            area=description.area,
            phase=description.phase,
            select_on=description.config.train.select_on,
            selected_epoch_by=description.config.train.monitor,
            has_patients=evaluated[fold_of(first)][1].has_patients,
            model_sha256="",
            predictions_sha256=sha256_of(folder.predictions),
            scores=scores,
            task=description.task,
            classes=description.classes,
            localization_faithfulness=None,
            subgroups=subgroups_of(pooled.table, first.area, first.labels, pooled.scores, by),
            number=group.number,
            folds=tuple(folds),
            mean_auc=pooled.mean_auc,
        )
        write_json(folder.metrics, dataclasses.asdict(evaluation))
    return evaluation


def evaluate_run(run: Run, **options: Any) -> FoldsEvaluation:
    """Scores a run of the kind `folds` again from the runs of its folds; see `evaluate_folds`."""
    (group,) = fold_groups([run])
    return evaluate_folds(group, **options)


def read_evaluation(run: str | os.PathLike | Run) -> tuple[FoldsEvaluation, pd.DataFrame]:
    """Returns the evaluation of a run of the kind `folds`, and the held-out predictions of all folds.

    Raises:
        InputError: a file is missing or damaged, or the model of a fold has changed since.
    """
    run = run if isinstance(run, Run) else Run(run)
    evaluation, table = read_scores(FoldsEvaluation, run)
    if "fold" not in table:
        raise InputError(f"{run.folder.predictions} has no column fold; make it again with: kmura evaluate {run}")
    for of_fold in fold_groups([run])[0].runs:
        known = {one.fold: one.model_sha256 for one in evaluation.folds}
        if of_fold.folder.best.exists() and known.get(fold_of(of_fold)) != of_fold.model_sha256():
            raise InputError(f"{of_fold} has changed since the folds were pooled; run kmura evaluate {run} again")
    return evaluation, table


def _evaluated(run: Run, records, options: ScoreOptions) -> tuple[Evaluation, pd.DataFrame]:
    """Returns evaluation and predictions of the run of a fold, made now unless they are there."""
    read = run.part("evaluation")
    try:
        evaluation, table = read(run)
    except (InputError, FieldError):
        evaluation, table = None, None
    if evaluation is None or not {options.fit_on, HELD_OUT} <= set(table["split"]):
        run.part("evaluate")(run, records=records, options=options)
        return read(run)
    if evaluation.scores.options != options:
        from kmura.evaluation.classification import scored

        scores, _ = scored(run, options)
        evaluation = dataclasses.replace(evaluation, scores=scores, subgroups={})
        write_json(run.folder.metrics, dataclasses.asdict(evaluation))
    return evaluation, table
