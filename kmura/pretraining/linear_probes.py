"""Classifiers of fixed features: logistic regression, a trained linear layer, and weighted nearest neighbours.

Shapes: N images, D features, L logits. Targets are float32 [N, L] of 0 and 1; -1 is unknown and takes part in nothing.
"""

import dataclasses
import logging
import warnings
from typing import Any

import keras
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from kmura import metrics
from kmura.errors import InputError
from kmura.tasks import Task

CS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # inverse strengths of the L2 penalty
KS = (5, 10, 20, 50, 100, 200)  # numbers of neighbours
TEMPERATURE = 0.07  # of the weights of neighbours (Wu et al. 2018, section 3.4)
SMALLEST = 1e-4  # probabilities of neighbours are clipped to SMALLEST..1 - SMALLEST
ITERATIONS = 500  # at most, of a regression; with a large C it may stop before it has converged
EPOCHS, BATCH, RATE = 30, 128, 1e-3  # of the linear layer, which Adam trains


@dataclasses.dataclass(frozen=True)
class Linear:
    """A linear map from features to logits.

    Attributes:
        kernel: float64 [D, L], of features that are not standardised.
        bias: float64 [L].
        history: one row per epoch; a regression has one row.
    """

    kernel: np.ndarray
    bias: np.ndarray
    history: tuple[dict[str, Any], ...]

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Returns logits [N, L], float64, of features [N, D]."""
        return features.astype(np.float64) @ self.kernel + self.bias


def cross_entropy(task: Task, targets: np.ndarray, logits: np.ndarray) -> float:
    """Returns the mean cross-entropy of the known labels."""
    known = targets >= 0
    if task.softmax:
        rows = known.all(axis=1)
        logs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        return float(-(logs * targets)[rows].sum(axis=1).mean())
    return float((np.logaddexp(0, logits) - targets * logits)[known].mean())


def logistic_regression(
    task: Task, train: tuple[np.ndarray, np.ndarray], val: tuple[np.ndarray, np.ndarray], cs: tuple[float, ...] = CS
) -> Linear:
    """Returns scikit-learn's logistic regression on standardised features, with C chosen by the macro AUC on `val`.

    Multiclass tasks have one multinomial regression, others one regression per label. Of equal AUC, the smaller C is
    chosen. A multilabel label with a single outcome in `train` gets a constant logit.

    Args:
        task: of the targets.
        train, val: features [N, D] and targets [N, L].
        cs: the values of C to choose from.

    Raises:
        InputError: `train` lacks a class (binary, multiclass), or `val` has no label with both outcomes.
    """
    _check_classes(task, train[1])
    scaler, features = _standardised(task, train)
    held_out, best = scaler.transform(val[0].astype(np.float64)), None
    for c in cs:
        kernel, bias = _fitted(task, features, train[1], c)
        logits = held_out @ kernel + bias
        auc = metrics.macro_auc(val[1], task.probabilities(logits))
        if best is None or auc > best[0]:
            best = (auc, c, kernel, bias, logits)
    auc, c, kernel, bias, logits = best
    _check_auc(auc)
    row = {
        "epoch": 1,
        "loss": cross_entropy(task, train[1], features @ kernel + bias),
        "val_loss_img": cross_entropy(task, val[1], logits),
        "val_auc_img": auc,
        "C": c,
        "best": True,
    }
    return _folded(scaler, kernel, bias, (row,))


def linear_layer(
    task: Task, train: tuple[np.ndarray, np.ndarray], val: tuple[np.ndarray, np.ndarray], seed: int = 0
) -> Linear:
    """Returns a Dense layer that Adam trains for 30 epochs on standardised features; the best epoch is chosen on `val`.

    Args and Raises: as in `logistic_regression`; `seed` is of the order of the images.
    """
    _check_classes(task, train[1])
    scaler, features = _standardised(task, train)
    targets, held_out = train[1], scaler.transform(val[0].astype(np.float64))
    known = (targets >= 0).all(axis=1) if task.softmax else (targets >= 0).any(axis=1)
    features, targets = features[known].astype(np.float32), targets[known]

    def loss(target, logit):
        mask = keras.ops.cast(target >= 0, "float32")
        if task.softmax:
            return keras.losses.categorical_crossentropy(target, logit, from_logits=True)
        terms = keras.ops.softplus(logit) - target * logit
        return keras.ops.sum(terms * mask, axis=-1) / keras.ops.maximum(keras.ops.sum(mask, axis=-1), 1.0)

    model = keras.Sequential(
        [
            keras.Input((features.shape[1],)),
            keras.layers.Dense(targets.shape[1], kernel_initializer="zeros", dtype="float32"),
        ]
    )
    model.compile(keras.optimizers.Adam(RATE), loss=loss)
    rng, history, best = np.random.default_rng(seed), [], None
    for epoch in range(1, EPOCHS + 1):
        order = rng.permutation(len(features))
        fitted = model.fit(features[order], targets[order], batch_size=BATCH, shuffle=False, verbose=0)
        kernel, bias = (np.asarray(value, np.float64) for value in model.layers[-1].get_weights())
        logits = held_out @ kernel + bias
        auc, before = metrics.macro_auc(val[1], task.probabilities(logits)), best
        if best is None or auc > best[0]:
            best = (auc, kernel, bias)
        history.append(
            {
                "epoch": epoch,
                "loss": fitted.history["loss"][0],
                "val_loss_img": cross_entropy(task, val[1], logits),
                "val_auc_img": auc,
                "best": best is not before,
            }
        )
    _check_auc(best[0])
    return _folded(scaler, best[1], best[2], tuple(history))


def neighbour_logits(
    task: Task,
    train: tuple[np.ndarray, np.ndarray],
    val: tuple[np.ndarray, np.ndarray],
    others: dict[str, np.ndarray],
    ks: tuple[int, ...] = KS,
) -> tuple[dict[str, np.ndarray], int]:
    """Returns the logits of weighted nearest neighbours for every split, and k, chosen by the macro AUC on `val`.

    The k training images of the largest cosine similarity s vote with weights exp(s / 0.07) (Wu et al. 2018, section
    3.4). Probabilities are clipped to 0.0001..0.9999, so that logits are finite.

    Args:
        task: of the targets.
        train, val: features [N, D] and targets [N, L].
        others: split -> features [M, D].
        ks: the numbers of neighbours to choose from; those above N are N.

    Raises:
        InputError: as in `logistic_regression`.
    """
    _check_classes(task, train[1])
    known = (train[1] >= 0).any(axis=1)
    features, targets = _unit(train[0][known]), train[1][known]
    ks = sorted({min(k, len(features)) for k in ks})
    aucs = {k: metrics.macro_auc(val[1], task.probabilities(_votes(task, features, targets, val[0], k))) for k in ks}
    k = max(ks, key=lambda number: (np.nan_to_num(aucs[number], nan=-1.0), -number))
    _check_auc(aucs[k])
    return {split: _votes(task, features, targets, rows, k) for split, rows in others.items()}, k


def _votes(task: Task, features: np.ndarray, targets: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """Logits [M, L] of queries [M, D] from unit features [N, D] and targets [N, L]."""
    shares = []
    for start in range(0, len(queries), 512):
        similarity = _unit(queries[start : start + 512]) @ features.T
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        weight = np.exp((np.take_along_axis(similarity, nearest, axis=1) - 1) / TEMPERATURE).astype(np.float64)
        votes = targets[nearest].astype(np.float64)  # [m, k, L]
        weights = weight[..., None] * (votes >= 0) + 1e-300
        shares.append((weights * np.maximum(votes, 0)).sum(axis=1) / weights.sum(axis=1))
    share = np.clip(np.concatenate(shares), SMALLEST, 1 - SMALLEST)
    if task.softmax:
        return np.log(share / share.sum(axis=1, keepdims=True))
    return np.log(share) - np.log1p(-share)


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def _standardised(task: Task, train: tuple[np.ndarray, np.ndarray]) -> tuple[StandardScaler, np.ndarray]:
    """The scaler of the images with a known label, and the scaled features of all images."""
    known = (train[1] >= 0).any(axis=1)
    scaler = StandardScaler().fit(train[0][known].astype(np.float64))
    return scaler, scaler.transform(train[0].astype(np.float64))


def _fitted(task: Task, features: np.ndarray, targets: np.ndarray, c: float) -> tuple[np.ndarray, np.ndarray]:
    """Kernel [D, L] and bias [L] of one multinomial regression, or of one regression per label."""
    if task.softmax:
        known = (targets >= 0).all(axis=1)
        fitted = _regression(features[known], targets[known].argmax(axis=1), c)
        kernel, bias = fitted.coef_.T, fitted.intercept_
        if targets.shape[1] == 2:  # scikit-learn fits the log-odds of the second class
            kernel, bias = np.concatenate([np.zeros_like(kernel), kernel], axis=1), np.array([0.0, bias[0]])
        return kernel, bias
    kernels, biases = [], []
    for target in targets.T:
        known = target >= 0
        labels = target[known].astype(int)
        if len(np.unique(labels)) == 2:
            fitted = _regression(features[known], labels, c)
            kernels.append(fitted.coef_[0])
            biases.append(fitted.intercept_[0])
        else:  # rule of succession, so that the logit is finite
            kernels.append(np.zeros(features.shape[1]))
            biases.append(np.log((labels.sum() + 1) / (len(labels) - labels.sum() + 1)))
    return np.stack(kernels, axis=1), np.array(biases)


def _regression(features: np.ndarray, labels: np.ndarray, c: float) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=c, max_iter=ITERATIONS).fit(features, labels)


def _folded(scaler: StandardScaler, kernel: np.ndarray, bias: np.ndarray, history: tuple) -> Linear:
    """The linear map of features that are not standardised."""
    kernel = kernel / scaler.scale_[:, None]
    return Linear(kernel, bias - scaler.mean_ @ kernel, history)


def _check_classes(task: Task, targets: np.ndarray) -> None:
    names = task.classes[-targets.shape[1] :]
    missing = [name for name, target in zip(names, targets.T, strict=True) if not (target == 1).any()]
    if task.by_label:
        single = [
            name for name, target in zip(names, targets.T, strict=True) if len(np.unique(target[target >= 0])) < 2
        ]
        if len(single) == len(names):
            raise InputError("no label has both outcomes among the training images; use more of them (--labels)")
        if single:
            log = logging.getLogger(__name__)
            log.warning("labels with one outcome in training get a constant logit: %s", ", ".join(single))
        return
    if targets.shape[1] == 1 and not (targets == 0).any():
        missing.append(task.classes[0])
    if missing:
        raise InputError(f"no training image has the class {' or '.join(missing)}; use more of the images (--labels)")


def _check_auc(auc: float) -> None:
    if not np.isfinite(auc):
        raise InputError("no label has both outcomes in the split val; build records with a larger --val-fraction")
