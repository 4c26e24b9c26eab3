"""Scores by subgroup, such as sex, age or device, and the largest difference between the subgroups of each kind."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from kmura import metrics
from kmura.evaluation.class_scores import MultiScores, against_the_rest, questions_of
from kmura.evaluation.scoring import LEVELS, RULES, ScoreOptions, Scores, units_of
from kmura.evaluation.subgroup_rules import NO_VALUE, columns_of_rules, rules_of
from kmura.metrics import SIMULTANEOUS, Interval, Z
from kmura.runs.predictions import study_keys_of
from kmura.tasks import Binary, Task

COMPARED = ("auc", "recall", "specificity")  # scores whose differences are tested
FEWEST = 10  # patients of each needed class; smaller subgroups are shown, but not compared
RARE = 10  # patients with wrong (or with right) decisions; with fewer, resamples vary too little
# the classes that a score is computed from
_NEEDED: Mapping[str, tuple[int, ...]] = {"auc": (0, 1), "recall": (1,), "specificity": (0,)}


@dataclasses.dataclass(frozen=True)
class Subgroup:
    """The scores of one subgroup.

    Attributes:
        name: of the subgroup: a value of the column, a condition or its opposite, or NO_VALUE.
        units, patients, positives: numbers of images or studies, of patients, of positive images or studies.
        scores: name -> value with its 95 % interval (not corrected), see `metrics.binary_intervals`.
    """

    name: str
    units: int
    patients: int
    positives: int
    scores: dict[str, Interval]

    def title(self, rule: str) -> str:
        """The name of the subgroup, with that of its column unless it is a condition."""
        is_condition = any(sign in rule for sign in "<>=") and self.name != NO_VALUE
        return self.name if is_condition else f"{rule}: {self.name}"


@dataclasses.dataclass(frozen=True)
class SubgroupDifference:
    """The largest difference of a score between the subgroups of one rule.

    Attributes:
        by: the rule.
        score: a name of COMPARED.
        low, high: the subgroups with the lowest and the highest value.
        interval: of high minus low; simultaneous for all `pairs`.
        p: p-value corrected for all `pairs`; NaN where the difference does not vary.
        pairs: number of pairs of subgroups, of all rules, that were compared in this score.
    """

    by: str
    score: str
    low: str
    high: str
    interval: Interval
    p: float
    pairs: int

    @property
    def is_beyond_chance(self) -> bool:
        """Whether the corrected p-value is below 0.05."""
        return self.p < 0.05

    @property
    def p_text(self) -> str:
        """The p-value as text."""
        return "undefined" if np.isnan(self.p) else "< 0.001" if self.p < 0.001 else f"{self.p:.3f}"


@dataclasses.dataclass(frozen=True)
class SubgroupLevel:
    """The subgroups of one split at one level.

    Attributes:
        level: `image` or `study`.
        threshold: a prediction is positive from this probability on.
        rule: that chose the threshold; it applies to calibrated probabilities if `calibrated`.
        groups: rule of subgroups -> its subgroups.
        differences: the largest difference of each rule in each score, as far as two subgroups can be compared.
    """

    level: str
    threshold: float
    rule: str
    calibrated: bool
    groups: dict[str, list[Subgroup]]
    differences: list[SubgroupDifference]


@dataclasses.dataclass(frozen=True)
class Subgroups:
    """The scores of all subgroups of a yes/no question.

    Attributes:
        by: the rules: columns, or conditions such as `age>=18`.
        splits: split -> level -> subgroups; only the level `study` where every image is a study of its own.
        notes: subgroups that are too small to be compared.
    """

    by: tuple[str, ...]
    splits: dict[str, dict[str, SubgroupLevel]]
    notes: tuple[str, ...]


def subgroups_of(
    table: pd.DataFrame, area: str, task: Task, scores: Scores | MultiScores, by: Sequence[str]
) -> dict[str, Subgroups]:
    """Returns the subgroups of every yes/no question that predictions answer: area, label or class -> subgroups.

    Mutually exclusive classes without such a question are each taken against the rest.

    Args:
        table: predictions with the columns that `by` names.
        area, task: of the predictions.
        scores: of the predictions.
        by: columns, or conditions on them.

    Raises:
        InputError: a rule is invalid, or its column does not exist.
    """
    if not by:
        return {}
    if isinstance(task, Binary):
        return {area: score_subgroups(table, by, scores.options, scores)}
    questions = questions_of(table, area, task) or against_the_rest(table, task)
    return {name: score_subgroups(rows, by, scores.options) for name, rows in questions.items()}


def score_subgroups(
    table: pd.DataFrame, by: Sequence[str], options: ScoreOptions, scores: Scores | None = None
) -> Subgroups:
    """Scores the subgroups of every split of a table of binary predictions.

    The images of a study that belong to different subgroups, such as projections, are pooled within each subgroup.
    Probabilities are those that the model gives. Decisions are made at 0.5; at study level, if other rules than the
    default ones were asked for, at the threshold of the first rule. Differences are corrected for the number of pairs
    of subgroups of all rules, see `metrics.simultaneous`; subgroups with fewer than FEWEST patients of a class that a
    score needs are not compared in it.

    Args:
        table: binary predictions with the columns that `by` names.
        by: columns, or conditions on them.
        options: of the scores: pooling and bootstrap.
        scores: of the table; with them, decisions can be made at their thresholds.

    Raises:
        InputError: a rule is invalid, or its column does not exist.
    """
    rules = rules_of(by)
    columns_of_rules(by, list(table.columns), "the table of predictions")
    assigned = {rule.text: rule.of(table[rule.column]) for rule in rules}
    splits, small_groups = {}, {}
    for split, rows in table.groupby("split", sort=False):
        known = rows[rows["label"] >= 0]
        single = len(np.unique(study_keys_of(known))) == len(known)
        groups = {text: names[known.index] for text, names in assigned.items()}
        draws = metrics.PatientBootstrap(*_patients(known), resamples=options.resamples, seed=options.seed)
        splits[split] = {
            level: _level(known, groups, level, draws, options, _decision(scores, split, level), small_groups)
            for level in (("study",) if single else LEVELS)
        }
    notes = []
    if small_groups:
        listed = ", ".join(f"{title} ({', '.join(dict.fromkeys(names))})" for title, names in small_groups.items())
        notes.append(
            f"subgroups with fewer than {FEWEST} patients of a class that a score needs are not compared in it: "
            f"{listed}"
        )
    return Subgroups(tuple(rule.text for rule in rules), splits, tuple(notes))


@dataclasses.dataclass(frozen=True)
class _Decision:
    """How positives are decided: a threshold of the probability, calibrated if there are `options` of `units_of`."""

    rule: str = "0.5"
    threshold: float = 0.5
    calibration: Mapping = dataclasses.field(default_factory=dict)

    @property
    def is_default(self) -> bool:
        return self.threshold == 0.5 and not self.calibration


def _decision(scores: Scores | None, split: str, level: str) -> _Decision:
    """The decision at the first threshold rule, if others than the default ones were asked for."""
    if scores is None or level != "study" or scores.options.rules == RULES or not scores.operating_points[split]:
        return _Decision()
    point = scores.operating_points[split][0]
    fitted = {"calibrator": scores.calibrator, "calibrated_at": scores.options.calibrate_at}
    return _Decision(point.rule, point.threshold, fitted if scores.calibrator else {})


class _Group:
    """The images or studies of a subgroup, and their scores in any number of resamples."""

    def __init__(self, name: str, rows: pd.DataFrame, level: str, draws, options: ScoreOptions, decision: _Decision):
        pooling = {"pooling": options.pooling, "top_k": options.top_k}
        self.name, self.decision = name, decision
        self.units = units_of(rows, level, **pooling)
        self.decided = self.units if decision.is_default else units_of(rows, level, **pooling, **decision.calibration)
        self.place = draws.place(self.units.patient)
        label, names = self.units.label, tuple(metrics.FROM_CONFUSION)
        self._scorers = [metrics.Scorer(label, self.units.probability, place=self.place)]
        if not decision.is_default:
            self._scorers.append(
                metrics.Scorer(
                    label, self.decided.probability, threshold=decision.threshold, place=self.place, names=names
                )
            )

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the scores, name -> [R], of weights [R, patients]."""
        return {name: values for scorer in self._scorers for name, values in scorer(weights).items()}

    def patients(self, label: int | None = None) -> int:
        """The number of patients, of all or of those with a unit of a class."""
        return len(np.unique(self.place if label is None else self.place[self.units.label == label]))

    def varied(self, score: str, drawn: np.ndarray, interval: Interval, seed: int) -> np.ndarray:
        """Returns a score in the resamples [R], with the variation that resamples of extreme scores lack.

        Resamples of a share of 1 are all 1, and those of shares and AUCs close to 1 vary too little. Normal noise is
        therefore added where the resamples vary less than a normal variable with the width of the interval of the AUC
        or, if decisions of a class are rarely wrong or rarely right, with that of Wilson's interval.

        Args:
            score: a name of COMPARED.
            drawn: [R], the score in the resamples.
            interval: of the score.
            seed: of the noise, another one for every subgroup.
        """
        if score != "auc":
            (label,) = _NEEDED[score]
            rows = self.units.label == label
            right = (self.decided.probability[rows] >= self.decision.threshold) == (label == 1)
            if min(len(np.unique(self.place[rows][right == value])) for value in (True, False)) >= RARE:
                return drawn
            interval = Interval(interval.value, *map(float, metrics.wilson(interval.value, self.patients(label))))
        defined = drawn[~np.isnan(drawn)]
        if np.isnan(interval.low) or len(defined) < 2:
            return drawn
        lacking = ((interval.high - interval.low) / (2 * Z)) ** 2 - float(np.var(defined, ddof=1))
        return drawn + np.random.default_rng(seed).normal(0, np.sqrt(max(0.0, lacking)), len(drawn))

    def scored(self, drawn: Mapping[str, np.ndarray]) -> Subgroup:
        label, threshold = self.units.label, self.decision.threshold
        scores = metrics.binary_intervals(label, self.units.probability, self.place, drawn)
        if not self.decision.is_default:
            scores |= metrics.binary_intervals(
                label,
                self.decided.probability,
                self.place,
                drawn,
                threshold=threshold,
                names=tuple(metrics.FROM_CONFUSION),
            )
        return Subgroup(self.name, len(label), self.patients(), int((label == 1).sum()), scores)


