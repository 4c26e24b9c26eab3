"""What a model makes of images, in words: right or wrong, and what it took them for."""

import dataclasses
from collections.abc import Callable

import numpy as np

from kmura import cam
from kmura.tasks import Task

OUTCOMES = ("TP", "TN", "FP", "FN")  # of the binary task at threshold 0.5
CLASS_OUTCOMES = ("right", "wrong")  # of several classes: the most probable one; of several labels: all at 0.5


@dataclasses.dataclass(frozen=True)
class Reading:
    """Images as a model sees them, in the order of their rows.

    Attributes:
        outcome: [N] of OUTCOMES or CLASS_OUTCOMES; "" where the label is unknown.
        truth: [N] class id (of several labels, whether the most probable one is true); -1 unknown.
        probability: [N] of the positive class; of several of the most probable one.
        sure: [N] how far from undecided; larger is surer.
        caption: [N] what the image is, and what the model makes of it.
        positive: [N] whether the image is of a positive (abnormal) class; None where no class is.
        towards: what the maps of localization are to explain, for `kmura.cam.CamEngine`.
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
        """All that there may be."""
        return OUTCOMES if set(self.outcome) <= {*OUTCOMES, ""} else CLASS_OUTCOMES


def read_images(label: np.ndarray, probability: np.ndarray, task: Task) -> Reading:
    """What probabilities [N, L] of a model mean beside labels [N, L'], as `kmura.data.dataset.Dataset.ids` gives them.

    Args:
        label: -1 is unknown.
        probability: of the positive class (L = 1), or of each class or label.
        task: of the run.
    """
    classes = task.classes
    if probability.shape[1] == 1:
        label, probability = label[:, 0], probability[:, 0]
        taken = probability >= 0.5
        sides = task.sides
        outcome = np.where(taken, np.where(label == 1, "TP", "FP"), np.where(label == 1, "FN", "TN"))
        caption = [
            f"{sides[one] if one >= 0 else 'unknown'}, p = {p:.2f}" for one, p in zip(label, probability, strict=True)
        ]
        towards = cam.named_target("abnormal", ("normal", "abnormal"))
        known = np.where(label < 0, "", outcome)
        return Reading(known, label, probability, np.abs(probability - 0.5), caption, label == 1, towards)
    taken, largest = probability.argmax(axis=1), probability.max(axis=1)
    if task.by_label:
        right = ((probability >= 0.5) == (label == 1)).all(axis=1)
        unknown = (label < 0).any(axis=1)
        truth = np.where(unknown, -1, label[np.arange(len(label)), taken])
        names = [", ".join(np.array(classes)[row == 1]) or "none" for row in label]
    else:
        truth = label[:, 0]
        right, unknown = taken == truth, truth < 0
        names = [classes[one] for one in truth]
    outcome = np.where(unknown, "", np.where(right, *CLASS_OUTCOMES))
    caption = [
        f"{'unknown' if missing else name}{'' if fits else f', taken for {classes[place]}'}, p = {p:.2f}"
        for name, place, p, missing, fits in zip(names, taken, largest, unknown, right, strict=True)
    ]
    positive, towards = _question(truth, task)
    return Reading(outcome, truth, largest, largest, caption, positive, towards)


def _question(truth, task: Task):
    """Which images are positive and what speaks for that, where the classes have such a side."""
    classes = task.classes
    if task.by_label or not (task.is_joint or len(classes) == 2):
        return None, None
    half = len(classes) // 2
    sides = np.arange(len(classes)) < half if len(classes) > 2 else np.array([False, True])
    return (truth >= 0) & sides[truth], cam.log_odds(sides)


def gallery_rows(reading: Reading, cases: int) -> list[int]:
    """Rows of a gallery, outcome by outcome, the surest first: `cases` of each; of several classes as many as fit of
    each true class, but one at least."""
    classes = np.unique(reading.truth[reading.truth >= 0]) if reading.outcomes is CLASS_OUTCOMES else [None]
    each = max(1, cases // max(1, len(classes)))
    chosen = []
    for name in reading.outcomes:
        for class_id in classes:
            of_class = np.ones(len(reading.truth), bool) if class_id is None else reading.truth == class_id
            rows = np.flatnonzero((reading.outcome == name) & of_class)
            chosen += rows[np.argsort(-reading.sure[rows], kind="stable")][:each].tolist()
    return chosen
