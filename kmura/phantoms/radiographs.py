"""Phantoms: a tree of synthetic radiographs in the layout of MURA, generated from a seed.

Each image is a projection of a posed skeleton (`anatomy`) with soft tissue, exposure, noise, collimation and an L/R
marker. The views of a study share the patient and the lesion. An abnormal study has one lesion: a displaced fracture, a
plate with screws, or a lytic hole with a sclerotic rim; sometimes only one of its views shows the lesion. Every image
is a function of (seed, area, split, study, view) alone.
"""

import csv
import dataclasses
import functools
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from kmura.errors import InputError, check_choice, reason, remedy
from kmura.files import aside_name
from kmura.phantoms.film import Box, View, draw_view
from kmura.phantoms.plan import AREAS, KINDS, SECOND_STUDY, SPLITS, StudyKey, plan_lesion, plan_shots, view_count
from kmura.records.images import encode_png
from kmura.workers import in_processes, processors


@dataclasses.dataclass(frozen=True)
class PhantomSummary:
    """Numbers of written images, studies and patients, over both splits and all areas."""

    images: int
    studies: int
    patients: int


def render_view(
    area: str,
    *,
    seed: int = 0,
    split: str = "train",
    study: int = 0,
    view: int = 0,
    lesion: bool | str = False,
    side: int = 512,
    shortcut: bool = False,
    patient: int | None = None,
) -> View:
    """One synthetic radiograph: uint8 pixels [H, W] (longest side `side`), lesion boxes, marker boxes.

    A pure function of its arguments. `lesion` True draws the lesion of the study if this view shows it, one of `KINDS`
    draws a lesion of that kind, False gives the same image without a lesion. `patient` is the index of the first study
    of the same patient. `view` counts from 0 to `study_views` - 1.

    Raises:
        InputError: an unknown area, split or kind, or a view that the study does not have.
    """
    check_choice("area", area, AREAS)
    check_choice("split", split, SPLITS)
    if not isinstance(lesion, bool):
        check_choice("lesion", lesion, KINDS)
    key = StudyKey(seed, area, split, study, study if patient is None else patient)
    shots = plan_shots(key, side)
    if not 0 <= view < len(shots):
        raise InputError(f"view {view}: study {study} of {area} has {len(shots)} views; choose 0 to {len(shots) - 1}")
    planned = plan_lesion(key, shots, None if isinstance(lesion, bool) else lesion) if lesion else None
    return draw_view(key, shots, view, planned, shortcut)


def study_views(area: str, *, seed: int = 0, split: str = "train", study: int = 0) -> int:
    """The number of views of a study, 1 to 4."""
    return view_count(StudyKey(seed, area, split, study, study))


@dataclasses.dataclass(frozen=True)
class _Task:
    """One study to write."""

    key: StudyKey
    folder: str  # relative to the root of the tree, posix
    positive: bool
    shortcut: float
    side: int
    rgb_fraction: float


def _write_study(root: str, task: _Task) -> tuple[int, list[tuple], list[tuple]]:
    """Writes the images of a study; returns their number, the rows of lesions.csv and the rows of markers.csv."""
    shots = plan_shots(task.key, task.side)
    lesion = plan_lesion(task.key, shots, None) if task.positive else None
    folder = Path(root, task.folder)
    folder.mkdir(parents=True, exist_ok=True)
    lesions, markers = [], []
    for view in range(len(shots)):
        chance = task.key.rng("tree", view)
        marked = bool(chance.random() < task.shortcut) and task.positive and task.key.split == "train"
        drawn = draw_view(task.key, shots, view, lesion, marked)
        channels = 3 if chance.random() < task.rgb_fraction else 1
        name = f"image{view + 1}.png"
        pixels = drawn.pixels if channels == 1 else np.repeat(drawn.pixels[:, :, None], channels, axis=2)
        (folder / name).write_bytes(encode_png(pixels, level=1))
        lesions += [(f"{task.folder}/{name}", *box) for box in drawn.lesions]
        markers += [(f"{task.folder}/{name}", *box) for box in drawn.markers]
    return len(shots), lesions, markers


def _tasks(areas: Sequence[str], studies: dict[str, int], seed: int, positive_fraction: float, **form) -> list[_Task]:
    """Every study of the tree. Patients are numbered consecutively, so no patient is in two splits or areas."""
    tasks, number = [], 0
    for split, count in studies.items():
        for area in areas:
            place = (seed, AREAS.index(area), SPLITS.index(split))
            rng = np.random.default_rng(place)
            positives = round(count * positive_fraction)
            if 0 < positive_fraction < 1 < count:
                positives = min(max(positives, 1), count - 1)
            labels = rng.permutation(count) < positives
            second = rng.random(count) < SECOND_STUDY
            first, visit = 0, 1
            for study in range(count):
                if study and second[study] and visit == 1:
                    visit = 2
                else:
                    first, visit, number = study, 1, number + 1
                verdict = "positive" if labels[study] else "negative"
                folder = f"{split}/{area}/patient{number:05d}/study{visit}_{verdict}"
                tasks.append(_Task(StudyKey(seed, area, split, study, first), folder, bool(labels[study]), **form))
    return tasks


