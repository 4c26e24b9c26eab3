"""Scores of binary predictions at image and study level, with patient-bootstrap intervals. Arrays in, arrays out.

Every score takes an optional matrix of weights [R, N]: R weighted copies of the same N samples, for example R
bootstrap resamples written as "how often was sample n drawn". A score then is an array [R], computed for all resamples
at once; scikit-learn, which takes one weighting at a time, is the reference in the tests. Undefined scores (an AUC over
one class, a precision without positive predictions, anything over scores that are NaN) are NaN, never 0.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from scipy import stats


@dataclasses.dataclass(frozen=True)
class Interval:
    """A score with its percentile interval; NaN where undefined."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Studies:
    """One row a study, in order of first appearance: index of the first image, number of images, pooled value."""

    first: np.ndarray
    images: np.ndarray
    value: np.ndarray


POOLINGS = ("mean", "max", "noisy-or", "top-k")


def pool_studies(
    study: Sequence,
    value: np.ndarray,
    how: Literal["mean", "max", "noisy-or", "top-k"] = "mean",
    *,
    k: int = 2,
) -> Studies:
    """The probability of each study from those of its images.

    Args:
        study: [N] study ids; equal ids belong together wherever they stand.
        value: [N] probabilities of the images, 0..1.
        how: `mean`; `max`; `noisy-or`, 1 - prod(1 - p), the chance that at least one view shows it if views were
            independent; `top-k`, the mean of the k largest (of all, where a study has fewer).
        k: of `top-k`, 1 or more.

    Raises:
        ValueError: another `how`, or k below 1.
    """
    if how not in POOLINGS or k < 1:
        raise ValueError(f"pooling is {how!r} with k = {k}; choose one of {', '.join(POOLINGS)}, k of 1 or more")
    value = np.asarray(value, float)
    _, first, inverse = np.unique(np.asarray(study), return_index=True, return_inverse=True)
    images = np.bincount(inverse)
    sorted_by_study = np.lexsort((-value, inverse))  # within a study the largest first
    grouped, starts = value[sorted_by_study], np.cumsum(images) - images
    if not len(value):
        pooled = grouped
    elif how == "max":
        pooled = np.maximum.reduceat(grouped, starts)
    elif how == "noisy-or":
        pooled = 1 - np.multiply.reduceat(1 - grouped, starts)
    else:
        rank = np.arange(len(value)) - np.repeat(starts, images)
        taken = np.ones(len(value)) if how == "mean" else (rank < k).astype(float)
        pooled = np.add.reduceat(grouped * taken, starts) / np.add.reduceat(taken, starts)
    order = np.argsort(first, kind="stable")
    return Studies(first[order], images[order], pooled[order])


def confusion(label: np.ndarray, probability: np.ndarray, threshold=0.5, weights: np.ndarray | None = None):
    """True positives, false positives, false negatives, true negatives, each [R]; positive is p >= threshold.

    Args:
        label: [N] 0 or 1.
        probability: [N] in 0..1 (any score works with a threshold of its scale).
        weights: [R, N] or None for a single row of ones.
    """
    probability = np.asarray(probability)
    if np.isnan(probability).any():
        return tuple(np.full((4, len(_weights(probability, weights))), np.nan))
    label, predicted = np.asarray(label) == 1, probability >= threshold
    weights = _weights(label, weights)
    cells = np.stack([label & predicted, ~label & predicted, label & ~predicted, ~label & ~predicted], axis=1)
    return tuple((weights @ cells.astype(float)).T)


def auc(label, score, weights=None) -> np.ndarray:
    """Area under the ROC curve [R]: the chance that a positive scores above a negative, ties counting half."""
    return _auc(*_by_score(label, score, weights))


def _auc(positive, negative):
    below = np.cumsum(negative, axis=1) - negative
    return _ratio((positive * (below + negative / 2)).sum(1), positive.sum(1) * negative.sum(1))


def average_precision(label, score, weights=None) -> np.ndarray:
    """Average precision [R]: precision times gain in recall, summed from the highest score down."""
    return _average_precision(*_by_score(label, score, weights))


def _average_precision(positive, negative):
    hits = np.cumsum(positive[:, ::-1], axis=1)[:, ::-1]
    false = np.cumsum(negative[:, ::-1], axis=1)[:, ::-1]
    return _ratio((positive * _ratio(hits, hits + false, empty=0.0)).sum(1), positive.sum(1))


def brier(label, probability, weights=None) -> np.ndarray:
    """Brier score [R] (Brier 1950): the mean squared distance of the probability from the label, 0 best."""
    weights = _weights(label, weights)
    return _ratio(weights @ (np.asarray(probability, float) - np.asarray(label)) ** 2, weights.sum(1))


