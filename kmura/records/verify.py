"""The checks of `kmura inspect`: damaged shards and indexes, wrong counts, leakage between splits, duplicates."""

import collections
import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from kmura.errors import InputError, in_brief, reason
from kmura.files import sha256_of
from kmura.records import schema, tfrecord
from kmura.records.image_files import passed_over_note
from kmura.records.leakage import identical_images, in_order
from kmura.records.manifest import MANIFEST, Manifest, Shard, per_class, read_manifest
from kmura.records.near_duplicates import alike_pairs, thumbnail
from kmura.records.remarks import remarks_note
from kmura.records.sidecar import INDEX_SUFFIX, SHARD_SUFFIX, ShardIndex, read_shard_index
from kmura.tasks import Binary

FIX = "build the records again"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One problem: `error` (wrong), `warning` (suspicious) or `note` (could not be checked, or worth knowing)."""

    severity: Literal["error", "warning", "note"]
    text: str


@dataclasses.dataclass(frozen=True)
class Inspection:
    """The manifest of the inspected records and the findings, worst first."""

    manifest: Manifest
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Whether no finding is an error."""
        return all(finding.severity != "error" for finding in self.findings)


@dataclasses.dataclass(frozen=True)
class _Row:
    area: str
    split: str
    patient: str
    study: str
    label: tuple[int, ...]
    path: str
    sha256: str
    image_sha256: str  # of the stored image: equal pixels give equal bytes, whatever file they came from


