"""The shards of a build: each written by a worker process, and known again after a kill by what was noted beside it."""

import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from kmura.config import RecordsConfig
from kmura.errors import InputError, reason
from kmura.files import replacing, sha256_of, write_json
from kmura.records import schema, tfrecord
from kmura.records.images import UnreadableImage, decode_image, encode_image, image_from_array
from kmura.records.layouts import medmnist
from kmura.records.layouts.base import Source
from kmura.records.manifest import Shard, Skipped


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    """The unit of work: one shard and the images that go into it."""

    file: str
    layout: str
    root: str
    sources: tuple[Source, ...]
    options: RecordsConfig


@dataclasses.dataclass(frozen=True)
class ShardResult:
    """What one written shard holds; kept beside it while the build goes on."""

    shard: Shard
    written: tuple[int, ...]  # positions in the plan's sources
    skipped: tuple[Skipped, ...]


def write_shards(
    plans: list[ShardPlan],
    stage: Path,
    out: Path,
    workers: int | None,
    strict: bool,
    progress: Callable[[int, int], None] | None,
) -> list[ShardResult]:
    """What the shards hold, in the order of their plans, once all are written to `stage`.

    A shard that an earlier, killed run of the same build wrote whole, be it moved to `out` by now, is left as it is.

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
    """The result of a shard that an earlier, killed run of the same build wrote whole, or None."""
    try:
        raw = json.loads((stage / f"{plan.file}.json").read_text())
    except (OSError, ValueError):
        return None
    shard = Shard(**raw["shard"])
    for folder in (stage, out):  # a build killed while it moved its shards has some in place already
        if is_whole(folder, shard):
            return ShardResult(shard, tuple(raw["written"]), tuple(Skipped(**item) for item in raw["skipped"]))
    return None


def is_whole(folder: Path, shard: Shard) -> bool:
    """Whether a shard stands in a folder, byte for byte as it was written."""
    path = folder / shard.file
    return path.is_file() and path.stat().st_size == shard.bytes and sha256_of(path) == shard.sha256


def _run(work: Callable, plans: list[ShardPlan], workers: int | None) -> Iterable[ShardResult]:
    if workers is not None and workers < 1:
        raise InputError(f"workers is {workers}; 1 or more is needed")
    workers = min(workers or os.cpu_count() or 1, len(plans))
    if workers <= 1:
        yield from map(work, plans)
        return
    # spawn: a parent that uses TensorFlow has threads, and a forked child of such a process can lock up
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with_parent) as pool:
        futures: list[Future] = [pool.submit(work, plan) for plan in plans]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise InputError(
                "a writer process was killed (out of memory?); run the same command again to go on"
            ) from error
        finally:
            for future in futures:
                future.cancel()


def _die_with_parent() -> None:
    """Ends this worker as soon as its parent is gone, so that a killed build leaves no process behind."""
    parent = multiprocessing.parent_process()

    def watch():
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_shard(plan: ShardPlan, stage: str, strict: bool) -> ShardResult:
    written, skipped = [], []
    digest, size = hashlib.sha256(), 0
    path = Path(stage) / plan.file
    with replacing(path, "wb") as file:
        for position, source in enumerate(plan.sources):
            try:
                record = _record(plan, source)
            except (UnreadableImage, UnicodeEncodeError) as error:
                skipped.append(Skipped(source.path, str(error)))
                if strict:
                    raise strict_error(skipped[-1]) from error
                continue
            data = tfrecord.frame(schema.encode(record))
            file.write(data)
            digest.update(data)
            size += len(data)
            written.append(position)
    shard = Shard(plan.file, len(written), size, digest.hexdigest())
    result = ShardResult(shard, tuple(written), tuple(skipped))
    write_json(f"{path}.json", dataclasses.asdict(result))
    return result


def _record(plan: ShardPlan, source: Source) -> schema.Record:
    options = plan.options
    if plan.layout == "medmnist":
        pixels = medmnist.medmnist_pixels(Path(plan.root), source.path)
        sha256 = hashlib.sha256(pixels.tobytes()).hexdigest()
        image = image_from_array(pixels, options.channels)
    else:
        try:
            data = (Path(plan.root) / source.path).read_bytes()
        except OSError as error:
            raise UnreadableImage(reason(error)) from error
        sha256 = hashlib.sha256(data).hexdigest()
        image = decode_image(data, options.channels)
    encoded, height, width = encode_image(image, options.encoding, options.quality, options.max_side)
    return schema.Record(
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
    )


def strict_error(skipped: Skipped) -> InputError:
    """What a strict build says of an image that it cannot read."""
    return InputError(f"{skipped.file}: {skipped.reason}; mend or remove it, or build without --strict to leave it out")
