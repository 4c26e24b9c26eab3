"""Uncertainty of scores: patient bootstrap, intervals, means over areas, paired differences, DeLong's test."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from scipy import stats


@dataclasses.dataclass(frozen=True)
class Interval:
    """A score with its percentile interval; NaN if undefined. Its string is `0.941 (0.887 to 0.982)`."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isnan(self.value):
            return "undefined"
        return f"{self.value:.3f}" + ("" if np.isnan(self.low) else f" ({self.low:.3f} to {self.high:.3f})")


def wilson(share, count) -> tuple[np.ndarray, np.ndarray]:
    """Returns the 95 % interval of proportions (Wilson 1927): lower bounds [K] and upper bounds [K].

    The width is positive even for the proportions 0 and 1.

    Args:
        share: [K] proportions in 0..1.
        count: [K] number of cases of each proportion, 1 or more.
    """
    share, count, z2 = np.asarray(share, float), np.asarray(count, float), 1.959964**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = np.sqrt(z2 * (share * (1 - share) + z2 / (4 * count)) / count) / (1 + z2 / count)
    low, high = np.where(share == 0, 0, centre - half), np.where(share == 1, 1, centre + half)  # exact at the ends
    return np.maximum(0, low), np.minimum(1, high)


def bootstrap_weights(patient, label, *, group=None, resamples: int = 2000, seed: int = 0) -> tuple[np.ndarray, int]:
    """Returns how often each sample is in each bootstrap resample; whole patients are drawn with replacement.

    Args:
        patient: [N] patient ids; the samples of a patient are drawn together.
        label: [N] 0 or 1; a resample without both classes has no AUC and is drawn again.
        group: [N] or None; every resample contains both classes of each group (area) that has both, so that averages
            over the groups are defined.
        resamples: number of resamples, R.
        seed: seed of the draws; the same patients and seed give the same draws.

    Returns:
        Weights [R, N] and the number of resamples that were drawn again. There are no rows if `label` has a single
        class.
    """
    label = np.asarray(label)
    if len(np.unique(label)) < 2 or len(np.unique(patient)) < 2:
        return np.empty((0, len(label))), 0
    needed = _cells_needed(label, np.zeros(len(label)) if group is None else np.asarray(group))
    rng = np.random.default_rng(seed)
    kept, missing, redrawn = [], resamples, 0
    while missing:
        draws = cluster_weights(patient, resamples=missing, rng=rng)
        both = (draws @ needed > 0).all(1)
        kept.append(draws[both])
        missing -= int(both.sum())
        redrawn += int((~both).sum())
        if redrawn > 100 * resamples:  # few patients have one of the classes, so almost every draw lacks it
            return np.empty((0, len(label))), redrawn
    return np.concatenate(kept), redrawn


def cluster_weights(patient, *, resamples: int = 2000, rng: np.random.Generator | None = None) -> np.ndarray:
    """Returns how often each sample is in each resample of whole patients, [resamples, N], regardless of classes.

    Args:
        patient: [N] patient ids.
        resamples: number of resamples.
        rng: the random generator; None is a generator with seed 0.
    """
    _, inverse = np.unique(np.asarray(patient), return_inverse=True)
    number = int(inverse.max()) + 1
    rng = rng or np.random.default_rng(0)
    return rng.multinomial(number, np.full(number, 1 / number), size=resamples)[:, inverse].astype(float)


def _cells_needed(label, group) -> np.ndarray:
    """Returns the membership of samples in the cells (group, class) that a resample must contain, [N, cells].

    Groups with a single class have no cells.
    """
    cells = [
        (group == name) & (label == value)
        for name in np.unique(group)
        for value in (0, 1)
        if len(np.unique(label[group == name])) == 2
    ]
    return np.array(cells, float).T.reshape(len(label), -1)


