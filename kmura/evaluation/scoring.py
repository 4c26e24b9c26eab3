"""Scores of binary predictions at image and study level, before and after calibration. Does not import TensorFlow."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from kmura import metrics
from kmura.errors import check_choice
from kmura.evaluation.calibrators import (
    METHODS,
    Calibrator,
    OperatingPoint,
    calibrated_levels,
    fit_calibrator,
    logits_of,
    operating_point,
    prevalence_shift,
)
from kmura.evaluation.score_notes import notes_on_calibration, notes_on_data
from kmura.runs.predictions import BINARY, check_predictions, patient_keys_of, study_keys_of

LEVELS = ("image", "study")
_FLAT = 0.05  # probabilities within this range are about equal
MIXED_STUDIES = ("refuse", "any-positive", "drop")
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
        mixed_studies: studies with images of both labels are refused (`refuse`), positive (`any-positive`), or were
            removed from the table before (`drop`).
    """

    pooling: str = "mean"
    top_k: int = 2
    calibration: str = "platt"
    calibrate_at: str = "study"
    fit_on: str = "val"
    rules: tuple[str, ...] = RULES
    resamples: int = 2000
    seed: int = 0
    mixed_studies: str = "refuse"

    def check(self) -> None:
        """Checks the options.

        Raises:
            InputError: a pooling, calibration, level or rule is unknown.
        """
        check_choice("pooling", self.pooling, metrics.POOLINGS)
        check_choice("calibration", self.calibration, ("none", *METHODS))
        check_choice("calibrate_at", self.calibrate_at, LEVELS)
        check_choice("mixed_studies", self.mixed_studies, MIXED_STUDIES)
        for rule in self.rules:
            operating_point(rule, [0, 1], [0, 1])


def intervals_in_words(resampled: str) -> str:
    """Returns what intervals are; `resampled`: what the bootstrap resamples, `images` or `patients`."""
    return f"95 % intervals by bootstrap over {resampled} (AUC: variance of its logit, by {resampled[:-1]})"


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


def shown_levels(levels: Mapping[str, "Counted"]) -> tuple[str, ...]:
    """Returns the levels that tables show: only `study` where every image is a study of its own."""
    return ("study",) if levels["study"].is_single_view else tuple(levels)


class Counted:
    """What the counts of the scores of a level say: `level`, and numbers of `images`, `studies` and `patients`."""

    level: str
    images: int
    studies: int
    patients: int

    @property
    def units(self) -> int:
        """The number of images or studies, depending on the level."""
        return self.images if self.level == "image" else self.studies

    @property
    def is_single_view(self) -> bool:
        """Whether every image is a study of its own, so that both levels are the same."""
        return self.images == self.studies

    @property
    def resampled(self) -> str:
        """What the bootstrap resamples: `images` if every image is a patient of its own, else `patients`."""
        return "images" if self.images == self.patients else "patients"

    @property
    def intervals_in_words(self) -> str:
        """What the intervals are, see `intervals_in_words`."""
        return intervals_in_words(self.resampled)


