"""The scores of predictions of any tool, and the comparison of two tools, as stored in `metrics.json` of `kmura score`.

Nothing here needs a model, records, TensorFlow or Keras.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from kmura.errors import InputError
from kmura.evaluation.class_scores import MultiScores, against_the_rest, questions_of, score_classes
from kmura.evaluation.compare import Comparison, compare_tables
from kmura.evaluation.evaluation import METRICS_VERSION
from kmura.evaluation.given_predictions import GivenPredictions, read_given, read_second
from kmura.evaluation.scoring import ScoreOptions, Scores, headline_split, score_table
from kmura.evaluation.subgroup_rules import rules_of
from kmura.evaluation.subgroups import Subgroups, subgroups_of
from kmura.files import sha256_of, write_json
from kmura.tasks import Binary

NO_SPLIT = "(none)"  # the split to fit on, where there is none


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredPredictions:
    """The scores of one file of predictions.

    Attributes:
        source, sha256: path of the file as it was given, and the SHA-256 of its content.
        name: of the file in tables: its name without its ending.
        area: what is predicted: the name of the label column.
        task, classes: name of the task, and its classes.
        columns: one line for each column that was used, and whether it was guessed.
        fit_on: the split that calibration and thresholds were fitted on; "" if there is none.
        has_patients: whether the file identifies patients.
        leaks: see `GivenPredictions.leaks`.
        remarks: what was assumed about the file or left out of it.
        scores: `Scores` for a binary task, `MultiScores` for several classes or labels.
        subgroups: label or class -> scores of its subgroups; empty if none were asked for.
    """

    source: str
    sha256: str
    name: str
    area: str
    task: str
    classes: tuple[str, ...]
    columns: tuple[str, ...]
    fit_on: str
    has_patients: bool
    leaks: tuple[str, ...]
    remarks: tuple[str, ...]
    scores: Scores | MultiScores
    subgroups: dict[str, Subgroups]

    @property
    def is_binary(self) -> bool:
        """Whether the scores are those of one yes/no question."""
        return isinstance(self.scores, Scores)

    @property
    def split(self) -> str:
        """The split whose scores are shown first: the first held-out one, or the only one."""
        return headline_split(self.scores.splits, self.fit_on)


@dataclasses.dataclass(frozen=True)
class ScoredFiles:
    """The scores of one or two files of predictions.

    Attributes:
        metrics_version: of the file, as that of runs.
        files: one or two.
        comparison: of two files, paired by image; None for one file.
    """

    files: tuple[ScoredPredictions, ...]
    comparison: Comparison | None = None
    metrics_version: int = METRICS_VERSION


def score_files(
    paths: Sequence[str | os.PathLike],
    named: Mapping[str, Sequence[str]] | None = None,
    *,
    named_second: Mapping[str, Sequence[str]] | None = None,
    options: ScoreOptions | None = None,
    positive_class: str | None = None,
    fit_on: str | None = None,
    held_out: Sequence[str] = (),
    by: Sequence[str] = (),
) -> tuple[ScoredFiles, tuple[GivenPredictions, ...]]:
    """Scores one file of predictions, or two for the same images, which are also compared.

    Args:
        paths: of one or two CSV files.
        named, positive_class, fit_on, held_out, by: see `kmura.evaluation.given_predictions.read_given`.
        named_second: role -> columns of predictions in the second file, if they are not those of `named`.
        options: of the scores; `fit_on` in it is ignored.

    Returns:
        The scores, and the tables that were read.

    Raises:
        InputError: see `read_given` and `ScoreOptions.check`.
    """
    options = options or ScoreOptions()
    options.check()
    rules_of(by)
    if named_second and len(paths) < 2:
        raise InputError("columns of a second file are named, but there is none; give a second file, or leave them out")
    if len(paths) not in (1, 2):
        raise InputError(f"score needs one file of predictions, or two to compare, but {len(paths)} were given")
    how = {"positive_class": positive_class, "fit_on": fit_on, "held_out": held_out, "by": by}
    given = [read_given(paths[0], named, mixed_studies=options.mixed_studies, **how)]
    given += [read_second(path, given[0], named, named_second) for path in paths[1:]]
    names = _names(paths, given)
    files = tuple(_scored(path, name, one, options, by) for path, name, one in zip(paths, names, given, strict=True))
    if len(files) < 2:
        return ScoredFiles(files), tuple(given)
    comparison = _compared(files, given, options)
    return ScoredFiles(files, comparison), tuple(given)


def write_scored(scored: ScoredFiles, path: str | os.PathLike) -> None:
    """Writes the scores as JSON, whole or not at all."""
    write_json(path, dataclasses.asdict(scored))


def questions(given: GivenPredictions) -> dict[str, pd.DataFrame]:
    """Returns the binary predictions of a table: label or class -> table; each class is taken against the rest."""
    if isinstance(given.task, Binary):
        return {given.area: given.table}
    return questions_of(given.table, given.area, given.task) or against_the_rest(given.table, given.task)


def _scored(path, name: str, given: GivenPredictions, options: ScoreOptions, by: Sequence[str]) -> ScoredPredictions:
    options = dataclasses.replace(options, fit_on=given.fit_on or NO_SPLIT)
    if not given.fit_on:  # nothing to fit on; a remark of the file says so
        rules = tuple(rule for rule in options.rules if _is_fixed(rule))
        options = dataclasses.replace(options, calibration="none", rules=rules)
    if isinstance(given.task, Binary):
        scores = score_table(given.table, options)
    else:
        scores = score_classes(given.table, given.area, given.task, options)
    return ScoredPredictions(
        source=str(path),
        sha256=sha256_of(path),
        name=name,
        area=given.area,
        task=given.task.name,
        classes=given.task.classes,
        columns=given.columns.lines,
        fit_on=given.fit_on,
        has_patients=given.has_patients,
        leaks=given.leaks,
        remarks=given.remarks,
        scores=scores,
        subgroups=subgroups_of(given.table, given.area, given.task, scores, by),
    )


def _compared(
    files: Sequence[ScoredPredictions], given: Sequence[GivenPredictions], options: ScoreOptions
) -> Comparison:
    split, tables = files[0].split, {}
    for file, one in zip(files, given, strict=True):
        for area, table in questions(one).items():
            known = table[(table["split"] == split) & (table["label"] >= 0)]
            if known.empty:
                raise InputError(f"{file.source}: no label of {area} is known in the split {split}; nothing to compare")
            tables[file.name, area] = known.sort_values("image", ignore_index=True)
    sources = {file.name: {area: file.source for name, area in tables if name == file.name} for file in files}
    return compare_tables(
        tables,
        sources,
        split=split,
        pooling=options.pooling,
        top_k=options.top_k,
        resamples=options.resamples,
        seed=options.seed,
    )


def _is_fixed(rule: str) -> bool:
    return not any(name in rule for name in ("max_f1", "youden", ">="))


def _names(paths: Sequence[str | os.PathLike], given: Sequence[GivenPredictions]) -> list[str]:
    """Names of files for tables: without endings, if these differ; else their columns or folders, or numbered."""
    names = [Path(path).name.removesuffix(".gz").removesuffix(".csv") or str(path) for path in paths]
    columns = [", ".join(one.columns.probability or one.columns.logit) for one in given]
    folders = [f"{Path(path).resolve().parent.name}/{name}" for path, name in zip(paths, names, strict=True)]
    numbered = [f"{name} ({number})" for number, name in enumerate(names, 1)]
    return next(ways for ways in (names, folders, columns, numbered) if len(set(ways)) == len(ways))
