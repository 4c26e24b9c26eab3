"""Tables of predictions that other programs wrote, as text in bounded memory."""

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from kmura.config.suggestions import did_you_mean, nearest
from kmura.errors import InputError
from kmura.records.label_table import open_table

MOST_ROWS = 2_000_000  # about 1 GB of memory and minutes of resampling


class TableFile:
    """A CSV file whose header has been read.

    Attributes:
        path: of the file.
        columns: names in the header; columns without a name are left out.
        separator: of the cells, such as `,`.
        remarks: what was assumed about the file, sentences; empty for commas and UTF-8.
    """

    def __init__(self, path: str | os.PathLike):
        """
        Raises:
            InputError: the file is missing, cannot be read, is not a CSV, or names a column twice.
        """
        self.path = Path(path)
        self._table = open_table(self.path, needed="give a CSV file of predictions")
        self.columns = tuple(name for name in self._table.columns if name)
        self.separator = self._table.separator
        self.remarks = self._table.notes
        for name in self.columns:
            self._table.place(name)

    def check_column(self, name: str, option: str) -> None:
        """Checks that the file has a column.

        Args:
            name: of the column.
            option: that named it, for the message.

        Raises:
            InputError: it has not; suggests the nearest.
        """
        if name not in self.columns:
            known = ", ".join(self.columns[:20]) + (", ..." if len(self.columns) > 20 else "")
            raise InputError(
                f"{self.path} has no column {name!r} ({option}){did_you_mean(nearest(name, self.columns))} "
                f"(columns: {known})"
            )

    def read(self, columns: Sequence[str], most: int = MOST_ROWS) -> pd.DataFrame:
        """Returns columns of the file as text, without surrounding blanks; missing entries are "".

        Memory is bounded: the file is read in parts, and no further than to row `most`.

        Args:
            columns: names, each once.
            most: number of rows that are allowed.

        Raises:
            InputError: the file is damaged, has no rows, or more than `most`.
        """
        parts, number = [], 0
        for part in self._table.blocks(columns):
            number += len(part)
            if number > most:
                raise InputError(
                    f"{self.path} has more than {most:,} rows, which would not fit into memory with its resamples; "
                    "score a random sample of its patients, or one split at a time"
                )
            parts.append(part)
        if not number:
            raise InputError(f"{self.path} has no rows; give one row per image")
        return pd.concat(parts, ignore_index=True).apply(lambda column: column.str.strip())
