"""CSV files of labels: encoding and separator, columns by name, and rows in blocks, so that memory is bounded.

A file of ten million rows takes no more memory than one of a hundred thousand: `LabelTable.blocks` reads BLOCK rows at
a time and keeps only the columns that are asked for.
"""

import codecs
import csv
import dataclasses
import difflib
import gzip
import io
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import pandas as pd

from kmura.errors import InputError, in_brief, unreadable
from kmura.records.image_files import normalised

BLOCK = 20_000  # rows
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_GZIP = b"\x1f\x8b"
_SCANNED = 1 << 20  # bytes at a time
_HEAD = 1 << 16  # characters that are looked at to find the separator


@dataclasses.dataclass(frozen=True)
class LabelTable:
    """A CSV file whose first row names its columns.

    Attributes:
        path: of the file, which may be gzipped.
        encoding: `utf-8`, `utf-8-sig`, `utf-16` or `latin-1`.
        separator: of the cells, a key of SEPARATORS.
        columns: names without surrounding spaces, in Unicode's form NFC; "" for columns without a name.
        notes: what was guessed, one sentence each.
    """

    path: Path
    encoding: str
    separator: str
    columns: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def place(self, name: str, flag: str = "") -> int:
        """The position of a column.

        Args:
            name: of the column.
            flag: the option that names it, for the message.

        Raises:
            InputError: there is no such column, or several; the message has the nearest names.
        """
        places = [number for number, column in enumerate(self.columns) if column == normalised(name.strip())]
        by = f" ({flag})" if flag else ""
        if len(places) > 1:
            raise InputError(f"{self.path} has {len(places)} columns {name!r}{by}; rename all but one")
        if not places:
            raise InputError(f"{self.path} has no column {name!r}{by}{_suggestion(name, self)}")
        return places[0]

    def blocks(self, names: Iterable[str]) -> Iterator[pd.DataFrame]:
        """The rows as text, BLOCK at a time; the index is the number of the row, from 1 after the header.

        Args:
            names: of the columns to read.

        Raises:
            InputError: a column is missing, or the file is not a CSV file of the separator.
        """
        places = {name: self.place(name) for name in dict.fromkeys(names)}
        options = {
            "sep": self.separator, "encoding": self.encoding, "dtype": str, "keep_default_na": False,
            "na_filter": False, "header": 0, "index_col": False, "names": range(len(self.columns)),
            "chunksize": BLOCK, "compression": None,
        }  # fmt: skip
        try:
            with warnings.catch_warnings(), _opened(self.path) as file, pd.read_csv(file, **options) as reader:
                # without `usecols`, with which pandas drops the cells of rows that are longer than the header
                warnings.simplefilter("error", pd.errors.ParserWarning)
                for block in reader:
                    block.index += 1
                    yield block[[*places.values()]].set_axis([*places], axis=1)
        except OSError as error:
            raise unreadable(self.path, error) from error
        except _UNREADABLE as error:
            raise InputError(
                f"{self.path} is not a CSV file of {len(self.columns)} columns with {SEPARATORS[self.separator]} "
                f"({in_brief(error)}); put cells with separators or line breaks into double quotes"
            ) from error


_UNREADABLE = (
    pd.errors.ParserError, pd.errors.ParserWarning, pd.errors.EmptyDataError, UnicodeError, EOFError, csv.Error,
)  # fmt: skip


def open_table(
    path: Path, expected: Iterable[str] = (), needed: str = "give the file of labels with --csv"
) -> LabelTable:
    """The description of a CSV file: encoding, separator and columns.

    The separator is the one with which the header has the most of the expected columns, then the most columns.

    Args:
        path: of the file.
        expected: columns that it should have; only used to find the separator.
        needed: what to give instead of a missing file, for the message.

    Raises:
        InputError: the file is missing, cannot be read, is empty, or its text is in no known encoding.
    """
    try:
        encoding, notes = _encoding(path)
        with _opened(path) as file:
            head = io.TextIOWrapper(file, encoding, newline="").read(_HEAD)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; {needed}") from error
    except (OSError, EOFError) as error:
        if isinstance(error, OSError) and error.errno:
            raise unreadable(path, error) from error
        raise InputError(f"{path} cannot be decompressed ({in_brief(error)}); download it again") from error
    expected = {normalised(name.strip()) for name in expected}
    headers = {separator: _header(path, head, separator) for separator in SEPARATORS}
    best = max(SEPARATORS, key=lambda separator: (len(expected & {*headers[separator]}), len(headers[separator])))
    if not any(headers[best]):
        raise InputError(f"{path} is empty; a CSV file with a row of column names is needed")
    if best != ",":
        notes = (*notes, f"{path.name} is separated by {SEPARATORS[best]}")
    return LabelTable(path, encoding, best, headers[best], notes)


def _encoding(path: Path) -> tuple[str, tuple[str, ...]]:
    """The encoding of a file, and a note where it is not UTF-8; reads the whole file, a piece at a time."""
    with _opened(path) as file:
        start = file.read(4)
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16", (f"{path.name} is read as UTF-16",)
        decoder = codecs.getincrementaldecoder("utf-8")()
        piece, place = start, 0
        while piece:
            try:
                decoder.decode(piece)
            except UnicodeDecodeError:
                text = f"{path.name} is not UTF-8 (near byte {place}) and is read as Latin-1; check names with accents"
                return "latin-1", (text,)
            if b"\0" in piece:
                raise InputError(f"{path} contains zero bytes, so it is no CSV file; save it as CSV in UTF-8")
            place += len(piece)
            piece = file.read(_SCANNED)
    return ("utf-8-sig" if start.startswith(codecs.BOM_UTF8) else "utf-8"), ()


def _opened(path: Path) -> IO[bytes]:
    file = open(path, "rb")
    zipped = file.read(len(_GZIP)) == _GZIP
    file.seek(0)
    return gzip.GzipFile(fileobj=file) if zipped else file


def _header(path: Path, head: str, separator: str) -> tuple[str, ...]:
    try:
        first = next(csv.reader(io.StringIO(head, newline=""), delimiter=separator), [])
    except csv.Error:
        return ()
    return tuple(normalised(name.strip()) for name in first)


def _suggestion(name: str, table: LabelTable) -> str:
    folded = {column.casefold(): column for column in table.columns}
    near = [folded[match] for match in difflib.get_close_matches(name.strip().casefold(), folded, 3)]
    if near:
        return f"; did you mean {' or '.join(map(repr, near))}?"
    if len(table.columns) == 1:
        return f"; its header is {table.columns[0][:80]!r}, and columns are separated by commas, semicolons or tabs"
    names = [repr(column) for column in table.columns if column]
    return f"; there are: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"
