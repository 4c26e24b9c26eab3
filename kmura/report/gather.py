"""The content of the report, gathered from the folders of runs: chapters and their comparison. No HTML."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from kmura.errors import InputError
from kmura.evaluation.compare import Comparison, compare
from kmura.report.chapter import Chapter, Section, Table
from kmura.report.comparison_section import compared
from kmura.report.figures import Picture
from kmura.runs.fold_runs import with_folds_pooled
from kmura.runs.run import Run


@dataclasses.dataclass(frozen=True)
class Contents:
    """The content of the report.

    Attributes:
        chapters: one per run.
        comparison: of the runs that can be compared; None if there are fewer than two, or for the reason `why_not`.
        why_not: "" if there is a comparison or nothing to compare.
        compared: tables and figures of the comparison, beside those of its main scores; None without a comparison.
    """

    chapters: tuple[Chapter, ...]
    comparison: Comparison | None
    why_not: str
    compared: Section | None

    @property
    def overviews(self) -> list[Table]:
        """The overviews of all chapters, those with the same caption and heads as one table."""
        rows: dict[tuple, list[tuple]] = {}
        for overview in filter(None, (chapter.overview for chapter in self.chapters)):
            rows.setdefault((overview.caption, overview.heads), []).extend(overview.rows)
        return [Table(*key, tuple(of_key)) for key, of_key in rows.items()]

    @property
    def pictures(self) -> Iterator[Picture]:
        """All figures of the page."""
        for chapter in self.chapters:
            yield from chapter.pictures
        if self.compared:
            for group in self.compared.pictures.values():
                yield from group.values()


def gather(
    runs: Sequence[str | os.PathLike],
    *,
    eda: str | os.PathLike | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Contents:
    """Returns the content of a report about runs.

    Args:
        runs: folders of evaluated runs.
        eda: the file that `kmura eda` wrote; None looks for it in the folder of each run's records.
        resamples, seed: of the comparison's bootstrap.

    Raises:
        InputError: no runs are given, a run is not evaluated, or one of its files is damaged.
    """
    if not runs:
        raise InputError("report needs a run; give its folder, such as runs/XR_WRIST/baseline")
    runs = with_folds_pooled(runs)
    chapters = tuple(chapter_of(run, number, None if eda is None else Path(eda)) for number, run in enumerate(runs))
    comparable = [chapter for chapter in chapters if chapter.pooling is not None]
    comparison, why_not = None, ""
    if len({chapter.pooling for chapter in comparable}) > 1:
        why_not = "the runs were evaluated with different poolings; evaluate them with the same pooling"
    elif len(comparable) > 1:
        pooling, top_k = comparable[0].pooling
        folders = [chapter.path for chapter in comparable]
        try:
            comparison = compare(folders, pooling=pooling, top_k=top_k, resamples=resamples, seed=seed)
        except InputError as error:
            why_not = str(error)
    return Contents(chapters, comparison, why_not, compared(comparison) if comparison else None)


def chapter_of(run: str | os.PathLike | Run, number: int, eda: Path | None = None) -> Chapter:
    """Returns the chapter of a run, as its kind makes it.

    Args:
        run: the run, or its folder.
        number: of the chapter, from 0.
        eda: the file that `kmura eda` wrote; None looks for it in the folder of the records.

    Raises:
        InputError: the run is not evaluated, one of its files is damaged, or its kind is unknown.
    """
    run = run if isinstance(run, Run) else Run(run)
    return run.part("chapter")(run, number, eda)
