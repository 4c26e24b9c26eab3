"""Scores of predictions over several classes, of which one or any number are true. Definitions as in scikit-learn.

R is the number of resamples (rows of `weights`), 1 without weights.
"""

import warnings
from collections.abc import Callable, Mapping

import numpy as np
from scipy import special

from kmura.metrics import binary
from kmura.metrics.binary import Studies, ratio


def probabilities(logit: np.ndarray, *, softmax: bool) -> np.ndarray:
    """Probabilities [N, L] of logits [N, L]: their softmax, or the logistic function of each."""
    logit = np.asarray(logit, np.float64)
    if softmax:
        return special.softmax(logit, axis=1)
    return 1 / (1 + np.exp(-np.clip(logit, -60, 60)))


def confusion_matrix(label, predicted, number: int, weights=None) -> np.ndarray:
    """How often each class (row) was taken for each class (column): [R, number, number].

    Args:
        label, predicted: [N] class ids, 0 to number - 1.
        number: of classes.
        weights: [R, N], or None for a single row of ones.
    """
    cells = np.asarray(label) * number + np.asarray(predicted)
    if weights is None:
        return np.bincount(cells, minlength=number**2).astype(float).reshape(1, number, number)
    weights = np.atleast_2d(weights)
    used, place = np.unique(cells, return_inverse=True)  # of all pairs of classes few occur
    found = np.zeros((len(weights), number**2))
    found[:, used] = weights @ np.eye(len(used))[place]
    return found.reshape(len(weights), number, number)


def by_class(matrix) -> dict[str, np.ndarray]:
    """Precision, recall, F1 and support of each class, [R, L], of confusion matrices [R, L, L].

    NaN where undefined: precision of a class that is never predicted, recall of one that never occurs, F1 of one that
    does neither.
    """
    right = np.diagonal(matrix, axis1=1, axis2=2)
    true, predicted = matrix.sum(2), matrix.sum(1)
    return {
        "precision": ratio(right, predicted),
        "recall": ratio(right, true),
        "f1": ratio(2 * right, true + predicted),
        "support": true,
    }


def _accuracy(matrix):
    return ratio(np.trace(matrix, axis1=1, axis2=2), matrix.sum((1, 2)))


def _balanced_accuracy(matrix):
    """The mean recall of the classes that occur."""
    return _mean(by_class(matrix)["recall"])


def _f1_macro(matrix):
    """The mean F1 of the classes that occur or are predicted."""
    return _mean(by_class(matrix)["f1"])


def _f1_weighted(matrix):
    """The mean F1 of the classes, each weighted by how often it occurs."""
    found = by_class(matrix)
    return ratio((np.nan_to_num(found["f1"]) * found["support"]).sum(1), found["support"].sum(1))


def _kappa(matrix):
    """Cohen's kappa (Cohen 1960): agreement beyond the chance agreement of the margins."""
    total = matrix.sum((1, 2))
    chance = ratio((matrix.sum(1) * matrix.sum(2)).sum(1), total**2)
    return ratio(_accuracy(matrix) - chance, 1 - chance)


# name -> score of confusion matrices [R, L, L], [R]
FROM_MATRIX: Mapping[str, Callable] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "f1_weighted": _f1_weighted,
    "f1_macro": _f1_macro,
    "kappa": _kappa,
}


def one_vs_rest(label, probability, weights=None) -> dict[str, np.ndarray]:
    """AUC and average precision of each class against all others, [R, L]; NaN where it has no positives or negatives.

    Args:
        label: [N, L] of 0 and 1; -1 is unknown and left out of that class.
        probability: [N, L] in 0..1.
        weights: [R, N] or None.
    """
    label, probability = np.asarray(label), np.asarray(probability)
    found = {"auc": [], "ap": []}
    for truth, value in zip(label.T, probability.T, strict=True):
        known = truth >= 0
        part = None if weights is None else np.atleast_2d(weights)[:, known]
        found["auc"].append(binary.auc(truth[known], value[known], part))
        found["ap"].append(binary.average_precision(truth[known], value[known], part))
    return {name: np.stack(values, axis=1) for name, values in found.items()}


def log_loss(label, probability, weights=None) -> np.ndarray:
    """Mean negative log likelihood [R] of classes [N] under probabilities [N, L], kept 2.2e-16 away from 0."""
    taken = np.asarray(probability, float)[np.arange(len(label)), label]
    losses = -np.log(np.maximum(taken, np.finfo(float).eps))
    weights = np.ones((1, len(losses))) if weights is None else np.atleast_2d(weights)
    return ratio(weights @ losses, weights.sum(1))


MULTICLASS_SCORES = ("auc", "ap", *FROM_MATRIX, "log_loss")


def multiclass_scores(label, probability, weights=None) -> dict[str, np.ndarray]:
    """All of MULTICLASS_SCORES, [R] each; `auc` and `ap` are the means of `one_vs_rest` over the classes defined there.

    Args:
        label: [N] class ids.
        probability: [N, L], each row sums to 1; the predicted class is the most probable.
        weights: [R, N] or None.
    """
    label, probability = np.asarray(label), np.asarray(probability)
    number = probability.shape[1]
    matrix = confusion_matrix(label, probability.argmax(1), number, weights)
    ranked = one_vs_rest(np.arange(number) == label[:, None], probability, weights)
    found = {name: _mean(values) for name, values in ranked.items()}
    found |= {name: score(matrix) for name, score in FROM_MATRIX.items()}
    return found | {"log_loss": log_loss(label, probability, weights)}


def multilabel_scores(label, probability, weights=None) -> dict[str, np.ndarray]:
    """The means over the classes of all of `binary.SCORES` (threshold 0.5), [R] each, and of one class just its scores.

    Args:
        label: [N, L] of 0 and 1; -1 is unknown and left out of that class.
        probability: [N, L] in 0..1.
        weights: [R, N] or None.
    """
    each = []
    for truth, value in zip(np.asarray(label).T, np.asarray(probability).T, strict=True):
        known = truth >= 0
        part = None if weights is None else np.atleast_2d(weights)[:, known]
        each.append(binary.scores(truth[known], value[known], weights=part))
    return {name: _mean(np.stack([one[name] for one in each], axis=1)) for name in binary.SCORES}


def pool_classes(study, probability, how="mean", *, k: int = 2, normalize: bool = True) -> Studies:
    """Probabilities [S, L] of each study from those of its images [N, L], class by class; see `binary.pool_studies`.

    Args:
        study: [N] study ids.
        probability: [N, L].
        how, k: of `pool_studies`.
        normalize: bring each row to the sum 1, which `mean` keeps and other poolings do not.
    """
    columns = [binary.pool_studies(study, column, how, k=k) for column in np.asarray(probability, float).T]
    value = np.stack([column.value for column in columns], axis=1)
    if normalize:
        value = ratio(value, value.sum(1, keepdims=True), empty=1 / value.shape[1])
    return Studies(columns[0].first, columns[0].images, value)


def _mean(values) -> np.ndarray:
    """Mean over the classes [R, L], those that are NaN left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all of a row may be NaN, and then so is its mean
        return np.nanmean(values, axis=1)
