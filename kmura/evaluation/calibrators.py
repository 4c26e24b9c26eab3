"""Calibration of probabilities and choice of thresholds; both are fitted on one split and applied to others."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import optimize, special, stats
from sklearn.isotonic import IsotonicRegression

from kmura import metrics
from kmura.errors import InputError, check_choice
from kmura.metrics import TINY
from kmura.runs.predictions import study_keys_of

METHODS = ("temperature", "platt", "isotonic")
_STEEPEST = 100.0  # largest slope of logits whose mean absolute value is 1; it would diverge on separable data
_FLATTEST = 0.01  # smallest slope of such logits; it would be negative if higher scores were less often positive
_EXTREME = 13.0  # logits beyond, probabilities below 2e-6, may stand for scores of exactly 0 or 1
_CLIPPED = -float(special.logit(TINY))  # logit of a clipped probability
RELEVANT_ODDS = 1.25  # a smaller change of the odds of the prevalence is not relevant to calibration


@dataclasses.dataclass(frozen=True)
class Calibrator:
    """A monotone function from logit to probability.

    Attributes:
        method: `temperature` (sigmoid(logit / temperature), Guo et al. 2017), `platt` (sigmoid(logit / temperature +
            bias), Platt 1999 on the logit) or `isotonic` (Zadrozny & Elkan 2002).
        temperature: a value above 1 moves probabilities towards 0.5.
        bias: added to the scaled logit; corrects a shift of all logits, which a temperature cannot.
        knots: for isotonic, pairs (logit, probability); the function is linear between them.
        limits: for temperature and Platt, logits are clipped to these limits first, see `fit_calibrator`; None if the
            scores that it was fitted to did not contain any of exactly 0 or 1.
    """

    method: str
    temperature: float = 1.0
    bias: float = 0.0
    knots: tuple[tuple[float, float], ...] = ()
    limits: tuple[float, float] | None = None

    def __call__(self, logit) -> np.ndarray:
        """Returns the probabilities [N] of logits [N]."""
        logit = np.asarray(logit, float)
        if self.method != "isotonic":
            logit = logit if self.limits is None else np.clip(logit, *self.limits)
            return special.expit(logit / self.temperature + self.bias)
        at, probability = np.array(self.knots).T
        return np.interp(logit, at, probability)


def logits_of(probability) -> np.ndarray:
    """Returns the finite logits [N] of probabilities [N], which are clipped to `metrics.TINY` and 1 - TINY."""
    return special.logit(np.clip(np.asarray(probability, float), TINY, 1 - TINY))


def fit_calibrator(method: Literal["temperature", "platt", "isotonic"], label, logit) -> Calibrator:
    """Returns the calibrator with the largest likelihood (isotonic: the least squared error) on these predictions.

    A small sample does not justify probabilities of 0 or 1. Platt's method is therefore fitted to the targets
    (n+ + 1) / (n+ + 2) and 1 / (n- + 2) of Platt (1999) instead of 1 and 0, which also keeps the slope finite if the
    classes are separable. Isotonic probabilities stay between 1 / (n + 2) and 1 - 1 / (n + 2). The slope of a
    temperature is at most 100 for logits whose mean absolute value is 1, and in proportion for others.

    Scores of exactly 0 or 1, such as those of a detector that found nothing, have no logit; the clipped ones are so far
    from the others that they would determine the slope of temperature and Platt. These methods are therefore fitted to
    the other scores, and each group of such scores is moved to the logit at which the calibrator has its share of
    positives, (n+ + 1) / (n + 2), but not past the nearest other score (`Calibrator.limits`). A group is the lowest or
    highest logit, if it is beyond 13 and more than 1 from the next, and that of several cases or of a clipped
    probability.

    Where the logits have a very large scale, the scores without a logit can be most of the scores. If temperature or
    Platt fitted to the others would have a larger log loss on all scores than the logits themselves, the calibrator is
    fitted to all scores, or leaves the logits as they are, whichever has the lower log loss.

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
    ends = _hard_scores(logit)
    inner = ~(ends[0] | ends[1])
    if len(np.unique(label[inner])) < 2:  # nothing to fit a slope to but the hard scores
        ends, inner = np.zeros_like(ends), np.ones_like(inner)
    slope, bias = _fitted(method, label[inner], logit[inner])
    limits = tuple(
        _place_of(label[end], slope, bias, logit[inner], sign) for end, sign in zip(ends, (-1, 1), strict=True)
    )
    fitted = Calibrator(method, float(1 / slope), float(bias), limits=limits if ends.any() else None)
    unchanged = Calibrator(method)
    # without such scores, only Platt's targets, which are those of a small sample, can increase the loss
    if not ends.any() or _loss_of(fitted, label, logit) <= _loss_of(unchanged, label, logit):
        return fitted
    slope, bias = _fitted(method, label, logit)
    of_all = Calibrator(method, float(1 / slope), float(bias))
    return min(of_all, unchanged, key=lambda calibrator: _loss_of(calibrator, label, logit))


def _loss_of(calibrator: Calibrator, label: np.ndarray, logit: np.ndarray) -> float:
    """Returns the log loss of the calibrated probabilities, clipped as everywhere else."""
    return float(metrics.log_loss(label, calibrator(logit))[0])