def write_phantoms(
    out: str | os.PathLike,
    *,
    areas: Iterable[str] = AREAS,
    train_studies: int = 200,
    test_studies: int = 60,
    seed: int = 0,
    side: int = 512,
    positive_fraction: float = 0.5,
    shortcut: float = 0.0,
    rgb_fraction: float = 0.0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PhantomSummary:
    """Writes a tree of synthetic radiographs in the layout of MURA to `out` and returns its numbers.

    Beside the images and the four CSV files of MURA it writes `lesions.csv` (boxes of the lesions) and `markers.csv`
    (boxes of the L/R letter and of the shortcut marker), with the columns image, kind, x0, y0, x1, y1. The tree appears
    complete or not at all, and its bytes do not depend on the number of workers.

    Args:
        out: a new or empty folder.
        areas: areas of the skeleton, from `AREAS`.
        train_studies, test_studies: studies per area in the folders `train` and `valid`.
        seed: 0 or more.
        side: longest side of the images, pixels.
        positive_fraction: share of the studies that are abnormal.
        shortcut: probability that an image of an abnormal TRAINING study has a marker of fixed appearance near a
            corner, to measure shortcut learning. Normal and held-out images never have it, so a model that relies on it
            scores well in training and worse on held-out images.
        rgb_fraction: share of the images that are stored as RGB, as some of MURA are.
        workers: processes; None: one per processor, fewer for small trees; 1 uses this process. A script that asks for
            more needs the usual `if __name__ == "__main__":` guard.
        progress: called with (studies done, studies in total).

    Raises:
        InputError: `out` exists and is not empty or cannot be written; an argument is outside its range.
    """
    out, areas = Path(os.path.abspath(out)), tuple(areas)
    if not areas:
        raise InputError(f"areas is empty; choose from {', '.join(AREAS)}")
    for area in areas:
        check_choice("area", area, AREAS)
    if len(set(areas)) < len(areas):
        raise InputError(f"areas {', '.join(areas)}: an area is given twice; give each once")
    for name, value in (("train_studies", train_studies), ("test_studies", test_studies)):
        _at_least(name, value, 1)
    _at_least("seed", seed, 0)
    _at_least("side", side, 32)
    if workers is not None:
        _at_least("workers", workers, 1)
    fractions = {"positive_fraction": positive_fraction, "shortcut": shortcut, "rgb_fraction": rgb_fraction}
    for name, value in fractions.items():
        if not 0 <= value <= 1:
            raise InputError(f"{name} is {value}; give a fraction from 0 to 1")
    studies = {"train": train_studies, "valid": test_studies}
    tasks = _tasks(areas, studies, seed, positive_fraction, shortcut=shortcut, side=side, rgb_fraction=rgb_fraction)
    if workers is None:
        workers = max(1, min(processors(), len(tasks) // 24))
    try:
        if out.is_dir() and any(out.iterdir()):
            raise InputError(f"{out} exists and is not empty; choose a new folder or empty it first")
        if out.exists() and not out.is_dir():
            raise InputError(f"{out} is a file; choose a new folder")
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = aside_name(out)
        try:
            shutil.rmtree(aside, ignore_errors=True)  # of a dead process with the same id
            aside.mkdir()
            results = _write_studies(aside, tasks, workers, progress)
            _write_lists(aside, tasks, results)
            if out.is_dir():
                out.rmdir()  # it is empty; some systems cannot rename onto a folder
            aside.rename(out)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except BrokenProcessPool as error:
        raise InputError(
            f"cannot write {out}: a drawing process died (out of memory, or the script that called lacks "
            "`if __name__ == '__main__':`); use workers=1"
        ) from error
    except OSError as error:
        place = error.filename if error.filename in map(str, out.parents) else out
        raise InputError(f"cannot write {place}: {reason(error)}; {remedy(error)}") from error
    patients = sum(task.key.patient == task.key.study for task in tasks)
    return PhantomSummary(sum(result[0] for result in results), len(tasks), patients)


def _write_studies(root: Path, tasks: Sequence[_Task], workers: int, progress) -> list:
    """The results of `_write_study`, in the order of the tasks."""
    work = functools.partial(_write_study, str(root))
    results = []
    for result in in_processes(work, tasks, workers, in_order=True):
        results.append(result)
        if progress:
            progress(len(results), len(tasks))
    return results


def _write_lists(root: Path, tasks: Sequence[_Task], results: Sequence) -> None:
    """Writes the four CSV files of MURA and the two of boxes."""
    for split in SPLITS:
        pairs = [(task, result) for task, result in zip(tasks, results, strict=True) if task.key.split == split]
        _write_rows(
            root / f"{split}_image_paths.csv",
            ((f"MURA-v1.1/{task.folder}/image{view + 1}.png",) for task, result in pairs for view in range(result[0])),
        )
        _write_rows(
            root / f"{split}_labeled_studies.csv",
            ((f"MURA-v1.1/{task.folder}/", int(task.positive)) for task, _ in pairs),
        )
    header = ("image", *Box._fields)
    _write_rows(root / "lesions.csv", [header, *(row for _, lesions, _ in results for row in lesions)])
    _write_rows(root / "markers.csv", [header, *(row for _, _, markers in results for row in markers)])


def _write_rows(path: Path, rows: Iterable[tuple]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise InputError(f"{name} is {value}; give {least} or more")
