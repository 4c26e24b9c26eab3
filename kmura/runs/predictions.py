"""The table of predictions, `predictions.csv`: all that scores, comparison and report are computed from."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kmura.errors import InputError, reason
from kmura.files import sha256_of
from kmura.runs.run import RunFolder

COLUMNS = ("split", "area", "patient", "study", "image", "label", "logit", "probability")
_TEXTS = COLUMNS[:5]


def read_predictions(path: str | os.PathLike) -> pd.DataFrame:
    """The table in a `predictions.csv`, one row an image, with the columns of COLUMNS.

    Raises:
        InputError: missing, damaged, without one of COLUMNS, or with a row that cannot be: a probability or logit that
            is no number or out of range, a label other than 0, 1 and -1 (unknown), an image twice, a study without a
            name or with images of both labels. Names the row.
    """
    table = read_table(path, COLUMNS[5:])
    refuse_rows(
        path,
        table,
        {
            "a probability that is no number in 0 to 1": ~table["probability"].between(0, 1),
            "a logit that is no finite number": ~np.isfinite(table["logit"]),
            "a label other than 0, 1 and -1": ~table["label"].isin([0, 1, -1]),
        },
    )
    table["label"] = table["label"].astype(int)
    known = table[table["label"] >= 0]
    mixed = known.groupby(["split", "area", "study"])["label"].nunique()
    if (mixed > 1).any():
        split, area, study = mixed.index[int(np.argmax(mixed > 1))]
        raise InputError(f"{path}: study {study} of {area}, {split}, has images of both labels; {_mend(path)}")
    return table


def read_table(path: str | os.PathLike, numbers: Sequence[str]) -> pd.DataFrame:
    """A table of predictions: split, area, patient, study and image as texts, and columns of numbers (NaN if none).

    Raises:
        InputError: missing, damaged, without one of the columns, without rows, an image twice, a study without a name.
    """
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(_TEXTS, str), keep_default_na=False)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; make it with: kmura evaluate {Path(path).parent}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason(error)}; {_mend(path)}") from error
    except ValueError as error:  # not a table, or not text
        raise InputError(f"{path} is no table ({' '.join(str(error).split())}); {_mend(path)}") from error
    for name in (*_TEXTS, *numbers):
        if name not in table.columns:
            raise InputError(f"{path} has no column {name}; {_mend(path)}")
    if table.empty:
        raise InputError(f"{path} has no rows; {_mend(path)}")
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
    """Refuses a table with rows that cannot be; what -> which rows, bool.

    Raises:
        InputError: names the first such row.
    """
    for what, rows in wrong.items():
        if np.any(rows):
            row = int(np.argmax(rows))
            raise InputError(f"{path}, line {row + 2} ({table['image'][row]}): {what}; {_mend(path)}")


def _mend(path: str | os.PathLike) -> str:
    return f"make it again with: kmura evaluate {Path(path).parent}"


def read_evaluation(
    run: str | os.PathLike, read: Callable[[Path], pd.DataFrame] = read_predictions
) -> tuple[dict[str, Any], pd.DataFrame]:
    """What `metrics.json` of a run says, and its predictions.

    Args:
        run: its folder.
        read: reads `predictions.csv`.

    Raises:
        InputError: not evaluated, damaged, or scores, predictions and `best.keras` (where it is there) that do not
            belong together.
    """
    folder = RunFolder(Path(run))
    found = read_json(folder.metrics, f"kmura evaluate {run}")
    table = read(folder.predictions)
    for file, key in ((folder.predictions, "predictions_sha256"), (folder.best, "model_sha256")):
        if not isinstance(found, dict) or key not in found:
            raise InputError(f"{folder.metrics} is of another version; make it again with: kmura evaluate {run}")
        if file.exists() and found[key] != sha256_of(file):
            raise InputError(f"{file} has changed since the run was evaluated; evaluate it again: kmura evaluate {run}")
    return found, table


def read_json(path: Path, command: str) -> Any:
    """What a JSON file holds.

    Raises:
        InputError: missing or damaged; names the command that makes it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; make it with: {command}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); make it again with: {command}") from error
