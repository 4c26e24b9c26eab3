"""The boxes of the images of a split, as fractions of their sides."""

import collections
import dataclasses
import os
from collections.abc import Mapping, Sequence

import numpy as np

from kmura.config.suggestions import did_you_mean, nearest
from kmura.errors import InputError, check_choice
from kmura.explain.boxes.annotations import SLACK, Annotation, BoxFile
from kmura.explain.boxes.matching import Names
from kmura.explain.boxes.reading import read_boxes
from kmura.explain.boxes.sizes import original_sizes

POSITIVE, ALL_IMAGES = "positive", "all"
BOXES_OF = (POSITIVE, ALL_IMAGES)
_SHOWN = 3  # examples in a note


@dataclasses.dataclass(frozen=True)
class BoxOptions:
    """Which boxes are read, and whose maps they are compared with.

    Attributes:
        path: of the file, see `kmura.explain.boxes.reading.read_boxes`.
        sizes: a CSV of original sizes or a folder of the source images, see `original_sizes`; None for none.
        of: `positive` uses images that have the finding (boxes of a lesion), `all` uses every image with a box whatever
            its label (boxes of anatomy).
        classes: the classes of the file to use, each as `NAME`, or `NAME=CLASS` where the model's class has another
            name; empty uses all.
    """

    path: str | os.PathLike
    sizes: str | os.PathLike | None = None
    of: str = POSITIVE
    classes: Sequence[str] = ()

    def read(self) -> tuple[BoxFile, dict[str, str]]:
        """Returns the boxes of the chosen classes, and the model's class by class of the file where they differ.

        Raises:
            InputError: the file is invalid, or a chosen class is not in it.
        """
        check_choice("--boxes-of", self.of, BOXES_OF)
        boxes = read_boxes(self.path)
        chosen, renamed = {}, {}
        for text in self.classes:
            name, equals, other = text.partition("=") if text not in boxes.names else (text, "", "")
            name = name.strip()
            if name not in boxes.names:
                known = ", ".join(boxes.names) or "none, since its boxes have no classes"
                raise InputError(
                    f"boxes {self.path} have no class {name!r}{did_you_mean(nearest(name, boxes.names))}"
                    f"{'' if nearest(name, boxes.names) else ';'} classes of the file: {known}"
                )
            chosen[name] = None
            if equals:
                renamed[name] = other.strip()
        if chosen:
            kept = tuple(annotation for annotation in boxes.annotations if annotation.name in chosen)
            boxes = dataclasses.replace(boxes, annotations=kept)
        return boxes, renamed


def box_options(path, sizes=None, of: str = POSITIVE, classes: Sequence[str] = ()) -> BoxOptions | None:
    """Returns the options of boxes; None without a file of boxes. Arguments are the attributes of BoxOptions.

    Raises:
        InputError: options of boxes without a file.
    """
    if path is not None:
        return BoxOptions(path, sizes, of, tuple(classes))
    given = {"--box-sizes": sizes, "--boxes-of": of != POSITIVE, "--box-classes": classes}
    for flag, value in given.items():
        if value:
            raise InputError(f"{flag} needs a file of boxes; add --boxes FILE or omit {flag}")
    return None


@dataclasses.dataclass(frozen=True)
class ImageBoxes:
    """The boxes of one image.

    Attributes:
        row: of the split.
        corners: class of the file ("" if it gives none) -> boxes [n, 4] (x0, y0, x1, y1) as fractions of width and
            height, in 0..1.
    """

    row: int
    corners: dict[str, np.ndarray]


