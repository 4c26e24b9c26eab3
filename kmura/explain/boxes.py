"""Evaluation of maps against bounding boxes of the finding: pointing game and overlap."""

import os
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from kmura.errors import InputError, reason
from kmura.explain.overlays import box_of
from kmura.files import csv_rows

COLUMNS = ("image", "x0", "y0", "x1", "y1")


def read_boxes(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Returns the boxes of each image as fractions of its width and height, read from a CSV with the columns COLUMNS.

    The CSV gives boxes in pixels of the upright images (EXIF orientation applied, as in the records). Image names are
    relative to the folder of the CSV.

    Args:
        path: path of the CSV.

    Returns:
        A dictionary that maps the name of an image to its boxes [n, 4] (x0, y0, x1, y1), in 0..1.

    Raises:
        InputError: The CSV cannot be read, a column is missing, a row is not a valid box, or an image cannot be read.
    """
    path = Path(path)
    head, *lines = csv_rows(path, "give a CSV of boxes like lesions.csv") or [[]]
    rows = [dict(zip(head, line, strict=False)) for line in lines]
    boxes: dict[str, list] = {}
    for number, row in enumerate(rows):
        missing = [name for name in COLUMNS if row.get(name) in (None, "")]
        if missing:
            raise InputError(f"boxes {path}, line {number + 2}: no value for {missing[0]}; give {', '.join(COLUMNS)}")
        try:
            corners = [float(row[name]) for name in COLUMNS[1:]]
        except ValueError as error:
            raise InputError(f"boxes {path}, line {number + 2}: {error}; give coordinates in pixels") from error
        if not (corners[0] < corners[2] and corners[1] < corners[3]):
            raise InputError(f"boxes {path}, line {number + 2}: x0 < x1 and y0 < y1 are required; fix the row")
        try:
            with Image.open(path.parent / row["image"]) as image:
                width, height = image.size
                if image.getexif().get(ExifTags.Base.Orientation, 1) >= 5:  # stored rotated by 90 degrees
                    width, height = height, width
        except OSError as error:
            raise InputError(
                f"boxes {path}: {row['image']} cannot be read ({reason(error)}); place it in the folder of the CSV"
            ) from error
        boxes.setdefault(row["image"], []).append(np.array(corners) / [width, height, width, height])
    return {name: np.array(corners) for name, corners in boxes.items()}


def placed(boxes: np.ndarray, size: int, how: str, sides: tuple[int, int]) -> np.ndarray:
    """Returns boxes [n, 4] in pixels of the model's input image.

    Args:
        boxes: [n, 4], as fractions of width and height, in 0..1.
        size: side of the model's input image in pixels.
        how: `squash` or `pad`, see DataConfig.
        sides: height and width of the stored image in pixels.
    """
    height, width = (size, size)
    if how == "pad":
        longest = max(sides)
        height, width = (max(1, (2 * side * size + longest) // (2 * longest)) for side in sides)
    left, top = (size - width) // 2, (size - height) // 2
    return boxes * [width, height, width, height] + [left, top, left, top]


def hit(heat: np.ndarray, boxes: np.ndarray) -> bool:
    """Pointing game (Zhang et al. 2016): whether the maximum of a map [H, W] lies in any of the boxes [n, 4]."""
    if heat.max() <= 0:
        return False
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    return bool(
        ((boxes[:, 0] <= x + 0.5) & (x + 0.5 < boxes[:, 2]) & (boxes[:, 1] <= y + 0.5) & (y + 0.5 < boxes[:, 3])).any()
    )


def covered(boxes: np.ndarray, shape: tuple[int, int]) -> float:
    """Returns the fraction of an image covered by the boxes [n, 4]: the expected hit rate of random pointing.

    Args:
        boxes: [n, 4] in pixels.
        shape: height and width of the image in pixels.
    """
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    inside = np.zeros(shape, bool)
    for x0, y0, x1, y1 in boxes:
        inside |= (x0 <= x) & (x < x1) & (y0 <= y) & (y < y1)
    return float(inside.mean())


def overlap(heat: np.ndarray, boxes: np.ndarray) -> float:
    """Returns the largest intersection over union of the box of a map (see `box_of`) with any of the boxes [n, 4]."""
    predicted = box_of(heat)
    if predicted is None:
        return 0.0
    low, high = np.maximum(boxes[:, :2], predicted[:2]), np.minimum(boxes[:, 2:], predicted[2:])
    common = np.prod(np.maximum(high - low, 0), axis=1)
    areas = [np.prod(corners[..., 2:] - corners[..., :2], axis=-1) for corners in (boxes, np.array(predicted, float))]
    return float(np.max(common / (areas[0] + areas[1] - common)))
