"""Scores of a run at image and study level, from its table of predictions."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pandas as pd

from kmura import metrics
from kmura.errors import InputError
from kmura.evaluation.localization import localization_faithfulness
from kmura.evaluation.predictions import load_model, predict_split, read_predictions
from kmura.files import replacing, write_json
from kmura.records.manifest import read_manifest
from kmura.training.run import RunDescription, RunFolder, read_run


@dataclasses.dataclass(frozen=True)
class LevelScores:
    """Scores of one split at one level.

    Attributes:
        level: `image` or `study`.
        images, studies, patients, positives: counts; positives are of the level's units.
        scores: name -> value with its 95 % patient-bootstrap interval.
        confusion: tp, fp, fn, tn at the threshold.
        resamples, redrawn: resamples behind the intervals, and how many more were drawn for lack of a class.
    """

    level: str
    images: int
    studies: int
    patients: int
    positives: int
    scores: dict[str, metrics.Interval]
    confusion: dict[str, int]
    resamples: int
    redrawn: int


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `metrics.json` holds: the scores of each split at both levels.

    `localization_faithfulness` (of runs of the phase final) is split -> value, see `kmura.evaluation.localization`.
    """

    run: str
    area: str
    phase: str
    select_on: str
    selected_epoch_by: str
    threshold: float
    has_patients: bool
    splits: dict[str, dict[str, LevelScores]]
    localization_faithfulness: dict[str, float] | None = None


def evaluate(
    run: str | os.PathLike,
    *,
    records: str | os.PathLike | None = None,
    splits: tuple[str, ...] = ("tune", "valid"),
    resamples: int = 2000,
    seed: int = 0,
) -> Evaluation:
    """The scores of a run's best model; also written to `predictions.csv` and `metrics.json` in its folder.

    Args:
        run: folder of a run.
        records: where the records are now, if they have moved since the run.
        splits: those to predict; absent ones are left out.
        resamples: bootstrap resamples of patients for the intervals.
        seed: of the bootstrap.

    Raises:
        InputError: no finished epoch, records gone or others than those of the run.
    """
    folder, description = RunFolder(Path(run)), read_run(run)
    records = records or description.records
    manifest = read_manifest(records)
    if manifest.inputs != description.inputs:
        raise InputError(f"{records} are not the records that {run} was trained on; give those with --records")
    model = load_model(folder.best)
    present = [split for split in splits if split in manifest.areas.get(description.area, {})]
    tables = [predict_split(model, records, description.area, split, description.config.data) for split in present]
    with replacing(folder.predictions) as file:
        pd.concat(tables).to_csv(file, index=False)
    table = read_predictions(folder.predictions)
    found = Evaluation(
        run=str(run),
        area=description.area,
        phase=description.phase,
        select_on=description.config.train.select_on,
        selected_epoch_by=description.config.train.monitor,
        threshold=0.5,
        has_patients=manifest.has_patients,
        splits={
            split: {
                level: level_scores(table[table["split"] == split], level, resamples=resamples, seed=seed)
                for level in ("image", "study")
            }
            for split in present
        },
        localization_faithfulness=_faithfulness(model, records, description, present),
    )
    write_json(folder.metrics, dataclasses.asdict(found))
    return found


def _faithfulness(model, records, description: RunDescription, splits: list[str]) -> dict[str, float] | None:
    if description.phase != "final":
        return None
    config = description.config
    options = {"data": config.data, "q": config.cam.erase_q, "tap": config.cam.tap}
    return {split: localization_faithfulness(model, records, description.area, split, **options) for split in splits}


def level_scores(
    table: pd.DataFrame, level: str, *, threshold=0.5, resamples: int = 2000, seed: int = 0
) -> LevelScores:
    """Scores of a table of predictions at level `image` or `study` (mean of the images' probabilities).

    Images of unknown label (-1) are left out.
    """
    table = table[table["label"] >= 0]
    label, probability = table["label"].to_numpy(), table["probability"].to_numpy()
    patient = table["patient"].to_numpy()
    study = (table["area"] + "/" + table["study"]).to_numpy()  # a patient's study1 may exist in two areas
    if level == "study":
        pooled = metrics.pool_studies(study, probability)
        label, patient, probability = label[pooled.first], patient[pooled.first], pooled.value
    weights, redrawn = metrics.bootstrap_weights(patient, label, resamples=resamples, seed=seed)
    cells = metrics.confusion(label, probability, threshold)
    return LevelScores(
        level=level,
        images=len(table),
        studies=len(set(study)),
        patients=table["patient"].nunique(),
        positives=int(np.sum(label == 1)),
        scores=metrics.intervals(
            metrics.scores(label, probability, threshold=threshold),
            metrics.scores(label, probability, threshold=threshold, weights=weights),
        ),
        confusion={name: int(cell[0]) for name, cell in zip(("tp", "fp", "fn", "tn"), cells, strict=True)},
        resamples=len(weights),
        redrawn=redrawn,
    )
