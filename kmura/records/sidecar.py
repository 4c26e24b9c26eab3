"""The sidecar index of a shard: what a reader must know of every record before it reads any.

Opening a data set reads the indexes alone, so its time does not depend on the size of the images. One JSON file per
shard holds one list per column of `schema.INDEX_COLUMNS`; the manifest holds its SHA-256.
"""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

from kmura.errors import InputError, reason
from kmura.records.manifest import Shard
from kmura.records.schema import INDEX_COLUMNS, SCHEMA_VERSION, Record

SHARD_SUFFIX, INDEX_SUFFIX = ".tfrecord", ".index.json"


def _column():
    return dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class ShardIndex:
    """One value per record of a shard in every column, in the order of the records; see `schema.INDEX_COLUMNS`.

    The column `metadata` is in the file only where a record of the shard has some.
    """

    start: list[int] = _column()
    height: list[int] = _column()
    width: list[int] = _column()
    label: list[list[int]] = _column()
    patient: list[str] = _column()
    study: list[str] = _column()
    path: list[str] = _column()
    metadata: list[dict[str, str]] = _column()

    def __len__(self) -> int:
        return len(self.start)

    def add(self, start: int, record: Record) -> None:
        """Appends one record whose frame begins at byte `start`."""
        self.start.append(start)
        self.label.append(list(record.label))
        for name in ("height", "width", "patient", "study", "path"):
            getattr(self, name).append(getattr(record, name))
        self.metadata.append(json.loads(record.metadata or b"{}"))

    def row(self, number: int) -> dict[str, int | str | list[int] | dict[str, str]]:
        """The values of one record, by column; `metadata` only if it has some."""
        values = {name: getattr(self, name)[number] for name in INDEX_COLUMNS}
        return values | ({"metadata": self.metadata[number]} if self.metadata[number] else {})

    def encoded(self) -> bytes:
        """The contents of the index file; equal indexes give equal bytes."""
        values = {"schema_version": SCHEMA_VERSION, **{name: getattr(self, name) for name in INDEX_COLUMNS}}
        if any(self.metadata):
            values["metadata"] = self.metadata
        lines = (f'"{name}": {json.dumps(value, ensure_ascii=False)}' for name, value in values.items())
        return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def index_file(shard_file: str) -> str:
    """The index file that belongs to a shard file."""
    return shard_file.removesuffix(SHARD_SUFFIX) + INDEX_SUFFIX


def read_shard_index(folder: str | os.PathLike, shard: Shard) -> ShardIndex:
    """The index of a shard that has one, checked against the manifest.

    Raises:
        InputError: the index is missing, changed or damaged, or has another number of records than the manifest says.
    """
    path = Path(folder) / shard.index
    fix = f"build the records again into {folder}"
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"index {path} is missing; {fix}") from error
    except OSError as error:
        raise InputError(f"index {path} cannot be read: {reason(error)}; fix its permissions or {fix}") from error
    if hashlib.sha256(content).hexdigest() != shard.index_sha256:
        raise InputError(f"index {path} is not the file that the manifest describes (SHA-256 differs); {fix}")
    try:
        values = json.loads(content)
        columns = {name: values[name] for name in INDEX_COLUMNS}
        index = ShardIndex(**columns, metadata=values.get("metadata") or [{} for _ in columns["start"]])
        lengths = {len(getattr(index, name)) for name in (*INDEX_COLUMNS, "metadata")}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"index {path} is damaged ({type(error).__name__}: {error}); {fix}") from error
    if lengths != {shard.records}:
        raise InputError(
            f"index {path} holds {' or '.join(map(str, sorted(lengths)))} records, the manifest says {shard.records}; "
            f"{fix}"
        )
    return index
