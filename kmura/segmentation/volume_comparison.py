"""Comparison of segmentation runs over the same volumes."""

import dataclasses
import itertools
import os
from collections.abc import Sequence

import numpy as np

from kmura.errors import InputError
from kmura.metrics import overlap
from kmura.metrics.intervals import Interval
from kmura.runs.run import Run
from kmura.segmentation.targets import pairs
from kmura.segmentation.volume_scores import VolumeScores, read_evaluation

SCORES = ("dice", "iou")  # that are compared


@dataclasses.dataclass(frozen=True)
class VolumeDifference:
    """The score of the second model minus that of the first one.

    Attributes:
        score: `dice` or `iou`, the mean over the classes of a volume.
        first, second: models.
        value: the mean over the volumes; its interval is None with fewer than five of them.
    """

    score: str
    first: str
    second: str
    value: float
    interval: Interval | None


@dataclasses.dataclass(frozen=True)
class VolumeComparison:
    """What `compare_volumes` returns.

    Attributes:
        split: of the volumes.
        volumes: their names.
        scores: model -> name -> score of all voxels of the volumes together: `dice`, `iou` (means over the classes) and
            `wrong_side` (share of the labelled voxels).
        differences: of all pairs of models.
    """

    split: str
    volumes: tuple[str, ...]
    scores: dict[str, dict[str, float]]
    differences: list[VolumeDifference]

    @property
    def facts(self) -> dict[str, str]:
        """What `kmura compare` prints."""
        count = len(self.volumes)
        lines = {"volumes": f"{count} of {self.split}: {', '.join(self.volumes)}"}
        for model, values in self.scores.items():
            lines[model] = (
                f"Dice {values['dice']:.3f}, IoU {values['iou']:.3f}, wrong side {100 * values['wrong_side']:.2f} %"
            )
        for one in self.differences:
            limits = one.interval
            text = f"{one.value:+.3f}" + (f" ({limits.low:+.3f} to {limits.high:+.3f})" if limits else "")
            few = "" if limits else ", too few volumes for an interval"
            lines[f"{one.score}, {one.second} minus {one.first}"] = f"{text}, mean over the volumes{few}"
        return lines


def compare_volumes(
    runs: Sequence[str | os.PathLike], *, split: str = "test", resamples: int = 2000, seed: int = 0, **_
) -> VolumeComparison:
    """Compares evaluated runs of segmentation and fusion.

    Runs of one plane in several folds count as one model over the volumes of these folds. Every way of fusion is a
    model.

    Args:
        runs: folders of the runs.
        split: `val` or `test`.
        resamples, seed: of the bootstrap over volumes.

    Raises:
        InputError: there are fewer than two models, a run is not evaluated, a volume is given twice, or the models have
            different classes or volumes.
    """
    models: dict[str, dict[str, VolumeScores]] = {}
    classes = set()
    for path in dict.fromkeys(map(str, runs)):
        evaluation, _ = read_evaluation(Run(path))
        classes.add(evaluation.classes)
        for fusion in evaluation.fusions:
            name = evaluation.phase if fusion == "single" else f"{evaluation.phase} ({fusion})"
            of_model = models.setdefault(name, {})
            for one in evaluation.of_split(split, fusion):
                if one.name in of_model:
                    raise InputError(
                        f"{path}: volume {one.name} was already given by another run of {name}; leave one out"
                    )
                of_model[one.name] = one
    if len(classes) > 1:
        raise InputError("the runs have different classes; compare runs of the same records")
    if len(models) < 2:
        raise InputError("compare needs two models or more; give the runs of several planes, or that of their fusion")
    volumes = {tuple(sorted(of_model)) for of_model in models.values()}
    if len(volumes) > 1 or not next(iter(volumes)):
        raise InputError(f"the runs have different {split} volumes; give the same folds of each plane")
    (names,) = volumes
    both = pairs(next(iter(classes)))
    scores, by_volume = {}, {}
    for model, of_model in models.items():
        matrices = np.array([of_model[name].confusion for name in names])
        total = matrices.sum(axis=0)
        scores[model] = {
            "dice": float(np.nanmean(overlap.dice(total)[1:])),
            "iou": float(np.nanmean(overlap.iou(total)[1:])),
            "wrong_side": float(overlap.side_errors(total, both)),
        }
        by_volume[model] = matrices
    differences = [
        _difference(score, first, second, by_volume, resamples, seed)
        for first, second in itertools.combinations(models, 2)
        for score in SCORES
    ]
    return VolumeComparison(split, names, scores, differences)


def _difference(score: str, first: str, second: str, by_volume, resamples: int, seed: int) -> VolumeDifference:
    both = np.stack([by_volume[first], by_volume[second]], axis=1)  # [V, 2, K, K]

    def mean_difference(matrices) -> dict[str, np.ndarray]:
        values = np.nanmean(getattr(overlap, score)(matrices)[..., 1:], axis=-1)
        return {score: values[..., 1] - values[..., 0]}

    value = overlap.averaged(both, mean_difference, overlap.VOLUMES)[score]
    found = overlap.volume_intervals(both, mean_difference, overlap.VOLUMES, resamples=resamples, seed=seed)
    return VolumeDifference(score, first, second, value, found[score] if found else None)
