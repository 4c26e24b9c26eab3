"""Scores of a table of predictions at image and study level, as they are and calibrated. Needs no TensorFlow."""

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
        pooling, top_k: from images to studies, see `metrics.pool_studies`.
        calibration: method of `fit_calibrator`, or `none`.
        calibrate_at: level whose probabilities of the fitting split the calibrator is fitted on, `image` or `study`.
        fit_on: the split that calibrator and thresholds are fitted on.
        rules: of `operating_point`, at study level.
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
        """Refuses what makes no sense, before any work is done.

        Raises:
            InputError: an unknown pooling, calibration, level or rule.
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
        images, studies, patients, positives: counts; positives are of the level's units.
        scores: name -> value with its 95 % patient-bootstrap interval.
        confusion: tp, fp, fn, tn at the threshold.
        calibration: name -> calibration error, beside what a perfectly calibrated model would show.
        brier_parts: see `metrics.brier_decomposition`.
        resamples, redrawn: resamples behind the intervals, and how many more were drawn for lack of a class.
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
        """Images or studies, after the level."""
        return self.images if self.level == "image" else self.studies


@dataclasses.dataclass(frozen=True)
class OperatingScores:
    """What a threshold gives on a split at study level.

    Attributes:
        rule, threshold: positive is p >= threshold; see `calibration.operating_point`.
        scores: name -> value with its interval, of the scores that depend on the threshold.
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
        options: how they were made.
        splits: split -> level -> scores of the probabilities as the model gives them.
        calibrator: None where none could be fitted or none was wanted.
        calibrated: the same as `splits` of the calibrated probabilities, of the levels that calibration changes (fitted
            at study level: studies); empty without a calibrator.
        operating_points: split -> thresholds chosen on `options.fit_on`, of the calibrated probabilities where there
            are any.
        notes: what must be known to read them.
    """

    options: ScoreOptions
    splits: dict[str, dict[str, LevelScores]]
    calibrator: Calibrator | None
    calibrated: dict[str, dict[str, LevelScores]]
    operating_points: dict[str, list[OperatingScores]]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Units:
    """The units of one split at one level, row by row: label [N] 0 or 1, probability [N], patient [N], area [N]."""

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
    """The images or studies of a table of one split. Images of unknown label (-1) are left out."""
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
    """Scores of a table of predictions of one split at level `image` or `study`.

    Images of unknown label (-1) are left out. Everything is drawn from `seed`: the same patients give the same
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
    """Scores of every split of a table of binary predictions.

    Calibrator and thresholds are fitted on `options.fit_on` and used on every split; what they give on the split that
    they were fitted on is optimistic.

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
                notes.append(f"{split}, {level} level: AUC undefined, {why}")
            if calibrator is not None and (level == "study" or options.calibrate_at == "image"):
                units = units_of(rows, level, **pooling, **fitted)
                calibrated.setdefault(split, {})[level] = _scores_of(rows, level, units, *draws, 0.5, options.seed)
            _note_harm(split, options, plain[split], calibrated.get(split, {}), notes)
        points[split] = [_at(point.rule, point.threshold, units, draws[0]) for point in chosen]  # at study level
    return Scores(options, plain, calibrator, calibrated, points, tuple(notes))


def _calibrator(splits, options: ScoreOptions, pooling, notes: list[str]) -> Calibrator | None:
    """The calibrator that the options ask for, fitted; None with a note where that is impossible."""
    if options.calibration == "none":
        return None
    if options.fit_on not in splits:
        notes.append(f"not calibrated: there are no predictions of {options.fit_on}")
        return None
    units = units_of(splits[options.fit_on], options.calibrate_at, **pooling)
    if len(np.unique(units.label)) < 2:
        notes.append(f"not calibrated: {options.fit_on} holds one class only")
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
            f"the model separates the classes of {options.fit_on} without error, which leaves the temperature open: "
            "calibrated probabilities are near 0 and 1; take platt or more data"
        )
    return fit_calibrator(options.calibration, units.label, logit)


def _note_harm(split: str, options: ScoreOptions, plain, calibrated, notes: list[str]) -> None:
    """Says so where calibration made the probabilities of studies worse on a split that it was not fitted on."""
    if split == options.fit_on or "study" not in calibrated:
        return
    before, after = (levels["study"].scores["log_loss"].value for levels in (plain, calibrated))
    if after > before:
        notes.append(
            f"{split}, study level: calibration made the log loss worse, {after:.3f} instead of {before:.3f}; "
            f"{options.fit_on} may be too small or of another kind"
        )


def _thresholds(splits, options: ScoreOptions, how, notes: list[str]):
    """The operating points that the rules choose; those that need both classes are left out where there are not."""
    found, left_out = [], []
    units = units_of(splits[options.fit_on], "study", **how) if options.fit_on in splits else None
    for rule in options.rules:
        fixed = not any(name in rule for name in ("max_f1", "youden", ">="))
        if units is not None and (fixed or len(np.unique(units.label)) == 2):
            found.append(operating_point(rule, units.label, units.probability))
        elif fixed:
            found.append(operating_point(rule, [], []))
        else:
            left_out.append(rule)
    if left_out:
        notes.append(f"no threshold for {', '.join(left_out)}: {options.fit_on} does not hold both classes")
    return found


def _at(rule: str, threshold: float, units: Units, weights) -> OperatingScores:
    cells = [metrics.confusion(units.label, units.probability, threshold, rows) for rows in (None, weights)]
    here, drawn = ({name: score(*four) for name, score in metrics.FROM_CONFUSION.items()} for four in cells)
    scores = with_ends(metrics.intervals(here, drawn), _behind(units, threshold), units.patient)
    return OperatingScores(rule, threshold, scores, _cells(cells[0]))


def with_ends(
    scores: Mapping[str, metrics.Interval], behind: Mapping[str, np.ndarray], patient: np.ndarray
) -> dict[str, metrics.Interval]:
    """The scores, with Wilson's interval for shares of exactly 0 or 1, whose resamples all say the same.

    Its n is the number of patients behind the share: 20 of 20 found is no proof of a sensitivity of 1.

    Args:
        scores: name -> value with interval.
        behind: name of a share -> which units it is a share of, bool [N].
        patient: [N].
    """
    found = dict(scores)
    for name, rows in behind.items():
        score = scores[name]
        if score.low == score.high and score.value in (0, 1):
            low, high = metrics.wilson(score.value, len(np.unique(patient[rows])))
            found[name] = metrics.Interval(score.value, float(low), float(high))
    return found


def _behind(units: Units, threshold: float) -> dict[str, np.ndarray]:
    return {
        "accuracy": np.ones(len(units.label), bool),
        "precision": units.probability >= threshold,
        "recall": units.label == 1,
        "specificity": units.label == 0,
    }


def _cells(cells: Sequence[np.ndarray]) -> dict[str, int]:
    return {name: int(cell[0]) for name, cell in zip(("tp", "fp", "fn", "tn"), cells, strict=True)}
