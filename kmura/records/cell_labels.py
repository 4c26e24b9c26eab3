"""Labels from the cells of a table: 0 and 1 per column, one class per cell, or several labels in one cell.

-1 is unknown. N images, L labels.
"""

import collections
import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from kmura.errors import InputError
from kmura.records.class_order import alphabetical, class_order
from kmura.records.image_files import normalised

YES, NO = ("1", "true", "yes", "y", "positive", "present"), ("0", "false", "no", "n", "negative", "absent")
NO_FINDING = ("no finding", "no findings")  # the empty set of labels
_PAIRS = (("false", "true"), ("no", "yes"), ("n", "y"), ("negative", "positive"), ("absent", "present"))


@dataclasses.dataclass(frozen=True)
class LabelRules:
    """How cells become labels.

    Attributes:
        uncertain: what -1 in a column of 0 and 1 means.
        blank: what an empty cell means.
        no_finding: cells that mean that an image has none of the labels.
        merged: name in the table -> name of the label that it counts as.
        dropped: labels that do not become classes.
        unknown: cells of images whose labels are unknown.
        separators: characters between the labels of a cell; "" if a cell is one class.
        positive_class, classes: order of the classes, see `class_order`.
    """

    uncertain: Literal["unknown", "positive", "negative"] = "unknown"
    blank: Literal["unknown", "negative"] = "unknown"
    no_finding: tuple[str, ...] = ()
    merged: dict[str, str] = dataclasses.field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    separators: str = ""
    positive_class: str | None = None
    classes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class CellLabels:
    """The labels of the rows of a table.

    Attributes:
        classes: in the order of their ids.
        kind: `single` (class ids, [N, 1]), or `several` (0 and 1 for each label, [N, L]).
        values: int64 [N, 1] or [N, L]; -1 is unknown.
        taken: bool [N], False for rows of classes that are left out.
        notes: what was decided.
    """

    classes: tuple[str, ...]
    kind: Literal["single", "several"]
    values: np.ndarray
    taken: np.ndarray
    notes: tuple[str, ...]


def labels_of_columns(cells: pd.DataFrame, rules: LabelRules, where: str) -> CellLabels:
    """One label per column, of cells with 1, 0, -1 (uncertain) or nothing.

    Columns that are merged count as one label, which is present if it is present in any of them.

    Args:
        cells: text, one row per row of the table; the index is the number of the row.
        rules: how cells become labels.
        where: name of the table, for messages.

    Raises:
        InputError: a cell has another value; says which row and column.
    """
    names = list(dict.fromkeys(rules.merged.get(column, column) for column in cells))
    values = np.full((len(cells), len(names)), -2, np.int64)  # -2: no column has said anything yet
    for column in cells:
        numbers = _zero_or_one(cells[column], rules, f"{where}, column {column!r}")
        place = names.index(rules.merged.get(column, column))
        values[:, place] = any_of(np.stack([values[:, place], numbers], axis=1))
    if rules.classes:
        _check_classes(rules.classes, names, where)
    classes = rules.classes or tuple(name for name in names if name not in rules.dropped)
    chosen = [names.index(name) for name in classes]
    return CellLabels(classes, "several", values[:, chosen], np.ones(len(cells), bool), ())


def labels_of_cells(cells: pd.Series, rules: LabelRules, where: str) -> CellLabels:
    """The labels of one column: several per cell with `rules.separators`, otherwise one class per cell.

    Args:
        cells: text, one per row of the table; the index is the number of the row.
        rules: how cells become labels.
        where: name of the table, for messages.

    Raises:
        InputError: the classes do not fit the options, or a cell does not fit the classes; says which row.
    """
    place = f"{where}, column {cells.name!r}"
    cells = cells.map(lambda cell: normalised(cell.strip()))
    return _several(cells, rules, place) if rules.separators else _single(cells, rules, place)


def any_of(votes: np.ndarray) -> np.ndarray:
    """1 where any vote is 1, else -1 where any is unknown, else 0; votes int64 [N, V], of which -2 are not counted."""
    result = np.where((votes == 1).any(axis=1), 1, np.where((votes == -1).any(axis=1), -1, 0))
    return np.where((votes == -2).all(axis=1), -2, result)


def _zero_or_one(cells: pd.Series, rules: LabelRules, place: str) -> np.ndarray:
    """0, 1 and -1 of cells, int64 [N]."""
    meaning = {"": {"unknown": -1, "negative": 0}[rules.blank]}
    uncertain = {"unknown": -1, "positive": 1, "negative": 0}[rules.uncertain]
    numbers, unknown = np.empty(len(cells), np.int64), {text.casefold() for text in rules.unknown}
    codes, texts = pd.factorize(cells)
    for code, text in enumerate(texts):
        text = normalised(text.strip())
        text = "" if text.casefold() == "nan" else text
        number = _as_number(text)
        if text in meaning:
            value = meaning[text]
        elif text.casefold() in unknown:
            value = -1
        elif number == -1:
            value = uncertain
        elif number in (0, 1):
            value = number
        elif text.casefold() in YES or text.casefold() in NO:
            value = int(text.casefold() in YES)
        else:
            row = cells.index[codes == code][0]
            raise InputError(
                f"{place}, row {row}: {text[:60]!r} is no label; 1, 0, -1 (uncertain) or an empty cell is needed, or "
                "name the column of classes with --label-column"
            )
        numbers[codes == code] = value
    return numbers


