"""One label per image where tables have several rows of an image, and one per study where its images differ."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from kmura.errors import InputError
from kmura.records.cell_labels import CellLabels, any_of

UNKNOWN = -1


def agreed_labels(values: np.ndarray, times: np.ndarray, rule: str, classes: int) -> np.ndarray | None:
    """The label of an image with several different rows; None if the rows contradict each other.

    Args:
        values: int64 [R, L] of 0, 1 and -1, or class ids [R, 1], one row per different row of the tables.
        times: how often each row occurs [R].
        rule: `agree` needs equal rows, `any` takes what any row has, `majority` what most rows with a known label
            have; a tie is unknown.
        classes: number of classes of class ids; 0 for columns of 0 and 1.
    """
    if (values == values[0]).all():
        return values[0]
    if rule == "agree":
        return None
    if rule == "any":
        return np.array([any_of(column[None])[0] for column in values.T])
    return np.array([_most(column, times, max(classes, 2)) for column in values.T])


def agreed_in_studies(labels: np.ndarray, studies: Sequence[str]) -> dict[str, np.ndarray]:
    """The studies whose images have different labels -> the label that is positive where any image is.

    Args:
        labels: int64 [N, L] of 0, 1 and -1.
        studies: of the images [N].
    """
    places: dict[str, list[int]] = {}
    for place, study in enumerate(studies):
        places.setdefault(study, []).append(place)
    return {
        study: np.array([any_of(column[None])[0] for column in labels[rows].T])
        for study, rows in places.items()
        if len(rows) > 1 and (labels[rows] != labels[rows[0]]).any()
    }


def _most(votes: np.ndarray, times: np.ndarray, classes: int) -> int:
    """The value that most of the known votes have, -1 for a tie or without known votes."""
    known = votes >= 0
    if not known.any():
        return UNKNOWN
    counts = np.bincount(votes[known], weights=times[known], minlength=classes)
    best = np.flatnonzero(counts == counts.max())
    return int(best[0]) if len(best) == 1 else UNKNOWN


def settled_studies(
    labels: CellLabels, studies: Sequence[str], paths: Sequence[str], rule: str
) -> tuple[CellLabels, list[str], list[str]]:
    """Labels and studies such that the images of a study agree on the label, as every later step assumes; and notes.

    Args:
        labels: of the images [N].
        studies, paths: of the images [N].
        rule: `refuse` raises, `any-positive` gives all images of a study the positive label, `separate` makes each
            image of a study with different labels a study of its own.

    Raises:
        InputError: the rule is `refuse` and a study has images with different labels.
    """
    mixed = agreed_in_studies(labels.values, studies)
    if not mixed:
        return labels, list(studies), []
    number, total = len(mixed), len(set(studies))
    first = next(iter(mixed))
    what = f"{number} of {total} studies have images of different labels (such as {first})"
    if rule == "refuse":
        raise InputError(
            f"{what}; give --mixed-studies any-positive (all images get the positive label) or separate (each image "
            "becomes a study), or leave the study out"
        )
    if rule == "any-positive" and labels.kind == "single" and len(labels.classes) > 2:
        raise InputError(f"{what}; --mixed-studies any-positive needs labels of 0 and 1, so give separate")
    if rule == "separate":
        studies = [path if study in mixed else study for study, path in zip(studies, paths, strict=True)]
    else:
        values = [mixed.get(study, label) for study, label in zip(studies, labels.values, strict=True)]
        labels = dataclasses.replace(labels, values=np.array(values))
    done = "each of their images is a study" if rule == "separate" else "all their images have the positive label"
    return labels, list(studies), [f"{what}: {done}"]
