"""Parity of the losses of pretraining, and of their gradients, with lightly."""

import numpy as np
import pytest
import tensorflow as tf

torch = pytest.importorskip("torch", reason="parity tests run by make parity")

import lightly_losses  # noqa: E402

from kmura.pretraining.embedding_losses import covariance, invariance, nt_xent, variance  # noqa: E402

SHAPES = [(2, 3), (7, 16), (64, 128), (32, 512)]


@pytest.fixture(scope="module")
def lightly():
    return lightly_losses.losses()


def both(ours, theirs, pairs, dimensions, scale):
    """Losses and gradients of the embeddings: (ours, theirs), each (scalar, [2, B, D])."""
    values = (np.random.default_rng(pairs).normal(size=(2, pairs, dimensions)) * scale).astype(np.float32)
    views = tf.Variable(values)
    with tf.GradientTape() as tape:
        loss = ours(views[0], views[1])
    tensor = torch.tensor(values, requires_grad=True)
    expected = theirs(tensor[0], tensor[1])
    expected.backward()
    gradient = tf.convert_to_tensor(tape.gradient(loss, views)).numpy()
    return (float(loss), gradient), (float(expected.detach()), tensor.grad.numpy())


def assert_equal(ours, theirs):
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    assert ours[1] == pytest.approx(theirs[1], abs=1e-5 * float(np.abs(theirs[1]).max()))


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
@pytest.mark.parametrize(("pairs", "dimensions"), SHAPES)
def test_nt_xent_and_its_gradient_are_those_of_lightly(lightly, pairs, dimensions, temperature, scale):
    theirs = lightly[0](temperature=temperature)
    assert_equal(*both(lambda a, b: nt_xent(a, b, temperature), theirs, pairs, dimensions, scale))


@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0])
@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
@pytest.mark.parametrize(("pairs", "dimensions"), SHAPES)
def test_the_terms_of_vicreg_and_their_gradients_are_those_of_lightly(lightly, pairs, dimensions, weights, scale):
    def ours(first, second):
        return (
            weights[0] * invariance(first, second)
            + weights[1] * (variance(first) + variance(second)) / 2
            + weights[2] * (covariance(first) + covariance(second))
        )

    theirs = lightly[1](lambda_param=weights[0], mu_param=weights[1], nu_param=weights[2])
    assert_equal(*both(ours, theirs, pairs, dimensions, scale))
