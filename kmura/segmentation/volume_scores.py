"""Scores of a segmentation run on the whole volumes of val and test."""

import dataclasses
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kmura.data.volume_dataset import PLANE_AXES, Volume, VolumeDataset
from kmura.errors import InputError
from kmura.files import reading_json, replacing, write_json
from kmura.metrics import overlap
from kmura.metrics.intervals import Interval
from kmura.runs.run import Run
from kmura.segmentation.slice_prediction import class_numbers, predictor_of
from kmura.segmentation.surfaces import surface_distances
from kmura.segmentation.targets import pairs, with_sides

VERSION = 1  # of metrics.json
OVERLAYS = "overlays.npz"  # in the run folder
OVERLAY_SLICES = 4  # of each plane of a volume


@dataclasses.dataclass(frozen=True, eq=False)
class VolumeScores:
    """The comparison of one volume with its labels.

    Attributes:
        name, split: of the volume.
        confusion: int64 [K + 1, K + 1], voxels of true class i (row) that were given class j; 0 is background.
        hausdorff: [K] 95th percentile of the surface distances, mm; NaN where a class is absent.
        surface: [K] mean surface distance, mm.
    """

    name: str
    split: str
    confusion: np.ndarray
    hausdorff: np.ndarray
    surface: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentationEvaluation:
    """What `evaluate_run` writes.

    Attributes:
        run, area, phase: of the run.
        classes: names of the classes 1, 2, ...
        fusions: way of prediction (`single`, or the fusions) -> scores of every volume.
        model_sha256: of the model; "" for a fusion.
    """

    run: str
    area: str
    phase: str
    classes: tuple[str, ...]
    fusions: dict[str, tuple[VolumeScores, ...]]
    model_sha256: str

    def of_split(self, split: str, fusion: str | None = None) -> list[VolumeScores]:
        """Returns the scores of the volumes of a split; None takes the first way of prediction."""
        volumes = self.fusions[fusion or next(iter(self.fusions))]
        return [one for one in volumes if one.split == split]

    def confusion(self, split: str, fusion: str | None = None) -> np.ndarray:
        """Returns the confusion matrix of all voxels of a split."""
        return sum(one.confusion for one in self.of_split(split, fusion))

    def means(self, split: str, fusion: str | None = None) -> dict[str, Interval]:
        """Returns the mean Dice and IoU of the classes, `dice` and `iou`, of all voxels of a split.

        The interval is of a bootstrap over the volumes; with fewer than five of them it is undefined (NaN).
        """
        matrices = np.array([one.confusion for one in self.of_split(split, fusion)])
        found = overlap.volume_intervals(matrices, _mean_overlap)
        if found is None:
            values = overlap.averaged(matrices, _mean_overlap)
            found = {name: Interval(value, np.nan, np.nan) for name, value in values.items()}
        return found

    @property
    def splits(self) -> list[str]:
        """The splits with volumes."""
        volumes = next(iter(self.fusions.values()))
        return [split for split in ("val", "test") if any(one.split == split for one in volumes)]

    @property
    def facts(self) -> dict[str, str]:
        """What `kmura evaluate` prints: the mean scores of every split and way of prediction."""
        lines = {}
        for fusion in self.fusions:
            for split in self.splits:
                matrix = self.confusion(split, fusion)
                wrong_side = overlap.side_errors(matrix, pairs(self.classes))
                count = len(self.of_split(split, fusion))
                name = split if fusion == "single" else f"{split}, {fusion}"
                means = self.means(split, fusion)
                lines[name] = (
                    f"Dice {interval_text(means['dice'])}, IoU {interval_text(means['iou'])} "
                    f"(means of {len(self.classes)} classes, {count} volume{'s' if count > 1 else ''}), wrong side "
                    f"{100 * wrong_side:.2f} % of the labelled voxels"
                )
        return lines


def interval_text(score: Interval) -> str:
    """Returns the text of a score, with its interval if there is one: `0.712 (0.650 to 0.761)` or `0.712`."""
    return f"{score.value:.3f}" if np.isnan(score.low) else str(score)


def _mean_overlap(confusions: np.ndarray) -> dict[str, np.ndarray]:
    scores = overlap.mean_scores(confusions)
    return {name: scores[name] for name in ("dice", "iou")}


def evaluate_run(run: Run, *, records: str | os.PathLike | None = None, options=None, **_) -> SegmentationEvaluation:
    """Segments the volumes of val and test with the network of one plane; writes `metrics.json` and `predictions.csv`.

    Args:
        run: the run.
        records: folder of the records, if they have moved.

    Raises:
        InputError: the records are missing or others, or there is no model.
    """
    dataset, config = run.dataset(records), run.config
    names = run.labels.classes
    predictor = predictor_of(run)

    def predicted(volume: Volume) -> np.ndarray:
        numbers = class_numbers(predictor.slices(volume), volume.gray.shape, config.data.plane)
        return with_sides(numbers, volume.left_of_middle(), names) if config.data.sides == "merged" else numbers

    scores, overlays = [], {}
    for volume, split in held_out(dataset):
        numbers = predicted(volume)
        scores.append(scored(volume, split, numbers, names))
        overlays |= {f"{split}/{volume.name}/{key}": value for key, value in overlay_of(volume, numbers).items()}
    ways = {"single": tuple(scores)}
    evaluation = SegmentationEvaluation(str(run), run.area, run.phase, names, ways, run.model_sha256())
    write_evaluation(run, evaluation, overlays)
    return evaluation


