"""The folder of a run: the only place that knows its file names and how its description is read and written.

`RUNS/AREA/PHASE/` contains `run.json` (the description of the run), `history.csv` (one row per epoch), `best.keras`
(the model of the best epoch, without optimizer), `last/` (the checkpoint), and, written by the evaluation,
`predictions.csv` and `metrics.json`. `RUNS/summary.csv` and `RUNS/history.csv` join all runs.
"""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from kmura import kinds
from kmura.config import config_from_tables, filled_as_before, from_run_version_1
from kmura.data.dataset import Dataset
from kmura.errors import InputError, in_brief, unreadable
from kmura.files import locked, reading_json, replacing, sha256_of, write_json
from kmura.records.manifest import MANIFEST
from kmura.tasks import Task, joint_areas_of, task_of

if TYPE_CHECKING:
    import keras

RUN_VERSION = 2
log = logging.getLogger(__name__)
LOSSES = ("val_loss", "val_loss_img")  # columns of the history for which lower is better
TUNED_VALUES = "best.json"  # in the folder of a search


def _inside(name: str) -> property:
    return property(lambda folder: folder.path / name)


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths of the files of a run."""

    path: Path

    description = _inside("run.json")
    history = _inside("history.csv")
    best = _inside("best.keras")
    encoder = _inside("encoder")  # preset folder of the pretrained backbone (kind pretraining)
    last = _inside("last")
    probe = _inside("probe.json")  # settings of a probe
    predictions = _inside("predictions.csv")
    metrics = _inside("metrics.json")
    explained = _inside("explain")  # folder of the pictures of `kmura explain`
    explanation = _inside("explain/explain.json")


@dataclasses.dataclass(frozen=True)
class RunDescription:
    """The content of `run.json`.

    Attributes:
        kind: a name of `kmura.kinds.KINDS`.
        area, phase: of the run.
        records: absolute path of the records folder.
        inputs: the fingerprint of those records (`inputs` of their manifest).
        channels: channels of the images, 1 (gray) or 3 (RGB).
        config: the configuration bundle of the kind, which determines the result together with the records.
        versions: of kmura, Python, TensorFlow, Keras, keras-hub.
        command: the command line or call that started the run.
        task, classes, areas: for a kind with labels, see `labels`; else empty.
        finished: whether training has finished.
        precision: the dtype policy of training, which `train.precision` = `auto` leaves open; "" in runs made before
            there was `auto`, whose policy is `train.precision`.
        preparation: what determines the pixels (images: `max_side`, `encoding`, `quality` of the records; volumes:
            `window` and `spacing`), as it was at training; None in runs made before it was stored.
        leaks: one sentence for each kind of leakage between the splits of the records; empty in runs made before kmura
            looked for it.
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
    precision: str = ""
    preparation: dict[str, Any] | None = None
    leaks: tuple[str, ...] = ()
    run_version: int = RUN_VERSION

    @property
    def policy(self) -> str:
        """The dtype policy of training."""
        return self.precision or self.config.train.precision

    @property
    def labels(self) -> Task | None:
        """The task of the model; None for a kind without labels."""
        return task_of(self.task, self.classes, self.areas) if self.task else None

    def warn_of_leaks(self) -> None:
        """Logs a warning for each kind of leakage between the splits of the records."""
        for leak in self.leaks:
            log.warning("WARNING: %s: %s", self.area, leak)


class Run:
    """A run folder, opened once.

    Attributes:
        path: of the folder.
        folder: the paths of its files.
        description: the content of `run.json`.
    """

    def __init__(self, path: "str | os.PathLike | Run"):
        """
        Raises:
            InputError: there is no run, or its description is damaged or has an unsupported version.
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
        """Returns the part `name` of the run's kind, see `kmura.kinds.Kind`."""
        return kinds.part(self.kind, name)

    def dataset(self, records: str | os.PathLike | None = None) -> Dataset:
        """Returns the data that the run was trained on.

        Args:
            records: folder of the records, if they have moved since the training.

        Raises:
            InputError: the records are missing, or differ from those of the run.
        """
        folder = records or self.description.records
        if not records and not Path(folder, MANIFEST).is_file():
            raise InputError(
                f"the records of {self.path} are no longer in {folder}; give their folder with --records FOLDER"
            )
        dataset = self.part("dataset")(folder, self.area, self.config.data)
        dataset.check_inputs(self.description.inputs, self.path)
        return dataset

    def history(self) -> pd.DataFrame:
        """Returns the history, one row per finished epoch.

        Raises:
            InputError: `history.csv` cannot be read.
        """
        try:
            return pd.read_csv(self.folder.history)
        except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                raise unreadable(self.folder.history, error) from error
            raise InputError(
                f"{self.folder.history} cannot be read ({error}); repeat the kmura fit command of the run, which "
                "writes it again from last/"
            ) from error

    def model(self) -> "keras.Model":
        """Returns the model of the best epoch.

        Raises:
            InputError: there is none, or it cannot be loaded.
        """
        return load_model(self.folder.best)

    def model_sha256(self) -> str:
        """Returns the SHA-256 of `best.keras`, hexadecimal."""
        return sha256_of(self.folder.best)

    def epochs_trained(self) -> str:
        """Returns the number of trained epochs in words; see `kmura.runs.run.epochs_trained`."""
        return epochs_trained(self.folder, self.config)


