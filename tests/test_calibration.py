"""Calibrators and operating points recover known parameters on one split and are applied to another."""

import dataclasses
import json
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.calibration import _sigmoid_calibration
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, log_loss, recall_score

from kmura import metrics
from kmura.errors import InputError
from kmura.evaluation.calibrators import (
    METHODS,
    Calibrator,
    calibrated_levels,
    fit_calibrator,
    logits_of,
    operating_point,
    prevalence_shift,
)
from kmura.evaluation.class_scores import questions_of
from kmura.tasks import task_of
from kmura.typed import from_json


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


def brute_force_point(rule, label, probability):
    """The threshold of a rule by counting at every candidate."""
    values = np.unique(probability)
    candidates = np.r_[values[0], (values[:-1] + values[1:]) / 2, np.nextafter(values[-1], np.inf)]
    tp, fp = (np.array([np.sum(probability[label == value] >= t) for t in candidates]) for value in (1, 0))
    n_positive, n_negative = np.sum(label == 1), np.sum(label == 0)
    name, _, wanted = rule.partition(">=")
    if name == "sensitivity":
        return candidates[tp >= float(wanted) * n_positive - 1e-9][-1]
    if name == "specificity":
        return candidates[n_negative - fp >= float(wanted) * n_negative - 1e-9][0]
    gain = tp * n_negative - fp * n_positive if name == "youden" else 2 * tp / (tp + fp + n_positive)
    return candidates[np.argmax(gain)]


@pytest.mark.parametrize("rule", ["max_f1", "youden", "sensitivity>=0.9", "specificity>=0.8", "sensitivity>=0"])
@pytest.mark.parametrize("digits", [1, 2, 15])
def test_operating_points_equal_those_of_counting_at_every_threshold(rule, digits):
    label, logit = truth(300, seed=digits)
    probability = np.round(expit(logit), digits)
    assert operating_point(rule, label, probability).threshold == brute_force_point(rule, label, probability)


def test_operating_points_of_many_units_are_fast():
    rng = np.random.default_rng(0)
    probability = rng.random(200_000)
    label = (rng.random(200_000) < probability).astype(int)
    start = time.perf_counter()
    operating_point("youden", label, probability)
    assert time.perf_counter() - start < 3  # sorting; comparing all pairs would need 40 GB


def test_a_threshold_between_neighbouring_numbers_separates_them():
    low = 0.3
    high = np.nextafter(low, 1)
    threshold = operating_point("youden", [0, 0, 1, 1], np.array([low, low, high, high])).threshold
    assert low < threshold <= high


def test_a_threshold_of_undefined_probabilities_is_an_input_error():
    with pytest.raises(InputError, match="not numbers"):
        operating_point("youden", [0, 1], [0.5, np.nan])


def detector(number, seed=0):
    """Labels and probabilities of a detector that gives exactly 0 to 28 % of the cases, where it found nothing."""
    rng = np.random.default_rng(seed)
    label = (rng.random(number) < 0.3).astype(int)
    logit = rng.normal(2.5 * label - 2.5, 1.2)
    nothing = rng.random(number) < np.where(label == 1, 0.05, 0.28 / 0.7 * 0.95)
    return label, np.where(nothing, 0.0, expit(logit))


def test_hard_zeros_do_not_change_the_slope_of_platt():
    label, probability = detector(4000)
    hard = probability == 0
    assert 0.25 < hard.mean() < 0.31
    found = fit_calibrator("platt", label, logits_of(probability))
    slope, bias = _sigmoid_calibration(logits_of(probability[~hard]), label[~hard], max_abs_prediction_threshold=99)
    assert (1 / found.temperature, found.bias) == pytest.approx((-slope, -bias), rel=1e-3, abs=1e-3)
    rate = (label[hard].sum() + 1) / (hard.sum() + 2)
    assert found(logits_of(0.0)) == pytest.approx(min(rate, found(logits_of(probability[~hard].min()))))
    new_label, new = detector(4000, seed=1)
    after = found(logits_of(new))
    naive = _sigmoid_calibration(logits_of(probability), label, max_abs_prediction_threshold=99)
    plain = expit(-naive[0] * logits_of(new) - naive[1])  # the fit to all scores alike
    assert log_loss(new_label, after) < log_loss(new_label, plain) - 0.02
    assert log_loss(new_label, after) < log_loss(new_label, np.clip(new, 1e-15, 1 - 1e-15))


