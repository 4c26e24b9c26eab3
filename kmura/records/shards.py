"""The shards of a build: written by worker processes, with a note beside each by which a killed build resumes."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from kmura.config import RecordsConfig
from kmura.errors import InputError
from kmura.files import replacing, sha256_of, write_json
from kmura.records import schema, tfrecord
from kmura.records.images import UnreadableImage, encode_image
from kmura.records.layouts.base import Layout, Source
from kmura.records.manifest import Shard, Skipped
from kmura.records.remarks import Remark, remarks_on
from kmura.records.sidecar import ShardIndex, index_file
from kmura.workers import in_processes, processors


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    """The unit of work: one shard and the images that go into it."""

    file: str
    layout: Layout
    root: str
    sources: tuple[Source, ...]
    options: RecordsConfig


@dataclasses.dataclass(frozen=True)
class ShardResult:
    """The contents of one written shard; kept in a file beside it until the build is finished."""

    shard: Shard
    written: tuple[int, ...]  # positions in the plan's sources
    skipped: tuple[Skipped, ...]
    hashes: tuple[tuple[str, str], ...]  # of the written images: SHA-256 of the source file and of the stored image
    remarks: tuple[Remark, ...] = ()


def write_shards(
    plans: list[ShardPlan],
    stage: Path,
    out: Path,
    workers: int | None,
    strict: bool,
    progress: Callable[[int, int], None] | None,
) -> list[ShardResult]:
    """The contents of all shards in the order of their plans, after writing them to `stage`.

    A shard that an earlier, killed run of the same build finished is kept, in `stage` or already in `out`.

    Args:
        workers, strict, progress: see `build_records`.

    Raises:
        InputError: see `build_records`.
    """
    results = {plan.file: _finished(plan, stage, out) for plan in plans}
    for result in results.values():
        if strict and result and result.skipped:
            raise strict_error(result.skipped[0])
    todo = [plan for plan in plans if results[plan.file] is None]
    total = sum(len(plan.sources) for plan in plans)
    done = total - sum(len(plan.sources) for plan in todo)
    report = progress or (lambda done, total: None)
    report(done, total)
    by_file = {plan.file: plan for plan in plans}
    for result in _run(functools.partial(_write_shard, stage=str(stage), strict=strict), todo, workers):
        results[result.shard.file] = result
        done += len(by_file[result.shard.file].sources)
        report(done, total)
    return [results[plan.file] for plan in plans]


def _finished(plan: ShardPlan, stage: Path, out: Path) -> ShardResult | None:
    """The result of a shard that an earlier, killed run of the same build finished, or None."""
    try:
        raw = json.loads((stage / f"{plan.file}.json").read_text())
    except (OSError, ValueError):
        return None
    shard = Shard(**raw["shard"])
    # a build killed while it moved its shards has some in `out` already
    if "hashes" in raw and is_whole(shard, stage, out):
        skipped = tuple(Skipped(**item) for item in raw["skipped"])
        remarks = tuple(Remark(**item) for item in raw.get("remarks", ()))
        return ShardResult(shard, tuple(raw["written"]), skipped, tuple(map(tuple, raw["hashes"])), remarks)
    return None


def is_whole(shard: Shard, *folders: Path) -> bool:
    """Whether a shard and its index are in one of the folders each, byte for byte as they were written."""
    files = {shard.file: shard.sha256, shard.index: shard.index_sha256}
    return None not in files and all(
        any((folder / file).is_file() and sha256_of(folder / file) == sha256 for folder in folders)
        for file, sha256 in files.items()
    )


def _run(work: Callable, plans: list[ShardPlan], workers: int | None) -> Iterable[ShardResult]:
    if workers is not None and workers < 1:
        raise InputError(f"workers is {workers}; 1 or more is needed")
    try:
        yield from in_processes(work, plans, workers or processors())
    except BrokenProcessPool as error:
        raise InputError(
            "a writer process was killed (out of memory?); run the same command again to resume"
        ) from error


def _write_shard(plan: ShardPlan, stage: str, strict: bool) -> ShardResult:
    written, skipped, hashes, remarks, index = [], [], [], [], ShardIndex()
    digest, size = hashlib.sha256(), 0
    path = Path(stage) / plan.file
    with replacing(path, "wb") as file:
        for position, source in enumerate(plan.sources):
            try:
                record, texts = _record(plan, source)
            except UnreadableImage as error:
                skipped.append(Skipped(source.path, str(error)))
                if strict:
                    raise strict_error(skipped[-1]) from error
                continue
            index.add(size, record)
            data = tfrecord.frame(schema.encode(record))
            file.write(data)
            digest.update(data)
            size += len(data)
            written.append(position)
            remarks += [Remark(source.path, text) for text in texts]
            stored = record.sha256 if plan.layout.has_slices else hashlib.sha256(record.image).hexdigest()
            hashes.append((record.sha256, stored))
    index_bytes = index.encoded()
    with replacing(Path(stage) / index_file(plan.file), "wb") as file:
        file.write(index_bytes)
    index_sha256 = hashlib.sha256(index_bytes).hexdigest()
    shard = Shard(plan.file, len(written), size, digest.hexdigest(), index_file(plan.file), index_sha256)
    result = ShardResult(shard, tuple(written), tuple(skipped), tuple(hashes), tuple(remarks))
    write_json(f"{path}.json", dataclasses.asdict(result))
    return result


def _record(plan: ShardPlan, source: Source) -> tuple[schema.Record, tuple[str, ...]]:
    """The record of one image, and the remarks on its picture."""
    options = plan.options
    image, sha256 = plan.layout.read(Path(plan.root), source, options.channels)
    mask = plan.layout.mask(Path(plan.root), source)
    encoded, height, width = encode_image(image, options.encoding, options.quality, options.max_side)
    record = schema.Record(
        image=encoded,
        format=options.encoding,
        height=height,
        width=width,
        sha256=sha256,
        path=source.path,
        area=source.area,
        patient=source.patient,
        study=source.study,
        label=source.label,
        split=source.split,
        mask=encode_image(mask, "png", options.quality, max(mask.size))[0] if mask else b"",
        metadata=json.dumps(dict(source.metadata), ensure_ascii=False).encode() if source.metadata else b"",
    )
    return record, () if plan.layout.has_slices else remarks_on(image)


def strict_error(skipped: Skipped) -> InputError:
    """The error of a strict build about an image that it cannot read."""
    return InputError(f"{skipped.file}: {skipped.reason}; fix or remove it, or build without --strict to leave it out")
