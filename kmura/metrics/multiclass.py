"""Scores of multiclass and multilabel predictions, defined as in scikit-learn.

R is the number of resamples (rows of `weights`), 1 without weights.
"""

import warnings
from collections.abc import Callable, Mapping

import numpy as np
from scipy import sparse, special

from kmura.metrics import binary
from kmura.metrics.binary import Studies, ratio


def probabilities(logit: np.ndarray, *, softmax: bool) -> np.ndarray:
    """Converts logits [N, L] to probabilities [N, L]: softmax over the classes, or the sigmoid of each logit."""
    logit = np.asarray(logit, np.float64)
    if softmax:
        return special.softmax(logit, axis=1)
    return 1 / (1 + np.exp(-np.clip(logit, -60, 60)))


def confusion_matrix(label, predicted, number: int, weights=None) -> np.ndarray:
    """Returns the confusion matrix [R, number, number]; rows are true classes, columns are predicted classes.

    Args:
        label, predicted: [N] class ids, 0 to number - 1.
        number: number of classes.
        weights: [R, N], or None for a single row of ones.
    """
    cells = np.asarray(label) * number + np.asarray(predicted)
    if weights is None:
        return np.bincount(cells, minlength=number**2).astype(float).reshape(1, number, number)
    weights = np.atleast_2d(weights)
    used, place = np.unique(cells, return_inverse=True)  # few of all pairs of classes occur
    counts = np.zeros((len(weights), number**2))
    counts[:, used] = weights @ np.eye(len(used))[place]
    return counts.reshape(len(weights), number, number)


