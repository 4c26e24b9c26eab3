"""The table of predictions, `predictions.csv`: all that scores, comparison and report are computed from."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kmura.errors import InputError, reason
from kmura.records.schema import VERSION_1_SPLITS

COLUMNS = ("split", "area", "patient", "study", "image", "label", "logit", "probability")
_TEXTS = COLUMNS[:5]


def read_predictions(path: str | os.PathLike) -> pd.DataFrame:
    """Returns the table of a binary run's `predictions.csv`, one row per image, with the columns of COLUMNS.

    Raises:
        InputError: the file is missing, damaged, or lacks one of COLUMNS; or a row is impossible: a probability or
            logit that is not a number or out of range, a label other than 0, 1 and -1 (unknown), an image that occurs
            twice, a study without a name or with images of both labels. Says which row.
    """
    table = read_table(path, COLUMNS[5:])
    refuse_rows(
        path,
        table,
        {
            "a probability that is not a number in 0 to 1": ~table["probability"].between(0, 1),
            "a logit that is not a finite number": ~np.isfinite(table["logit"]),
            "a label other than 0, 1 and -1": ~table["label"].isin([0, 1, -1]),
        },
    )
    table["label"] = table["label"].astype(int)
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
        numbers: columns that are read as numbers (NaN where an entry is not one), beside split, area, patient, study
            and image, which are text.

    Raises:
        InputError: the file is missing, damaged, lacks a column or has no rows; an image occurs twice; a study has no
            name.
    """
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(_TEXTS, str), keep_default_na=False)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; make it with: kmura evaluate {Path(path).parent}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason(error)}; {_fix(path)}") from error
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
