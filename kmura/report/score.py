"""`score`: the scores of anyone's predictions, as tables, `metrics.json` and a page. Does not import TensorFlow."""

import os
from collections.abc import Sequence
from pathlib import Path

from kmura.errors import InputError
from kmura.evaluation.scored_predictions import ScoredFiles, score_files, write_scored
from kmura.evaluation.scoring import ScoreOptions
from kmura.files import check_replaceable

METRICS, PAGE = "metrics.json", "report.html"


def score(
    predictions: str | os.PathLike,
    second: str | os.PathLike | None = None,
    *,
    out: str | os.PathLike | None = None,
    image_column: str | None = None,
    label_column: str | Sequence[str] = (),
    probability_column: str | Sequence[str] = (),
    logit_column: str | Sequence[str] = (),
    patient_column: str | None = None,
    study_column: str | Sequence[str] = (),
    split_column: str | None = None,
    second_probability_column: str | Sequence[str] = (),
    second_logit_column: str | Sequence[str] = (),
    positive_class: str | None = None,
    fit_on: str | None = None,
    held_out: str | Sequence[str] = (),
    by: str | Sequence[str] = (),
    options: ScoreOptions | None = None,
) -> ScoredFiles:
    """Scores the predictions of any tool from a CSV file, one row per image, at image and study level.

    Calibration and thresholds are fitted on one split and applied to the others, as in `kmura.evaluate`. Columns that
    are not named are guessed if their names leave no doubt; `ScoredPredictions.columns` says how.

    Args:
        predictions: the file; it may be gzipped.
        second: predictions of another tool for the same images, matched by image. Labels, patients, studies and splits
            are taken from the first file. The two are compared, paired.
        out: folder for `metrics.json`, `report.html` and its figures; None writes nothing.
        image_column: the name of the image; without it, rows are numbered.
        label_column: 0 or 1, see `kmura.evaluation.given_predictions.read_given`; several columns are several labels.
        probability_column: in 0..1; several columns are several classes, or labels in the order of the label columns.
        logit_column: instead of a probability, or beside it, in which case the two must agree.
        patient_column: patients are resampled for intervals, and must not be in two splits.
        study_column: one or several columns, which identify a study together with the patient; without it, every image
            is a study of its own.
        split_column: without it, all rows are one split, which is neither calibrated nor thresholded.
        second_probability_column, second_logit_column: of the second file, if they have other names there; with them,
            both files may be the same.
        positive_class: the label of positive images, if labels are two texts.
        fit_on: the split for calibration and thresholds; None takes the one whose name says that (`val`, `valid`, ...).
        held_out: the other splits to score; empty scores all except the training split.
        by: columns or conditions, such as `sex` or `age>=18`, whose subgroups are scored and compared.
        options: pooling, calibration, thresholds, bootstrap, mixed studies; its `fit_on` is ignored.

    Raises:
        InputError: a file cannot be read, a column is missing, an entry is impossible (says in which line), studies
            have images of several labels, the second file is of other images, or `out` cannot be written.
    """
    if out is not None:
        _check_out(Path(out))
    given = {
        "image": image_column,
        "label": label_column,
        "probability": probability_column,
        "logit": logit_column,
        "patient": patient_column,
        "study": study_column,
        "split": split_column,
    }
    of_second = {"probability": second_probability_column, "logit": second_logit_column}
    named = {role: _several(names) for role, names in given.items() if names}
    scored, tables = score_files(
        [predictions, *([] if second is None else [second])],
        named,
        named_second={role: _several(names) for role, names in of_second.items() if names},
        options=options,
        positive_class=positive_class,
        fit_on=fit_on,
        held_out=_several(held_out),
        by=_several(by),
    )
    if out is not None:
        _write(scored, tables, Path(out))
    return scored


def _several(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _check_out(out: Path) -> None:
    """Checks that the results can be written, before the time-consuming part."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file, but --out is a folder for the results; choose another one")
    if out.is_dir():
        for name in (METRICS, PAGE):
            check_replaceable(out / name)


def _write(scored: ScoredFiles, tables, out: Path) -> None:
    from kmura.report.comparison_section import compared  # figures are slow to import
    from kmura.report.gather import Contents
    from kmura.report.render import render
    from kmura.report.report import save
    from kmura.report.scored_chapter import scored_chapter

    chapters = tuple(
        scored_chapter(file, table, number)
        for number, (file, table) in enumerate(zip(scored.files, tables, strict=True))
    )
    comparison = scored.comparison
    contents = Contents(chapters, comparison, "", compared(comparison) if comparison else None)
    save(render(contents), out / PAGE, contents.pictures, out / f"{Path(PAGE).stem}-figures")
    write_scored(scored, out / METRICS)
