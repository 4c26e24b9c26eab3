"""Outcomes of predictions: correct or incorrect, and captions that state label and predicted class."""

import dataclasses
from collections.abc import Callable

import numpy as np

from kmura import cam
from kmura.tasks import Task

OUTCOMES = ("TP", "TN", "FP", "FN")  # binary task, threshold 0.5
CLASS_OUTCOMES = ("right", "wrong")  # multiclass: the most probable class; multilabel: all labels at threshold 0.5


@dataclasses.dataclass(frozen=True)
class Reading:
    """Predictions for images with their labels, in the order of the rows.

    Attributes:
        outcome: [N] one of OUTCOMES or CLASS_OUTCOMES; "" if the label is unknown.
        truth: [N] class id (multilabel: whether the most probable label is present); -1 if unknown.
        probability: [N] of the positive class; for several classes or labels, of the most probable one.
        sure: [N] confidence; larger is more confident.
        caption: [N] label and prediction in words.
        positive: [N] whether the class of the image is positive (abnormal); None if there is no positive class.
        towards: target of the maps for localization, see `kmura.cam.CamEngine`; None if there is no positive class.
    """

    outcome: np.ndarray
    truth: np.ndarray
    probability: np.ndarray
    sure: np.ndarray
    caption: list[str]
    positive: np.ndarray | None
    towards: Callable | None

    @property
    def outcomes(self) -> tuple[str, ...]:
        """The outcomes that can occur for this task."""
        return OUTCOMES if set(self.outcome) <= {*OUTCOMES, ""} else CLASS_OUTCOMES


def read_images(label: np.ndarray, probability: np.ndarray, task: Task) -> Reading:
    """Returns outcomes and captions of predictions.

    Args:
        label: [N, L'], as returned by `kmura.data.dataset.Dataset.ids`; -1 is unknown.
        probability: [N, L], of the positive class (L = 1), or of each class or label.
        task: task of the run.
    """
    classes = task.classes
    if probability.shape[1] == 1:
        label, probability = label[:, 0], probability[:, 0]
        taken = probability >= 0.5
        sides = task.sides
        outcome = np.where(taken, np.where(label == 1, "TP", "FP"), np.where(label == 1, "FN", "TN"))
        caption = [
            f"{sides[number] if number >= 0 else 'unknown'}, p = {p:.2f}"
            for number, p in zip(label, probability, strict=True)
        ]
        towards = cam.named_target("abnormal", ("normal", "abnormal"))
        known = np.where(label < 0, "", outcome)
        return Reading(known, label, probability, np.abs(probability - 0.5), caption, label == 1, towards)
    taken, largest = probability.argmax(axis=1), probability.max(axis=1)
    if task.by_label:
        right = (((probability >= 0.5) == (label == 1)) | (label < 0)).all(axis=1)  # of the labels that are known
        unknown = (label < 0).all(axis=1)
        truth = label[np.arange(len(label)), taken]
        names = [", ".join(np.array(classes)[row == 1]) or "none" for row in label]
    else:
        truth = label[:, 0]
        right, unknown = taken == truth, truth < 0
        names = [classes[number] for number in truth]
    outcome = np.where(unknown, "", np.where(right, *CLASS_OUTCOMES))
    caption = [
        f"{'unknown' if missing else name}{'' if fits else f', taken for {classes[place]}'}, p = {p:.2f}"
        for name, place, p, missing, fits in zip(names, taken, largest, unknown, right, strict=True)
    ]
    positive, towards = _question(truth, task)
    return Reading(outcome, truth, largest, largest, caption, positive, towards)


def _question(truth, task: Task):
    """Returns whether each image is positive, and the target of its map; None for both if no class is positive."""
    classes = task.classes
    if task.by_label or not (task.is_joint or len(classes) == 2):
        return None, None
    half = len(classes) // 2
    sides = np.arange(len(classes)) < half if len(classes) > 2 else np.array([False, True])
    return (truth >= 0) & sides[truth], cam.log_odds(sides)


def gallery_rows(reading: Reading, cases: int) -> dict[int, bool]:
    """Returns the rows of a gallery, and whether each is a borderline case; grouped by outcome, most confident first.

    Args:
        reading: predictions of the images.
        cases: number of images per outcome, of which a quarter (rounded down) are the least confident ones. For several
            classes the most confident ones are divided among the true classes, with at least one image per class.
    """
    of_classes = reading.outcomes is CLASS_OUTCOMES
    classes = np.unique(reading.truth[reading.truth >= 0]) if of_classes else [None]
    borderline = cases // 4
    most = max(1, (cases if of_classes else cases - borderline) // max(1, len(classes)))
    chosen = {}
    for name in reading.outcomes:
        rows = np.flatnonzero(reading.outcome == name)
        ordered = rows[np.argsort(-reading.sure[rows], kind="stable")]
        for class_id in classes:
            of_class = ordered if class_id is None else ordered[reading.truth[ordered] == class_id]
            chosen |= dict.fromkeys(of_class[:most].tolist(), False)
        rest = [row for row in ordered.tolist() if row not in chosen]
        chosen |= dict.fromkeys(rest[max(0, len(rest) - borderline) :], True)
    return chosen
