"""`evaluate`: the scores of a run of any kind."""

import os
from typing import Any

from kmura.runs.run import Run


def evaluate(run: str | os.PathLike | Run, **options: Any) -> Any:
    """The scores of a run's best model; also written to `predictions.csv` and `metrics.json` in its folder.

    Args:
        run: folder of a run.
        **options: of the kind of the run; for classification see
            `kmura.evaluation.classification.evaluate_run`.

    Raises:
        InputError: no finished epoch, records that are gone or others than those of the run, unknown options.
    """
    run = run if isinstance(run, Run) else Run(run)
    return run.part("evaluate")(run, **options)
