"""Patient-disjoint splits."""

import dataclasses
import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Protocol

from kmura.records.layouts.base import Source

# keys of the hashes that choose patients; those of schema version 1, so that a seed still chooses the same patients
_PURPOSES = {"val": "tune", "test": "valid"}


class Labelled(Protocol):
    """An image as the choice of patients sees it."""

    area: str
    patient: str
    label: tuple[int, ...]


def carve(sources: Iterable[Source], fraction: float, seed: int, *, origin: str = "train", target: str) -> list[Source]:
    """The sources with about `fraction` of the patients of split `origin` moved to split `target`.

    A patient is moved with all images of all areas, so that models over several areas stay patient-disjoint too. The
    choice is stratified: patients are sorted by their (area, label) pairs, then by a keyed hash, and every
    1 / `fraction`-th patient in this order is taken, so every kind of patient is moved in proportion (to within one
    patient).

    Args:
        sources: all images.
        fraction: share of the patients, 0 to 1; 0 moves none.
        seed: chooses the patients.
        origin, target: names of splits.
    """
    sources = list(sources)
    if fraction <= 0:
        return sources
    inside = (source for source in sources if source.split == origin)
    order = stratified_patients(inside, seed, _PURPOSES.get(target, target))
    offset = 0.5  # of every run of 1 / fraction patients, the one in the middle is taken
    moved = {
        patient
        for number, patient in enumerate(order)
        if math.floor((number + 1) * fraction + offset) > math.floor(number * fraction + offset)
    }
    return [
        dataclasses.replace(source, split=target) if source.split == origin and source.patient in moved else source
        for source in sources
    ]


def stratified_patients(sources: Iterable[Labelled], seed: int, purpose: str) -> list[str]:
    """The patients sorted by their (area, label) pairs, then by a hash of the seed, the purpose and their id.

    Every n-th patient in this order is a stratified choice.
    """
    kinds: dict[str, set] = defaultdict(set)
    for source in sources:
        kinds[source.patient].add((source.area, source.label))
    return sorted(kinds, key=lambda patient: (sorted(kinds[patient]), _keyed_hash(seed, purpose, patient)))


def shuffled(sources: Iterable[Source], seed: int) -> list[Source]:
    """The sources in a random order that depends on their paths and the seed alone."""
    return sorted(sources, key=lambda source: _keyed_hash(seed, "order", source.path))


def _keyed_hash(seed: int, purpose: str, name: str) -> bytes:
    return hashlib.sha256(f"{seed}/{purpose}/{name}".encode()).digest()
