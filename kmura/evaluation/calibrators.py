"""Calibration of probabilities and choice of thresholds; both are fitted on one split and applied to others."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import optimize, special, stats
from sklearn.isotonic import IsotonicRegression

from kmura import metrics
from kmura.errors import InputError, check_choice

METHODS = ("temperature", "platt", "isotonic")
_STEEPEST = 100.0  # largest slope; it would diverge on separable data
TINY = 1e-12  # probabilities are clipped to TINY and 1 - TINY before their logit is computed


@dataclasses.dataclass(frozen=True)
class Calibrator:
    """A monotone function from logit to probability.

    Attributes:
        method: `temperature` (sigmoid(logit / temperature), Guo et al. 2017), `platt` (sigmoid(logit / temperature +
            bias), Platt 1999 on the logit) or `isotonic` (Zadrozny & Elkan 2002).
        temperature: a value above 1 moves probabilities towards 0.5.
        bias: added to the scaled logit; corrects a shift of all logits, which a temperature cannot.
        knots: for isotonic, pairs (logit, probability); the function is linear between them.
    """

    method: str
    temperature: float = 1.0
    bias: float = 0.0
    knots: tuple[tuple[float, float], ...] = ()

    def __call__(self, logit) -> np.ndarray:
        """Returns the probabilities [N] of logits [N]."""
        logit = np.asarray(logit, float)
        if self.method != "isotonic":
            return special.expit(logit / self.temperature + self.bias)
        at, probability = np.array(self.knots).T
        return np.interp(logit, at, probability)


def logits_of(probability) -> np.ndarray:
    """Returns the finite logits [N] of probabilities [N], which are clipped to 1e-12 and 1 - 1e-12."""
    return special.logit(np.clip(np.asarray(probability, float), TINY, 1 - TINY))


def fit_calibrator(method: Literal["temperature", "platt", "isotonic"], label, logit) -> Calibrator:
    """Returns the calibrator with the largest likelihood (isotonic: the least squared error) on these predictions.

    A small sample does not justify probabilities of 0 or 1. Platt's method is therefore fitted to the targets
    (n+ + 1) / (n+ + 2) and 1 / (n- + 2) of Platt (1999) instead of 1 and 0, which also keeps the slope finite if the
    classes are separable. Isotonic probabilities stay between 1 / (n + 2) and 1 - 1 / (n + 2). A temperature is at
    least 1 / 100.

    Args:
        method: see `Calibrator`.
        label: labels [N], 0 or 1.
        logit: logits [N], finite.

    Raises:
        InputError: the method is unknown, a logit is not finite, or there is only one class.
    """
    label, logit = np.asarray(label, float), np.asarray(logit, float)
    check_choice("calibration method", method, METHODS)
    if not np.isfinite(logit).all():
        raise InputError(
            "calibration needs finite logits, but some are not; run kmura evaluate again to make the predictions"
        )
    if len(np.unique(label)) < 2:
        raise InputError("calibration needs both classes in the split that it is fitted on; choose another split")
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
    """Returns a sentence if the share of positives differs significantly between two splits, else "".

    The test is Fisher's exact test at p < 0.05.

    Args:
        fitted, used: labels [N] of the split for fitting and labels [M] of the split for use, 0 or 1.
    """
    counts = [[int(np.sum(np.asarray(labels) == value)) for value in (1, 0)] for labels in (fitted, used)]
    p = stats.fisher_exact(counts)[1] if all(map(sum, counts)) else 1.0
    if p >= 0.05:
        return ""
    percent, other_percent = (100 * positive / (positive + negative) for positive, negative in counts)
    return (
        f"{percent:.0f} % of the cases that calibration and thresholds were fitted on are positive, but "
        f"{other_percent:.0f} % of the cases here (p = {p:.2g}); calibrated probabilities reflect the former prevalence"
    )


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
    """A threshold and the rule that chose it; positive is p >= threshold."""

    rule: str
    threshold: float


def operating_point(rule: str, label, probability) -> OperatingPoint:
    """Returns the threshold that a rule chooses on these predictions.

    Args:
        rule: a number such as `0.5` (the threshold itself); `max_f1`; `youden` (largest sensitivity + specificity - 1,
            Youden 1950); `sensitivity>=X` (the highest threshold that reaches it); `specificity>=X` (the lowest). Ties
            of `max_f1` and `youden` give the lower threshold. Thresholds lie halfway between neighbouring
            probabilities.
        label: labels [N], 0 or 1.
        probability: probabilities [N], 0 to 1.

    Raises:
        InputError: the rule is unknown, X is outside 0 to 1, or there is only one class.
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
        raise InputError(f"threshold rule {rule!r}: {fixed:g} is outside 0 to 1; choose a value within it")
    if fixed is not None and not wanted:
        return OperatingPoint(rule, fixed)
    label, probability = np.asarray(label), np.asarray(probability, float)
    if len(np.unique(label)) < 2:
        raise InputError(
            f"threshold rule {rule!r} needs both classes in the split that it is fitted on; choose another split"
        )
    values = np.unique(probability)
    thresholds = np.r_[values[0], (values[:-1] + values[1:]) / 2, np.nextafter(values[-1], np.inf)]
    positives = np.array([(probability[label == value][:, None] >= thresholds).sum(0) for value in (1, 0)])
    tp, fp = (counts.astype(np.int64) for counts in positives)
    n_positive, n_negative = int(np.sum(label == 1)), int(np.sum(label == 0))
    if name == "sensitivity":  # counts with a tolerance, so that rounding does not matter
        chosen = np.flatnonzero(tp >= fixed * n_positive - 1e-9)[-1]
    elif name == "specificity":
        chosen = np.flatnonzero(n_negative - fp >= fixed * n_negative - 1e-9)[0]
    elif name == "youden":
        chosen = np.argmax(tp * n_negative - fp * n_positive)
    else:
        chosen = np.argmax(2 * tp / (tp + fp + n_positive))
    return OperatingPoint(rule, float(thresholds[chosen]))


def calibrated_levels(table, calibrator: Calibrator | None, level: str, pooling: str = "mean", k: int = 2):
    """Returns the image and study probabilities of a table, calibrated at the level that the calibrator was fitted at.

    At level `image`, each image is calibrated before the images of a study are pooled. At level `study`, images are not
    calibrated, and the pooled probability of the study is.

    Returns:
        The probabilities of the images [N], and `metrics.Studies` whose `value` is the probability of each study.
    """
    probability = table["probability"].to_numpy()
    study = (table["area"] + "/" + table["study"]).to_numpy()  # a patient's study1 may exist in two areas
    if calibrator is not None and level == "image":
        probability = calibrator(table["logit"].to_numpy())
    pooled = metrics.pool_studies(study, probability, pooling, k=k)
    if calibrator is not None and level == "study":
        pooled = dataclasses.replace(pooled, value=calibrator(logits_of(pooled.value)))
    return probability, pooled
