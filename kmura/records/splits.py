"""Patient-disjoint splits."""

import dataclasses
import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable

from kmura.records.layouts.base import Source

# the keys of the hashes that choose patients: those of schema version 1, so that a seed still chooses the same ones
_PURPOSES = {"val": "tune", "test": "valid"}


def carve(sources: Iterable[Source], fraction: float, seed: int, *, origin: str = "train", target: str) -> list[Source]:
    """The sources with about `fraction` of the patients of split `origin` moved, whole, to split `target`.

    A patient goes with all images of all areas, so that models over several areas stay patient-disjoint too. The
    choice is stratified: patients are sorted by the (area, label) pairs they have, then by a keyed hash, and taken
    systematically along that order, so each kind of patient is moved in proportion (to within one patient).
    """
    sources = list(sources)
    purpose = _PURPOSES.get(target, target)
    if fraction <= 0:
        return sources
    kinds: dict[str, set] = defaultdict(set)
    for source in sources:
        if source.split == origin:
            kinds[source.patient].add((source.area, source.label))
    order = sorted(kinds, key=lambda patient: (sorted(kinds[patient]), _keyed_hash(seed, purpose, patient)))
    offset = 0.5  # the first patient of every 1 / fraction is taken from the middle of its run
    moved = {
        patient
        for number, patient in enumerate(order)
        if math.floor((number + 1) * fraction + offset) > math.floor(number * fraction + offset)
    }
    return [
        dataclasses.replace(source, split=target) if source.split == origin and source.patient in moved else source
        for source in sources
    ]


def shuffled(sources: Iterable[Source], seed: int) -> list[Source]:
    """The sources in an order that depends on nothing but their paths and the seed."""
    return sorted(sources, key=lambda source: _keyed_hash(seed, "order", source.path))


def _keyed_hash(seed: int, purpose: str, name: str) -> bytes:
    return hashlib.sha256(f"{seed}/{purpose}/{name}".encode()).digest()
