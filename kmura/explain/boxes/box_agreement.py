"""Agreement of the maps of a model with boxes: which map is compared with which boxes, and the mean scores."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from kmura import metrics
from kmura.config.suggestions import did_you_mean, nearest
from kmura.data.dataset import Dataset
from kmura.data.index import read_index
from kmura.errors import InputError
from kmura.explain.boxes.annotations import BoxFile
from kmura.explain.boxes.placing import ALL_IMAGES, BoxOptions, ImageBoxes, split_boxes
from kmura.explain.boxes.scores import box_scores, covered, placed
from kmura.explain.explanation import BOX_SCORES, Localization
from kmura.explain.outcomes import Reading
from kmura.tasks import ALL, Task

PREDICTED, POSITIVE_SIDE = "predicted", "positive"
RANDOM_MAPS = 128  # whose mean is the value by chance
_RANDOM = 32  # random maps that are compared at a time
_PIXELS, _MOST = 1 << 23, 64  # of the maps that are compared at a time; number of these maps


@dataclasses.dataclass(frozen=True)
class BoxedMap:
    """A map and the boxes that it is compared with.

    Attributes:
        row: of the image in the split.
        target: what the map is evidence of: the number of a class, PREDICTED (the predicted class), or POSITIVE_SIDE
            (of a model that has one).
        boxes: class of the boxes ("" for none) -> boxes [n, 4], in pixels of the model's input image.
    """

    row: int
    target: int | str
    boxes: dict[str, np.ndarray]

    @property
    def union(self) -> np.ndarray:
        """The boxes of all classes, [n, 4]."""
        return np.concatenate(list(self.boxes.values()))


def boxed_maps(
    dataset: Dataset,
    split: str,
    table: pd.DataFrame,
    reading: Reading,
    options: BoxOptions,
    boxes: BoxFile,
    renamed: dict[str, str],
) -> tuple[list[BoxedMap], list[str]]:
    """Returns the maps of a split to compare with boxes, and sentences about what was read.

    Args:
        dataset, split: the images.
        table: predictions of the split in the order of the records, with labels.
        reading: of the table.
        options: which images are used.
        boxes, renamed: from `options.read()`.

    Raises:
        InputError: see `split_boxes` and `maps_to_compare`.
    """
    names, data = table["image"].tolist(), dataset.config
    stored = dict(zip(names, map(tuple, dataset.index(split).sides.tolist()), strict=True))
    rows = {name: row for row, name in enumerate(names)}
    max_side = dataset.manifest.options.get("max_side")
    images, notes = split_boxes(boxes, _split_of_images(dataset), rows, stored, max_side, options.sizes)
    images = [
        ImageBoxes(row, {name: placed(corners, data.image_size, data.resize, stored[names[row]])
                         for name, corners in of_image.items()})
        for row, of_image in ((image.row, image.corners) for image in images)
    ]  # fmt: skip
    labels = table[dataset.labels.label_columns].to_numpy()
    boxed = maps_to_compare(images, reading.positive, labels, dataset.labels, options.of, renamed)
    left_out = len(images) - len({one.row for one in boxed})
    if left_out:
        notes.append(f"{left_out} images with a box are left out for their label; --boxes-of all uses them")
    return boxed, notes


def maps_to_compare(
    images: Sequence[ImageBoxes],
    positive: np.ndarray | None,
    labels: np.ndarray,
    task: Task,
    of: str,
    renamed: Mapping[str, str],
) -> list[BoxedMap]:
    """Returns the maps to compare with boxes.

    With `of="all"`, the map of every image explains the predicted class. With `of="positive"`, a model with a positive
    side explains this side of the positive images, of any class that the boxes may have. For other models, a box of a
    class is compared with the map of this class if the image has it; a box without a class has that of its image.

    Args:
        images: with boxes in pixels of the model's input image.
        positive: [N] whether an image is positive; None if no class of the model is the positive one.
        labels: [N, 1] class ids or [N, L] of 0 and 1; -1 is unknown.
        task: of the model.
        of: `positive` or `all`.
        renamed: class of the boxes -> class of the model, where they differ.

    Raises:
        InputError: a class of the boxes is none of the model, a box has no class but needs one, or no image is left.
    """
    if of == ALL_IMAGES:
        return [BoxedMap(image.row, PREDICTED, image.corners) for image in images]
    if positive is not None:
        kept = [BoxedMap(image.row, POSITIVE_SIDE, image.corners) for image in images if positive[image.row]]
    else:
        numbers = _numbers({name for image in images for name in image.corners}, task, renamed)
        kept = []
        for image in images:
            of_image = labels[image.row]
            targets: dict[int, dict[str, np.ndarray]] = {}
            for name, corners in image.corners.items():
                target = numbers[name] if name else int(of_image[0])
                if target >= 0 and (of_image[target] == 1 if task.by_label else of_image[0] == target):
                    targets.setdefault(target, {})[name] = corners
            kept += [BoxedMap(image.row, target, boxes) for target, boxes in targets.items()]
    if not kept:
        raise InputError(
            f"none of the {len(images)} images with a box has a label that the box is evidence of; give "
            "--boxes-of all if the boxes belong to anatomy"
        )
    return kept


def _split_of_images(dataset: Dataset) -> dict[str, str]:
    """Path -> split of all images of the records, in all areas."""
    splits = sorted({split for areas in dataset.manifest.areas.values() for split in areas})
    return {path: split for split in splits for path in read_index(dataset.records, ALL, split).keys["image"]}


def _numbers(names: set[str], task: Task, renamed: Mapping[str, str]) -> dict[str, int]:
    """Returns the number of the model's class of each class of boxes."""
    classes = task.classes
    if "" in names and task.by_label:
        raise InputError(
            "a box has no class, but the model has several labels; add classes to the file of boxes, choose those that "
            "have one with --box-classes, or give --boxes-of all"
        )
    numbers = {name: place for place, name in enumerate(classes)}
    for name in sorted(names - {""}):
        wanted = renamed.get(name, name)
        if wanted not in numbers:
            near = nearest(wanted, classes)
            raise InputError(
                f"boxes have the class {wanted!r}, which the model does not have{did_you_mean(near)}"
                f"{'' if near else ';'} its classes: {', '.join(classes)}; choose classes with --box-classes NAME, "
                f'rename one with --box-classes "{name}=CLASS", or give --boxes-of all'
            )
    return {name: numbers[renamed.get(name, name)] for name in names - {""}}


