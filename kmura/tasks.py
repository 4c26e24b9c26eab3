"""The tasks of a classifier: one yes/no question, one class of several, or any number of labels.

A task knows the columns of its tables, its targets, its probabilities and its decision. `TASKS` is the only place that
maps the names of tasks, as records, configurations and run folders hold them, to what they mean.

Shapes: N images, L logits. A label is -1 where it is unknown.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np

from kmura import metrics
from kmura.errors import InputError, check_choice

ALL = "all"  # the area that stands for every area of the records
NO_LABEL = "none"  # the decision of a multi-label model without a label above its threshold


@dataclasses.dataclass(frozen=True)
class Task:
    """What a model is to tell.

    Attributes:
        classes: names in the order of the labels; of `Binary` two, the second is the positive one.
        areas: of a model over all areas whose classes are area by class, the area of each class; else empty. The first
            half of its classes is positive (abnormal), the other half negative, areas in the same order.
    """

    classes: tuple[str, ...]
    areas: tuple[str, ...] = ()

    name: ClassVar[str]
    softmax: ClassVar[bool] = False  # the probabilities of an image sum to 1
    by_label: ClassVar[bool] = False  # a label is a vector of 0 and 1 instead of a class id

    @property
    def outputs(self) -> int:
        """The number of logits, L."""
        return len(self.classes)

    @property
    def is_joint(self) -> bool:
        """Whether the classes are area by class, of one model over all areas."""
        return bool(self.areas)

    @property
    def area_names(self) -> tuple[str, ...]:
        """The areas of a joint model as its classes name them (`ELBOW` of `Abnormal-ELBOW`), each once; else empty."""
        return short_names(self.areas[: len(self.areas) // 2])

    @property
    def abnormal(self) -> int:
        """How many of the classes, the first ones, are abnormal, in a joint model; else 0."""
        return len(self.areas) // 2

    @property
    def sides(self) -> tuple[str, str]:
        """The negative and the positive side of the model's yes/no question.

        They are its two classes, the absence and presence of a single label, or, of a joint model, the classes of its
        records. Of other models of several classes, which have no such question, they are the first two classes.
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
        """Names of the columns of labels in tables of rows and predictions."""
        return ["label"]

    @property
    def logit_columns(self) -> list[str]:
        """Names of the columns of logits in tables of predictions."""
        return [f"logit_{name}" for name in self.classes]

    @property
    def probability_columns(self) -> list[str]:
        """Names of the columns of probabilities in tables of predictions."""
        return [f"probability_{name}" for name in self.classes]

    @property
    def largest_label(self) -> int:
        """The largest value of a label column."""
        return len(self.classes) - 1

    def ids(self, labels: np.ndarray, areas: Sequence[str]) -> np.ndarray:
        """The labels of the model, int64 [N, 1] class ids or [N, L] of 0 and 1, from the labels of the records.

        Args:
            labels: as the records hold them, [N, 1] or [N, L].
            areas: the area of each image [N].
        """
        return labels

    def targets(self, ids: np.ndarray) -> np.ndarray:
        """Labels as a loss takes them, float32 [N, L]; unknown labels are -1.

        Args:
            ids: as `ids` returns them.
        """
        return ids.astype(np.float32)

    def probabilities(self, logit: np.ndarray) -> np.ndarray:
        """Probabilities [N, L] of logits [N, L], float64."""
        return metrics.probabilities(logit, softmax=self.softmax)

    def decision(self, probability: np.ndarray, threshold: float = 0.5) -> np.ndarray:
        """The names [N] that probabilities [N, L] lead to, `Binary` also [N]."""
        raise NotImplementedError

    def undecided(self, probability: np.ndarray, threshold: float, within: float) -> np.ndarray:
        """Which decisions on probabilities [N, L] are nearer than `within` to another decision, bool [N]."""
        return (np.abs(np.asarray(probability) - threshold) < within).any(axis=1)


class Binary(Task):
    """One logit, for the second of two classes."""

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
    """One class of several; softmax over the logits."""

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
    """Any number of labels; a sigmoid for each logit."""

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

# task of the records -> tasks that models of them may have
_SERVED: dict[type[Task], tuple[type[Task], ...]] = {
    Binary: (Binary, Multiclass, Multilabel),
    Multiclass: (Multiclass,),
    Multilabel: (Multilabel,),
}


def task_of(name: str, classes: Iterable[str], areas: Iterable[str] = ()) -> Task:
    """The task of this name.

    Raises:
        InputError: there is no such task.
    """
    check_choice("task", name, TASKS)
    return TASKS[name](tuple(classes), tuple(areas))


def model_task(records: Task, areas: Sequence[str], area: str, wanted: str = "auto") -> Task:
    """The task of a model of records.

    Args:
        records: the task of the records.
        areas: every area of the records.
        area: the area of the model, or `all` for one model of all areas; for records of two classes and the task
            multiclass its classes are then area by class (`Abnormal-ELBOW` to `Normal-WRIST`).
        wanted: `auto` takes that of the records; records of two classes also serve multiclass models (softmax over the
            two) and multilabel models (a single label, the positive class).

    Raises:
        InputError: a task that the records do not serve.
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
    """Whether area `all` means one model of all areas with the task `wanted`, not one model after another."""
    return isinstance(records, Binary) and TASKS.get(wanted) is Multiclass and len(areas) > 1


def joint_areas_of(area: str, task: str, classes: Sequence[str]) -> tuple[str, ...]:
    """The areas of the classes of a run folder that does not state them (run version 1), recovered from their names."""
    half = len(classes) // 2
    if area != ALL or TASKS.get(task) is not Multiclass or half < 2 or len(classes) % 2:
        return ()
    names = [[name.partition("-")[2] for name in part] for part in (classes[:half], classes[half:])]
    return tuple(names[0] * 2) if names[0] == names[1] and all(names[0]) else ()


def short_names(areas: Sequence[str]) -> tuple[str, ...]:
    """The areas without MURA's prefix `XR_`, where they stay different."""
    short = tuple(area.removeprefix("XR_") for area in areas)
    return short if len(set(short)) == len(short) else tuple(areas)