@pytest.mark.parametrize("method", ["platt", "temperature"])
def test_hard_ones_and_a_single_clipped_score_do_not_determine_the_slope(method):
    label, logit = truth(500, seed=4)
    plain = fit_calibrator(method, label, logit)
    assert plain.limits is None
    for extra, wrong in ((36.04, 0), (-36.04, 1)):
        found = fit_calibrator(method, np.r_[label, wrong], np.r_[logit, extra])
        assert found.temperature == pytest.approx(plain.temperature, rel=1e-6)
        assert found.bias == pytest.approx(plain.bias, abs=1e-6)
        assert 0.001 < found(extra) < 0.9999
        assert from_json(Calibrator, json.loads(json.dumps(dataclasses.asdict(found)))) == found


def test_platt_equals_the_sigmoid_calibration_of_scikit_learn():
    label, logit = truth(200, seed=2)
    slope, intercept = _sigmoid_calibration(logit, label)
    found = fit_calibrator("platt", label, logit)
    assert (1 / found.temperature, found.bias) == pytest.approx((-slope, -intercept), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
@pytest.mark.parametrize("method", ["platt", "temperature"])
def test_the_scale_of_the_logits_does_not_matter(method, scale):
    label, logit = truth(300, seed=3)
    expected, found = fit_calibrator(method, label, logit), fit_calibrator(method, label, logit * scale)
    assert found.temperature == pytest.approx(expected.temperature * scale, rel=1e-4)
    assert found(logit * scale) == pytest.approx(expected(logit), abs=1e-5)


def test_probabilities_are_clipped_by_one_constant_everywhere():
    assert logits_of([0.0, 1.0]) == pytest.approx(np.array([-1, 1]) * np.log((1 - metrics.TINY) / metrics.TINY))
    assert metrics.log_loss([1, 0], [0.0, 1.0])[0] == pytest.approx(-np.log(metrics.TINY))
    table = pd.DataFrame({name: ["x", "y"] for name in ("split", "area", "patient", "study", "image")})
    table = table.assign(label=[0, 1], probability_a=[1.0, 0.0], probability_b=[0.0, 1.0])
    question = questions_of(table, "x", task_of("multiclass", ("a", "b")))["x"]
    assert question["logit"].to_numpy() == pytest.approx(logits_of([0.0, 1.0]))


def test_a_shift_of_prevalence_is_tested_by_patient():
    rng = np.random.default_rng(0)
    alarms = {"patients": 0, "cases": 0}
    for _ in range(300):
        sides = []
        for _ in range(2):
            patient = np.repeat(np.arange(60), rng.integers(1, 9, 60))
            sides.append(((rng.random(60) < 0.4)[patient].astype(int), patient))
        (one, one_patient), (other, other_patient) = sides
        alarms["patients"] += bool(prevalence_shift(one, other, patients=(one_patient, other_patient)))
        alarms["cases"] += bool(prevalence_shift(one, other))
    assert alarms["patients"] <= 0.08 * 300 < alarms["cases"]


def test_a_shift_of_prevalence_must_be_relevant():
    def labels(share, number=100_000):
        return np.arange(number) < share * number

    assert prevalence_shift(labels(0.300), labels(0.305)) == ""
    assert "30 % of the cases" in prevalence_shift(labels(0.300), labels(0.36))
    assert "3 % of the cases here" in prevalence_shift(labels(0.01), labels(0.03))
    assert "0 % of the cases here" in prevalence_shift(labels(0.3, 100), labels(0.0, 100))


@pytest.mark.parametrize("scale", [10, 1000])
@pytest.mark.parametrize("method", ["platt", "temperature"])
def test_calibration_never_makes_scores_of_a_large_scale_worse_on_their_own_split(method, scale):
    """Most studies then have a probability of exactly 0 or 1, and the others disagree in their views."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        label = rng.integers(0, 2, 60)
        views = scale * rng.normal(1.5 * (2 * label[:, None] - 1), 1.5, (60, 2))
        logit = logits_of(expit(views).mean(axis=1))
        calibrator = fit_calibrator(method, label, logit)
        before, after = (metrics.log_loss(label, value)[0] for value in (expit(logit), calibrator(logit)))
        if method == "platt":  # its targets are not 0 and 1, so its loss can be larger even if all scores are used
            slope, bias = _sigmoid_calibration(logit, label, max_abs_prediction_threshold=1e9)
            before = max(before, metrics.log_loss(label, expit(-slope * logit - bias))[0])
        assert after <= before + 1e-3, seed
