"""Calibration of probabilities: reliability bins, calibration errors, decomposition of the Brier score."""

import dataclasses
from typing import Literal

import numpy as np
from scipy import special

from kmura.metrics.binary import ratio

CALIBRATION_ERRORS = ("ece", "ece_mass", "ece_debiased", "rmsce_debiased", "mce")
_CELLS = 1 << 20  # numbers drawn at a time: 8 MB, whatever the number of predictions and simulations


@dataclasses.dataclass(frozen=True)
class Bins:
    """The bins of a reliability diagram without empty bins; all arrays [K].

    Attributes:
        low, high: edges; a bin contains low < p <= high (the first also p = low).
        count: number of predictions in the bin.
        probability: mean probability in the bin.
        fraction: fraction of positives in the bin.
    """

    low: np.ndarray
    high: np.ndarray
    count: np.ndarray
    probability: np.ndarray
    fraction: np.ndarray


def bin_edges(probability, bins: int = 15, how: Literal["width", "mass"] = "width") -> np.ndarray:
    """Returns bin edges [bins + 1] from 0 to 1.

    Args:
        probability: [N] in 0..1.
        bins: number of bins, 1 or more.
        how: `width` (equal width) or `mass` (quantiles of the probabilities; fewer bins if quantiles are equal).

    Raises:
        ValueError: `how` is unknown, or `bins` is less than 1.
    """
    if how not in ("width", "mass") or bins < 1:
        raise ValueError(f"{bins} bins of equal {how!r}; choose width or mass, and 1 bin or more")
    if how == "width":
        return np.linspace(0, 1, bins + 1)
    inner = np.quantile(np.asarray(probability, float), np.arange(1, bins) / bins) if len(probability) else []
    return np.unique(np.concatenate([[0.0], inner, [1.0]]))


def reliability_bins(label, probability, bins: int = 15, how: Literal["width", "mass"] = "width") -> Bins:
    """Returns the bins of the reliability diagram of the positive class.

    Args:
        label: [N] 0 or 1.
        probability: [N] of the positive class, 0..1.
        bins, how: see `bin_edges`.
    """
    label, probability = np.asarray(label, float), np.asarray(probability, float)
    edges = bin_edges(probability, bins, how)
    member = np.searchsorted(edges[1:-1], probability)
    count = np.bincount(member, minlength=len(edges) - 1)
    occupied = count > 0
    sums = (np.bincount(member, weights=values, minlength=len(edges) - 1)[occupied] for values in (probability, label))
    mean_probability, fraction = (total / count[occupied] for total in sums)
    return Bins(edges[:-1][occupied], edges[1:][occupied], count[occupied], mean_probability, fraction)


@dataclasses.dataclass(frozen=True)
class CalibrationError:
    """A calibration error, compared with that of a perfectly calibrated model with the same probabilities.

    Attributes:
        value: the error of the predictions; NaN if there are none.
        expected: mean error over simulations whose labels are drawn from the probabilities.
        high: 95th percentile of the error over the simulations; a larger `value` is unlikely to be chance.
    """

    value: float
    expected: float
    high: float


