"""Scores of binary predictions, and the pooling of images to studies. All functions work on arrays.

Every score takes an optional matrix of weights [R, N], for example of R bootstrap resamples, where weight (r, n) is the
number of times that sample n was drawn in resample r. The score is then an array [R], computed for all resamples at
once; scikit-learn, which computes one weighting at a time, is the reference in the tests. Undefined scores (an AUC of a
single class, a precision without positive predictions, any score of NaN) are NaN, not 0.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np


@dataclasses.dataclass(frozen=True)
class Studies:
    """One row per study, in order of first appearance; S studies.

    Attributes:
        first: [S] index of the first image of the study.
        images: [S] number of images of the study.
        value: [S] or [S, L], the pooled value.
    """

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
    """Returns the probability of each study, pooled over its images.

    Args:
        study: [N] study ids; images with equal ids belong to the same study, in any order.
        value: [N] probabilities of the images, 0..1.
        how: `mean`; `max`; `noisy-or`, 1 - prod(1 - p), the probability that at least one view is positive if the views
            are independent; `top-k`, the mean of the k largest (of all images if a study has fewer than k).
        k: number of images for `top-k`, 1 or more.

    Raises:
        ValueError: `how` is unknown, or k is less than 1.
    """
    if how not in POOLINGS or k < 1:
        raise ValueError(f"pooling is {how!r} with k = {k}; choose one of {', '.join(POOLINGS)}, k of 1 or more")
    value = np.asarray(value, float)
    _, first, inverse = np.unique(np.asarray(study), return_index=True, return_inverse=True)
    images = np.bincount(inverse)
    sorted_by_study = np.lexsort((-value, inverse))  # descending within each study
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
    """Returns true positives, false positives, false negatives and true negatives, each [R].

    Args:
        label: [N] 0 or 1.
        probability: [N] in 0..1, or scores on the scale of the threshold.
        threshold: a prediction is positive if p >= threshold.
        weights: [R, N], or None for a single row of ones.
    """
    probability = np.asarray(probability)
    if np.isnan(probability).any():
        return tuple(np.full((4, len(_weights(probability, weights))), np.nan))
    label, predicted = np.asarray(label) == 1, probability >= threshold
    weights = _weights(label, weights)
    cells = np.stack([label & predicted, ~label & predicted, label & ~predicted, ~label & ~predicted], axis=1)
    return tuple((weights @ cells.astype(float)).T)


def auc(label, score, weights=None) -> np.ndarray:
    """Returns the area under the ROC curve [R]: the probability that a positive is ranked above a negative.

    Ties count one half.
    """
    return _auc(*_by_score(label, score, weights))


def _auc(positive, negative):
    below = np.cumsum(negative, axis=1) - negative
    return ratio((positive * (below + negative / 2)).sum(1), positive.sum(1) * negative.sum(1))


def average_precision(label, score, weights=None) -> np.ndarray:
    """Returns the average precision [R]: the sum of precision times increase in recall over descending thresholds."""
    return _average_precision(*_by_score(label, score, weights))


def _average_precision(positive, negative):
    hits = np.cumsum(positive[:, ::-1], axis=1)[:, ::-1]
    false = np.cumsum(negative[:, ::-1], axis=1)[:, ::-1]
    return ratio((positive * ratio(hits, hits + false, empty=0.0)).sum(1), positive.sum(1))


def brier(label, probability, weights=None) -> np.ndarray:
    """Returns the Brier score [R] (Brier 1950): the mean squared difference of probability and label; 0 is best."""
    weights = _weights(label, weights)
    return ratio(weights @ (np.asarray(probability, float) - np.asarray(label)) ** 2, weights.sum(1))


def log_loss(label, probability, weights=None) -> np.ndarray:
    """Returns the mean negative log likelihood [R], natural logarithm; probabilities are clipped by 2.2e-16."""
    weights, tiny = _weights(label, weights), np.finfo(float).eps
    probability = np.clip(np.asarray(probability, float), tiny, 1 - tiny)
    loss = -np.log(np.where(np.asarray(label) == 1, probability, 1 - probability))
    return ratio(weights @ loss, weights.sum(1))


def _accuracy(tp, fp, fn, tn):
    return ratio(tp + tn, tp + fp + fn + tn)


def _precision(tp, fp, fn, tn):
    return ratio(tp, tp + fp)


def _recall(tp, fp, fn, tn):
    return ratio(tp, tp + fn)


def _specificity(tp, fp, fn, tn):
    return ratio(tn, tn + fp)


def _f1(tp, fp, fn, tn):
    return ratio(2 * tp, 2 * tp + fp + fn)


def _npv(tp, fp, fn, tn):
    """Negative predictive value: the precision of the negative class."""
    return ratio(tn, tn + fn)


def _f1_negative(tp, fp, fn, tn):
    """F1 of the negative class."""
    return ratio(2 * tn, 2 * tn + fp + fn)


def _balanced_accuracy(tp, fp, fn, tn):
    """The mean of sensitivity and specificity."""
    return (_recall(tp, fp, fn, tn) + _specificity(tp, fp, fn, tn)) / 2


def _kappa(tp, fp, fn, tn):
    """Cohen's kappa (Cohen 1960): agreement beyond the chance agreement of the margins."""
    n = tp + fp + fn + tn
    chance = ratio((tp + fp) * (tp + fn) + (fn + tn) * (fp + tn), n * n)
    return ratio(_accuracy(tp, fp, fn, tn) - chance, 1 - chance)


