"""Uncertainty of scores by resampling: the patient bootstrap, means over areas, paired differences."""

from collections.abc import Callable, Hashable, Iterator, Mapping

import numpy as np

from kmura.metrics.intervals import WILSON, Interval, intervals, wilson, with_width

_CELLS = 1 << 20  # numbers drawn at a time: 8 MB, whatever the number of patients and resamples
_MANY = 20_000  # above this number of patients, the sampler that is ten times as fast


class PatientBootstrap:
    """Bootstrap resamples of whole patients, drawn in parts so that they need little memory.

    Attributes:
        ids: [I] the patients, sorted.
        resamples: number of resamples, R; 0 if there are fewer than two patients.
        redrawn: number of resamples that were drawn again, after all were drawn.
    """

    def __init__(self, patient, label=None, *, group=None, resamples: int = 2000, seed: int = 0):
        """Prepares the resamples.

        Args:
            patient: [N] patient ids; the samples of a patient are drawn together.
            label: [N] 0 or 1; a resample without both classes has no AUC and is drawn again. None, or labels of one
                class, accept every resample.
            group: [N] or None; every resample contains both classes of each group (area) that has both, so that
                averages over the groups are defined. If fewer than about 5 % of the resamples would, every resample is
                accepted, and averages are those over the resamples for which they are defined.
            resamples: number of resamples.
            seed: seed of the draws; the same patients and seed give the same draws, also at another level.
        """
        self.ids, place = np.unique(np.asarray(patient), return_inverse=True)
        self.resamples = resamples if len(self.ids) > 1 else 0
        self.redrawn, self._seed = 0, seed
        self._needed = np.empty((len(self.ids), 0))
        if label is not None and self.resamples:
            label = np.asarray(label)
            cells = _cells_needed(label, np.zeros(len(label)) if group is None else np.asarray(group))
            needed = [np.bincount(place[cell], minlength=len(self.ids)) for cell in cells]
            needed = np.array(needed, float).T.reshape(len(self.ids), -1)
            lacking = (1 - (needed > 0).mean(0)) ** len(self.ids)  # probability that a resample lacks a cell
            if np.prod(1 - lacking) >= 0.05:
                self._needed = needed

    def place(self, patient) -> np.ndarray:
        """Returns the columns of the counts that belong to patients [N] of `ids`."""
        return np.searchsorted(self.ids, np.asarray(patient))

    def counts(self) -> Iterator[np.ndarray]:
        """Yields how often each patient is in each resample, [r, I] in parts with R rows in total."""
        number, missing = len(self.ids), self.resamples
        rng, self.redrawn = np.random.default_rng(self._seed), 0
        while missing:
            drawn = _counts(number, min(missing, max(1, _CELLS // number)), rng)
            kept = drawn[(drawn @ self._needed > 0).all(1)] if self._needed.shape[1] else drawn
            self.redrawn += len(drawn) - len(kept)
            missing -= len(kept)
            if len(kept):
                yield kept

    def scores(self, scorers: Mapping[Hashable, Callable]) -> dict[Hashable, dict[str, np.ndarray]]:
        """Returns the scores of all resamples.

        Args:
            scorers: key -> function of counts [r, I] that returns name -> [r] or [r, ...].

        Returns:
            key -> name -> [R] or [R, ...], for the same resamples in the same order; without resamples, the arrays
            have no rows.
        """
        parts = {key: [] for key in scorers}
        for counts in self.counts() if self.resamples else (np.empty((0, len(self.ids))),):
            for key, score in scorers.items():
                parts[key].append(score(counts))
        return {
            key: {name: np.concatenate([part[name] for part in several]) for name in several[0]}
            for key, several in parts.items()
        }


def _counts(number: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Returns how often each of `number` patients is drawn in `number` draws with replacement, [rows, number]."""
    if number <= _MANY:
        return rng.multinomial(number, np.full(number, 1 / number), size=rows).astype(float)
    drawn = (rng.integers(0, number, number) for _ in range(rows))
    return np.stack([np.bincount(patients, minlength=number) for patients in drawn]).astype(float)


def bootstrap_weights(patient, label, *, group=None, resamples: int = 2000, seed: int = 0) -> tuple[np.ndarray, int]:
    """Returns how often each sample is in each resample of a `PatientBootstrap`, and the number of redrawn resamples.

    Holds all weights at once, [R, N]; `PatientBootstrap.scores` does not. There are no rows if there is one patient.

    Args:
        patient, label, group, resamples, seed: see `PatientBootstrap`.
    """
    draws = PatientBootstrap(patient, label, group=group, resamples=resamples, seed=seed)
    place = draws.place(patient)
    weights = [counts[:, place] for counts in draws.counts()]
    return np.concatenate(weights) if weights else np.empty((0, len(place))), draws.redrawn


def cluster_weights(patient, *, resamples: int = 2000, rng: np.random.Generator | None = None) -> np.ndarray:
    """Returns how often each sample is in each resample of whole patients, [resamples, N], regardless of classes.

    Args:
        patient: [N] patient ids.
        resamples: number of resamples.
        rng: the random generator; None is a generator with seed 0.
    """
    ids, inverse = np.unique(np.asarray(patient), return_inverse=True)
    return _counts(len(ids), resamples, rng or np.random.default_rng(0))[:, inverse]


def patient_means(values: Mapping[str, np.ndarray], patient, seed: int = 0) -> dict[str, Interval]:
    """Returns the mean of each array [N] with its 95 % interval from a bootstrap over patients.

    If all resamples are equal, as those of a pointing game without a miss, the interval of values in 0..1 is Wilson's.

    Args:
        values: name -> [N].
        patient: [N] patient ids; one patient allows no statement about others, so there is no interval.
        seed: seed of the draws.
    """
    number = len(np.unique(patient))
    weights = cluster_weights(patient, rng=np.random.default_rng(seed))
    weights = weights if number > 1 else weights[:0]
    whole = {name: np.array([array.mean()]) for name, array in values.items()}
    drawn = {name: weights @ array / weights.sum(1) for name, array in values.items()}
    result = intervals(whole, drawn)
    for name, array in values.items():
        if number > 1 and np.isnan(result[name].low) and (array >= 0).all() and (array <= 1).all():
            result[name] = with_width(whole[name][0], *wilson(whole[name][0], number), WILSON)
    return result


def _cells_needed(label, group) -> list[np.ndarray]:
    """Returns the cells (group, class) that a resample must contain, bool [N] each.

    Groups with a single class have no cells.
    """
    return [
        (group == name) & (label == value)
        for name in np.unique(group)
        for value in (0, 1)
        if len(np.unique(label[group == name])) == 2
    ]


def averages(by_area: Mapping[str, Mapping[str, np.ndarray]], sizes: Mapping[str, int]) -> dict[str, dict]:
    """Returns the means of each score over areas, [R] each: `macro` (unweighted) and `weighted` (by size).

    A mean is NaN if the score of an area is NaN. Neither mean equals the score of the pooled predictions of all areas.

    Args:
        by_area: area -> score name -> [R], for the same R resamples.
        sizes: area -> number of its studies (at image level: images).
    """
    share = np.array([sizes[area] for area in by_area], float)
    result = {"macro": {}, "weighted": {}}
    for name in next(iter(by_area.values()), {}):
        values = np.stack([np.atleast_1d(scores[name]) for scores in by_area.values()])
        result["macro"][name] = values.mean(0)
        result["weighted"][name] = share @ values / share.sum()
    return result


def differences(
    one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], one_drawn, other_drawn, level: float = 0.95
) -> dict[str, Interval]:
    """Returns `other` minus `one` for each score, with the percentile interval of the paired differences.

    A difference that is the same in all resamples has no interval, see `intervals`.

    Args:
        one, other: name -> [1].
        one_drawn, other_drawn: name -> [R], for the SAME resamples in the same order.
        level: coverage, 0..1.
    """
    minus = {name: np.asarray(other[name]) - np.asarray(one[name]) for name in one}
    drawn = {name: np.asarray(other_drawn[name]) - np.asarray(one_drawn[name]) for name in one}
    return intervals(minus, drawn, level)
