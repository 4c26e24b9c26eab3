"""Metadata columns that records keep: which names they may have, and their form in a record."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence

from kmura.errors import InputError

# columns of predictions.csv, which a kept column must not shadow
_TAKEN = re.compile(r"(split|area|patient|study|image|label|logit|probability|fold)|(label|logit|probability)_.*", re.I)
# columns that name a person; compared without spaces and punctuation
_IDENTIFYING = re.compile(
    r"(patients?|subjects?)(full|first|last|family|given|sur)?names?|(full|first|last|family|given|sur)names?|(patient|subject)s?(address|phone|telephone|email)"
    r"|(patients?)?(birthdate|dateofbirth|dob|ssn|socialsecuritynumber|insurancenumber)|mrn|medicalrecordnumber"
    r"|accession(number|no|id)?|.*instanceuid"
)
_SHOWN = 3
_SHORT = 4  # a value of fewer characters occurs in paths by chance


def check_kept(names: Sequence[str]) -> None:
    """Checks the names of columns to keep.

    Raises:
        InputError: a name occurs twice, is that of a column of `predictions.csv`, or names a person.
    """
    for name in names:
        if _TAKEN.fullmatch(name):
            raise InputError(
                f"--keep-columns {name}: predictions.csv has a column of this name; rename it or leave it out"
            )
        if is_identifying(name):
            raise InputError(
                f"--keep-columns {name} would copy identifiers of patients into records and predictions; leave it out"
            )
    if len(set(names)) < len(names):
        raise InputError(f"--keep-columns {','.join(names)} names a column twice; name each once")


def is_identifying(name: str) -> bool:
    """Whether a column, by its name, holds names, addresses, dates of birth or numbers of patients."""
    return _IDENTIFYING.fullmatch(re.sub(r"[\W_]+", "", name).casefold()) is not None


def check_paths(table: str, column: str, values: Iterable[str], paths: Iterable[str], rows: Iterable) -> None:
    """Checks that no image is named after the person in it, since paths become part of records and predictions.

    Args:
        table, column: where the values are from, for the message.
        values: identifiers, one per image.
        paths: of the images.
        rows: numbers of the rows.

    Raises:
        InputError: a path contains its identifier; the message has the rows, but no path or identifier.
    """
    wrong = []
    for value, path, row in zip(values, paths, rows, strict=True):
        words = [word for word in re.split(r"[\W_]+", value.casefold()) if len(word) >= _SHORT]
        if any(word in path.casefold() for word in words):
            wrong.append(row)
    if wrong:
        shown = ", ".join(map(str, wrong[:_SHOWN])) + (", ..." if len(wrong) > _SHOWN else "")
        raise InputError(
            f"{len(wrong)} image paths contain the value of column {column!r} ({table}, row {shown}), and paths become "
            "part of records and predictions; rename the images to numbers"
        )


def encoded_columns(columns: Iterable[tuple[str, str]]) -> bytes:
    """The columns of a record as JSON; b"" if there are none."""
    values = dict(columns)
    return json.dumps(values, ensure_ascii=False).encode() if values else b""


def decoded_columns(data: bytes) -> Mapping[str, str]:
    """Name -> text of the columns in a record.

    Raises:
        ValueError: the data are damaged.
    """
    return json.loads(data) if data else {}