def log_loss(label, probability, weights=None) -> np.ndarray:
    """Mean negative log likelihood [R], natural logarithm; probabilities are kept 2.2e-16 away from 0 and 1."""
    weights, tiny = _weights(label, weights), np.finfo(float).eps
    probability = np.clip(np.asarray(probability, float), tiny, 1 - tiny)
    loss = -np.log(np.where(np.asarray(label) == 1, probability, 1 - probability))
    return _ratio(weights @ loss, weights.sum(1))


def _accuracy(tp, fp, fn, tn):
    return _ratio(tp + tn, tp + fp + fn + tn)


def _precision(tp, fp, fn, tn):
    return _ratio(tp, tp + fp)


def _recall(tp, fp, fn, tn):
    return _ratio(tp, tp + fn)


def _specificity(tp, fp, fn, tn):
    return _ratio(tn, tn + fp)


def _f1(tp, fp, fn, tn):
    return _ratio(2 * tp, 2 * tp + fp + fn)


def _balanced_accuracy(tp, fp, fn, tn):
    """The mean of sensitivity and specificity."""
    return (_recall(tp, fp, fn, tn) + _specificity(tp, fp, fn, tn)) / 2


def _kappa(tp, fp, fn, tn):
    """Cohen's kappa (Cohen 1960): agreement beyond the chance agreement of the margins."""
    n = tp + fp + fn + tn
    chance = _ratio((tp + fp) * (tp + fn) + (fn + tn) * (fp + tn), n * n)
    return _ratio(_accuracy(tp, fp, fn, tn) - chance, 1 - chance)


# name -> score of the four cells of the confusion matrix, [R] each
FROM_CONFUSION: Mapping[str, Callable] = {
    "accuracy": _accuracy,
    "precision": _precision,
    "recall": _recall,
    "specificity": _specificity,
    "f1": _f1,
    "balanced_accuracy": _balanced_accuracy,
    "kappa": _kappa,
}

# name -> score of the weights of positives and of negatives at each distinct score, ascending, two arrays [R, distinct]
FROM_RANKS: Mapping[str, Callable] = {"auc": _auc, "ap": _average_precision}

# name -> score of (label [N], probability [N], weights [R, N]) for which less is better
FROM_PROBABILITY: Mapping[str, Callable] = {"brier": brier, "log_loss": log_loss}


SCORES = (*FROM_RANKS, *FROM_CONFUSION, *FROM_PROBABILITY)


def scores(label, probability, *, threshold: float = 0.5, weights=None) -> dict[str, np.ndarray]:
    """All of SCORES by name, each [R] (R = 1 without weights)."""
    cells = confusion(label, probability, threshold, weights)
    ranked = _by_score(label, probability, weights)
    found = {name: score(*ranked) for name, score in FROM_RANKS.items()}
    found |= {name: score(label, probability, weights) for name, score in FROM_PROBABILITY.items()}
    found |= {name: score(*cells) for name, score in FROM_CONFUSION.items()}
    return {name: found[name] for name in SCORES}


def wilson(share, count) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval of a proportion (Wilson 1927): lower and upper bounds, of positive width even at 0 and 1.

    Args:
        share: [K] in 0..1.
        count: [K] cases behind each, 1 or more.
    """
    share, count, z2 = np.asarray(share, float), np.asarray(count, float), 1.959964**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = np.sqrt(z2 * (share * (1 - share) + z2 / (4 * count)) / count) / (1 + z2 / count)
    return np.maximum(0, centre - half), np.minimum(1, centre + half)


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
    variance = _ratio(fraction * (1 - fraction), np.broadcast_to(count - 1, fraction.shape), empty=0.0)
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
    n, base = len(label), _ratio(label.sum(), len(label))
    o, f = (np.bincount(member, weights=values) / count for values in (label, probability))
    share = count / max(n, 1)
    chance = (share * _ratio(o * (1 - o), count - 1, empty=0.0)).sum()
    uncertainty = base * (1 - base)
    more = _ratio(uncertainty, n - 1)
    parts = {
        "reliability": (share * (f - o) ** 2).sum(),
        "resolution": (share * (o - base) ** 2).sum(),
        "uncertainty": uncertainty,
        "within_bin_variance": _ratio(((probability - f[member]) ** 2).sum(), n),
        "within_bin_covariance": _ratio(2 * ((label - o[member]) * (probability - f[member])).sum(), n),
    }
    parts |= {
        "reliability_debiased": parts["reliability"] - chance,
        "resolution_debiased": parts["resolution"] - chance + more,
        "uncertainty_debiased": uncertainty + more,
    }
    return {name: float(value) if n else np.nan for name, value in parts.items()}


def bootstrap_weights(patient, label, *, group=None, resamples: int = 2000, seed: int = 0) -> tuple[np.ndarray, int]:
    """How often each sample stands in each resample when whole patients are drawn with replacement.

    Args:
        patient: [N] patient ids; the samples of a patient are drawn together.
        label: [N] 0 or 1; a resample without both classes has no AUC and is drawn again.
        group: [N] or None; both classes are wanted in each group (area) that has them, so that averages over the groups
            are defined.
        resamples, seed: how many; of the draws. The same patients and seed give the same draws.

    Returns:
        weights [resamples, N] and the number of resamples drawn again. No rows if `label` has one class only.
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
        if redrawn > 100 * resamples:  # two patients carry the classes: almost every draw lacks one
            return np.empty((0, len(label))), redrawn
    return np.concatenate(kept), redrawn


