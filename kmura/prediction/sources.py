"""The input images of a prediction and their studies."""

import collections
import dataclasses
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from kmura.errors import InputError, check_choice
from kmura.files import csv_rows, name_within_limit
from kmura.records import dicom
from kmura.records.image_files import TWICE, Tally, find_images, normalised, passed_over_note
from kmura.records.images import SUFFIXES

GROUPS = ("auto", "folder", "none")
_MURA_STUDY = re.compile(r"(?:(XR_\w+)/)?(patient[^/]+/study[^/]+)/[^/]+$")


@dataclasses.dataclass(frozen=True)
class Image:
    """One image file.

    Attributes:
        path: path of the file.
        name: name in tables: the path as given.
        place: relative path of its map: the path below the given folder, else the name of the file.
        study: name of its study; "" if it is not known.
    """

    path: Path
    name: str
    place: Path
    study: str = ""


def list_images(sources: Iterable[str | os.PathLike], group: str = "auto", tally: Tally | None = None) -> list[Image]:
    """Returns the images in files, folders and CSVs, without duplicates.

    Folders are searched recursively, see `find_images`. A CSV has the column `image` and optionally `study` and
    `patient` (a study is then known by both, as `patient/study`), or is a plain list of paths like those of MURA. Its
    paths are relative to its folder or to the parent of its folder (the paths of MURA begin with `MURA-v1.1/`).

    Args:
        sources: image files, folders and CSV files.
        group: `auto` uses the studies of a CSV, and the studies of MURA if a path has its form (patient/study);
            `folder` makes each folder a study; `none` defines no studies.
        tally: counts what is passed over in folders, and what is given twice.

    Raises:
        InputError: A folder contains no images, a CSV cannot be read or lists no images, or `group` is unknown.
    """
    check_choice("group", group, GROUPS)
    tally = Tally() if tally is None else tally
    by_path: dict[Path, Image] = {}
    taken: set[str] = set()
    for source in map(Path, sources):
        if source.is_dir():
            inside = Tally()
            images = [Image(path, shown(path), path.relative_to(source)) for path in find_images(source, inside)]
            for item in inside.passed_over():
                tally.add(item.kind, shown(source / item.examples[0]), item.number)
            if not images:
                note = passed_over_note(inside.passed_over()) or "it is empty"
                raise InputError(f"{source} contains no image files ({note}); give another folder")
        elif source.suffix.lower() == ".csv":
            images = list(_in_csv(source, tally))
            if not images:
                raise InputError(f"{source} lists no images; add their paths in a column image")
        else:
            images = [Image(source, shown(source), Path(source.name))]
        for image in images:
            real = os.path.realpath(image.path)
            if real in taken:
                tally.add(TWICE, image.name)
                continue
            taken.add(real)
            by_path[Path(os.path.abspath(image.path))] = image
    return _grouped(by_path, group)


def shown(path: str | os.PathLike) -> str:
    """Returns a path as valid UTF-8 text; bytes that are not UTF-8 become escape sequences."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _in_csv(source: Path, tally: Tally) -> Iterator[Image]:
    rows = csv_rows(source, "give a CSV in UTF-8 with a column image")
    if not rows:
        return
    head = [cell.strip().lower() for cell in rows[0]]
    if "image" in head:
        rows = rows[1:]
    elif Path(head[0]).suffix in SUFFIXES | dicom.SUFFIXES or _located(source, Path(rows[0][0].strip())).is_file():
        head = ["image"]  # a list without a header
    else:
        raise InputError(f"{source} has no column image, but {', '.join(head)}; name the column with the paths image")
    at = head.index("image")

    def cell(row: list[str], column: str) -> str:
        place = head.index(column) if column in head else len(row)
        return normalised(row[place].strip()) if len(row) > place else ""

    for number, row in enumerate(rows, 1):
        if len(row) <= at or not row[at].strip():
            tally.add("rows of a CSV without an image", f"{shown(source)}, row {number}")
        else:
            path = Path(row[at].strip().replace("\\", "/"))
            study, patient = cell(row, "study"), cell(row, "patient")
            if study and patient:  # two patients may have a study of the same name
                study = f"{patient}/{study}"
            place = Path(*(part for part in path.parts if part not in ("..", path.anchor)))
            yield Image(_located(source, path), shown(path), place, study)


def _located(source: Path, path: Path) -> Path:
    """Returns the file that a CSV names: beside it or one level above, in the Unicode form of the file system."""
    forms = [Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD")]
    places = [folder / form for form in (path, *forms) for folder in (source.parent, source.parent.absolute().parent)]
    return next((place for place in places if place.exists()), places[0])


def _grouped(by_path: dict[Path, Image], group: str) -> list[Image]:
    """Returns the images with their studies; folders with the same study name are distinguished by their full paths."""
    if group == "none":
        return [dataclasses.replace(image, study="") for image in by_path.values()]
    if group == "folder":
        return [dataclasses.replace(image, study=shown(image.path.parent)) for image in by_path.values()]
    names: dict[Path, str] = {}
    for path, image in by_path.items():
        match = _MURA_STUDY.search(path.as_posix())
        if match and not image.study:
            names[path.parent] = "/".join(part for part in match.groups() if part)
    often = collections.Counter(names.values())
    names = {folder: name if often[name] == 1 else shown(folder) for folder, name in names.items()}
    return [
        image if image.study else dataclasses.replace(image, study=shown(names.get(path.parent, "")))
        for path, image in by_path.items()
    ]


def map_files(images: Sequence[Image], folder: Path) -> list[Path]:
    """Returns a unique PNG path in `folder` for the map of each image; names too long for a file are shortened.

    Raises:
        InputError: One of the paths is an input image.
    """
    taken: set[Path] = set()
    sources = {image.path.resolve() for image in images}
    files = []
    for image in images:
        place = image.place
        is_png = place.suffix.lower() == ".png"
        stem, end = (place.stem, place.suffix) if is_png else (place.name, ".png")
        number, file = 1, folder / place.with_name(name_within_limit(stem, end))
        while file in taken:
            number += 1
            file = folder / place.with_name(name_within_limit(Path(stem).stem, f"-{number}.png"))
        if file.resolve() in sources:
            raise InputError(
                f"the map of {image.name} would replace the image {file}; choose another folder for the maps"
            )
        taken.add(file)
        files.append(file)
    return files
