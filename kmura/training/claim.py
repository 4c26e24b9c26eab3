"""What a run folder claims: the description of a run that starts, and whether it may start or continue there."""

import dataclasses
import importlib.metadata
import platform
import shlex
import sys
from typing import Any

import keras
import tensorflow as tf

import kmura
from kmura.config import differences
from kmura.data.dataset import Dataset
from kmura.errors import InputError
from kmura.runs.run import RunDescription, RunFolder, read_run
from kmura.training.precision import resolved


def describe(dataset: Dataset, phase: str, config: Any, *, kind: str, command: str | None = None) -> RunDescription:
    """Returns the content of `run.json` for a run that starts now."""
    network = getattr(config, "model", None) or getattr(config, "encoder", None)
    return RunDescription(
        kind=kind,
        area=dataset.area,
        phase=phase,
        records=str(dataset.records.resolve()),
        inputs=dataset.manifest.inputs,
        channels=dataset.manifest.channels,
        config=config,
        versions={
            "kmura": kmura.__version__,
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "keras-hub": importlib.metadata.version("keras-hub"),
        },
        command=command or shlex.join(sys.argv),
        precision=resolved(config.train.precision, getattr(network, "backbone", None)),
        preparation=dataset.preparation(),
        task=dataset.labels.name,
        classes=dataset.labels.classes,
        areas=dataset.labels.areas,
        leaks=dataset.leaks(),
    )


def check_claim(folder: RunFolder, wanted: RunDescription, fresh: bool, started: bool, growing: str) -> RunDescription:
    """Checks that a run can start or continue in a folder; returns the description with which it does so.

    It is `wanted` with the dtype policy of the run that continues, so that `train.precision` = `auto` means the same
    on every machine.

    Args:
        folder: the run folder.
        wanted: description of the run that is requested.
        fresh: whether the folder will be deleted.
        started: whether the folder contains a state to continue from.
        growing: the only key that may have a larger value than before.

    Raises:
        InputError: the folder is not a run folder, or its run has another kind, another configuration or other records.
    """
    if fresh and folder.path.exists() and not folder.description.exists() and any(folder.path.iterdir()):
        raise InputError(f"{folder.path} is not a run folder; --fresh does not delete it, choose another --runs folder")
    if not started:
        return wanted
    before = read_run(folder.path)
    if before.kind != wanted.kind:
        raise InputError(f"{folder.path} is a run of kind {before.kind}; choose another --runs folder")
    changed = differences(before.config, wanted.config)
    stage, _, key = growing.partition(".")
    old, new = (getattr(getattr(config, stage), key) for config in (before.config, wanted.config))
    longer = len(changed) == 1 and new > old
    if growing == "train.epochs" and getattr(wanted.config.train, "schedule", "constant") != "constant":
        longer = False  # another number of epochs would have changed the finished ones
    if changed and not longer:
        raise InputError(
            f"{folder.path} is a run of another configuration ({'; '.join(changed)}); "
            "repeat the old settings to continue, choose another --runs folder, or delete this run and start again "
            "with --fresh"
        )
    if before.inputs != wanted.inputs:
        raise InputError(
            f"{folder.path} was trained on other records ({before.records}); "
            "choose another --runs folder, or delete this run and start again with --fresh"
        )
    return dataclasses.replace(wanted, precision=before.policy)
