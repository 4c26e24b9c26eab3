"""The folder of a run: the only place that knows its file names and how its description is read and written.

`RUNS/AREA/PHASE/` holds `run.json` (what was asked for), `history.csv` (one row per epoch), `best.keras` (the plain
model of the best epoch), `last/` (everything needed to resume), and, written by the evaluation, `predictions.csv` and
`metrics.json`. `RUNS/summary.csv` and `RUNS/history.csv` join all runs.
"""

import contextlib
import dataclasses
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from kmura import kinds
from kmura.config import config_from_tables, from_run_version_1
from kmura.data.dataset import Dataset
from kmura.errors import InputError, in_brief
from kmura.files import locked, reading_json, replacing, sha256_of, write_json
from kmura.tasks import Task, joint_areas_of, task_of

if TYPE_CHECKING:
    import keras

RUN_VERSION = 2
LOSSES = ("val_loss", "val_loss_img")  # columns of the history for which less is better
TUNED_VALUES = "best.json"  # of the phase tune


def _inside(name: str) -> property:
    return property(lambda folder: folder.path / name)


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths of the files of a run."""

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
        kind: a name of `kmura.kinds.KINDS`.
        area, phase: which run this is.
        records: absolute path of the records folder.
        inputs: the fingerprint of those records (`inputs` of their manifest).
        channels: of the images, 1 (gray) or 3 (RGB).
        config: everything else that decides the outcome, the configuration bundle of the kind.
        versions: of kmura, Python, TensorFlow, Keras, keras-hub.
        command: the command line or call that made the run.
        task, classes, areas: of a model with labels, see `labels`; else empty.
        finished: whether all epochs are done.
    """

    kind: str
    area: str
    phase: str
    records: str
    inputs: str
    channels: int
    config: Any
    versions: dict[str, str]
    command: str
    task: str = ""
    classes: tuple[str, ...] = ()
    areas: tuple[str, ...] = ()
    finished: bool = False
    run_version: int = RUN_VERSION

    @property
    def labels(self) -> Task | None:
        """The task of the model; None for a kind without labels."""
        return task_of(self.task, self.classes, self.areas) if self.task else None


