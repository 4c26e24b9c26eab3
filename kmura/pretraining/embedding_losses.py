"""The losses of pretraining, as functions of the embeddings of two views of the same images.

Shapes: B pairs, D dimensions of an embedding. Everything is computed in float32.
"""

import keras
import tensorflow as tf
from keras import ops


def nt_xent(first, second, temperature: float, groups=None):
    """Returns NT-Xent, the normalised temperature-scaled cross-entropy (Chen et al. 2020, equation 1), a scalar.

    For each of the 2 B embeddings, the other view of its pair has to be found among all other embeddings of the batch:

        l(i, j) = -log(exp(s(i, j) / t) / sum_{k != i} exp(s(i, k) / t)), s the cosine similarity,

    averaged over the 2 B ordered positive pairs.

    Args:
        first, second: [B, D].
        temperature: t, above 0.
        groups: integers [B]; pairs of the same group (images of one study) are not negatives of each other. None: all
            pairs are.
    """
    pairs = ops.shape(first)[0]
    embeddings = _normalised(ops.concatenate([first, second]))
    similarity = ops.matmul(embeddings, ops.transpose(embeddings)) / temperature  # [2 B, 2 B]
    place = ops.arange(2 * pairs)
    positive = (place + pairs) % (2 * pairs)
    left_out = place[:, None] == place[None, :]
    if groups is not None:
        groups = ops.concatenate([groups, groups])
        left_out = left_out | ((groups[:, None] == groups[None, :]) & (positive[:, None] != place[None, :]))
    similarity = ops.where(left_out, -1e9, similarity)
    return ops.mean(keras.losses.sparse_categorical_crossentropy(positive, similarity, from_logits=True))


def invariance(first, second):
    """Returns the invariance term of VICReg: the mean squared difference of the two embeddings of a pair.

    This is equation 5 of Bardes et al. 2022 divided by D, as in their code.

    Args:
        first, second: [B, D].
    """
    return ops.mean(ops.square(_float(first) - _float(second)))


def variance(embeddings, gamma: float = 1.0, epsilon: float = 1e-4):
    """Returns the variance term of VICReg (Bardes et al. 2022, equations 1 and 2): mean of max(0, gamma - std).

    std = sqrt(variance + epsilon), of each dimension over the batch, with the unbiased variance.

    Args:
        embeddings: [B, D], B at least 2.
        gamma: the standard deviation that every dimension should reach.
        epsilon: avoids infinite gradients at zero variance.
    """
    embeddings = _float(embeddings)
    centred = embeddings - ops.mean(embeddings, axis=0, keepdims=True)
    unbiased = ops.sum(ops.square(centred), axis=0) / _degrees(embeddings)
    return ops.mean(ops.relu(gamma - ops.sqrt(unbiased + epsilon)))


def covariance(embeddings):
    """Returns the covariance term of VICReg (Bardes et al. 2022, equations 3 and 4).

    It is the sum of the squares of all entries of the covariance matrix outside its diagonal, divided by D.

    Args:
        embeddings: [B, D], B at least 2.
    """
    embeddings = _float(embeddings)
    centred = embeddings - ops.mean(embeddings, axis=0, keepdims=True)
    matrix = ops.matmul(ops.transpose(centred), centred) / _degrees(embeddings)
    off_diagonal = ops.sum(ops.square(matrix)) - ops.sum(ops.square(ops.diagonal(matrix)))
    return off_diagonal / embeddings.shape[1]


def _float(values):
    return ops.cast(values, "float32")


def _degrees(embeddings):
    """Degrees of freedom of a variance over the batch, B - 1."""
    return ops.cast(ops.shape(embeddings)[0], "float32") - 1


def _normalised(embeddings):
    """The embeddings divided by their length; zeros stay zeros, with a finite gradient unlike `keras.ops.normalize`."""
    return tf.math.l2_normalize(_float(embeddings), axis=-1, epsilon=1e-12)
