"""Fusion of the class probabilities that the networks of several planes give for the same voxels.

Shapes: P planes, N voxels, K classes with the background as class 0. A block of probabilities is [P, ..., K] in
float32, float16 or uint8 (255 is 1); a volume is a sequence of blocks, such as a few slices each, so that memory stays
bounded.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
from scipy import optimize, special

from kmura.errors import InputError, check_choice
from kmura.metrics.overlap import UNKNOWN, dice

MEAN, MAJORITY, WEIGHTED = "mean", "majority", "weighted"
FUSIONS = (MEAN, MAJORITY, WEIGHTED)
OBJECTIVES = ("dice", "log_loss")
FULL = 255  # uint8 value of the probability 1
STEPS = 20  # of a weight between 0 and 1 in the search for the largest Dice
SWEEPS = 2  # passes over all classes in the search for weights of each class
TINY = 1e-7  # probabilities are at least this in a logarithm


@dataclasses.dataclass(frozen=True)
class PlaneWeights:
    """Weights of the planes, not negative; those of all planes sum to 1.

    Attributes:
        weights: [P], or for each class [P, K].
        objective: value that the weights reach on the voxels that they were fitted on: mean Dice, or log loss.
    """

    weights: np.ndarray
    objective: float = float("nan")

    def __post_init__(self):
        weights = np.asarray(self.weights, float)
        if weights.ndim not in (1, 2) or weights.min() < 0 or not np.allclose(weights.sum(axis=0), 1):
            raise InputError(
                f"the weights of the planes are {weights.tolist()}; give [planes] or [planes, classes] that are not "
                "negative and sum to 1 over the planes"
            )
        object.__setattr__(self, "weights", weights)


def quantized(probabilities: np.ndarray) -> np.ndarray:
    """Returns probabilities as uint8, 1/255 each, which take a quarter of the memory of float32."""
    return np.rint(np.asarray(probabilities, np.float32) * FULL).astype(np.uint8)


def fused_probabilities(block: np.ndarray, weights: PlaneWeights | None = None) -> np.ndarray:
    """Returns the weighted mean of the planes' probabilities, float32 [..., K]; the sum over the classes is 1.

    Args:
        block: [P, ..., K].
        weights: None weighs all planes equally.
    """
    block = _as_float(block)
    if weights is None:
        mean = block.mean(axis=0)
    else:
        factors = weights.weights.astype(np.float32)
        if len(factors) != len(block) or factors.ndim == 2 and factors.shape[1] != block.shape[-1]:
            raise InputError(
                f"there are weights of {factors.shape} planes (and classes), but probabilities of {len(block)} planes "
                f"and {block.shape[-1]} classes; fit the weights on the same planes"
            )
        mean = np.einsum("p...k,pk->...k" if factors.ndim == 2 else "p...k,p->...k", block, factors)
    return mean / np.maximum(mean.sum(axis=-1, keepdims=True), TINY)


def fused_labels(block: np.ndarray, how: str = MEAN, weights: PlaneWeights | None = None) -> np.ndarray:
    """Returns the class numbers of the fused planes, uint8 [...] (uint16 for more than 256 classes).

    `mean`: the most probable class of the mean. `majority`: the class that is the most probable one of more than half
    of the planes (two of three), else the background. `weighted`: the most probable class of the weighted mean.

    Args:
        block: [P, ..., K].
        how: one of FUSIONS.
        weights: for `weighted`.

    Raises:
        InputError: `how` is unknown, or the weights are missing or do not fit.
    """
    check_choice("fusion", how, FUSIONS)
    block = np.asarray(block)
    if how == WEIGHTED and weights is None:
        raise InputError("the fusion weighted needs weights; fit them on validation volumes, or choose mean")
    dtype = np.uint8 if block.shape[-1] <= 256 else np.uint16
    if how != MAJORITY:
        return fused_probabilities(block, weights if how == WEIGHTED else None).argmax(axis=-1).astype(dtype)
    votes = block.argmax(axis=-1)
    labels = np.zeros(votes.shape[1:], dtype)
    for number in range(1, block.shape[-1]):
        labels[2 * (votes == number).sum(axis=0) > len(votes)] = number
    return labels


def fit_plane_weights(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
    *,
    objective: str = "dice",
    per_class: bool = False,
    voxels: int = 200_000,
    seed: int = 0,
) -> PlaneWeights:
    """Returns the weights of the planes that are best on validation volumes; the same blocks give the same weights.

    `dice` maximises the mean Dice coefficient of the most probable classes, without the background: by a search over
    all weights that are multiples of 1/20, where the most equal weights win a tie; with `per_class`, those of one class
    at a time, starting from the weights of all classes. `log_loss` minimises the mean negative logarithm of the fused
    probability of the true class, by L-BFGS.

    The blocks are read once. Kept is a random sample of at most `voxels` voxels of which the planes have different most
    probable classes (for which alone the weights of all classes matter to the Dice) and of at most as many others; each
    stands for the voxels that are left out.

    Args:
        blocks: (probabilities [P, ..., K], class numbers [...], with -1 for unknown voxels) each.
        objective: one of OBJECTIVES.
        per_class: whether each class has its own weights.
        voxels: size of the sample of each kind; both together need up to 16 P K bytes per voxel while they are read.
        seed: of the sample.

    Raises:
        InputError: the objective is unknown, or no voxel has a label.
    """
    check_choice("objective", objective, OBJECTIVES)
    probabilities, labels, counts = _sample(blocks, voxels, seed)
    planes, _, classes = probabilities.shape
    if objective == "log_loss":
        return _least_log_loss(probabilities, labels, counts, per_class)
    weights, value = _largest_dice(probabilities, labels, counts)
    if per_class:
        weights, value = _largest_dice_per_class(
            probabilities, labels, counts, np.repeat(weights[:, None], classes, axis=1)
        )
    return PlaneWeights(weights, value)


class _Stratum:
    """A random sample of voxels of unknown number: each kept voxel has an independent uniform key below a limit."""

    def __init__(self, size: int, rng: np.random.Generator):
        self._size, self._rng, self._limit = size, rng, 1.0
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, probabilities: np.ndarray, labels: np.ndarray) -> None:
        """Adds voxels, probabilities [P, n, K] and labels [n]."""
        keys = self._rng.random(len(labels))
        kept = keys < self._limit
        self._parts.append((probabilities[:, kept].astype(np.float32), labels[kept], keys[kept]))
        if sum(len(part[1]) for part in self._parts) > 2 * self._size:
            self._thin()

    def _thin(self) -> None:
        """Keeps the voxels with the smallest keys, at most the size of the sample."""
        if sum(len(part[1]) for part in self._parts) <= self._size:
            return
        probabilities, labels, keys = self._joined()
        self._limit = np.partition(keys, self._size)[self._size]
        kept = keys < self._limit
        self._parts = [(probabilities[:, kept], labels[kept], keys[kept])]

    def _joined(self):
        probabilities, labels, keys = zip(*self._parts, strict=True)
        return np.concatenate(probabilities, axis=1), np.concatenate(labels), np.concatenate(keys)

    def sample(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns probabilities [P, n, K], labels [n], and how many voxels each stands for [n]."""
        self._thin()
        probabilities, labels, _ = self._joined()
        return probabilities, labels, np.full(len(labels), 1 / self._limit)


