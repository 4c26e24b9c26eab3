"""`build_volumes`: pairs scans, transforms and label maps, and writes their axial slices as records.

The scan is resampled onto the grid of its labels, in canonical orientation (LPS), and its gray values are windowed to 8
bits. Everything that can be wrong with a case is found before anything is written.
"""

import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from kmura.config import RecordsConfig
from kmura.config.segmentation import VOLUME_SPLITS
from kmura.data.volume_dataset import natural_order
from kmura.errors import InputError, reason
from kmura.records.image_files import PassedOver
from kmura.records.layouts.base import NAME, Layout, Listing, Option, Source, area_name
from kmura.records.manifest import Manifest, VolumeFacts
from kmura.records.schema import SPLITS
from kmura.records.writer import build_records
from kmura.segmentation import volumes
from kmura.segmentation.regions import REGIONS
from kmura.segmentation.sides import facts_of
from kmura.tasks import Multilabel

AREA = "CT_HEAD"
ID = "{id}"
CSV_COLUMNS = ("id", "image", "labels", "transform", "split")
LARGEST_CLASS = 255  # of a mask of 8 bits


@dataclasses.dataclass(frozen=True)
class Case:
    """A scan with its labels; paths are relative to the root.

    Attributes:
        id: unique within the data set.
        image: a file, or a folder of a DICOM series.
        labels: the label map.
        transform: ITK transform from the space of the labels to that of the scan; "" if they have the same grid.
        split: `train`, `val` or `test`; "" leaves the choice to the build.
    """

    id: str
    image: str
    labels: str
    transform: str = ""
    split: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A case as it is written: gray values and class numbers, uint8 [Z, Y, X], and its geometry."""

    gray: np.ndarray
    mask: np.ndarray
    facts: VolumeFacts


class Volumes(Layout):
    """Scans with label maps of their regions; one record per axial slice. The patient of a slice is its volume."""

    name = "volumes"
    help = "ROOT/N.nii.gz, ROOT/N-seg.nii.gz and (optional) the ITK transform ROOT/N.txt"
    has_slices = True
    options = (
        NAME,
        Option("classes", "names of the classes 1, 2, ...; default: the twenty ASPECTS regions", tuple),
        Option("images", "pattern of the scans, relative to ROOT", metavar="PATTERN", default="{id}.nii.gz"),
        Option("labels", "pattern of the label maps", metavar="PATTERN", default="{id}-seg.nii.gz"),
        Option("transforms", "pattern of the transforms, label space to scan space", metavar="PATTERN",
               default="{id}.txt"),
        Option("pairs", "CSV with the columns id, image, labels and (optional) transform, split; replaces the patterns",
               metavar="FILE"),
        Option("low", "gray value (HU) that becomes black", float, default=-124.0),
        Option("high", "gray value (HU) that becomes white", float, default=130.0),
    )  # fmt: skip

    def listing(
        self,
        root: Path,
        *,
        name: str | None,
        classes: tuple[str, ...],
        images: str,
        labels: str,
        transforms: str,
        pairs: str | None,
        low: float,
        high: float,
    ) -> Listing:
        """The slices of all cases. All scans, transforms and labels are read and checked.

        Raises:
            InputError: no case is found, or one of them is not usable; names its file.
        """
        names = tuple(classes) or REGIONS
        if len(names) > LARGEST_CLASS or len(set(names)) < len(names):
            raise InputError(f"there are {len(names)} classes; give 1 to {LARGEST_CLASS} different names")
        if not low < high:
            raise InputError(f"the window is [{low:g}, {high:g}]; --low must be below --high")
        area = area_name(name, AREA)
        cases = cases_of_csv(root, Path(pairs)) if pairs else cases_of_patterns(root, images, labels, transforms)
        self._key = (str(root), names, (low, high))
        self._cases = {case.id: case for case in cases}
        sources, facts = [], {}
        for case in cases:
            prepared = prepare(str(root), case, names, (low, high))
            facts[case.id] = dataclasses.replace(prepared.facts, area=area)
            size, changed = _state(root, case)
            present = [np.bincount(slice_.ravel(), minlength=len(names) + 1)[1:] > 0 for slice_ in prepared.mask]
            sources += [
                Source(
                    f"{case.id}/{number:04}", area, case.id, case.id, tuple(map(int, row)), case.split or "train", size,
                    changed,
                )
                for number, row in enumerate(present)
            ]  # fmt: skip
        given = SPLITS if any(case.split for case in cases) else ()
        return Listing(
            names, Multilabel.name, tuple(sources), given, has_patients=True, passed_over=self._rest(root, cases),
            volumes=facts,
        )  # fmt: skip

    def read(self, root: Path, source: Source, channels: int) -> tuple[Image.Image, str]:
        prepared, number = self._slice(source)
        image = Image.fromarray(prepared.gray[number])
        return image if channels == 1 else image.convert("RGB"), f"{prepared.facts.sha256}-{number}"

    def mask(self, root: Path, source: Source) -> Image.Image:
        prepared, number = self._slice(source)
        return Image.fromarray(prepared.mask[number])

    def _slice(self, source: Source) -> tuple[Prepared, int]:
        root, names, window = self._key
        return prepare(root, self._cases[source.study], names, window), int(source.path.rpartition("/")[2])

    @staticmethod
    def _rest(root: Path, cases: list[Case]) -> tuple[PassedOver, ...]:
        """The files of the root that belong to no case."""
        used = {Path(path) for case in cases for path in (case.image, case.labels, case.transform) if path}
        rest = [
            path.name
            for path in sorted(root.iterdir())
            if path.relative_to(root) not in used and not any(path.relative_to(root) in one.parents for one in used)
        ]
        return (PassedOver("files that belong to no case", len(rest), tuple(rest[:3])),) if rest else ()


def build_volumes(
    root: str | os.PathLike,
    out: str | os.PathLike = "ct-records",
    *,
    options: RecordsConfig | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    **layout_options,
) -> Manifest:
    """Writes the axial slices of scans and their labels as records, and returns the manifest.

    Splits are made by volume. The same call resumes a build that was killed; the records do not depend on the number of
    workers.

    Args:
        root: folder of the cases.
        out: folder for the records.
        options: shares of the splits, seed, slices per shard; `max_side` does not apply. None: VOLUME_SPLITS.
        overwrite, workers, progress: see `kmura.build_records`.
        **layout_options: `name` of the area, `classes`, the patterns `images`, `labels` and `transforms`, `pairs` (a
            CSV file instead of patterns), and the window `low` and `high`, HU.

    Raises:
        InputError: no case is found, or a case is not usable: labels on another grid without a transform, labels
            outside the classes, an empty or fractional label map, four dimensions, an unknown orientation or voxel
            size, a transform that is not rigid.
    """
    options = dataclasses.replace(options or VOLUME_SPLITS, encoding="png", channels=1, max_side=1 << 20)
    return build_records(
        root, out, layout=Volumes(), options=options, overwrite=overwrite, workers=workers, progress=progress,
        **layout_options,
    )  # fmt: skip


@functools.lru_cache(maxsize=1)  # the slices of a volume follow each other
def prepare(root: str, case: Case, names: tuple[str, ...], window: tuple[float, float]) -> Prepared:
    """Returns a case on the canonical grid of its labels.

    Args:
        root: folder of the case.
        case: the files.
        names: of the classes 1, 2, ...
        window: gray values (HU) that become 0 and 255.

    Raises:
        InputError: see `build_volumes`.
    """
    scan = volumes.read_volume(Path(root) / case.image)
    labels = volumes.read_labels(Path(root) / case.labels, names)
    transform = None
    if case.transform:
        transform = volumes.read_transform(Path(root) / case.transform)
        volumes.check_rigid(transform, what=Path(root) / case.transform)
    elif not volumes.same_grid(scan, labels):
        raise InputError(
            f"{Path(root) / case.labels} has another grid than {Path(root) / case.image}, and there is no transform; "
            "give the ITK transform from the space of the labels to that of the scan, or resample the labels"
        )
    labels = volumes.canonical(labels)
    scan = volumes.aligned(scan, transform, labels)
    gray, mask = volumes.to_gray(volumes.array_of(scan), *window), volumes.array_of(labels)
    facts = dataclasses.replace(
        facts_of(scan, window, (case.image, case.transform, case.labels)),
        sha256=hashlib.sha256(gray.tobytes() + mask.tobytes()).hexdigest(),
    )
    return Prepared(gray, mask, facts)


def cases_of_patterns(root: Path, images: str, labels: str, transforms: str) -> list[Case]:
    """Returns the cases below a folder, by patterns with `{id}`.

    Args:
        root: the folder.
        images, labels, transforms: patterns relative to the root, such as `{id}.nii.gz`; a label map may also be stored
            uncompressed, and a case need not have a transform.

    Raises:
        InputError: a pattern lacks `{id}`, there is no case, or a scan has no labels.
    """
    for flag, pattern in (("--images", images), ("--labels", labels), ("--transforms", transforms)):
        if pattern.count(ID) != 1:
            raise InputError(f"{flag} is {pattern!r}; it must contain {ID} once, for example {ID}.nii.gz")
    every = _matches(root, images)
    labelled = set(_matches(root, labels).values()) | set(_matches(root, labels.removesuffix(".gz")).values())
    scans = {name: path for name, path in every.items() if path not in labelled}
    if not scans:
        raise InputError(
            f"{root} contains no scans that match {images}; give their pattern with --images, or --pairs CSV"
        )
    cases, missing = [], []
    for name, path in sorted(scans.items(), key=lambda item: natural_order(item[0])):
        candidates = (labels.replace(ID, name), labels.replace(ID, name).removesuffix(".gz"))
        label = next((one for one in candidates if (root / one).exists()), None)
        transform = transforms.replace(ID, name)
        if label is None:
            missing.append(f"{path} (no {candidates[0]})")
        else:
            cases.append(Case(name, path, label, transform if (root / transform).is_file() else ""))
    if missing:
        raise InputError(
            f"{root / missing[0].split(' ')[0]} has no label map {missing[0].partition('no ')[2].rstrip(')')}"
            f"{f' ({len(missing)} scans lack one)' if len(missing) > 1 else ''}; add it, move the scan elsewhere, or "
            "give the pattern with --labels"
        )
    return cases


def cases_of_csv(root: Path, table: Path) -> list[Case]:
    """Returns the cases that a CSV lists; its paths are relative to the root.

    Raises:
        InputError: the file cannot be read, lacks a column, repeats an id, or names a file that does not exist.
    """
    try:
        rows = pd.read_csv(table, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{table} cannot be read ({reason(error)}); give a CSV with the columns id, image, labels"
        ) from error
    missing = [name for name in CSV_COLUMNS[:3] if name not in rows]
    if missing:
        raise InputError(
            f"{table} lacks the column {missing[0]}; needed are id, image and labels, optional transform, split"
        )
    cases = []
    for number, row in enumerate(rows.to_dict("records"), start=2):
        case = Case(**{name: row.get(name, "") for name in CSV_COLUMNS})
        for path in filter(None, (case.image, case.labels, case.transform)):
            if not (root / path).exists():
                raise InputError(f"{table}, line {number}: {root / path} does not exist; correct the path")
        if case.split not in ("", *SPLITS):
            raise InputError(f"{table}, line {number}: split {case.split!r}; give {', '.join(SPLITS)}, or nothing")
        if not case.id or "/" in case.id or any(case.id == other.id for other in cases):
            raise InputError(
                f"{table}, line {number}: id {case.id!r} is empty, has a slash or is repeated; give another"
            )
        cases.append(case)
    if not cases:
        raise InputError(f"{table} has no rows; add one per scan")
    if any(case.split for case in cases) and not all(case.split for case in cases):
        raise InputError(f"{table}: some rows have a split and others do not; fill the column, or leave it empty")
    return cases


def _matches(root: Path, pattern: str) -> dict[str, str]:
    """Id -> path relative to the root, of everything that matches a pattern."""
    expression = re.compile(re.escape(pattern).replace(re.escape(ID), r"([^/]+)") + "$")
    found = {}
    for path in root.glob(pattern.replace(ID, "*")):
        relative = path.relative_to(root).as_posix()
        if match := expression.match(relative):
            found[match[1]] = relative
    return found


def _state(root: Path, case: Case) -> tuple[int, int]:
    """Total size of the files of a case, bytes, and the time of their last change, nanoseconds."""
    files = []
    for path in filter(None, (case.image, case.labels, case.transform)):
        files += (
            [root / path] if (root / path).is_file() else [one for one in (root / path).rglob("*") if one.is_file()]
        )
    states = [file.stat() for file in files]
    return sum(state.st_size for state in states), max(state.st_mtime_ns for state in states)
