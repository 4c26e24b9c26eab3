"""`manifest.json`: the contents of a folder of records, written last, read by every later stage."""

import collections
import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path

from kmura.errors import InputError, unreadable
from kmura.records.image_files import PassedOver
from kmura.records.leakage import Leak
from kmura.records.remarks import Remark
from kmura.records.schema import SCHEMA_VERSION, SPLITS, VERSION_1_SPLITS
from kmura.tasks import TASKS

MANIFEST = "manifest.json"
EDA = "eda.json"  # written beside it by `kmura eda`


@dataclasses.dataclass(frozen=True)
class Shard:
    """One shard and the index beside it.

    Attributes:
        file: relative to the records folder, posix.
        records: number of records.
        bytes: size of the file.
        sha256: of the file, hexadecimal.
        index: the index file, relative to the records folder; None in schema version 1, which has no indexes.
        index_sha256: of the index file, hexadecimal; None without one.
    """

    file: str
    records: int
    bytes: int
    sha256: str
    index: str | None = None
    index_sha256: str | None = None


@dataclasses.dataclass(frozen=True)
class SplitCounts:
    """One split of one area: counts, images of each class in the order of `Manifest.classes`, and its shards."""

    images: int
    studies: int
    patients: int
    per_class: tuple[int, ...]
    shards: tuple[Shard, ...]


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A source file that is not in the records, and why."""

    file: str
    reason: str


@dataclasses.dataclass(frozen=True)
class VolumeFacts:
    """The geometry of a volume whose axial slices are records; vectors and sizes are in the order x, y, z.

    Attributes:
        area, split: where its slices are.
        size: voxels along x (to the patient's left), y (to the back) and z (to the head).
        spacing: size of a voxel, mm.
        origin: position of the first voxel in the patient's coordinates (LPS), mm.
        direction: columns are the directions of the axes, row by row [9].
        window: gray values (HU) that became 0 and 255.
        normal: unit normal of the mid-sagittal plane in the axes of the volume; it points to the patient's left.
        offset: distance of that plane from the centre of the volume along the normal, mm.
        sources: image, transform and labels, paths relative to the root; "" for none.
        sha256: of the gray values and class numbers, hexadecimal.
    """

    area: str
    split: str
    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]
    window: tuple[float, float]
    normal: tuple[float, float, float]
    offset: float
    sources: tuple[str, str, str]
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The contents of a folder of records.

    Attributes:
        inputs: fingerprint of the contents: classes and the SHA-256 of every shard.
        source: fingerprint of the source files and options, by which a build knows whether it is finished.
        areas: area -> split -> counts.
        has_patients: whether the source knows patients; without them each image is its own study and patient.
        skipped: files that should be images but cannot be read.
        passed_over: other files of the source, counted by kind; empty in records of kmura 0.2 and older.
        remarks: pictures that show next to nothing or have odd declarations; likewise.
        schema_version: of the shards; those of version 1 are read with today's names of splits.
        leaks: patients and identical images in two splits; None in records of a kmura that did not look for them.
        volumes: name -> geometry of each volume, where the records are slices of volumes; otherwise empty.
        notes: what the layout decided or guessed at build.
        columns: names of the metadata that the records keep of each image.
        folds: number of folds that the images outside of `test` are assigned to; 0 if there are none.
    """

    layout: str
    classes: tuple[str, ...]
    task: str
    channels: int
    options: dict
    inputs: str
    areas: dict[str, dict[str, SplitCounts]]
    has_patients: bool
    skipped: tuple[Skipped, ...] = ()
    passed_over: tuple[PassedOver, ...] = ()
    remarks: tuple[Remark, ...] = ()
    source: str = ""
    schema_version: int = SCHEMA_VERSION
    leaks: tuple[Leak, ...] | None = None
    volumes: dict[str, VolumeFacts] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    folds: int = 0

    def shards(self) -> list[Shard]:
        """Every shard of every area and split."""
        return [shard for splits in self.areas.values() for counts in splits.values() for shard in counts.shards]

    def area(self, area: str, folder: str | os.PathLike = "the records") -> dict[str, SplitCounts]:
        """The splits of one area with their counts.

        Raises:
            InputError: there is no such area; lists the areas.
        """
        if area not in self.areas:
            raise InputError(f"area {area} is not in {folder}; there are: {', '.join(self.areas)}")
        return self.areas[area]

    def split(self, area: str, split: str, folder: str | os.PathLike = "the records") -> SplitCounts:
        """The counts of one area and split.

        Raises:
            InputError: there is no such area or split; lists the areas or splits.
        """
        splits = self.area(area, folder)
        if split not in splits:
            raise InputError(
                f"area {area} has no {split} split in {folder}; there are: {', '.join(splits)}"
                + ("; build again with --val-fraction above 0, or use --select-on test" if split == "val" else "")
            )
        return splits[split]


def per_class(task: str, number: int, labels: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """The number of labels of each class; unknown labels (-1) are not counted."""
    counts = collections.Counter()
    for label in labels:
        counts.update([i for i, value in enumerate(label) if value == 1] if TASKS[task].by_label else label)
    return tuple(counts[index] for index in range(number))


def read_manifest(folder: str | os.PathLike) -> Manifest:
    """The manifest of a records folder.

    Raises:
        InputError: there is no manifest (no build, or an unfinished one), or it is damaged or of another version.
    """
    path = Path(folder) / MANIFEST
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if not Path(folder).is_dir():
            raise InputError(
                f"no records folder {folder}; give the folder of existing records, or build it with: "
                f"kmura build-tfrecords ROOT --out {folder}"
            ) from error
        raise InputError(
            f"{folder} holds no {MANIFEST}: no finished build; run kmura build-tfrecords ROOT --out {folder} "
            "(it resumes an interrupted build)"
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise InputError(f"{path} cannot be read ({error}); build the records again with --overwrite") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version not in (1, SCHEMA_VERSION):
        raise InputError(
            f"{path} has schema version {version}, this kmura reads versions 1 and {SCHEMA_VERSION}; "
            "use the version of kmura that made the records, or build them again into another folder"
        )
    try:
        if version == 1:
            raw = _from_version_1(raw)
        if raw["task"] not in TASKS or not isinstance(raw["has_patients"], bool):
            raise TypeError(f"task {raw['task']!r}, has_patients {raw['has_patients']!r}")
        return Manifest(
            layout=raw["layout"],
            classes=tuple(raw["classes"]),
            task=raw["task"],
            channels=raw["channels"],
            options=raw["options"],
            inputs=raw["inputs"],
            source=raw["source"],
            areas={
                area: {name: _split_counts(counts) for name, counts in splits.items()}
                for area, splits in raw["areas"].items()
            },
            has_patients=raw["has_patients"],
            schema_version=version,
            skipped=tuple(Skipped(**item) for item in raw["skipped"]),
            passed_over=tuple(_passed_over(item) for item in raw.get("passed_over", ())),
            remarks=tuple(Remark(**item) for item in raw.get("remarks", ())),
            leaks=None if raw.get("leaks") is None else tuple(_leak(item) for item in raw["leaks"]),
            volumes={name: _volume(item) for name, item in raw.get("volumes", {}).items()},
            notes=tuple(raw.get("notes", ())),
            columns=tuple(raw.get("columns", ())),
            folds=raw.get("folds", 0),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is damaged ({type(error).__name__}: {error}); build the records again with --overwrite"
        ) from error


def manifest_json(manifest: Manifest) -> dict:
    """The manifest as it is written to the file, splits in the order train, val, test."""
    value = {"schema_version": manifest.schema_version, **dataclasses.asdict(manifest)}
    for name in ("volumes", "notes", "columns", "folds"):
        if not value[name]:
            del value[name]  # records without them look as they did before there were any
    value["areas"] = {
        area: {split: value["areas"][area][split] for split in SPLITS if split in value["areas"][area]}
        for area in sorted(value["areas"])
    }
    return value


def shard_paths(folder: str | os.PathLike, counts: SplitCounts) -> list[Path]:
    """The shard files of a split, after checking that each exists with the size that the manifest gives.

    Raises:
        InputError: a shard is missing or has another size.
    """
    paths = []
    for shard in counts.shards:
        path = Path(folder) / shard.file
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            raise InputError(f"shard {path} is missing; build the records again into {folder}")
        if size != shard.bytes:
            raise InputError(
                f"shard {path} has {size} bytes, the manifest says {shard.bytes}: it was cut or changed; "
                f"run kmura inspect {folder} to find the record, then build the records again"
            )
        paths.append(path)
    return paths


def _from_version_1(raw: dict) -> dict:
    """A manifest of version 1 with the names of version 2: splits `tune` and `valid`, and their fractions."""
    names = {"tune_fraction": "val_fraction", "valid_fraction": "test_fraction"}
    return raw | {
        "has_patients": raw["layout"] == "mura",
        "options": {names.get(key, key): value for key, value in raw["options"].items()},
        "areas": {
            area: {VERSION_1_SPLITS[split]: counts for split, counts in splits.items()}
            for area, splits in raw["areas"].items()
        },
    }


def _passed_over(raw: dict) -> PassedOver:
    return PassedOver(raw["kind"], raw["number"], tuple(raw["examples"]))


def _leak(raw: dict) -> Leak:
    return Leak(**raw | {"splits": tuple(raw["splits"])})


def _volume(raw: dict) -> VolumeFacts:
    return VolumeFacts(**{name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()})


def _split_counts(raw: dict) -> SplitCounts:
    return SplitCounts(
        images=raw["images"],
        studies=raw["studies"],
        patients=raw["patients"],
        per_class=tuple(raw["per_class"]),
        shards=tuple(Shard(**shard) for shard in raw["shards"]),
    )
