"""Scores of label maps, all computed from confusion matrices of voxels.

Shapes: K classes with the background as class 0; a confusion matrix [..., K, K] has the true classes in rows and the
predicted classes in columns. Matrices of volumes can be added: the scores of the sum are those of all their voxels
together. A class is present if it occurs in the truth or in the prediction; the scores of other classes are NaN.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from kmura.metrics.binary import ratio
from kmura.metrics.intervals import Interval, intervals
from kmura.metrics.resampling import PatientBootstrap

UNKNOWN = -1  # label of a voxel that takes part in no score
FEWEST_VOLUMES = 5  # with fewer volumes, resamples of them say little about other volumes
POOLED, VOLUMES = "pooled", "volumes"  # averages over volumes, see `averaged`


def confusion(truth: np.ndarray, predicted: np.ndarray, number: int, *, chunk: int = 1 << 22) -> np.ndarray:
    """Returns the numbers of voxels of each true and predicted class, int64 [number, number].

    Args:
        truth: class numbers, integers of any shape; voxels of -1 are unknown and not counted.
        predicted: class numbers 0 to number - 1, of the same shape.
        number: number of classes, K.
        chunk: voxels that are counted at a time, which bounds the memory (about 24 bytes per voxel).

    Raises:
        ValueError: the shapes differ, or a class number is out of range.
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.shape != predicted.shape:
        raise ValueError(f"the truth has the shape {truth.shape}, the prediction {predicted.shape}")
    truth, predicted = truth.reshape(-1), predicted.reshape(-1)
    total = np.zeros(number * number, np.int64)
    for start in range(0, len(truth), chunk):
        rows = truth[start : start + chunk].astype(np.int64)
        columns = predicted[start : start + chunk].astype(np.int64)
        if rows.min() < UNKNOWN or columns.min() < 0 or max(rows.max(), columns.max()) >= number:
            raise ValueError(f"class numbers are 0 to {number - 1}, and -1 for unknown voxels of the truth")
        known = rows >= 0
        total += np.bincount(rows[known] * number + columns[known], minlength=number * number)
    return total.reshape(number, number)


def dice(confusion: np.ndarray) -> np.ndarray:
    """Returns the Dice coefficient of each class, 2 TP / (2 TP + FP + FN), [..., K]."""
    right, more, less = _counts(confusion)
    return ratio(2 * right, 2 * right + more + less)


def iou(confusion: np.ndarray) -> np.ndarray:
    """Returns the intersection over union of each class, TP / (TP + FP + FN), [..., K]."""
    right, more, less = _counts(confusion)
    return ratio(right, right + more + less)


def precision(confusion: np.ndarray) -> np.ndarray:
    """Returns TP / (TP + FP) of each class, [..., K]; NaN where the class is never predicted."""
    right, more, _ = _counts(confusion)
    return ratio(right, right + more)


def recall(confusion: np.ndarray) -> np.ndarray:
    """Returns TP / (TP + FN) of each class, [..., K]; NaN where the class is absent from the truth."""
    right, _, less = _counts(confusion)
    return ratio(right, right + less)


def misclassification(confusion: np.ndarray) -> np.ndarray:
    """Returns the misclassification rate of each class, (FP + FN) / all voxels, [..., K]; NaN of absent classes."""
    right, more, less = _counts(confusion)
    voxels = np.asarray(confusion).sum(axis=(-2, -1))[..., None]
    return np.where(right + more + less > 0, ratio(more + less, voxels), np.nan)


def fp_fn_ratio(confusion: np.ndarray) -> np.ndarray:
    """Returns FP / FN of each class, [..., K]: 1 where the region has the right size.

    It is infinite where only FN is 0, and NaN where both are 0.
    """
    _, more, less = _counts(confusion)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(more / less, float)


# name -> scores [..., K] of confusion matrices [..., K, K]
REGION_SCORES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "dice": dice,
    "iou": iou,
    "precision": precision,
    "recall": recall,
    "misclassification": misclassification,
    "fp_fn_ratio": fp_fn_ratio,
}