def agreement(
    maps: Callable[[Sequence[int], int | str], np.ndarray],
    boxed: Sequence[BoxedMap],
    patients: np.ndarray,
    random: np.ndarray,
    seed: int = 0,
) -> Localization:
    """Returns the agreement of maps with boxes, over all boxes of an image and for each class of the boxes.

    The maps of other patients are those that are computed at the same time, up to 64 in random order.

    Args:
        maps: function of rows and a target that returns maps [N, H, W], not negative.
        boxed: the maps with their boxes, at least one.
        patients: [rows of the split] patient of each image.
        random: random maps [R, H, W], for the values by chance.
        seed: seed of the order and of the intervals.
    """
    shape = random.shape[1:]
    names = sorted({name for one in boxed for name in one.boxes})
    scores: dict[str | None, list[dict[str, float]]] = {name: [] for name in (None, *names)}
    for part in _parts(boxed, max(4, min(_MOST, _PIXELS // (shape[0] * shape[1]))), seed):
        heat = maps([one.row for one in part], part[0].target)
        of_rows = patients[[one.row for one in part]]
        keys = [(place, None, one.union) for place, one in enumerate(part)]
        if len(names) > 1:
            keys += [(place, name, corners) for place, one in enumerate(part) for name, corners in one.boxes.items()]
        corners_of = [corners for *_, corners in keys]
        tables = box_scores(heat, corners_of)
        by_chance = [box_scores(random[at : at + _RANDOM], corners_of) for at in range(0, len(random), _RANDOM)]
        for number, (place, name, corners) in enumerate(keys):
            others = np.flatnonzero(of_rows != of_rows[place])
            line = {"patient": of_rows[place], "empty": heat[place].max() <= 0, "covered": covered(corners, shape)}
            for score, table in tables.items():
                line[score] = table[number, place]
                line[f"random_{score}"] = np.concatenate([scores_of[score][number] for scores_of in by_chance]).mean()
                line[f"others_{score}"] = table[number, others].mean() if len(others) else np.nan
            scores[name].append(line)
    classes = {name: _summary(scores[name], seed) for name in names if len(names) > 1}
    return dataclasses.replace(_summary(scores[None], seed), classes=classes)


def _parts(boxed: Sequence[BoxedMap], most: int, seed: int) -> list[list[BoxedMap]]:
    """Maps of one target at a time, in random order, in parts of at most `most` and of nearly equal size."""
    rng, parts = np.random.default_rng(seed), []
    for target in sorted({one.target for one in boxed}, key=str):
        group = [one for one in boxed if one.target == target]
        order = rng.permutation(len(group))
        parts += [[group[at] for at in part] for part in np.array_split(order, -(-len(group) // most))]
    return parts


def _summary(lines: list[dict], seed: int) -> Localization:
    columns = {name: np.array([line[name] for line in lines]) for name in lines[0]}
    means = metrics.patient_means({name: columns[name].astype(float) for name in BOX_SCORES}, columns["patient"], seed)
    others = {name: columns[f"others_{name}"] for name in BOX_SCORES}
    return Localization(
        images=len(lines),
        **means,
        chance=float(columns["covered"].mean()),
        random={name: float(columns[f"random_{name}"].mean()) for name in ("iou", "overlap")},
        others={name: float(np.nanmean(value)) for name, value in others.items() if not np.isnan(value).all()},
        empty_share=float(columns["empty"].mean()),
        patients=len(np.unique(columns["patient"])),
    )
