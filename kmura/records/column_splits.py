"""Splits and folds of images from columns of tables."""

import re
from collections.abc import Mapping, Sequence

import pandas as pd

from kmura.errors import InputError
from kmura.records.class_order import alphabetical
from kmura.records.image_files import normalised
from kmura.records.image_rows import row_name
from kmura.records.label_rows import TABLE
from kmura.records.label_table import LabelTable
from kmura.records.layouts.base import split_of
from kmura.records.schema import SPLITS

_SPLIT_AT_END = re.compile(r"(?:^|[_-])([a-z]+)$", re.I)  # of the name of a table: image_labels_train


def splits_of(
    images: pd.DataFrame, tables: Sequence[LabelTable], column: str | None, mapped: Mapping[str, str]
) -> tuple[list[str], tuple[str, ...], list[str]]:
    """The split of each image, the splits that occur, and notes.

    Without a column, the names of two or more tables give the splits if each ends with that of a split.

    Args:
        images: one row per image; the column `split` if `column` is given.
        tables: that the rows are from.
        column: of the split.
        mapped: value -> split, for values that are no usual name of a split.

    Raises:
        InputError: a value is no split, or there are no training images.
    """
    for value, split in mapped.items():
        if split not in SPLITS:
            raise InputError(
                f"--split-values {value}={split}: {split!r} is no split; choose one of {', '.join(SPLITS)}"
            )
    if column:
        place, texts = f"column {column!r}", images["split"].str.strip()
    else:
        ends = [_SPLIT_AT_END.search(table.path.name.partition(".")[0]) for table in tables]
        values = [end[1] if end and (end[1] in mapped or split_of(end[1])) else "" for end in ends]
        if len(tables) < 2 or not all(values):
            return ["train"] * len(images), ("train",), []
        place, texts = "the names of the files", images[TABLE].map(dict(enumerate(values)))
    splits = {text: mapped.get(normalised(text)) or split_of(text) for text in texts.unique()}
    for text, split in splits.items():
        if split is None:
            row = row_name(images[texts == text].iloc[0], tables)
            near = f"; --split-values {text or 'VALUE'}=test maps it"
            raise InputError(f"{row}: {text!r} in {place} is no split (train, val, valid, validation, test){near}")
    result = texts.map(splits).tolist()
    given = tuple(split for split in SPLITS if split in set(result))
    if "train" not in given:
        raise InputError(f"{place} has no training images, only {', '.join(splits)}; map a value with --split-values")
    shown = ", ".join(f"{text} is {split}" for text, split in sorted(splits.items()))
    return result, given, [f"splits from {place}: {shown}"]


def folds_of(images: pd.DataFrame, column: str | None) -> tuple[list[int | None], list[str]]:
    """The fold of each image, None for test images, and a note on their names.

    Args:
        images: one row per image, with the columns `path`, `split`, and `folds` if `column` is given.
        column: of the folds.

    Raises:
        InputError: an image has no fold, or there are fewer than two folds.
    """
    if not column:
        return [None] * len(images), []
    texts, trained = images["folds"].str.strip(), images["split"] != "test"
    blank = trained & (texts == "")
    if blank.any():
        raise InputError(f"column {column!r} is empty for {images['path'][blank].iloc[0]}; each image needs a fold")
    names = sorted(texts[trained].unique(), key=alphabetical)
    if len(names) < 2:
        raise InputError(f"column {column!r} has {len(names)} fold ({', '.join(names)}); two or more are needed")
    places = {name: number for number, name in enumerate(names)}
    folds = [places[text] if train else None for text, train in zip(texts, trained, strict=True)]
    return folds, [f"folds from column {column!r}: {', '.join(f'{name} is {place}' for name, place in places.items())}"]
