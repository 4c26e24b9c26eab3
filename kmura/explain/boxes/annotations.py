"""What a file of boxes holds, whatever its format is."""

import dataclasses
import math
from collections.abc import Sequence

from kmura.errors import InputError

SLACK = 0.01  # of a side: boxes that extend this far beyond the image are clipped, as rounding of tools needs


@dataclasses.dataclass(frozen=True)
class Annotation:
    """One box of a file.

    Attributes:
        image: name of the image as the file gives it.
        corners: x0, y0, x1, y1 of the upright image, in pixels of the original image or as fractions of its sides.
        name: name of the class; "" if the file gives none.
        where: where the box stands in the file, for messages: `line 3`.
    """

    image: str
    corners: tuple[float, float, float, float]
    name: str
    where: str


@dataclasses.dataclass(frozen=True)
class BoxFile:
    """The content of a file of boxes.

    Attributes:
        path: of the file, or of the folder of a YOLO data set.
        format: `COCO`, `YOLO`, or `CSV` with the origin of its columns.
        annotations: the boxes, in the order of the file.
        fractions: whether coordinates are fractions of the sides of the image instead of pixels.
        sizes: image -> width and height of the original image in pixels, as far as the file states them.
        size_of_all: the same of every image, where the data set of the format defines it; otherwise None.
        polygons: number of annotations that are the bounding box of a polygon.
    """

    path: str
    format: str
    annotations: tuple[Annotation, ...]
    fractions: bool
    sizes: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    size_of_all: tuple[float, float] | None = None
    polygons: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The names of classes in the file, sorted, without "" of boxes that have none."""
        return tuple(sorted({annotation.name for annotation in self.annotations} - {""}))


def checked_corners(path, where: str, corners: Sequence[float]) -> tuple[float, float, float, float]:
    """Returns the corners x0, y0, x1, y1 of a box as floats.

    Raises:
        InputError: a corner is not finite, or the box is empty or reversed.
    """
    x0, y0, x1, y1 = map(float, corners)
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        raise InputError(f"boxes {path}, {where}: a coordinate is not a finite number; fix or remove the box")
    if not (x0 < x1 and y0 < y1):
        raise InputError(
            f"boxes {path}, {where}: the box from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}) is empty; x0 < x1 and y0 < y1 "
            "(a positive width and height) are required; fix or remove the box"
        )
    return x0, y0, x1, y1


def bounding(points: Sequence[float]) -> tuple[float, float, float, float]:
    """Returns the bounding box of a polygon x0, y0, x1, y1, x2, y2, ..."""
    return min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])


def are_fractions(annotations: Sequence[Annotation]) -> bool:
    """Returns whether the coordinates of a file are fractions: none is larger than 1, up to rounding.

    In pixels, all boxes would lie within the first pixel of their images.
    """
    return bool(annotations) and all(abs(value) <= 1 + SLACK for one in annotations for value in one.corners)
