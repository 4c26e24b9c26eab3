"""Boxes in YOLO text files: one file per image, `class cx cy w h` or `class x1 y1 x2 y2 x3 y3 ...` per line.

Coordinates are fractions of the sides of the image. Names of the classes come from `data.yaml` or `classes.txt`.
"""

import os
from pathlib import Path

from kmura.errors import InputError, in_brief, unreadable
from kmura.explain.boxes.annotations import SLACK, Annotation, BoxFile, bounding, checked_corners
from kmura.records.images import SUFFIXES

_YAML = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_TEXT = ("classes.txt", "obj.names", "classes.names")
_LEVELS = 3  # folders upwards in which the names are looked for: DATA/train/labels
_LABELS = "labels"  # folder of the text files beside that of the images


def yolo_boxes(path: str | os.PathLike) -> BoxFile:
    """Returns the boxes of a folder of YOLO text files, of one such file, or of the data set of a `data.yaml`.

    Polygons count with their bounding boxes. An empty file is an image without boxes. Files of class names, READMEs and
    lists of images are passed over. Classes without names are named by their numbers.

    Args:
        path: the folder, which is searched with its subfolders; the text file; or the `data.yaml`.

    Raises:
        InputError: nothing readable, a line that is no box, coordinates outside of 0..1, or a class without a name in
            the file of names.
    """
    path = Path(path)
    root = path if path.is_dir() else path.parent
    is_text = path.suffix.lower() == ".txt"
    files = [path] if is_text else [file for file in sorted(root.rglob("*.txt")) if not _is_passed_over(root, file)]
    if not files:
        raise InputError(f"boxes {path}: there are no text files of YOLO in {root}; give the folder that holds them")
    named_in, names = _class_names(path if not path.is_dir() and not is_text else root)
    found, polygons = [], 0
    for file in files:
        rows = [(number, line.split()) for number, line in enumerate(_text(file).splitlines(), 1) if line.strip()]
        if rows and not is_text and all(_is_image(row) for _, row in rows):
            continue  # the list of images of a split
        relative = file.relative_to(root)
        image = Path(*(part for part in relative.parent.parts if part != _LABELS), relative.stem).as_posix()
        for number, row in rows:
            where = f"{relative.as_posix()}, line {number}"
            corners, name, polygon = _box(path, where, row, named_in, names)
            found.append(Annotation(image, corners, name, where))
            polygons += polygon
    return BoxFile(str(path), "YOLO", tuple(found), True, polygons=polygons)


def _box(path: Path, where: str, row: list[str], named_in: str, names: dict[int, str]):
    """Returns the corners of the box in a line, the name of its class, and whether the line is a polygon."""
    try:
        number, values = int(row[0]), [float(value) for value in row[1:]]
    except ValueError as error:
        raise InputError(
            f"boxes {path}, {where}: {in_brief(error)}; a line of YOLO is: class cx cy w h, or class x1 y1 x2 y2 ..."
        ) from error
    polygon = len(values) >= 6 and len(values) % 2 == 0
    if len(values) != 4 and not polygon:
        raise InputError(
            f"boxes {path}, {where}: {len(values)} numbers follow the class; a box has 4 (cx cy w h), a polygon 6 or "
            "more, two per point; remove confidences"
        )
    if polygon:
        corners = bounding(values)
    else:
        x, y, width, height = values
        corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    corners = checked_corners(path, where, corners)
    if min(corners) < -SLACK or max(corners) > 1 + SLACK:
        raise InputError(
            f"boxes {path}, {where}: the box from ({corners[0]:g}, {corners[1]:g}) to ({corners[2]:g}, {corners[3]:g}) "
            "is outside the image; coordinates of YOLO are fractions from 0 to 1; divide pixels by the sides of the "
            "image"
        )
    if named_in and number not in names:
        raise InputError(
            f"boxes {path}, {where}: class {number} has no name in {named_in}, which has {len(names)} "
            f"({', '.join(names.values())}); fix the number or add the name"
        )
    return corners, names.get(number, str(number)), polygon


def _class_names(start: Path) -> tuple[str, dict[int, str]]:
    """Returns the file with the names of the classes and the names by number; "" and no names if there is none."""
    if not start.is_dir():
        return str(start), _of_yaml(start)
    folders = [start, *start.absolute().parents][:_LEVELS]
    for folder in folders:
        for name in _YAML:
            if (folder / name).is_file():
                return str(folder / name), _of_yaml(folder / name)
        for name in _TEXT:
            if (folder / name).is_file():
                lines = [line.strip() for line in _text(folder / name).splitlines()]
                return str(folder / name), {number: line for number, line in enumerate(lines) if line}
    return "", {}


def _of_yaml(file: Path) -> dict[int, str]:
    try:
        import yaml
    except ImportError as error:
        raise InputError(
            f"{file} needs PyYAML; run pip install pyyaml, or write the names of the classes to classes.txt, one per "
            "line"
        ) from error
    try:
        names = yaml.safe_load(_text(file))["names"]
        pairs = names.items() if isinstance(names, dict) else enumerate(names)
        return {int(number): str(name) for number, name in pairs}
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file} has no list of class names under names ({in_brief(error)}); add it") from error


def _is_passed_over(root: Path, file: Path) -> bool:
    parts = file.relative_to(root).parts
    name = file.name.lower()
    return name in _TEXT or name.startswith("readme") or any(part.startswith(".") for part in parts)


def _is_image(row: list[str]) -> bool:
    return Path(row[-1]).suffix.lower() in SUFFIXES


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise unreadable(file, error) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
