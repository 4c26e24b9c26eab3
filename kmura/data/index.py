"""The index of a split: the position, labels and identifiers of every record; read without TensorFlow.

The values come from the index file of each shard, so no image is read: damage inside a shard is reported when the
damaged record is drawn. Because the positions are known, an epoch can read its records from disk in any order, without
a shuffle buffer. Shards of schema version 1 have no index; they are read completely instead.
"""

import dataclasses
import functools
import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kmura.errors import InputError, reason
from kmura.files import sha256_of
from kmura.records import schema
from kmura.records.manifest import MANIFEST, Manifest, Shard, SplitCounts, read_manifest, shard_paths
from kmura.records.sidecar import ShardIndex, read_shard_index
from kmura.records.tfrecord import FRAME_BYTES, CorruptShard, read_frames
from kmura.tasks import ALL, task_of

JOIN = "+"  # between the names of the splits of a joined index


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """All images of one split in the order of the records.

    Attributes:
        records, area, split: the records folder, and the part of it that is indexed.
        manifest: the manifest of the folder.
        shards: the shard files.
        shard: int64 [n], the shard of each record, a position in `shards`.
        start: int64 [n], the byte of that file at which the frame of the record begins.
        sides: int64 [n, 2], height and width of the image, pixels.
        labels: int64 [n, 1] class ids, or [n, number of classes] of 0 and 1 (multilabel); -1 is unknown.
        keys: area, patient, study, image (path), one row per image.
        columns: the metadata that the records keep, as text, one row per image; often without any column.
        folds: int64 [n], the fold of each image, from 0; -1 without one.
        fingerprint: hexadecimal; changes whenever a shard changes.
        base, rows: of a part, the index that it was taken from, and its rows there, int64 [n]; else None.
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
    columns: pd.DataFrame
    folds: np.ndarray
    fingerprint: str
    base: "Index | None" = None
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.shard)

    def known(self) -> np.ndarray:
        """The rows with a known label (multilabel: at least one), int64, ascending."""
        return np.flatnonzero((self.labels >= 0).any(axis=1))

    def part(self, rows: np.ndarray, split: str) -> "Index":
        """Returns the images of some rows, int64 [n], as the index of a split."""
        return dataclasses.replace(
            self,
            split=split,
            **{name: getattr(self, name)[rows] for name in ("shard", "start", "sides", "labels", "folds")},
            **{name: getattr(self, name).iloc[rows].reset_index(drop=True) for name in ("keys", "columns")},
            base=self,
            rows=rows,
        )


def joined(indexes: Sequence[Index]) -> Index:
    """Returns the images of several splits of one area as one index, whose split is `train+val` for train and val."""
    if len(indexes) == 1:
        return indexes[0]
    first = indexes[0]
    offsets = np.cumsum([0, *(len(index.shards) for index in indexes[:-1])])
    return Index(
        first.records,
        first.area,
        JOIN.join(index.split for index in indexes),
        first.manifest,
        tuple(itertools.chain.from_iterable(index.shards for index in indexes)),
        np.concatenate([index.shard + offset for index, offset in zip(indexes, offsets, strict=True)]),
        *(np.concatenate([getattr(index, name) for index in indexes]) for name in ("start", "sides", "labels")),
        pd.concat([index.keys for index in indexes], ignore_index=True),
        pd.concat([index.columns for index in indexes], ignore_index=True).fillna(""),
        np.concatenate([index.folds for index in indexes]),
        hashlib.sha256(" ".join(index.fingerprint for index in indexes).encode()).hexdigest(),
    )


def read_index(records: str | os.PathLike, area: str, split: str) -> Index:
    """Returns the index of one area and split, or of all areas that have the split (`area="all"`).

    Recent indexes are cached in memory, so that training and validation in one process read each index once.

    Raises:
        InputError: the records, the area or the split do not exist; a shard is missing or its size differs from the
            manifest; an index file is missing, changed or damaged; a label is not a class. Without index files (schema
            version 1) also: a shard is damaged.
    """
    records = Path(records)
    manifest = read_manifest(records)
    parts = _parts(records, manifest, area, split)
    paths = [path for counts in parts.values() for path in shard_paths(records, counts)]
    paths += [records / shard.index for counts in parts.values() for shard in counts.shards if shard.index]
    state = (sha256_of(records / MANIFEST), *map(_changed, paths))
    return _indexed(records.resolve(), state, area, split)


def _parts(records: Path, manifest: Manifest, area: str, split: str) -> dict[str, SplitCounts]:
    """Area -> its counts of the split."""
    if area != ALL:
        return {area: manifest.split(area, split, records)}
    parts = {name: splits[split] for name, splits in manifest.areas.items() if split in splits}
    if not parts:
        manifest.split(next(iter(manifest.areas), ALL), split, records)  # raises the error that lists the splits
    return parts


def _changed(path: Path) -> int | None:
    """Time of the last change, nanoseconds; None if the file is missing."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


