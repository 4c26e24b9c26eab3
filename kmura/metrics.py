"""Scores of binary predictions at image and study level, with patient-bootstrap intervals. Arrays in, arrays out.

Every score takes an optional matrix of weights [R, N]: R weighted copies of the same N samples, for example R
bootstrap resamples written as "how often was sample n drawn". A score then is an array [R], computed for all resamples
at once; scikit-learn, which takes one weighting at a time, is the reference in the tests. Undefined scores (an AUC over
one class, a precision without positive predictions, anything over scores that are NaN) are NaN, never 0.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np


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


def pool_studies(study: Sequence, value: np.ndarray) -> Studies:
    """The mean of `value` [N] over the images of each study.

    Args:
        study: [N] study ids; equal ids belong together wherever they stand.
        value: [N] probabilities of the images.
    """
    _, first, inverse = np.unique(np.asarray(study), return_index=True, return_inverse=True)
    images = np.bincount(inverse)
    mean = np.bincount(inverse, weights=np.asarray(value, float)) / images
    order = np.argsort(first, kind="stable")
    return Studies(first[order], images[order], mean[order])


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
    positive, negative = _by_score(label, score, weights)
    below = np.cumsum(negative, axis=1) - negative
    return _ratio((positive * (below + negative / 2)).sum(1), positive.sum(1) * negative.sum(1))


def average_precision(label, score, weights=None) -> np.ndarray:
    """Average precision [R]: precision times gain in recall, summed from the highest score down."""
    positive, negative = _by_score(label, score, weights)
    hits = np.cumsum(positive[:, ::-1], axis=1)[:, ::-1]
    false = np.cumsum(negative[:, ::-1], axis=1)[:, ::-1]
    return _ratio((positive * _ratio(hits, hits + false, empty=0.0)).sum(1), positive.sum(1))


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
    "kappa": _kappa,
}

# name -> score of (label [N], score [N], weights [R, N])
FROM_RANKS: Mapping[str, Callable] = {"auc": auc, "ap": average_precision}


def scores(label, probability, *, threshold: float = 0.5, weights=None) -> dict[str, np.ndarray]:
    """All scores of FROM_RANKS and FROM_CONFUSION by name, each [R] (R = 1 without weights)."""
    cells = confusion(label, probability, threshold, weights)
    ranked = {name: score(label, probability, weights) for name, score in FROM_RANKS.items()}
    return ranked | {name: score(*cells) for name, score in FROM_CONFUSION.items()}


def bootstrap_weights(patient, label, *, resamples: int = 2000, seed: int = 0) -> tuple[np.ndarray, int]:
    """How often each sample stands in each resample when whole patients are drawn with replacement.

    Args:
        patient: [N] patient ids; the samples of a patient are drawn together.
        label: [N] 0 or 1; a resample without both classes has no AUC and is drawn again.

    Returns:
        weights [resamples, N] and the number of resamples drawn again. No rows if `label` has one class only.
    """
    label = np.asarray(label)
    _, inverse = np.unique(np.asarray(patient), return_inverse=True)
    number = int(inverse.max()) + 1 if len(inverse) else 0
    if len(np.unique(label)) < 2 or number < 2:
        return np.empty((0, len(label))), 0
    rng = np.random.default_rng(seed)
    kept, missing, redrawn = [], resamples, 0
    while missing:
        draws = rng.multinomial(number, np.full(number, 1 / number), size=missing)[:, inverse].astype(float)
        both = (draws @ (label == 1) > 0) & (draws @ (label == 0) > 0)
        kept.append(draws[both])
        missing -= int(both.sum())
        redrawn += int((~both).sum())
        if redrawn > 100 * resamples:  # two patients carry the classes: almost every draw lacks one
            return np.empty((0, len(label))), redrawn
    return np.concatenate(kept), redrawn


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
    return np.add.reduceat(positive, starts, axis=1), np.add.reduceat(negative, starts, axis=1)


def _ratio(part, whole, empty=np.nan):
    part, whole = np.asarray(part, float), np.asarray(whole, float)
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, empty), where=whole != 0)
