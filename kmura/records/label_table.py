"""Labels of images, studies or patients from a CSV: a table key -> label. Messages name rows, never keys."""

import csv
import dataclasses
import difflib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path

from kmura.errors import InputError, unreadable
from kmura.records.dicom_tags import words
from kmura.records.image_files import normalised
from kmura.tasks import Binary, Multiclass, Multilabel

UNKNOWN = -1
CLASSES = ("negative", "positive")  # of a column of 0 and 1
MOST_CLASSES = 100
_NUMBERS = {"": UNKNOWN, "-1": UNKNOWN, "0": 0, "1": 1, "false": 0, "true": 1}
_BLANK = ("", "nan", "na", "n/a", "none", "null")
_LONGEST_FIELD = 2**20  # characters


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
class LabelTable:
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


def header_of(path: str | os.PathLike) -> list[str]:
    """The names in the first line of a CSV.

    Raises:
        InputError: the file is missing, empty, or cannot be read.
    """
    for _, row in _rows(Path(path)):
        return [normalised(cell.strip()) for cell in row]
    raise InputError(f"{path} is empty; give a CSV with a line of column names")


def read_label_table(
    path: str | os.PathLike,
    key_column: str,
    columns: LabelColumns,
    wanted: Iterable[str],
    identifiers: Set[str] = frozenset(),
    *,
    paths: bool = False,
) -> LabelTable:
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
    header = header_of(path)
    key_at, *label_at = (column_at(path, header, name, wanted) for name in (key_column, *names))
    found: dict[str, tuple[int, tuple[str, ...]]] = {}  # key -> first row and its cells
    contradictions: dict[str, tuple[int, int]] = {}
    strays: list[int] = []
    stray_count = 0
    for number, row in _rows(path):
        if number == 1:
            continue
        if len(row) != len(header):
            raise InputError(f"{path}, row {number} has {len(row)} cells, the first line {len(header)}; correct it")
        key = normalised(row[key_at].strip())
        if paths:
            key = _ending(path, number, key, wanted)
        if key not in wanted:
            stray_count += 1
            strays += [number] if len(strays) < 3 else []
            continue
        cells = tuple(_cell(row[at]) for at in label_at)
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
    return LabelTable(classes, task, labels, contradictions, tuple(strays), stray_count)


def column_at(path: Path, header: Sequence[str], name: str, wanted: Iterable[str] = ()) -> int:
    """The position of a column.

    Args:
        path: the CSV, for messages.
        header: its first line.
        name: of the column.
        wanted: keys of images; a first line that holds one is a row, whose cells the message must not show.

    Raises:
        InputError: there is no such column, or there are two.
    """
    places = [at for at, cell in enumerate(header) if cell == normalised(name)]
    if len(places) == 1:
        return places[0]
    if places:
        raise InputError(f"{path} has {len(places)} columns {name}; rename one")
    if set(header) & set(wanted):
        raise InputError(f"the first line of {path} is no line of column names; add one")
    nearest = difflib.get_close_matches(name, header, 1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"there are: {', '.join(header[:30])}"
    raise InputError(f"{path} has no column {name}; {hint}")


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Row number and cells of the rows that are not blank, one after the other."""
    try:
        encoding, separator = _form(path)
        csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))
        with open(path, encoding=encoding, newline="") as file:
            for number, row in enumerate(csv.reader(file, delimiter=separator), 1):
                if any(cell.strip() for cell in row):
                    yield number, row
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; give the CSV of the labels with --csv") from error
    except OSError as error:
        raise unreadable(path, error) from error
    except csv.Error as error:
        raise InputError(f"{path} cannot be read ({error}); save it as CSV in UTF-8") from error


def _form(path: Path) -> tuple[str, str]:
    """Encoding and separator of a CSV."""
    with open(path, "rb") as file:
        start = file.read(4)
        encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        with open(path, encoding=encoding) as file:
            first = file.readline(_LONGEST_FIELD)
            while file.read(_LONGEST_FIELD):
                pass
    except UnicodeError:
        encoding = "latin-1"
        with open(path, encoding=encoding) as file:
            first = file.readline(_LONGEST_FIELD)
    return encoding, max(",;\t", key=first.count)


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
