"""From the different rows of each image to one row and one label per image."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from kmura.errors import InputError
from kmura.records.agreement import agreed_labels
from kmura.records.cell_labels import CellLabels, LabelRules, labels_of_cells, labels_of_columns
from kmura.records.image_files import Tally, normalised
from kmura.records.label_rows import IMAGE, ROW, TABLE, TIMES, LabelRows
from kmura.records.label_table import LabelTable


def labels_of_rows(
    rows: LabelRows, tables: Sequence[LabelTable], column: str | None, columns: Sequence[str], rules: LabelRules
) -> CellLabels:
    """The labels of rows.

    Args:
        rows: with the column `label` (of `column`), or `label NAME` for each of `columns`.
        tables: that the rows are from.
        column: of the labels, if there is one.
        columns: of 0 and 1, one label each.
        rules: how cells become labels.

    Raises:
        InputError: see `labels_of_cells` and `labels_of_columns`.
    """
    frame, where = rows.frame, " and ".join(str(table.path) for table in tables)
    if len(tables) > 1:
        names = [table.path.name for table in tables]
        frame = frame.set_axis(
            [f"{row} of {names[table]}" for row, table in zip(frame[ROW], frame[TABLE], strict=True)]
        )
    else:
        frame = frame.set_axis(frame[ROW])
    if columns:
        cells = frame[[f"label {name}" for name in columns]]
        return labels_of_columns(cells.set_axis(list(map(normalised, columns)), axis=1), rules, where)
    return labels_of_cells(frame["label"].rename(column), rules, where)


def one_row_per_image(
    frame: pd.DataFrame,
    labels: CellLabels,
    tables: Sequence[LabelTable],
    rule: str,
    tally: Tally,
    irregular: Tally,
) -> tuple[pd.DataFrame, CellLabels]:
    """The rows reduced to one per image, in the order of the images, and their labels.

    Args:
        frame: of `LabelRows`.
        labels: of its rows.
        tables: that the rows are from.
        rule: see `agreed_labels`.
        tally: counts images of classes that are left out.
        irregular: counts repeated rows and images with contradictory rows, which are left out.

    Raises:
        InputError: no image is left, or `any` is to decide between classes.
    """
    for number in np.flatnonzero(~labels.taken):
        tally.add("images of classes that are left out", row_name(frame.iloc[number], tables))
    frame, values = frame[labels.taken].reset_index(drop=True), labels.values[labels.taken].copy()
    if rule == "any" and labels.kind == "single" and len(labels.classes) > 2:
        raise InputError("--repeated-rows any goes with labels of 0 and 1, not with classes; use majority")
    if rule == "agree":
        for _, row in frame[frame[TIMES] > 1].iterrows():
            irregular.add("repeated rows", f"{row_name(row, tables)} ({row[TIMES]} times)", int(row[TIMES]) - 1)
    groups = [name for name in ("patient", "study", "split", "folds") if name in frame]
    kept = [column for column in frame if column.startswith("keep ")]
    contradictory: list[int] = []
    several = frame[frame.duplicated(IMAGE, keep=False)]
    for _, part in several.groupby(IMAGE, sort=False):
        first = part.index[0]
        classes = len(labels.classes) if labels.kind == "single" else 0
        label = agreed_labels(values[part.index], part[TIMES].to_numpy(), rule, classes)
        if label is None or (part[[*groups, TABLE]] != part[[*groups, TABLE]].iloc[0]).any(axis=None):
            irregular.add(
                "images with contradictory rows", ", ".join(row_name(row, tables) for _, row in part.iterrows())
            )
            contradictory += part.index.tolist()
            continue
        values[first] = label
        if rule == "agree":
            names = f"{row_name(part.iloc[1], tables)} repeats {row_name(part.iloc[0], tables)}"
            irregular.add("repeated rows", names, len(part) - 1)
        for column in kept:
            if part[column].nunique() > 1:
                tally.add(
                    f"images with several values of {column.removeprefix('keep ')}", row_name(part.iloc[0], tables)
                )
    frame = frame.drop(index=contradictory).drop_duplicates(IMAGE)
    if frame.empty:
        raise InputError("no image is left: the rows of all images contradict each other; see --repeated-rows")
    order = frame[IMAGE].sort_values().index
    labels = dataclasses.replace(labels, values=values[order], taken=np.ones(len(order), bool))
    return frame.loc[order].reset_index(drop=True), labels


def row_name(row: pd.Series, tables: Sequence[LabelTable]) -> str:
    """The name of a row for messages: `labels.csv row 7`."""
    return f"{tables[row[TABLE]].path.name} row {row[ROW]}"