@functools.lru_cache(maxsize=16)
def _indexed(records: Path, state: tuple, area: str, split: str) -> Index:
    """The index; `state` is part of the cache key, so that changed files are read again."""
    manifest = read_manifest(records)
    parts = _parts(records, manifest, area, split)
    shards = [(name, shard) for name, counts in parts.items() for shard in counts.shards]
    tables = [_shard_index(records, shard) for _, shard in shards]
    paths = tuple(records / shard.file for _, shard in shards)
    counts = [len(table) for table in tables]
    if not sum(counts):
        raise InputError(f"area {area} has no images in its {split} split in {records}; build the records again")

    def column(name: str) -> list:
        return list(itertools.chain.from_iterable(getattr(table, name) for table in tables))

    names = [name for name in manifest.columns if any(name in table.columns for table in tables)]
    keys = {name: column(name) for name in ("patient", "study", "path")}
    areas = [name for (name, _), count in zip(shards, counts, strict=True) for _ in range(count)]
    return Index(
        records,
        area,
        split,
        manifest,
        paths,
        np.repeat(np.arange(len(shards)), counts),
        np.array(column("start"), np.int64),
        np.array([column("height"), column("width")], np.int64).T,
        np.concatenate([_labels(table, manifest, path) for table, path in zip(tables, paths, strict=True)]),
        pd.DataFrame({"area": areas, "patient": keys["patient"], "study": keys["study"], "image": keys["path"]}),
        pd.DataFrame(
            {name: [text for table in tables for text in table.columns.get(name, [""] * len(table))] for name in names},
            index=range(sum(counts)),
        ),
        np.concatenate([table.fold or np.full(len(table), -1) for table in tables]).astype(np.int64),
        hashlib.sha256(" ".join(shard.sha256 for _, shard in shards).encode()).hexdigest(),
    )


def _shard_index(records: Path, shard: Shard) -> ShardIndex:
    """The index of a shard, from its index file where there is one, otherwise from the shard itself."""
    if shard.index:
        return read_shard_index(records, shard)
    path, table = records / shard.file, ShardIndex()
    for start, record in read_shard(records, path):
        table.add(start, record)
    if len(table) != shard.records:
        raise InputError(
            f"shard {path} holds {len(table)} records, the manifest says {shard.records}; {how_to_fix(records)}"
        )
    return table


def read_shard(records: Path, path: Path) -> Iterator[tuple[int, schema.Record]]:
    """The records of a shard, each with the byte at which its frame begins.

    Raises:
        InputError: the shard is damaged or cannot be read.
    """
    start = number = 0
    try:
        for data in read_frames(path):
            yield start, schema.decode(data)
            start += FRAME_BYTES + len(data)
            number += 1
    except CorruptShard as error:
        raise InputError(f"shard {path}: {error}; {how_to_fix(records)}") from error
    except ValueError as error:
        raise InputError(f"shard {path}: record {number}: {error}; {how_to_fix(records)}") from error
    except OSError as error:
        raise InputError(
            f"shard {path} cannot be read: {reason(error)}; fix its permissions or build the records again"
        ) from error


def how_to_fix(records: str | os.PathLike) -> str:
    """Returns how to fix damaged records, the last part of an error message."""
    return f"run kmura inspect {records} to list the damage, then build the records again"


def _labels(table: ShardIndex, manifest: Manifest, path: Path) -> np.ndarray:
    """The labels of a shard, int64 [n, 1] or [n, number of classes], each checked."""
    multilabel = task_of(manifest.task, manifest.classes).by_label
    expected, highest = (len(manifest.classes), 1) if multilabel else (1, len(manifest.classes) - 1)
    for number, label in enumerate(table.label):
        if len(label) != expected or min(label) < -1 or max(label) > highest:
            raise InputError(
                f"shard {path}: record {number} has the label {list(label)}; {manifest.task} with "
                f"{len(manifest.classes)} classes needs {expected} of -1 to {highest}; build the records again"
            )
    return np.array(table.label, np.int64).reshape(-1, expected)
