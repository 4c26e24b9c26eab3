"""Maps against boxes that say where the finding is: pointing game and overlap."""

import csv
import os
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from kmura.errors import InputError, reason
from kmura.explain.overlays import box_of

COLUMNS = ("image", "x0", "y0", "x1", "y1")


def read_boxes(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Image -> its boxes [n, 4] (x0, y0, x1, y1) as shares of its width and height, from a CSV of COLUMNS.

    Boxes are in pixels of the upright pictures (turned as their EXIF orientation says, as in the records); the files
    lie beside the CSV under the names that it gives.

    Raises:
        InputError: no such file, a column missing, a row that is no box, an image that is not there.
    """
    path = Path(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"boxes {path} cannot be read: {reason(error)}; give a CSV as lesions.csv") from error
    boxes: dict[str, list] = {}
    for number, row in enumerate(rows):
        missing = [name for name in COLUMNS if row.get(name) in (None, "")]
        if missing:
            raise InputError(f"boxes {path}, line {number + 2}: no {missing[0]}; columns are {', '.join(COLUMNS)}")
        try:
            corners = [float(row[name]) for name in COLUMNS[1:]]
        except ValueError as error:
            raise InputError(f"boxes {path}, line {number + 2}: {error}; give pixels") from error
        if not (corners[0] < corners[2] and corners[1] < corners[3]):
            raise InputError(f"boxes {path}, line {number + 2}: x0 < x1 and y0 < y1 are needed")
        try:
            with Image.open(path.parent / row["image"]) as image:
                width, height = image.size
                if image.getexif().get(ExifTags.Base.Orientation, 1) >= 5:  # lies on its side
                    width, height = height, width
        except OSError as error:
            raise InputError(f"boxes {path}: {row['image']} cannot be read ({reason(error)}); put it beside") from error
        boxes.setdefault(row["image"], []).append(np.array(corners) / [width, height, width, height])
    return {name: np.array(found) for name, found in boxes.items()}


def placed(boxes: np.ndarray, size: int, how: str, sides: tuple[int, int]) -> np.ndarray:
    """Boxes [n, 4] in pixels of the model's image.

    Args:
        boxes: [n, 4] as shares of width and height.
        size: side of the model's image.
        how: `squash` or `pad`, see DataConfig.
        sides: height and width of the stored image.
    """
    height, width = (size, size)
    if how == "pad":
        longest = max(sides)
        height, width = (max(1, (2 * side * size + longest) // (2 * longest)) for side in sides)
    left, top = (size - width) // 2, (size - height) // 2
    return boxes * [width, height, width, height] + [left, top, left, top]


def hit(heat: np.ndarray, boxes: np.ndarray) -> bool:
    """Pointing game (Zhang et al. 2016): whether the hottest pixel of a map [H, W] lies in one of the boxes [n, 4]."""
    if heat.max() <= 0:
        return False
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    return bool(
        ((boxes[:, 0] <= x + 0.5) & (x + 0.5 < boxes[:, 2]) & (boxes[:, 1] <= y + 0.5) & (y + 0.5 < boxes[:, 3])).any()
    )


def covered(boxes: np.ndarray, shape: tuple[int, int]) -> float:
    """The share of an image of this height and width that the boxes cover: what pointing blindly would hit."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    inside = np.zeros(shape, bool)
    for x0, y0, x1, y1 in boxes:
        inside |= (x0 <= x) & (x < x1) & (y0 <= y) & (y < y1)
    return float(inside.mean())


def overlap(heat: np.ndarray, boxes: np.ndarray) -> float:
    """Intersection over union of the box around the map above half its maximum with the best of the boxes [n, 4]."""
    found = box_of(heat)
    if found is None:
        return 0.0
    low, high = np.maximum(boxes[:, :2], found[:2]), np.minimum(boxes[:, 2:], found[2:])
    common = np.prod(np.maximum(high - low, 0), axis=1)
    areas = [np.prod(corners[..., 2:] - corners[..., :2], axis=-1) for corners in (boxes, np.array(found, float))]
    return float(np.max(common / (areas[0] + areas[1] - common)))
