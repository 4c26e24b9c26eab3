"""Scores of a cross-validation from the predictions of its folds. Does not import TensorFlow.

Each image is predicted by the model that was trained without its fold. Calibration and thresholds of a model are fitted
on its own val fold, which is neither in its training data nor held out, so no label of an image takes part in its own
prediction, calibration or decision.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from kmura import metrics
from kmura.evaluation.calibrators import Calibrator, OperatingPoint, logits_of
from kmura.evaluation.class_scores import MultiScores, class_units_of, score_classes
from kmura.evaluation.scoring import (
    LEVELS,
    Decisions,
    ScoreOptions,
    Scores,
    Units,
    calibrated_at_levels,
    calibrator_of,
    joined_units,
    score_split,
    thresholds_of,
    units_of,
)
from kmura.runs.predictions import patient_keys_of, study_keys_of
from kmura.tasks import Binary, Task

HELD_OUT = "test"  # the split of a fold's run that its model was not trained on
CALIBRATED = "probability_calibrated"  # column of the table of all held-out predictions


@dataclasses.dataclass(frozen=True)
class FoldScores:
    """One fold of a cross-validation.

    Attributes:
        fold: its number, from 0.
        run: folder of the run that holds it out.
        model_sha256, predictions_sha256: of the `best.keras` and `predictions.csv` of that run.
        images, studies, patients: numbers of those held out that have a known label.
        auc: level -> AUC of the held-out images or studies (several classes: mean over the classes).
        calibrator: fitted on the val fold of the run; None without calibration.
        thresholds: rule -> threshold chosen on the val fold of the run; empty for several classes.
    """

    fold: int
    run: str
    model_sha256: str
    predictions_sha256: str
    images: int
    studies: int
    patients: int
    auc: dict[str, metrics.Interval]
    calibrator: Calibrator | None
    thresholds: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Pooled:
    """The scores of a cross-validation.

    Attributes:
        table: one row per held-out image, with the columns of a run's predictions (split `test`), `fold`, and for
            binary runs with calibration CALIBRATED, the calibrated probability of the image as a study of one view.
        scores: of the table; those of several classes without yes/no calibration, as everywhere.
        mean_auc: level -> mean of the AUCs of the folds, with its interval.
        calibrators: fold -> calibrator, or None.
        thresholds: fold -> rule -> threshold.
        auc: fold -> level -> AUC.
    """

    table: pd.DataFrame
    scores: Scores | MultiScores
    mean_auc: dict[str, metrics.Interval]
    calibrators: dict[int, Calibrator | None]
    thresholds: dict[int, dict[str, float]]
    auc: dict[int, dict[str, metrics.Interval]]


def score_folds(tables: Mapping[int, pd.DataFrame], area: str, task: Task, options: ScoreOptions) -> Pooled:
    """Returns the scores of a cross-validation.

    Args:
        tables: fold -> predictions of its run, with the splits `test` (held out) and `options.fit_on`.
        area, task: of the runs.
        options: pooling, calibration, thresholds, bootstrap.

    Raises:
        InputError: an option is unknown.
    """
    options.check()
    held_out = {fold: _held_out(table, fold) for fold, table in tables.items()}
    calibrators: dict[int, Calibrator | None] = dict.fromkeys(tables)
    thresholds: dict[int, dict[str, float]] = {fold: {} for fold in tables}
    if isinstance(task, Binary):
        scores = _binary(tables, held_out, options, calibrators, thresholds)
    else:
        fixed = tuple(rule for rule in options.rules if not _is_fitted(rule))
        scores = score_classes(pd.concat(held_out.values()), area, task, dataclasses.replace(options, rules=fixed))
        scores = dataclasses.replace(scores, options=options)
    for fold, calibrator in calibrators.items():
        if calibrator is not None:
            rows = held_out[fold]
            logit = rows["logit"].to_numpy() if options.calibrate_at == "image" else logits_of(rows["probability"])
            rows[CALIBRATED] = calibrator(logit)
    auc, mean = _aucs(held_out, task, options)
    notes = (*scores.notes, *_notes(scores, mean))
    scores = dataclasses.replace(scores, notes=notes)
    table = pd.concat(held_out.values(), ignore_index=True)
    return Pooled(table, scores, mean, calibrators, thresholds, auc)


def _held_out(table: pd.DataFrame, fold: int) -> pd.DataFrame:
    return table[table["split"] == HELD_OUT].reset_index(drop=True).assign(fold=fold)


def _is_fitted(rule: str) -> bool:
    """Whether a rule chooses its threshold from predictions."""
    return any(name in rule for name in ("max_f1", "youden", ">="))


def _binary(
    tables: Mapping[int, pd.DataFrame],
    held_out: Mapping[int, pd.DataFrame],
    options: ScoreOptions,
    calibrators: dict[int, Calibrator | None],
    thresholds: dict[int, dict[str, float]],
) -> Scores:
    """Scores the held-out predictions of binary runs; fills in calibrators and thresholds."""
    pooling = {"pooling": options.pooling, "top_k": options.top_k}
    notes: list[str] = []
    decided: dict[str, list] = {}
    for fold, table in tables.items():
        own: list[str] = []
        splits = {name: rows for name, rows in table.groupby("split", sort=False)}
        calibrator = calibrators[fold] = calibrator_of(splits, options, pooling, own)
        how = {"calibrator": calibrator, "calibrated_at": options.calibrate_at}
        points = thresholds_of(splits, options, pooling | how, own)
        thresholds[fold] = {point.rule: point.threshold for point in points}
        notes += [f"fold {fold}: {note}" for note in own]
        studies = units_of(held_out[fold], "study", **pooling, **how)
        for rule, threshold in thresholds[fold].items():
            positive = (studies.probability >= threshold).astype(float)
            decided.setdefault(rule, []).append(dataclasses.replace(studies, probability=positive))
    rows = pd.concat(held_out.values(), ignore_index=True)
    units = {(level, ""): fold_units(rows, level, dict.fromkeys(tables), options) for level in LEVELS}
    if any(calibrators.values()):
        for level in calibrated_at_levels(options):
            units[level, "calibrated"] = fold_units(rows, level, calibrators, options)
    decisions = [
        Decisions(OperatingPoint(rule, _mean_threshold(rule, thresholds)), joined_units(parts), 0.5)
        for rule, parts in decided.items()
        if len(parts) == len(tables)
    ]
    plain, calibrated, points = score_split(HELD_OUT, rows, units, decisions, options, notes)
    calibrated = {HELD_OUT: calibrated} if calibrated else {}
    return Scores(options, {HELD_OUT: plain}, None, calibrated, {HELD_OUT: points}, tuple(notes))


def fold_units(
    rows: pd.DataFrame, level: str, calibrators: Mapping[int, Calibrator | None], options: ScoreOptions
) -> Units:
    """Returns the images or studies of all folds; those of a fold are calibrated by its own calibrator.

    Args:
        rows: held-out predictions with the column `fold`.
        level: `image` or `study`.
        calibrators: fold -> calibrator; None keeps the probabilities of the model.
        options: pooling and level of the calibration.
    """
    how = {"pooling": options.pooling, "top_k": options.top_k, "calibrated_at": options.calibrate_at}
    parts = (units_of(rows[rows["fold"] == fold], level, calibrator=one, **how) for fold, one in calibrators.items())
    return joined_units(list(parts))


def _mean_threshold(rule: str, thresholds: Mapping[int, Mapping[str, float]]) -> float:
    return float(np.mean([of_fold[rule] for of_fold in thresholds.values()]))


def _aucs(
    held_out: Mapping[int, pd.DataFrame], task: Task, options: ScoreOptions
) -> tuple[dict[int, dict[str, metrics.Interval]], dict[str, metrics.Interval]]:
    """Returns fold -> level -> AUC, and level -> mean over the folds that have one."""
    by_fold: dict[int, dict[str, metrics.Interval]] = {fold: {} for fold in held_out}
    mean = {}
    for level in LEVELS:
        units = {fold: _targets(rows, level, task, options) for fold, rows in held_out.items()}
        patients = np.unique(np.concatenate([patient for *_, patient in units.values()]))
        every, shares = [], []
        for fold, (target, probability, patient) in units.items():
            place = np.searchsorted(patients, patient)
            aucs = []
            for labels, values in zip(target.T, probability.T, strict=True):
                known = labels >= 0
                aucs.append(metrics.clustered_auc(labels[known], values[known], place[known], len(patients)))
            aucs = [auc for auc in aucs if not np.isnan(auc.value)]
            if not aucs:
                by_fold[fold][level] = metrics.Interval(np.nan, np.nan, np.nan)
                continue
            one = len(aucs) == 1
            share = np.full(len(aucs), 1 / len(aucs))
            by_fold[fold][level] = metrics.auc_interval(aucs[0]) if one else metrics.mean_auc_interval(aucs, share)
            every += aucs
            shares.append(share)
        if every:
            weights = np.concatenate(shares) / len(shares)
            mean[level] = metrics.mean_auc_interval(every, weights)
        else:
            mean[level] = metrics.Interval(np.nan, np.nan, np.nan)
    return by_fold, mean


def _targets(rows: pd.DataFrame, level: str, task: Task, options: ScoreOptions):
    """Returns targets [N, L] (-1 is unknown), probabilities [N, L] and patients [N] of images or studies."""
    pooling = {"pooling": options.pooling, "top_k": options.top_k}
    if isinstance(task, Binary):
        units = units_of(rows, level, **pooling)
        return units.label[:, None], units.probability[:, None], units.patient.astype(str)
    units = class_units_of(rows, level, task, **pooling)
    return units.target, units.probability, units.patient.astype(str)


def _notes(scores: Scores | MultiScores, mean: Mapping[str, metrics.Interval]) -> list[str]:
    notes = [
        "each image is predicted by the model that was trained without its fold; the intervals are by patient and do "
        "not include how much models differ from training to training"
    ]
    if isinstance(scores, Scores):
        notes.append(
            "pooled scores rank the probabilities of different models together; the mean of the AUCs of the folds, "
            f"{mean['study']}, does not"
        )
        if scores.calibrated or scores.operating_points[HELD_OUT]:
            notes.append(
                "calibration and thresholds of each model are those of its own val fold; a threshold in a table is the "
                "mean over the folds, each fold decides by its own"
            )
    return notes


def counts_of(rows: pd.DataFrame, task: Task) -> tuple[int, int, int]:
    """Returns the numbers of images, studies and patients of the rows with a known label."""
    known = rows[(rows[task.label_columns] >= 0).any(axis=1)]
    return len(known), len(np.unique(study_keys_of(known))), len(np.unique(patient_keys_of(known)))


def missing_note(missing: Sequence[int], number: int) -> str:
    """Returns a remark about folds without a run."""
    folds = f"folds {', '.join(map(str, missing))}" if len(missing) > 1 else f"fold {missing[0]}"
    return f"{folds} of {number} {'have' if len(missing) > 1 else 'has'} no run, so their images are not scored"