def by_class(matrix) -> dict[str, np.ndarray]:
    """Returns precision, recall, F1 and support of each class, [R, L], from confusion matrices [R, L, L].

    Undefined values are NaN: the precision of a class that is never predicted, the recall of a class that never occurs,
    and the F1 of a class for which both hold.
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
    measures = by_class(matrix)
    return ratio((np.nan_to_num(measures["f1"]) * measures["support"]).sum(1), measures["support"].sum(1))


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
    """Returns AUC and average precision of each class against the rest, [R, L].

    The value of a class is NaN if there are no positives or no negatives.

    Args:
        label: [N, L] of 0 and 1; -1 is unknown and excluded for that class.
        probability: [N, L] in 0..1.
        weights: [R, N] or None.
    """
    label, probability = np.asarray(label), np.asarray(probability)
    ranked = {"auc": [], "ap": []}
    for truth, value in zip(label.T, probability.T, strict=True):
        known = truth >= 0
        part = None if weights is None else np.atleast_2d(weights)[:, known]
        ranked["auc"].append(binary.auc(truth[known], value[known], part))
        ranked["ap"].append(binary.average_precision(truth[known], value[known], part))
    return {name: np.stack(values, axis=1) for name, values in ranked.items()}


def macro_auc(label, probability) -> float:
    """Returns the mean AUC over the classes or labels for which it is defined; NaN if there is none.

    Args:
        label, probability: see `one_vs_rest`.
    """
    areas = one_vs_rest(label, probability)["auc"]
    return float(np.nanmean(areas)) if np.isfinite(areas).any() else float("nan")


def log_loss(label, probability, weights=None) -> np.ndarray:
    """Returns the mean negative log likelihood [R] of class ids [N] under probabilities [N, L], clipped at TINY."""
    taken = np.asarray(probability, float)[np.arange(len(label)), label]
    losses = -np.log(np.maximum(taken, binary.TINY))
    weights = np.ones((1, len(losses))) if weights is None else np.atleast_2d(weights)
    return ratio(weights @ losses, weights.sum(1))


MULTICLASS_SCORES = ("auc", "ap", *FROM_MATRIX, "log_loss")
BY_CLASS = ("precision", "recall", "f1", "auc", "ap")
MEAN, CLASS = "mean", "class"  # of the keys of `ClassScorer`


def multiclass_scores(label, probability, weights=None) -> dict[str, np.ndarray]:
    """Returns all of MULTICLASS_SCORES by name, each [R].

    `auc` and `ap` are the means of `one_vs_rest` over the classes for which they are defined.

    Args:
        label: [N] class ids.
        probability: [N, L]; each row sums to 1. The predicted class is the most probable one.
        weights: [R, N] or None.
    """
    return _means(ClassScorer(label, probability, several=False), label, weights)


def multilabel_scores(label, probability, weights=None) -> dict[str, np.ndarray]:
    """Returns the means over the classes of all `binary.SCORES` (threshold 0.5) by name, each [R].

    Args:
        label: [N, L] of 0 and 1; -1 is unknown and excluded for that class.
        probability: [N, L] in 0..1.
        weights: [R, N] or None.
    """
    return _means(ClassScorer(label, probability, several=True), label, weights)


def _means(scorer: "ClassScorer", label, weights) -> dict[str, np.ndarray]:
    weights = np.ones((1, len(label))) if weights is None else np.atleast_2d(np.asarray(weights, float))
    return {name: values for (kind, name), values in scorer(weights).items() if kind == MEAN}


class ClassScorer:
    """The scores over all classes and of each class for any number of weightings; prepares the predictions once."""

    def __init__(self, label, probability, *, several: bool, place=None, auc: bool = True):
        """Prepares the scores.

        Args:
            label: class ids [N], or for several labels 0, 1 and -1 (unknown) [N, L].
            probability: [N, L] in 0..1.
            several: whether the labels are independent.
            place: [N] columns of the weights that belong to the samples; None is one column per sample.
            auc: whether to compute the AUCs.
        """
        label, probability = np.asarray(label), np.asarray(probability, float)
        place = np.arange(len(label)) if place is None else np.asarray(place)
        self.several, self.number = several, probability.shape[1]
        ranked = ("auc", "ap") if auc else ("ap",)
        if several:
            names = tuple(name for name in binary.SCORES if auc or name != "auc")
            self.of_class = [
                binary.Scorer(truth[truth >= 0], value[truth >= 0], place=place[truth >= 0], names=names)
                for truth, value in zip(label.T, probability.T, strict=True)
            ]
            return
        self.of_class = [
            binary.Scorer(label == number, probability[:, number], place=place, names=ranked)
            for number in range(self.number)
        ]
        cells = label * self.number + probability.argmax(1) if len(label) else np.zeros(0, int)
        columns = int(place.max(initial=-1)) + 1
        self.cells = sparse.csr_array(
            (np.ones(len(label)), (cells, place)), shape=(self.number**2, columns)
        )  # sums over samples
        taken = np.maximum(probability[np.arange(len(label)), label], binary.TINY)
        self.losses = np.stack(
            [np.bincount(place, values, columns) for values in (-np.log(taken), np.ones(len(label)))]
        )

    def __call__(self, weights: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
        """Returns (MEAN, name) -> [R] and (CLASS, one of BY_CLASS) -> [R, L] of weights [R, columns]."""
        by_name: dict[str, list] = {}
        for scorer in self.of_class:
            for name, values in scorer(weights).items():
                by_name.setdefault(name, []).append(values)
        classes = {name: np.stack(values, axis=1) for name, values in by_name.items()}
        means = {name: _mean(values) for name, values in classes.items()}
        if not self.several:
            used = weights[:, : self.cells.shape[1]]
            matrix = (self.cells @ used.T).T.reshape(len(weights), self.number, self.number)
            classes |= by_class(matrix)
            means |= {name: score(matrix) for name, score in FROM_MATRIX.items()}
            losses, counts = self.losses @ used.T
            means["log_loss"] = ratio(losses, counts)
        order = binary.SCORES if self.several else MULTICLASS_SCORES
        return {(MEAN, name): means[name] for name in order if name in means} | {
            (CLASS, name): classes[name] for name in BY_CLASS if name in classes
        }


def pool_classes(study, probability, how="mean", *, k: int = 2, normalize: bool = True) -> Studies:
    """Returns the probabilities [S, L] of each study, pooled over its images class by class; see `binary.pool_studies`.

    Args:
        study: [N] study ids.
        probability: [N, L].
        how, k: see `binary.pool_studies`.
        normalize: scale each row to the sum 1, which `mean` preserves and other poolings do not.
    """
    columns = [binary.pool_studies(study, column, how, k=k) for column in np.asarray(probability, float).T]
    value = np.stack([column.value for column in columns], axis=1)
    if normalize:
        value = ratio(value, value.sum(1, keepdims=True), empty=1 / value.shape[1])
    return Studies(columns[0].first, columns[0].images, value)


def _mean(values) -> np.ndarray:
    """Returns the mean [R] over the classes of values [R, L], ignoring NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # if all values of a row are NaN, its mean is NaN
        return np.nanmean(values, axis=1)