def _fitted(method: str, label: np.ndarray, logit: np.ndarray) -> tuple[float, float]:
    """Returns slope and bias with the largest likelihood; the bias of a temperature is 0."""
    if method == "platt":
        positives = label.sum()
        label = np.where(label == 1, (positives + 1) / (positives + 2), 1 / (len(label) - positives + 2))
    scale = np.abs(logit).mean() or 1.0
    columns = np.stack([logit / scale, np.ones_like(logit)][: 1 if method == "temperature" else 2], axis=1)

    def loss(parameters):
        score = columns @ parameters
        return np.mean(np.logaddexp(0, score) - label * score), columns.T @ (special.expit(score) - label) / len(label)

    bounds = [(_FLATTEST, _STEEPEST), (None, None)][: columns.shape[1]]
    start = np.array([1.0, 0.0])[: columns.shape[1]]
    options = {"ftol": 1e-14, "gtol": 1e-10}
    slope, *bias = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    return slope / scale, bias[0] if bias else 0.0


def _hard_scores(logit: np.ndarray) -> np.ndarray:
    """Returns which logits stand for scores of exactly 0 and of exactly 1, bool [2, N]; see `fit_calibrator`."""
    ends = []
    for sign in (-1, 1):
        values, counts = np.unique(-sign * logit, return_counts=True)  # the end of interest is the first value
        hard = len(values) > 1 and values[0] < -_EXTREME and values[1] - values[0] > 1
        hard = hard and (counts[0] > 1 or abs(values[0] + _CLIPPED) < 0.1)
        ends.append(-sign * logit == values[0] if hard else np.zeros(len(logit), bool))
    return np.array(ends)


def _place_of(label: np.ndarray, slope: float, bias: float, inner: np.ndarray, sign: int) -> float:
    """Returns the logit that scores of exactly 0 (sign -1) or 1 (sign 1) with these labels are moved to."""
    if not len(label):
        return sign * 1e6  # nothing to clip: far beyond all logits, and finite in JSON
    place = (special.logit((label.sum() + 1) / (len(label) + 2)) - bias) / slope
    return float(min(place, inner.min()) if sign < 0 else max(place, inner.max()))


def prevalence_shift(fitted: Sequence[int], used: Sequence[int], *, patients: tuple | None = None) -> str:
    """Returns a sentence if the share of positives differs relevantly and significantly between two splits, else "".

    The odds must differ by a factor of 1.25 or more, and by more than chance (p < 0.05). The test is the score test of
    two proportions with variances that allow for several cases per patient (Rao & Scott 1992), on Student's t.

    Args:
        fitted, used: labels [N] of the split for fitting and labels [M] of the split for use, 0 or 1.
        patients: patient ids [N] and [M]; None treats cases as independent.
    """
    labels = [np.asarray(labels, float) for labels in (fitted, used)]
    if not all(map(len, labels)):
        return ""
    patients = patients or tuple(map(np.arange, map(len, labels)))
    shares, pooled = [label.mean() for label in labels], np.concatenate(labels).mean()
    variance, freedom = 0.0, -2
    for label, patient in zip(labels, patients, strict=True):
        _, place = np.unique(np.asarray(patient), return_inverse=True)
        residuals = np.bincount(place, label - pooled)
        number = len(residuals)
        variance += number / max(number - 1, 1) * (residuals**2).sum() / len(label) ** 2
        freedom += number
    if freedom < 1 or variance == 0:
        return ""
    p = 2 * stats.t.sf(abs(shares[1] - shares[0]) / np.sqrt(variance), freedom)
    change = np.diff(special.logit(shares))[0]  # infinite if a split has one class
    if p >= 0.05 or abs(change) < np.log(RELEVANT_ODDS):
        return ""
    percent, other_percent = (f"{100 * share:.3g}" for share in shares)
    return (
        f"{percent} % of the cases that calibration and thresholds were fitted on are positive, but "
        f"{other_percent} % of the cases here (p = {p:.2g}, by patient); calibrated probabilities reflect the former "
        "prevalence"
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
    if np.isnan(probability).any():
        raise InputError(f"threshold rule {rule!r} needs probabilities, but some are not numbers; evaluate again")
    values, place = np.unique(probability, return_inverse=True)
    middle = (values[:-1] + values[1:]) / 2
    middle = np.where(middle > values[:-1], middle, values[1:])  # neighbouring floating point numbers
    thresholds = np.r_[values[0], middle, np.nextafter(values[-1], np.inf)]
    tp, fp = (
        np.r_[np.cumsum(np.bincount(place[label == value], minlength=len(values))[::-1])[::-1], 0] for value in (1, 0)
    )
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
    study = study_keys_of(table)
    if calibrator is not None and level == "image":
        probability = calibrator(table["logit"].to_numpy())
    pooled = metrics.pool_studies(study, probability, pooling, k=k)
    if calibrator is not None and level == "study":
        pooled = dataclasses.replace(pooled, value=calibrator(logits_of(pooled.value)))
    return probability, pooled
