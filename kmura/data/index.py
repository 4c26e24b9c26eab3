"""Where each record of a split lies in its shards, and all that is known of it: read in one pass, without TensorFlow.

The pass checks every checksum, so damage shows before training starts. With the places known, an epoch can draw its
records in any order from disk; no buffer limits how far they are shuffled.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from kmura.errors import InputError, reason
from kmura.files import sha256_of
from kmura.records import schema
from kmura.records.manifest import MANIFEST, Manifest, SplitCounts, read_manifest, shard_paths
from kmura.records.tfrecord import CorruptShard, frame, read_frames

ALL = "all"  # the area that stands for every area of the manifest
_FRAME = len(frame(b""))  # bytes that a frame adds to its data


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """All images of one split, in the order of the records: where each record lies and what is known of it.

    Attributes:
        records, area, split: the records folder and which of it.
        manifest: its manifest.
        shards: the shard files.
        shard: int64 [n], each record's shard, a position in `shards`.
        start: int64 [n], where its frame begins in that file, bytes.
        sides: int64 [n, 2], height and width of its image, pixels.
        labels: int64 [n, 1] class ids, or [n, number of classes] of 0 and 1 (multilabel); -1 is unknown.
        keys: area, patient, study, image (path), one row an image.
        fingerprint: changes whenever a shard does; hexadecimal.
    """

    records: Path
    area: str
    split: str
    manifest: Manifest
    shards: tuple[Path, ...]
    shard: np.ndarray
    start: np.ndarray
    sides: np.ndarray
    labels: np.ndarray
    keys: pd.DataFrame
    fingerprint: str

    def __len__(self) -> int:
        return len(self.shard)

    def known(self) -> np.ndarray:
        """The rows whose label is known in full, int64, ascending."""
        return np.flatnonzero((self.labels >= 0).all(axis=1))


def read_index(records: str | os.PathLike, area: str, split: str) -> Index:
    """The index of one area and split, or of all areas that have the split (`area="all"`).

    The last few are kept, so that training and validation in one process read their shards' keys once.

    Raises:
        InputError: no such records, area or split; a shard missing, cut or damaged; a label outside the classes.
    """
    records = Path(records)
    manifest = read_manifest(records)
    paths = [path for counts in _parts(records, manifest, area, split) for path in shard_paths(records, counts)]
    state = (sha256_of(records / MANIFEST), *(path.stat().st_mtime_ns for path in paths))
    return _indexed(records.resolve(), state, area, split)


def _parts(records: Path, manifest: Manifest, area: str, split: str) -> list[SplitCounts]:
    if area != ALL:
        return [manifest.split(area, split, records)]
    parts = [splits[split] for splits in manifest.areas.values() if split in splits]
    return parts or [manifest.split(next(iter(manifest.areas), ALL), split, records)]  # raises, naming the splits


@functools.lru_cache(maxsize=16)
def _indexed(records: Path, state: tuple, area: str, split: str) -> Index:
    """The index; `state` is there so that changed files count as other ones."""
    manifest = read_manifest(records)
    parts = _parts(records, manifest, area, split)
    shards = [shard for counts in parts for shard in counts.shards]
    paths = [records / shard.file for shard in shards]
    places, sides, labels, keys = [], [], [], []
    for number, (shard, path) in enumerate(zip(shards, paths, strict=True)):
        before = len(places)
        for start, record in read_shard(records, path):
            labels.append(_checked(record.label, manifest, path, len(places) - before))
            places.append((number, start))
            sides.append((record.height, record.width))
            keys.append((record.area, record.patient, record.study, record.path))
        found = len(places) - before
        if found != shard.records:
            raise InputError(f"shard {path} holds {found} records, the manifest says {shard.records}; {mend(records)}")
    if not places:
        raise InputError(f"area {area} has no images in its {split} split in {records}; build the records again")
    return Index(
        records,
        area,
        split,
        manifest,
        tuple(paths),
        *np.array(places, np.int64).T,
        np.array(sides, np.int64),
        np.array(labels, np.int64),
        pd.DataFrame(keys, columns=["area", "patient", "study", "image"]),
        hashlib.sha256(" ".join(shard.sha256 for shard in shards).encode()).hexdigest(),
    )


def read_shard(records: Path, path: Path) -> Iterator[tuple[int, schema.Record]]:
    """The records of a shard, each with the byte at which its frame begins.

    Raises:
        InputError: the shard is damaged or cannot be read.
    """
    start = number = 0
    try:
        for data in read_frames(path):
            yield start, schema.decode(data)
            start += _FRAME + len(data)
            number += 1
    except CorruptShard as error:
        raise InputError(f"shard {path}: {error}; {mend(records)}") from error
    except ValueError as error:
        raise InputError(f"shard {path}: record {number}: {error}; {mend(records)}") from error
    except OSError as error:
        raise InputError(f"shard {path} cannot be read: {reason(error)}") from error


def mend(records: str | os.PathLike) -> str:
    """How to go on when records are damaged, the end of an error's line."""
    return f"kmura inspect {records} lists the damage, building the records again mends it"


def _checked(label: tuple[int, ...], manifest: Manifest, path: Path, number: int) -> tuple[int, ...]:
    multilabel = manifest.task == "multilabel"
    expected, highest = (len(manifest.classes), 1) if multilabel else (1, len(manifest.classes) - 1)
    if len(label) != expected or not all(-1 <= value <= highest for value in label):
        raise InputError(
            f"shard {path}: record {number} has the label {list(label)}; {manifest.task} with "
            f"{len(manifest.classes)} classes needs {expected} of -1 to {highest}; build the records again"
        )
    return label