class Run:
    """A run folder, opened once.

    Attributes:
        path: of the folder.
        folder: the paths of its files.
        description: what `run.json` says.
    """

    def __init__(self, path: "str | os.PathLike | Run"):
        """
        Raises:
            InputError: there is no run, its description is damaged, or it is of a version that cannot be read.
        """
        self.path = Path(path)
        self.folder = RunFolder(self.path)
        self.description = read_run(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def kind(self) -> str:
        return self.description.kind

    @property
    def area(self) -> str:
        return self.description.area

    @property
    def phase(self) -> str:
        return self.description.phase

    @property
    def config(self) -> Any:
        return self.description.config

    @property
    def labels(self) -> Task | None:
        return self.description.labels

    def part(self, name: str) -> Any:
        """The part `name` of the run's kind, see `kmura.kinds.Kind`."""
        return kinds.part(self.kind, name)

    def dataset(self, records: str | os.PathLike | None = None) -> Dataset:
        """The data that the run was trained on.

        Args:
            records: where the records are now, if they have moved since the run.

        Raises:
            InputError: the records are gone, or are others than those of the run.
        """
        dataset = Dataset(records or self.description.records, self.area, self.config.data)
        dataset.check_inputs(self.description.inputs, self.path)
        return dataset

    def history(self) -> pd.DataFrame:
        """One row per finished epoch.

        Raises:
            InputError: `history.csv` cannot be read.
        """
        try:
            return pd.read_csv(self.folder.history)
        except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
            raise InputError(f"{self.folder.history} cannot be read ({error}); fit again to go on") from error

    def model(self) -> "keras.Model":
        """The model of the best epoch.

        Raises:
            InputError: there is none, or it cannot be loaded.
        """
        return load_model(self.folder.best)

    def model_sha256(self) -> str:
        """The SHA-256 of `best.keras`, hexadecimal."""
        return sha256_of(self.folder.best)

    def epochs_trained(self) -> str:
        """How many epochs the run has behind it, in words; see `epochs_trained`."""
        return epochs_trained(self.folder, self.config)


def load_model(path: str | os.PathLike) -> "keras.Model":
    """A saved model.

    Raises:
        InputError: there is no such file, or it cannot be loaded.
    """
    import keras

    if not Path(path).is_file():
        raise InputError(f"{path} does not exist; the run has no best epoch yet: run kmura fit again to go on")
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:  # a damaged archive raises whatever its layers raise
        what = f"{type(error).__name__}: {in_brief(error)}"
        raise InputError(f"{path} cannot be loaded ({what}); fit again with --fresh") from error


def claimed(folder: Path) -> contextlib.AbstractContextManager[None]:
    """A block in which no other process writes to a run folder.

    Raises:
        InputError: another process does already, or nothing can be written there.
    """
    busy = f"another process is training {folder}; wait for it or choose another --runs"
    return locked(folder.with_name(f".{folder.name}.lock"), busy)  # beside it: the folder itself may be dropped


def drop_run(folder: Path) -> None:
    """Deletes a run folder: it is moved aside as a whole first, so that a kill leaves no half of it in its place."""
    aside = folder.with_name(f".{folder.name}.dropped")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        os.replace(folder, aside)
        shutil.rmtree(aside)


def write_run(folder: RunFolder, description: RunDescription) -> None:
    """`run.json` of a run, written whole or not at all."""
    write_json(folder.description, dataclasses.asdict(description))


def read_run(path: str | os.PathLike) -> RunDescription:
    """What the `run.json` of a run folder says; that of run version 1 with today's names.

    Raises:
        InputError: there is no run, the file is damaged, or it is of a version that this kmura cannot read.
    """
    file = RunFolder(Path(path)).description
    missing = f"{path} is no run folder (no run.json); give runs/AREA/PHASE as kmura fit made it"
    with reading_json(file, fix="fit again with --fresh", missing=missing) as raw:
        version = raw.get("run_version")
        if version == 1:
            raw = _from_version_1(raw)
        elif version != RUN_VERSION:
            raise InputError(
                f"{file} has run version {version}, this kmura reads versions 1 and {RUN_VERSION}; "
                "use the kmura that made it, or fit again with --fresh"
            )
        config = config_from_tables(raw["config"], str(file), kinds.part(raw["kind"], "config"))
        names = {"classes": tuple(raw["classes"]), "areas": tuple(raw["areas"])}
        return RunDescription(**raw | {"config": config} | names)


def _from_version_1(raw: dict) -> dict:
    """A description of version 1, which knew one kind, called splits `tune` and `valid`, and stated no areas."""
    return raw | {
        "kind": kinds.CLASSIFICATION,
        "areas": joint_areas_of(raw["area"], raw["task"], raw["classes"]),
        "config": from_run_version_1(raw["config"]),
        "run_version": RUN_VERSION,
    }


def epochs_trained(folder: RunFolder, config: Any) -> str:
    """How many epochs a run has behind it, in words: `12 epochs`, or `7 of at most 12 epochs` if it ended before."""
    most = config.train.epochs
    try:
        done = int(pd.read_csv(folder.history)["epoch"].max())
    except (OSError, ValueError, KeyError):  # pandas' own errors are ValueErrors
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
        select_on = getattr(description.config.train, "select_on", "")
        keys = {"area": description.area, "phase": description.phase, "select_on": select_on}
        histories.append(history.assign(**keys)[[*keys, *history.columns]])
    if not histories:
        return
    best = pd.concat([history[history["best"]].tail(1) for history in histories])
    if monitor in best:
        best = best.sort_values(monitor, ascending=monitor in LOSSES)
    summary = best.drop(columns="best")
    for name, table in (("history", pd.concat(histories)), ("summary", summary)):
        with replacing(runs / f"{name}.csv") as out:
            table.to_csv(out, index=False)