# name -> score of the four cells of the confusion matrix, [R] each
FROM_CONFUSION: Mapping[str, Callable] = {
    "accuracy": _accuracy,
    "precision": _precision,
    "recall": _recall,
    "specificity": _specificity,
    "f1": _f1,
    "balanced_accuracy": _balanced_accuracy,
    "kappa": _kappa,
    "npv": _npv,
    "f1_negative": _f1_negative,
}

# name -> score of the weights of positives and of negatives at each distinct score, ascending; two arrays [R, distinct]
FROM_RANKS: Mapping[str, Callable] = {"auc": _auc, "ap": _average_precision}

# name -> score of (label [N], probability [N], weights [R, N]); lower is better
FROM_PROBABILITY: Mapping[str, Callable] = {"brier": brier, "log_loss": log_loss}


SCORES = (*FROM_RANKS, *FROM_CONFUSION, *FROM_PROBABILITY)


def scores(label, probability, *, threshold: float = 0.5, weights=None) -> dict[str, np.ndarray]:
    """Returns all of SCORES by name, each [R] (R = 1 without weights); see `confusion` for the arguments."""
    cells = confusion(label, probability, threshold, weights)
    ranked = _by_score(label, probability, weights)
    values = {name: score(*ranked) for name, score in FROM_RANKS.items()}
    values |= {name: score(label, probability, weights) for name, score in FROM_PROBABILITY.items()}
    values |= {name: score(*cells) for name, score in FROM_CONFUSION.items()}
    return {name: values[name] for name in SCORES}


def _weights(label, weights):
    return np.ones((1, len(label))) if weights is None else np.atleast_2d(np.asarray(weights, float))


def _by_score(label, score, weights):
    """Returns the weights of positives and of negatives at each distinct score, ascending: two arrays [R, distinct]."""
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
    if len(starts) == len(score):  # no ties, nothing to sum
        return positive, negative
    return np.add.reduceat(positive, starts, axis=1), np.add.reduceat(negative, starts, axis=1)


def ratio(part, whole, empty=np.nan) -> np.ndarray:
    """Returns part / whole, and `empty` where whole is 0."""
    part, whole = np.asarray(part, float), np.asarray(whole, float)
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, empty), where=whole != 0)
