"""`evaluate`: the scores of a run of any kind, or of the runs of a cross-validation."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from kmura.errors import InputError
from kmura.runs.fold_runs import fold_groups, is_folder_of_folds
from kmura.runs.run import Run


def evaluate(run: str | os.PathLike | Run | Sequence[str | os.PathLike], **options: Any) -> Any:
    """Scores a run's best model; also writes `predictions.csv` and `metrics.json` to the run folder.

    Args:
        run: folder of a run; or the runs of all folds of a cross-validation, or the folder that contains them, whose
            held-out predictions are pooled, see `kmura.evaluation.cross_validation.evaluate_folds`.
        **options: depend on the kind of the run; for classification see
            `kmura.evaluation.classification.evaluate_run`.

    Returns:
        The evaluation; its type depends on the kind of the run.

    Raises:
        InputError: the run has no finished epoch, the records are missing or differ from those of the run, an option is
            invalid, or there are cross-validations of several areas or phases.
    """
    paths = [run] if isinstance(run, str | os.PathLike | Run) else list(run)
    _check_one(paths)
    (evaluation,) = evaluate_each(paths, **options)
    return evaluation


def evaluate_each(paths: Sequence[str | os.PathLike | Run], **options: Any) -> Iterator[Any]:
    """Scores one run, or one or several cross-validations; yields the evaluation of each; see `evaluate`."""
    if len(paths) == 1 and not is_folder_of_folds(paths[0]):
        run = paths[0] if isinstance(paths[0], Run) else Run(paths[0])
        if options.get("by") and run.labels is None:
            raise InputError(f"{run} is of kind {run.kind}, which predicts no classes; leave --by out")
        run.description.warn_of_leaks()
        yield run.part("evaluate")(run, **options)
        return

    from kmura.evaluation.cross_validation import evaluate_folds

    for group in fold_groups(paths):
        group.runs[0].description.warn_of_leaks()
        yield evaluate_folds(group, **options)


def _check_one(paths) -> None:
    if len(paths) == 1 and not is_folder_of_folds(paths[0]):
        return
    groups = fold_groups(paths)
    if len(groups) != 1:
        found = ", ".join(f"{group.root}/fold*/{group.runs[0].area}/{group.runs[0].phase}" for group in groups)
        raise InputError(f"these are the folds of {len(groups)} models ({found}); give those of one")
