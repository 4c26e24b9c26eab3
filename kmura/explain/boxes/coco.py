"""Boxes in COCO JSON: `images`, `annotations` with `bbox` (x, y, width, height), and `categories`."""

import json
import os
from typing import Any

from kmura.errors import InputError, in_brief
from kmura.explain.boxes.annotations import Annotation, BoxFile, are_fractions, bounding, checked_corners


def coco_boxes(path: str | os.PathLike, data: bytes) -> BoxFile:
    """Returns the boxes of a COCO file.

    An annotation without `bbox` counts with the bounding box of its polygons; one without `category_id` has no class.

    Args:
        path: of the file, for messages.
        data: its content.

    Raises:
        InputError: the content is not a COCO file, or a box is invalid.
    """
    try:
        content = json.loads(data)
    except ValueError as error:
        raise InputError(f"boxes {path} cannot be read as JSON: {in_brief(error)}; give a COCO file") from error
    try:
        images, annotations, categories = content["images"], content["annotations"], content.get("categories") or []
        names = {category["id"]: str(category["name"]) for category in categories}
        files = {image["id"]: _name(path, image) for image in images}
        sizes = {files[image["id"]]: (image.get("width"), image.get("height")) for image in images}
        sizes = {name: (float(w), float(h)) for name, (w, h) in sizes.items() if w and h}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        detail = f"{error} is missing" if isinstance(error, KeyError) else in_brief(error)
        raise InputError(
            f"boxes {path} is JSON but not a COCO file ({detail}); it needs images (id, file_name), annotations "
            "(image_id, bbox, category_id) and categories (id, name)"
        ) from error
    seen: dict[str, Any] = {}
    for number, name in files.items():
        other = seen.setdefault(name, number)
        if other != number:
            raise InputError(
                f"boxes {path}: two images are named {name} (ids {other} and {number}); give file_name with its "
                "folder, or merge them"
            )
    found, polygons = [], 0
    for place, annotation in enumerate(annotations):
        where = f"annotation {annotation.get('id', place) if isinstance(annotation, dict) else place}"
        try:
            image, category = annotation["image_id"], annotation.get("category_id")
            box = annotation.get("bbox")
            if box:
                x, y, width, height = map(float, box)
                corners = (x, y, x + width, y + height)
            else:
                corners = bounding([float(value) for part in annotation["segmentation"] for value in part])
                polygons += 1
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(
                f"boxes {path}, {where}: no image_id, or neither a bbox of four numbers nor polygons; fix or remove it"
            ) from error
        if image not in files:
            raise InputError(f"boxes {path}, {where}: there is no image with the id {image}; fix or remove it")
        if category is not None and category not in names:
            known = ", ".join(map(str, names)) or "none"
            raise InputError(f"boxes {path}, {where}: there is no category {category}; there are: {known}")
        corners = checked_corners(path, where, corners)
        found.append(Annotation(files[image], corners, names.get(category, ""), where))
    return BoxFile(str(path), "COCO", tuple(found), are_fractions(found), sizes, polygons=polygons)


def _name(path, image: dict) -> str:
    name = image["file_name"]
    if not isinstance(name, str) or not name:
        raise InputError(f"boxes {path}: image {image['id']} has no file_name; add it")
    return name
