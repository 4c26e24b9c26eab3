"""The contract of an ensemble: several models whose calibrated probabilities are averaged."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kmura.errors import InputError
from kmura.runs.fold_runs import fold_of
from kmura.runs.run import Run
from kmura.serving.contract import Contract, Member

# fields of a contract that all models of an ensemble share -> what they are, for messages
_SHARED = {
    "task": "tasks",
    "classes": "classes",
    "abnormal": "areas",
    "channels": "channels",
    "image_size": "image sizes",
    "resize": "ways of resizing",
    "max_side": "largest sides of images",
    "pooling": "poolings of studies; evaluate them with the same --pooling",
    "top_k": "values of --top-k; evaluate them with the same",
    "rule": "rules of the threshold",
}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A model that may become part of an ensemble.

    Attributes:
        path: as the user gave it.
        name: of its run, see `name_of`.
        area: of its run; "" if it is not known.
        contract: its preprocessing and postprocessing; it may be an ensemble already.
    """

    path: str
    name: str
    area: str
    contract: Contract


def ensemble_contract(candidates: Sequence[Candidate]) -> Contract:
    """Returns the contract of the mean of several models; the members of ensembles among them count one by one.

    The threshold is the mean of the thresholds that the rule selected for each model on its own val split.

    Raises:
        InputError: the models are of different areas or classes, prepare images differently, pool studies differently,
            decide by different rules, or one is given twice.
    """
    first = candidates[0]
    resolved = [Path(one.path).resolve() for one in candidates]
    if len(set(resolved)) < len(resolved):
        twice = next(one.path for one, path in zip(candidates, resolved, strict=True) if resolved.count(path) > 1)
        raise InputError(f"{twice} is given twice; give each model of an ensemble once")
    for other in candidates[1:]:
        if first.area and other.area and first.area != other.area:
            raise InputError(
                f"{first.path} is of the area {first.area} and {other.path} of {other.area}; an ensemble needs models "
                "of one area"
            )
        for field, words in _SHARED.items():
            ours, theirs = getattr(first.contract, field), getattr(other.contract, field)
            if ours != theirs:
                raise InputError(
                    f"{first.path} and {other.path} cannot form an ensemble: they have different {words} "
                    f"({_shown(ours)}, {_shown(theirs)})"
                )
    members, thresholds = [], []
    for one in candidates:
        for part, of_part in zip(one.contract.members or [None], one.contract.of_members(), strict=True):
            name = part.name if part else one.name
            members.append(Member(name, of_part.calibrator, of_part.calibrated_at, of_part.tap))
            thresholds.append(one.contract.threshold)
    qualities = [one.contract.jpeg_quality for one in candidates if one.contract.jpeg_quality is not None]
    return dataclasses.replace(
        first.contract,
        calibrator=None,
        threshold=float(np.mean(thresholds)) if len(set(thresholds)) > 1 else thresholds[0],
        jpeg_quality=min(qualities, default=None),
        members=tuple(members),
    )


def name_of(run: Run) -> str:
    """Returns the name of a run without the folder of all runs: `XR_WRIST/baseline`, `fold0/XR_WRIST/baseline`."""
    name = f"{run.area}/{run.phase}"
    return name if fold_of(run) is None else f"fold{fold_of(run)}/{name}"


def _shown(value) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
