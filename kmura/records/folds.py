"""Folds of a cross-validation: whole patients, stratified by area and label."""

import collections
import dataclasses
from collections.abc import Iterable, Sequence

from kmura.errors import InputError
from kmura.records.layouts.base import Source
from kmura.records.splits import Labelled, stratified_patients
from kmura.tasks import TASKS


def assign_folds(sources: Iterable[Source], number: int, seed: int) -> list[Source]:
    """The sources with a fold, 0 to `number` - 1, for all images that are not in `test`.

    See `dealt_folds`.

    Args:
        sources: all images.
        number: of folds, 2 or more.
        seed: chooses the patients.

    Raises:
        InputError: fewer than two folds, more folds than patients, or the source has folds already.
    """
    sources = list(sources)
    if number < 2:
        raise InputError(f"--folds {number}: 2 or more are needed")
    if any(source.fold is not None for source in sources):
        raise InputError("--folds contradicts --folds-column; give one of them")
    fold_of = dealt_folds((source for source in sources if source.split != "test"), number, seed)
    return [
        source if source.split == "test" else dataclasses.replace(source, fold=fold_of[source.patient])
        for source in sources
    ]


def dealt_folds(images: Iterable[Labelled], number: int, seed: int) -> dict[str, int]:
    """Patient -> fold, 0 to `number` - 1.

    Patients are sorted as for the splits, by their (area, label) pairs and then by a keyed hash, and dealt out in turn,
    so that every kind of patient is in all folds equally often, to within one patient.

    Args:
        images: all images outside of `test`.
        number: of folds, 1 or more.
        seed: chooses the patients.

    Raises:
        InputError: there are more folds than patients.
    """
    order = stratified_patients(images, seed, "fold")
    if number > len(order):
        raise InputError(f"--folds {number} is more than the {len(order)} patients outside of test; give fewer")
    return {patient: place % number for place, patient in enumerate(order)}


def without_test(sources: Iterable[Source]) -> list[Source]:
    """The sources; those in `test`, which is only ever scored, lose their fold."""
    return [
        dataclasses.replace(source, fold=None) if source.split == "test" and source.fold is not None else source
        for source in sources
    ]


def check_folds(sources: Sequence[Source], classes: Sequence[str], task: str, has_patients: bool) -> list[str]:
    """Checks that every fold of every area has every class, and that no patient is in two folds; returns notes.

    Labels of a multilabel task may be too rare for that; then a note names them.

    Raises:
        InputError: a fold lacks a class, or a patient is in two folds.
    """
    folded = [source for source in sources if source.fold is not None]
    if not folded:
        return []
    fold_of: dict[str, int] = {}
    for source in folded if has_patients else ():
        if fold_of.setdefault(source.patient, source.fold) != source.fold:
            raise InputError(
                f"patient {source.patient} is in the folds {fold_of[source.patient]} and {source.fold}, so scores "
                "would be optimistic; correct the folds"
            )
    several = TASKS[task].by_label
    present: dict[tuple[str, int], set[int]] = collections.defaultdict(set)
    for source in folded:
        labels = [number for number, value in enumerate(source.label) if value == 1] if several else source.label
        present[source.area, source.fold].update(labels)
    notes = []
    for (area, fold), labels in sorted(present.items()):
        lacking = [name for number, name in enumerate(classes) if number not in labels]
        if lacking and len(lacking) < len(classes):  # areas without any label are for pretraining
            text = f"fold {fold} of area {area} has no {' or '.join(lacking)} images"
            if not several:
                raise InputError(f"{text}; give fewer --folds, or add images")
            notes.append(f"{text}, so scores on it exclude these labels")
    return notes