def split_boxes(
    boxes: BoxFile,
    split_of: Mapping[str, str],
    rows: Mapping[str, int],
    stored: Mapping[str, tuple[int, int]],
    max_side: int | None,
    sizes: str | os.PathLike | None = None,
) -> tuple[list[ImageBoxes], list[str]]:
    """Returns the images of a split that have a box, in the order of the split, and sentences about what was read.

    Args:
        boxes: of the file.
        split_of: path of every record of all splits and areas -> its split.
        rows: path of the records of the split -> row.
        stored: path of the records of the split -> height and width of the stored image in pixels.
        max_side: see `original_sizes`.
        sizes: see `BoxOptions`.

    Raises:
        InputError: a name fits several records, or several names fit one; no image of the split has a box; a size is
            unknown; a box is outside its image.
    """
    of_image: dict[str, list[Annotation]] = collections.defaultdict(list)
    for annotation in boxes.annotations:
        of_image[annotation.image].append(annotation)
    records = Names({path: path for path in split_of}, "records")
    name_of: dict[str, str] = {}
    unknown, elsewhere = [], collections.Counter()
    for name in of_image:
        try:
            path = records.get(name)
        except InputError as error:
            raise InputError(f"boxes {boxes.path}: {error}") from error
        if path is None:
            unknown.append(name)
        elif name_of.setdefault(path, name) != name:
            raise InputError(
                f"boxes {boxes.path}: the images {name_of[path]} and {name} both fit the record {path}; give the names "
                "with their folders"
            )
        elif path not in rows:
            elsewhere[split_of[path]] += 1
    here = {path: name_of[path] for path in rows if path in name_of}
    notes = _found(boxes, of_image, here, elsewhere, unknown)
    if not here:
        raise InputError(f"boxes {boxes.path}: none of the boxes belongs to an image of this split ({notes[0]})")
    if boxes.fractions:
        sizes_of = dict.fromkeys(here, (1.0, 1.0))
        notes.append("coordinates are fractions of the sides of the images")
    else:
        sizes_of, sentence = original_sizes(boxes, here, stored, max_side, sizes)
        notes.append(f"coordinates are pixels; {sentence}")
    if boxes.polygons:
        notes.append(f"{boxes.polygons} polygons count with their bounding boxes")
    images, clipped = [], 0
    for path, name in here.items():
        corners: dict[str, list] = collections.defaultdict(list)
        for annotation in of_image[name]:
            inside, cut = _inside(boxes, annotation, sizes_of[path])
            corners[annotation.name].append(inside)
            clipped += cut
        images.append(ImageBoxes(rows[path], {key: np.array(corners[key]) for key in sorted(corners)}))
    if clipped:
        notes.append(f"{clipped} boxes that extend up to {SLACK:.0%} beyond their images were clipped")
    return images, notes


def _found(boxes: BoxFile, of_image, here, elsewhere: Mapping[str, int], unknown: list[str]) -> list[str]:
    """What became of the images of the file, in words."""
    used = sum(len(of_image[name]) for name in here.values())
    text = f"{boxes.format}, {len(boxes.annotations)} boxes of {len(of_image)} images"
    text += f": {len(here)} images ({used} boxes) are in this split"
    text += "".join(f", {number} are in {split}" for split, number in sorted(elsewhere.items()))
    if unknown:
        more = ", ..." if len(unknown) > _SHOWN else ""
        text += f", {len(unknown)} are not in the records ({', '.join(unknown[:_SHOWN])}{more})"
    return [text]


def _inside(boxes: BoxFile, annotation: Annotation, size: tuple[float, float]) -> tuple[np.ndarray, bool]:
    """The corners as fractions, clipped to the image, and whether they were clipped.

    Raises:
        InputError: the box extends beyond the image by more than rounding, or lies outside.
    """
    sides = np.array([*size, *size])
    corners = np.array(annotation.corners) / sides
    slack = np.zeros(4) + SLACK if boxes.fractions else np.maximum(SLACK, 1 / sides)
    inside = np.clip(corners, 0, 1)
    empty = inside[0] >= inside[2] or inside[1] >= inside[3]
    if empty or (corners < -slack).any() or (corners > 1 + slack).any():
        x0, y0, x1, y1 = annotation.corners
        where = "1 x 1 (fractions)" if boxes.fractions else f"{size[0]:g} x {size[1]:g} pixels"
        fix = "fix the box" if boxes.fractions else "fix it, or give the sizes that the boxes refer to with --box-sizes"
        raise InputError(
            f"boxes {boxes.path}, {annotation.where}: the box from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}) is outside of "
            f"{annotation.image}, which is {where}; {fix}"
        )
    return inside, bool((inside != corners).any())
