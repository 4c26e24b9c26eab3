"""The runs of a cross-validation, one per fold: `RUNS/fold0/AREA/PHASE`, `RUNS/fold1/AREA/PHASE`, ...

What is computed from all of them is a run of the kind `folds`: `RUNS/folds/AREA/PHASE`.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from kmura import kinds
from kmura.config import differences
from kmura.errors import InputError
from kmura.runs.run import Run, RunFolder

POOLED = "folds"  # folder beside fold0, fold1, ...
FOLD_RUNS = "fold[0-9]*/*/*/run.json"  # pattern in the folder of all runs
_COMMON = ("data.", "model.", "train.select_on:")  # keys that all folds share; each may have been tuned by itself


@dataclasses.dataclass(frozen=True)
class FoldRuns:
    """The runs of one area and phase, each with another held-out fold.

    Attributes:
        root: the folder of `fold0`, `fold1`, ...
        runs: in the order of the folds.
    """

    root: Path
    runs: tuple[Run, ...]

    @property
    def number(self) -> int:
        """The number of folds, K; there may be fewer runs."""
        return self.runs[0].config.data.folds

    @property
    def missing(self) -> tuple[int, ...]:
        """The folds without a run."""
        present = {fold_of(run) for run in self.runs}
        return tuple(number for number in range(self.number) if number not in present)

    @property
    def folder(self) -> RunFolder:
        """The folder of what is computed from all runs."""
        return RunFolder(self.root / POOLED / self.runs[0].area / self.runs[0].phase)


def fold_of(run: Run) -> int | None:
    """Returns the held-out fold of a classifier; None if it was not trained on folds."""
    if run.kind != kinds.CLASSIFICATION or not run.config.data.folds:
        return None
    return run.config.data.fold


def fold_groups(paths: Sequence[str | os.PathLike | Run]) -> list[FoldRuns]:
    """Returns the cross-validations that paths stand for.

    Args:
        paths: runs of folds; folders that contain `fold0/AREA/PHASE`, `fold1/AREA/PHASE`, ...; or runs of the kind
            `folds`, which stand for the runs of their folds.

    Raises:
        InputError: a path is none of these; two runs of a cross-validation have the same fold, or differ in data,
            model, classes or records.
    """
    groups: dict[tuple, list[Run]] = {}
    for path in paths:
        for run in _runs_at(path):
            root = run.path.resolve().parents[2]
            groups.setdefault((root, run.area, run.phase), []).append(run)
    return [FoldRuns(root, _checked(runs)) for (root, _, _), runs in groups.items()]


def is_folder_of_folds(path: str | os.PathLike | Run) -> bool:
    """Returns whether a path is a folder that contains runs of folds, or a run of the kind `folds`."""
    path = Path(path)
    if not path.is_dir():
        return False
    if RunFolder(path).description.is_file():
        return Run(path).kind == kinds.FOLDS
    return any(path.glob(FOLD_RUNS))


def _runs_at(path: str | os.PathLike | Run) -> list[Run]:
    path = Path(path)
    if not RunFolder(path).description.is_file():
        runs = [Run(file.parent) for file in sorted(path.glob(FOLD_RUNS))]
        runs = [run for run in runs if fold_of(run) is not None]
        if not runs:
            raise InputError(
                f"{path} is neither a run (runs/AREA/PHASE) nor a folder of folds (with fold0/AREA/PHASE); train folds "
                "with kmura fit --folds K"
            )
        return runs
    run = Run(path)
    if run.kind == kinds.FOLDS:
        root = path.resolve().parents[2]
        runs = [Run(file.parent) for file in sorted(root.glob(f"fold[0-9]*/{run.area}/{run.phase}/run.json"))]
        runs = [of_fold for of_fold in runs if fold_of(of_fold) is not None]
        if not runs:
            raise InputError(f"the runs of the folds of {path} are no longer in {root}; move them back")
        return runs
    if fold_of(run) is None:
        raise InputError(
            f"{path} was not trained on folds, so it cannot be pooled with others; give one run alone, or the runs of "
            "kmura fit --folds K"
        )
    return [run]


def _checked(runs: list[Run]) -> tuple[Run, ...]:
    """The runs in the order of their folds.

    Raises:
        InputError: two have the same fold, or differ in data, model, classes or records.
    """
    runs = sorted(runs, key=fold_of)
    first = runs[0]
    for before, run in zip(runs[:-1], runs[1:], strict=True):
        if fold_of(run) == fold_of(before):
            raise InputError(f"{before} and {run} both hold out fold {fold_of(run)}; give each fold once")
        if run.description.inputs != first.description.inputs:
            raise InputError(f"{first} and {run} were trained on different records; train all folds on the same")
        if run.description.classes != first.description.classes:
            raise InputError(f"{first} and {run} have different classes; train all folds alike")
        changed = [text for text in differences(first.config, run.config) if text.startswith(_COMMON)]
        changed = [text for text in changed if not text.startswith("data.fold:")]
        if changed:
            raise InputError(f"{first} and {run} are not folds of one model ({'; '.join(changed)}); train them alike")
    return tuple(runs)


def members_of(paths: Sequence[str | os.PathLike]) -> list[Path]:
    """Returns the paths of models; a folder of folds and a run of the kind `folds` are replaced by the runs of folds.

    Raises:
        InputError: there are no paths, a folder contains folds of several models, or a fold has no run.
    """
    if not paths:
        raise InputError("no model is given; give a run such as runs/XR_WRIST/baseline")
    members: list[Path] = []
    for path in paths:
        if not is_folder_of_folds(path):
            members.append(Path(path))
            continue
        groups = fold_groups([path])
        if len(groups) > 1:
            found = ", ".join(f"{group.runs[0].area}/{group.runs[0].phase}" for group in groups)
            raise InputError(f"{path} contains the folds of {len(groups)} models ({found}); give RUNS/fold*/AREA/PHASE")
        members += [run.path for run in groups[0].runs]
    return members


def with_folds_pooled(paths: Sequence[str | os.PathLike | Run], *, also_single: bool = False) -> list[Path]:
    """Returns the paths of runs; what stands for a cross-validation is replaced by its run of the kind `folds`.

    Args:
        paths: runs, or folders of folds.
        also_single: whether also two or more runs of folds of one cross-validation are replaced.

    Raises:
        InputError: the folds are not pooled yet; see also `fold_groups`.
    """
    result: list[Path] = []
    groups = {group.folder.path: group for group in fold_groups(list(filter(is_folder_of_folds, paths)))}
    if also_single:
        singles = [path for path in paths if not is_folder_of_folds(path) and fold_of(Run(path)) is not None]
        groups |= {group.folder.path: group for group in fold_groups(singles) if len(group.runs) > 1}
    for path in paths:
        mine = [folder for folder, group in groups.items() if _stands_for(path, group)]
        result += [folder for folder in mine if folder not in result] or ([] if mine else [Path(path)])
    for folder in result:
        if folder in groups and not RunFolder(folder).metrics.is_file():
            group = groups[folder]
            where = " ".join(str(run) for run in group.runs)
            raise InputError(f"the folds in {group.root} are not pooled; run kmura evaluate {where}")
    return result


def _stands_for(path: str | os.PathLike | Run, group: FoldRuns) -> bool:
    """Whether a path is a run of a cross-validation, its pooled run, or the folder that contains it."""
    resolved = Path(path).resolve()
    own = {run.path.resolve() for run in group.runs} | {group.root, group.folder.path.resolve()}
    return resolved in own
