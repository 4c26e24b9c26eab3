"""The fusion of the planes of one area or fold: its own run, `fused`, beside those of the planes.

A run of the kind `fusion` has no network. It holds the weights of the planes, fitted on val, and the scores of every
way of fusion on the whole volumes of val and test.
"""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from kmura.config import FusionConfig, FusionStage
from kmura.data.volume_dataset import Volume, VolumeDataset
from kmura.errors import InputError
from kmura.files import write_json
from kmura.kinds import FUSION
from kmura.runs.run import Run, RunFolder, claimed, drop_run, write_run
from kmura.segmentation.plane_fusion import FUSIONS, fit_plane_weights, fused_labels
from kmura.segmentation.segment import (
    FUSED,
    SLAB,
    WEIGHTS,
    fusion_weights,
    plane_file,
    plane_slab,
    runs_of,
)
from kmura.segmentation.slice_prediction import SlicePredictor, predictor_of
from kmura.segmentation.volume_scores import (
    SegmentationEvaluation,
    held_out,
    overlay_of,
    scored,
    write_evaluation,
)
from kmura.training.claim import describe


def fuse_planes(folder: str | os.PathLike, *, records: str | os.PathLike | None = None) -> Run:
    """Fits the weights of the planes on val and writes the run `fused`; an earlier one is replaced.

    Args:
        folder: RUNS/AREA, with the runs of two or three planes.
        records: folder of the records, if they have moved.

    Raises:
        InputError: there are fewer than two planes, or their runs differ in volumes or classes.
    """
    runs = runs_of(folder)
    if len(runs) < 2:
        raise InputError(
            f"{folder} has the plane {', '.join(runs)} alone; train all with kmura segment fit --plane all"
        )
    first = next(iter(runs.values()))
    folds = {(run.config.data.folds, run.config.data.fold) for run in runs.values()}
    if len(folds) > 1 or len({run.description.inputs for run in runs.values()}) > 1:
        raise InputError(f"the runs in {folder} were trained on different volumes; train all of them again")
    dataset = first.dataset(records)
    predictors = {plane: predictor_of(run) for plane, run in runs.items()}
    weights = fit_plane_weights(_labelled_blocks(predictors, dataset), seed=first.config.train.seed)
    target = RunFolder(Path(folder) / FUSED)
    config = FusionConfig(data=first.config.data, fusion=FusionStage(planes=tuple(runs)))
    description = describe(dataset, FUSED, config, kind=FUSION)
    with claimed(target.path):
        drop_run(target.path)
        target.path.mkdir(parents=True)
        write_run(target, dataclasses.replace(description, preparation=first.description.preparation))
        planes = {plane: np.asarray(row).tolist() for plane, row in zip(runs, weights.weights, strict=True)}
        write_json(target.path / WEIGHTS, {"planes": planes, "val_dice": weights.objective})
        write_run(target, dataclasses.replace(description, preparation=first.description.preparation, finished=True))
    return Run(target.path)


def evaluate_run(run: Run, *, records: str | os.PathLike | None = None, options=None, **_) -> SegmentationEvaluation:
    """Scores every way of fusion on the volumes of val and test; writes `metrics.json` and `predictions.csv`.

    Args:
        run: of the kind fusion.
        records: folder of the records, if they have moved.

    Raises:
        InputError: the runs of the planes or the records are missing, or differ from those of the fusion.
    """
    dataset, names = run.dataset(records), run.labels.classes
    runs = {plane: one for plane, one in runs_of(run.path.parent).items() if plane in run.config.fusion.planes}
    weights = fusion_weights(run.path.parent, runs)
    predictors = {plane: predictor_of(one) for plane, one in runs.items()}
    ways: dict[str, list] = {fusion: [] for fusion in FUSIONS}
    overlays = {}
    for volume, split in held_out(dataset):
        numbers = {fusion: np.zeros(volume.gray.shape, np.uint8) for fusion in FUSIONS}
        for first, block in _blocks(predictors, names, volume):
            for fusion, array in numbers.items():
                array[first : first + block.shape[1]] = fused_labels(block, fusion, weights)
        for fusion, array in numbers.items():
            ways[fusion].append(scored(volume, split, array, names))
        shown = overlay_of(volume, numbers[FUSIONS[0]])
        overlays |= {f"{split}/{volume.name}/{key}": value for key, value in shown.items()}
    scores = {fusion: tuple(volumes) for fusion, volumes in ways.items()}
    evaluation = SegmentationEvaluation(str(run), run.area, run.phase, names, scores, "")
    write_evaluation(run, evaluation, overlays)
    return evaluation


def _labelled_blocks(
    predictors: dict[str, SlicePredictor], dataset: VolumeDataset
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Probabilities and class numbers of the val volumes, a few axial slices at a time."""
    for volume in dataset.of_split("val"):
        for first, block in _blocks(predictors, dataset.classes, volume):
            yield block, volume.mask[first : first + block.shape[1]].astype(np.int64)


def _blocks(
    predictors: dict[str, SlicePredictor], names: Sequence[str], volume: Volume
) -> Iterator[tuple[int, np.ndarray]]:
    """First axial slice and probabilities, bytes [P, n, Y, X, K + 1], a few axial slices at a time."""
    shape = volume.gray.shape
    with tempfile.TemporaryDirectory(prefix="kmura-") as folder, contextlib.ExitStack() as stack:
        files = {
            plane: stack.enter_context(open(plane_file(predictor, names, volume, Path(folder) / plane), "rb"))
            for plane, predictor in predictors.items()
        }
        for first in range(0, shape[0], SLAB):
            last = min(shape[0], first + SLAB)
            slabs = [plane_slab(file, plane, shape, len(names) + 1, first, last) for plane, file in files.items()]
            yield first, np.stack(slabs)
