"""The table of predictions, `predictions.csv`, from which scores, comparison and report are computed."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kmura.errors import InputError, unreadable
from kmura.metrics import study_keys
from kmura.records.schema import VERSION_1_SPLITS
from kmura.tasks import Binary, Task

COLUMNS = ("split", "area", "patient", "study", "image", "label", "logit", "probability")
_TEXTS = COLUMNS[:5]
_ROUNDED = 1e-3  # a probability may differ from that of its logit by rounding to three digits
BINARY = Binary(("negative", "positive"))  # its columns do not depend on the names of the classes


def read_predictions(path: str | os.PathLike, task: Task = BINARY) -> pd.DataFrame:
    """Returns the table of a run's `predictions.csv`, one row per image.

    Its columns are split, area, patient, study and image, and the columns of labels, logits and probabilities of the
    task (of a binary task those of COLUMNS), then those of metadata that the records keep.

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
    check_predictions(table, task, path)
    return table.astype(dict.fromkeys(labels, int))


def check_predictions(table: pd.DataFrame, task: Task, path: str | os.PathLike | None = None) -> None:
    """Checks a table of predictions for impossible rows.

    Args:
        table: with the columns that `read_predictions` returns; any index.
        task: of the predictions.
        path: of the file that the table was read from, for the message; None if it was made in memory.

    Raises:
        InputError: see `read_predictions`; says which row.
    """
    labels, logits, probabilities = task.label_columns, task.logit_columns, task.probability_columns
    for name in (*_TEXTS, *labels, *logits, *probabilities):
        if name not in table.columns:
            raise InputError(f"{path or 'the table of predictions'} has no column {name}; {_fix(path)}")
    values, probability, logit = (
        table[names].apply(pd.to_numeric, errors="coerce").to_numpy(float) for names in (labels, probabilities, logits)
    )
    allowed = "0, 1 and -1" if task.largest_label == 1 else f"-1 to {task.largest_label}"
    refuse_rows(
        path,
        table,
        {
            "a probability that is not a number in 0 to 1": ~((probability >= 0) & (probability <= 1)).all(axis=1),
            "a logit that is not a finite number": ~np.isfinite(logit).all(axis=1),
            f"a label other than {allowed}": ~np.isin(values, range(-1, task.largest_label + 1)).all(axis=1),
        },
    )
    apart = np.abs(task.probabilities(logit) - probability).max(axis=1) > _ROUNDED
    refuse_rows(path, table, {"a probability that contradicts its logit": apart})
    if isinstance(task, Binary):
        known = table[table["label"] >= 0]
        mixed = known["label"].groupby([known["split"], study_keys_of(known)]).transform("nunique") > 1
        if mixed.any():
            row = known[mixed].iloc[0]
            raise InputError(
                f"{path or 'the predictions'}: study {row['study']} of {row['area']}, {row['split']}, "
                f"has images of both labels; {_fix(path)}"
            )


def predictions_of(rows: pd.DataFrame, split: str, logit: np.ndarray, task: Task) -> pd.DataFrame:
    """Returns the table of predictions of a split, with the columns that `read_predictions` returns.

    Args:
        rows: table of `Dataset.rows`, one row per image; its further columns (metadata) come last.
        split: its name.
        logit: [N, L], float64.
        task: of the predictions.
    """
    names = [*_TEXTS, *task.label_columns]
    return pd.concat(
        [
            rows.assign(split=split)[names],
            pd.DataFrame(logit, columns=task.logit_columns),
            pd.DataFrame(task.probabilities(logit), columns=task.probability_columns),
            rows[[name for name in rows if name not in names]],
        ],
        axis=1,
    )


def patient_keys_of(table: pd.DataFrame) -> np.ndarray:
    """Returns the patient of each image as text [N]; an image without one belongs to a patient of its study alone."""
    patient = table["patient"].fillna("").astype(str)
    unknown = (patient.str.strip() == "").to_numpy()
    if not unknown.any():
        return patient.to_numpy(object)
    study = "\0" + table["area"].astype(str) + "\0" + table["study"].astype(str)  # no patient begins like this
    return np.where(unknown, study, patient)


def study_keys_of(table: pd.DataFrame) -> np.ndarray:
    """Returns a number for the study of each image [N]; a study is known by area, patient and study id together.

    Two patients may have a study of the same id, and so may two areas.
    """
    keys = [table[name].fillna("").astype(str) for name in ("area", "patient", "study") if name in table]
    return study_keys(*keys)


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


def refuse_rows(
    path: str | os.PathLike | None, table: pd.DataFrame, wrong: Mapping[str, np.ndarray | pd.Series]
) -> None:
    """Checks a table for impossible rows.

    Args:
        path: of the table, for the message; None if it was made in memory.
        table: one row per image.
        wrong: problem -> which rows have it, bool [rows].

    Raises:
        InputError: a row has a problem; says which row.
    """
    for problem, rows in wrong.items():
        if np.any(rows):
            row = int(np.argmax(rows))
            where = f"the predictions, row {row}" if path is None else f"{path}, line {row + 2}"
            raise InputError(f"{where} ({table['image'].iloc[row]}): {problem}; {_fix(path)}")


def _fix(path: str | os.PathLike | None) -> str:
    return "correct the table" if path is None else f"make it again with: kmura evaluate {Path(path).parent}"
