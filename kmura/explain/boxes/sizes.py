"""Sizes of original images, by which boxes in pixels become fractions: from files, images or the records."""

import collections
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError

from kmura.errors import InputError
from kmura.explain.boxes.annotations import BoxFile
from kmura.explain.boxes.matching import Names
from kmura.explain.boxes.table import table_sizes
from kmura.records.image_files import Tally, find_images

_SHOWN = 3  # examples in a message
_ROUNDING = 1.5  # pixels of a stored side, by which its size may differ from the exact one

Size = tuple[float, float]  # width and height, pixels


def original_sizes(
    boxes: BoxFile,
    images: Mapping[str, str],
    stored: Mapping[str, tuple[int, int]],
    max_side: int | None,
    given: str | os.PathLike | None = None,
) -> tuple[dict[str, Size], str]:
    """Returns the original width and height of each image in pixels, and a sentence that says where they come from.

    The first that knows an image counts: `given`; the file of boxes; the definition of its data set; the source image
    beside the file of boxes; the record, if it is certain that it was not reduced when it was built.

    Args:
        boxes: the file of boxes.
        images: path of a record -> name of the image in the file of boxes.
        stored: path of a record -> height and width of the stored image in pixels.
        max_side: longest side of the records in pixels, to which larger images were reduced; None if none were.
        given: a CSV of sizes, or a folder of the source images.

    Raises:
        InputError: the size of an image is unknown, or has another aspect ratio than its record.
    """
    sources = [_given(given)] if given else []
    sources += [
        (f"{boxes.format} file", Names(boxes.sizes, "images of the boxes").get),
        (f"{boxes.format}, all images of which have this size", lambda name: boxes.size_of_all),
        ("source images", _beside(Path(boxes.path))),
    ]
    sizes: dict[str, Size] = {}
    counts: dict[str, int] = collections.Counter()
    unknown = []
    for path, name in images.items():
        for where, size_of in sources:
            size = size_of(name) or size_of(path)
            if size:
                _check_ratio(path, size, stored[path], where)
                break
        else:
            where, size = "records, which were not reduced", None
            if max_side is None or max(stored[path]) < max_side:
                size = (float(stored[path][1]), float(stored[path][0]))
        if size is None:
            unknown.append(name)
        else:
            sizes[path] = size
            counts[where] += 1
    if unknown:
        raise InputError(
            f"boxes {boxes.path} are in pixels, and the original size of {_some(unknown)} is unknown: the records were "
            f"reduced to {max_side} pixels; give --box-sizes, a CSV with the columns image,width,height or the folder "
            "of the source images"
        )
    return sizes, "; ".join(f"original sizes of {number} from the {where}" for where, number in counts.items())


def size_of_image(path: Path) -> Size | None:
    """Returns the width and height of an upright image or DICOM file from its header; None if it has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                width, height = image.size
                turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5  # stored rotated by 90 degrees
        return (float(height), float(width)) if turned else (float(width), float(height))
    except UnidentifiedImageError:
        return _size_of_dicom(path)
    except (OSError, Image.DecompressionBombError):
        return None


def _size_of_dicom(path: Path) -> Size | None:
    try:
        import pydicom

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=["Rows", "Columns"])
        return float(header.Columns), float(header.Rows)
    except Exception:  # no pydicom; and pydicom raises many kinds of errors for other files
        return None


def _given(given: str | os.PathLike):
    """What `--box-sizes` knows: a description, and a function of a name that returns a size or None."""
    path = Path(given)
    if not path.is_dir():
        return f"sizes {path.name}", Names(table_sizes(path), f"rows of {path}").get
    files = {file.relative_to(path).as_posix(): file for file in find_images(path, Tally())}
    names = Names(files, f"images in {path}")

    def size_of(name: str) -> Size | None:
        file = names.get(name)
        return size_of_image(file) if file else None

    return f"images in {path.name}", size_of


def _beside(boxes: Path):
    """A function of a name that returns the size of the image of this name beside the file of boxes, or None."""
    folder = boxes if boxes.is_dir() else boxes.parent

    def size_of(name: str) -> Size | None:
        file = folder / name
        return size_of_image(file) if file.is_file() else None

    return size_of


def _check_ratio(path: str, size: Size, stored: tuple[int, int], where: str) -> None:
    (width, height), (rows, columns) = size, stored
    if abs(columns * height - rows * width) > _ROUNDING * (width + height):
        turned = abs(rows * height - columns * width) <= _ROUNDING * (width + height)
        raise InputError(
            f"image {path} is {columns} x {rows} pixels in the records, but {width:g} x {height:g} according to the "
            f"{where}: the aspect ratios differ{', as if it were rotated' if turned else ''}; give the sizes of the "
            "images that the records were built from with --box-sizes"
        )


def _some(names: list[str]) -> str:
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{len(names)} images ({', '.join(names[:_SHOWN])}{more})"
