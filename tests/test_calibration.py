"""Calibrators and operating points recover known parameters on one split and are applied to another."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, recall_score

from kmura import metrics
from kmura.errors import InputError
from kmura.evaluation.calibrators import (
    METHODS,
    calibrated_levels,
    fit_calibrator,
    logits_of,
    operating_point,
    prevalence_shift,
)


def truth(number, seed=0):
    """Returns labels and the logits from which they were drawn."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(0, 2, number)
    return (rng.random(number) < expit(logit)).astype(int), logit


def test_the_true_temperature_of_an_overconfident_model_is_recovered():
    label, logit = truth(60_000)
    found = fit_calibrator("temperature", label, logit / 0.5)  # overconfident: logits multiplied by 2
    assert found.temperature == pytest.approx(2, rel=0.02)
    assert found(logit / 0.5) == pytest.approx(expit(logit), abs=0.01)


@pytest.mark.slow
def test_a_shift_of_the_logits_requires_a_bias():
    label, logit = truth(60_000)
    shifted = logit / 0.5 + 1.5
    temperature, platt = (fit_calibrator(method, label, shifted) for method in ("temperature", "platt"))
    assert platt(shifted) == pytest.approx(expit(logit), abs=0.02)
    errors = [metrics.calibration_errors(label, fit(shifted))["ece"] for fit in (temperature, platt)]
    assert errors[0].value > 3 * errors[0].high and errors[1].value <= errors[1].high


def test_platt_scaling_is_logistic_regression_on_smoothed_targets():
    label, logit = truth(50, seed=3)
    positives = label.sum()
    target = np.where(label == 1, (positives + 1) / (positives + 2), 1 / (50 - positives + 2))
    rows, classes, weights = np.r_[logit, logit][:, None], np.repeat([1, 0], 50), np.r_[target, 1 - target]
    reference = LogisticRegression(C=1e12, tol=1e-10, max_iter=1000).fit(rows, classes, sample_weight=weights)
    found = fit_calibrator("platt", label, logit)
    assert 1 / found.temperature == pytest.approx(reference.coef_[0, 0], rel=1e-4)
    assert found.bias == pytest.approx(reference.intercept_[0], abs=1e-4)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from(METHODS))
def test_calibrators_are_monotonic_and_stay_in_range(seed, method):
    label, logit = truth(40, seed)
    label[:2] = 0, 1
    found = fit_calibrator(method, label, logit)(np.linspace(-40, 40, 200))
    assert (np.diff(found) >= -1e-12).all() and (found >= 0).all() and (found <= 1).all()


@pytest.mark.parametrize("method", METHODS)
def test_perfect_separation_stays_finite(method):
    found = fit_calibrator(method, [0, 0, 1, 1], [-2.0, -1.0, 1.0, 2.0])
    assert np.isfinite([found.temperature, found.bias]).all()
    ends = {"temperature": 0, "platt": 1 / 4, "isotonic": 1 / 6}[method]  # limited by the small number of cases
    assert found([-2.0, 2.0]) == pytest.approx([ends, 1 - ends], abs=0.06 if method == "platt" else 1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("beta", [0, 1], [0.0, 1.0]), "'beta' is unknown; choose one of temperature, platt, isotonic"),
        (("platt", [0, 1], [0.0, np.nan]), "finite logits"),
        (("platt", [1, 1], [0.0, 1.0]), "both classes"),
    ],
)
def test_data_that_cannot_be_fitted_is_rejected(arguments, message):
    with pytest.raises(InputError, match=message):
        fit_calibrator(*arguments)


def test_calibration_is_applied_at_the_level_where_it_was_fitted():
    label, logit = truth(300)
    table = pd.DataFrame({"area": "A", "study": [f"p/{n // 3}" for n in range(300)], "logit": logit})
    table["probability"] = expit(logit)
    half = fit_calibrator("temperature", label, logit * 2)
    images, studies = calibrated_levels(table, half, "image")
    assert images == pytest.approx(half(logit))
    assert studies.value == pytest.approx(half(logit).reshape(100, 3).mean(1))
    images, studies = calibrated_levels(table, half, "study")
    assert images == pytest.approx(expit(logit))
    assert studies.value == pytest.approx(half(logits_of(expit(logit).reshape(100, 3).mean(1))))


def test_a_significant_shift_of_prevalence_is_noted_and_a_random_one_is_not():
    assert "50 % of the cases" in prevalence_shift([0, 1] * 100, [0, 0, 0, 1] * 100)
    assert prevalence_shift([0, 1] * 20, [0, 1] * 19 + [0, 0]) == ""
    assert prevalence_shift([0, 1], []) == ""


def test_operating_points_satisfy_their_rule():
    label, logit = truth(400, seed=1)
    probability = np.round(expit(logit), 2)  # many ties
    every = np.r_[np.unique(probability), 1.1]
    for wanted in (0.0, 0.5, 0.9, 0.95, 1.0):
        threshold = operating_point(f"sensitivity>={wanted}", label, probability).threshold
        assert recall_score(label, probability >= threshold) >= wanted
        higher = every[every > threshold]
        assert all(recall_score(label, probability >= t) < wanted for t in higher[1:2])
        threshold = operating_point(f"specificity >= {wanted}", label, probability).threshold
        assert recall_score(label, probability >= threshold, pos_label=0) >= wanted
        lower = every[every < threshold]
        assert all(recall_score(label, probability >= t, pos_label=0) < wanted for t in lower[-1:])
    best = operating_point("max_f1", label, probability).threshold
    assert f1_score(label, probability >= best) == max(f1_score(label, probability >= t) for t in every)
    youden = operating_point("youden", label, probability).threshold
    gain = [recall_score(label, probability >= t) + recall_score(label, probability >= t, pos_label=0) for t in every]
    assert (
        gain[0]
        <= max(gain)
        == pytest.approx(
            recall_score(label, probability >= youden) + recall_score(label, probability >= youden, pos_label=0)
        )
    )
    assert operating_point("0.3", label, probability).threshold == 0.3


@pytest.mark.parametrize(
    "rule", ["best", "sensitivity", "youden>=0.5", "sensitivity>=", "sensitivity>=90", "1.5", "-1"]
)
def test_an_invalid_rule_is_rejected(rule):
    with pytest.raises(InputError, match="threshold rule"):
        operating_point(rule, [0, 1], [0.2, 0.8])


def test_a_rule_requires_both_classes():
    with pytest.raises(InputError, match="both classes"):
        operating_point("youden", [1, 1], [0.2, 0.8])