def calibration_errors(
    label, probability, *, bins: int = 15, simulations: int = 1000, seed: int = 0
) -> dict[str, CalibrationError]:
    """Returns calibration errors of the positive class by name; 0 is best.

    - `ece`: expected calibration error (Naeini et al. 2015, on the positive class), sum_k n_k / N |o_k - f_k| over bins
      of equal width; f_k is the mean probability of bin k, o_k its fraction of positives.
    - `ece_mass`: the same over bins with equal numbers of predictions.
    - `mce`: the maximum of |o_k - f_k| over the bins of equal width.
    - `ece_debiased`: `ece_mass` minus its bias, as Kumar et al. (2019) estimate it: the mean excess of the error if the
      fraction of each bin varied normally by its standard error, (o_k (1 - o_k) / n_k)^1/2. Negative values mean less
      than chance gives.
    - `rmsce_debiased`: root mean square calibration error, the square root of sum_k n_k / N ((o_k - f_k)^2 -
      o_k (1 - o_k) / (n_k - 1)), the reliability of Ferro & Fricker (2012) and the debiased squared error of Kumar et
      al. (2019), whose second term corrects for sampling noise; over bins of equal mass, without the second term in
      bins of one prediction. If the sum s is negative (less than expected by chance), the value is -sqrt(-s).

    The simulations treat predictions as independent. Several images of a study share a label, so `expected` is too
    small at image level; use it at study level.

    Args:
        label: [N] 0 or 1.
        probability: [N], 0..1.
        bins: number of bins.
        simulations: number of simulations.
        seed: seed of the simulations.
    """
    label, probability = np.asarray(label, float), np.asarray(probability, float)
    if not len(label) or np.isnan(probability).any():
        return {name: CalibrationError(np.nan, np.nan, np.nan) for name in CALIBRATION_ERRORS}
    rng, rows, order = np.random.default_rng(seed), max(1, _CELLS // len(label)), np.argsort(probability, kind="stable")
    bins_of = {how: _SortedBins(probability[order], bin_edges(probability, bins, how)) for how in ("width", "mass")}
    parts = [_errors(label[None, order], bins_of)]
    for start in range(0, simulations, rows):
        drawn = rng.random((min(rows, simulations - start), len(label))) < probability
        parts.append(_errors(np.take(drawn, order, axis=1), bins_of))
    values = {name: np.concatenate([part[name] for part in parts]) for name in CALIBRATION_ERRORS}
    return {
        name: CalibrationError(float(value[0]), float(value[1:].mean()), float(np.quantile(value[1:], 0.95)))
        for name, value in values.items()
    }


class _SortedBins:
    """The non-empty bins of probabilities in ascending order.

    Attributes:
        ends: [K] number of probabilities up to the end of each bin.
        count: [K] number of probabilities in each bin.
        share: [K] the same divided by their number.
        probability: [K] mean probability of each bin.
    """

    def __init__(self, probability: np.ndarray, edges: np.ndarray):
        member = np.searchsorted(edges[1:-1], probability)
        self.ends = np.flatnonzero(np.r_[np.diff(member) != 0, True]) + 1
        self.count = np.diff(self.ends, prepend=0)
        self.share = self.count / len(probability)
        self.probability = np.bincount(member, probability)[np.unique(member)] / self.count

    def fractions(self, positives: np.ndarray) -> np.ndarray:
        """Returns the fraction of positives of each bin [S, K] from cumulated labels [S, N]."""
        return np.diff(np.take(positives, self.ends - 1, axis=1), prepend=0, axis=1) / self.count


def _errors(labels: np.ndarray, bins: dict[str, _SortedBins]) -> dict[str, np.ndarray]:
    """Returns the errors [S] by name for labels [S, N] in the order of the sorted probabilities; bins by kind."""
    positives = np.cumsum(labels, axis=1, dtype=np.int32)
    wide, even = bins["width"], bins["mass"]
    width, fraction = wide.fractions(positives) - wide.probability, even.fractions(positives)
    gap, noise = fraction - even.probability, fraction * (1 - fraction)
    chance = ratio(noise, np.broadcast_to(even.count - 1, noise.shape), empty=0.0)
    return {
        "ece": (np.abs(width) * wide.share).sum(1),
        "ece_mass": (np.abs(gap) * even.share).sum(1),
        "ece_debiased": ((2 * np.abs(gap) - _mean_absolute(gap, np.sqrt(noise / even.count))) * even.share).sum(1),
        "rmsce_debiased": _signed_root(((gap**2 - chance) * even.share).sum(1)),
        "mce": np.abs(width).max(1),
    }


def _mean_absolute(mean, deviation) -> np.ndarray:
    """Returns the mean of the absolute value of normal variables."""
    z = ratio(mean, deviation, empty=np.inf)
    folded = deviation * np.sqrt(2 / np.pi) * np.exp(-(np.where(np.isinf(z), 0, z) ** 2) / 2)
    return np.where(deviation > 0, folded + mean * (2 * special.ndtr(z) - 1), np.abs(mean))


def _signed_root(value):
    return np.sign(value) * np.sqrt(np.abs(value))


def brier_decomposition(label, probability, *, bins: int = 15, how: Literal["width", "mass"] = "width"):
    """Returns the decomposition of the Brier score, name -> value; all values are NaN without predictions.

    brier = reliability - resolution + uncertainty + within_bin_variance - within_bin_covariance holds exactly. The
    first three terms are those of Murphy (1973) with the mean probability of each bin, the two within-bin terms are
    those of Stephenson, Coelho & Jolliffe (2008). `reliability_debiased`, `resolution_debiased` and
    `uncertainty_debiased` are those of Ferro & Fricker (2012); bins of one prediction are not corrected.

    Args:
        label: [N] 0 or 1.
        probability: [N], 0..1.
        bins, how: see `bin_edges`.
    """
    label, probability = np.asarray(label, float), np.asarray(probability, float)
    edges = bin_edges(probability, bins, how)
    _, member = np.unique(np.searchsorted(edges[1:-1], probability), return_inverse=True)
    count = np.bincount(member)
    n, base = len(label), ratio(label.sum(), len(label))
    o, f = (np.bincount(member, weights=values) / count for values in (label, probability))
    share = count / max(n, 1)
    chance = (share * ratio(o * (1 - o), count - 1, empty=0.0)).sum()
    uncertainty = base * (1 - base)
    more = ratio(uncertainty, n - 1)
    parts = {
        "reliability": (share * (f - o) ** 2).sum(),
        "resolution": (share * (o - base) ** 2).sum(),
        "uncertainty": uncertainty,
        "within_bin_variance": ratio(((probability - f[member]) ** 2).sum(), n),
        "within_bin_covariance": ratio(2 * ((label - o[member]) * (probability - f[member])).sum(), n),
    }
    parts |= {
        "reliability_debiased": parts["reliability"] - chance,
        "resolution_debiased": parts["resolution"] - chance + more,
        "uncertainty_debiased": uncertainty + more,
    }
    return {name: float(value) if n else np.nan for name, value in parts.items()}
