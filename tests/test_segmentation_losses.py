"""The losses of segmentation, compared with literal transcriptions of the papers, closed forms and Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kmura.errors import InputError
from kmura.models.unet import build_unet
from kmura.segmentation.overlap_losses import SegmentationLoss, focal, tversky_loss

RNG = np.random.default_rng(11)
CLASSES = 3
LABELS = RNG.integers(0, CLASSES + 1, (2, 3, 4)).astype(np.int32)
LABELS[0, 0, :2] = -1
LABELS[LABELS == 2] = 0  # class 2 is absent
LOGITS = RNG.normal(0, 2, (2, 3, 4, CLASSES + 1)).astype(np.float32)


def softmax(x):
    exponentials = np.exp(x - x.max())
    return exponentials / exponentials.sum()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def literal_index(voxels, alpha, beta, smooth):
    """Equation 3 of Salehi et al. 2017 over pairs (p, g) of a class, term by term."""
    overlap, false_positives, false_negatives = 0.0, 0.0, 0.0
    for p, g in voxels:
        overlap += p * g
        false_positives += p * (1 - g)
        false_negatives += (1 - p) * g
    below = overlap + alpha * false_positives + beta * false_negatives + smooth
    return (overlap + smooth) / below if below else 0.0


def literal_loss(labels, logits, *, alpha, beta, gamma, smooth, tversky, cross_entropy, background, include_background):
    """The loss of one batch, voxel by voxel, in float64."""
    vectors = logits.reshape(-1, logits.shape[-1]).astype(float)
    known = [(label, vector) for label, vector in zip(labels.ravel(), vectors, strict=True) if label >= 0]
    activation = softmax if background else sigmoid
    first = 0 if background else 1
    powers = []
    for channel in range(logits.shape[-1]):
        if background and channel == 0 and not include_background:
            continue
        pairs = [(activation(vector)[channel], float(label == channel + first)) for label, vector in known]
        powers.append((1 - literal_index(pairs, alpha, beta, smooth)) ** (1 / gamma))
    entropies = []
    for label, vector in known:
        if background:
            entropies.append(-np.log(softmax(vector)[label]))
        else:
            p = sigmoid(vector)
            truth = np.array([label == channel + 1 for channel in range(len(p))])
            entropies.append(np.mean(-np.log(np.where(truth, p, 1 - p))))
    return tversky * np.mean(powers) + cross_entropy * (np.mean(entropies) if entropies else 0.0)


@pytest.mark.parametrize("kind", ["softmax", "with background", "sigmoid"])
@pytest.mark.parametrize(
    ("alpha", "beta", "gamma", "smooth"),
    [(0.5, 0.5, 1, 0), (0.85, 0.15, 1, 1), (0.3, 0.7, 4 / 3, 0.1), (1, 1, 3, 0), (0.0, 1.0, 0.5, 2)],
)
@pytest.mark.parametrize(("tversky", "cross_entropy"), [(1, 0), (0, 1), (0.7, 0.4)])
def test_the_loss_is_that_of_the_papers(kind, alpha, beta, gamma, smooth, tversky, cross_entropy):
    options = {"alpha": alpha, "beta": beta, "smooth": smooth, "tversky": tversky, "cross_entropy": cross_entropy}
    options |= {"background": kind != "sigmoid", "include_background": kind == "with background"}
    logits = LOGITS if kind != "sigmoid" else LOGITS[..., 1:]
    expected = literal_loss(LABELS, logits, gamma=gamma, **options)
    loss = SegmentationLoss(focal_gamma=gamma, **options)
    assert float(loss(LABELS, logits)) == pytest.approx(expected, rel=1e-5)
    assert float(loss(LABELS[..., None], logits)) == pytest.approx(expected, rel=1e-5)
    each = [literal_loss(LABELS[[n]], logits[[n]], gamma=gamma, **options) for n in range(2)]
    per_image = SegmentationLoss(focal_gamma=gamma, per_image=True, **options)
    assert np.asarray(per_image.call(LABELS, logits)) == pytest.approx(each, rel=1e-5)
    assert float(per_image(LABELS, logits)) == pytest.approx(np.mean(each), rel=1e-5)


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.5), (0.85, 0.15), (0.2, 1.3)])
def test_each_class_agrees_with_keras(alpha, beta):
    # up to version 3.15.1, Keras exchanges the weights (its pull request 23333): alpha weighs the false negatives
    one_false_positive = float(keras.losses.tversky([1.0, 0.0], [1.0, 1.0], alpha=alpha, beta=beta, axis=(0,)))
    exchanged = one_false_positive == pytest.approx(1 - 1 / (1 + beta), rel=1e-5)
    weights = {"alpha": beta, "beta": alpha} if exchanged else {"alpha": alpha, "beta": beta}
    truth = np.eye(CLASSES + 1, dtype=np.float32)[np.maximum(LABELS, 0)]
    probabilities = np.asarray(keras.ops.softmax(LOGITS))
    known = np.ones((*LABELS.shape, 1), np.float32)
    for axes, per_image in (((0, 1, 2), False), ((1, 2), True)):
        ours = tversky_loss(truth, probabilities, known, alpha=alpha, beta=beta, smooth=0.0, per_image=per_image)
        theirs = keras.losses.tversky(truth, probabilities, **weights, axis=axes)
        assert np.asarray(ours) == pytest.approx(np.asarray(theirs), rel=1e-5)


def counts(true_positives, false_positives, false_negatives):
    """(labels, logits) with certain probabilities and these counts of class 1."""
    labels = np.array([[[1] * true_positives + [0] * false_positives + [1] * false_negatives + [0] * 5]], np.int32)
    predicted = [1] * (true_positives + false_positives) + [0] * (false_negatives + 5)
    return labels, np.eye(2, dtype=np.float32)[[[predicted]]] * 200


def test_the_loss_has_a_closed_form_where_the_network_is_certain():
    labels, logits = counts(6, 3, 2)
    assert float(SegmentationLoss(alpha=0.85, beta=0.15, smooth=0)(labels, logits)) == pytest.approx(
        1 - 6 / (6 + 0.85 * 3 + 0.15 * 2)
    )
    assert float(SegmentationLoss(smooth=0)(labels, logits)) == pytest.approx(1 - 2 * 6 / (2 * 6 + 3 + 2)), "Dice"
    assert float(SegmentationLoss(alpha=1, beta=1, smooth=0)(labels, logits)) == pytest.approx(1 - 6 / 11), "IoU"
    assert float(SegmentationLoss(smooth=1)(labels, logits)) == pytest.approx(1 - 7 / (6 + 0.5 * 3 + 0.5 * 2 + 1))
    uniform = np.zeros((2, 3, 4, 5), np.float32)
    assert float(SegmentationLoss(tversky=0, cross_entropy=1)(LABELS, uniform)) == pytest.approx(np.log(5))


def test_alpha_weighs_false_positives_and_beta_false_negatives():
    strict = SegmentationLoss(alpha=0.9, beta=0.1)
    assert float(strict(*counts(5, 4, 0))) > float(strict(*counts(5, 0, 4)))
    tolerant = SegmentationLoss(alpha=0.1, beta=0.9)
    assert float(tolerant(*counts(5, 4, 0))) < float(tolerant(*counts(5, 0, 4)))


def test_the_published_exponent_of_the_focal_loss_is_1_over_gamma():
    assert float(focal(tf.constant(0.16), 2.0)) == pytest.approx(0.4)
    assert float(focal(tf.constant(0.0081), 4 / 3)) == pytest.approx(0.0081**0.75)


def test_an_unknown_voxel_changes_nothing():
    loss = SegmentationLoss(tversky=1, cross_entropy=1)
    changed = LOGITS.copy()
    changed[LABELS == -1] = 50
    assert float(loss(LABELS, changed)) == float(loss(LABELS, LOGITS))
    logits = tf.constant(LOGITS)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = loss(LABELS, logits)
    truth = np.eye(CLASSES + 1, dtype=np.float32)[LABELS]  # of -1: the last class
    known = (LABELS >= 0).astype(np.float32)[..., None]
    options = {"alpha": 0.5, "beta": 0.5, "smooth": 0.0}
    probabilities = np.asarray(keras.ops.softmax(LOGITS))
    of_truth = [tversky_loss(truth * times, probabilities, known, **options) for times in (1, known)]
    np.testing.assert_array_equal(*of_truth)
    gradient = tape.gradient(value, logits).numpy()
    assert (gradient[LABELS == -1] == 0).all() and (gradient[LABELS >= 0] != 0).any()


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("gamma", [1.0, 4 / 3, 3.0])
@pytest.mark.parametrize("smooth", [0.0, 1.0])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1000.0])
def test_gradients_are_finite(background, gamma, smooth, scale):
    empty, right = np.zeros_like(LABELS), np.argmax(LOGITS, axis=-1).astype(np.int32)
    for labels in (LABELS, empty, empty - 1, right):
        for dtype in (tf.float32, tf.bfloat16, tf.float16):
            logits = tf.cast(LOGITS * scale, dtype)
            loss = SegmentationLoss(
                cross_entropy=1, focal_gamma=gamma, smooth=smooth, background=background, per_image=scale == 1
            )
            with tf.GradientTape() as tape:
                tape.watch(logits)
                value = loss(labels, logits[..., 0 if background else 1 :])
            assert value.dtype == tf.float32 and np.isfinite(value)
            assert np.isfinite(tf.cast(tape.gradient(value, logits), tf.float32)).all()


def test_smoothing_gives_the_false_positives_of_an_absent_class_a_gradient():
    logits = tf.constant(LOGITS[..., 1:])
    found = {}
    for smooth in (0.0, 1.0):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = SegmentationLoss(smooth=smooth, background=False)(LABELS, logits)
        found[smooth] = tape.gradient(value, logits).numpy()[LABELS >= 0][:, 1]  # map of class 2
    assert np.abs(found[0.0]).max() < 1e-7
    assert (found[1.0] > 0).all(), "a higher logit of the absent class raises the loss"


def test_the_loss_can_be_serialised_and_trains_a_network(tmp_path):
    options = {"tversky": 0.5, "cross_entropy": 0.25, "alpha": 0.8, "beta": 0.2, "focal_gamma": 1.5, "smooth": 2.0}
    loss = SegmentationLoss(**options, include_background=True, per_image=True)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert copy.get_config() == loss.get_config() and set(options) < set(copy.get_config())
    assert float(copy(LABELS, LOGITS)) == float(loss(LABELS, LOGITS))
    model = build_unet(classes=CLASSES, widths=(4, 4), seed=0)
    model.compile(keras.optimizers.Adam(0.02), SegmentationLoss(cross_entropy=1), jit_compile=False)
    images = np.repeat(np.repeat(np.maximum(LABELS, 0)[..., None] * 60.0, 2, 1), 2, 2).astype(np.float32)
    labels = np.repeat(np.repeat(LABELS, 2, 1), 2, 2)
    first, *_, last = [model.train_on_batch(images, labels) for _ in range(25)]
    assert last < 0.7 * first
    model.save(tmp_path / "model.keras")
    assert keras.saving.load_model(tmp_path / "model.keras").loss.get_config() == model.loss.get_config()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tversky": 0}, "are both 0"),
        ({"cross_entropy": -1}, "cross_entropy is -1"),
        ({"alpha": 0, "beta": 0}, "alpha is 0"),
        ({"focal_gamma": 0}, "focal_gamma is 0"),
        ({"background": False, "include_background": True}, "include_background needs"),
    ],
)
def test_wrong_arguments_give_one_line(options, message):
    with pytest.raises(InputError, match=message):
        SegmentationLoss(**options)
