"""Scores match scikit-learn, with and without weights, with ties and with one class."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
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


def clustered(patients, gain, seed, views=3):
    """Returns labels, scores and patients of images with 1 to `views` views that share a patient effect."""
    rng = np.random.default_rng(seed)
    count = rng.integers(1, views + 1, patients)
    patient = np.repeat(np.arange(patients), count)
    label = (np.arange(patients) % 2)[patient]
    return label, rng.normal(0, 1, patients)[patient] + gain * label + rng.normal(0, 0.5, len(label)), patient


def obuchowski_by_hand(label, scores, patient):
    """A transcription of Obuchowski (1997), eqs. 4 to 8: the covariance matrix of two AUCs of clustered data."""
    aucs, placements = [], []
    for score in scores:
        x, y = score[label == 1], score[label == 0]
        pairs = np.array([[1.0 if a > b else 0.5 if a == b else 0.0 for b in y] for a in x])
        aucs.append(pairs.mean())
        placements.append((pairs.mean(1), pairs.mean(0)))
    of_positive, of_negative, ids = patient[label == 1], patient[label == 0], np.unique(patient)
    m, n, total = len(of_positive), len(of_negative), len(ids)
    with_positive, with_negative = len(np.unique(of_positive)), len(np.unique(of_negative))
    covariance = np.zeros((2, 2))
    for r in range(2):
        for s in range(2):
            s10 = s01 = s11 = s11_back = 0.0
            for one in ids:
                here, there = of_positive == one, of_negative == one
                v_r, v_s = (placements[k][0][here].sum() - here.sum() * aucs[k] for k in (r, s))
                w_r, w_s = (placements[k][1][there].sum() - there.sum() * aucs[k] for k in (r, s))
                s10 += v_r * v_s
                s01 += w_r * w_s
                s11 += v_r * w_s
                s11_back += v_s * w_r
            s10 *= with_positive / ((with_positive - 1) * m)
            s01 *= with_negative / ((with_negative - 1) * n)
            covariance[r, s] = s10 / m + s01 / n + total / (total - 1) * (s11 + s11_back) / (m * n)
    return covariance


def test_the_clustered_variance_matches_its_transcription():
    label, score, patient = clustered(30, 1.0, 0)
    label[patient == 0] = np.arange((patient == 0).sum()) % 2  # a patient with both classes, as with two areas
    patient[patient == 2] = 1  # likewise
    other = np.round(score + np.random.default_rng(1).normal(0, 0.7, len(score)), 1)
    covariance = obuchowski_by_hand(label, (score, other), patient)
    assert metrics.clustered_auc(label, score, patient).variance == pytest.approx(covariance[0, 0], rel=1e-10)
    found = metrics.delong(label, score, other, patient)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert (found.high - found.low) / 2 == pytest.approx(1.959964 * np.sqrt(variance), rel=1e-6)


def test_the_clustered_variance_of_single_cases_is_that_of_delong():
    label, score, _ = clustered(40, 1.0, 3, views=1)
    other = score + np.random.default_rng(2).normal(0, 1, 40)
    assert metrics.delong(label, score, other, np.arange(40)) == metrics.delong(label, score, other)
    difference, variance = delong_by_hand(label, score, other)
    found = metrics.delong(label, score, other)
    assert found.difference == pytest.approx(difference)
    assert (found.high - found.low) / 2 == pytest.approx(1.959964 * np.sqrt(variance), rel=1e-6)


def test_repeated_cases_of_a_patient_do_not_narrow_the_interval_of_the_auc():
    label, score, patient = clustered(40, 1.0, 5, views=1)
    once = metrics.auc_interval(metrics.clustered_auc(label, score, patient))
    thrice = metrics.auc_interval(metrics.clustered_auc(np.tile(label, 3), np.tile(score, 3), np.tile(patient, 3)))
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high), abs=1e-9) and once.method == "logit"


@pytest.mark.parametrize(("studies", "truth"), [(20, 0.9), (40, 0.95), (40, 0.99)])
def test_the_interval_of_the_auc_covers_in_small_sets(studies, truth):
    gain = np.sqrt(2) * norm.ppf(truth)
    label, patient = np.arange(studies) % 2, np.arange(studies)
    covered = 0
    for seed in range(300):
        score = np.random.default_rng(seed).normal(gain * label, 1)
        interval = metrics.auc_interval(metrics.clustered_auc(label, score, patient))
        covered += interval.low <= truth <= interval.high
    assert covered >= 0.93 * 300  # the percentile bootstrap covers in 0.89 (0.95) and 0.71 (0.99) of sets of 40


def test_an_auc_of_one_or_of_equal_scores_has_a_wide_interval_in_small_sets():
    label, patient = np.arange(20) % 2, np.arange(20)
    found = [metrics.auc_interval(metrics.clustered_auc(label, score, patient)) for score in (label, 1 - label)]
    assert (found[0].value, found[0].high, found[0].method) == (1, 1, "score") and 0.6 < found[0].low < 0.9
    assert (found[1].low, found[1].high) == pytest.approx((0, 1 - found[0].low))
    constant = metrics.auc_interval(metrics.clustered_auc(label, np.full(20, 0.5), patient))
    assert constant.low < 0.35 and constant.high > 0.65
    few = metrics.auc_interval(metrics.clustered_auc([0, 0, 1, 1], [0, 0, 1, 1], range(4)))
    assert few.low < found[0].low
    for low, auc, high in ((few.low, few.value, few.high), (constant.low, constant.value, constant.high)):
        assert 0 <= low < auc <= high <= 1


def test_the_score_interval_solves_its_equation():
    positives, negatives, auc = 8, 14, 0.93
    for bound in metrics.score_interval(auc, positives, negatives):
        q1, q2 = bound / (2 - bound), 2 * bound**2 / (1 + bound)  # Hanley & McNeil 1982
        size = (positives + negatives) / 2
        variance = (bound * (1 - bound) + (size - 1) * (q1 - bound**2) + (size - 1) * (q2 - bound**2)) / (
            positives * negatives
        )
        assert (auc - bound) ** 2 == pytest.approx(1.959964**2 * variance, rel=1e-5)


def test_delong_with_patients_keeps_its_level_under_the_null_hypothesis():
    rejected = {"clustered": 0, "independent": 0}
    for seed in range(300):
        label, score, patient = clustered(40, 1.0, seed, views=8)
        rng = np.random.default_rng(1000 + seed)
        one, other = (score + rng.normal(0, 1, 40)[patient] for _ in range(2))  # equally good models
        rejected["clustered"] += metrics.delong(label, one, other, patient).p < 0.05
        rejected["independent"] += metrics.delong(label, one, other).p < 0.05
    assert rejected["clustered"] < 0.1 * 300 < rejected["independent"]


@pytest.mark.parametrize("one", ["constant", "reversed"])
def test_a_difference_that_does_not_vary_has_no_p_value(one):
    label, perfect = np.array([0, 1, 0, 1]), np.array([0.1, 0.9, 0.1, 0.9])
    found = metrics.delong(label, np.full(4, 0.5) if one == "constant" else 1 - perfect, perfect)
    assert found.difference in (0.5, 1) and np.isnan([found.p, found.low, found.high]).all()


EXTREME = {
    "perfect": (np.arange(20) % 2, np.where(np.arange(20) % 2, 0.9, 0.1)),
    "hard and perfect": (np.arange(20) % 2, np.arange(20) % 2 * 1.0),
    "reversed": (np.arange(20) % 2, np.where(np.arange(20) % 2, 0.1, 0.9)),
    "constant": (np.arange(20) % 2, np.full(20, 0.5)),
    "constant below the threshold": (np.arange(20) % 2, np.full(20, 0.2)),
    "one class": (np.ones(20, int), np.linspace(0.6, 0.9, 20)),
    "one class, wrong": (np.zeros(20, int), np.linspace(0.6, 0.9, 20)),
}


@pytest.mark.parametrize("case", EXTREME)
def test_no_score_has_an_interval_of_zero_width(case):
    label, probability = EXTREME[case]
    patient = np.arange(20)
    draws = metrics.PatientBootstrap(patient, label, resamples=200)
    drawn = draws.scores({0: metrics.Scorer(label, probability, place=patient)})[0]
    found = metrics.binary_intervals(label, probability, patient, drawn)
    assert list(found) == list(metrics.SCORES)
    for name, interval in found.items():
        if np.isnan(interval.value):
            assert str(interval) == "undefined", name
        elif name == "log_loss" and np.isnan(interval.low):  # constant, and without an upper bound
            assert str(interval).endswith("(no interval)") and interval.method == ""
        else:
            assert interval.low <= interval.value <= interval.high and interval.high - interval.low > 1e-3, name
            assert interval.method in ("bootstrap", "logit", "score", "wilson"), name
    if "one class" in case:
        assert np.isnan(found["auc"].value) and found["accuracy"].high - found["accuracy"].low > 0.1
        defined = "recall" if label[0] else "specificity"
        assert found[defined].high - found[defined].low > 0.1 and found["brier"].method == "bootstrap"


def test_the_interval_of_a_perfect_f1_is_that_of_its_share():
    label, probability = EXTREME["perfect"]
    found = metrics.binary_intervals(label, probability, np.arange(20), dict.fromkeys(metrics.SCORES, np.empty(0)))
    share = float(metrics.wilson(1.0, 10)[0])  # tp / (tp + fp + fn) of ten patients
    assert found["f1"].low == pytest.approx(2 * share / (1 + share)) and found["f1"].high == 1
    assert found["kappa"].low == pytest.approx(2 * float(metrics.wilson(1.0, 20)[0]) - 1)
    assert found["ap"].low == pytest.approx(share)
    assert 1 - found["balanced_accuracy"].low == pytest.approx((1 - share) / np.sqrt(2))


def test_resamples_in_parts_equal_those_drawn_at_once(monkeypatch):
    rng = np.random.default_rng(4)
    patient, label = rng.integers(0, 6, 40), rng.integers(0, 2, 40)
    label[patient > 0] = 0  # one patient has all positives, so that resamples are drawn again
    label[patient == 0] = 1
    whole, redrawn = metrics.bootstrap_weights(patient, label, resamples=100, seed=7)
    monkeypatch.setattr("kmura.metrics.resampling._CELLS", 20)
    parts, redrawn_parts = metrics.bootstrap_weights(patient, label, resamples=100, seed=7)
    np.testing.assert_array_equal(whole, parts)
    assert redrawn == redrawn_parts > 0
    score = rng.random(40)
    draws = metrics.PatientBootstrap(patient, label, resamples=100, seed=7)
    found = draws.scores({0: metrics.Scorer(label, score, place=draws.place(patient))})[0]
    for name, expected in metrics.scores(label, score, weights=whole).items():
        assert found[name] == pytest.approx(expected, abs=1e-12), name
    assert draws.redrawn == redrawn


def test_the_draws_of_a_seed_are_those_of_earlier_versions():
    rng = np.random.default_rng(3)
    first = rng.multinomial(5, np.full(5, 0.2), size=4)
    weights, _ = metrics.bootstrap_weights(np.arange(5), np.array([0, 0, 0, 1, 1]), resamples=3, seed=3)
    both = [row for row in first if row[:3].sum() and row[3:].sum()]
    np.testing.assert_array_equal(weights[: len(both)], both[:3])


def test_many_patients_are_drawn_with_replacement(monkeypatch):
    monkeypatch.setattr("kmura.metrics.resampling._MANY", 10)
    weights, _ = metrics.bootstrap_weights(np.arange(50), np.arange(50) % 2, resamples=400)
    assert (weights.sum(1) == 50).all() and weights.mean() == 1
    assert weights.var(0).mean() == pytest.approx(1 - 1 / 50, abs=0.05)  # of a binomial with 50 draws


def test_a_single_class_keeps_its_resamples():
    weights, redrawn = metrics.bootstrap_weights(list("abc"), np.ones(3, int), resamples=10)
    assert weights.shape == (10, 3) and redrawn == 0


def test_classes_too_rare_in_many_areas_do_not_prevent_resamples():
    group = np.repeat(np.arange(10), 2)
    weights, redrawn = metrics.bootstrap_weights(np.arange(20), np.arange(20) % 2, group=group, resamples=50)
    assert len(weights) == 50 and redrawn == 0


def test_a_study_is_known_by_area_patient_and_id():
    keys = metrics.study_keys(["A", "A", "A", "B"], ["p", "p", "q", "p"], ["1", "1", "1", "1"])
    assert keys[0] == keys[1] and len(set(keys)) == 3
    joined = metrics.study_keys(["a/b", "a"], ["c", "b/c"], ["1", "1"])
    assert joined[0] != joined[1]


def test_an_interval_is_shown_with_as_many_decimals_as_its_ends_need():
    from kmura.metrics.intervals import Interval

    assert str(Interval(0.94123, 0.88651, 0.98199)) == "0.941 (0.887 to 0.982)"
    assert str(Interval(0.2181, 0.21808, 0.21813)) == "0.21810 (0.21808 to 0.21813)"
    assert str(Interval(-0.0001, -0.2, 0.2)) == "0.000 (-0.200 to 0.200)"
    assert str(Interval(0.5, float("nan"), float("nan"))) == "0.500 (no interval)"
