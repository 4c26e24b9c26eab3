"""The evaluation of runs without a model, from their table of predictions alone."""

import dataclasses
import os
from collections.abc import Sequence

from kmura.errors import InputError
from kmura.evaluation.classification import scored
from kmura.evaluation.evaluation import Evaluation
from kmura.evaluation.scoring import ScoreOptions
from kmura.files import sha256_of, write_json
from kmura.runs.run import Run


def rescore_run(
    run: Run,
    *,
    records: str | os.PathLike | None = None,
    options: ScoreOptions | None = None,
    faithfulness: bool | None = None,
    by: Sequence[str] = (),
) -> Evaluation:
    """Scores the `predictions.csv` of a run; also writes `metrics.json` to the run folder.

    Args:
        run: a run without a model.
        records: folder of the records, if they have moved.
        options: pooling, calibration, thresholds, bootstrap.
        faithfulness: not available, since it requires a model.
        by: columns of the predictions, or conditions on them, whose subgroups are also scored.

    Raises:
        InputError: the predictions are missing or damaged, the records are missing or differ from those of the run, or
            an option is invalid.
    """
    if faithfulness:
        raise InputError(f"{run} has no model, which faithfulness requires; leave --faithfulness out")
    options = options or ScoreOptions()
    options.check()
    description = run.description
    scores, subgroups = scored(run, options, by)
    evaluation = Evaluation(
        run=str(run),
        area=description.area,
        phase=description.phase,
        select_on=description.config.train.select_on,
        selected_epoch_by=description.config.train.monitor,
        has_patients=run.dataset(records).manifest.has_patients,
        model_sha256="",
        predictions_sha256=sha256_of(run.folder.predictions) if run.folder.predictions.is_file() else "",
        scores=scores,
        task=description.task,
        classes=description.classes,
        localization_faithfulness=None,
        subgroups=subgroups,
    )
    write_json(run.folder.metrics, dataclasses.asdict(evaluation))
    return evaluation
