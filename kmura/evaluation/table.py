"""The table of predictions, `predictions.csv`: all that scores, comparison and report are computed from."""

import os
from pathlib import Path

import numpy as np
import pandas as pd

from kmura.errors import InputError, reason

COLUMNS = ("split", "area", "patient", "study", "image", "label", "logit", "probability")
_TEXTS = COLUMNS[:5]


def read_predictions(path: str | os.PathLike) -> pd.DataFrame:
    """The table in a `predictions.csv`, one row an image, with the columns of COLUMNS.

    Raises:
        InputError: missing, damaged, without one of COLUMNS, or with a row that cannot be: a probability or logit that
            is no number or out of range, a label other than 0, 1 and -1 (unknown), an image twice, a study without a
            name or with images of both labels. Names the row.
    """
    mend = f"make it again with: kmura evaluate {Path(path).parent}"
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(_TEXTS, str), keep_default_na=False)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; make it with: kmura evaluate {Path(path).parent}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason(error)}; {mend}") from error
    except ValueError as error:  # not a table, or not text
        raise InputError(f"{path} is no table ({' '.join(str(error).split())}); {mend}") from error
    for name in COLUMNS:
        if name not in table.columns:
            raise InputError(f"{path} has no column {name}; {mend}")
    if table.empty:
        raise InputError(f"{path} has no rows; {mend}")
    numbers = table[["label", "logit", "probability"]].apply(pd.to_numeric, errors="coerce")
    wrong = {
        "a probability that is no number in 0 to 1": ~numbers["probability"].between(0, 1),
        "a logit that is no finite number": ~np.isfinite(numbers["logit"]),
        "a label other than 0, 1 and -1": ~numbers["label"].isin([0, 1, -1]),
        "no study": table["study"].str.strip() == "",
        "an image of an earlier row": table.duplicated(["split", "area", "image"]),
    }
    for what, rows in wrong.items():
        if rows.any():
            row = int(np.argmax(rows))
            raise InputError(f"{path}, line {row + 2} ({table['image'][row]}): {what}; {mend}")
    table[numbers.columns] = numbers
    table["label"] = table["label"].astype(int)
    known = table[table["label"] >= 0]
    mixed = known.groupby(["split", "area", "study"])["label"].nunique()
    if (mixed > 1).any():
        split, area, study = mixed.index[int(np.argmax(mixed > 1))]
        raise InputError(f"{path}: study {study} of {area}, {split}, has images of both labels; {mend}")
    return table