def _sample(blocks, voxels: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns probabilities [P, N, K], labels [N] and counts [N] of a sample, see `fit_plane_weights`."""
    rng = np.random.default_rng(seed)
    strata = {contested: _Stratum(voxels, rng) for contested in (True, False)}
    number = 0
    for block, truth in blocks:
        block = _as_float(np.asarray(block).reshape(len(block), -1, np.shape(block)[-1]))
        truth = np.asarray(truth).reshape(-1).astype(np.int64)
        known = truth != UNKNOWN
        block, truth = block[:, known], truth[known]
        votes = block.argmax(axis=-1)
        contested = (votes != votes[0]).any(axis=0)
        for kind, stratum in strata.items():
            chosen = contested == kind
            stratum.add(block[:, chosen], truth[chosen])
        number += len(truth)
    if not number:
        raise InputError("no voxel of the validation volumes has a label; weights of planes cannot be fitted")
    parts = [stratum.sample() for stratum in strata.values()]
    probabilities, labels, counts = zip(*parts, strict=True)
    return np.concatenate(probabilities, axis=1), np.concatenate(labels), np.concatenate(counts)


def _least_log_loss(probabilities, labels, counts, per_class: bool) -> PlaneWeights:
    planes, number, classes = probabilities.shape
    shape = (planes, classes) if per_class else (planes,)
    share = counts / counts.sum()
    true = probabilities[:, np.arange(number), labels]  # [P, N]
    sums = probabilities.sum(axis=-1)  # [P, N]

    def loss(free):
        weights = special.softmax(free.reshape(shape), axis=0)
        if per_class:
            above = (true * weights[:, labels]).sum(axis=0)
            below = sum(plane @ of_plane for plane, of_plane in zip(probabilities, weights, strict=True))
        else:
            above, below = weights @ true, weights @ sums
        above, below = np.maximum(above, TINY), np.maximum(below, TINY)
        of_above, of_below = share / above, share / below
        if per_class:
            slope = np.stack([of_below @ plane for plane in probabilities])
            slope -= np.stack([np.bincount(labels, of_above * plane, classes) for plane in true])
        else:
            slope = sums @ of_below - true @ of_above
        gradient = weights * (slope - (weights * slope).sum(axis=0))  # through the softmax
        return float(share @ np.log(below / above)), gradient.ravel()

    found = optimize.minimize(loss, np.zeros(np.prod(shape)), jac=True, method="L-BFGS-B")
    return PlaneWeights(special.softmax(found.x.reshape(shape), axis=0), float(found.fun))


def _largest_dice(probabilities, labels, counts) -> tuple[np.ndarray, float]:
    """Returns the weights [P] of a lattice with the largest mean Dice, and this value."""
    planes, _, classes = probabilities.shape
    votes = probabilities.argmax(axis=-1)
    contested = (votes != votes[0]).any(axis=0)
    agreed = _confusion(labels[~contested], votes[0, ~contested], counts[~contested], classes)
    disputed, truth, times = probabilities[:, contested], labels[contested], counts[contested]

    def value(weights):
        predicted = np.tensordot(weights.astype(np.float32), disputed, 1).argmax(axis=-1)
        return _mean_dice(agreed + _confusion(truth, predicted, times, classes))

    return _best(_lattice(planes), value)


def _largest_dice_per_class(probabilities, labels, counts, weights) -> tuple[np.ndarray, float]:
    """Returns weights [P, K] whose mean Dice is at least that of the given ones, and this value."""
    planes, number, classes = probabilities.shape
    lattice = _lattice(planes)
    scores = np.einsum("pnk,pk->nk", probabilities, weights.astype(np.float32))
    best = _mean_dice(_confusion(labels, scores.argmax(axis=-1), counts, classes))
    for _ in range(SWEEPS):
        for place in range(classes):
            others = scores.copy()
            others[:, place] = -np.inf
            second = others.argmax(axis=-1)
            limit = others[np.arange(number), second]
            own = probabilities[:, :, place]

            def value(candidate, own=own, limit=limit, second=second, place=place):
                mine = candidate.astype(np.float32) @ own
                wins = (mine > limit) | ((mine == limit) & (place < second))  # as argmax does
                return _mean_dice(_confusion(labels, np.where(wins, place, second), counts, classes))

            candidate, found = _best(lattice, value)
            if found > best + 1e-12:
                best, weights[:, place] = found, candidate
                scores[:, place] = candidate.astype(np.float32) @ own
    return weights, best


def _lattice(planes: int) -> list[np.ndarray]:
    """Returns all weights that are multiples of 1 / STEPS and sum to 1, the most equal ones first."""

    def split(total, parts):
        if parts == 1:
            yield (total,)
            return
        for first in range(total + 1):
            for rest in split(total - first, parts - 1):
                yield (first, *rest)

    found = [np.full(planes, 1 / planes)]  # the mean is a candidate, though 1/3 is no multiple of 1/20
    found += [np.array(parts) / STEPS for parts in split(STEPS, planes)]
    return sorted(found, key=lambda weights: (round(float((weights**2).sum()), 9), tuple(weights)))


def _best(candidates: list[np.ndarray], value) -> tuple[np.ndarray, float]:
    """Returns the first candidate with the largest value, and this value."""
    values = [value(candidate) for candidate in candidates]
    place = int(np.argmax(np.round(values, 12)))
    return candidates[place], float(values[place])


def _confusion(truth, predicted, counts, classes: int) -> np.ndarray:
    cells = np.bincount(truth * classes + predicted, counts, classes * classes)
    return cells.reshape(classes, classes)


def _mean_dice(matrix: np.ndarray) -> float:
    """Returns the mean Dice of the classes that are present, without the background; 0 if there are none."""
    values = dice(matrix)[1:]
    return float(np.nanmean(values)) if np.isfinite(values).any() else 0.0


def _as_float(block: np.ndarray) -> np.ndarray:
    """Returns probabilities as float32 in 0..1."""
    block = np.asarray(block)
    return block.astype(np.float32) / np.float32(FULL) if block.dtype == np.uint8 else block.astype(np.float32)
