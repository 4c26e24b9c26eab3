"""TensorBoard and MLflow see the scores of every epoch, also of a resumed run, and never stop a training."""

import json
import sys
import types

import pytest
from command import kmura_main

import kmura
from kmura.config import load_config
from kmura.errors import InputError
from kmura.training.trackers import TENSORBOARD, MlflowTracker, TensorBoardLogs

SETTINGS = {
    "model.backbone": "densenet_mini",
    "model.weights": "none",
    "data.image_size": 32,
    "train.batch_size": 8,
}
LOGS = {"loss": 0.5, "val_auc_study": 0.75, "val_loss_img": float("nan"), "best": True}


def scalars(folder) -> dict[str, list[tuple[int, float]]]:
    """Name of a score -> (step, value) of every event, in a folder of TensorBoard's event files."""
    import tensorflow as tf
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return {
        name: [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in accumulator.Tensors(name)]
        for name in accumulator.Tags()["tensors"]
    }


@pytest.mark.slow
def test_tensorboard_has_the_scores_of_all_epochs_also_after_a_resume(records, tmp_path):
    run = tmp_path / "XR_WRIST" / "baseline"
    for epochs in (2, 3):
        settings = SETTINGS | {"train.epochs": epochs}
        logs = [TensorBoardLogs(run)]
        result = kmura.fit(records, area="XR_WRIST", runs=tmp_path, settings=settings, callbacks=logs)
    assert len(result.history) == 3
    trained, validated = (scalars(run / TENSORBOARD / part) for part in ("train", "validation"))
    for name in ("auc_study", "loss_img"):
        expected = result.history[f"val_{name}"]
        assert validated[f"epoch_{name}"] == [(i, pytest.approx(value)) for i, value in enumerate(expected)]
    assert [value for _, value in trained["epoch_loss"]] == pytest.approx(list(result.history["loss"]))
    assert "epoch_best" not in trained
    assert len(list((run / TENSORBOARD / "train").iterdir())) == 2, "an event file of each call"


def test_scores_are_on_disk_when_their_epoch_has_ended(tmp_path):
    import keras

    logs = TensorBoardLogs(tmp_path)
    model = keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1)])
    model.compile(optimizer="sgd", loss="mse")
    logs.set_model(model)
    logs.on_train_begin()
    logs.on_epoch_end(0, {"loss": 0.5, "best": True})
    assert scalars(tmp_path / TENSORBOARD / "train")["epoch_loss"] == [(0, 0.5)]
    logs.on_train_end()


class Server:
    """What an MLflow server remembers."""

    def __init__(self):
        self.runs, self.fails = {}, False


@pytest.fixture
def server(monkeypatch):
    """A stand-in for the package mlflow; its clients share one Server."""
    server = Server()
    named = types.SimpleNamespace

    class MlflowException(Exception):
        pass

    class MlflowClient:
        def __init__(self, tracking_uri):
            if tracking_uri.startswith("http://nowhere"):
                raise MlflowException("no answer\nat all")
            server.uri = tracking_uri

        def get_experiment_by_name(self, name):
            server.experiment = name

        def create_experiment(self, name):
            return f"id of {name}"

        def create_run(self, experiment, run_name):
            run_id = str(len(server.runs))
            server.runs[run_id] = run = {"name": run_name, "experiment": experiment, "status": "RUNNING"}
            run |= {"params": {}, "tags": {}, "metrics": [], "files": []}
            return named(info=named(run_id=run_id))

        def get_run(self, run_id):
            if run_id not in server.runs:
                raise MlflowException("no such run")
            return named(info=named(run_id=run_id), data=named(params=dict(server.runs[run_id]["params"])))

        def update_run(self, run_id, status):
            server.runs[run_id]["status"] = status

        set_terminated = update_run

        def log_batch(self, run_id, metrics=(), params=(), tags=()):
            if server.fails:
                raise MlflowException("the server\nis down")
            run = server.runs[run_id]
            for key, value in params:
                assert run["params"].setdefault(key, value) == value, "MLflow refuses to change a parameter"
            run["tags"] |= dict(tags)
            run["metrics"] += [(name, value, step) for name, value, _, step in metrics]

        def log_artifact(self, run_id, path):
            server.runs[run_id]["files"].append(path.rpartition("/")[2])

    entities = named(Param=lambda *each: each, RunTag=lambda *each: each, Metric=lambda *each: each)
    modules = {"mlflow": named(MlflowClient=MlflowClient), "mlflow.entities": entities}
    modules["mlflow.exceptions"] = named(MlflowException=MlflowException)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # which the tracker would set for good
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return server


def tracker(folder, epochs=2) -> MlflowTracker:
    folder.mkdir(exist_ok=True)
    return MlflowTracker(folder, "XR_WRIST/baseline", load_config(None, {"train.epochs": epochs}))


def test_configuration_scores_and_files_are_logged(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logged = tracker(tmp_path / "run")
    logged.on_train_begin()
    logged.on_epoch_end(0, LOGS)
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "run" / "history.csv").write_text("epoch\n")
    logged.finish()
    assert server.uri == (tmp_path / "mlruns").as_uri() and server.experiment == "kmura"
    run = server.runs["0"]
    assert run["name"] == "XR_WRIST/baseline" and run["status"] == "FINISHED"
    assert run["params"]["train.epochs"] == "2" and run["params"]["model.backbone"] == "densenet121"
    assert run["params"]["augment.area_scale"] == "[0.9, 1.1]" and run["params"]["cam.from_epoch"] == "null"
    assert run["metrics"] == [("loss", 0.5, 1), ("val_auc_study", 0.75, 1)], "no NaN and no `best`"
    assert run["files"] == ["run.json", "history.csv"]


