"""Leakage between splits: patients and identical images that are in two splits of one area, or of all areas."""

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal, Protocol, TypeVar

from kmura.records.schema import SPLITS
from kmura.tasks import ALL


class Pictured(Protocol):
    """What identifies the image of a record: `sha256` of the source file, `image_sha256` of the stored image."""

    sha256: str
    image_sha256: str


class Placed(Pictured, Protocol):
    """A record as the check for leakage sees it."""

    area: str
    split: str
    patient: str
    path: str


T = TypeVar("T", bound=Pictured)


@dataclasses.dataclass(frozen=True)
class Leak:
    """Patients, or groups of identical images, that are in several splits.

    Attributes:
        area: the area whose models it concerns; `all` for models of all areas.
        kind: what is in several splits.
        splits: these splits.
        number: of patients or groups.
        example: the first of them.
    """

    area: str
    kind: Literal["patients", "images"]
    splits: tuple[str, ...]
    number: int
    example: str

    @property
    def text(self) -> str:
        """What leaks, and what follows from it; one sentence."""
        where = f"the splits {' and '.join(self.splits)}"
        if self.kind == "patients":
            what = f"{self.number} {'patient is' if self.number == 1 else 'patients are'} in {where}"
            what += f" (such as {self.example})"
        else:
            what = f"{self.number} {'group' if self.number == 1 else 'groups'} of identical images in {where}"
            what += f" ({self.example})"
        held_out = " and ".join(split for split in self.splits if split != "train")
        return f"{what}: scores on {held_out} are optimistic; correct the source and build the records again"


def find_leaks(records: Sequence[Placed], has_patients: bool) -> tuple[Leak, ...]:
    """The leaks within each area and, if there are several areas, those that concern models of all areas.

    Args:
        records: all records.
        has_patients: whether the records identify patients; otherwise only images are compared.
    """
    areas = sorted({record.area for record in records})
    leaks = []
    for area in (*areas, *([ALL] if len(areas) > 1 else [])):
        inside = [record for record in records if area in (ALL, record.area)]
        leaks += patient_leaks(area, ((record.patient, record.split) for record in inside)) if has_patients else []
        leaks += _image_leaks(area, inside)
    return tuple(leaks)


def patient_leaks(area: str, patients: Iterable[tuple[str, str]]) -> list[Leak]:
    """The leaks of patients.

    Args:
        area: of the leaks.
        patients: patient and split of every record.
    """
    splits_of: dict[str, set[str]] = collections.defaultdict(set)
    for patient, split in patients:
        splits_of[patient].add(split)
    groups: dict[tuple[str, ...], list[str]] = collections.defaultdict(list)
    for patient, splits in splits_of.items():
        if len(splits) > 1:
            groups[in_order(splits)].append(patient)
    return [Leak(area, "patients", splits, len(names), min(names)) for splits, names in sorted(groups.items())]


def _image_leaks(area: str, records: Sequence[Placed]) -> list[Leak]:
    groups: dict[tuple[str, ...], list[list[Placed]]] = collections.defaultdict(list)
    for group in identical_images(records):
        splits = in_order({record.split for record in group})
        if len(splits) > 1:
            groups[splits].append(group)
    leaks = []
    for splits, duplicates in sorted(groups.items()):
        first = {record.split: record.path for record in reversed(duplicates[0])}
        example = " = ".join(f"{split}: {first[split]}" for split in splits)
        leaks.append(Leak(area, "images", splits, len(duplicates), example))
    return leaks


def identical_images(records: Iterable[T]) -> list[list[T]]:
    """The groups of two or more records that have the same source file or the same stored image."""
    groups: dict[str, list[T]] = collections.defaultdict(list)
    first_with: dict[str, str] = {}
    for record in records:
        key = first_with.get(record.sha256) or first_with.get(record.image_sha256) or record.image_sha256
        first_with[record.sha256] = first_with[record.image_sha256] = key
        groups[key].append(record)
    return [group for group in groups.values() if len(group) > 1]


def in_order(splits: Iterable[str]) -> tuple[str, ...]:
    """The splits in the order train, val, test."""
    return tuple(sorted(splits, key=SPLITS.index))
