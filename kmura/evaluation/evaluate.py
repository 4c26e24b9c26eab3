"""`evaluate`: the scores of a run of any kind."""

import os
from typing import Any

from kmura.errors import InputError
from kmura.runs.run import Run


def evaluate(run: str | os.PathLike | Run, **options: Any) -> Any:
    """Scores a run's best model; also writes `predictions.csv` and `metrics.json` to the run folder.

    Args:
        run: folder of a run.
        **options: depend on the kind of the run; for classification see
            `kmura.evaluation.classification.evaluate_run`.

    Returns:
        The evaluation; its type depends on the kind of the run.

    Raises:
        InputError: the run has no finished epoch, the records are missing or differ from those of the run, or an option
            is invalid.
    """
    run = run if isinstance(run, Run) else Run(run)
    if options.get("by") and run.labels is None:
        raise InputError(f"{run} is of kind {run.kind}, which predicts no classes; leave --by out")
    run.description.warn_of_leaks()
    return run.part("evaluate")(run, **options)