def held_out(dataset: VolumeDataset) -> Iterator[tuple[Volume, str]]:
    """Yields the volumes of val and test with their split."""
    for split in ("val", "test"):
        if split in dataset.splits:
            for volume in dataset.of_split(split):
                yield volume, split


def scored(volume: Volume, split: str, numbers: np.ndarray, names: Sequence[str]) -> VolumeScores:
    """Compares class numbers [Z, Y, X] with the labels of a volume."""
    distances = surface_distances(volume.mask, numbers, range(1, len(names) + 1), volume.spacing)
    matrix = overlap.confusion(volume.mask, numbers, len(names) + 1)
    return VolumeScores(volume.name, split, matrix, distances["hd95"], distances["mean_surface_distance"])


def overlay_of(volume: Volume, numbers: np.ndarray) -> dict[str, np.ndarray]:
    """Returns slices of a volume for pictures, spread evenly over its part with labels.

    Keys are `PLANE/gray`, `PLANE/truth` and `PLANE/predicted`; values uint8 [n, rows, columns].
    """
    arrays = {}
    for plane, (across, _, _) in PLANE_AXES.items():
        seen = np.flatnonzero(np.moveaxis(volume.mask, across, 0).any(axis=(1, 2)))
        span = (seen[0], seen[-1]) if len(seen) else (0, volume.mask.shape[across] - 1)
        chosen = np.linspace(*span, OVERLAY_SLICES + 2)[1:-1].round().astype(int)
        for name, array in (("gray", volume.gray), ("truth", volume.mask), ("predicted", numbers)):
            arrays[f"{plane}/{name}"] = np.take(np.moveaxis(array, across, 0), chosen, axis=0)
    return arrays


def write_evaluation(run: Run, evaluation: SegmentationEvaluation, overlays: dict[str, np.ndarray]) -> None:
    """Writes `predictions.csv` (one row per volume and class), `overlays.npz` and, last, `metrics.json`."""
    with replacing(run.path / OVERLAYS, "wb") as file:
        np.savez_compressed(file, **overlays)
    with replacing(run.folder.predictions) as file:
        class_table(evaluation).to_csv(file, index=False)
    value = {
        "metrics_version": VERSION,
        "run": evaluation.run,
        "area": evaluation.area,
        "phase": evaluation.phase,
        "classes": list(evaluation.classes),
        "model_sha256": evaluation.model_sha256,
        "fusions": {
            fusion: [
                {
                    "name": one.name,
                    "split": one.split,
                    "confusion": one.confusion.tolist(),
                    "hausdorff": [None if np.isnan(value) else float(value) for value in one.hausdorff],
                    "surface": [None if np.isnan(value) else float(value) for value in one.surface],
                }
                for one in scores
            ]
            for fusion, scores in evaluation.fusions.items()
        },
    }
    write_json(run.folder.metrics, value)


def read_evaluation(run: Run) -> tuple[SegmentationEvaluation, pd.DataFrame]:
    """Returns the evaluation of a run and its `class_table`.

    Raises:
        InputError: the run is not evaluated, or the file is damaged or of another model.
    """
    fix = f"make it with: kmura evaluate {run}"
    with reading_json(run.folder.metrics, fix=fix, missing=f"{run} is not evaluated; {fix}") as raw:
        fusions = {
            fusion: tuple(
                VolumeScores(
                    one["name"],
                    one["split"],
                    np.array(one["confusion"], np.int64),
                    np.array(one["hausdorff"], float),
                    np.array(one["surface"], float),
                )
                for one in scores
            )
            for fusion, scores in raw["fusions"].items()
        }
        evaluation = SegmentationEvaluation(
            raw["run"], raw["area"], raw["phase"], tuple(raw["classes"]), fusions, raw["model_sha256"]
        )
    if evaluation.model_sha256 and Path(run.folder.best).is_file() and evaluation.model_sha256 != run.model_sha256():
        raise InputError(f"{run.folder.metrics} is of another model; {fix}")
    return evaluation, class_table(evaluation)


def read_overlays(run: Run, split: str) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """Returns volume -> plane -> `gray`, `truth`, `predicted`, uint8 [n, rows, columns], of the volumes of a split."""
    found: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    try:
        with np.load(run.path / OVERLAYS) as arrays:
            for key in arrays.files:
                of_split, volume, plane, name = key.split("/")
                if of_split == split:
                    found.setdefault(volume, {}).setdefault(plane, {})[name] = arrays[key]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{run.path / OVERLAYS} cannot be read ({error}); make it with: kmura evaluate {run}"
        ) from error
    return found


def class_table(evaluation: SegmentationEvaluation) -> pd.DataFrame:
    """Returns one row per way of prediction, volume and class: overlap, errors and distances."""
    rows = []
    for fusion, volumes in evaluation.fusions.items():
        for one in volumes:
            columns = {
                "dice": overlap.dice(one.confusion)[1:],
                "iou": overlap.iou(one.confusion)[1:],
                "misclassified": overlap.misclassification(one.confusion)[1:],
                "fp_fn": overlap.fp_fn_ratio(one.confusion)[1:],
                "hausdorff95_mm": one.hausdorff,
                "surface_mm": one.surface,
            }
            for number, name in enumerate(evaluation.classes):
                keys = {"fusion": fusion, "volume": one.name, "split": one.split, "class": name}
                rows.append(keys | {column: values[number] for column, values in columns.items()})
    return pd.DataFrame(rows)