def _single(cells: pd.Series, rules: LabelRules, place: str) -> CellLabels:
    texts = cells.map(lambda text: rules.merged.get(text, text))
    unknown = {normalised(text).casefold() for text in rules.unknown}
    known = {text for text in texts.unique() if text and text.casefold() not in unknown}
    numbers = {text: _as_number(text) for text in known}
    if known and set(numbers.values()) <= {0, 1, -1}:
        return _zero_one_classes(texts, rules, place)
    known = {text for text in known if numbers[text] != -1 and text not in rules.dropped}
    folded = {text.casefold(): text for text in known}
    notes, classes = (), rules.classes
    for pair in _PAIRS:
        if {*folded} == {*pair} and not (rules.positive_class or classes):
            classes = tuple(folded[word] for word in pair)
            notes = (f"{place}: {classes[1]} is taken as the positive class",)
    if not known:
        raise InputError(f"{place} has no labels; name another with --label-column")
    _check_spelling(known, place)
    order, more = class_order(place, sorted(known, key=alphabetical), rules.positive_class, classes)
    ids = {text: number for number, text in enumerate(order)}
    blank = 0 if rules.blank == "negative" else -1

    def value(text: str) -> int:
        if text.casefold() in unknown or numbers.get(text) == -1:
            return -1
        return blank if not text else ids.get(text, -2)

    values = texts.map(value).to_numpy(np.int64)
    return CellLabels(order, "single", values[:, None], values > -2, (*notes, *more))


def _zero_one_classes(cells: pd.Series, rules: LabelRules, place: str) -> CellLabels:
    """Two classes of a column of 0 and 1, which is named after the column unless `classes` names both."""
    classes = rules.classes or (f"no {cells.name}", str(cells.name))
    if len(classes) != 2 or classes[0] == classes[1]:
        raise InputError(f"{place} holds 0 and 1; --classes has to name two classes, that of 0 and that of 1")
    if rules.positive_class and rules.positive_class != classes[1]:
        raise InputError(
            f"--positive-class {rules.positive_class} does not fit {place}, which holds 0 and 1; name the classes of 0 "
            "and 1 with --classes"
        )
    values = _zero_or_one(cells, rules, place)
    note = () if rules.classes else (f"{place} holds 0 and 1: the classes are {classes[0]} and {classes[1]}",)
    return CellLabels(classes, "single", values[:, None], np.ones(len(cells), bool), note)


def _several(cells: pd.Series, rules: LabelRules, place: str) -> CellLabels:
    codes, texts = pd.factorize(cells)
    parts = [_parts(text, rules.separators) for text in texts]
    present = {part for group in parts for part in group}
    empty, notes = {normalised(text) for text in rules.no_finding}, []
    if not empty:
        empty = {part for part in present if part.casefold() in NO_FINDING}
        notes += [f"{place}: {' and '.join(sorted(empty))} means none of the labels"] if empty else []
    unknown = {normalised(text).casefold() for text in rules.unknown}
    merged = [{rules.merged.get(part, part) for part in group} for group in parts]
    counts: collections.Counter[str] = collections.Counter()
    for group, number in zip(merged, np.bincount(codes, minlength=len(parts)), strict=True):
        counts.update({part: int(number) for part in group})
    known = {
        name for name in counts if name not in empty and name.casefold() not in unknown and name not in rules.dropped
    }
    if rules.positive_class:
        raise InputError("--positive-class does not go with several labels per image; name them with --classes")
    classes = tuple(map(normalised, rules.classes)) or tuple(sorted(known, key=alphabetical))
    if not classes:
        raise InputError(f"{place} has no labels; name another with --label-column")
    _check_spelling(known, place)
    _check_classes(classes, known, place)
    if not rules.classes:
        notes.append(f"{place}: {len(classes)} labels in alphabetical order ({', '.join(classes)})")
    if left_out := sorted(known - set(classes), key=alphabetical):
        shown = ", ".join(f"{name} ({counts[name]})" for name in left_out)
        notes.append(f"{place}: labels without a class: {shown}")
    table = np.zeros((len(parts), len(classes)), np.int64)
    places = {name: number for number, name in enumerate(classes)}
    for row, (text, group) in enumerate(zip(texts, merged, strict=True)):
        if {part.casefold() for part in group} & unknown or (not text and rules.blank == "unknown"):
            table[row] = -1
        for part in group & {*classes}:
            table[row, places[part]] = 1
    return CellLabels(classes, "several", table[codes], np.ones(len(cells), bool), tuple(notes))


def _check_classes(classes: Sequence[str], known: Iterable[str], place: str) -> None:
    known = sorted(known)
    for name in classes:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known[:30])}"
            raise InputError(f"class {name} is not in {place}; {hint}")
    if len(set(classes)) < len(classes):
        raise InputError(f"--classes {','.join(classes)} names a class twice")


def _check_spelling(known: Iterable[str], place: str) -> None:
    first: dict[str, str] = {}
    for name in sorted(known):
        other = first.setdefault(name.casefold(), name)
        if other != name:
            raise InputError(
                f"{place}: the labels {other!r} and {name!r} differ only in case; merge them with "
                f"--merge-labels {other}={name}"
            )


def _parts(text: str, separators: str) -> list[str]:
    for separator in separators[1:]:
        text = text.replace(separator, separators[0])
    return [part.strip() for part in text.split(separators[0]) if part.strip()]


def _as_number(text: str) -> float | None:
    """The whole number in a cell, which some programs write as 1.0; None if there is none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number.is_integer() else None
