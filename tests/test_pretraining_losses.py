"""Losses of pretraining and LARS, compared with slow literal transcriptions of the papers and closed-form values."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kmura.pretraining.collapse import effective_rank, spread
from kmura.pretraining.embedding_losses import covariance, invariance, nt_xent, variance
from kmura.training.optimizers import LARS


def cosine(a, b):
    return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def literal_nt_xent(first, second, temperature, groups=None):
    """Equation 1 of Chen et al. 2020, term by term, with loops."""
    pairs = len(first)
    z = [*first, *second]
    groups = [*groups, *groups] if groups is not None else list(range(pairs)) * 2
    total = 0.0
    for i in range(2 * pairs):
        j = (i + pairs) % (2 * pairs)
        below = 0.0
        for k in range(2 * pairs):
            if k == j or (k != i and groups[k] != groups[i]):
                below += np.exp(cosine(z[i], z[k]) / temperature)
        total += -np.log(np.exp(cosine(z[i], z[j]) / temperature) / below)
    return total / (2 * pairs)


def literal_variance(z, gamma=1.0, epsilon=1e-4):
    columns = [[row[d] for row in z] for d in range(len(z[0]))]
    deviations = []
    for column in columns:
        mean = sum(column) / len(column)
        deviations.append(np.sqrt(sum((x - mean) ** 2 for x in column) / (len(column) - 1) + epsilon))
    return sum(max(0.0, gamma - s) for s in deviations) / len(deviations)


def literal_covariance(z):
    n, dimensions = z.shape
    mean = z.mean(axis=0)
    matrix = sum(np.outer(row - mean, row - mean) for row in z) / (n - 1)
    return sum(matrix[i, j] ** 2 for i in range(dimensions) for j in range(dimensions) if i != j) / dimensions


def embeddings(pairs, dimensions, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(2, pairs, dimensions)) * scale).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 2.0])
@pytest.mark.parametrize(("pairs", "dimensions"), [(1, 3), (2, 2), (7, 16)])
def test_nt_xent_is_equation_1_of_the_paper(pairs, dimensions, temperature):
    first, second = embeddings(pairs, dimensions)
    expected = literal_nt_xent(first, second, temperature)
    assert float(nt_xent(first, second, temperature)) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    # the scale of an embedding does not matter, nor the order of the views
    assert float(nt_xent(3 * second, 0.1 * first, temperature)) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_pairs_of_one_study_are_not_negatives_of_each_other():
    first, second = embeddings(6, 8)
    groups = np.array([0, 1, 0, 2, 1, 0], np.int32)
    value = float(nt_xent(first, second, 0.5, groups))
    assert value == pytest.approx(literal_nt_xent(first, second, 0.5, groups), rel=1e-5)
    assert value < float(nt_xent(first, second, 0.5))
    apart = np.arange(6, dtype=np.int32)
    assert float(nt_xent(first, second, 0.5, apart)) == float(nt_xent(first, second, 0.5))


def test_nt_xent_of_equal_and_of_orthogonal_embeddings_has_a_closed_form():
    pairs = 5
    same = np.ones((pairs, 4), np.float32)
    assert float(nt_xent(same, same, 0.5)) == pytest.approx(np.log(2 * pairs - 1), rel=1e-5)
    apart = np.eye(pairs, dtype=np.float32)
    expected = -np.log(np.exp(1 / 0.5) / (np.exp(1 / 0.5) + 2 * pairs - 2))
    assert float(nt_xent(apart, apart, 0.5)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
@pytest.mark.parametrize(("pairs", "dimensions"), [(2, 1), (3, 5), (16, 8)])
def test_the_terms_of_vicreg_are_those_of_the_paper(pairs, dimensions, scale):
    first, second = embeddings(pairs, dimensions, scale=scale)
    wide = first.astype(np.float64)
    assert float(variance(first)) == pytest.approx(literal_variance(wide), rel=1e-4, abs=1e-6)
    assert float(covariance(first)) == pytest.approx(literal_covariance(wide), rel=1e-4, abs=1e-6 * scale**4)
    expected = np.mean([np.sum((a - b) ** 2) / dimensions for a, b in zip(first, second, strict=True)])
    assert float(invariance(first, second)) == pytest.approx(expected, rel=1e-5)


def test_the_terms_of_vicreg_have_closed_forms():
    spread_out = np.array([[1.0, -1.0], [-1.0, 1.0]], np.float32) * 3
    assert float(invariance(spread_out, spread_out)) == 0
    assert float(variance(spread_out)) == 0, "each dimension has a standard deviation above gamma"
    assert float(covariance(spread_out)) == pytest.approx(18.0**2), "both dimensions have the covariance -18"
    same = np.full((4, 3), 7.0, np.float32)
    assert float(variance(same)) == pytest.approx(1 - 0.01), "gamma - sqrt(epsilon)"
    assert float(covariance(same)) == 0


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e4])
def test_gradients_of_all_losses_are_finite(scale):
    first, second = (tf.constant(values) for values in embeddings(4, 6, scale=scale))
    losses = (
        lambda: nt_xent(first, second, 0.05),
        lambda: nt_xent(first, second, 0.5, tf.zeros(4, tf.int32)),
        lambda: invariance(first, second),
        lambda: variance(first),
        lambda: covariance(first),
    )
    for loss in losses:
        with tf.GradientTape() as tape:
            tape.watch([first, second])
            value = loss()
        gradients = tape.gradient(value, [first, second], unconnected_gradients="zero")
        assert np.isfinite(value) and all(np.isfinite(gradient).all() for gradient in gradients)


def literal_lars(weight, gradients, rate, momentum, l2, trust, adapted):
    """Algorithm 1 of You et al. 2017."""
    velocity = np.zeros_like(weight)
    for step, gradient in enumerate(gradients):
        if adapted:
            length, slope = np.sqrt((weight**2).sum()), np.sqrt((gradient**2).sum())
            local = trust * length / (slope + l2 * length) if length > 0 and slope > 0 else 1.0
            update = local * (gradient + l2 * weight)
        else:
            update = gradient
        velocity = momentum * velocity + rate(step) * update
        weight = weight - velocity
    return weight


@pytest.mark.parametrize("shape", [(3, 4), (2, 2, 3, 5)])
def test_lars_is_algorithm_1_of_the_paper(shape):
    rng = np.random.default_rng(0)
    weight, gradients = rng.normal(size=shape), rng.normal(size=(5, *shape)) * 10
    gradients[2] = 0  # no adaptation where the gradient is zero
    schedule = keras.optimizers.schedules.CosineDecay(0.4, 8)
    settings = {"momentum": 0.8, "l2": 0.01, "trust": 0.02}
    variable, excluded = (keras.Variable(weight.astype("float32")) for _ in range(2))
    bias = keras.Variable(weight.ravel().astype("float32"))
    optimizer = LARS(schedule, **settings)
    optimizer.exclude([excluded])
    for gradient in gradients.astype("float32"):
        optimizer.apply([gradient, gradient, gradient.ravel()], [variable, excluded, bias])

    def rate(step):
        return float(schedule(step))

    expected = literal_lars(weight, gradients, rate, **settings, adapted=True)
    plain = literal_lars(weight, gradients, rate, **settings, adapted=False)
    assert variable.numpy() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert excluded.numpy() == pytest.approx(plain, rel=1e-4, abs=1e-5)
    assert bias.numpy() == pytest.approx(plain.ravel(), rel=1e-4, abs=1e-5), "biases and norms are not adapted"
    config = LARS.from_config(optimizer.get_config()).get_config()
    assert (config["momentum"], config["l2"], config["trust"]) == (0.8, 0.01, 0.02)


def test_the_effective_rank_counts_directions():
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(50, 50)))[0]
    directions -= directions.mean(axis=0)
    basis = np.linalg.qr(directions[:, :4])[0]  # four orthogonal directions of length 1, each with mean 0
    assert effective_rank(basis @ rng.normal(size=(4, 4)) * 0 + basis) == pytest.approx(4, abs=1e-6)
    assert effective_rank(basis[:, :1] * np.ones((1, 9)) + 5) == pytest.approx(1, abs=1e-6)
    assert effective_rank(np.full((20, 6), 0.3, np.float32).astype(float)) == 0


def test_a_collapse_is_recognised_in_either_form():
    rng = np.random.default_rng(0)
    healthy = rng.normal(size=(200, 16))
    assert spread(healthy, normalised=True).std == pytest.approx(1, abs=0.05)
    assert not spread(healthy, normalised=True).has_collapsed and not spread(healthy, normalised=False).has_collapsed
    nearly_equal = 1 + 1e-3 * healthy
    assert spread(nearly_equal, normalised=True).has_collapsed and spread(nearly_equal, normalised=False).has_collapsed
    # tiny embeddings in all directions: only a method that compares lengths has collapsed
    assert spread(1e-3 * healthy, normalised=False).has_collapsed
    assert not spread(1e-3 * healthy, normalised=True).has_collapsed
    line = rng.normal(size=(200, 1)) * np.ones((1, 16))
    assert spread(line, normalised=False).has_collapsed and "rank" in spread(line, normalised=False).text
    assert spread(np.zeros((5, 3)), normalised=True).has_collapsed