def cluster_weights(patient, *, resamples: int = 2000, rng: np.random.Generator | None = None) -> np.ndarray:
    """How often each sample stands in each resample of whole patients, [resamples, N], whatever its class.

    Args:
        patient: [N] patient ids.
        resamples: how many.
        rng: what draws; None is a generator of seed 0.
    """
    _, inverse = np.unique(np.asarray(patient), return_inverse=True)
    number = int(inverse.max()) + 1
    rng = rng or np.random.default_rng(0)
    return rng.multinomial(number, np.full(number, 1 / number), size=resamples)[:, inverse].astype(float)


def _cells_needed(label, group) -> np.ndarray:
    """Which samples are of which class in which group, [N, cells]; groups of one class need neither."""
    cells = [
        (group == name) & (label == value)
        for name in np.unique(group)
        for value in (0, 1)
        if len(np.unique(label[group == name])) == 2
    ]
    return np.array(cells, float).T.reshape(len(label), -1)


def intervals(values: Mapping[str, np.ndarray], resampled: Mapping[str, np.ndarray], level: float = 0.95):
    """Each score with its percentile interval over the resamples (NaN resamples left out).

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
    """The `macro` (plain) and `weighted` (by size) means over areas of each score, [R] each; NaN where an area's is.

    Neither equals the score of all areas' predictions pooled.

    Args:
        by_area: area -> score name -> [R], of the same R resamples.
        sizes: area -> number of its studies (or images, at that level).
    """
    share = np.array([sizes[area] for area in by_area], float)
    result = {"macro": {}, "weighted": {}}
    for name in next(iter(by_area.values()), {}):
        values = np.stack([np.atleast_1d(found[name]) for found in by_area.values()])
        result["macro"][name] = values.mean(0)
        result["weighted"][name] = share @ values / share.sum()
    return result


def differences(
    one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], one_drawn, other_drawn, level: float = 0.95
) -> dict[str, Interval]:
    """`other` minus `one` for each score, with the percentile interval of the paired differences.

    Args:
        one, other: name -> [1].
        one_drawn, other_drawn: name -> [R], of the SAME resamples in the same order.
        level: coverage, 0..1.
    """
    minus = {name: np.asarray(other[name]) - np.asarray(one[name]) for name in one}
    drawn = {name: np.asarray(other_drawn[name]) - np.asarray(one_drawn[name]) for name in one}
    return intervals(minus, drawn, level)


@dataclasses.dataclass(frozen=True)
class DeLong:
    """A difference of two AUCs by DeLong, DeLong & Clarke-Pearson (1988); NaN where undefined.

    Attributes:
        difference: AUC of the second minus that of the first.
        low, high: its normal 95 % interval.
        p: two-sided p-value of no difference.
    """

    difference: float
    low: float
    high: float
    p: float


def delong(label, one, other) -> DeLong:
    """The difference of two correlated AUCs and what chance makes of it.

    Takes the samples as independent (several images of a patient are not; the patient bootstrap knows), and needs two
    of each class. Placements by midranks (Sun & Xu 2014, algorithm 2).

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


def _weights(label, weights):
    return np.ones((1, len(label))) if weights is None else np.atleast_2d(np.asarray(weights, float))


def _by_score(label, score, weights):
    """Weight of the positives and of the negatives at each distinct score, ascending: two arrays [R, distinct]."""
    label, score = np.asarray(label), np.asarray(score)
    weights = _weights(label, weights)
    if np.isnan(score).any():  # a sorted NaN would count as the largest score
        return np.full((len(weights), 1), np.nan), np.full((len(weights), 1), np.nan)
    if not len(score):
        return np.zeros((len(weights), 0)), np.zeros((len(weights), 0))
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) != 0])
    positive = weights[:, order] * (label[order] == 1)
    negative = weights[:, order] * (label[order] == 0)
    if len(starts) == len(score):  # no ties, nothing to add up
        return positive, negative
    return np.add.reduceat(positive, starts, axis=1), np.add.reduceat(negative, starts, axis=1)


def _ratio(part, whole, empty=np.nan):
    part, whole = np.asarray(part, float), np.asarray(whole, float)
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, empty), where=whole != 0)
