"""The images that a prediction is asked for, and which of them belong to one study."""

import collections
import csv
import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from kmura.errors import InputError, check_choice, reason
from kmura.records import dicom
from kmura.records.images import SUFFIXES
from kmura.records.layouts.base import visible_files

GROUPS = ("auto", "folder", "none")
_MURA_STUDY = re.compile(r"(?:(XR_\w+)/)?(patient[^/]+/study[^/]+)/[^/]+$")


@dataclasses.dataclass(frozen=True)
class Image:
    """One image file.

    Attributes:
        path: where it is.
        name: what it is called in tables: its path as given.
        place: path of its map among others, relative: below the folder that was given, else the file's name.
        study: which it belongs to; "" where studies are not known.
    """

    path: Path
    name: str
    place: Path
    study: str = ""


def list_images(sources: Iterable[str | os.PathLike], group: str = "auto") -> list[Image]:
    """The images in files, folders (searched through, hidden files left out) and CSVs, each file once.

    A CSV has the columns `image` and, if it likes, `study`; or it is a bare list of paths, as MURA ships. Its paths are
    relative to its folder, or to the folder above (MURA's begin with `MURA-v1.1/`).

    Args:
        sources: image files, folders, CSV files.
        group: `auto` takes a CSV's studies, and MURA's where a path has its form (patient/study); `folder` makes each
            folder a study; `none` none.

    Raises:
        InputError: a folder without images, a CSV that cannot be read or has no images, an unknown `group`.
    """
    check_choice("group", group, GROUPS)
    found: dict[Path, Image] = {}
    for source in map(Path, sources):
        if source.is_dir():
            images = list(_in_folder(source))
            if not images:
                raise InputError(f"{source} holds no image files ({', '.join(sorted(SUFFIXES | dicom.SUFFIXES))})")
        elif source.suffix.lower() == ".csv":
            images = list(_in_csv(source))
            if not images:
                raise InputError(f"{source} lists no images; give a column image")
        else:
            images = [Image(source, shown(source), Path(source.name))]
        for image in images:
            found.setdefault(Path(os.path.abspath(image.path)), image)
    return _grouped(found, group)


def shown(path: str | os.PathLike) -> str:
    """A path as text that any file can hold: bytes that are no UTF-8 become escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _in_folder(root: Path) -> Iterator[Image]:
    for path in visible_files(root):
        suffix = path.suffix.lower()
        if suffix in SUFFIXES | dicom.SUFFIXES or not suffix and _is_dicom(path):
            yield Image(path, shown(path), path.relative_to(root))


def _is_dicom(path: Path) -> bool:
    """Whether a file without a suffix, as archives name them, is DICOM."""
    try:
        with open(path, "rb") as file:
            return dicom.is_dicom(file.read(dicom.PREAMBLE))
    except OSError:
        return False


def _in_csv(source: Path) -> Iterator[Image]:
    try:
        with open(source, newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        text = reason(error) if isinstance(error, OSError) else error
        raise InputError(f"{source} cannot be read: {text}; give a CSV in UTF-8 with a column image") from error
    if not rows:
        return
    head = [cell.strip().lower() for cell in rows[0]]
    if "image" in head:
        rows = rows[1:]
    elif Path(head[0]).suffix in SUFFIXES | dicom.SUFFIXES:
        head = ["image"]  # a bare list
    else:
        raise InputError(f"{source} has no column image, but {', '.join(head)}; name the column of the paths image")
    at, study_at = head.index("image"), head.index("study") if "study" in head else None
    for row in rows:
        if len(row) > at and row[at].strip():
            path = Path(row[at].strip().replace("\\", "/"))
            study = row[study_at].strip() if study_at is not None and len(row) > study_at else ""
            here, above = source.parent / path, source.parent.absolute().parent / path
            there = above if not here.exists() and above.exists() else here
            place = Path(*(part for part in path.parts if part not in ("..", path.anchor)))
            yield Image(there, shown(path), place, study)


def _grouped(found: dict[Path, Image], group: str) -> list[Image]:
    """The images with their studies; two folders whose studies would be called the same go by their whole paths."""
    if group == "none":
        return [dataclasses.replace(image, study="") for image in found.values()]
    if group == "folder":
        return [dataclasses.replace(image, study=shown(image.path.parent)) for image in found.values()]
    names: dict[Path, str] = {}
    for path, image in found.items():
        match = _MURA_STUDY.search(path.as_posix())
        if match and not image.study:
            names[path.parent] = "/".join(part for part in match.groups() if part)
    often = collections.Counter(names.values())
    names = {folder: name if often[name] == 1 else shown(folder) for folder, name in names.items()}
    return [
        image if image.study else dataclasses.replace(image, study=shown(names.get(path.parent, "")))
        for path, image in found.items()
    ]


def map_files(images: Sequence[Image], folder: Path) -> list[Path]:
    """A PNG file in `folder` for the map of each image, no two the same.

    Raises:
        InputError: one of them is an image that is to be read.
    """
    taken: set[Path] = set()
    sources = {image.path.resolve() for image in images}
    files = []
    for image in images:
        place = (
            image.place if image.place.suffix.lower() == ".png" else image.place.with_name(f"{image.place.name}.png")
        )
        number, file = 1, folder / place
        while file in taken:
            number += 1
            file = folder / place.with_name(f"{place.stem}-{number}.png")
        if file.resolve() in sources:
            raise InputError(f"the map of {image.name} would replace the image {file}; choose another folder for maps")
        taken.add(file)
        files.append(file)
    return files
