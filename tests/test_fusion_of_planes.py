"""Fusion of the planes of a volume: literal definitions, fitted weights whose best values are known, bounded memory."""

import numpy as np
import pytest
from scipy import optimize, special
from sklearn import metrics as sklearn

from kmura.errors import InputError
from kmura.segmentation.plane_fusion import (
    PlaneWeights,
    fit_plane_weights,
    fused_labels,
    fused_probabilities,
    quantized,
)

K = 4


def planes(shape=(6, 5, 4), sharpness=(2.0, 2.0, 2.0), seed=0):
    """(probabilities [3, ..., K], truth [...]): a sharper plane is right more often."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, K, shape)
    logits = rng.normal(size=(len(sharpness), *shape, K)) + np.eye(K)[truth] * np.reshape(
        sharpness, (-1, *[1] * (len(shape) + 1))
    )
    return special.softmax(logits, axis=-1).astype(np.float32), truth


def votes_of(block):
    """The published rule, voxel by voxel."""
    labels = np.zeros(block.shape[1:-1], int)
    for place in np.ndindex(labels.shape):
        votes = [int(np.argmax(plane[place])) for plane in block]
        agreed = [vote for vote in votes if votes.count(vote) >= 2]
        labels[place] = agreed[0] if agreed else 0
    return labels


def test_the_mean_is_the_most_probable_class_of_the_mean():
    block, _ = planes()
    np.testing.assert_allclose(fused_probabilities(block), np.mean(block, axis=0), rtol=1e-5)
    labels = fused_labels(block)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, np.mean(block, axis=0).argmax(axis=-1))


def test_the_majority_is_the_class_of_two_planes_or_else_the_background():
    block, _ = planes()
    np.testing.assert_array_equal(fused_labels(block, "majority"), votes_of(block))
    votes = block.argmax(axis=-1)
    apart = (votes[0] != votes[1]) & (votes[1] != votes[2]) & (votes[0] != votes[2])
    assert apart.any() and (fused_labels(block, "majority")[apart] == 0).all()
    assert (fused_labels(block)[apart] != 0).any(), "the mean decides otherwise"
    np.testing.assert_array_equal(fused_labels(block[[0, 0, 1, 1]], "majority"), votes_of(block[[0, 1]]))


def test_weights_of_planes_and_of_classes_have_their_literal_meaning():
    block, _ = planes()
    weights = np.array([0.5, 0.2, 0.3])
    expected = sum(weight * plane for weight, plane in zip(weights, block, strict=True))
    np.testing.assert_allclose(fused_probabilities(block, PlaneWeights(weights)), expected, rtol=1e-5)
    of_class = np.array([[0.5, 0.1, 0.0, 1.0], [0.3, 0.1, 0.4, 0.0], [0.2, 0.8, 0.6, 0.0]])
    expected = np.zeros(block.shape[1:])
    for place in np.ndindex(expected.shape):
        expected[place] = sum(of_class[plane, place[-1]] * block[(plane, *place)] for plane in range(3))
    found = fused_probabilities(block, PlaneWeights(of_class))
    np.testing.assert_allclose(found, expected / expected.sum(axis=-1, keepdims=True), rtol=1e-5)
    np.testing.assert_array_equal(fused_labels(block, "weighted", PlaneWeights(of_class)), expected.argmax(axis=-1))


@pytest.mark.parametrize("how", ["mean", "majority", "weighted"])
def test_bytes_and_half_floats_give_the_labels_of_float32(how):
    block, _ = planes((7, 5, 4))
    weights = PlaneWeights([0.6, 0.3, 0.1]) if how == "weighted" else None
    rounded = (np.rint(block * 255) / 255).astype(np.float32)
    np.testing.assert_array_equal(fused_labels(quantized(block), how, weights), fused_labels(rounded, how, weights))
    halves = fused_labels(block.astype(np.float16), how, weights)
    assert (halves == fused_labels(block, how, weights)).mean() > 0.98


def mean_dice(labels, truth):
    return sklearn.f1_score(truth.ravel(), labels.ravel(), labels=range(1, K), average="macro")


@pytest.mark.parametrize("per_class", [False, True])
def test_fitted_weights_have_the_largest_dice(per_class):
    block, truth = planes((12, 10, 10), sharpness=(0.3, 1.0, 2.5))
    truth[0] = -1
    parts = [(block[:, start : start + 5], truth[start : start + 5]) for start in (0, 5, 10)]
    fitted = fit_plane_weights(parts, per_class=per_class)
    known, values = block[:, 1:], []
    for first in np.arange(0, 1.001, 0.05):
        for second in np.arange(0, 1.001 - first, 0.05):
            weights = PlaneWeights([first, second, max(0, 1 - first - second)])
            values.append(mean_dice(fused_labels(known, "weighted", weights), truth[1:]))
    reached = mean_dice(fused_labels(known, "weighted", fitted), truth[1:])
    assert fitted.objective == pytest.approx(reached, abs=2e-3)
    if per_class:
        assert fitted.weights.shape == (3, K) and reached > max(values)
    else:
        assert reached == pytest.approx(max(values), abs=2e-3)
    assert reached > mean_dice(fused_labels(known), truth[1:]) + 0.01


@pytest.mark.parametrize("per_class", [False, True])
def test_fitted_weights_have_the_least_log_loss(per_class):
    block, truth = planes((12, 10, 10), sharpness=(0.3, 1.0, 2.5))
    fitted = fit_plane_weights([(block, truth)], objective="log_loss", per_class=per_class)

    def log_loss(weights):
        return sklearn.log_loss(truth.ravel(), fused_probabilities(block, PlaneWeights(weights)).reshape(-1, K))

    assert fitted.objective == pytest.approx(log_loss(fitted.weights), rel=1e-4)
    shape = (3, K) if per_class else (3,)
    other = optimize.minimize(
        lambda free: log_loss(special.softmax(free.reshape(shape), axis=0)),
        np.zeros(np.prod(shape)),
        method="Powell",
        options={"maxiter": 3 if per_class else 20},
    )
    assert fitted.objective <= other.fun + 1e-4
    assert fitted.objective < log_loss(np.full(shape, 1 / 3)) - 0.02


def test_ties_count_as_in_the_labels():
    block, truth = planes((12, 10, 10), sharpness=(0.3, 1.0, 2.5))
    coarse = np.round(block * 2) / 2  # many voxels have two classes with the same probability
    for per_class in (False, True):
        fitted = fit_plane_weights([(coarse, truth)], per_class=per_class)
        reached = mean_dice(fused_labels(coarse, "weighted", fitted), truth)
        assert fitted.objective == pytest.approx(reached, abs=2e-3)


def test_equal_planes_have_equal_weights():
    block, truth = planes((6, 6, 6))
    same = np.stack([block[0]] * 3)
    for objective in ("dice", "log_loss"):
        found = fit_plane_weights([(same, truth)], objective=objective).weights
        assert found == pytest.approx(np.full(3, 1 / 3), abs=1e-4)


def test_a_useless_plane_has_no_weight():
    block, truth = planes((10, 10, 10), sharpness=(3.0, 3.0, 3.0))
    wrong = np.roll(block[2], 1, axis=-1)  # certain and wrong
    found = fit_plane_weights([(np.stack([block[0], block[1], wrong]), truth)], objective="log_loss").weights
    assert found[2] < 0.05 and found[:2].min() > 0.3


def test_a_sample_of_the_voxels_gives_nearly_the_same_weights_and_is_the_same_each_time():
    block, truth = planes((30, 20, 20), sharpness=(0.3, 1.0, 2.5))
    parts = [(block[:, place : place + 3], truth[place : place + 3]) for place in range(0, 30, 3)]
    whole = fit_plane_weights(parts, objective="log_loss")
    sampled = fit_plane_weights(parts, objective="log_loss", voxels=1500)
    assert sampled.weights == pytest.approx(whole.weights, abs=0.06)
    assert sampled.objective == pytest.approx(whole.objective, rel=0.05)
    again = fit_plane_weights(iter(parts), objective="log_loss", voxels=1500)
    np.testing.assert_array_equal(again.weights, sampled.weights)
    other = fit_plane_weights(parts, objective="log_loss", voxels=1500, seed=1)
    assert not np.array_equal(other.weights, sampled.weights)


def test_wrong_arguments_give_one_line():
    block, truth = planes()
    with pytest.raises(InputError, match="fusion 'vote' is unknown; choose one of mean, majority, weighted"):
        fused_labels(block, "vote")
    with pytest.raises(InputError, match="weighted needs weights"):
        fused_labels(block, "weighted")
    with pytest.raises(InputError, match="fit the weights on the same planes"):
        fused_labels(block, "weighted", PlaneWeights([0.5, 0.5]))
    for wrong in ([0.5, 0.4, 0.0], [1.5, -0.5, 0.0], 1.0):
        with pytest.raises(InputError, match="sum to 1"):
            PlaneWeights(wrong)
    with pytest.raises(InputError, match="no voxel"):
        fit_plane_weights([(block, np.full_like(truth, -1))])
    with pytest.raises(InputError, match="objective 'iou' is unknown"):
        fit_plane_weights([(block, truth)], objective="iou")
