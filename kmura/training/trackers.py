"""Callbacks that log a run to experiment trackers: TensorBoard and MLflow."""

import json
import logging
import math
import os
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kmura.config import config_json
from kmura.errors import InputError, in_brief
from kmura.files import write_json
from kmura.runs.run import RunFolder

TENSORBOARD = "tensorboard"  # folder of TensorBoard's logs in a run folder
MLFLOW = "mlflow.json"  # file in a run folder: the run of MLflow that a resumed run continues
EXPERIMENT = "kmura"  # default experiment of MLflow

log = logging.getLogger("kmura")


class TensorBoardLogs(keras.callbacks.TensorBoard):
    """Keras' TensorBoard logs of a run, in RUN/tensorboard: scores per epoch under `train` and `validation`.

    A resumed run adds an event file, whose epochs continue the earlier ones. It must come after the callbacks that add
    scores to the logs.
    """

    def __init__(self, run: str | os.PathLike):
        """
        Args:
            run: the run folder.
        """
        super().__init__(log_dir=str(Path(run) / TENSORBOARD), write_graph=False, update_freq="epoch")

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, _scores(logs))
        for writer in self._writers.values():
            writer.flush()  # so that a kill in the next epoch loses nothing


class MlflowTracker(keras.callbacks.Callback):
    """Logs configuration, scores per epoch and artifacts of a run to MLflow.

    MLflow's environment variable MLFLOW_TRACKING_URI sets the server (default: the folder ./mlruns), and
    MLFLOW_EXPERIMENT_NAME sets the experiment (default: `kmura`). A resumed run continues its run of MLflow. If the
    server fails during training, training continues and one warning is logged. It must come after the callbacks that
    add scores to the logs. Call `finish` when the run has finished, and `fail` when it was interrupted.
    """

    def __init__(self, run: str | os.PathLike, name: str, config: Any):
        """
        Args:
            run: the run folder.
            name: of the run in MLflow, such as `XR_WRIST/baseline`.
            config: of the run; its keys become parameters such as `train.epochs`.

        Raises:
            InputError: MLflow is not installed, or the server cannot be used.
        """
        super().__init__()
        check_mlflow()
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # without it MLflow 3 refuses a folder of runs
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # no data is sent to any other server
        from mlflow import MlflowClient

        self.folder, self.name = RunFolder(Path(run)), name
        stages = config_json(config).items()
        self.parameters = {f"{stage}.{key}": _text(value) for stage, keys in stages for key, value in keys.items()}
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or Path("mlruns").absolute().as_uri()
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        try:
            self.client = MlflowClient(tracking_uri=self.uri)
            known = self.client.get_experiment_by_name(experiment)
            self.experiment = known.experiment_id if known else self.client.create_experiment(experiment)
        except Exception as error:  # MLflow, its stores and HTTP raise different errors
            raise InputError(
                f"MLflow cannot be used at {self.uri} ({in_brief(error)}); check MLFLOW_TRACKING_URI, or leave out "
                "--mlflow"
            ) from error
        self.run_id = None
        self.working = True

    def on_train_begin(self, logs=None):
        self._attempt(self._open)

    def on_epoch_end(self, epoch, logs=None):
        self._attempt(self._log_scores, epoch + 1, _scores(logs))

    def finish(self) -> None:
        """Logs `run.json`, `history.csv` and, if the run was evaluated, `metrics.json`, and ends the run of MLflow."""
        self._attempt(self._log_files)
        self._attempt(self._end, "FINISHED")

    def fail(self) -> None:
        """Marks the run as failed; when it is resumed it continues."""
        if self.run_id is not None:
            self._attempt(self._end, "FAILED")

    def _attempt(self, action, *arguments) -> None:
        if not self.working:
            return
        try:
            action(*arguments)
        except Exception as error:  # see above; losing logs is better than losing a training
            self.working = False
            log.warning("MLflow at %s failed (%s); training continues without it", self.uri, in_brief(error))

    def _open(self) -> None:
        """Continues the run of MLflow that the run folder names, or creates one."""
        if self.run_id is not None:
            return
        self.run_id = self._earlier()
        if self.run_id is None:
            created = self.client.create_run(self.experiment, run_name=self.name)
            self.run_id = created.info.run_id
            write_json(self.folder.path / MLFLOW, {"tracking_uri": self.uri, "run_id": self.run_id})
        else:
            self.client.update_run(self.run_id, status="RUNNING")
        from mlflow.entities import Param, RunTag

        known = self.client.get_run(self.run_id).data.params
        # MLflow parameters cannot change; train.epochs changes when a run is extended, and becomes a tag
        changed = [RunTag(key, value) for key, value in self.parameters.items() if known.get(key, value) != value]
        added = [Param(key, value) for key, value in self.parameters.items() if key not in known]
        self.client.log_batch(self.run_id, params=added, tags=changed)

    def _earlier(self) -> str | None:
        """Returns the run of MLflow that belongs to the run folder; None if this server has none."""
        try:
            note = json.loads((self.folder.path / MLFLOW).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if note.get("tracking_uri") != self.uri:
            return None
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(note["run_id"]).info.run_id
        except (MlflowException, KeyError):  # deleted there
            return None

    def _log_scores(self, step: int, scores: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)  # milliseconds
        finite = [Metric(name, value, now, step) for name, value in scores.items() if math.isfinite(value)]
        self.client.log_batch(self.run_id, metrics=finite)

    def _log_files(self) -> None:
        self._open()
        for path in (self.folder.description, self.folder.history, self.folder.metrics):
            if path.exists():
                self.client.log_artifact(self.run_id, str(path))

    def _end(self, status: str) -> None:
        self.client.set_terminated(self.run_id, status)


def check_mlflow() -> None:
    """Raises an InputError that says how to install MLflow if it is not installed."""
    try:
        import mlflow  # noqa: F401
    except ImportError as error:
        raise InputError(
            "--mlflow needs the package mlflow-skinny; run pip install '.[mlflow]' in a clone of kmura, or leave it out"
        ) from error


def _scores(logs) -> dict[str, float]:
    """Returns the numbers among the logs of an epoch, without `best`, which is true or false."""
    return {name: float(value) for name, value in logs.items() if not isinstance(value, bool | np.bool_)}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
