"""Multiclass scores match scikit-learn, and weighted scores match those of repeated samples."""

import numpy as np
import pytest
import sklearn.metrics as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from kmura import metrics


def drawn(seed, number=60, classes=4, rare=False):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes - rare, number)
    probability = rng.dirichlet(np.ones(classes), number)
    probability[np.arange(number), label] += 0.3
    return label, probability / probability.sum(1, keepdims=True)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_scores_match_scikit_learn(seed, rare):
    label, probability = drawn(seed, rare=rare)
    predicted = probability.argmax(1)
    ours = {name: float(value[0]) for name, value in metrics.multiclass_scores(label, probability).items()}
    assert ours["accuracy"] == pytest.approx(reference.accuracy_score(label, predicted))
    assert ours["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy_score(label, predicted))
    assert ours["f1_macro"] == pytest.approx(reference.f1_score(label, predicted, average="macro"))
    assert ours["f1_weighted"] == pytest.approx(reference.f1_score(label, predicted, average="weighted"))
    assert ours["kappa"] == pytest.approx(reference.cohen_kappa_score(label, predicted))
    assert ours["log_loss"] == pytest.approx(reference.log_loss(label, probability, labels=range(4)))
    there = sorted(set(label))
    onehot = np.arange(4) == label[:, None]
    assert ours["auc"] == pytest.approx(
        np.mean([reference.roc_auc_score(onehot[:, each], probability[:, each]) for each in there])
    )
    assert ours["ap"] == pytest.approx(
        np.mean([reference.average_precision_score(onehot[:, each], probability[:, each]) for each in there])
    )


def test_the_class_table_matches_scikit_learn():
    label, probability = drawn(3)
    matrix = metrics.confusion_matrix(label, probability.argmax(1), 4)
    np.testing.assert_array_equal(matrix[0], reference.confusion_matrix(label, probability.argmax(1)))
    found = metrics.by_class(matrix)
    expected = reference.precision_recall_fscore_support(label, probability.argmax(1))
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose(found[name][0], values)


def test_weights_are_equivalent_to_repeated_samples():
    label, probability = drawn(5)
    weights = np.random.default_rng(0).integers(0, 3, (2, len(label)))
    found = metrics.multiclass_scores(label, probability, weights)
    for row, times in enumerate(weights):
        again = metrics.multiclass_scores(np.repeat(label, times), np.repeat(probability, times, axis=0))
        for name in metrics.MULTICLASS_SCORES:
            assert found[name][row] == pytest.approx(again[name][0]), name


def test_two_classes_have_the_auc_of_the_positive_class():
    label, probability = drawn(1, classes=2)
    assert metrics.multiclass_scores(label, probability)["auc"] == pytest.approx(metrics.auc(label, probability[:, 1]))


def test_one_label_has_binary_scores_and_unknown_labels_are_excluded():
    label, probability = drawn(2, classes=2)
    ours = metrics.multilabel_scores(label[:, None], probability[:, 1:])
    for name, value in metrics.scores(label, probability[:, 1]).items():
        assert ours[name] == pytest.approx(value), name
    more = np.r_[label, -1][:, None], np.r_[probability[:, 1], 0.9][:, None]
    assert metrics.multilabel_scores(*more)["auc"] == pytest.approx(ours["auc"])


@pytest.mark.parametrize("how", metrics.POOLINGS)
def test_studies_are_pooled_per_class(how):
    label, probability = drawn(4, number=12)
    study = np.repeat(["a", "b", "c", "d"], 3)
    pooled = metrics.pool_classes(study, probability, how)
    assert pooled.value.shape == (4, 4) and pooled.value.sum(1) == pytest.approx(1)
    raw = metrics.pool_studies(study, probability[:, 2], how).value
    plain = metrics.pool_classes(study, probability, how, normalize=False)
    np.testing.assert_allclose(plain.value[:, 2], raw)
    if how == "mean":
        np.testing.assert_allclose(pooled.value, plain.value)
