"""Building records: plan the shards, write them in parallel, move them into place, write the manifest last."""

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from kmura.config import RecordsConfig
from kmura.errors import InputError, reason
from kmura.files import check_replaceable, locked, replacing, sha256_of, write_json
from kmura.records import schema, splits
from kmura.records.folds import assign_folds, check_folds, without_test
from kmura.records.image_files import passed_over_note
from kmura.records.layouts import layout_named, listing_of
from kmura.records.layouts.base import AREAS, Layout, Listing, Source
from kmura.records.leakage import find_leaks
from kmura.records.manifest import (
    MANIFEST,
    Manifest,
    Shard,
    SplitCounts,
    VolumeFacts,
    manifest_json,
    per_class,
    read_manifest,
)
from kmura.records.shards import ShardPlan, ShardResult, is_whole, strict_error, write_shards
from kmura.tasks import Binary

STAGE = ".building"  # inside the output folder until the build is finished
LOCK = ".building.lock"  # beside it: Windows cannot remove a folder with an open file


def build_records(
    root: str | os.PathLike,
    out: str | os.PathLike = "tfrecords",
    *,
    layout: str | Layout = "mura",
    options: RecordsConfig | None = None,
    folds: int = 0,
    strict: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    **layout_options: Any,
) -> Manifest:
    """Builds records of all images of a source in `out` and returns their manifest.

    The same input and options give byte-identical files for any number of workers. The same call resumes a build that
    was killed, and leaves a finished one as it is.

    Args:
        root: the folder or file that holds the images, as the layout needs it.
        out: the folder for `AREA/SPLIT-00000-of-00008.tfrecord`, an index beside each, and `manifest.json`.
        layout: how the images are stored, a name in `kmura.records.layouts.LAYOUTS` or a layout itself.
        options: encoding, size, splits; see RecordsConfig.
        folds: number of folds that the patients outside of `test` are assigned to, stratified by area and label; 0
            assigns none.
        strict: raise for an unreadable image instead of listing it in `manifest.skipped`, and for what is wrong in the
            tables of the layout csv.
        overwrite: replace a finished build of another input or other options.
        workers: number of processes; None: one per processor.
        progress: called with (images done, images in total).
        **layout_options: options of the layout, see its `options`: `areas` and `from_csv` of `mura`; `name`,
            `positive_class` and `classes` of `folders` and `medmnist`; the columns of `csv`; those of `dicom` are in
            docs/dicom.md. None, False and empty values count as not given.

    Raises:
        InputError: nothing usable in `root`, contradicting options, `out` contains other records or cannot be written,
            disk full, and with `strict` the first unreadable image. Files written before stay whole.
    """
    options = options or RecordsConfig()
    root, out = Path(root), Path(out)
    source_layout = layout_named(layout) if isinstance(layout, str) else layout
    source_layout.check_out(root, out)
    source_layout.check_options(out, layout_options)
    listing = listing_of(source_layout, root, layout_options)
    if strict and listing.skipped:
        raise strict_error(listing.skipped[0])
    if strict and listing.irregular:
        note = passed_over_note(listing.irregular).removeprefix("passed over: ")
        raise InputError(f"{root}: {note}; correct the source, or build without --strict to leave them out")
    sources = list(listing.sources)
    _check_classes(root, source_layout, listing, sources, "")
    for split, fraction in (("test", options.test_fraction), ("val", options.val_fraction)):
        if split not in listing.splits_given:
            sources = splits.carve(sources, fraction, options.seed, target=split)
    left = " left after carving; lower --val-fraction or --test-fraction"
    _check_classes(root, source_layout, listing, sources, left)
    sources = assign_folds(sources, folds, options.seed) if folds else without_test(sources)
    notes = check_folds(sources, listing.classes, listing.task, listing.has_patients)
    source = _fingerprint(root, source_layout, listing, sources, options)
    if (out / MANIFEST).exists() and not overwrite:
        finished = read_manifest(out)
        if finished.source == source:
            if strict and finished.skipped:
                raise strict_error(finished.skipped[0])
            if all(is_whole(shard, out) for shard in finished.shards()):
                _drop_leftovers(out)
                return finished
        if finished.source != source:
            differences = _differences(finished, source_layout, listing, options)
            raise InputError(
                f"{out} holds records of another input or other options ({differences}); "
                "choose another --out, or replace them with --overwrite"
            )
    check_replaceable(out / MANIFEST)
    plans = list(_plans(root, source_layout, sources, options))
    with _stage(out, source) as stage:
        results = write_shards(plans, stage, out, workers, strict, progress)
        manifest = _manifest(source_layout, listing, options, source, plans, results, notes)
        _publish(manifest, stage, out)
    return manifest


