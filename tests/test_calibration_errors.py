"""Calibration errors and components of the Brier score, compared with transcriptions and scikit-learn."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from kmura import metrics


def calibrated(number, seed=0):
    """Returns probabilities and labels drawn from them."""
    rng = np.random.default_rng(seed)
    probability = rng.beta(0.7, 0.7, number)
    return (rng.random(number) < probability).astype(int), probability


@st.composite
def predictions(draw):
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    size = draw(st.integers(1, 60))
    return rng.integers(0, 2, size), rng.choice(np.linspace(0, 1, draw(st.integers(2, 40))), size)


@settings(deadline=None)
@given(predictions(), st.integers(1, 20), st.sampled_from(["width", "mass"]))
def test_the_five_components_of_the_brier_score_sum_to_it(case, bins, how):
    label, probability = case
    parts = metrics.brier_decomposition(label, probability, bins=bins, how=how)
    total = parts["reliability"] - parts["resolution"] + parts["uncertainty"]
    total += parts["within_bin_variance"] - parts["within_bin_covariance"]
    assert total == pytest.approx(np.mean((probability - label) ** 2), abs=1e-12)
    if len(label) > 1:
        debiased = sum(parts[f"{name}_debiased"] * sign for name, sign in SIGNS.items())
        assert debiased == pytest.approx(sum(parts[name] * sign for name, sign in SIGNS.items()), abs=1e-12)


SIGNS = {"reliability": 1, "resolution": -1, "uncertainty": 1}


def test_the_components_of_the_brier_score_match_a_manual_calculation():
    # two bins: p = 0.2, 0.4 with labels 0, 1 and p = 0.8, 0.6 with labels 1, 1; means 0.3 and 0.7, shares 0.5 and 1
    parts = metrics.brier_decomposition([0, 1, 1, 1], [0.2, 0.4, 0.8, 0.6], bins=2)
    assert parts == pytest.approx(
        {
            "reliability": (0.2**2 + 0.3**2) / 2,
            "resolution": (0.25**2 + 0.25**2) / 2,
            "uncertainty": 0.75 * 0.25,
            "within_bin_variance": 0.01,
            "within_bin_covariance": 2 * (0.5 * 0.1 + 0.5 * 0.1) / 4,
            "reliability_debiased": 0.065 - 0.5 * 0.25,
            "resolution_debiased": 0.0625 - 0.5 * 0.25 + 0.1875 / 3,
            "uncertainty_debiased": 0.1875 + 0.1875 / 3,
        }
    )


def literal(label, probability, edges):
    """ECE, MCE and the reliability of Ferro & Fricker for given bin edges, computed per bin."""
    gaps, total, reliability = [], 0.0, 0.0
    for number, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        inside = [n for n, p in enumerate(probability) if low < p <= high or (number == 0 and p == low)]
        if inside:
            o, f = np.mean(label[inside]), np.mean(probability[inside])
            gaps.append(abs(o - f))
            total += len(inside) / len(label) * abs(o - f)
            chance = o * (1 - o) / (len(inside) - 1) if len(inside) > 1 else 0
            reliability += len(inside) / len(label) * ((o - f) ** 2 - chance)
    return total, max(gaps), np.sign(reliability) * np.sqrt(abs(reliability))


@settings(deadline=None)
@given(predictions(), st.integers(1, 20))
def test_calibration_errors_match_a_literal_transcription(case, bins):
    label, probability = case
    found = metrics.calibration_errors(label, probability, bins=bins, simulations=1)
    mass = metrics.bin_edges(probability, bins, "mass")
    by_width, by_mass = literal(label, probability, np.linspace(0, 1, bins + 1)), literal(label, probability, mass)
    assert found["ece"].value == pytest.approx(by_width[0], abs=1e-12)
    assert found["mce"].value == pytest.approx(by_width[1], abs=1e-12)
    assert found["ece_mass"].value == pytest.approx(by_mass[0], abs=1e-12)
    assert found["rmsce_debiased"].value == pytest.approx(by_mass[2], abs=1e-7)


@pytest.mark.parametrize(("how", "strategy"), [("width", "uniform"), ("mass", "quantile")])
def test_the_reliability_diagram_matches_scikit_learn(how, strategy):
    label, probability = calibrated(300)
    fraction, mean = calibration_curve(label, probability, n_bins=10, strategy=strategy)
    found = metrics.reliability_bins(label, probability, 10, how)
    assert found.fraction == pytest.approx(fraction) and found.probability == pytest.approx(mean)
    assert (
        found.count.sum() == 300 and (found.low < found.probability).all() and (found.probability <= found.high).all()
    )


def test_a_large_raw_error_of_a_perfect_model_on_few_studies_is_noted():
    label, probability = calibrated(160)
    found = metrics.calibration_errors(label, probability)
    assert found["ece"].expected == pytest.approx(0.09, abs=0.015)  # for a perfect model with 160 studies and 15 bins
    assert found["ece"].value < found["ece"].high
    assert abs(found["rmsce_debiased"].expected) < 0.02
    assert found["ece_debiased"].expected < 0.7 * found["ece_mass"].expected


def test_the_sampling_noise_interval_of_a_perfect_model_has_nominal_coverage():
    inside = {name: 0 for name in metrics.CALIBRATION_ERRORS}
    squares = []
    for seed in range(60):
        found = metrics.calibration_errors(*calibrated(300, seed), simulations=200, seed=seed)
        for name, error in found.items():
            inside[name] += error.value <= error.high
        squares.append(np.sign(found["rmsce_debiased"].value) * found["rmsce_debiased"].value ** 2)
    assert all(51 <= count <= 60 for count in inside.values()), inside  # expected: 57
    assert abs(np.mean(squares)) < 3 * np.std(squares) / np.sqrt(60)  # debiased: close to 0


def test_an_overconfident_model_is_detected():
    label, probability = calibrated(1200)
    logit = np.log(probability / (1 - probability))
    found = metrics.calibration_errors(label, 1 / (1 + np.exp(-2 * logit)))
    for name in ("ece", "ece_mass", "ece_debiased", "rmsce_debiased"):  # the maximum error alone is too noisy
        assert found[name].value > found[name].high


def test_no_predictions_and_nan_give_nan():
    for label, probability in (([], []), ([0, 1], [0.5, np.nan])):
        assert all(np.isnan(error.value) for error in metrics.calibration_errors(label, probability).values())
    assert all(np.isnan(part) for part in metrics.brier_decomposition([], []).values())


def test_equal_mass_bins_never_split_ties():
    found = metrics.reliability_bins([0, 1, 1, 0, 1, 1], [0.5, 0.5, 0.5, 0.5, 0.9, 0.95], 5, "mass")
    assert found.count.tolist() == [4, 1, 1] or found.count.tolist() == [4, 2]


def test_wilson_intervals_match_scipy_and_are_never_empty():
    from scipy.stats import binomtest

    for successes, count in ((0, 5), (5, 5), (30, 30), (3, 10), (50, 100)):
        low, high = metrics.wilson(successes / count, count)
        expected = binomtest(successes, count).proportion_ci(method="wilson")
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-6)
        assert high - low > 0.05


def test_debiased_errors_match_the_implementation_of_kumar_et_al():
    rng = np.random.default_rng(5)
    probability = rng.beta(0.7, 0.7, 150)
    label = (rng.random(150) < probability**1.5).astype(int)
    found = metrics.calibration_errors(label, probability, bins=10, simulations=1)
    # uncertainty-calibration 0.1.4 on the same bins: normal_debiased_ce (100,000 resamples), unbiased_l2_ce
    assert found["ece_debiased"].value == pytest.approx(0.05425, abs=2e-4)
    assert found["rmsce_debiased"].value == pytest.approx(0.05585739337999307, abs=1e-12)
    assert found["ece_debiased"].value < found["ece_mass"].value


def test_simulations_in_parts_equal_those_drawn_at_once(monkeypatch):
    label, probability = calibrated(50)
    whole = metrics.calibration_errors(label, probability, simulations=20)
    monkeypatch.setattr("kmura.metrics.calibration_error._CELLS", 120)
    parts = metrics.calibration_errors(label, probability, simulations=20)
    for name in metrics.CALIBRATION_ERRORS:
        ours, theirs = (dataclasses.astuple(found[name]) for found in (whole, parts))
        assert ours == pytest.approx(theirs, abs=1e-12)
