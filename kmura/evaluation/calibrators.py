"""Probabilities that mean what they say, and thresholds for a purpose: both fitted on one split, used on another."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import optimize, special, stats
from sklearn.isotonic import IsotonicRegression

from kmura import metrics
from kmura.errors import InputError, check_choice

METHODS = ("temperature", "platt", "isotonic")
_STEEPEST = 100.0  # bounds of the slope: separable data would drive it to infinity
TINY = 1e-12  # probabilities are kept this far from 0 and 1 before their logit is taken


@dataclasses.dataclass(frozen=True)
class Calibrator:
    """A monotone function from logit to probability.

    Attributes:
        method: `temperature` (sigmoid(logit / temperature), Guo et al. 2017), `platt` (sigmoid(logit / temperature +
            bias), Platt 1999 on the logit) or `isotonic` (Zadrozny & Elkan 2002).
        temperature: above 1 makes probabilities less sure.
        bias: added to the logit; what a shift of all logits needs, which no temperature repairs.
        knots: of isotonic, pairs (logit, probability) between which it is linear.
    """

    method: str
    temperature: float = 1.0
    bias: float = 0.0
    knots: tuple[tuple[float, float], ...] = ()

    def __call__(self, logit) -> np.ndarray:
        """Probabilities [N] of logits [N]."""
        logit = np.asarray(logit, float)
        if self.method != "isotonic":
            return special.expit(logit / self.temperature + self.bias)
        at, probability = np.array(self.knots).T
        return np.interp(logit, at, probability)


def logits_of(probability) -> np.ndarray:
    """The logits [N] of probabilities [N], finite: probabilities are kept 1e-12 away from 0 and 1."""
    return special.logit(np.clip(np.asarray(probability, float), TINY, 1 - TINY))


def fit_calibrator(method: Literal["temperature", "platt", "isotonic"], label, logit) -> Calibrator:
    """The calibrator of largest likelihood (isotonic: of least squared error) on these predictions.

    A few cases never prove a probability of 0 or 1: Platt's method is fitted to his targets (n+ + 1) / (n+ + 2) and
    1 / (n- + 2) in place of 1 and 0, which also keeps the slope finite where the classes are separable; isotonic is
    kept within 1 / (n + 2) of 0 and 1; a temperature is at least 1 / 100.

    Args:
        method: see `Calibrator`.
        label: [N] 0 or 1.
        logit: [N], finite.

    Raises:
        InputError: an unknown method, a logit that is no number, or one class only.
    """
    label, logit = np.asarray(label, float), np.asarray(logit, float)
    check_choice("calibration method", method, METHODS)
    if not np.isfinite(logit).all():
        raise InputError("calibration needs finite logits; the predictions hold some that are not")
    if len(np.unique(label)) < 2:
        raise InputError("calibration needs both classes in the split that it is fitted on")
    if method == "isotonic":
        end = 1 / (len(label) + 2)
        fitted = IsotonicRegression(y_min=end, y_max=1 - end, out_of_bounds="clip").fit(logit, label)
        knots = zip(fitted.X_thresholds_.tolist(), fitted.y_thresholds_.tolist(), strict=True)
        return Calibrator(method, knots=tuple(knots))
    if method == "platt":
        positives = label.sum()
        label = np.where(label == 1, (positives + 1) / (positives + 2), 1 / (len(label) - positives + 2))
    columns = np.stack([logit, np.ones_like(logit)][: 1 if method == "temperature" else 2], axis=1)

    def loss(parameters):
        score = columns @ parameters
        return np.mean(np.logaddexp(0, score) - label * score), columns.T @ (special.expit(score) - label) / len(label)

    bounds = [(1 / _STEEPEST, _STEEPEST), (None, None)][: columns.shape[1]]
    start = np.array([1.0, 0.0])[: columns.shape[1]]
    options = {"ftol": 1e-14, "gtol": 1e-10}
    slope, *bias = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    return Calibrator(method, temperature=float(1 / slope), bias=float(bias[0]) if bias else 0.0)


def prevalence_shift(fitted: Sequence[int], used: Sequence[int]) -> str:
    """A sentence if the share of positives differs between two splits beyond chance (Fisher's exact test), else "".

    Args:
        fitted, used: labels [N], [M] of the split that something is fitted on and of the one it is used on, 0 or 1.
    """
    counts = [[int(np.sum(np.asarray(labels) == value)) for value in (1, 0)] for labels in (fitted, used)]
    p = stats.fisher_exact(counts)[1] if all(map(sum, counts)) else 1.0
    if p >= 0.05:
        return ""
    here, there = (100 * positive / (positive + negative) for positive, negative in counts)
    return (
        f"{here:.0f} % of the cases that calibration and thresholds were fitted on are positive, {there:.0f} % of "
        f"those they are used on (p = {p:.2g}): calibrated probabilities carry the former's prevalence"
    )


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
    """A threshold and the rule that chose it; positive is p >= threshold."""

    rule: str
    threshold: float


def operating_point(rule: str, label, probability) -> OperatingPoint:
    """The threshold that a rule chooses on these predictions.

    Args:
        rule: `0.5` or any number (itself); `max_f1`; `youden` (largest sensitivity + specificity - 1, Youden 1950);
            `sensitivity>=X` (the highest threshold that reaches it); `specificity>=X` (the lowest). Ties of the first
            two go to the lower threshold. Thresholds lie halfway between neighbouring probabilities.
        label: [N] 0 or 1.
        probability: [N], 0..1.

    Raises:
        InputError: an unknown rule, X outside 0 to 1, or one class only.
    """
    name, _, wanted = (part.strip() for part in rule.partition(">="))
    try:
        fixed = float(wanted or name)
    except ValueError:
        fixed = None
    if (fixed is None) != (name in ("max_f1", "youden") and not wanted) or (
        wanted and name not in ("sensitivity", "specificity")
    ):
        raise InputError(
            f"threshold rule {rule!r} is unknown; give a number, max_f1, youden, sensitivity>=X or specificity>=X"
        )
    if fixed is not None and not 0 <= fixed <= 1:
        raise InputError(f"threshold rule {rule!r}: {fixed:g} is outside 0 to 1")
    if fixed is not None and not wanted:
        return OperatingPoint(rule, fixed)
    label, probability = np.asarray(label), np.asarray(probability, float)
    if len(np.unique(label)) < 2:
        raise InputError(f"threshold rule {rule!r} needs both classes in the split that it is fitted on")
    values = np.unique(probability)
    thresholds = np.r_[values[0], (values[:-1] + values[1:]) / 2, np.nextafter(values[-1], np.inf)]
    positives = np.array([(probability[label == value][:, None] >= thresholds).sum(0) for value in (1, 0)])
    tp, fp = (counts.astype(np.int64) for counts in positives)
    n_positive, n_negative = int(np.sum(label == 1)), int(np.sum(label == 0))
    if name == "sensitivity":  # whole numbers: a share that rounding misses by 1e-16 is reached
        chosen = np.flatnonzero(tp >= fixed * n_positive - 1e-9)[-1]
    elif name == "specificity":
        chosen = np.flatnonzero(n_negative - fp >= fixed * n_negative - 1e-9)[0]
    elif name == "youden":
        chosen = np.argmax(tp * n_negative - fp * n_positive)
    else:
        chosen = np.argmax(2 * tp / (tp + fp + n_positive))
    return OperatingPoint(rule, float(thresholds[chosen]))


def calibrated_levels(table, calibrator: Calibrator | None, level: str, pooling: str = "mean", k: int = 2):
    """Image and study probabilities of a table, with a calibrator fitted at `level` in its place.

    At level `image` every image is calibrated and studies pool the outcome; at level `study` images stay as they are
    and the pooled probability of the study is calibrated.

    Returns:
        probabilities of the images [N], and `metrics.Studies` whose `value` are those of the studies.
    """
    probability = table["probability"].to_numpy()
    study = (table["area"] + "/" + table["study"]).to_numpy()  # a patient's study1 may exist in two areas
    if calibrator is not None and level == "image":
        probability = calibrator(table["logit"].to_numpy())
    pooled = metrics.pool_studies(study, probability, pooling, k=k)
    if calibrator is not None and level == "study":
        pooled = dataclasses.replace(pooled, value=calibrator(logits_of(pooled.value)))
    return probability, pooled
