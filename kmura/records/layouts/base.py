"""What a source layout gives to the writer: a list of images with their labels, before any of them is opened."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from kmura.errors import InputError, reason
from kmura.records.manifest import Skipped


@dataclasses.dataclass(frozen=True)
class Source:
    """One image of a source: where it is and all that the layout knows of it.

    Attributes:
        path: relative to the root, posix; for arrays `key/index`.
        bytes: size of the file (of the array row), part of the fingerprint of a build; None if the file is missing.
        changed: time of the file's last change, nanoseconds, the same; None for arrays and missing files.
    """

    path: str
    area: str
    patient: str
    study: str
    label: tuple[int, ...]
    split: str
    bytes: int | None
    changed: int | None = None


@dataclasses.dataclass(frozen=True)
class Listing:
    """All images of a source.

    Attributes:
        splits_given: the splits that the source itself defines; `val` and `test` are carved where they are absent.
        has_patients: whether the source knows patients; else every image is its own study and patient.
    """

    layout: str
    classes: tuple[str, ...]
    task: str
    sources: tuple[Source, ...]
    splits_given: tuple[str, ...]
    has_patients: bool
    skipped: tuple[Skipped, ...] = ()


def size_and_change(file: Path) -> tuple[int | None, int | None]:
    """Size and time of change of a file, None twice if it cannot be looked at (the writer then gives the reason)."""
    try:
        found = file.stat()
    except OSError:
        return None, None
    return found.st_size, found.st_mtime_ns


def visible_files(folder: Path) -> Iterator[Path]:
    """All files below a folder, links followed, in the order of their names; hidden files and folders are left out.

    Raises:
        InputError: a folder that cannot be listed.
    """
    for where, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(where, name) for name in sorted(names) if not name.startswith("."))


def _refuse(error: OSError) -> None:
    """For `os.walk`, which would pass over a folder that it cannot list."""
    raise InputError(f"{error.filename} cannot be listed: {reason(error)}; mend its rights or leave it out") from error
