"""A chapter of the report: everything that the page shows about one run of any kind."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from kmura.evaluation.exploration import AreaData
from kmura.explain.explanation import Case, Explanation
from kmura.report.figures import Picture


def number_text(value: float) -> str:
    """Three decimals, or `undefined` for NaN."""
    return "undefined" if np.isnan(value) else f"{value:z.3f}"


@dataclasses.dataclass(frozen=True)
class Text:
    """A part of a sentence; `strong` is emphasised."""

    text: str
    strong: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts and numbers; the first column names the rows."""

    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a chapter that answers one question of the reader.

    Attributes:
        heading: the question.
        text: how to read the answer, a sentence; "" for none.
        template: template of the package `kmura.report` for content that is specific to a kind of run, shown before the
            tables; "" for none. It finds the chapter as `chapter`.
        tables: shown.
        folded: tables that are shown on request.
        pictures: heading -> name -> picture; the heading "" is not shown.
        opened: False shows the whole section on request only.
    """

    heading: str
    text: str = ""
    template: str = ""
    tables: tuple[Table, ...] = ()
    folded: tuple[Table, ...] = ()
    pictures: dict[str, dict[str, Picture]] = dataclasses.field(default_factory=dict)
    opened: bool = True

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.template or self.tables or self.folded or any(self.pictures.values()))


@dataclasses.dataclass(frozen=True)
class ShownMap:
    """A map of a case of the galleries.

    Attributes:
        tap, empty: see `kmura.explain.explanation.Look`.
        data: the picture as a `data:` URL.
    """

    tap: str
    empty: bool
    data: str


@dataclasses.dataclass(frozen=True)
class ShownCase:
    """A case of the galleries with its pictures.

    Attributes:
        case: of the explanation.
        data: picture (one of `kmura.explain.explanation.PICTURES`) -> the picture as a `data:` URL.
        maps: of all feature maps, that of the explanation's `tap` first.
    """

    case: Case
    data: dict[str, str]
    maps: tuple[ShownMap, ...]


@dataclasses.dataclass(frozen=True)
class Gallery:
    """An explanation of a run with its pictures."""

    explanation: Explanation
    cases: tuple[ShownCase, ...]


@dataclasses.dataclass(frozen=True)
class Chapter:
    """Everything that the page shows about one run.

    Everything except the templates and `details` is shown in the same way for all kinds of runs.

    Attributes:
        id: of the chapter within the page; file names of its figures begin with it.
        title: heading of the chapter.
        area: of the run; the galleries are filtered by it.
        path: folder of the run.
        headline: the sentence of the summary.
        tables: shown at the beginning of the chapter.
        explored: what `kmura eda` found in the images of the area, for the template of a section; None if it was not
            run on these records.
        notes: remarks that are needed to interpret the scores; folded if there are many.
        warnings: further notes, which are never folded.
        sections: the parts of the chapter, in order; empty ones are left out.
        gallery: None if the run was not explained.
        facts: how the run was made, name -> text.
        details: the values that the templates of the sections need.
        reading: template of the package that explains chapters of this kind; shown once, at the end of the page. It
            finds all chapters as `chapters`. "" for none.
        pooling: pooling and top_k of the evaluation, if the run can be compared by `kmura.evaluation.compare`; else
            None.
        overview: a table of one row, shown in the summary, joined with those of the other chapters that have its
            caption and heads; None for none.
        source: what the path is: `run`, or `file of predictions`.
    """

    id: str
    title: str
    area: str
    path: str
    headline: tuple[Text, ...]
    tables: tuple[Table, ...] = ()
    explored: AreaData | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    sections: tuple[Section, ...] = ()
    gallery: Gallery | None = None
    facts: dict[str, str] = dataclasses.field(default_factory=dict)
    details: Any = None
    reading: str = ""
    pooling: tuple[str, int] | None = None
    overview: Table | None = None
    source: str = "run"

    @property
    def pictures(self) -> Iterator[Picture]:
        """All figures of the chapter."""
        for section in self.sections:
            for group in section.pictures.values():
                yield from group.values()
