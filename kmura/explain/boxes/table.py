"""Boxes in a CSV file, with columns named as in kmura's own files, ChestX-ray14 (NIH), VinDr or RSNA pneumonia."""

import ast
import math
import os
from collections.abc import Mapping, Sequence

from kmura.config.suggestions import did_you_mean, nearest
from kmura.errors import InputError
from kmura.explain.boxes.annotations import Annotation, BoxFile, are_fractions, checked_corners
from kmura.files import csv_rows

# what a column holds -> its names in lower case, the first one that a file has is used. The header of NIH's
# BBox_List_2017.csv is `Image Index,Finding Label,Bbox [x,y,w,h]`, which splits at its commas.
_IMAGE = ("image", "image_id", "image index", "filename", "file_name", "patientid", "path")
_CLASS = ("class", "class_name", "finding label", "finding_categories", "lesion_type", "label", "kind")
_CORNERS = (("x0", "x_min", "xmin"), ("y0", "y_min", "ymin"), ("x1", "x_max", "xmax"), ("y1", "y_max", "ymax"))
_SIDES = (("bbox [x", "x"), ("y",), ("w", "width"), ("h]", "h", "height"))
_SIZE = (("image_width", "width"), ("image_height", "height"))
_FORMS = "image,x0,y0,x1,y1; NIH's Image Index,Bbox [x,y,w,h]; VinDr's image_id,x_min,y_min,x_max,y_max"

# columns by which the tables of a data set are recognised -> its name, and the size of all of its images
_SETS = {
    ("image index", "bbox [x"): ("NIH", (1024.0, 1024.0)),  # ChestX-ray14: boxes are given in the published PNGs
    ("patientid", "target"): ("RSNA", (1024.0, 1024.0)),  # RSNA Pneumonia Detection Challenge
    ("image_id", "x_min"): ("VinDr", None),
    ("image_id", "xmin"): ("VinDr", None),
}


def table_boxes(path: str | os.PathLike) -> BoxFile:
    """Returns the boxes of a CSV file; a row without coordinates is an image without a box.

    Corners are columns x0, y0, x1, y1 (or x_min, ...), or x, y, width, height of the box. A column of classes is
    optional. Beside corners, the columns width and height are the size of the original image.

    Args:
        path: the file.

    Raises:
        InputError: the file cannot be read, a column is missing, or a row is not a valid box.
    """
    head, *rows = csv_rows(path, "give a CSV of boxes like lesions.csv") or [[]]
    head = [name.strip().lower() for name in head]
    image = _column(head, _IMAGE)
    corners = [_column(head, names) for names in _CORNERS]
    sides = [_column(head, names) for names in _SIDES]
    by_sides = None in corners and None not in sides
    places = sides if by_sides else corners
    if image is None or None in places:
        raise InputError(_missing(path, head, image, corners))
    kind, size_of_all = next((found for names, found in _SETS.items() if set(names) <= set(head)), ("kmura", None))
    label = _column(head, _CLASS)
    size = [_column(head, names) for names in _SIZE] if not by_sides else [None, None]
    found, sizes = [], {}
    for number, row in enumerate(rows, 2):
        where = f"line {number}"
        cells = [row[place].strip() if place < len(row) else "" for place in places]
        name = row[image].strip() if image < len(row) else ""
        if not name:
            raise InputError(f"boxes {path}, {where}: no value for {head[image]}; name the image or remove the row")
        if None not in size and max(size) < len(row):
            sizes |= _stated_size(path, where, name, [row[place].strip() for place in size])
        if all(cell.lower() in ("", "nan") for cell in cells):
            continue
        values = [_number(path, where, head[place], cell) for place, cell in zip(places, cells, strict=True)]
        if by_sides:
            values[2:] = values[0] + values[2], values[1] + values[3]
        box = checked_corners(path, where, values)
        text = row[label].strip() if label is not None and label < len(row) else ""
        found += [Annotation(name, box, one, where) for one in _class_names(text)]
    return BoxFile(str(path), f"CSV ({kind})", tuple(found), are_fractions(found), sizes, size_of_all)


def table_sizes(path: str | os.PathLike) -> dict[str, tuple[float, float]]:
    """Returns the widths and heights of original images in pixels from a CSV, by every name that it gives an image.

    Raises:
        InputError: the file cannot be read, a column is missing, or a size is not positive.
    """
    head, *rows = csv_rows(path, "give a CSV with the columns image, width, height") or [[]]
    head = [name.strip().lower() for name in head]
    names = [place for place, name in enumerate(head) if name in _IMAGE or name in _NAMES]
    sides = [_column(head, options) for options in _ORIGINAL]
    if not names or None in sides:
        raise InputError(
            f"sizes {path} has the columns {', '.join(head) or 'none'}; the columns image, width and height (or "
            "original_name, orig_w, orig_h) are needed"
        )
    sizes = {}
    for number, row in enumerate(rows, 2):
        if len(row) <= max(sides):
            raise InputError(f"sizes {path}, line {number}: a cell is missing; fix or remove the row")
        for place in names:
            if place < len(row) and row[place].strip():
                sizes |= _stated_size(path, f"line {number}", row[place].strip(), [row[side].strip() for side in sides])
    return sizes


_NAMES = ("original_name", "saved_name", "name", "original", "file")  # of images, in tables of sizes only
_ORIGINAL = (
    ("orig_w", "original_width", "orig_width", "width", "columns", "w"),
    ("orig_h", "original_height", "orig_height", "height", "rows", "h"),
)


def _column(head: Sequence[str], names: Sequence[str]) -> int | None:
    return next((head.index(name) for name in names if name in head), None)


def _missing(path, head: Sequence[str], image: int | None, corners: Sequence[int | None]) -> str:
    """The message for columns that are missing, with names that were probably meant."""
    needed = {"image": image} | dict(zip(("x0", "y0", "x1", "y1"), corners, strict=True))
    missing = [name for name, place in needed.items() if place is None]
    near = [name for wanted in missing for name in nearest(wanted, [name for name in head if name])]
    meant = did_you_mean(dict.fromkeys(near)).replace("; did you mean", "; rename").rstrip("?") if near else ""
    given = ", ".join(name for name in head if name) or "none"
    return f"boxes {path} has no column {', '.join(missing)}{meant}; it has {given}; known columns are {_FORMS}"


def _number(path, where: str, column: str, cell: str) -> float:
    try:
        if not cell:
            raise ValueError("no value")
        return float(cell)
    except ValueError as error:
        raise InputError(
            f"boxes {path}, {where}: {error} for {column.strip('[]')}; give all four coordinates, or none for an image "
            "without a box"
        ) from error


def _stated_size(path, where: str, name: str, cells: Sequence[str]) -> Mapping[str, tuple[float, float]]:
    try:
        width, height = map(float, cells)
        if not (0 < width < math.inf and 0 < height < math.inf):
            raise ValueError
    except ValueError as error:
        raise InputError(
            f"{path}, {where}: the size of {name} is {' x '.join(cells)}; give its width and height in pixels"
        ) from error
    return {name: (width, height)}


def _class_names(text: str) -> list[str]:
    """The classes of a cell, several if it is a Python list as in VinDr-Mammo."""
    if text.startswith("[") and text.endswith("]"):
        try:
            return [str(name) for name in ast.literal_eval(text)] or [""]
        except (ValueError, SyntaxError, TypeError):
            pass
    return [text]