def test_a_resumed_run_continues_its_run_of_mlflow(server, tmp_path):
    first = tracker(tmp_path / "run")
    first.on_train_begin()
    first.on_epoch_end(0, LOGS)
    first.fail()
    assert server.runs["0"]["status"] == "FAILED"
    second = tracker(tmp_path / "run", epochs=7)
    second.on_train_begin()
    assert server.runs["0"]["status"] == "RUNNING"
    second.on_epoch_end(1, LOGS)
    second.finish()
    assert list(server.runs) == ["0"] and [step for *_, step in server.runs["0"]["metrics"]] == [1, 1, 2, 2]
    assert server.runs["0"]["tags"] == {"train.epochs": "7"} and server.runs["0"]["params"]["train.epochs"] == "2"


def test_a_run_of_another_server_or_a_deleted_one_is_created_anew(server, tmp_path, monkeypatch):
    tracker(tmp_path / "run").on_train_begin()
    server.runs.clear()
    tracker(tmp_path / "run").on_train_begin()
    assert list(server.runs) == ["0"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    tracker(tmp_path / "run").on_train_begin()
    assert server.uri == "http://elsewhere" and list(server.runs) == ["0", "1"]
    note = json.loads((tmp_path / "run" / "mlflow.json").read_text())
    assert note == {"tracking_uri": "http://elsewhere", "run_id": "1"}


def test_a_server_that_fails_during_training_costs_one_warning(server, tmp_path, caplog):
    logged = tracker(tmp_path / "run")
    logged.on_train_begin()
    server.fails = True
    for epoch in range(3):
        logged.on_epoch_end(epoch, LOGS)
    logged.finish()
    (record,) = caplog.records
    assert "failed (the server is down); training continues without it" in record.message


def test_a_server_that_cannot_be_used_is_refused_before_training(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://nowhere")
    with pytest.raises(InputError, match=r"MLflow cannot be used at http://nowhere \(no answer at all\)"):
        tracker(tmp_path / "run")


@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
def test_mlflow_that_is_not_installed_is_reported_first(monkeypatch, capsys, flags):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    code, _, err = kmura_main(monkeypatch, capsys, "fit", "--area", "XR_WRIST", "--mlflow", *flags)
    assert code == 2 and "--mlflow needs the package mlflow-skinny" in err


COMMAND = ("--backbone", "densenet_mini", "--weights", "none", "--image-size", 32, "--epochs", 1)


@pytest.mark.slow
def test_the_command_logs_the_files_of_an_evaluated_run_to_both(server, records, tmp_path, monkeypatch, capsys):
    command = ("fit", "--area", "XR_WRIST", "--records", records, "--runs", tmp_path / "runs", *COMMAND)
    code, _, err = kmura_main(monkeypatch, capsys, *command, "--tensorboard", "--mlflow")
    assert code == 0, err
    assert server.runs["0"]["files"] == ["run.json", "history.csv", "metrics.json"]
    assert {name for name, *_ in server.runs["0"]["metrics"]} >= {"loss", "val_auc_study", "learning_rate"}
    run = tmp_path / "runs" / "XR_WRIST" / "baseline"
    assert "epoch_auc_study" in scalars(run / TENSORBOARD / "validation")


@pytest.mark.slow
def test_an_error_during_training_marks_the_run_of_mlflow_as_failed(server, records, tmp_path, monkeypatch, capsys):
    def broken(self, epoch, logs=None):
        raise InputError("the disk is full")

    monkeypatch.setattr("kmura.training.loop._RunKeeper.on_epoch_begin", broken)
    command = ("fit", "--area", "XR_WRIST", "--records", records, "--runs", tmp_path / "runs", *COMMAND)
    assert kmura_main(monkeypatch, capsys, *command, "--mlflow")[0] == 2
    assert server.runs["0"]["status"] == "FAILED"


def test_without_the_package_one_line_says_how_to_install_it(records, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    command = ("fit", "--area", "XR_WRIST", "--records", records, "--runs", tmp_path / "runs", *COMMAND, "--mlflow")
    code, _, err = kmura_main(monkeypatch, capsys, *command)
    assert code == 2 and len(err.splitlines()) == 1 and "run pip install '.[mlflow]' in a clone" in err
    assert not (tmp_path / "runs").exists()


def test_the_real_package_accepts_all_of_it(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    for epoch, epochs in enumerate((1, 2)):
        logged = tracker(tmp_path / "run", epochs)
        logged.on_train_begin()
        logged.on_epoch_end(epoch, LOGS)
        (tmp_path / "run" / "history.csv").write_text("epoch\n")
        logged.finish()
        assert logged.working
    client = MlflowClient(logged.uri)
    run = client.get_run(logged.run_id)
    assert run.info.status == "FINISHED" and run.data.params["train.epochs"] == "1"
    assert run.data.tags["train.epochs"] == "2" and run.data.metrics["val_auc_study"] == 0.75
    assert [metric.step for metric in client.get_metric_history(logged.run_id, "loss")] == [1, 2]
    assert [file.path for file in client.list_artifacts(logged.run_id)] == ["history.csv"]