def inspect_records(
    folder: str | os.PathLike,
    progress: Callable[[int, int], None] | None = None,
    *,
    near_duplicates: bool = True,
) -> Inspection:
    """Reads every record of a folder, computes every checksum and returns what is wrong.

    Args:
        folder: the records folder, with `manifest.json`.
        progress: called with (shards done, shards in total).
        near_duplicates: whether to look for near-duplicate images in two splits, which decodes every image. Slices of
            volumes are not compared.

    Raises:
        InputError: there is no readable manifest.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    rows: list[_Row] = []
    findings: list[Finding] = []
    thumbnails: list[np.ndarray] | None = [] if near_duplicates and not manifest.volumes else None
    shards = [
        (area, split, shard)
        for area, splits in manifest.areas.items()
        for split, counts in splits.items()
        for shard in counts.shards
    ]
    for number, (area, split, shard) in enumerate(shards):
        shard_rows, shard_findings = _read_shard(folder, area, split, shard, manifest.channels, thumbnails)
        rows += shard_rows
        findings += shard_findings
        if progress:
            progress(number + 1, len(shards))
    known = {file for _, _, shard in shards for file in (shard.file, shard.index)}
    for path in sorted(path for suffix in (SHARD_SUFFIX, INDEX_SUFFIX) for path in folder.glob(f"*/*{suffix}")):
        if (file := path.relative_to(folder).as_posix()) not in known:
            findings.append(Finding("warning", f"{file} is not in {MANIFEST}: it is never read"))
    if unindexed := sum(shard.index is None for _, _, shard in shards):
        text = (
            f"{unindexed} shards have no index (schema version 1), so every training run reads all of their records "
            "first; to add it, build the records into another folder and keep these for the runs trained on them"
        )
        findings.append(Finding("note", text))
    if not any(finding.severity == "error" for finding in findings):
        findings += _count_findings(manifest, rows)
    findings += _study_findings(rows)
    findings += _patient_findings(manifest, rows)
    findings += _double_findings(rows)
    findings += _near_findings(rows, thumbnails) if thumbnails else []
    if manifest.skipped:
        findings.append(
            Finding("note", f"{len(manifest.skipped)} source files were skipped at build ({MANIFEST} lists them)")
        )
    for note in (passed_over_note(manifest.passed_over), remarks_note(manifest.remarks, len(rows))):
        if note:
            findings.append(Finding("note", f"at build: {note}"))
    order = ("error", "warning", "note")
    return Inspection(manifest, tuple(sorted(findings, key=lambda finding: order.index(finding.severity))))


def _read_shard(
    folder: Path, area: str, split: str, shard: Shard, channels: int, thumbnails: list[np.ndarray] | None
) -> tuple[list[_Row], list[Finding]]:
    """The rows of a shard up to the first damage, and the damage; appends a thumbnail, uint8, per row."""
    path = folder / shard.file
    rows: list[_Row] = []
    index, start = ShardIndex(), 0

    def damaged(text: str) -> tuple[list[_Row], list[Finding]]:
        return rows, [Finding("error", f"{shard.file}{text}; {FIX}")]

    try:
        for number, data in enumerate(tfrecord.read_frames(path)):
            try:
                record = schema.decode(data)
            except ValueError as error:
                return damaged(f": record {number}: {error}")
            if (record.area, record.split) != (area, split):
                return damaged(f": record {number} belongs to {record.area}/{record.split}")
            index.add(start, record)
            start += tfrecord.FRAME_BYTES + len(data)
            image_sha256 = hashlib.sha256(record.image).hexdigest()
            row = (area, split, record.patient, record.study, record.label, record.path, record.sha256, image_sha256)
            if thumbnails is not None:
                try:
                    small = thumbnail(record.image, channels).round().astype(np.uint8)
                except (OSError, SyntaxError, ValueError) as error:
                    return damaged(f": the image of record {number} cannot be decoded ({in_brief(error)})")
                thumbnails.append(small)
            rows.append(_Row(*row))
        sha256 = sha256_of(path)
    except FileNotFoundError:
        return damaged(" is missing")
    except OSError as error:
        return damaged(f" cannot be read: {reason(error)}")
    except tfrecord.CorruptShard as error:
        return damaged(f": {error}")
    if len(rows) != shard.records:
        return damaged(f" holds {len(rows)} records, {MANIFEST} says {shard.records}")
    if sha256 != shard.sha256:
        return damaged(f" is not the shard that {MANIFEST} describes (SHA-256 differs)")
    return rows, _index_findings(folder, shard, index)


def _index_findings(folder: Path, shard: Shard, expected: ShardIndex) -> list[Finding]:
    """What is wrong with the index file of an undamaged shard, whose records give the `expected` index."""
    if shard.index is None:
        return []
    try:
        index = read_shard_index(folder, shard)
    except InputError as error:
        return [Finding("error", str(error))]
    for number in range(len(expected)):
        if index.row(number) != expected.row(number):
            text = f"{shard.index}: record {number} ({expected.path[number]}) differs from the shard; {FIX}"
            return [Finding("error", text)]
    return []


def _count_findings(manifest: Manifest, rows: list[_Row]) -> list[Finding]:
    groups: dict[tuple[str, str], list[_Row]] = collections.defaultdict(list)
    for row in rows:
        groups[row.area, row.split].append(row)
    findings = []
    if not manifest.areas:
        findings.append(Finding("error", f"{MANIFEST} lists no area; {FIX}"))
    for area, splits in manifest.areas.items():
        for split, counts in splits.items():
            group = groups[area, split]
            actual = (
                len(group),
                len({(row.patient, row.study) for row in group}),
                len({row.patient for row in group}),
                per_class(manifest.task, len(manifest.classes), [row.label for row in group]),
            )
            stated = (counts.images, counts.studies, counts.patients, counts.per_class)
            names = ("images", "studies", "patients", "images per class")
            for name, number, claim in zip(names, actual, stated, strict=True):
                if number != claim:
                    text = f"{area}/{split}: the shards hold {number} {name}, {MANIFEST} says {claim}; {FIX}"
                    findings.append(Finding("error", text))
            if not group:
                findings.append(Finding("error", f"{area}/{split} is empty; {FIX}"))
            elif manifest.task == Binary.name and 0 in counts.per_class:
                missing = manifest.classes[counts.per_class.index(0)]
                findings.append(Finding("warning", f"{area}/{split} has no {missing} image: its AUC is not defined"))
    return findings


def _study_findings(rows: list[_Row]) -> list[Finding]:
    labels: dict[tuple[str, str, str], set] = collections.defaultdict(set)
    for row in rows:
        labels[row.area, row.patient, row.study].add(row.label)
    return [
        Finding("error", f"study {study} of {area} has images with different labels; correct the source and {FIX}")
        for (area, _, study), values in sorted(labels.items())
        if len(values) > 1
    ]


def _patient_findings(manifest: Manifest, rows: list[_Row]) -> list[Finding]:
    if not manifest.has_patients:
        text = f"layout {manifest.layout} knows no patients: patients in two splits could not be detected"
        return [Finding("note", text)]
    splits: dict[str, set] = collections.defaultdict(set)
    for row in rows:
        splits[row.patient].add(row.split)
    findings = []
    for patient in sorted(patient for patient, names in splits.items() if len(names) > 1):
        names = ", ".join(in_order(splits[patient]))
        findings.append(Finding("error", f"patient {patient} is in the splits {names}; correct the source"))
    return findings


def _double_findings(rows: list[_Row]) -> list[Finding]:
    """Identical images: those with the same source file or the same stored pixels."""
    kinds: dict[tuple[str, ...], list[list[_Row]]] = collections.defaultdict(list)
    for group in identical_images(rows):
        kinds[in_order({row.split for row in group})].append(group)
    ordered = sorted(kinds.items(), key=lambda item: (-len(item[0]), [schema.SPLITS.index(name) for name in item[0]]))
    findings = []
    for splits, duplicates in ordered:
        example = " = ".join(f"{row.split}: {row.path}" for row in duplicates[0])
        noun = "group" if len(duplicates) == 1 else "groups"
        where = f"across {' and '.join(splits)}" if len(splits) > 1 else f"inside {splits[0]}"
        mixed = sum(len({row.label for row in group}) > 1 for group in duplicates)
        labels = f"; {mixed} of them with different labels" if mixed else ""
        findings.append(Finding("warning", f"{len(duplicates)} {noun} of identical images {where} ({example}){labels}"))
    return findings


def _near_findings(rows: list[_Row], thumbnails: list[np.ndarray]) -> list[Finding]:
    """Near-duplicates in two splits of one area, other than identical images."""
    findings = []
    for area in sorted({row.area for row in rows}):
        places = [number for number, row in enumerate(rows) if row.area == area]
        inside = [rows[number] for number in places]
        splits = np.array([schema.SPLITS.index(row.split) for row in inside])
        kinds: dict[tuple[str, ...], list[str]] = collections.defaultdict(list)
        for first, second, correlation in alike_pairs(np.stack([thumbnails[place] for place in places]), splits):
            one, other = inside[first], inside[second]
            if one.sha256 != other.sha256 and one.image_sha256 != other.image_sha256:
                text = f"{one.split}: {one.path} and {other.split}: {other.path}, correlation {correlation:.4f}"
                kinds[in_order((one.split, other.split))].append(text)
        for names, pairs in sorted(kinds.items()):
            text = f"{area}: {len(pairs)} {'pair' if len(pairs) == 1 else 'pairs'} of near-duplicate images across "
            text += f"{' and '.join(names)} ({pairs[0]}): scores may be optimistic; see kmura eda"
            findings.append(Finding("warning", text))
    return findings
