"""The tasks of a classifier: binary, multiclass or multilabel.

A task defines the columns of its tables, its targets, its probabilities and its decision. `TASKS` is the registry that
maps the names of tasks in records, configurations and run folders to their classes.

Shapes: N images, L logits. A label is -1 where it is unknown.
"""

import abc
import dataclasses
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np

from kmura import metrics
from kmura.errors import InputError, check_choice

ALL = "all"  # denotes all areas of the records
NO_LABEL = "none"  # the decision of a multilabel model if no label is above the threshold


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
    """The task of a classifier.

    Attributes:
        classes: names in the order of the labels; `Binary` has two, of which the second is the positive one.
        areas: the area of each class of a joint model, which covers all areas and has one class per area and class of
            the records; otherwise empty. The first half of the classes is positive (abnormal), the second half
            negative, with the areas in the same order.
        name: the name in `TASKS`.
        softmax: whether the probabilities of an image sum to 1.
        by_label: whether a label is a vector of 0 and 1 instead of a class id.
    """

    classes: tuple[str, ...]
    areas: tuple[str, ...] = ()

    name: ClassVar[str]
    softmax: ClassVar[bool] = False
    by_label: ClassVar[bool] = False

    @property
    def outputs(self) -> int:
        """The number of logits, L."""
        return len(self.classes)

    @property
    def is_joint(self) -> bool:
        """Whether this is the task of a joint model, with one class per area and class of the records."""
        return bool(self.areas)

    @property
    def area_names(self) -> tuple[str, ...]:
        """The areas of a joint model as in its class names (`ELBOW` of `Abnormal-ELBOW`), each once; else empty."""
        return short_names(self.areas[: len(self.areas) // 2])

    @property
    def abnormal(self) -> int:
        """The number of abnormal classes of a joint model, which are the first ones; otherwise 0."""
        return len(self.areas) // 2

    @property
    def sides(self) -> tuple[str, str]:
        """The names of the negative and the positive outcome.

        They are the two classes, the absence and presence of a single label, or (joint model) the classes of the
        records. For other tasks of several classes, which have no binary outcome, they are the first two classes.
        """
        if self.is_joint:
            half, first = self.abnormal, self.area_names[0]
            negative, positive = (self.classes[place].removesuffix(f"-{first}").lower() for place in (half, 0))
            return negative, positive
        if len(self.classes) == 1:
            return f"not {self.classes[0]}", self.classes[0]
        return self.classes[0], self.classes[1]

    @property
    def label_columns(self) -> list[str]:
        """The names of the label columns in tables of rows and predictions."""
        return ["label"]

    @property
    def logit_columns(self) -> list[str]:
        """The names of the logit columns in tables of predictions."""
        return [f"logit_{name}" for name in self.classes]

    @property
    def probability_columns(self) -> list[str]:
        """The names of the probability columns in tables of predictions."""
        return [f"probability_{name}" for name in self.classes]

    @property
    def largest_label(self) -> int:
        """The largest value of a label column."""
        return len(self.classes) - 1

    def ids(self, labels: np.ndarray, areas: Sequence[str]) -> np.ndarray:
        """Converts labels of the records to labels of the task: int64 [N, 1] class ids or [N, L] of 0 and 1.

        Args:
            labels: labels of the records, int64 [N, 1] or [N, L].
            areas: the area of each image [N].
        """
        return labels

    def targets(self, ids: np.ndarray) -> np.ndarray:
        """Converts labels to targets of a loss function, float32 [N, L]; unknown labels are -1.

        Args:
            ids: labels of the task, as `ids` returns them.
        """
        return ids.astype(np.float32)

    def probabilities(self, logit: np.ndarray) -> np.ndarray:
        """Converts logits [N, L] to probabilities [N, L], float64."""
        return metrics.probabilities(logit, softmax=self.softmax)

    @abc.abstractmethod
    def decision(self, probability: np.ndarray, threshold: float = 0.5) -> np.ndarray:
        """Converts probabilities [N, L] (`Binary` also [N]) to the names of the predicted classes [N].

        Args:
            probability: in 0..1.
            threshold: of the decision, 0..1; not used by `Multiclass`, which predicts the most probable class.
        """

    def undecided(self, probability: np.ndarray, threshold: float, within: float) -> np.ndarray:
        """Returns for each image whether it is closer than `within` to another decision, bool [N].

        Args:
            probability: [N, L] in 0..1.
            threshold: of the decision; not used by `Multiclass`, which compares the two largest probabilities.
            within: the distance, in units of probability.
        """
        return (np.abs(np.asarray(probability) - threshold) < within).any(axis=1)


class Binary(Task):
    """Two classes and one logit, which belongs to the second class."""

    name = "binary"

    @property
    def outputs(self) -> int:
        return 1

    @property
    def logit_columns(self) -> list[str]:
        return ["logit"]

    @property
    def probability_columns(self) -> list[str]:
        return ["probability"]

    def decision(self, probability, threshold=0.5):
        return np.where(np.asarray(probability) >= threshold, self.classes[1], self.classes[0])

    def undecided(self, probability, threshold, within):
        return np.abs(np.asarray(probability) - threshold) < within


class Multiclass(Task):
    """Mutually exclusive classes; softmax over the logits."""

    name = "multiclass"
    softmax = True

    def ids(self, labels, areas):
        if not self.is_joint:
            return labels
        half = self.abnormal
        place = {area: number for number, area in enumerate(self.areas[:half])}
        first = np.array([place[area] for area in areas], np.int64)[:, None]
        return np.where(labels < 0, -1, first + half * (1 - labels))

    def targets(self, ids):
        return np.where(ids >= 0, np.arange(len(self.classes)) == ids, -1).astype(np.float32)

    def decision(self, probability, threshold=0.5):
        return np.array(self.classes)[np.asarray(probability).argmax(1)]

    def undecided(self, probability, threshold, within):
        return np.ptp(np.sort(np.asarray(probability), axis=1)[:, -2:], axis=1) < within


class Multilabel(Task):
    """Independent labels; a sigmoid for each logit."""

    name = "multilabel"
    by_label = True

    @property
    def label_columns(self) -> list[str]:
        return [f"label_{name}" for name in self.classes]

    @property
    def largest_label(self) -> int:
        return 1

    def decision(self, probability, threshold=0.5):
        names, above = np.array(self.classes), np.asarray(probability) >= threshold
        return np.array([", ".join(names[row]) or NO_LABEL for row in above], dtype=str)


TASKS: dict[str, type[Task]] = {task.name: task for task in (Binary, Multiclass, Multilabel)}

# task of the records -> tasks that their models can have
_SERVED: dict[type[Task], tuple[type[Task], ...]] = {
    Binary: (Binary, Multiclass, Multilabel),
    Multiclass: (Multiclass,),
    Multilabel: (Multilabel,),
}


def task_of(name: str, classes: Iterable[str], areas: Iterable[str] = ()) -> Task:
    """Returns the task with a name of `TASKS`.

    Raises:
        InputError: the name is unknown.
    """
    check_choice("task", name, TASKS)
    return TASKS[name](tuple(classes), tuple(areas))


def model_task(records: Task, areas: Sequence[str], area: str, wanted: str = "auto") -> Task:
    """Returns the task of a model that is trained on records.

    Args:
        records: the task of the records.
        areas: every area of the records.
        area: the area of the model, or `all`. With `all`, records of two classes and the task multiclass give a joint
            model, which has one class per area and class (`Abnormal-ELBOW` to `Normal-WRIST`).
        wanted: the name of the task; `auto` uses that of the records. Records of two classes also support multiclass
            (softmax over the two classes) and multilabel (a single label, the positive class).

    Raises:
        InputError: the records do not support the task.
    """
    kind = type(records) if wanted == "auto" else type(task_of(wanted, ()))
    if kind not in _SERVED[type(records)]:
        raise InputError(
            f"task {kind.name} does not fit these records, whose labels are {records.name}; "
            f"choose {' or '.join(served.name for served in _SERVED[type(records)])}, or build records of other labels"
        )
    if area == ALL and is_joint(records, areas, kind.name):
        areas = sorted(areas)
        negative, positive = records.classes
        names = (f"{name.capitalize()}-{where}" for name in (positive, negative) for where in short_names(areas))
        return Multiclass(tuple(names), tuple(areas * 2))
    if isinstance(records, Binary) and kind is Multilabel:
        return Multilabel(records.classes[1:])
    return kind(records.classes)


def is_joint(records: Task, areas: Sequence[str], wanted: str) -> bool:
    """Returns whether the area `all` means one joint model for the task `wanted`, instead of one model per area."""
    return isinstance(records, Binary) and TASKS.get(wanted) is Multiclass and len(areas) > 1


def joint_areas_of(area: str, task: str, classes: Sequence[str]) -> tuple[str, ...]:
    """Returns the areas of the classes of a run of version 1, which does not state them, from the class names."""
    half = len(classes) // 2
    if area != ALL or TASKS.get(task) is not Multiclass or half < 2 or len(classes) % 2:
        return ()
    names = [[name.partition("-")[2] for name in part] for part in (classes[:half], classes[half:])]
    return tuple(names[0] * 2) if names[0] == names[1] and all(names[0]) else ()


def short_names(areas: Sequence[str]) -> tuple[str, ...]:
    """Returns the areas without MURA's prefix `XR_` if the short names are unique, otherwise unchanged."""
    short = tuple(area.removeprefix("XR_") for area in areas)
    return short if len(set(short)) == len(short) else tuple(areas)
