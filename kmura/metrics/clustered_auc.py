"""The AUC of clustered data: variance, interval, and the comparison of two models on the same cases.

Cases of one patient are not independent. Obuchowski (1997) sums the placements of DeLong et al. (1988) over the cases
of a patient; with one case per patient her variance is that of DeLong et al.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import special, stats

from kmura.metrics.intervals import BOUNDS, LOGIT, SCORE, Interval, Z, mean_bounds, score_interval, with_width


@dataclasses.dataclass(frozen=True)
class ClusteredAuc:
    """An AUC and what each of I patients contributes to its variance.

    Attributes:
        value: the AUC; NaN if a class is absent or a score is NaN.
        of_positives: [I] sum of (V - AUC) / M over the M positives of the patient, where V is the share of negatives
            with a lower score (ties count one half): eq. 2 of DeLong et al. (1988).
        of_negatives: [I] the same of (V - AUC) / N over the N negatives; V is the share of positives with a higher
            score (eq. 3).
        positives, negatives, patients: numbers of patients with a positive, with a negative, and with any case.
    """

    value: float
    of_positives: np.ndarray
    of_negatives: np.ndarray
    positives: int
    negatives: int
    patients: int

    @property
    def variance(self) -> float:
        """The variance of the AUC, eqs. 4 and 5 of Obuchowski (1997); NaN with fewer than two patients of a class."""
        return self.variance_of(self.of_positives, self.of_negatives)

    def variance_of(self, of_positives: np.ndarray, of_negatives: np.ndarray) -> float:
        """The variance of a sum of contributions of the same patients, such as the difference of two AUCs."""
        if min(self.positives, self.negatives) < 2:
            return np.nan
        return float(
            self.positives / (self.positives - 1) * (of_positives @ of_positives)
            + self.negatives / (self.negatives - 1) * (of_negatives @ of_negatives)
            + 2 * self.patients / (self.patients - 1) * (of_positives @ of_negatives)
        )


def clustered_auc(label, score, patient, number: int | None = None) -> ClusteredAuc:
    """Returns the AUC with the contributions of the patients. Placements are midranks (Sun & Xu 2014, algorithm 2).

    Args:
        label: [N] 0 or 1.
        score: [N].
        patient: [N] places of the patients, 0 to number - 1.
        number: number of patients, I; None is the largest place plus 1. Patients without cases contribute 0.
    """
    label, score, patient = np.asarray(label), np.asarray(score, float), np.asarray(patient)
    number = number or (int(patient.max()) + 1 if len(patient) else 0)
    where = [patient[label == value] for value in (1, 0)]
    positive, negative = score[label == 1], score[label == 0]
    counts = [len(np.unique(places)) for places in (*where, patient)]
    m, n = len(positive), len(negative)
    if not m or not n or np.isnan(score).any():
        return ClusteredAuc(np.nan, np.zeros(number), np.zeros(number), *counts)
    together = stats.rankdata(np.concatenate([positive, negative]))
    above = (together[:m] - stats.rankdata(positive)) / n
    below = 1 - (together[m:] - stats.rankdata(negative)) / m
    value = float(above.mean())
    return ClusteredAuc(
        value,
        np.bincount(where[0], (above - value) / m, number),
        np.bincount(where[1], (below - value) / n, number),
        *counts,
    )


def auc_interval(auc: ClusteredAuc) -> Interval:
    """Returns an AUC with its 95 % interval.

    It is symmetric on the scale of the logit: logit(A) +- t sqrt(variance) / (A (1 - A)), with the variance of
    Obuchowski (1997) and the 97.5th percentile t of Student's distribution, whose degrees of freedom are the number of
    patients of the rarer class minus 1: the variance is itself an estimate. Where that does not exist (an AUC of 0 or
    1, one patient of a class, equal scores) it is `score_interval` of the numbers of patients. It is undefined if the
    AUC is, or if all cases are of one patient.
    """
    value, variance = auc.value, auc.variance
    if np.isnan(value) or auc.patients < 2:
        return Interval(value, np.nan, np.nan)
    return _logit_interval(value, variance, min(auc.positives, auc.negatives)) or with_width(
        value, *score_interval(value, auc.positives, auc.negatives), SCORE
    )


def _logit_interval(value: float, variance: float, patients: int) -> Interval | None:
    if not 0 < value < 1 or not variance > 1e-15:
        return None
    half = stats.t.ppf(0.975, patients - 1) * np.sqrt(variance) / (value * (1 - value))
    return with_width(value, *special.expit(special.logit(value) + np.array([-half, half])), LOGIT)


def mean_auc_interval(aucs: Sequence[ClusteredAuc], share: np.ndarray) -> Interval:
    """Returns the weighted mean of AUCs over the same patients, with its 95 % interval.

    The contributions of a patient to all AUCs are added, so that the interval allows for AUCs that depend on the same
    patients. Where the variance does not exist, the bounds are the means of those of `auc_interval`.

    Args:
        aucs: of classes or areas; `clustered_auc` with the same patients.
        share: [K] weights, which sum to 1.
    """
    value = float(share @ np.array([auc.value for auc in aucs]))
    if np.isnan(value):
        return Interval(value, np.nan, np.nan)
    parts = []
    for auc in aucs:
        scales = [np.sqrt(count / (count - 1)) if count > 1 else np.nan for count in (auc.positives, auc.negatives)]
        parts.append(scales[0] * auc.of_positives + scales[1] * auc.of_negatives)
    of_patients = share @ np.stack(parts)
    rarest = min(min(auc.positives, auc.negatives) for auc in aucs)
    exact = _logit_interval(value, float(of_patients @ of_patients), rarest)
    return exact or with_width(value, *mean_bounds([auc_interval(auc) for auc in aucs], share), BOUNDS)


@dataclasses.dataclass(frozen=True)
class DeLong:
    """A difference of two AUCs; NaN where undefined.

    Attributes:
        difference: AUC of the second model minus that of the first.
        low, high: 95 % interval of the difference by normal approximation.
        p: two-sided p-value for the null hypothesis of equal AUCs.
    """

    difference: float
    low: float
    high: float
    p: float


def delong(label, one, other, patient=None) -> DeLong:
    """Returns the difference of two correlated AUCs with its interval and p-value.

    The test of DeLong, DeLong & Clarke-Pearson (1988); with patients, that of Obuchowski (1997), who allows for several
    cases per patient. Interval and p-value are undefined with fewer than two patients of a class, and if the variance
    is 0: then the difference is the same for every patient, and such few or extreme data do not show how it would vary.

    Args:
        label: [N] 0 or 1.
        one, other: [N] scores of two models for the same cases.
        patient: [N] patient ids; None treats cases as independent.
    """
    label = np.asarray(label)
    patient = np.arange(len(label)) if patient is None else np.unique(np.asarray(patient), return_inverse=True)[1]
    first, second = (clustered_auc(label, score, patient) for score in (one, other))
    difference = second.value - first.value
    variance = second.variance_of(second.of_positives - first.of_positives, second.of_negatives - first.of_negatives)
    if np.isnan(difference) or np.array_equal(one, other):
        return DeLong(difference, np.nan, np.nan, 1.0 if difference == 0 and not np.isnan(variance) else np.nan)
    if not variance > 1e-15:
        return DeLong(difference, np.nan, np.nan, np.nan)
    error = np.sqrt(variance)
    low, high = difference + np.array([-Z, Z]) * error
    return DeLong(difference, float(low), float(high), float(2 * stats.norm.sf(abs(difference) / error)))
