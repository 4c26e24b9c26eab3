"""Labels of images, studies or patients from a CSV: a table key -> label. Messages name rows, never keys."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path

from kmura.errors import InputError
from kmura.records.dicom_tags import words
from kmura.records.image_files import normalised
from kmura.records.label_table import LabelTable, open_table
from kmura.tasks import Binary, Multiclass, Multilabel

UNKNOWN = -1
CLASSES = ("negative", "positive")  # of a column of 0 and 1
MOST_CLASSES = 100
_NUMBERS = {"": UNKNOWN, "-1": UNKNOWN, "0": 0, "1": 1, "false": 0, "true": 1}
_BLANK = ("", "nan", "na", "n/a", "none", "null")


@dataclasses.dataclass(frozen=True)
class LabelColumns:
    """Which columns of a CSV hold labels, and how they are read.

    Attributes:
        one: the column of a binary or class label; None if `several` are given.
        several: the columns of 0/1 labels, one per class; () if `one` is given.
        positive_class: which of two texts in the column is class 1.
        classes: all texts in the column in the order of their ids, instead of `positive_class`.
    """

    one: str | None = None
    several: tuple[str, ...] = ()
    positive_class: str | None = None
    classes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class KeyedLabels:
    """The labels of the rows of a CSV.

    Attributes:
        classes: class names in the order of their ids.
        task: `binary`, `multiclass` or `multilabel`.
        labels: key -> class id or 0/1 vector; -1 is unknown.
        contradictions: key -> the numbers of the rows that give it different labels; it has no label.
        strays: numbers of the first rows whose key was not wanted.
        stray_count: how many there are.
    """

    classes: tuple[str, ...]
    task: str
    labels: Mapping[str, tuple[int, ...]]
    contradictions: Mapping[str, tuple[int, int]]
    strays: tuple[int, ...]
    stray_count: int


def read_keyed_labels(
    path: str | os.PathLike,
    key_column: str,
    columns: LabelColumns,
    wanted: Iterable[str],
    identifiers: Set[str] = frozenset(),
    *,
    paths: bool = False,
) -> KeyedLabels:
    """The labels of the wanted keys in a CSV, which is read row by row: rows of other keys take no memory.

    Blank and -1 are unknown. Several rows of one key have to agree where both are known.

    Args:
        path: CSV in UTF-8 (with or without byte order mark) or Latin-1, separated by commas, semicolons or tabs.
        key_column: the column of the keys.
        columns: the columns of the labels.
        wanted: the keys of the images.
        identifiers: words that identify patients (`kmura.records.dicom_tags.words`), which no class may contain.
        paths: whether the keys are paths; those in the CSV may begin with further folders.

    Raises:
        InputError: the CSV cannot be read, lacks a column, or has a label that is no label; unclear order of classes.
    """
    path, wanted = Path(path), set(wanted)
    if bool(columns.one) == bool(columns.several):
        raise InputError(f"{path} needs --label-column NAME (one label) or --label-columns A,B,C (several labels)")
    names = columns.several or (columns.one,)
    if len(set(names)) < len(names) or len(columns.several) == 1:
        raise InputError(f"--label-columns {','.join(names)} must name two or more different columns")
    file = open_table(path, (key_column, *names))
    for name in (key_column, *names):
        _check_column(file, name, wanted)
    found: dict[str, tuple[int, tuple[str, ...]]] = {}  # key -> first row and its cells
    contradictions: dict[str, tuple[int, int]] = {}
    strays: list[int] = []
    stray_count = 0
    for number, key, *texts in _rows(file, (key_column, *names)):
        key = normalised(key.strip())
        if paths:
            key = _ending(path, number, key, wanted)
        if key not in wanted:
            stray_count += 1
            strays += [number] if len(strays) < 3 else []
            continue
        cells = tuple(map(_cell, texts))
        if columns.several:
            _check_numbers(path, number, cells, names)
        first, earlier = found.setdefault(key, (number, cells))
        both = tuple(_merged(one, other) for one, other in zip(earlier, cells, strict=True))
        if None in both:
            contradictions.setdefault(key, (first, number))
        else:
            found[key] = (first, both)
    values = {cells for _, cells in found.values()}
    if columns.one and any(words(cell) & identifiers for (cell,) in values):
        raise InputError(f"column {columns.one} of {path} holds identifiers of patients; give a column of labels")
    classes, task, label_of = _meaning(path, columns, values)
    labels = {key: label_of(cells) for key, (_, cells) in found.items() if key not in contradictions}
    return KeyedLabels(classes, task, labels, contradictions, tuple(strays), stray_count)


def _check_column(file: LabelTable, name: str, wanted: Set[str]) -> None:
    """Checks that a CSV has a column.

    Raises:
        InputError: there is no such column, or there are two. A first line that holds a wanted key is a row, whose
            cells the message does not show.
    """
    if normalised(name.strip()) not in file.columns and set(file.columns) & wanted:
        raise InputError(f"the first line of {file.path} is no line of column names; add one")
    file.place(name)


def _rows(file: LabelTable, names: Sequence[str]) -> Iterator[tuple]:
    """Row number (the first line is row 1) and cells of some columns, one row after the other, without blank ones."""
    for block in file.blocks(names):
        for row in block[[*names]].itertuples(name=None):
            if any(cell.strip() for cell in row[1:]):
                yield (row[0] + 1, *row[1:])


def _cell(text: str) -> str:
    """A label cell: trimmed, numbers without `.0`, blank for everything that means unknown."""
    text = normalised(text.strip())
    if text.casefold() in _BLANK:
        return ""
    return text[:-2] if text.endswith(".0") and text[:-2].lstrip("-").isdigit() else text


def _ending(path: Path, row: int, key: str, wanted: Set[str]) -> str:
    """The longest ending of a path, posix or of Windows, that is wanted."""
    parts = [part for part in key.replace("\\", "/").split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InputError(f"{path}, row {row}: the path leaves the folder of the images (..); give paths below it")
    endings = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((ending for ending in endings if ending in wanted), "")


def _merged(one: str, other: str) -> str | None:
    """The value of two rows of one key; None if they differ."""
    if one == other or not other or other == "-1":
        return one
    return other if not one or one == "-1" else None


def _check_numbers(path: Path, row: int, cells: Sequence[str], names: Sequence[str]) -> None:
    for cell, name in zip(cells, names, strict=True):
        if cell.casefold() not in _NUMBERS:
            raise InputError(f"{path}, row {row}, column {name}: the label is not 0, 1, -1 or blank; correct it")


def _meaning(path: Path, columns: LabelColumns, rows: Iterable[tuple[str, ...]]):
    """Classes, task, and the function cells -> label."""
    if columns.several:
        if columns.positive_class or columns.classes:
            raise InputError("--positive-class and --classes go with --label-column; --label-columns names the classes")
        return columns.several, Multilabel.name, lambda cells: tuple(_NUMBERS[cell.casefold()] for cell in cells)
    texts = sorted({cell for (cell,) in rows} - {"", "-1"})
    if not columns.positive_class and not columns.classes and {text.casefold() for text in texts} <= set(_NUMBERS):
        return CLASSES, Binary.name, lambda cells: (_NUMBERS[cells[0].casefold()],)
    order = _order(path, columns, texts)
    ids = {name: number for number, name in enumerate(order)} | {"": UNKNOWN, "-1": UNKNOWN}
    task = Binary.name if len(order) == 2 else Multiclass.name
    return order, task, lambda cells: (ids[cells[0]],)


def _order(path: Path, columns: LabelColumns, texts: list[str]) -> tuple[str, ...]:
    """The classes of a column of texts in the order of their ids; three or more are in alphabetical order."""
    if len(texts) > MOST_CLASSES:
        raise InputError(
            f"column {columns.one} of {path} has {len(texts)} different values, more than {MOST_CLASSES}; "
            "is it a column of labels? give another --label-column"
        )
    if columns.classes:
        order, positive = tuple(map(normalised, columns.classes)), columns.positive_class
        if len(order) < 2 or len(set(order)) < len(order):
            raise InputError(f"--classes {','.join(order)} must name two or more different classes")
        if positive and (len(order) != 2 or normalised(positive) != order[1]):
            raise InputError(f"--positive-class {positive} contradicts --classes {','.join(order)}; give one of them")
        if other := sorted(set(texts) - set(order)):
            raise InputError(
                f"column {columns.one} of {path} also has the classes {', '.join(other)}; add to --classes"
            )
        return order
    if columns.positive_class:
        positive = normalised(columns.positive_class)
        if positive not in texts:
            raise InputError(
                f"class {positive} is not in column {columns.one} of {path}; there are: {', '.join(texts)}"
            )
        if len(texts) != 2:
            raise InputError(f"column {columns.one} of {path} has {len(texts)} classes, not two; give --classes a,b,c")
        return (next(text for text in texts if text != positive), positive)
    if len(texts) <= 2:
        raise InputError(
            f"column {columns.one} of {path} has the classes {', '.join(texts) or 'none'}: which is positive is never "
            "guessed; give --positive-class NAME or --classes a,b"
        )
    return tuple(texts)
