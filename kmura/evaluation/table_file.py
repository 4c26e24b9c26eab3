"""Tables that other programs wrote: CSV in any usual encoding and with any usual separator, also gzipped."""

import codecs
import contextlib
import csv
import gzip
import io
import os
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from kmura.config.suggestions import did_you_mean, nearest
from kmura.errors import InputError, in_brief, unreadable

MOST_ROWS = 2_000_000  # about 1 GB of memory and minutes of resampling
_PART = 100_000  # rows read at a time
TAB = "\t"
_QUOTES = "put entries that contain the separator in double quotes"
_SAMPLE = 1 << 16  # bytes that separator and encoding are recognised from


class TableFile:
    """A CSV file whose header has been read.

    Attributes:
        path: of the file.
        columns: names in the header.
        separator: `,`, `;` or a tab.
        encoding: name of the text encoding.
        remarks: what was assumed about the file, sentences; empty for commas and UTF-8.
    """

    def __init__(self, path: str | os.PathLike):
        """
        Raises:
            InputError: the file is missing, cannot be read, is not a CSV, or names a column twice.
        """
        self.path = Path(path)
        with self._readable():
            with self._open() as file:
                sample = file.read(_SAMPLE)
            self.encoding, text = self._decoded(sample)
            header = next(iter(text.splitlines()), "")
            self.separator = max(",;\t", key=header.count)
            names = next(csv.reader([header], delimiter=self.separator), [])
            first = next(csv.reader(text.splitlines()[1:2], delimiter=self.separator), [])
        names = [name.strip() for name in names]
        if not any(names):
            raise InputError(f"{self.path} has no header; give a CSV file whose first line names the columns")
        self.columns = tuple(name or f"column {number}" for number, name in enumerate(names, 1))
        if any(entry.strip() for entry in first[len(names) :]):
            raise InputError(f"{self.path}, line 2: {len(first)} entries, but {len(names)} columns; {_QUOTES}")
        twice = next((name for name in self.columns if self.columns.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"{self.path} has two columns {twice!r}; rename one of them")
        self.remarks = ()
        if self.encoding == "latin-1":
            self.remarks += ("the file is not UTF-8 and was read as Latin-1",)
        if self.separator != ",":
            self.remarks += (f"columns are separated by {'tabs' if self.separator == TAB else 'semicolons'}",)

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
        with self._readable(), self._open() as file, warnings.catch_warnings():
            warnings.simplefilter("ignore", pd.errors.ParserWarning)  # of separators at the end of every line
            text = io.TextIOWrapper(file, encoding=self.encoding, newline="")
            parser = pd.read_csv(
                text,
                sep=self.separator,
                names=list(self.columns),
                header=None,
                skiprows=1,
                dtype=str,
                keep_default_na=False,
                chunksize=_PART,
                index_col=False,
                skipinitialspace=True,
            )
            for part in parser:
                number += len(part)
                if number > most:
                    raise InputError(
                        f"{self.path} has more than {most:,} rows, which would not fit into memory with its resamples; "
                        "score a random sample of its patients, or one split at a time"
                    )
                parts.append(part[list(columns)])
        if not number:
            raise InputError(f"{self.path} has no rows; give one row per image")
        table = pd.concat(parts, ignore_index=True)
        return table.fillna("").apply(lambda column: column.str.strip())

    def _open(self):
        with open(self.path, "rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        return gzip.open(self.path, "rb") if zipped else open(self.path, "rb")

    def _decoded(self, sample: bytes) -> tuple[str, str]:
        """The encoding of the file and the text of its beginning."""
        if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16", sample[: len(sample) // 2 * 2].decode("utf-16", "replace")
        if b"\0" in sample:
            raise InputError(f"{self.path} is not a text file; give a CSV file (it may be gzipped)")
        with self._open() as file:
            decoder = codecs.getincrementaldecoder("utf-8")()
            try:
                while part := file.read(1 << 20):
                    decoder.decode(part)
                decoder.decode(b"", final=True)
            except UnicodeDecodeError:
                return "latin-1", sample.decode("latin-1")
        return "utf-8-sig", sample.decode("utf-8-sig", "ignore")

    @contextlib.contextmanager
    def _readable(self):
        """Turns errors of reading into one line."""
        try:
            yield
        except FileNotFoundError as error:
            raise InputError(f"{self.path} does not exist; give a CSV file of predictions") from error
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{self.path} is a damaged gzip file ({in_brief(error)}); copy it again") from error
        except OSError as error:
            raise unreadable(self.path, error) from error
        except InputError:
            raise
        except (ValueError, csv.Error) as error:  # pandas' own errors are ValueErrors
            raise InputError(
                f"{self.path} is not a table ({in_brief(error)}); give a CSV file, and {_QUOTES}"
            ) from error