def region_scores(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Returns all REGION_SCORES of each class by name, [..., K]."""
    return {name: score(confusion) for name, score in REGION_SCORES.items()}


def mean_scores(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the mean over the present classes without the background of each of REGION_SCORES by name, [...].

    NaN of single classes are left out. `fp_fn_ratio` and its variance `fp_fn_variance` (divided by the number of
    classes) are those of the finite ratios.
    """
    scores = {name: values[..., 1:] for name, values in region_scores(confusion).items()}
    finite = np.where(np.isfinite(scores["fp_fn_ratio"]), scores["fp_fn_ratio"], np.nan)
    means = {name: _mean(values) for name, values in (scores | {"fp_fn_ratio": finite}).items()}
    return means | {"fp_fn_variance": _mean((finite - means["fp_fn_ratio"][..., None]) ** 2)}


def total_scores(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Returns REGION_SCORES by name, [...], of TP, FP and FN that are summed over the classes without the background.

    The exception is `misclassification`, the share of the voxels whose class is wrong: a voxel of one region with the
    label of another one is a false positive and a false negative, but a single wrong voxel.
    """
    matrix = np.asarray(confusion)
    right, more, less = (count[..., 1:].sum(axis=-1) for count in _counts(matrix))
    voxels = matrix.sum(axis=(-2, -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        size_ratio = np.asarray(more / less, float)
    return {
        "dice": ratio(2 * right, 2 * right + more + less),
        "iou": ratio(right, right + more + less),
        "precision": ratio(right, right + more),
        "recall": ratio(right, right + less),
        "misclassification": ratio(voxels - np.trace(matrix, axis1=-2, axis2=-1), voxels),
        "fp_fn_ratio": size_ratio,
    }


def side_errors(confusion: np.ndarray, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Returns the share of labelled voxels that have the right region on the wrong side, [...].

    The labelled voxels are those with a class other than the background in the truth.

    Args:
        confusion: [..., K, K].
        pairs: class numbers of the left and the right side of each region.
    """
    matrix = np.asarray(confusion)
    left, right = np.array(pairs, int).reshape(-1, 2).T
    wrong = (matrix[..., left, right] + matrix[..., right, left]).sum(axis=-1)
    return ratio(wrong, matrix[..., 1:, :].sum(axis=(-2, -1)))


def averaged(confusions: np.ndarray, score: Callable[[np.ndarray], Mapping[str, np.ndarray]], how: str = POOLED):
    """Returns scores of several volumes by name, floats.

    Args:
        confusions: of each volume, [V, K, K].
        score: function of matrices [R, K, K] that returns name -> [R], such as `mean_scores` or `total_scores`.
        how: `pooled`, the scores of all voxels together; or `volumes`, the mean of the scores of the volumes, in which
            all volumes count the same and volumes without a defined score are left out.
    """
    values = _resampled(np.asarray(confusions), score, how)(np.ones((1, len(confusions))))
    return {name: float(value[0]) for name, value in values.items()}


def volume_intervals(
    confusions: np.ndarray,
    score: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    how: str = POOLED,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval] | None:
    """Returns scores with their percentile intervals over bootstrap resamples of whole volumes, by name.

    None if there are fewer than FEWEST_VOLUMES volumes. Resamples in which a score is not finite are left out.

    Args:
        confusions, score, how: see `averaged`.
        resamples: number of resamples.
        level: coverage, 0..1.
        seed: seed of the draws.
    """
    confusions = np.asarray(confusions)
    if len(confusions) < FEWEST_VOLUMES:
        return None
    of_counts = _resampled(confusions, score, how)
    draws = PatientBootstrap(np.arange(len(confusions)), resamples=resamples, seed=seed)
    drawn = draws.scores({"": of_counts})[""]
    drawn = {name: np.where(np.isfinite(values), values, np.nan) for name, values in drawn.items()}
    return intervals(of_counts(np.ones((1, len(confusions)))), drawn, level)


def _resampled(confusions: np.ndarray, score: Callable, how: str) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Returns the function of counts [R, V], how often each volume is drawn, that returns name -> [R]."""
    if how == POOLED:
        flat = confusions.reshape(len(confusions), -1).astype(float)
        return lambda counts: dict(score((counts @ flat).reshape(-1, *confusions.shape[1:])))
    if how != VOLUMES:
        raise ValueError(f"how is {how!r}; choose {POOLED} or {VOLUMES}")
    values = {name: np.asarray(scores, float) for name, scores in score(confusions).items()}

    def mean(counts):
        known = {name: np.isfinite(scores) for name, scores in values.items()}
        return {
            name: ratio(counts[:, known[name]] @ scores[known[name]], counts[:, known[name]].sum(axis=1))
            for name, scores in values.items()
        }

    return mean


def _counts(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns TP, FP and FN of each class, [..., K] each."""
    matrix = np.asarray(confusion)
    right = np.diagonal(matrix, axis1=-2, axis2=-1)
    return right, matrix.sum(axis=-2) - right, matrix.sum(axis=-1) - right


def _mean(values: np.ndarray) -> np.ndarray:
    """Returns the mean over the last axis of all values but NaN."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0.0).sum(axis=-1), known.sum(axis=-1))
