"""Intervals of scores: percentiles of resamples, and closed forms where all resamples are equal."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from scipy import optimize

Z = 1.959963984540054  # 97.5th percentile of the standard normal distribution
# Methods of an interval, as stored in metrics.json
BOOTSTRAP, LOGIT, SCORE, WILSON, BOUNDS = "bootstrap", "logit", "score", "wilson", "bounds"
SIMULTANEOUS = "simultaneous"
_ROUNDING = 1e-9  # a narrower interval has no width but rounding


@dataclasses.dataclass(frozen=True)
class Interval:
    """A score with its 95 % interval; NaN where undefined. Its string is `0.941 (0.887 to 0.982)`.

    The string has three decimals, or as many as are needed to tell the ends of the interval apart.

    Attributes:
        value: the score.
        low, high: the interval, of positive width; NaN if it is undefined.
        method: `bootstrap` (percentiles over resampled patients), `logit` (clustered variance of the logit of an AUC,
            see `auc_interval`), `score` (of an AUC, see `score_interval`), `wilson` (Wilson's interval of a share, or
            of the share that the score is a function of), `bounds` (of a mean: the mean of the bounds of its parts),
            `simultaneous` (of a difference that is one of several, see `kmura.metrics.simultaneous`); "" if there is no
            interval, or of files that do not state it.
    """

    value: float
    low: float
    high: float
    method: str = ""

    def __str__(self) -> str:
        if np.isnan(self.value):
            return "undefined"
        if np.isnan(self.low):
            return f"{self.value:z.3f} (no interval)"
        digits = 3
        while digits < 12 and f"{self.low:.{digits}f}" == f"{self.high:.{digits}f}":
            digits += 1
        return f"{self.value:z.{digits}f} ({self.low:z.{digits}f} to {self.high:z.{digits}f})"


def with_width(value, low, high, method: str) -> Interval:
    """Returns the interval of a score; without bounds if these are equal up to rounding."""
    value, low, high = float(value), float(low), float(high)
    if not high - low > _ROUNDING * max(1.0, abs(value)):
        return Interval(value, np.nan, np.nan)
    return Interval(value, low, high, method)


def intervals(values: Mapping[str, np.ndarray], resampled: Mapping[str, np.ndarray], level: float = 0.95):
    """Returns each score with its percentile interval over the resamples, ignoring NaN resamples.

    A score that is the same in all resamples has no interval: that resamples of few cases are alike does not show that
    other cases would be.

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
        result[name] = with_width(value[0], low, high, BOOTSTRAP)
    return result


def wilson(share, count) -> tuple[np.ndarray, np.ndarray]:
    """Returns the 95 % interval of proportions (Wilson 1927): lower bounds [K] and upper bounds [K].

    The width is positive even for the proportions 0 and 1. It is conservative for the mean of any values in 0..1, whose
    variance is at most that of a proportion with the same mean.

    Args:
        share: [K] proportions in 0..1.
        count: [K] number of cases of each proportion, 1 or more.
    """
    share, count, z2 = np.asarray(share, float), np.asarray(count, float), Z**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = np.sqrt(z2 * (share * (1 - share) + z2 / (4 * count)) / count) / (1 + z2 / count)
    low, high = np.where(share == 0, 0, centre - half), np.where(share == 1, 1, centre + half)  # exact at the ends
    return np.maximum(0, low), np.minimum(1, high)


def score_interval(auc: float, positives: int, negatives: int) -> tuple[float, float]:
    """Returns the 95 % interval of an AUC that is close to 0 or 1, or whose variance cannot be estimated.

    The bounds are the AUCs A that solve (auc - A)^2 = z^2 V(A), where V is the variance of Hanley & McNeil (1982) for
    exponential scores with both sample sizes replaced by their mean: method 5 of Newcombe (2006, part 2).

    Args:
        auc: in 0..1.
        positives, negatives: numbers of independent cases (patients) of each class, 1 or more.
    """
    more = (positives + negatives) / 2 - 1

    def excess(bound):
        variance = bound * (1 - bound) * (1 + more * ((1 - bound) / (2 - bound) + bound / (1 + bound)))
        return (auc - bound) ** 2 - Z**2 * variance / (positives * negatives)

    low = 0.0 if auc == 0 else optimize.brentq(excess, 0, _inside(excess, auc, 0))
    high = 1.0 if auc == 1 else optimize.brentq(excess, _inside(excess, auc, 1), 1)
    return low, high


def _inside(excess, auc: float, end: float) -> float:
    """Returns a place between `auc` and `end` where `excess` is not positive; at 0 and 1 itself the variance is 0."""
    return auc if 0 < auc < 1 else auc + 1e-9 * (end - auc)


def mean_bounds(parts: list[Interval], share: np.ndarray) -> tuple[float, float]:
    """Returns the weighted mean of the bounds of intervals, conservative for the mean of the scores.

    Args:
        parts: the intervals; NaN bounds count as the score itself.
        share: [K] weights, which sum to 1.
    """
    low = [part.value if np.isnan(part.low) else part.low for part in parts]
    high = [part.value if np.isnan(part.high) else part.high for part in parts]
    return float(share @ np.array(low)), float(share @ np.array(high))


def share_of_f1(f1: float, count: int) -> tuple[float, float]:
    """Returns Wilson's interval of an F1 = 2 q / (1 + q), where q = tp / (tp + fp + fn) is a share of `count` cases."""
    low, high = wilson(f1 / (2 - f1), count)
    return float(2 * low / (1 + low)), float(2 * high / (1 + high))


def combined_halves(one: Interval, other: Interval) -> tuple[float, float]:
    """Returns the interval of the mean of two independent scores from their intervals.

    Square-and-add method of Newcombe (1998, part 10, method 10), as Zou & Donner (2008) generalise it.
    """
    value = (one.value + other.value) / 2
    below = np.hypot(one.value - one.low, other.value - other.low) / 2
    above = np.hypot(one.high - one.value, other.high - other.value) / 2
    return value - below, value + above


def kappa_bounds(accuracy: Interval, chance: float) -> tuple[float, float]:
    """Returns the interval of Cohen's kappa from that of the accuracy, at the margins of the data.

    Args:
        accuracy: with its interval.
        chance: agreement that the margins alone give, in 0..1, below 1.
    """
    return max(-1.0, (accuracy.low - chance) / (1 - chance)), min(1.0, (accuracy.high - chance) / (1 - chance))