@dataclasses.dataclass(frozen=True)
class LevelScores(Counted):
    """Scores of one split at one level.

    Attributes:
        level: `image` or `study`.
        images, studies, patients, positives: numbers; positives counts the units of the level. An image without a
            patient belongs to one of its study alone.
        scores: name -> value with its 95 % interval, see `metrics.binary_intervals`.
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
    """Returns the images or studies of a table of one split. Images of unknown label (-1) are excluded.

    A study is positive if any of its images is.
    """
    table = table[table["label"] >= 0]
    label, patient, area = table["label"].to_numpy(), patient_keys_of(table), table["area"].to_numpy()
    probability, studies = calibrated_levels(table, calibrator, calibrated_at, pooling, top_k)
    if level == "study":
        first, probability = studies.first, studies.value
        label = metrics.pool_studies(study_keys_of(table), label, "max").value.astype(int)
        patient, area = patient[first], area[first]
    return Units(label, probability, patient, area)


def joined_units(parts: Sequence[Units]) -> Units:
    """Returns the units of several parts as one."""
    fields = [field.name for field in dataclasses.fields(Units)]
    return Units(*(np.concatenate([getattr(one, name) for one in parts]) for name in fields))


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
    scored = _Scored(units, threshold)
    draws = metrics.PatientBootstrap(units.patient, units.label, resamples=resamples, seed=seed)
    drawn = draws.scores({0: scored.scorer(draws)})[0]
    return _level_scores(table, level, scored, draws, drawn, seed)


@dataclasses.dataclass(frozen=True)
class _Scored:
    """Units that are scored at a threshold; names: the scores."""

    units: Units
    threshold: float = 0.5
    names: tuple[str, ...] = metrics.SCORES

    def scorer(self, draws: metrics.PatientBootstrap) -> metrics.Scorer:
        """Returns the scorer of the resamples; the interval of the AUC needs none."""
        names = tuple(name for name in self.names if name != "auc")
        label, probability, place = self.units.label, self.units.probability, draws.place(self.units.patient)
        return metrics.Scorer(label, probability, threshold=self.threshold, place=place, names=names)

    def intervals(self, draws: metrics.PatientBootstrap, drawn) -> dict[str, metrics.Interval]:
        place = draws.place(self.units.patient)
        return metrics.binary_intervals(
            self.units.label, self.units.probability, place, drawn, threshold=self.threshold, names=self.names
        )

    @property
    def cells(self) -> dict[str, int]:
        cells = metrics.confusion(self.units.label, self.units.probability, self.threshold)
        return {name: int(cell[0]) for name, cell in zip(("tp", "fp", "fn", "tn"), cells, strict=True)}


def _level_scores(table, level: str, scored: _Scored, draws, drawn, seed: int) -> LevelScores:
    known, units = table[table["label"] >= 0], scored.units
    return LevelScores(
        level=level,
        images=len(known),
        studies=len(np.unique(study_keys_of(known))),
        patients=len(draws.ids),
        positives=int(np.sum(units.label == 1)),
        scores=scored.intervals(draws, drawn),
        confusion=scored.cells,
        calibration=metrics.calibration_errors(units.label, units.probability, seed=seed),
        brier_parts=metrics.brier_decomposition(units.label, units.probability),
        resamples=draws.resamples,
        redrawn=draws.redrawn,
    )


def score_table(table: pd.DataFrame, options: ScoreOptions | None = None) -> Scores:
    """Scores every split of a table of binary predictions.

    Calibrator and thresholds are fitted on `options.fit_on` and applied to every split. The results on the split that
    they were fitted on are optimistic.

    Raises:
        InputError: see `ScoreOptions.check` and `kmura.runs.predictions.check_predictions`.
    """
    options, notes = options or ScoreOptions(), []
    options.check()
    check_predictions(table, BINARY, mixed_studies=options.mixed_studies)
    splits = {name: rows for name, rows in table.groupby("split", sort=False)}
    pooling = {"pooling": options.pooling, "top_k": options.top_k}
    calibrator = calibrator_of(splits, options, pooling, notes)
    fitted = {"calibrator": calibrator, "calibrated_at": options.calibrate_at}
    chosen = thresholds_of(splits, options, pooling | fitted, notes)
    plain, calibrated, points = {}, {}, {}
    for split, rows in splits.items():
        units = {(level, ""): units_of(rows, level, **pooling) for level in LEVELS}
        if calibrator is not None:
            for level in calibrated_at_levels(options):
                units[level, "calibrated"] = units_of(rows, level, **pooling, **fitted)
        last = units.get(("study", "calibrated"), units["study", ""])
        decisions = [Decisions(point, last, point.threshold) for point in chosen]
        plain[split], of_split, points[split] = score_split(split, rows, units, decisions, options, notes)
        if of_split:
            calibrated[split] = of_split
    return Scores(options, plain, calibrator, calibrated, points, tuple(notes))


def calibrated_at_levels(options: ScoreOptions) -> tuple[str, ...]:
    """Returns the levels whose scores calibration changes: only studies if it is fitted at study level."""
    return LEVELS if options.calibrate_at == "image" else ("study",)


@dataclasses.dataclass(frozen=True)
class Decisions:
    """Decisions about studies: positive is `units.probability` >= `at`.

    Attributes:
        point: the rule and threshold that are stated.
        units: the studies.
        at: the threshold of their probabilities.
    """

    point: OperatingPoint
    units: Units
    at: float


def score_split(
    split: str,
    rows: pd.DataFrame,
    units: Mapping[tuple[str, str], Units],
    decisions: Sequence[Decisions],
    options: ScoreOptions,
    notes: list[str],
) -> tuple[dict[str, LevelScores], dict[str, LevelScores], list[OperatingScores]]:
    """Scores the units of one split; all scores share the resamples of the bootstrap.

    Args:
        split: its name.
        rows: its predictions.
        units: (level, way) -> units; the ways are "" and, if there is a calibration, `calibrated`.
        decisions: of the operating points.
        options: of the scores.
        notes: remarks are appended to it.

    Returns:
        level -> scores of the way "", level -> scores of the way `calibrated`, and the scores of the decisions.
    """
    scored = {key: _Scored(some) for key, some in units.items()}
    for number, decision in enumerate(decisions):
        scored["study", number] = _Scored(decision.units, decision.at, tuple(metrics.FROM_CONFUSION))
    images = units["image", ""]
    draws = metrics.PatientBootstrap(images.patient, images.label, resamples=options.resamples, seed=options.seed)
    single = [way for way in ("", "calibrated") if ("image", way) in scored and _are_equal(scored, way)]
    scorers = {key: one.scorer(draws) for key, one in scored.items() if key not in [("image", w) for w in single]}
    drawn = draws.scores(scorers)
    drawn |= {("image", way): drawn["study", way] for way in single}  # every image is a study: score it once
    levels: dict[str, dict[str, LevelScores]] = {"": {}, "calibrated": {}}
    for (level, way), one in scored.items():
        if way in levels:
            levels[way][level] = _level_scores(rows, level, one, draws, drawn[level, way], options.seed)
    points = [
        OperatingScores(
            decision.point.rule,
            decision.point.threshold,
            scored["study", number].intervals(draws, drawn["study", number]),
            scored["study", number].cells,
        )
        for number, decision in enumerate(decisions)
    ]
    notes += notes_on_data(split, rows, images.label, draws)
    if levels["calibrated"]:
        studies = [units["study", way] for way in ("", "calibrated")]
        of_studies = levels[""]["study"], levels["calibrated"]["study"]
        notes += notes_on_calibration(split, options.fit_on, studies, of_studies)
    return levels[""], levels["calibrated"], points


def _are_equal(scored: Mapping, way: str) -> bool:
    """Returns whether the units of both levels are the same, as those of single views are."""
    image, study = (scored[level, way].units for level in LEVELS)
    return all(
        np.array_equal(getattr(image, name), getattr(study, name)) for name in ("patient", "label", "probability")
    )


def calibrator_of(splits, options: ScoreOptions, pooling, notes: list[str]) -> Calibrator | None:
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
            used = units_of(rows, options.calibrate_at, **pooling)
            shift = prevalence_shift(units.label, used.label, patients=(units.patient, used.patient))
            notes += [f"{split}: {shift}"] if shift else []
    if options.calibration == "temperature" and logit[units.label == 1].min() > logit[units.label == 0].max():
        notes.append(
            f"the model separates the classes of {options.fit_on} without error, so the temperature is undetermined "
            "and calibrated probabilities are near 0 and 1; use platt or more data"
        )
    calibrator = fit_calibrator(options.calibration, units.label, logit)
    if np.ptp(calibrator(logit)) < _FLAT < np.ptp(units.probability):
        notes.append(
            f"higher scores are hardly more often positive on {options.fit_on}, so calibration makes all probabilities "
            "about equal; check the labels, or use --calibration none"
        )
    return calibrator


def thresholds_of(splits, options: ScoreOptions, how, notes: list[str]) -> list[OperatingPoint]:
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
        why = "does not have both classes" if units is not None else "is not among the predictions"
        notes.append(f"no threshold for {', '.join(left_out)}: {options.fit_on} {why}")
    return points