def _check_classes(root: Path, layout: Layout, listing: Listing, sources: list[Source], after: str) -> None:
    """Raises InputError for a binary area whose training split lacks a class: no classifier can learn from it.

    Areas without any label are for pretraining.
    """
    if listing.task != Binary.name:
        return
    present = {(source.area, source.label[0]) for source in sources if source.split == "train"}
    for area in sorted({source.area for source in sources if source.label[0] >= 0}):
        for label, class_name in enumerate(listing.classes):
            if (area, label) not in present:
                leave = ", or leave the area out with --areas" if AREAS in layout.options else ""
                fix = after or f"; add some{leave}"
                raise InputError(f"area {area} in {root} has no {class_name} training images{fix}")


def _fingerprint(root: Path, layout: Layout, listing: Listing, sources: list[Source], options: RecordsConfig) -> str:
    """SHA-256 of everything that determines the shards; size and time of change represent the contents of files."""
    digest = hashlib.sha256()
    head = [schema.SCHEMA_VERSION, layout.name, listing.classes, listing.task, dataclasses.asdict(options)]
    digest.update(json.dumps(head, sort_keys=True).encode())
    for source in sorted(sources, key=lambda source: source.path):
        digest.update(json.dumps(source.identity()).encode())
    if root.is_file():
        digest.update(sha256_of(root).encode())
    return digest.hexdigest()


def _differences(finished: Manifest, layout: Layout, listing: Listing, options: RecordsConfig) -> str:
    new = {"layout": layout.name, "classes": list(listing.classes), **dataclasses.asdict(options)}
    old = {"layout": finished.layout, "classes": list(finished.classes), **finished.options}
    new["schema_version"], old["schema_version"] = schema.SCHEMA_VERSION, finished.schema_version
    keys = [f"{key} {old.get(key)}, now {value}" for key, value in new.items() if old.get(key) != value]
    return "; ".join(keys) or "images were added, removed or changed"


