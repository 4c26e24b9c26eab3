"""The table of predictions, `predictions.csv`, from which scores, comparison and report are computed."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kmura.errors import InputError, unreadable
from kmura.records.schema import VERSION_1_SPLITS
from kmura.tasks import Binary, Task

COLUMNS = ("split", "area", "patient", "study", "image", "label", "logit", "probability")
_TEXTS = COLUMNS[:5]
BINARY = Binary(("negative", "positive"))  # its columns do not depend on the names of the classes


def read_predictions(path: str | os.PathLike, task: Task = BINARY) -> pd.DataFrame:
    """Returns the table of a run's `predictions.csv`, one row per image.

    Its columns are split, area, patient, study and image, and the columns of labels, logits and probabilities of the
    task; of a binary task those of COLUMNS.

    Args:
        path: of the file.
        task: of the run.

    Raises:
        InputError: the file is missing, damaged, or lacks a column; or a row is impossible: a probability or logit that
            is not a number or out of range, a label that the task does not have (-1 is unknown), an image that occurs
            twice, a study without a name or, in a binary task, with images of both labels. Says which row.
    """
    labels, logits, probabilities = task.label_columns, task.logit_columns, task.probability_columns
    table = read_table(path, (*labels, *logits, *probabilities))
    values, within = table[labels].to_numpy(), table[probabilities].apply(lambda column: column.between(0, 1))
    allowed = "0, 1 and -1" if task.largest_label == 1 else f"-1 to {task.largest_label}"
    refuse_rows(
        path,
        table,
        {
            "a probability that is not a number in 0 to 1": ~within.all(axis=1),
            "a logit that is not a finite number": ~np.isfinite(table[logits]).all(axis=1),
            f"a label other than {allowed}": ~np.isin(values, range(-1, task.largest_label + 1)).all(axis=1),
        },
    )
    table = table.astype(dict.fromkeys(labels, int))
    if isinstance(task, Binary):
        known = table[table["label"] >= 0]
        mixed = known.groupby(["split", "area", "study"])["label"].nunique()
        if (mixed > 1).any():
            split, area, study = mixed.index[int(np.argmax(mixed > 1))]
            raise InputError(f"{path}: study {study} of {area}, {split}, has images of both labels; {_fix(path)}")
    return table


def read_table(path: str | os.PathLike, numbers: Sequence[str]) -> pd.DataFrame:
    """Returns a table of predictions, one row per image, with today's names of the splits.

    Tables of runs on records of schema version 1 call the splits val and test tune and valid.

    Args:
        path: of the file.
        numbers: columns that are read as numbers (NaN where an entry is not one); split, area, patient, study and
            image are read as text.

    Raises:
        InputError: the file is missing, damaged, lacks a column or has no rows; an image occurs twice; a study has no
            name.
    """
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(_TEXTS, str), keep_default_na=False)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; make it with: kmura evaluate {Path(path).parent}") from error
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:  # not a table, or not text
        raise InputError(f"{path} is not a table ({' '.join(str(error).split())}); {_fix(path)}") from error
    for name in (*_TEXTS, *numbers):
        if name not in table.columns:
            raise InputError(f"{path} has no column {name}; {_fix(path)}")
    if table.empty:
        raise InputError(f"{path} has no rows; {_fix(path)}")
    table["split"] = table["split"].replace(VERSION_1_SPLITS)
    refuse_rows(
        path,
        table,
        {
            "no study": table["study"].str.strip() == "",
            "an image of an earlier row": table.duplicated(["split", "area", "image"]),
        },
    )
    table[list(numbers)] = table[list(numbers)].apply(pd.to_numeric, errors="coerce")
    return table


def refuse_rows(path: str | os.PathLike, table: pd.DataFrame, wrong: Mapping[str, np.ndarray | pd.Series]) -> None:
    """Checks a table for impossible rows.

    Args:
        path: of the table, for the message.
        table: one row per image.
        wrong: problem -> which rows have it, bool [rows].

    Raises:
        InputError: a row has a problem; says which row.
    """
    for problem, rows in wrong.items():
        if np.any(rows):
            row = int(np.argmax(rows))
            raise InputError(f"{path}, line {row + 2} ({table['image'][row]}): {problem}; {_fix(path)}")


def _fix(path: str | os.PathLike) -> str:
    return f"make it again with: kmura evaluate {Path(path).parent}"
