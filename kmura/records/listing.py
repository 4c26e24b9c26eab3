"""What a source layout gives to the writer: a list of images with their labels, before any of them is opened."""

import dataclasses

from kmura.records.manifest import Skipped


@dataclasses.dataclass(frozen=True)
class Source:
    """One image of a source: where it is and all that the layout knows of it.

    Attributes:
        path: relative to the root, posix; for arrays `key/index`.
        bytes: size of the file (of the array row), part of the fingerprint of a build; None if the file is missing.
    """

    path: str
    area: str
    patient: str
    study: str
    label: tuple[int, ...]
    split: str
    bytes: int | None


@dataclasses.dataclass(frozen=True)
class Listing:
    """All images of a source.

    Attributes:
        splits_given: the splits that the source itself defines; `tune` and `valid` are carved where they are absent.
    """

    layout: str
    classes: tuple[str, ...]
    task: str
    sources: tuple[Source, ...]
    splits_given: tuple[str, ...]
    skipped: tuple[Skipped, ...] = ()
