"""What a model is to tell apart: the classes of the records, or, over several areas, every area's of its own."""

import dataclasses
import os

import numpy as np
import pandas as pd

from kmura.data.index import ALL, Index, read_index
from kmura.errors import InputError
from kmura.records.manifest import Manifest, read_manifest

# task of the records -> tasks that models may have on them
_POSSIBLE = {"binary": ("binary", "multiclass", "multilabel"), "multiclass": ("multiclass",)}
_POSSIBLE |= {"multilabel": ("multilabel",)}


@dataclasses.dataclass(frozen=True)
class Labelling:
    """The labels of a model.

    Attributes:
        task: `binary` (one logit), `multiclass` (one class of several, softmax) or `multilabel` (each class yes or no).
        classes: names in the order of the labels; of `binary` two, the second is positive.
        areas: of classes that are area by class, the area of each; else empty. Then the first half of the classes is
            positive (abnormal), the other normal, areas in the same order.
    """

    task: str
    classes: tuple[str, ...]
    areas: tuple[str, ...] = ()

    @property
    def softmax(self) -> bool:
        """Whether the probabilities of the classes sum to 1."""
        return self.task == "multiclass"

    @property
    def outputs(self) -> int:
        """Number of logits."""
        return 1 if self.task == "binary" else len(self.classes)

    def ids(self, index: Index) -> np.ndarray:
        """Labels of an index, -1 where unknown: class ids int64 [n, 1], or of `multilabel` 0 and 1 a class [n, L]."""
        if not self.areas:
            return index.labels
        half = len(self.areas) // 2
        place = {area: number for number, area in enumerate(self.areas[:half])}
        first = index.keys["area"].map(place).to_numpy()[:, None]
        return np.where(index.labels < 0, -1, first + half * (1 - index.labels))

    def targets(self, index: Index) -> np.ndarray:
        """Labels as a loss takes them, float32 [n, L].

        Binary: L = 1, 0 or 1. Multiclass: one-hot. Multilabel: 0 or 1 a class. What is unknown is -1, the whole row of
        a multiclass image.
        """
        labels = self.ids(index)
        if self.task == "multiclass":
            labels = np.where(labels >= 0, np.arange(len(self.classes)) == labels, -1)
        return labels.astype(np.float32)

    def balance(self, records: str | os.PathLike, area: str, split: str) -> list[float]:
        """Weights that balance the classes: of `multiclass` images / (classes x its images) for each; else negatives /
        positives of each label, of the images of which it is known."""
        manifest = read_manifest(records)
        counts = self.counts(manifest, area, split, records)
        if self.softmax:
            return [sum(counts) / (len(counts) * number) for number in counts]
        if manifest.task == "binary":
            return [counts[0] / counts[1]]
        return (np.array(self.negatives(records, area, split)) / counts).tolist()

    def negatives(self, records: str | os.PathLike, area: str, split: str) -> list[int]:
        """Images of a split that are known not to have each label, of multilabel records."""
        return (read_index(records, area, split).labels == 0).sum(axis=0).tolist()

    def counts(self, manifest: Manifest, area: str, split: str, records="the records") -> tuple[int, ...]:
        """Images of each class of the records (of a joint model: of its own classes) in a split.

        Raises:
            InputError: there is no such area or split.
        """
        if self.areas:
            half = len(self.areas) // 2
            by_area = [manifest.split(name, split, records).per_class for name in self.areas[:half]]
            return (*(positives for _, positives in by_area), *(negatives for negatives, _ in by_area))
        if area == ALL:
            there = [splits[split].per_class for splits in manifest.areas.values() if split in splits]
            return tuple(map(sum, zip(*there, strict=True)))
        return manifest.split(area, split, records).per_class


def labelling(manifest: Manifest, area: str, task: str = "auto") -> Labelling:
    """The labels of a model of these records.

    Args:
        manifest: of the records.
        area: one of them, or `all` for one model of all; of two-class records and the task multiclass its classes are
            area by class (`Abnormal-ELBOW` to `Normal-WRIST`).
        task: `auto` takes that of the records; two-class records also serve multiclass (softmax over the two) and
            multilabel (a single label, the positive class) models.

    Raises:
        InputError: a task that the records do not serve.
    """
    task = manifest.task if task == "auto" else task
    if task not in _POSSIBLE[manifest.task]:
        raise InputError(
            f"task {task} does not fit these records, whose labels are {manifest.task}; "
            f"choose {' or '.join(_POSSIBLE[manifest.task])}, or build records of other labels"
        )
    if area == ALL and is_joint(manifest, task):
        areas = sorted(manifest.areas)
        negative, positive = manifest.classes
        short = [where.removeprefix("XR_") for where in areas]
        short = short if len(set(short)) == len(short) else areas
        names = [f"{name.capitalize()}-{where}" for name in (positive, negative) for where in short]
        return Labelling(task, tuple(names), tuple(areas * 2))
    if manifest.task == "binary" and task == "multilabel":
        return Labelling(task, manifest.classes[1:])
    return Labelling(task, manifest.classes)


def row_keys(records: str | os.PathLike, area: str, split: str, task: str = "auto") -> pd.DataFrame:
    """One row an image, in the order of `eval_dataset`: area, patient, study, image (its path), label.

    Binary and multiclass: `label` is the class id. Multilabel: a column `label_CLASS` of 0 and 1 for each class. -1 is
    unknown.

    Args:
        records, area, split: as `read_index`.
        task: of the model, see `labelling`.

    Raises:
        InputError: as `read_index` and `labelling`.
    """
    index = read_index(records, area, split)
    labels = labelling(index.manifest, area, task)
    names = [f"label_{name}" for name in labels.classes] if labels.task == "multilabel" else ["label"]
    return pd.concat([index.keys, pd.DataFrame(labels.ids(index), columns=names)], axis=1)


def is_joint(manifest: Manifest, task: str) -> bool:
    """Whether `all` areas mean one model of all with this task, not one after another."""
    return manifest.task == "binary" and task == "multiclass" and len(manifest.areas) > 1