def intervals(values: Mapping[str, np.ndarray], resampled: Mapping[str, np.ndarray], level: float = 0.95):
    """Returns each score with its percentile interval over the resamples, ignoring NaN resamples.

    Args:
        values: name -> [1].
        resampled: name -> [R].
        level: coverage, 0..1.
    """
    tail = 100 * (1 - level) / 2
    result = {}
    for name, value in values.items():
        drawn = resampled[name][~np.isnan(resampled[name])]
        low, high = np.percentile(drawn, [tail, 100 - tail]) if len(drawn) else (np.nan, np.nan)
        result[name] = Interval(float(value[0]), float(low), float(high))
    return result


def averages(by_area: Mapping[str, Mapping[str, np.ndarray]], sizes: Mapping[str, int]) -> dict[str, dict]:
    """Returns the means of each score over areas, [R] each: `macro` (unweighted) and `weighted` (by size).

    A mean is NaN if the score of an area is NaN. Neither mean equals the score of the pooled predictions of all areas.

    Args:
        by_area: area -> score name -> [R], for the same R resamples.
        sizes: area -> number of its studies (at image level: images).
    """
    share = np.array([sizes[area] for area in by_area], float)
    result = {"macro": {}, "weighted": {}}
    for name in next(iter(by_area.values()), {}):
        values = np.stack([np.atleast_1d(scores[name]) for scores in by_area.values()])
        result["macro"][name] = values.mean(0)
        result["weighted"][name] = share @ values / share.sum()
    return result


def differences(
    one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], one_drawn, other_drawn, level: float = 0.95
) -> dict[str, Interval]:
    """Returns `other` minus `one` for each score, with the percentile interval of the paired differences.

    Args:
        one, other: name -> [1].
        one_drawn, other_drawn: name -> [R], for the SAME resamples in the same order.
        level: coverage, 0..1.
    """
    minus = {name: np.asarray(other[name]) - np.asarray(one[name]) for name in one}
    drawn = {name: np.asarray(other_drawn[name]) - np.asarray(one_drawn[name]) for name in one}
    return intervals(minus, drawn, level)


@dataclasses.dataclass(frozen=True)
class DeLong:
    """A difference of two AUCs by DeLong, DeLong & Clarke-Pearson (1988); NaN where undefined.

    Attributes:
        difference: AUC of the second model minus that of the first.
        low, high: 95 % interval of the difference by normal approximation.
        p: two-sided p-value for the null hypothesis of equal AUCs.
    """

    difference: float
    low: float
    high: float
    p: float


def delong(label, one, other) -> DeLong:
    """Returns the difference of two correlated AUCs with its interval and p-value.

    The test assumes independent samples. Images of the same patient are not independent; the patient bootstrap takes
    this into account. At least two samples of each class are needed. Placements are computed from midranks (Sun & Xu
    2014, algorithm 2).

    Args:
        label: [N] 0 or 1.
        one, other: [N] scores of two models for the same samples.
    """
    label, both = np.asarray(label), np.stack([np.asarray(one, float), np.asarray(other, float)])
    positive, negative = both[:, label == 1], both[:, label == 0]
    m, n = positive.shape[1], negative.shape[1]
    if min(m, n) < 2 or np.isnan(both).any():
        return DeLong(np.nan, np.nan, np.nan, np.nan)
    together = stats.rankdata(np.concatenate([positive, negative], axis=1), axis=1)
    above = (together[:, :m] - stats.rankdata(positive, axis=1)) / n  # share of the negatives below each positive
    below = 1 - (together[:, m:] - stats.rankdata(negative, axis=1)) / m
    difference = float(above[1].mean() - above[0].mean())
    variance = np.var(above[1] - above[0], ddof=1) / m + np.var(below[1] - below[0], ddof=1) / n
    if variance == 0:
        return DeLong(difference, difference, difference, 1.0 if difference == 0 else 0.0)
    error = np.sqrt(variance)
    low, high = difference + stats.norm.ppf([0.025, 0.975]) * error
    return DeLong(difference, float(low), float(high), float(2 * stats.norm.sf(abs(difference) / error)))
