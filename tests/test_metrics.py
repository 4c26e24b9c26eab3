"""Scores agree with scikit-learn, with and without weights, with ties and with one class."""

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
def test_every_score_equals_scikit_learn_for_every_weighting(case):
    label, score, weights = case
    ours = metrics.scores(label, score, weights=weights)
    assert set(ours) == set(REFERENCES)
    for name, expected in REFERENCES.items():
        for row, weight in enumerate(weights):
            assert ours[name][row] == pytest.approx(expected(label, score, weight), abs=1e-12, nan_ok=True), name


def test_scores_without_weights_are_those_with_ones():
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


def test_the_bootstrap_draws_whole_patients():
    patient, label = ["a", "a", "b", "c", "c", "c"], np.array([0, 1, 1, 0, 0, 1])
    weights, _ = metrics.bootstrap_weights(patient, label, resamples=200, seed=3)
    assert weights.shape == (200, 6)
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, 0] + weights[:, 2] + weights[:, 3] == 3).all()
    assert ((weights @ label > 0) & (weights @ (1 - label) > 0)).all()


def test_resamples_without_a_class_are_drawn_again_and_counted():
    weights, redrawn = metrics.bootstrap_weights(list("abcdefgh"), np.array([1, 0, 0, 0, 0, 0, 0, 0]), resamples=500)
    assert len(weights) == 500
    assert 0.2 < redrawn / (500 + redrawn) < 0.5  # the chance that one of eight patients is never drawn is 0.344


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng, covered = np.random.default_rng(0), 0
    truth = 0.760  # P(N(1, 1) > N(0, 1)) = Phi(1 / sqrt 2)
    for repeat in range(60):
        label = np.arange(160) % 2
        score = rng.normal(label, 1)
        weights, _ = metrics.bootstrap_weights(np.arange(160), label, resamples=300, seed=repeat)
        low_high = metrics.intervals({"auc": metrics.auc(label, score)}, {"auc": metrics.auc(label, score, weights)})
        covered += low_high["auc"].low <= truth <= low_high["auc"].high
    assert 50 <= covered <= 60


def test_one_class_gives_no_resamples_and_open_intervals():
    weights, _ = metrics.bootstrap_weights(["a", "b"], np.array([1, 1]))
    found = metrics.intervals(
        {"auc": metrics.auc([1, 1], [0.1, 0.2])}, {"auc": metrics.auc([1, 1], [0.1, 0.2], weights)}
    )
    assert np.isnan([found["auc"].value, found["auc"].low, found["auc"].high]).all()
