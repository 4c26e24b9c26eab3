"""The folder of a run: the only place that knows its file names.

`RUNS/AREA/PHASE/` holds `run.json` (what was asked), `history.csv` (a row an epoch), `best.keras` (the plain
classifier of the best epoch), `last/` (everything needed to go on), and, written by the evaluation, `predictions.csv`
and `metrics.json`. `RUNS/summary.csv` and `RUNS/history.csv` join all runs.
"""

import contextlib
import dataclasses
import os
import shutil
from pathlib import Path

import pandas as pd

from kmura.config import ClassificationConfig, config_from_tables
from kmura.errors import InputError
from kmura.files import locked, reading_json, replacing, write_json

RUN_VERSION = 1
LOSSES = ("val_loss_img",)  # columns of the history of which less is better
TUNED_VALUES = "best.json"  # of the phase tune


def _inside(name: str) -> property:
    return property(lambda folder: folder.path / name)


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths of one run's files."""

    path: Path

    description = _inside("run.json")
    history = _inside("history.csv")
    best = _inside("best.keras")
    last = _inside("last")
    predictions = _inside("predictions.csv")
    metrics = _inside("metrics.json")
    explained = _inside("explain")  # folder of the pictures of `kmura explain`
    explanation = _inside("explain/explain.json")


@dataclasses.dataclass(frozen=True)
class RunDescription:
    """What `run.json` says.

    Attributes:
        area, phase: which run this is.
        records: absolute path of the records folder.
        inputs: the fingerprint of those records (`inputs` of their manifest).
        classes, task, channels: of the records.
        config: everything else that decides the outcome.
        versions: of kmura, Python, TensorFlow, Keras, keras-hub.
        command: the command line or call that made the run.
        finished: whether all epochs are done.
    """

    area: str
    phase: str
    records: str
    inputs: str
    classes: tuple[str, ...]
    task: str
    channels: int
    config: ClassificationConfig
    versions: dict[str, str]
    command: str
    finished: bool = False
    run_version: int = RUN_VERSION


def claimed(folder: Path) -> contextlib.AbstractContextManager[None]:
    """A block in which no other process writes to a run folder.

    Raises:
        InputError: one does already, or nothing can be written there.
    """
    busy = f"another process is training {folder}; wait for it or choose another --runs"
    return locked(folder.with_name(f".{folder.name}.lock"), busy)  # beside it: the folder itself may be dropped


def drop_run(folder: Path) -> None:
    """Deletes a run folder: first out of the way as a whole, so that a kill leaves no half of it in its place."""
    aside = folder.with_name(f".{folder.name}.dropped")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        os.replace(folder, aside)
        shutil.rmtree(aside)


def write_run(folder: RunFolder, description: RunDescription) -> None:
    """`run.json` of a run, whole or not at all."""
    write_json(folder.description, dataclasses.asdict(description))


def read_run(path: str | os.PathLike) -> RunDescription:
    """What a run folder's `run.json` says.

    Raises:
        InputError: no run there, a damaged file, or one of another version.
    """
    file = RunFolder(Path(path)).description
    missing = f"{path} is no run folder (no run.json); give runs/AREA/PHASE as kmura fit made it"
    with reading_json(file, mend="fit again with --fresh", missing=missing) as raw:
        if raw.get("run_version") != RUN_VERSION:
            raise InputError(
                f"{file} has run version {raw.get('run_version')}, this kmura reads {RUN_VERSION}; fit again"
            )
        config = config_from_tables(raw["config"], str(file))
        return RunDescription(**raw | {"config": config, "classes": tuple(raw["classes"])})


def epochs_trained(folder: RunFolder, config: ClassificationConfig) -> str:
    """How many epochs a run has behind it, in words: `12 epochs`, `7 of at most 12 epochs` if it ended before."""
    most = config.train.epochs
    try:
        done = int(pd.read_csv(folder.history)["epoch"].max())
    except (OSError, ValueError, KeyError):  # pandas' own are ValueErrors
        return f"at most {most} epochs"
    return f"{done} of at most {most} epochs" if done < most else f"{done} epochs"


def write_summaries(runs: str | os.PathLike, monitor: str) -> None:
    """`summary.csv` (best epoch of every run, best score first) and `history.csv` (all epochs) over a runs folder."""
    runs = Path(runs)
    histories = []
    for file in sorted(runs.glob("*/*/run.json")):
        folder = RunFolder(file.parent)
        try:
            history, description = pd.read_csv(folder.history), read_run(folder.path)
        except (OSError, pd.errors.ParserError, pd.errors.EmptyDataError, InputError):
            continue  # a run that has no epoch behind it yet
        keys = {"area": description.area, "phase": description.phase, "select_on": description.config.train.select_on}
        histories.append(history.assign(**keys)[[*keys, *history.columns]])
    if not histories:
        return
    best = [history[history["best"]].tail(1) for history in histories]
    summary = pd.concat(best).sort_values(monitor, ascending=monitor in LOSSES).drop(columns="best")
    for name, table in (("history", pd.concat(histories)), ("summary", summary)):
        with replacing(runs / f"{name}.csv") as out:
            table.to_csv(out, index=False)
