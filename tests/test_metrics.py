"""Scores match scikit-learn, with and without weights, with ties and with one class."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from kmura import metrics

REFERENCES = {
    "auc": lambda y, p, w: reference.roc_auc_score(y, p, sample_weight=w),
    "ap": lambda y, p, w: reference.average_precision_score(y, p, sample_weight=w),
    "accuracy": lambda y, p, w: reference.accuracy_score(y, p >= 0.5, sample_weight=w),
    "precision": lambda y, p, w: reference.precision_score(y, p >= 0.5, sample_weight=w, zero_division=np.nan),
    "recall": lambda y, p, w: reference.recall_score(y, p >= 0.5, sample_weight=w),
    "specificity": lambda y, p, w: reference.recall_score(y, p >= 0.5, sample_weight=w, pos_label=0),
    "f1": lambda y, p, w: reference.f1_score(y, p >= 0.5, sample_weight=w),
    "balanced_accuracy": lambda y, p, w: reference.balanced_accuracy_score(y, p >= 0.5, sample_weight=w),
    "brier": lambda y, p, w: reference.brier_score_loss(y, p, sample_weight=w),
    "log_loss": lambda y, p, w: reference.log_loss(y, p, sample_weight=w, labels=[0, 1]),
    "npv": lambda y, p, w: reference.precision_score(y, p >= 0.5, sample_weight=w, pos_label=0, zero_division=np.nan),
    "f1_negative": lambda y, p, w: reference.f1_score(y, p >= 0.5, sample_weight=w, pos_label=0),
    "kappa": lambda y, p, w: reference.cohen_kappa_score(y, p >= 0.5, sample_weight=w),
}


@st.composite
def predictions(draw):
    size = draw(st.integers(4, 40))
    seed = draw(st.integers(0, 10_000))
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, size)
    label[:2] = 0, 1
    score = rng.choice(np.linspace(0, 1, draw(st.integers(2, 30))), size)  # few distinct values: many ties
    return label, score, rng.integers(0, 4, (3, size)) + (np.arange(size) < 2)


@settings(max_examples=80, deadline=None)
@given(predictions())
def test_every_score_matches_scikit_learn_for_every_weighting(case):
    label, score, weights = case
    ours = metrics.scores(label, score, weights=weights)
    assert set(ours) == set(REFERENCES)
    for name, expected in REFERENCES.items():
        for row, weight in enumerate(weights):
            assert ours[name][row] == pytest.approx(expected(label, score, weight), abs=1e-12, nan_ok=True), name


def test_scores_without_weights_equal_scores_with_unit_weights():
    label, score = np.array([0, 1, 1, 0, 1]), np.array([0.1, 0.4, 0.4, 0.4, 0.9])
    plain, ones = metrics.scores(label, score), metrics.scores(label, score, weights=np.ones((1, 5)))
    assert plain == ones
    assert plain["auc"][0] == pytest.approx((3 + 1 + 0.5 + 0.5) / 6)


@pytest.mark.parametrize("label", [[0, 0, 0], [1, 1, 1]])
def test_an_auc_over_one_class_is_nan(label):
    assert np.isnan(metrics.auc(np.array(label), np.array([0.1, 0.5, 0.9]))[0])


def test_a_precision_without_positive_predictions_is_nan():
    assert np.isnan(metrics.scores(np.array([0, 1]), np.array([0.1, 0.2]))["precision"][0])


def test_studies_are_pooled_by_their_mean_in_order_of_appearance():
    pooled = metrics.pool_studies(["b", "a", "b", "c"], np.array([0.2, 0.5, 0.6, 1.0]))
    assert pooled.value == pytest.approx([0.4, 0.5, 1.0])
    assert pooled.images.tolist() == [2, 1, 1]
    assert pooled.first.tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    ("how", "expected"),
    [("max", [0.6, 0.5, 1.0]), ("noisy-or", [1 - 0.8 * 0.4 * 0.9, 0.5, 1.0]), ("top-k", [0.4, 0.5, 1.0])],
)
def test_other_poolings_match_their_definitions(how, expected):
    pooled = metrics.pool_studies(["b", "a", "b", "c", "b"], np.array([0.2, 0.5, 0.6, 1.0, 0.1]), how)
    assert pooled.value == pytest.approx(expected)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1)), min_size=1, max_size=30))
def test_poolings_are_ordered_and_agree_for_a_single_view(views):
    study, value = zip(*views, strict=True)
    mean, top, most, noisy = (
        metrics.pool_studies(study, value, how).value for how in ("mean", "top-k", "max", "noisy-or")
    )
    assert (mean <= top + 1e-12).all() and (top <= most + 1e-12).all() and (most <= noisy + 1e-12).all()
    alone = metrics.pool_studies(range(len(value)), value, "noisy-or").value
    assert alone == pytest.approx(value)


def test_an_unknown_pooling_lists_the_available_poolings():
    with pytest.raises(ValueError, match="mean, max, noisy-or, top-k"):
        metrics.pool_studies(["a"], [0.5], "median")


def test_the_bootstrap_resamples_whole_patients():
    patient, label = ["a", "a", "b", "c", "c", "c"], np.array([0, 1, 1, 0, 0, 1])
    weights, _ = metrics.bootstrap_weights(patient, label, resamples=200, seed=3)
    assert weights.shape == (200, 6)
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, 0] + weights[:, 2] + weights[:, 3] == 3).all()
    assert ((weights @ label > 0) & (weights @ (1 - label) > 0)).all()


def test_resamples_without_a_class_are_redrawn_and_counted():
    weights, redrawn = metrics.bootstrap_weights(list("abcdefgh"), np.array([1, 0, 0, 0, 0, 0, 0, 0]), resamples=500)
    assert len(weights) == 500
    assert 0.2 < redrawn / (500 + redrawn) < 0.5  # one of eight patients is never drawn with probability 0.344


def test_a_grouped_bootstrap_keeps_both_classes_in_every_group():
    patient, group = np.arange(24), np.repeat(["a", "b", "c"], 8)
    label = np.where(group == "c", 1, np.arange(24) % 8 == 0)  # c has one class and does not cause redraws
    weights, redrawn = metrics.bootstrap_weights(patient, label, group=group, resamples=100)
    assert len(weights) == 100 and redrawn > 50
    for name in "ab":
        inside = group == name
        assert ((weights[:, inside & (label == 1)].sum(1) > 0) & (weights[:, inside & (label == 0)].sum(1) > 0)).all()


def test_averages_over_areas_are_unweighted_and_weighted_by_size():
    by_area = {"a": {"auc": np.array([0.8, 0.6])}, "b": {"auc": np.array([0.9, np.nan])}}
    found = metrics.averages(by_area, {"a": 300, "b": 100})
    assert found["macro"]["auc"] == pytest.approx([0.85, np.nan], nan_ok=True)
    assert found["weighted"]["auc"] == pytest.approx([0.825, np.nan], nan_ok=True)


def delong_by_hand(label, one, other):
    """A transcription of DeLong et al. (1988), eqs. 2 to 5, with one kernel per pair."""

    def kernel(x, y):
        return 1.0 if x > y else 0.5 if x == y else 0.0

    tens, ones, aucs = [], [], []
    for score in (one, other):
        x, y = score[label == 1], score[label == 0]
        pairs = np.array([[kernel(a, b) for b in y] for a in x])
        tens.append(pairs.mean(1))
        ones.append(pairs.mean(0))
        aucs.append(pairs.mean())
    covariance = np.cov(tens) / len(tens[0]) + np.cov(ones) / len(ones[0])
    contrast = np.array([-1, 1])
    return aucs[1] - aucs[0], contrast @ covariance @ contrast


def test_delong_matches_its_transcription_with_ties():
    rng = np.random.default_rng(3)
    label = np.arange(40) % 2
    one, other = (np.round(rng.normal(label * gain, 1), 1) for gain in (0.5, 1.5))
    difference, variance = delong_by_hand(label, one, other)
    found = metrics.delong(label, one, other)
    assert found.difference == pytest.approx(difference, abs=1e-12)
    assert (found.high - found.low) / 2 == pytest.approx(1.959964 * np.sqrt(variance), rel=1e-6)
    assert 0 < found.p < 1
    same = metrics.delong(label, one, one)
    assert (same.difference, same.p) == (0, 1)
    assert np.isnan(metrics.delong(np.ones(4), one[:4], other[:4]).p)


def test_delong_and_the_paired_bootstrap_agree_for_one_image_per_patient():
    rng = np.random.default_rng(0)
    label = np.arange(400) % 2
    one = rng.normal(label, 1)
    other = one + rng.normal(label * 0.4, 0.5)
    weights, _ = metrics.bootstrap_weights(np.arange(400), label, resamples=2000)
    values = [{"auc": metrics.auc(label, score)} for score in (one, other)]
    drawn = [{"auc": metrics.auc(label, score, weights)} for score in (one, other)]
    paired, exact = metrics.differences(*values, *drawn)["auc"], metrics.delong(label, one, other)
    assert paired.value == pytest.approx(exact.difference, abs=1e-12)
    assert (paired.low, paired.high) == pytest.approx((exact.low, exact.high), abs=0.006)
    unpaired = metrics.intervals(values[1], drawn[1])["auc"]
    assert paired.high - paired.low < 0.8 * (unpaired.high - unpaired.low)


def test_the_interval_has_nominal_coverage():
    rng, covered = np.random.default_rng(0), 0
    truth = 0.760  # P(N(1, 1) > N(0, 1)) = Phi(1 / sqrt 2)
    for repeat in range(60):
        label = np.arange(160) % 2
        score = rng.normal(label, 1)
        weights, _ = metrics.bootstrap_weights(np.arange(160), label, resamples=300, seed=repeat)
        low_high = metrics.intervals({"auc": metrics.auc(label, score)}, {"auc": metrics.auc(label, score, weights)})
        covered += low_high["auc"].low <= truth <= low_high["auc"].high
    assert 50 <= covered <= 60


def test_one_class_gives_undefined_scores_and_intervals():
    weights, _ = metrics.bootstrap_weights(["a", "b"], np.array([1, 1]))
    found = metrics.intervals(
        {"auc": metrics.auc([1, 1], [0.1, 0.2])}, {"auc": metrics.auc([1, 1], [0.1, 0.2], weights)}
    )
    assert np.isnan([found["auc"].value, found["auc"].low, found["auc"].high]).all()
