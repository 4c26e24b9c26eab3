"""What `kmura inspect` finds: damaged shards, disagreement with the manifest, leakage between splits, doubles."""

import collections
import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from kmura.errors import reason
from kmura.files import sha256_of
from kmura.records import schema, tfrecord
from kmura.records.manifest import MANIFEST, Manifest, per_class, read_manifest

MEND = "build the records again"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong (`error`), suspicious (`warning`) or could not be checked (`note`)."""

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
    picture: str  # hash of the stored bytes: equal pixels give equal bytes, whatever file they came from


def inspect_records(folder: str | os.PathLike, progress: Callable[[int, int], None] | None = None) -> Inspection:
    """What is wrong with a folder of records, every record read and every checksum computed.

    Args:
        folder: of `manifest.json` and its shards.
        progress: called with (shards done, shards in all).

    Raises:
        InputError: there is no readable manifest.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    rows: list[_Row] = []
    findings: list[Finding] = []
    shards = [
        (area, split, shard)
        for area, splits in manifest.areas.items()
        for split, counts in splits.items()
        for shard in counts.shards
    ]
    for number, (area, split, shard) in enumerate(shards):
        shard_rows, shard_findings = _read_shard(folder, area, split, shard)
        rows += shard_rows
        findings += shard_findings
        if progress:
            progress(number + 1, len(shards))
    known = {shard.file for _, _, shard in shards}
    for path in sorted(folder.glob("*/*.tfrecord")):
        if (file := path.relative_to(folder).as_posix()) not in known:
            findings.append(Finding("warning", f"{file} is not in {MANIFEST}: it is never read"))
    if not any(finding.severity == "error" for finding in findings):
        findings += _count_findings(manifest, rows)
    findings += _study_findings(rows)
    findings += _patient_findings(manifest, rows)
    findings += _double_findings(rows)
    if manifest.skipped:
        findings.append(
            Finding("note", f"{len(manifest.skipped)} source files were skipped at build ({MANIFEST} lists them)")
        )
    order = ("error", "warning", "note")
    return Inspection(manifest, tuple(sorted(findings, key=lambda finding: order.index(finding.severity))))


def _read_shard(folder: Path, area: str, split: str, shard) -> tuple[list[_Row], list[Finding]]:
    path = folder / shard.file
    rows: list[_Row] = []
    try:
        for number, data in enumerate(tfrecord.read_frames(path)):
            try:
                record = schema.decode(data)
            except ValueError as error:
                return rows, [Finding("error", f"{shard.file}: record {number}: {error}; {MEND}")]
            if (record.area, record.split) != (area, split):
                where = f"{record.area}/{record.split}"
                return rows, [
                    Finding("error", f"{shard.file}: record {number} belongs to {where}; build the records again")
                ]
            picture = hashlib.sha256(record.image).hexdigest()
            row = (area, split, record.patient, record.study, record.label, record.path, record.sha256, picture)
            rows.append(_Row(*row))
        sha256 = sha256_of(path)
    except FileNotFoundError:
        return rows, [Finding("error", f"{shard.file} is missing; {MEND}")]
    except OSError as error:
        return rows, [Finding("error", f"{shard.file} cannot be read: {reason(error)}; {MEND}")]
    except tfrecord.CorruptShard as error:
        return rows, [Finding("error", f"{shard.file}: {error}; {MEND}")]
    if len(rows) != shard.records:
        text = f"{shard.file} holds {len(rows)} records, {MANIFEST} says {shard.records}; {MEND}"
        return rows, [Finding("error", text)]
    if sha256 != shard.sha256:
        return rows, [
            Finding("error", f"{shard.file} is not the shard that {MANIFEST} describes (SHA-256 differs); {MEND}")
        ]
    return rows, []


def _count_findings(manifest: Manifest, rows: list[_Row]) -> list[Finding]:
    groups: dict[tuple[str, str], list[_Row]] = collections.defaultdict(list)
    for row in rows:
        groups[row.area, row.split].append(row)
    findings = []
    if not manifest.areas:
        findings.append(Finding("error", f"{MANIFEST} names no area; build the records again"))
    for area, splits in manifest.areas.items():
        for split, counts in splits.items():
            group = groups[area, split]
            real = (
                len(group),
                len({row.study for row in group}),
                len({row.patient for row in group}),
                per_class(manifest.task, len(manifest.classes), [row.label for row in group]),
            )
            told = (counts.images, counts.studies, counts.patients, counts.per_class)
            for what, here, there in zip(("images", "studies", "patients", "images a class"), real, told, strict=True):
                if here != there:
                    text = f"{area}/{split}: the shards hold {here} {what}, {MANIFEST} says {there}; build again"
                    findings.append(Finding("error", text))
            if not group:
                findings.append(Finding("error", f"{area}/{split} is empty; build the records again"))
            elif manifest.task == "binary" and 0 in counts.per_class:
                missing = manifest.classes[counts.per_class.index(0)]
                findings.append(
                    Finding("warning", f"{area}/{split} has no {missing} image: no AUC can be computed on it")
                )
    return findings


def _study_findings(rows: list[_Row]) -> list[Finding]:
    labels: dict[tuple[str, str], set] = collections.defaultdict(set)
    for row in rows:
        labels[row.area, row.study].add(row.label)
    return [
        Finding(
            "error", f"study {study} of {area} has images with different labels; correct the source and build again"
        )
        for (area, study), kinds in sorted(labels.items())
        if len(kinds) > 1
    ]


def _patient_findings(manifest: Manifest, rows: list[_Row]) -> list[Finding]:
    if not manifest.has_patients:
        text = f"layout {manifest.layout} knows no patients: leakage of a patient between splits could not be checked"
        return [Finding("note", text)]
    splits: dict[str, set] = collections.defaultdict(set)
    for row in rows:
        splits[row.patient].add(row.split)
    leaks = sorted(patient for patient, kinds in splits.items() if len(kinds) > 1)
    return [
        Finding(
            "error",
            f"{patient} stands in the splits {', '.join(sorted(splits[patient], key=schema.SPLITS.index))}; correct the source",
        )
        for patient in leaks
    ]


def _double_findings(rows: list[_Row]) -> list[Finding]:
    """Identical images, found by the source file's hash or by the stored pixels."""
    groups: dict[str, list[_Row]] = collections.defaultdict(list)
    first_with: dict[str, str] = {}
    for row in rows:
        key = first_with.get(row.sha256) or first_with.get(row.picture) or row.picture
        first_with[row.sha256] = first_with[row.picture] = key
        groups[key].append(row)
    doubles = [group for group in groups.values() if len(group) > 1]
    findings = []
    kinds: dict[tuple[str, ...], list[list[_Row]]] = collections.defaultdict(list)
    for group in doubles:
        kinds[tuple(sorted({row.split for row in group}, key=schema.SPLITS.index))].append(group)
    by_place = sorted(
        kinds.items(), key=lambda item: (-len(item[0]), [schema.SPLITS.index(split) for split in item[0]])
    )
    for splits, found in by_place:
        example = " = ".join(f"{row.split}: {row.path}" for row in found[0])
        many = "group" if len(found) == 1 else "groups"
        where = f"across {' and '.join(splits)}" if len(splits) > 1 else f"inside {splits[0]}"
        mixed = sum(len({row.label for row in group}) > 1 for group in found)
        labels = f"; {mixed} of them with different labels" if mixed else ""
        findings.append(Finding("warning", f"{len(found)} {many} of identical images {where} ({example}){labels}"))
    return findings
