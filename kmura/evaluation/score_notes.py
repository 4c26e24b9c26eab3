"""Notes beside the scores of a split: what its data lack, and what calibration did to it."""

import numpy as np
import pandas as pd
from scipy import stats

from kmura import metrics


def notes_on_data(split: str, rows: pd.DataFrame, label: np.ndarray, draws: metrics.PatientBootstrap) -> list[str]:
    """Returns notes on the classes, resamples and patients of a split.

    Args:
        split: its name.
        rows: its predictions.
        label: [N], of the images with a known label.
        draws: the resamples of its patients.
    """
    notes = []
    if len(np.unique(label)) < 2:
        why = "all labels are of one class" if len(label) else "no label is known"
        notes += [f"{split}, {level} level: AUC is undefined, since {why}" for level in ("image", "study")]
    if draws.redrawn:
        notes.append(
            f"{split}: {draws.redrawn} bootstrap resamples without both classes were drawn again, for "
            f"{draws.resamples} that have both; intervals from so few patients of a class are rough"
        )
    known = rows[rows["label"] >= 0]
    blank = int((known["patient"].fillna("").astype(str).str.strip() == "").sum())
    if blank:
        notes.append(f"{split}: {blank} images have no patient; each of their studies counts as a patient of its own")
    return notes


def notes_on_calibration(split: str, fit_on: str, units, levels) -> list[str]:
    """Returns notes if calibration made the scores of studies worse, or left or made them miscalibrated.

    Args:
        split: its name.
        fit_on: split that the calibrator was fitted on.
        units: `kmura.evaluation.scoring.Units` before and after calibration.
        levels: their `LevelScores`.
    """
    after, notes, where, fitted_here = units[1], [], f"{split}, study level", split == fit_on
    if not fitted_here:
        advice = f"{fit_on} may be too small, or its data may differ"
        for name, losses in (
            ("log loss", [metrics.log_losses(one.label, one.probability) for one in units]),
            ("share of errors at 0.5", [(one.probability >= 0.5) != (one.label == 1) for one in units]),
        ):
            old, new = (np.asarray(values, float) for values in losses)
            if _is_more(new - old, after.patient):
                notes.append(
                    f"{where}: calibration increased the {name} from {old.mean():.3f} to {new.mean():.3f}; {advice}"
                )
    errors = [level.calibration["ece"] for level in levels]
    if _is_miscalibrated(errors[1]):
        made = "left" if _is_miscalibrated(errors[0]) else "made"
        other = "another --calibration, such as isotonic, may fit better"
        notes.append(
            f"{where}: calibration {made} the probabilities miscalibrated (ece {errors[1].value:.3f}, at most "
            f"{errors[1].high:.3f} by chance; before {errors[0].value:.3f}); "
            + (other if fitted_here else f"{fit_on} may differ from {split}, or {other}")
        )
    return notes


def _is_more(increase: np.ndarray, patient: np.ndarray) -> bool:
    """Returns whether a mean increase [N] is 0.001 or more and beyond noise (one-sided p < 0.005, by patient)."""
    _, place = np.unique(patient, return_inverse=True)
    if not len(increase) or place.max() < 1:
        return False
    mean, number = increase.mean(), int(place.max()) + 1
    sums = np.bincount(place, increase - mean)
    error = np.sqrt(number / (number - 1) * (sums**2).sum()) / len(increase)
    return bool(mean >= 0.001 and mean > stats.t.ppf(0.995, number - 1) * error)


def _is_miscalibrated(error: metrics.CalibrationError) -> bool:
    """Returns whether an error is 0.02 or more and clearly beyond what chance gives.

    Clearly is 1.5 times as far above the expectation as the 95th percentile: about p = 0.007 if errors were normal.
    """
    return error.value >= 0.02 and error.value > error.expected + 1.5 * (error.high - error.expected)
