"""How much the embeddings of different images differ: statistics that show a collapse of the encoder."""

import dataclasses

import numpy as np

LEAST_STD = 0.1  # of the standard deviation that the method aims at
LEAST_RANK = 2.0


@dataclasses.dataclass(frozen=True)
class Spread:
    """The spread of embeddings.

    Attributes:
        std: the mean over the dimensions of the standard deviation of an embedding. With embeddings of length 1 it is
            multiplied by the square root of the dimensions, so that 1 is an even spread over the sphere (Chen & He
            2021, section 4.1).
        rank: the effective rank, see `effective_rank`.
    """

    std: float
    rank: float

    @property
    def has_collapsed(self) -> bool:
        """Whether nearly all images have the same embedding, or the embeddings vary in fewer than two directions."""
        return not (self.std >= LEAST_STD and self.rank >= LEAST_RANK)

    @property
    def text(self) -> str:
        """What has collapsed, a sentence without an end."""
        if not self.std >= LEAST_STD:
            return f"the standard deviation of the embeddings is {self.std:.3g}, a collapse (below {LEAST_STD})"
        if not self.rank >= LEAST_RANK:
            return f"the effective rank of the embeddings is {self.rank:.3g}, a collapse (below {LEAST_RANK:g})"
        return f"the standard deviation of the embeddings is {self.std:.3g}, their effective rank {self.rank:.3g}"


def spread(embeddings: np.ndarray, *, normalised: bool) -> Spread:
    """Returns the spread of embeddings.

    Args:
        embeddings: [N, D].
        normalised: divide each embedding by its length first.
    """
    embeddings = np.asarray(embeddings, np.float64)
    if normalised:
        lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
        embeddings = np.divide(embeddings, lengths, out=np.zeros_like(embeddings), where=lengths > 0)
    std = embeddings.std(axis=0).mean()
    if normalised:
        std *= np.sqrt(embeddings.shape[1])
    return Spread(float(std), effective_rank(embeddings))


def effective_rank(values: np.ndarray) -> float:
    """Returns the effective rank of the centred values [N, D] (Roy & Vetterli 2007): exp of the entropy of p.

    p are the singular values divided by their sum. It is 0 where all values are equal, and at most min(N - 1, D).
    """
    centred = values - values.mean(axis=0)
    singular = np.linalg.svd(centred, compute_uv=False)
    singular = singular[singular > singular.max(initial=0.0) * 1e-7]
    # rounding errors of equal values are no directions
    if not len(singular) or singular[0] <= 1e-6 * np.abs(values).max() * np.sqrt(values.size):
        return 0.0
    share = singular / singular.sum()
    return float(np.exp(-(share * np.log(share)).sum()))