def load_model(path: str | os.PathLike) -> "keras.Model":
    """Loads a saved model for inference.

    Raises:
        InputError: there is no such file, or it cannot be loaded.
    """
    import keras

    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist: the run has no best epoch yet; run kmura fit again to continue")
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:  # a damaged archive can raise any error of its layers
        try:
            saved_with = _saved_with(path)
        except OSError as unread:
            raise unreadable(path, unread) from error
        if saved_with is None:
            raise _damaged_model(path) from error
        raise InputError(
            f"{path} is whole but cannot be loaded ({type(error).__name__}: {in_brief(error)}); give a model of kmura, "
            f"or use the versions with which it was saved (Keras {saved_with}, this is {keras.__version__})"
        ) from error


def _saved_with(path: Path) -> str | None:
    """The version of Keras that wrote a `.keras` file; None if the file is damaged or of another kind.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            if archive.testzip() is not None:
                return None
            return str(json.loads(archive.read("metadata.json"))["keras_version"])
    except (KeyError, TypeError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error):
        return None


def _damaged_model(path: Path) -> InputError:
    """The error of a model file that is damaged; only then training again is advised, and only for a run."""
    fix = "give another copy of it"
    if RunFolder(path.parent).description.is_file():
        fix += ", or delete the run and train it again with --fresh"
    return InputError(f"{path} is damaged or not a .keras file of Keras 3; {fix}")


def claimed(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Returns a context in which no other process writes to a run folder.

    Raises:
        InputError: another process is writing to it, or the folder cannot be written.
    """
    busy = f"another process is training {folder}; wait for it or choose another --runs folder"
    return locked(folder.with_name(f".{folder.name}.lock"), busy)  # beside the folder, which may be deleted


def drop_run(folder: Path) -> None:
    """Deletes a run folder. It is renamed first, so that a kill never leaves a part of it in place."""
    linked, folder = folder.is_symlink(), folder.resolve()
    aside = folder.with_name(f".{folder.name}.dropped")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        os.replace(folder, aside)
        if linked:
            folder.mkdir()  # the link stays and needs a target
        shutil.rmtree(aside)


def write_run(folder: RunFolder, description: RunDescription) -> None:
    """Writes the `run.json` of a run, whole or not at all."""
    write_json(folder.description, dataclasses.asdict(description))


def read_run(path: str | os.PathLike) -> RunDescription:
    """Reads the `run.json` of a run folder; run version 1 is converted to the current names.

    Raises:
        InputError: there is no run, or the file is damaged or has an unsupported version.
    """
    file = RunFolder(Path(path)).description
    missing = f"{path} is not a run folder (no run.json); give a folder runs/AREA/PHASE that kmura fit has written"
    fix = "copy it from a backup, or delete the run and train it again with --fresh"
    with reading_json(file, fix=fix, missing=missing) as raw:
        version = raw.get("run_version")
        if version == 1:
            raw = _from_version_1(raw)
        elif version != RUN_VERSION:
            raise InputError(
                f"{file} has run version {version}, this kmura reads versions 1 and {RUN_VERSION}; "
                "use the version of kmura that wrote it"
            )
        bundle = kinds.part(raw["kind"], "config")
        config = config_from_tables(filled_as_before(raw["config"], bundle), str(file), bundle)
        names = {"classes": tuple(raw["classes"]), "areas": tuple(raw["areas"]), "leaks": tuple(raw.get("leaks", ()))}
        return RunDescription(**raw | {"config": config} | names)


def _from_version_1(raw: dict) -> dict:
    """Converts a description of version 1, which had one kind, splits named `tune` and `valid`, and no areas."""
    return raw | {
        "kind": kinds.CLASSIFICATION,
        "areas": joint_areas_of(raw["area"], raw["task"], raw["classes"]),
        "config": from_run_version_1(raw["config"]),
        "run_version": RUN_VERSION,
    }


def epochs_trained(folder: RunFolder, config: Any) -> str:
    """Returns the number of trained epochs in words: `12 epochs`, or `7 of at most 12 epochs` if it ended early."""
    most = config.train.epochs
    try:
        done = int(pd.read_csv(folder.history)["epoch"].max())
    except (OSError, ValueError, KeyError):  # pandas' own errors are ValueErrors
        return f"at most {most} epochs"
    return f"{done} of at most {most} epochs" if done < most else f"{done} epochs"


def write_summaries(runs: str | os.PathLike, monitor: str) -> None:
    """Writes `summary.csv` (best epoch per run, best score first) and `history.csv` (all epochs) of a runs folder."""
    runs = Path(runs)
    histories = []
    for file in sorted(runs.glob("*/*/run.json")):
        folder = RunFolder(file.parent)
        try:
            history, description = pd.read_csv(folder.history), read_run(folder.path)
        except (OSError, pd.errors.ParserError, pd.errors.EmptyDataError, InputError):
            continue  # a run without a finished epoch
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
