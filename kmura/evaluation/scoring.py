"""Scores of binary predictions at image and study level, before and after calibration. Does not import TensorFlow."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from kmura import metrics
from kmura.errors import check_choice
from kmura.evaluation.calibrators import (
    METHODS,
    Calibrator,
    calibrated_levels,
    fit_calibrator,
    logits_of,
    operating_point,
    prevalence_shift,
)

LEVELS = ("image", "study")
RULES = ("0.5", "max_f1", "youden", "sensitivity>=0.9", "specificity>=0.9")


@dataclasses.dataclass(frozen=True)
class ScoreOptions:
    """How predictions are scored.

    Attributes:
        pooling, top_k: pooling of the images of a study, see `metrics.pool_studies`.
        calibration: method of `fit_calibrator`, or `none`.
        calibrate_at: level whose probabilities are calibrated, `image` or `study`.
        fit_on: the split that calibrator and thresholds are fitted on.
        rules: rules of `operating_point` for the thresholds at study level.
        resamples, seed: of the patient bootstrap.
    """

    pooling: str = "mean"
    top_k: int = 2
    calibration: str = "platt"
    calibrate_at: str = "study"
    fit_on: str = "val"
    rules: tuple[str, ...] = RULES
    resamples: int = 2000
    seed: int = 0

    def check(self) -> None:
        """Checks the options.

        Raises:
            InputError: a pooling, calibration, level or rule is unknown.
        """
        check_choice("pooling", self.pooling, metrics.POOLINGS)
        check_choice("calibration", self.calibration, ("none", *METHODS))
        check_choice("calibrate_at", self.calibrate_at, LEVELS)
        for rule in self.rules:
            operating_point(rule, [0, 1], [0, 1])


@dataclasses.dataclass(frozen=True)
class LevelScores:
    """Scores of one split at one level.

    Attributes:
        level: `image` or `study`.
        images, studies, patients, positives: numbers; positives counts the units of the level.
        scores: name -> value with its 95 % patient-bootstrap interval.
        confusion: tp, fp, fn, tn at the threshold.
        calibration: name -> calibration error, with that expected of a perfectly calibrated model.
        brier_parts: see `metrics.brier_decomposition`.
        resamples, redrawn: number of resamples, and number of those that were drawn again because they lacked a class.
    """

    level: str
    images: int
    studies: int
    patients: int
    positives: int
    scores: dict[str, metrics.Interval]
    confusion: dict[str, int]
    calibration: dict[str, metrics.CalibrationError]
    brier_parts: dict[str, float]
    resamples: int
    redrawn: int

    @property
    def units(self) -> int:
        """The number of images or studies, depending on the level."""
        return self.images if self.level == "image" else self.studies


@dataclasses.dataclass(frozen=True)
class OperatingScores:
    """The scores of a threshold on a split, at study level.

    Attributes:
        rule, threshold: positive is p >= threshold; see `calibrators.operating_point`.
        scores: name -> value with its interval, for the scores that depend on the threshold.
        confusion: tp, fp, fn, tn.
    """

    rule: str
    threshold: float
    scores: dict[str, metrics.Interval]
    confusion: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Scores:
    """All scores of a table of predictions.

    Attributes:
        options: how the predictions were scored.
        splits: split -> level -> scores of the probabilities as the model gives them.
        calibrator: the fitted calibrator; None if calibration is impossible or disabled.
        calibrated: as `splits`, for the calibrated probabilities of the levels that calibration changes (only studies
            if it is fitted at study level); empty without a calibrator.
        operating_points: split -> thresholds chosen on `options.fit_on`, for the calibrated probabilities if there are
            any.
        notes: remarks that are needed to interpret the scores.
    """

    options: ScoreOptions
    splits: dict[str, dict[str, LevelScores]]
    calibrator: Calibrator | None
    calibrated: dict[str, dict[str, LevelScores]]
    operating_points: dict[str, list[OperatingScores]]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Units:
    """The units of one split at one level: label [N] 0 or 1, probability [N], patient [N] and area [N]."""

    label: np.ndarray
    probability: np.ndarray
    patient: np.ndarray
    area: np.ndarray


def units_of(
    table: pd.DataFrame,
    level: str,
    *,
    pooling: str = "mean",
    top_k: int = 2,
    calibrator: Calibrator | None = None,
    calibrated_at: str = "study",
) -> Units:
    """Returns the images or studies of a table of one split. Images of unknown label (-1) are excluded."""
    table = table[table["label"] >= 0]
    columns = [table[name].to_numpy() for name in ("label", "patient", "area")]
    images, studies = calibrated_levels(table, calibrator, calibrated_at, pooling, top_k)
    if level == "study":
        columns, probability = [column[studies.first] for column in columns], studies.value
    else:
        probability = images
    label, patient, area = columns
    return Units(label, probability, patient, area)


def level_scores(
    table: pd.DataFrame,
    level: str,
    *,
    threshold: float = 0.5,
    pooling: str = "mean",
    top_k: int = 2,
    calibrator: Calibrator | None = None,
    calibrated_at: str = "study",
    resamples: int = 2000,
    seed: int = 0,
) -> LevelScores:
    """Scores the predictions of one split at level `image` or `study`.

    Images of unknown label (-1) are excluded. All random numbers depend on `seed`: the same patients give the same
    resamples for every score and every model.
    """
    units = units_of(table, level, pooling=pooling, top_k=top_k, calibrator=calibrator, calibrated_at=calibrated_at)
    weights, redrawn = metrics.bootstrap_weights(units.patient, units.label, resamples=resamples, seed=seed)
    return _scores_of(table, level, units, weights, redrawn, threshold, seed)


def _scores_of(table, level, units: Units, weights, redrawn: int, threshold: float, seed: int) -> LevelScores:
    known = table[table["label"] >= 0]
    cells = metrics.confusion(units.label, units.probability, threshold)
    return LevelScores(
        level=level,
        images=len(known),
        studies=len(known[["area", "study"]].drop_duplicates()),
        patients=known["patient"].nunique(),
        positives=int(np.sum(units.label == 1)),
        scores=with_ends(
            metrics.intervals(
                metrics.scores(units.label, units.probability, threshold=threshold),
                metrics.scores(units.label, units.probability, threshold=threshold, weights=weights),
            ),
            _behind(units, threshold),
            units.patient,
        ),
        confusion=_cells(cells),
        calibration=metrics.calibration_errors(units.label, units.probability, seed=seed),
        brier_parts=metrics.brier_decomposition(units.label, units.probability),
        resamples=len(weights),
        redrawn=redrawn,
    )


def score_table(table: pd.DataFrame, options: ScoreOptions | None = None) -> Scores:
    """Scores every split of a table of binary predictions.

    Calibrator and thresholds are fitted on `options.fit_on` and applied to every split. The results on the split that
    they were fitted on are optimistic.

    Raises:
        InputError: see `ScoreOptions.check`.
    """
    options = options or ScoreOptions()
    options.check()
    splits = {name: rows for name, rows in table.groupby("split", sort=False)}
    pooling = {"pooling": options.pooling, "top_k": options.top_k}
    notes = []
    calibrator = _calibrator(splits, options, pooling, notes)
    fitted = {"calibrator": calibrator, "calibrated_at": options.calibrate_at}
    plain, calibrated, points = {}, {}, {}
    chosen = _thresholds(splits, options, pooling | fitted, notes)
    for split, rows in splits.items():
        plain[split] = {}
        for level in LEVELS:
            units = units_of(rows, level, **pooling)
            draws = metrics.bootstrap_weights(
                units.patient, units.label, resamples=options.resamples, seed=options.seed
            )
            plain[split][level] = _scores_of(rows, level, units, *draws, 0.5, options.seed)
            if len(np.unique(units.label)) < 2:
                why = "all labels are of one class" if len(units.label) else "no label is known"
                notes.append(f"{split}, {level} level: AUC is undefined, since {why}")
            if calibrator is not None and (level == "study" or options.calibrate_at == "image"):
                units = units_of(rows, level, **pooling, **fitted)
                calibrated.setdefault(split, {})[level] = _scores_of(rows, level, units, *draws, 0.5, options.seed)
            _note_harm(split, options, plain[split], calibrated.get(split, {}), notes)
        points[split] = [_at(point.rule, point.threshold, units, draws[0]) for point in chosen]  # at study level
    return Scores(options, plain, calibrator, calibrated, points, tuple(notes))


def _calibrator(splits, options: ScoreOptions, pooling, notes: list[str]) -> Calibrator | None:
    """Returns the fitted calibrator; None without calibration, or with a note if it is impossible."""
    if options.calibration == "none":
        return None
    if options.fit_on not in splits:
        notes.append(f"not calibrated: there are no predictions of {options.fit_on}")
        return None
    units = units_of(splits[options.fit_on], options.calibrate_at, **pooling)
    if len(np.unique(units.label)) < 2:
        notes.append(f"not calibrated: {options.fit_on} has only one class")
        return None
    if options.calibrate_at == "image":
        known = splits[options.fit_on]
        logit = known[known["label"] >= 0]["logit"].to_numpy()
    else:
        logit = logits_of(units.probability)
    for split, rows in splits.items():
        if split != options.fit_on:
            shift = prevalence_shift(units.label, units_of(rows, options.calibrate_at).label)
            notes += [f"{split}: {shift}"] if shift else []
    if options.calibration == "temperature" and logit[units.label == 1].min() > logit[units.label == 0].max():
        notes.append(
            f"the model separates the classes of {options.fit_on} without error, so the temperature is undetermined "
            "and calibrated probabilities are near 0 and 1; use platt or more data"
        )
    return fit_calibrator(options.calibration, units.label, logit)


def _note_harm(split: str, options: ScoreOptions, plain, calibrated, notes: list[str]) -> None:
    """Adds a note if calibration increased the log loss of studies on a split that it was not fitted on."""
    if split == options.fit_on or "study" not in calibrated:
        return
    before, after = (levels["study"].scores["log_loss"].value for levels in (plain, calibrated))
    if after > before:
        notes.append(
            f"{split}, study level: calibration increased the log loss from {before:.3f} to {after:.3f}; "
            f"{options.fit_on} may be too small, or its data may differ"
        )


def _thresholds(splits, options: ScoreOptions, how, notes: list[str]):
    """Returns the operating points of the rules; without both classes, skips rules that need them, with a note."""
    points, left_out = [], []
    units = units_of(splits[options.fit_on], "study", **how) if options.fit_on in splits else None
    for rule in options.rules:
        fixed = not any(name in rule for name in ("max_f1", "youden", ">="))
        if units is not None and (fixed or len(np.unique(units.label)) == 2):
            points.append(operating_point(rule, units.label, units.probability))
        elif fixed:
            points.append(operating_point(rule, [], []))
        else:
            left_out.append(rule)
    if left_out:
        notes.append(f"no threshold for {', '.join(left_out)}: {options.fit_on} does not have both classes")
    return points


def _at(rule: str, threshold: float, units: Units, weights) -> OperatingScores:
    cells = [metrics.confusion(units.label, units.probability, threshold, rows) for rows in (None, weights)]
    values, drawn = ({name: score(*four) for name, score in metrics.FROM_CONFUSION.items()} for four in cells)
    scores = with_ends(metrics.intervals(values, drawn), _behind(units, threshold), units.patient)
    return OperatingScores(rule, threshold, scores, _cells(cells[0]))


def with_ends(
    scores: Mapping[str, metrics.Interval], behind: Mapping[str, np.ndarray], patient: np.ndarray
) -> dict[str, metrics.Interval]:
    """Returns the scores with Wilson's interval for shares of exactly 0 or 1, whose resamples are all equal.

    Its n is the number of patients that the share is computed from: 20 of 20 detected cases do not prove a sensitivity
    of 1.

    Args:
        scores: name -> value with interval.
        behind: name of a share -> the units that it is computed from, bool [N].
        patient: patient ids [N].
    """
    result = dict(scores)
    for name, rows in behind.items():
        score = scores[name]
        if score.low == score.high and score.value in (0, 1):
            low, high = metrics.wilson(score.value, len(np.unique(patient[rows])))
            result[name] = metrics.Interval(score.value, float(low), float(high))
    return result


def _behind(units: Units, threshold: float) -> dict[str, np.ndarray]:
    return {
        "accuracy": np.ones(len(units.label), bool),
        "precision": units.probability >= threshold,
        "npv": units.probability < threshold,
        "recall": units.label == 1,
        "specificity": units.label == 0,
    }


def _cells(cells: Sequence[np.ndarray]) -> dict[str, int]:
    return {name: int(cell[0]) for name, cell in zip(("tp", "fp", "fn", "tn"), cells, strict=True)}
