"""Image files -> shards and a manifest: planned first, written in parallel, published whole, resumable."""

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kmura.config import RecordsConfig
from kmura.errors import InputError, check_choice, reason
from kmura.files import locked, replacing, sha256_of, write_json
from kmura.records import schema, splits
from kmura.records.layouts import folders, medmnist, mura
from kmura.records.layouts.base import Listing, Source
from kmura.records.manifest import MANIFEST, Manifest, SplitCounts, manifest_json, per_class, read_manifest
from kmura.records.shards import ShardPlan, ShardResult, is_whole, strict_error, write_shards

LAYOUTS = ("mura", "folders", "medmnist")
STAGE = ".building"  # inside the output folder until the build is whole


def build_records(
    root: str | os.PathLike,
    out: str | os.PathLike = "tfrecords",
    *,
    layout: str = "mura",
    options: RecordsConfig | None = None,
    name: str | None = None,
    areas: Sequence[str] = (),
    positive_class: str | None = None,
    classes: Sequence[str] = (),
    from_csv: bool = False,
    strict: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """The manifest of the records that now stand in `out`.

    The same input and options give byte-identical shards whatever the number of workers. A build that was killed goes
    on where it stopped when the same call is made again; a finished one is left as it is.

    Args:
        root: a folder of images (`mura`, `folders`) or an npz file (`medmnist`).
        out: the folder for `AREA/SPLIT-00000-of-00008.tfrecord` and `manifest.json`.
        layout: one of LAYOUTS.
        options: encoding, size, splits; see RecordsConfig.
        name: the area's name where the layout has none (default: the file's or folder's name).
        areas: of `mura`, only these.
        positive_class, classes: see `list_folders` and `list_medmnist`.
        from_csv: of `mura`, take `*_image_paths.csv` instead of walking the folders.
        strict: an unreadable image is an error instead of an entry of `manifest.skipped`.
        overwrite: replace a finished build of another input or other options.
        workers: processes; default: one a core.
        progress: called with (images done, images in all).

    Raises:
        InputError: nothing usable in `root`, contradicting options, `out` taken by other records or not writable, disk
            full, and with `strict` the first unreadable image. What was written before stays whole.
    """
    options = options or RecordsConfig()
    root, out = Path(root), Path(out)
    if layout == "folders" and out.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{out} lies in {root}, whose folders are taken for classes; choose an --out outside of it")
    listing = _listing(root, layout, name, tuple(areas), positive_class, tuple(classes), from_csv)
    sources = list(listing.sources)
    _check_classes(root, listing, sources, "")
    for split, fraction in (("test", options.test_fraction), ("val", options.val_fraction)):
        if split not in listing.splits_given:
            sources = splits.carve(sources, fraction, options.seed, target=split)
    _check_classes(root, listing, sources, " left after carving; lower --val-fraction or --test-fraction")
    source = _fingerprint(root, listing, sources, options)
    if (out / MANIFEST).exists() and not overwrite:
        finished = read_manifest(out)
        if finished.source == source:
            if strict and finished.skipped:
                raise strict_error(finished.skipped[0])
            if all(is_whole(out, shard) for shard in finished.shards()):
                _drop_leftovers(out)
                return finished
        if finished.source != source:
            raise InputError(
                f"{out} holds records of another input or other options ({_differences(finished, listing, options)}); "
                "choose another --out, or replace them with --overwrite"
            )
    plans = list(_plans(root, listing, sources, options))
    with _stage(out, source) as stage:
        results = write_shards(plans, stage, out, workers, strict, progress)
        manifest = _manifest(listing, options, source, plans, results)
        _publish(manifest, stage, out)
    return manifest


def _listing(root: Path, layout, name, areas, positive_class, classes, from_csv) -> Listing:
    check_choice("layout", layout, LAYOUTS)
    if not root.exists():
        raise InputError(f"{root} does not exist; give the folder (or .npz file) with the images")
    if root.is_dir() == (layout == "medmnist"):
        kind = "an .npz file" if layout == "medmnist" else "a folder"
        raise InputError(f"{root} is not {kind}, which --layout {layout} needs; give one or choose another --layout")
    if layout == "mura":
        for flag, value in (("--name", name), ("--positive-class", positive_class), ("--classes", classes)):
            if value:
                raise InputError(
                    f"{flag} does not go with --layout mura, whose folders name areas and classes; leave it out"
                )
        return mura.list_mura(root, areas=areas, from_csv=from_csv)
    for flag, value in (("--areas", areas), ("--from-csv", from_csv)):
        if value:
            raise InputError(f"{flag} goes with --layout mura only; leave it out")
    name = name or (root.stem if layout == "medmnist" else root.resolve().name)
    if name.lower() == "all":
        raise InputError("area name 'all' means every area elsewhere; give another --name")
    if not name.replace("_", "").replace("-", "").isalnum():
        raise InputError(f"area name {name!r} has characters other than letters, digits, - and _; give another --name")
    lister = medmnist.list_medmnist if layout == "medmnist" else folders.list_folders
    return lister(root, name=name, positive_class=positive_class, classes=classes)


def _check_classes(root: Path, listing: Listing, sources: list[Source], after: str) -> None:
    """Refuses a binary area whose training split lacks a class: nothing could be learnt from it."""
    if listing.task != "binary":
        return
    present = {(source.area, source.label[0]) for source in sources if source.split == "train"}
    for area in sorted({source.area for source in sources}):
        for label, class_name in enumerate(listing.classes):
            if (area, label) not in present:
                leave = ", or leave the area out with --areas" if listing.layout == "mura" else ""
                mend = after or f"; add some{leave}"
                raise InputError(f"area {area} in {root} has no {class_name} training images{mend}")


def _fingerprint(root: Path, listing: Listing, sources: list[Source], options: RecordsConfig) -> str:
    """SHA-256 of all that decides the shards' bytes; size and time of change stand for the contents of image files."""
    digest = hashlib.sha256()
    head = [schema.SCHEMA_VERSION, listing.layout, listing.classes, listing.task, dataclasses.asdict(options)]
    digest.update(json.dumps(head, sort_keys=True).encode())
    for source in sorted(sources, key=lambda source: source.path):
        digest.update(json.dumps(dataclasses.astuple(source)).encode())
    if root.is_file():
        digest.update(sha256_of(root).encode())
    return digest.hexdigest()


def _differences(finished: Manifest, listing: Listing, options: RecordsConfig) -> str:
    wanted = {"layout": listing.layout, "classes": list(listing.classes), **dataclasses.asdict(options)}
    there = {"layout": finished.layout, "classes": list(finished.classes), **finished.options}
    keys = [f"{key} {there.get(key)}, now {value}" for key, value in wanted.items() if there.get(key) != value]
    return "; ".join(keys) or "images were added, removed or changed"


def _plans(root: Path, listing: Listing, sources: list[Source], options: RecordsConfig) -> Iterator[ShardPlan]:
    groups: dict[tuple[str, str], list[Source]] = collections.defaultdict(list)
    for source in sources:
        groups[source.area, source.split].append(source)
    for area, split in sorted(groups, key=lambda key: (key[0], schema.SPLITS.index(key[1]))):
        group = splits.shuffled(groups[area, split], options.seed)
        number = -(-len(group) // options.records_per_shard)
        for index in range(number):
            part = group[index * len(group) // number : (index + 1) * len(group) // number]
            file = f"{area}/{split}-{index:05d}-of-{number:05d}.tfrecord"
            yield ShardPlan(file, listing.layout, str(root), tuple(part), options)


@contextlib.contextmanager
def _stage(out: Path, inputs: str) -> Iterator[Path]:
    """The folder of a build under way, locked; emptied if it belongs to other inputs, removed after success."""
    stage = out / STAGE
    busy = f"another build is writing to {out}; wait for it or choose another --out"
    with locked(stage / "lock", busy):
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
    """Removes what a build killed after its manifest left behind, unless another build is at work there."""
    with contextlib.suppress(InputError), locked(out / STAGE / "lock", "another build is writing"):
        for leftover in out.glob(".manifest.json.*.part"):
            leftover.unlink()
        shutil.rmtree(out / STAGE)


def _manifest(listing: Listing, options: RecordsConfig, source: str, plans, results) -> Manifest:
    groups: dict[tuple[str, str], list[tuple[ShardPlan, ShardResult]]] = collections.defaultdict(list)
    for plan, result in zip(plans, results, strict=True):
        groups[plan.sources[0].area, plan.sources[0].split].append((plan, result))
    areas: dict[str, dict[str, SplitCounts]] = collections.defaultdict(dict)
    skipped = list(listing.skipped)
    for (area, split), parts in groups.items():
        sources = [plan.sources[position] for plan, result in parts for position in result.written]
        skipped += [item for _, result in parts for item in result.skipped]
        if not sources:
            first = next(result.skipped[0] for _, result in parts)
            raise InputError(
                f"area {area}, split {split}: none of the images can be read (first: {first.file}: {first.reason}); "
                "mend them or leave the area out"
            )
        areas[area][split] = SplitCounts(
            images=len(sources),
            studies=len({source.study for source in sources}),
            patients=len({source.patient for source in sources}),
            per_class=per_class(listing.task, len(listing.classes), [source.label for source in sources]),
            shards=tuple(result.shard for _, result in parts),
        )
    skipped.sort(key=lambda item: item.file)
    content = [listing.classes, listing.task, [(result.shard.file, result.shard.sha256) for result in results]]
    return Manifest(
        layout=listing.layout,
        classes=listing.classes,
        task=listing.task,
        channels=options.channels,
        options=dataclasses.asdict(options),
        inputs=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        source=source,
        areas=dict(areas),
        has_patients=listing.has_patients,
        skipped=tuple(skipped),
    )


def _publish(manifest: Manifest, stage: Path, out: Path) -> None:
    """Moves the staged shards into place and writes the manifest last; a kill in between is resumed."""
    try:
        if (out / MANIFEST).exists():
            try:
                old = read_manifest(out).shards()
            except InputError:  # damaged or of another version: its shards stay, and inspect names them
                old = []
            (out / MANIFEST).unlink()
            for shard in old:
                (out / shard.file).unlink(missing_ok=True)
        for area, counts_of in manifest.areas.items():
            (out / area).mkdir(exist_ok=True)
            for counts in counts_of.values():
                for shard in counts.shards:
                    if (stage / shard.file).exists():
                        os.replace(stage / shard.file, out / shard.file)
    except OSError as error:
        raise InputError(
            f"cannot move the shards into {out}: {reason(error)}; mend it and run the same command"
        ) from error
    write_json(out / MANIFEST, manifest_json(manifest))
