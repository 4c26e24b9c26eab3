"""The 95 % intervals of all scores of binary predictions, each by a method that suits it."""

from collections.abc import Mapping

import numpy as np

from kmura.metrics.binary import SCORES, confusion, scores
from kmura.metrics.clustered_auc import auc_interval, clustered_auc
from kmura.metrics.intervals import (
    WILSON,
    Interval,
    combined_halves,
    intervals,
    kappa_bounds,
    share_of_f1,
    wilson,
    with_width,
)


def binary_intervals(
    label, probability, patient, drawn: Mapping[str, np.ndarray], *, threshold: float = 0.5, names=SCORES
) -> dict[str, Interval]:
    """Returns scores with their 95 % intervals.

    The AUC has the interval of `auc_interval`, the other scores the percentiles over resamples of patients. If a score
    is the same in all resamples, such as a sensitivity of 1, its interval is Wilson's, whose number of cases is the
    number of patients that the score is computed from:

    - accuracy, precision, recall, specificity, npv: of the share.
    - f1: of tp / (tp + fp + fn), of which it is a function; f1_negative likewise of tn / (tn + fp + fn).
    - balanced_accuracy: of recall and specificity, combined.
    - kappa: of the accuracy, at the margins of the data.
    - ap: of a share of the positives (the binomial interval of Boyd, Eng & Page 2013 in the form of Wilson).
    - brier: of a share, which is conservative.
    - log_loss has no upper bound and then no interval.

    With one patient there are no intervals.

    Args:
        label: [N] 0 or 1.
        probability: [N] in 0..1.
        patient: [N] places of the patients, 0 or more.
        drawn: name -> score of each resample [R]; that of the AUC is not needed.
        threshold: a prediction is positive if p >= threshold.
        names: the scores, some of SCORES.
    """
    label, probability, patient = np.asarray(label), np.asarray(probability, float), np.asarray(patient)
    values = scores(label, probability, threshold=threshold)
    result = intervals({name: values[name] for name in names if name != "auc"}, drawn)
    if len(np.unique(patient)) > 1:
        bounds = _closed_forms(label, probability, patient, threshold, {name: v[0] for name, v in values.items()})
        for name, interval in result.items():
            if np.isnan(interval.low) and not np.isnan(interval.value) and name in bounds:
                result[name] = with_width(interval.value, *bounds[name], WILSON)
    if "auc" in names:
        result["auc"] = auc_interval(clustered_auc(label, probability, patient))
    return {name: result[name] for name in names}


def _closed_forms(label, probability, patient, threshold, values) -> dict[str, tuple[float, float]]:
    """Returns Wilson's intervals by score, without those that are undefined."""
    predicted, positive = probability >= threshold, label == 1
    behind = {
        "accuracy": np.ones(len(label), bool),
        "precision": predicted,
        "recall": positive,
        "specificity": ~positive,
        "npv": ~predicted,
        "ap": positive,
        "brier": np.ones(len(label), bool),
        "f1": predicted | positive,
        "f1_negative": ~(predicted & positive),
    }
    counts = {name: len(np.unique(patient[rows])) for name, rows in behind.items()}
    bounds = {
        name: tuple(map(float, wilson(values[name], count)))
        for name, count in counts.items()
        if name not in ("f1", "f1_negative") and count and not np.isnan(values[name])
    }
    for name in ("f1", "f1_negative"):
        if counts[name] and not np.isnan(values[name]):
            bounds[name] = share_of_f1(values[name], counts[name])
    shares = {name: Interval(values[name], *bound) for name, bound in bounds.items()}
    if "recall" in shares and "specificity" in shares:
        bounds["balanced_accuracy"] = combined_halves(shares["recall"], shares["specificity"])
    tp, fp, fn, tn = (float(cell[0]) for cell in confusion(label, probability, threshold))
    if "accuracy" in shares and not np.isnan(values["kappa"]):
        chance = ((tp + fp) * (tp + fn) + (fn + tn) * (fp + tn)) / len(label) ** 2
        bounds["kappa"] = kappa_bounds(shares["accuracy"], chance)
    return bounds