def _level(
    known: pd.DataFrame,
    assigned: Mapping[str, pd.Series],
    level: str,
    draws: metrics.PatientBootstrap,
    options: ScoreOptions,
    decision: _Decision,
    small_groups: dict[str, list[str]],
) -> SubgroupLevel:
    """The subgroups of a split at one level; known: its images of known label; assigned: rule -> subgroup of each."""
    groups = {
        (text, name): _Group(name, known[names == name], level, draws, options, decision)
        for text, names in assigned.items()
        for name in sorted(names.unique(), key=lambda name: (name == NO_VALUE, name))
    }
    drawn = draws.scores(groups)
    by_rule = {text: [key for key in groups if key[0] == text] for text in assigned}
    scored = {key: group.scored(drawn[key]) for key, group in groups.items()}
    return SubgroupLevel(
        level=level,
        threshold=decision.threshold,
        rule=decision.rule,
        calibrated=bool(decision.calibration),
        groups={text: [scored[key] for key in keys] for text, keys in by_rule.items()},
        differences=_differences(
            groups, by_rule, scored, drawn, str(known["split"].iloc[0]) if len(known) else "", small_groups
        ),
    )


def _differences(groups, by_rule, scored, drawn, split: str, small_groups) -> list[SubgroupDifference]:
    """The largest difference of every rule in every score, corrected for all pairs; adds small subgroups."""
    small: dict[tuple[str, str], None] = {}  # an ordered set
    found: dict[tuple[str, str], SubgroupDifference] = {}
    for score in COMPARED:
        pairs = []
        for keys in by_rule.values():
            large = []
            for key in keys:
                if min(groups[key].patients(label) for label in _NEEDED[score]) >= FEWEST:
                    large.append(key)
                else:
                    small[key] = None
            pairs += itertools.combinations(large, 2)
        if not pairs:
            continue
        compared = {key for pair in pairs for key in pair}
        values = {key: scored[key].scores[score].value for key in compared}
        differences = [values[other] - values[one] for one, other in pairs]
        varied = {
            key: groups[key].varied(score, drawn[key][score], scored[key].scores[score], number)
            for number, key in enumerate(groups)
            if key in compared
        }
        tested = metrics.simultaneous(
            differences, np.stack([varied[other] - varied[one] for one, other in pairs], axis=1)
        )
        for text in by_rule:
            places = [place for place, (one, _) in enumerate(pairs) if one[0] == text]
            places = [place for place in places if not np.isnan(differences[place])]
            if not places:
                continue
            place = max(places, key=lambda place: abs(differences[place]))
            (_, low), (_, high) = pairs[place]
            bounds = tested.low[place], tested.high[place]
            if differences[place] < 0:
                low, high, bounds = high, low, (-bounds[1], -bounds[0])
            interval = metrics.with_width(abs(differences[place]), *bounds, SIMULTANEOUS)
            found[text, score] = SubgroupDifference(
                text, score, low, high, interval, float(tested.p[place]), len(pairs)
            )
    for text, name in small:
        small_groups.setdefault(scored[text, name].title(text), []).append(split)
    return [found[text, score] for text in by_rule for score in COMPARED if (text, score) in found]


def _patients(known: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    images = units_of(known, "image")
    return images.patient, images.label
