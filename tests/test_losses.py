"""Every loss compared with a NumPy transcription of its formula, for hard, soft and smoothed labels."""

import keras
import numpy as np
import pytest

from kmura.classification.losses import (
    BinaryFocalLoss,
    CategoricalFocalLoss,
    WeightedBinaryCrossentropy,
    WeightedCategoricalCrossentropy,
    make_loss,
)
from kmura.config import load_config
from kmura.tasks import Binary, Multiclass, Multilabel

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (7, 4)).astype("float32")
ONE_HOT = np.eye(4, dtype="float32")[RNG.integers(0, 4, 7)]
MIXED = 0.7 * ONE_HOT + 0.3 * ONE_HOT[::-1]
SEVERAL = RNG.integers(0, 2, (7, 4)).astype("float32")


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def softmax(x):
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("weights", [2.5, [0.5, 1.0, 2.0, 4.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_cross_entropy_weights_positives(weights, smoothing):
    y, p = SEVERAL * (1 - smoothing) + smoothing / 2, sigmoid(LOGITS)
    expected = -(np.array(weights) * y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    assert float(WeightedBinaryCrossentropy(weights, smoothing)(SEVERAL, LOGITS)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("labels", [ONE_HOT, MIXED])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_categorical_cross_entropy_weights_classes(labels, smoothing):
    weights = np.array([0.5, 1.0, 2.0, 4.0])
    y = labels * (1 - smoothing) + smoothing / 4
    expected = -(weights * y * np.log(softmax(LOGITS))).sum(1).mean()
    found = WeightedCategoricalCrossentropy(weights, smoothing)(labels, LOGITS)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    plain = WeightedCategoricalCrossentropy(None, smoothing)(labels, LOGITS)
    keras_own = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing)(labels, LOGITS)
    assert float(plain) == pytest.approx(float(keras_own), rel=1e-5)
    assert np.isfinite(float(WeightedCategoricalCrossentropy()([[1.0, 0.0]], [[-1000.0, 1000.0]])))


@pytest.mark.parametrize("alpha", [None, 0.25])
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_the_binary_focal_loss_supports_a_factor_and_alpha(alpha, factor):
    p = sigmoid(LOGITS)
    p_t = np.where(SEVERAL == 1, p, 1 - p)
    a_t = 1.0 if alpha is None else np.where(SEVERAL == 1, alpha, 1 - alpha)
    expected = (factor * a_t * (1 - p_t) ** 2 * -np.log(p_t)).mean()
    loss = BinaryFocalLoss(2.0, factor, alpha)
    assert float(loss(SEVERAL, LOGITS)) == pytest.approx(expected, rel=1e-4)
    again = BinaryFocalLoss.from_config(loss.get_config())
    assert float(again(SEVERAL, LOGITS)) == float(loss(SEVERAL, LOGITS))


def test_a_focal_loss_with_gamma_zero_is_cross_entropy():
    plain = WeightedBinaryCrossentropy()(SEVERAL, LOGITS)
    assert float(BinaryFocalLoss(0.0)(SEVERAL, LOGITS)) == pytest.approx(float(plain), rel=1e-4)


def train(**settings):
    return load_config(None, {f"train.{name}": value for name, value in settings.items()}).train


def test_the_categorical_focal_loss_supports_a_factor_and_class_weights():
    p, weights = softmax(LOGITS), np.array([0.5, 1.0, 2.0, 4.0])
    expected = (2.0 * weights * ONE_HOT * (1 - p) ** 3 * -np.log(p)).sum(1).mean()
    loss = make_loss(Multiclass(()), train(loss="focal", focal_gamma=3.0, focal_factor=2.0), weights)
    assert float(loss(ONE_HOT, LOGITS)) == pytest.approx(expected, rel=1e-4)
    unweighted = make_loss(Multiclass(()), train(loss="focal", focal_gamma=3.0, balance=False), weights)
    expected = (ONE_HOT * (1 - p) ** 3 * -np.log(p)).sum(1).mean()
    assert float(unweighted(ONE_HOT, LOGITS)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("gap", [5.0, 40.0])
def test_confidently_wrong_predictions_have_nonzero_gradients(gap):
    """At a gap of 40 the probability of the true class is 4e-18; the loss is the gap, with gradient 1 per logit."""
    import tensorflow as tf

    one, two = tf.constant([[-gap]]), tf.constant([[-gap / 2, gap / 2]])
    for loss, labels, logits in ((BinaryFocalLoss(2.0), [[1.0]], one), (CategoricalFocalLoss(), [[1.0, 0.0]], two)):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = loss(labels, logits)
        assert float(value) == pytest.approx(gap, rel=0.1)
        assert float(tape.gradient(value, logits)[0, 0]) == pytest.approx(-1, abs=0.1)


def test_multilabel_tasks_have_a_balanced_focal_loss():
    loss = make_loss(Multilabel(()), train(loss="focal"), [3.0, 1.0, 1.0, 9.0])
    p = sigmoid(LOGITS)
    p_t, share = np.where(SEVERAL == 1, p, 1 - p), np.array([0.75, 0.5, 0.5, 0.9])
    expected = (np.where(SEVERAL == 1, share, 1 - share) * (1 - p_t) ** 2 * -np.log(p_t)).mean()
    assert float(loss(SEVERAL, LOGITS)) == pytest.approx(expected, rel=1e-4)


def test_the_categorical_focal_loss_matches_keras_where_keras_does_not_clip():
    ours = CategoricalFocalLoss([0.5, 1.0, 2.0, 4.0], 2.0, 0.1)(MIXED, LOGITS)
    theirs = keras.losses.CategoricalFocalCrossentropy([0.5, 1.0, 2.0, 4.0], 2.0, from_logits=True, label_smoothing=0.1)
    assert float(ours) == pytest.approx(float(theirs(MIXED, LOGITS)), rel=1e-4)


def test_balanced_sampling_replaces_class_weights():
    even = make_loss(Binary(()), train(sampling="balanced"), [9.0])
    assert float(even([[1.0]], [[0.0]])) == float(even([[0.0]], [[0.0]]))


def test_balance_gives_both_classes_of_a_focal_loss_equal_total_weight():
    """With 3 negatives per positive, a positive has three times the weight of a negative."""
    loss = make_loss(Binary(()), train(loss="focal", focal_gamma=0.0), [3.0])
    positive, negative = (float(loss([[label]], [[0.0]])) for label in (1.0, 0.0))
    assert positive / negative == pytest.approx(3.0, rel=1e-5)
    named = make_loss(Binary(()), train(loss="focal", focal_gamma=0.0, focal_alpha=0.9), [3.0])
    assert float(named([[1.0]], [[0.0]])) / float(named([[0.0]], [[0.0]])) == pytest.approx(9.0, rel=1e-4)


def test_the_loss_of_a_task_follows_the_settings():
    logit, label = LOGITS[:, :1], SEVERAL[:, :1]
    ours = make_loss(Binary(()), train(label_smoothing=0.1), [2.0])
    assert float(ours(label, logit)) == float(WeightedBinaryCrossentropy(2.0, 0.1)(label, logit))
    unweighted = make_loss(Multilabel(()), train(balance=False), [2.0, 1.0, 1.0, 1.0])
    assert float(unweighted(SEVERAL, LOGITS)) == float(WeightedBinaryCrossentropy()(SEVERAL, LOGITS))
    two = make_loss(Multiclass(()), train(balance=False), [1.0, 1.0])
    pair = np.concatenate([np.zeros_like(logit), logit], axis=1)
    as_pair = np.concatenate([1 - label, label], axis=1)
    assert float(two(as_pair, pair)) == pytest.approx(float(WeightedBinaryCrossentropy()(label, logit)), rel=1e-5)
