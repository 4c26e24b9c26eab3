"""The evaluation of a classifier: predictions of its best model, and their scores at image and study level."""

import dataclasses
import os
from collections.abc import Sequence

import pandas as pd

from kmura.data.dataset import Dataset
from kmura.evaluation.class_scores import MultiScores, score_classes
from kmura.evaluation.evaluation import Evaluation
from kmura.evaluation.inference import predict_split
from kmura.evaluation.localization import localization_faithfulness
from kmura.evaluation.scoring import ScoreOptions, Scores, score_table
from kmura.evaluation.subgroup_rules import columns_of_rules, rules_of
from kmura.evaluation.subgroups import Subgroups, subgroups_of
from kmura.files import replacing, sha256_of, write_json
from kmura.runs.predictions import further_columns, read_predictions
from kmura.runs.run import Run
from kmura.tasks import Binary


def evaluate_run(
    run: Run,
    *,
    records: str | os.PathLike | None = None,
    splits: tuple[str, ...] = ("val", "test"),
    options: ScoreOptions | None = None,
    faithfulness: bool | None = None,
    by: Sequence[str] = (),
) -> Evaluation:
    """Scores a run's best model; also writes `predictions.csv` and `metrics.json` to the run folder.

    Args:
        run: a run of the kind classification.
        records: folder of the records, if they have moved since the training.
        splits: the splits to predict; splits that the records lack are skipped.
        options: pooling, calibration, thresholds, bootstrap.
        faithfulness: whether to compute the localization faithfulness of every split, which takes several passes over
            its images; None computes it only for binary runs of the phase final, which are published with it.
        by: columns of the records or conditions on them, such as `sex` or `age>=18`, whose subgroups are also scored.

    Raises:
        InputError: the run has no finished epoch, the records are missing or differ from those of the run, or an option
            is invalid.
    """
    options = options or ScoreOptions()
    options.check()
    rules_of(by)
    folder, description, dataset = run.folder, run.description, run.dataset(records)
    present = [split for split in splits if split in dataset.splits]
    kept = further_columns(dataset.rows(present[0]), run.labels) if by and present else []
    columns_of_rules(by, kept, f"the table of images of {run.description.records}")
    model, model_sha256 = run.model(), run.model_sha256()
    tables = [predict_split(model, dataset, split) for split in present]
    if faithfulness is None:
        faithfulness = run.phase == "final" and isinstance(run.labels, Binary)
    localized = _faithfulness(model, dataset, run, present) if faithfulness else None
    with replacing(folder.predictions) as file:
        pd.concat(tables).to_csv(file, index=False)
    scores, subgroups = scored(run, options, by)
    evaluation = Evaluation(
        run=str(run),
        area=description.area,
        phase=description.phase,
        select_on=description.config.train.select_on,
        selected_epoch_by=description.config.train.monitor,
        has_patients=dataset.manifest.has_patients,
        model_sha256=model_sha256,
        predictions_sha256=sha256_of(folder.predictions),
        scores=scores,
        task=description.task,
        classes=description.classes,
        localization_faithfulness=localized,
        subgroups=subgroups,
    )
    write_json(folder.metrics, dataclasses.asdict(evaluation))
    return evaluation


def scored(
    run: Run, options: ScoreOptions, by: Sequence[str] = ()
) -> tuple[Scores | MultiScores, dict[str, Subgroups]]:
    """Returns the scores of the `predictions.csv` of a run, and those of its subgroups.

    Args:
        run: the run.
        options: of the scores.
        by: columns of the table, or conditions on them.
    """
    table = read_predictions(run.folder.predictions, run.labels)
    columns_of_rules(by, further_columns(table, run.labels), str(run.folder.predictions))
    if isinstance(run.labels, Binary):
        scores = score_table(table, options)
    else:
        scores = score_classes(table, run.area, run.labels, options)
    return scores, subgroups_of(table, run.area, run.labels, scores, by)


def _faithfulness(model, dataset: Dataset, run: Run, splits: list[str]) -> dict[str, float]:
    options = {"q": run.config.cam.erase_q, "tap": run.config.cam.tap, "method": run.config.cam.method}
    return {split: localization_faithfulness(model, dataset, split, **options) for split in splits}
