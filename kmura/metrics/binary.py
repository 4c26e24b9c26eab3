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
import pandas as pd


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
TINY = float(np.finfo(float).eps)  # 2.2e-16; probabilities are clipped to TINY and 1 - TINY before a logarithm


def study_keys(*parts) -> np.ndarray:
    """Returns a number for each image, int64 [N], equal where all parts of the key are equal.

    A study is known by its area, patient and id together: two patients or areas may use the same id.

    Args:
        parts: [N] each, such as areas, patients and study ids.
    """
    key = np.zeros(len(parts[0]), np.int64)
    for part in parts:
        place, names = pd.factorize(np.asarray(part))
        key = pd.factorize(key * len(names) + place)[0]
    return key


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
    return _of_ranks(label, score, weights, ("auc",))["auc"]


def average_precision(label, score, weights=None) -> np.ndarray:
    """Returns the average precision [R]: the sum of precision times increase in recall over descending thresholds."""
    return _of_ranks(label, score, weights, ("ap",))["ap"]


def _of_ranks(label, score, weights, names) -> dict[str, np.ndarray]:
    return _Ranks(label, score)(_weights(label, weights), names)


class _Ranks:
    """Scores that depend on the order of the predictions; sorts them once for any number of weightings."""

    def __init__(self, label, score, place=None):
        """Sorts the predictions.

        Args:
            label: [N] 0 or 1.
            score: [N].
            place: [N] columns of the weights that belong to the samples; None is one column per sample.
        """
        label, score = np.asarray(label), np.asarray(score)
        self.undefined = bool(np.isnan(score).any())  # a sorted NaN would count as the largest score
        order = np.argsort(-score, kind="stable")
        ordered, positive = score[order], label[order] == 1
        self.columns = order if place is None else np.asarray(place)[order]
        self.positive = np.flatnonzero(positive)  # [M] places of the positives in descending order of score
        first = np.flatnonzero(np.r_[True, np.diff(ordered) != 0]) if len(score) else np.zeros(0, int)
        group = np.searchsorted(first, self.positive, side="right") - 1  # [M] group of equal scores
        self.end = np.r_[first[1:], len(score)][group] - 1  # [M] last sample of the group
        self.has_ties = len(first) < len(score)
        self.start = first[group] - 1  # [M] last sample before the group; -1 is none
        self.positive_end = np.searchsorted(self.positive, self.end, side="right") - 1  # the same among the positives
        self.positive_start = np.searchsorted(self.positive, self.start, side="right") - 1

    def __call__(self, weights: np.ndarray, names=("auc", "ap")) -> dict[str, np.ndarray]:
        """Returns the scores, name -> [R], of weights [R, columns]."""
        if self.undefined or not len(self.positive):
            return {name: np.full(len(weights), np.nan) for name in names}
        sorted_weights = np.take(weights, self.columns, axis=1)
        total = np.cumsum(sorted_weights, axis=1)
        weight = np.take(sorted_weights, self.positive, axis=1)
        hits = np.cumsum(weight, axis=1)
        number, result = hits[:, -1], {}
        hits_above = np.take(hits, self.positive_end, axis=1) if self.has_ties else hits
        all_above = np.take(total, self.end, axis=1)
        if "auc" in names:
            negatives = total[:, -1] - number
            false = all_above - hits_above  # [R, M] negatives with an equal or higher score
            higher = _before(total, self.start) - _before(hits, self.positive_start)
            wins = (weight * (negatives[:, None] - (false + higher) / 2)).sum(1)
            result["auc"] = ratio(wins, number * negatives)
        if "ap" in names:
            precision = hits_above / np.maximum(all_above, np.finfo(float).tiny)  # 0 / 0 is that of weight 0
            result["ap"] = ratio(np.einsum("rm,rm->r", weight, precision), number)
        return result


def _before(cumulated: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Returns columns [R, M] of a cumulative sum [R, N]; 0 where the place is -1."""
    return np.take(cumulated, np.maximum(place, 0), axis=1) * (place >= 0)


def brier(label, probability, weights=None) -> np.ndarray:
    """Returns the Brier score [R] (Brier 1950): the mean squared difference of probability and label; 0 is best."""
    weights = _weights(label, weights)
    return ratio(weights @ (np.asarray(probability, float) - np.asarray(label)) ** 2, weights.sum(1))


def log_loss(label, probability, weights=None) -> np.ndarray:
    """Returns the mean negative log likelihood [R], natural logarithm; probabilities are clipped by TINY."""
    weights = _weights(label, weights)
    return ratio(weights @ log_losses(label, probability), weights.sum(1))


def log_losses(label, probability) -> np.ndarray:
    """Returns the negative log likelihood of each sample [N]; see `log_loss`."""
    probability = np.clip(np.asarray(probability, float), TINY, 1 - TINY)
    return -np.log(np.where(np.asarray(label) == 1, probability, 1 - probability))


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

FROM_RANKS = ("auc", "ap")

# name -> score of (label [N], probability [N], weights [R, N]); lower is better
FROM_PROBABILITY: Mapping[str, Callable] = {"brier": brier, "log_loss": log_loss}


SCORES = (*FROM_RANKS, *FROM_CONFUSION, *FROM_PROBABILITY)


def scores(label, probability, *, threshold: float = 0.5, weights=None) -> dict[str, np.ndarray]:
    """Returns all of SCORES by name, each [R] (R = 1 without weights); see `confusion` for the arguments."""
    return Scorer(label, probability, threshold=threshold)(_weights(label, weights))


class Scorer:
    """The scores of predictions for any number of weightings; sorts and thresholds the predictions once."""

    def __init__(self, label, probability, *, threshold: float = 0.5, place=None, names=SCORES):
        """Prepares the scores.

        Args:
            label: [N] 0 or 1.
            probability: [N] in 0..1.
            threshold: a prediction is positive if p >= threshold.
            place: [N] columns of the weights that belong to the samples, such as those of their patients; None is one
                column per sample.
            names: the scores to compute, some of SCORES.
        """
        label, probability = np.asarray(label), np.asarray(probability, float)
        self.names, self.undefined = tuple(names), bool(np.isnan(probability).any())
        self.ranked = tuple(name for name in FROM_RANKS if name in names)
        self.ranks = _Ranks(label, probability, place) if self.ranked else None
        true, predicted = label == 1, probability >= threshold
        columns = [true & predicted, ~true & predicted, true & ~predicted, ~true & ~predicted]
        columns += [(probability - label) ** 2, log_losses(label, probability)]
        if place is not None:  # sums over the samples of each column of the weights
            number = int(np.max(place, initial=-1)) + 1
            columns = [np.bincount(place, column, number) for column in columns]
        self.columns = np.stack(columns, axis=1).astype(float)  # [columns, 6]

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the scores, name -> [R], of weights [R, columns]."""
        *cells, squares, losses = (weights[:, : len(self.columns)] @ self.columns).T
        if self.undefined:
            cells = np.full((4, len(weights)), np.nan)
        values = self.ranks(weights, self.ranked) if self.ranks else {}
        number = sum(cells)
        values |= {"brier": ratio(squares, number), "log_loss": ratio(losses, number)}
        values |= {name: score(*cells) for name, score in FROM_CONFUSION.items() if name in self.names}
        return {name: values[name] for name in self.names}


def _weights(label, weights):
    return np.ones((1, len(label))) if weights is None else np.atleast_2d(np.asarray(weights, float))


def ratio(part, whole, empty=np.nan) -> np.ndarray:
    """Returns part / whole, and `empty` where whole is 0."""
    part, whole = np.asarray(part, float), np.asarray(whole, float)
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, empty), where=whole != 0)