def _plans(root: Path, layout: Layout, sources: list[Source], options: RecordsConfig) -> Iterator[ShardPlan]:
    groups: dict[tuple[str, str], list[Source]] = collections.defaultdict(list)
    for source in sources:
        groups[source.area, source.split].append(source)
    for area, split in sorted(groups, key=lambda key: (key[0], schema.SPLITS.index(key[1]))):
        group = groups[area, split] if layout.has_slices else splits.shuffled(groups[area, split], options.seed)
        number = -(-len(group) // options.records_per_shard)
        for index in range(number):
            part = group[index * len(group) // number : (index + 1) * len(group) // number]
            file = f"{area}/{split}-{index:05d}-of-{number:05d}.tfrecord"
            yield ShardPlan(file, layout, str(root), tuple(part), options)


@contextlib.contextmanager
def _stage(out: Path, inputs: str) -> Iterator[Path]:
    """The folder of an unfinished build, locked; emptied if it belongs to other inputs, removed after success."""
    stage = out / STAGE
    busy = f"another build is writing to {out}; wait for it or choose another --out"
    with locked(out / LOCK, busy, drop=True):
        stage.mkdir(exist_ok=True)
        plan = stage / "plan"
        if not plan.is_file() or plan.read_text() != inputs:
            for entry in stage.iterdir():
                if entry.is_dir():
                    shutil.rmtree(entry)
            with replacing(plan) as file:
                file.write(inputs)
        for leftover in (*stage.glob("**/.*.part"), *out.glob(".manifest.json.*.part")):
            leftover.unlink()
        yield stage
        shutil.rmtree(stage)


def _drop_leftovers(out: Path) -> None:
    """Removes the files of a build that was killed after it wrote the manifest, unless another build is running."""
    leftovers = list(out.glob(".manifest.json.*.part"))
    if not leftovers and not (out / STAGE).exists():
        return
    with contextlib.suppress(InputError, OSError), locked(out / LOCK, "another build is writing", drop=True):
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)
        shutil.rmtree(out / STAGE, ignore_errors=True)


def _manifest(layout: Layout, listing: Listing, options: RecordsConfig, source: str, plans, results, notes) -> Manifest:
    groups: dict[tuple[str, str], list[tuple[ShardPlan, ShardResult]]] = collections.defaultdict(list)
    for plan, result in zip(plans, results, strict=True):
        groups[plan.sources[0].area, plan.sources[0].split].append((plan, result))
    areas: dict[str, dict[str, SplitCounts]] = collections.defaultdict(dict)
    skipped, remarks = list(listing.skipped), []
    for (area, split), parts in groups.items():
        sources = [plan.sources[position] for plan, result in parts for position in result.written]
        skipped += [item for _, result in parts for item in result.skipped]
        if not sources:
            first = next(result.skipped[0] for _, result in parts)
            raise InputError(
                f"area {area}, split {split}: none of the images can be read (first: {first.file}: {first.reason}); "
                "fix them or leave the area out"
            )
        areas[area][split] = SplitCounts(
            images=len(sources),
            studies=len({(source.patient, source.study) for source in sources}),
            patients=len({source.patient for source in sources}),
            per_class=per_class(listing.task, len(listing.classes), [source.label for source in sources]),
            shards=tuple(result.shard for _, result in parts),
        )
        remarks += [item for _, result in parts for item in result.remarks]
    skipped.sort(key=lambda item: item.file)
    remarks.sort(key=lambda item: item.file)
    content = [listing.classes, listing.task, [(result.shard.file, result.shard.sha256) for result in results]]
    return Manifest(
        layout=layout.name,
        classes=listing.classes,
        task=listing.task,
        channels=options.channels,
        options=dataclasses.asdict(options),
        inputs=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        source=source,
        areas=dict(areas),
        has_patients=listing.has_patients,
        skipped=tuple(skipped),
        passed_over=(*listing.irregular, *listing.passed_over),
        remarks=tuple(remarks),
        leaks=find_leaks(_written(plans, results), listing.has_patients),
        volumes=_volumes(listing, plans),
        notes=(*listing.notes, *notes),
        columns=tuple(dict.fromkeys(name for plan in plans for source in plan.sources for name, _ in source.columns)),
        folds=len({source.fold for plan in plans for source in plan.sources} - {None}),
    )


def _volumes(listing: Listing, plans: list[ShardPlan]) -> dict[str, VolumeFacts]:
    """The volumes with the splits of their slices."""
    split_of = {source.study: source.split for plan in plans for source in plan.sources}
    return {name: dataclasses.replace(facts, split=split_of[name]) for name, facts in listing.volumes.items()}


@dataclasses.dataclass(frozen=True)
class _Written:
    """A record of the build, for the check for leakage."""

    area: str
    split: str
    patient: str
    path: str
    sha256: str
    image_sha256: str


def _written(plans: list[ShardPlan], results: list[ShardResult]) -> list[_Written]:
    return [
        _Written(source.area, source.split, source.patient, source.path, *hashes)
        for plan, result in zip(plans, results, strict=True)
        for source, hashes in zip([plan.sources[position] for position in result.written], result.hashes, strict=True)
    ]


def _publish(manifest: Manifest, stage: Path, out: Path) -> None:
    """Moves the staged shards into place and writes the manifest last; a kill in between is resumed."""
    try:
        if (out / MANIFEST).exists():
            try:
                old = read_manifest(out).shards()
            except InputError:  # damaged or of an unknown version: its shards stay, and inspect names them
                old = []
            (out / MANIFEST).unlink()
            for file in _files(old):
                (out / file).unlink(missing_ok=True)
        for area in manifest.areas:
            (out / area).mkdir(exist_ok=True)
        for file in _files(manifest.shards()):
            if (stage / file).exists():
                os.replace(stage / file, out / file)
    except OSError as error:
        raise InputError(
            f"cannot move the shards into {out}: {reason(error)}; fix its permissions and run the same command again"
        ) from error
    write_json(out / MANIFEST, manifest_json(manifest))


def _files(shards: Iterable[Shard]) -> list[str]:
    """The shard and index files, relative to the records folder."""
    return [file for shard in shards for file in (shard.file, shard.index) if file]
