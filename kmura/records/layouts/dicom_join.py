"""How rows of a CSV belong to DICOM images: by a UID, an id or the name of the file."""

import collections
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from kmura.errors import InputError
from kmura.records.dicom_tags import Tags
from kmura.records.image_files import normalised
from kmura.records.label_table import open_table

_TAGS = {
    "SOPInstanceUID": "sop",
    "StudyInstanceUID": "study",
    "AccessionNumber": "accession",
    "PatientID": "patient",
}
FILE = "file"
JOINS = (*_TAGS, FILE)
# name of a column without case, spaces, - and _ -> what it identifies
_COLUMNS = {name.casefold(): name for name in _TAGS} | {
    "studyuid": "StudyInstanceUID",
    "sopuid": "SOPInstanceUID",
    "accession": "AccessionNumber",
    "patient": "PatientID",
} | dict.fromkeys(("file", "filename", "path", "image", "imageid", "dicom"), FILE)  # fmt: skip


def join_of(csv: Path, join_by: str | None, column: str | None) -> tuple[str, str]:
    """What the rows of a CSV identify (one of JOINS), and the column with these values.

    What is not given is taken from the names of the columns, if one column alone is named after a tag.

    Args:
        csv: the file.
        join_by, column: as given; None: not given.

    Raises:
        InputError: the columns leave it open.
    """
    if join_by and column:
        return join_by, column
    header = open_table(csv).columns
    meaning = {name: _COLUMNS.get(_plain(name)) for name in header}
    if column:
        if meaning.get(column):
            return meaning[column], column
        if column in header:
            raise InputError(f"what column {column} of {csv} identifies is unclear; give --join-by {'|'.join(JOINS)}")
        return "", column  # reading the table lists the columns
    fitting = [name for name, join in meaning.items() if join and join_by in (None, join)]
    if len(fitting) == 1:
        return meaning[fitting[0]], fitting[0]
    wanted = join_by or f"one of {', '.join(JOINS)}"
    if fitting:
        raise InputError(
            f"the columns {', '.join(fitting)} of {csv} all fit {wanted}; give --join-column and --join-by"
        )
    raise InputError(f"no column of {csv} is named after {wanted}; give --join-column NAME and --join-by")


def keys_of(join: str, file: str, tags: Tags) -> tuple[str, ...]:
    """The values of the CSV that stand for an image; the first that occurs counts.

    Args:
        join: one of JOINS.
        file: path relative to the root, posix.
        tags: of the file.
    """
    if join != FILE:
        value = normalised(getattr(tags, _TAGS[join])) if join else ""
        return (value,) if value else ()
    path = PurePosixPath(normalised(file))
    ends = [PurePosixPath(*path.parts[start:]).as_posix() for start in range(len(path.parts))]
    return tuple(key for end in ends for key in (end, end.removesuffix(path.suffix)))


def distinct_keys(keys: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """The keys of each image without those that stand for several files, such as `IM1` in two folders."""
    count = collections.Counter(key for candidates in keys.values() for key in set(candidates))
    return {path: tuple(key for key in candidates if count[key] == 1) for path, candidates in keys.items()}


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())
