"""Calibration of probabilities: reliability bins, calibration errors, parts of the Brier score."""

import dataclasses
from typing import Literal

import numpy as np

from kmura.metrics.binary import ratio


@dataclasses.dataclass(frozen=True)
class Bins:
    """Predictions sorted into the bins of a reliability diagram; all arrays [K], empty bins left out.

    Attributes:
        low, high: edges; a bin holds low < p <= high (the first also p = low).
        count: predictions.
        probability: their mean.
        fraction: the share of positives among them.
    """

    low: np.ndarray
    high: np.ndarray
    count: np.ndarray
    probability: np.ndarray
    fraction: np.ndarray


def bin_edges(probability, bins: int = 15, how: Literal["width", "mass"] = "width") -> np.ndarray:
    """Edges [bins + 1] from 0 to 1: equally far apart, or at quantiles of the probabilities (fewer where these tie).

    Raises:
        ValueError: another `how`, or fewer than 1 bin.
    """
    if how not in ("width", "mass") or bins < 1:
        raise ValueError(f"{bins} bins of equal {how!r}; choose width or mass, and 1 bin or more")
    if how == "width":
        return np.linspace(0, 1, bins + 1)
    inner = np.quantile(np.asarray(probability, float), np.arange(1, bins) / bins) if len(probability) else []
    return np.unique(np.concatenate([[0.0], inner, [1.0]]))


def reliability_bins(label, probability, bins: int = 15, how: Literal["width", "mass"] = "width") -> Bins:
    """The bins of the reliability diagram of the positive class.

    Args:
        label: [N] 0 or 1.
        probability: [N] of the positive class, 0..1.
        bins, how: see `bin_edges`.
    """
    label, probability = np.asarray(label, float), np.asarray(probability, float)
    edges = bin_edges(probability, bins, how)
    member = np.searchsorted(edges[1:-1], probability)
    count = np.bincount(member, minlength=len(edges) - 1)
    there = count > 0
    sums = (np.bincount(member, weights=values, minlength=len(edges) - 1)[there] for values in (probability, label))
    mean_probability, fraction = (total / count[there] for total in sums)
    return Bins(edges[:-1][there], edges[1:][there], count[there], mean_probability, fraction)


@dataclasses.dataclass(frozen=True)
class CalibrationError:
    """A calibration error beside that of a perfectly calibrated model with the same probabilities.

    Attributes:
        value: of the predictions; NaN where there are none.
        expected: mean over simulations whose labels are drawn from the probabilities themselves.
        high: their 95th percentile: a larger `value` is more than chance.
    """

    value: float
    expected: float
    high: float


def calibration_errors(
    label, probability, *, bins: int = 15, simulations: int = 1000, seed: int = 0
) -> dict[str, CalibrationError]:
    """How far probabilities of the positive class are from its frequencies, by name, 0 best.

    - `ece`: expected calibration error (Naeini et al. 2015, on the positive class), sum_k n_k / N |o_k - f_k| over bins
      of equal width; f_k is the mean probability of bin k, o_k its share of positives.
    - `ece_mass`: the same over bins that hold equally many predictions.
    - `mce`: the largest |o_k - f_k| of the bins of equal width.
    - `ece_debiased`: root of sum_k n_k / N ((o_k - f_k)^2 - o_k (1 - o_k) / (n_k - 1)), the reliability of Ferro &
      Fricker (2012), whose second term takes away what chance adds; over bins of equal mass, bins of one prediction
      left as they are. Where the sum is negative (less than chance), minus the root of its opposite.

    The simulations take predictions as independent, so `expected` is too small for several images of one study, which
    share a label: read it at study level.

    Args:
        label: [N] 0 or 1.
        probability: [N], 0..1.
        bins: of equal width or mass.
        simulations: draws of all labels.
        seed: of the draws.
    """
    label, probability = np.asarray(label, float), np.asarray(probability, float)
    names = ("ece", "ece_mass", "mce", "ece_debiased")
    if not len(label) or np.isnan(probability).any():
        return {name: CalibrationError(np.nan, np.nan, np.nan) for name in names}
    drawn = np.random.default_rng(seed).random((simulations, len(label))) < probability
    labels = np.concatenate([label[None], drawn.astype(float)])
    width = _binned_gaps(labels, probability, bin_edges(probability, bins, "width"))
    mass = _binned_gaps(labels, probability, bin_edges(probability, bins, "mass"))
    values = {
        "ece": (np.abs(width[0]) * width[2]).sum(1),
        "ece_mass": (np.abs(mass[0]) * mass[2]).sum(1),
        "mce": np.abs(width[0]).max(1),
        "ece_debiased": _signed_root(((mass[0] ** 2 - mass[1]) * mass[2]).sum(1)),
    }
    return {
        name: CalibrationError(float(value[0]), float(value[1:].mean()), float(np.quantile(value[1:], 0.95)))
        for name, value in values.items()
    }


def _binned_gaps(labels, probability, edges):
    """o_k - f_k [S, K], the variance of o_k [S, K] and the weight n_k / N [K] of the bins that are not empty.

    `labels` is [S, N], `probability` [N].
    """
    member = np.searchsorted(edges[1:-1], probability)
    inside = (member[:, None] == np.unique(member)).astype(float)  # [N, K]
    count = inside.sum(0)
    fraction = labels @ inside / count
    variance = ratio(fraction * (1 - fraction), np.broadcast_to(count - 1, fraction.shape), empty=0.0)
    return fraction - probability @ inside / count, variance, count / len(probability)


def _signed_root(value):
    return np.sign(value) * np.sqrt(np.abs(value))


def brier_decomposition(label, probability, *, bins: int = 15, how: Literal["width", "mass"] = "width"):
    """The parts of the Brier score by name; brier = reliability - resolution + uncertainty + within_bin_variance
    - within_bin_covariance, exactly.

    The first three after Murphy (1973) with the mean probability of each bin, the two within-bin terms after
    Stephenson, Coelho & Jolliffe (2008). `reliability_debiased`, `resolution_debiased` and `uncertainty_debiased` are
    Ferro & Fricker's (2012); bins of one prediction keep their biased share. All NaN without predictions.

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
