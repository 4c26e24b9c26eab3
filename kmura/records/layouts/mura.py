"""The layout of MURA: `ROOT/{train,valid}/XR_AREA/patientNNNNN/studyK_{positive|negative}/imageJ.png`."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from kmura.errors import InputError
from kmura.files import csv_rows
from kmura.records.image_files import HIDDEN, Tally, check_distinct, find_images
from kmura.records.layouts.base import AREAS, Layout, Listing, Option, Source, size_and_change
from kmura.records.manifest import Skipped
from kmura.tasks import Binary

CLASSES = ("normal", "abnormal")
# folder -> split: papers report on the shipped `valid` (MURA's test set is hidden); `val` is carved from `train`
SPLIT_OF = {"train": "train", "valid": "test"}
_IMAGE = re.compile(
    r"(?:^|.*/)(?P<split>train|valid)/(?P<area>XR_\w+)/(?P<patient>patient[^/]+)/"
    r"(?P<study>study[^/]*_(?P<outcome>positive|negative))/(?P<file>[^/]+)$"
)
_STUDY = re.compile(r"(?:^|.*/)(?P<study>(?:train|valid)/XR_\w+/patient[^/]+/study[^/]+?)/?$")


class Mura(Layout):
    """The layout of MURA; patients are known."""

    name = "mura"
    help = "ROOT/{train,valid}/XR_AREA/patientNNNNN/studyK_{positive,negative}/image.png"
    options = (
        AREAS,
        Option("from_csv", "read *_image_paths.csv instead of walking the folders.", bool),
    )

    def listing(self, root: Path, *, areas: tuple[str, ...], from_csv: bool) -> Listing:
        """The images of a MURA folder, found by walking it or listed in its `*_image_paths.csv`.

        Labels come from the names of the study folders; where `*_labeled_studies.csv` exists, both must agree.

        Raises:
            InputError: no MURA layout, unknown area, an area or split without images, contradicting labels.
        """
        tally = Tally()
        sources, skipped = _sources(root, _listed(root, tally) if from_csv else _walked(root, tally))
        if not sources:
            nested = root / "MURA-v1.1"
            folder = nested if nested.is_dir() else "the folder that holds train/ and valid/, or another --layout"
            raise InputError(
                f"{root} has no images of the MURA layout (train|valid/XR_AREA/patient/study_positive); give {folder}"
            )
        check_distinct((source.area for source in sources), f"areas of {root}")
        _check_areas(root, sources, areas)
        _check_labels(root, sources)
        if areas:
            sources = [source for source in sources if source.area in areas]
        _check_splits(root, sources, skipped)
        splits = tuple(SPLIT_OF.values())
        return Listing(CLASSES, Binary.name, tuple(sources), splits, True, tuple(skipped), tally.passed_over())


def _sources(root: Path, paths: Iterable[str]) -> tuple[list[Source], list[Skipped]]:
    sources, skipped = [], []
    seen = set()
    for path in paths:
        match = _IMAGE.match(path)
        if not match:
            skipped.append(Skipped(path, "not .../{train,valid}/XR_AREA/patient/study_{positive,negative}/image"))
            continue
        part = match.groupdict()
        relative = f"{part['split']}/{part['area']}/{part['patient']}/{part['study']}/{part['file']}"
        if relative in seen:
            skipped.append(Skipped(path, "listed twice"))
            continue
        seen.add(relative)
        size, changed = size_and_change(root / relative)
        sources.append(
            Source(
                path=relative,
                area=part["area"],
                patient=part["patient"],
                study=f"{part['patient']}/{part['study']}",
                label=(int(part["outcome"] == "positive"),),
                split=SPLIT_OF[part["split"]],
                bytes=size,
                changed=changed,
            )
        )
    return sources, skipped


def _walked(root: Path, tally: Tally) -> Iterator[str]:
    """Posix paths of the image files below `train` and `valid`, sorted; counts what else is there."""
    folders = [folder for folder in SPLIT_OF if (root / folder).is_dir()]
    for entry in sorted(root.iterdir()) if folders else []:
        if entry.is_dir() and entry.name not in SPLIT_OF and not entry.name.startswith("."):
            tally.add("folders beside train and valid", entry.name)
    for file in find_images(root, tally, folders):
        yield file.relative_to(root).as_posix()


def _listed(root: Path, tally: Tally) -> Iterator[str]:
    for folder in SPLIT_OF:
        path = root / f"{folder}_image_paths.csv"
        for row in csv_rows(path, "leave out --from-csv to walk the folders instead"):
            line = row[0].strip().replace("\\", "/")
            if line.rpartition("/")[2].startswith("."):
                tally.add(HIDDEN, line)
            else:
                yield line


def _check_areas(root: Path, sources: list[Source], areas: tuple[str, ...]) -> None:
    known = sorted({source.area for source in sources})
    for area in areas:
        if area not in known:
            raise InputError(f"area {area} is not in {root}; there are: {', '.join(known)}")


def _check_splits(root: Path, sources: list[Source], skipped: list[Skipped]) -> None:
    seen = ""
    if skipped:  # such as the images of a folder with another spelling
        seen = f" ({len(skipped)} files were skipped, such as {skipped[0].file}: {skipped[0].reason})"
    present = {(source.area, source.split) for source in sources}
    for folder, split in SPLIT_OF.items():
        for area in sorted({source.area for source in sources}):
            if (area, split) not in present:
                raise InputError(
                    f"area {area} has no images in {root / folder}{seen}; "
                    "add or rename them, or leave the area out with --areas"
                )


def _check_labels(root: Path, sources: list[Source]) -> None:
    folder_labels = {source.path.rpartition("/")[0]: source.label[0] for source in sources}
    for folder in SPLIT_OF:
        path = root / f"{folder}_labeled_studies.csv"
        if not path.is_file():
            continue
        for row in csv_rows(path, "remove it: the names of the folders hold the same labels"):
            match = _STUDY.match(row[0].strip().replace("\\", "/"))
            if not match or len(row) < 2:
                raise InputError(f"{path} has the line {','.join(row)!r}; expected: study path/,0 or 1")
            study = match["study"]
            if study in folder_labels and _number(row[1]) != folder_labels[study]:
                raise InputError(
                    f"study {study} is {CLASSES[folder_labels[study]]} by its folder's name but has label "
                    f"{row[1].strip()} in {path.name}; correct one of them"
                )


def _number(text: str) -> float | None:
    """The number in a cell, which some programs write as 1.0; None if there is none."""
    try:
        return float(text)
    except ValueError:
        return None
