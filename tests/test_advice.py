"""Errors advise what helps: nothing that is whole is to be deleted, made again, or built again."""

import json
import os
import shutil
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from kmura.errors import InputError
from kmura.export.golden import SIGNATURES, load_signatures
from kmura.prediction.predictor import load_predictor
from kmura.runs.checkpoint import STATE, LastCheckpoint
from kmura.runs.run import Run, RunFolder, drop_run, load_model


@pytest.fixture
def run(evaluated_run, tmp_path):
    """A copy of an evaluated run, as a folder that a test may change."""
    return shutil.copytree(evaluated_run[1], tmp_path / "XR_WRIST" / "baseline")


def message_of(function, *arguments) -> str:
    with pytest.raises(InputError) as error:
        function(*arguments)
    return str(error.value)


def denied(*arguments, **options):
    raise PermissionError(13, "Permission denied")


def rewritten(path, change):
    """Replaces a `.keras` file by one whose parts `change` has altered."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in change(parts).items():
            archive.writestr(name, content)
    return path


def test_a_damaged_model_of_a_run_may_be_trained_again_or_copied_from_elsewhere(run):
    whole = (run / "best.keras").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[:-9000] + bytes(500) + whole[-8500:]):
        (run / "best.keras").write_bytes(damaged)
        assert message_of(load_model, run / "best.keras").endswith(
            "best.keras is damaged or not a .keras file of Keras 3; give another copy of it, or delete the run and "
            "train it again with --fresh"
        )


def test_a_damaged_file_outside_of_a_run_is_not_to_be_trained_again(tmp_path):
    (tmp_path / "model.keras").write_bytes(b"text")
    assert message_of(load_model, tmp_path / "model.keras").endswith("Keras 3; give another copy of it")


def test_a_whole_model_that_cannot_be_loaded_is_never_to_be_deleted(run):
    path = rewritten(
        run / "best.keras",
        lambda parts: (
            parts | {"config.json": parts["config.json"].replace(b"RadiographClassifier", b"OtherClassifier")}
        ),
    )
    text = message_of(load_model, path)
    assert "best.keras is whole but cannot be loaded" in text
    assert f"use the versions with which it was saved (Keras {keras.__version__}, this is {keras.__version__})" in text
    assert "--fresh" not in text


def test_a_model_without_permission_is_not_called_damaged(run, monkeypatch):
    monkeypatch.setattr(keras.saving, "load_model", denied)
    monkeypatch.setattr("builtins.open", denied)
    assert message_of(load_model, run / "best.keras").endswith(
        "best.keras cannot be read: Permission denied; fix its permissions"
    )


def foreign_models():
    image = keras.Input((16, 16, 1))
    yield keras.Model(image, keras.layers.Dense(1)(keras.layers.Flatten()(image)))
    yield keras.Model([image, keras.Input((3,))], image)
    yield keras.Sequential([keras.layers.Dense(1)])


@pytest.mark.parametrize("number", range(3))
def test_a_keras_model_of_somebody_else_is_refused_as_such(tmp_path, number):
    list(foreign_models())[number].save(tmp_path / "model.keras")
    text = message_of(load_predictor, tmp_path / "model.keras")
    assert "model.keras is a Keras model, but not a classifier of kmura" in text and "fit again" not in text


def test_moved_records_are_given_with_records(run, evaluated_run):
    description = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(description | {"records": "/gone/records"}))
    assert message_of(Run(run).dataset).endswith(
        "are no longer in /gone/records; give their folder with --records FOLDER"
    )
    assert Run(run).dataset(evaluated_run[0] / "records").area == "XR_WRIST"


@pytest.mark.parametrize("name", [STATE, "epoch-00001.npz"])
def test_a_damaged_checkpoint_leaves_the_best_model_usable(tmp_path, name):
    checkpoint = LastCheckpoint(tmp_path, [keras.Variable(np.zeros(2))])
    checkpoint.save(1, {})
    (tmp_path / name).write_bytes(b"{")
    text = message_of(checkpoint.restore)
    assert "its best model can still be used; to train again, choose another --runs folder, or delete this run" in text


@pytest.mark.parametrize("reader", ["pathlib.Path.read_text", "numpy.load"])
def test_a_checkpoint_without_permission_is_not_to_be_deleted(tmp_path, monkeypatch, reader):
    checkpoint = LastCheckpoint(tmp_path, [keras.Variable(np.zeros(2))])
    checkpoint.save(1, {})
    monkeypatch.setattr(reader, denied)
    assert message_of(checkpoint.restore).endswith("cannot be read: Permission denied; fix its permissions")


def test_a_trial_without_permission_is_not_deleted(tmp_path, monkeypatch):
    from kmura.classification.trials import claim_values, read_result

    trial = RunFolder(tmp_path)
    claim_values(trial, {"train.learning_rate": 0.1})
    (tmp_path / "result.json").write_text("{}")
    trial.best.write_text("a good model")
    monkeypatch.setattr("pathlib.Path.read_text", denied)
    for function, *arguments in ((claim_values, trial, {"train.learning_rate": 0.1}), (read_result, tmp_path)):
        assert message_of(function, *arguments).endswith("cannot be read: Permission denied; fix its permissions")
    assert trial.best.exists()


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_weights_without_permission_are_not_called_damaged(tmp_path, monkeypatch, suffix):
    from kmura.models.build import build_model
    from kmura.models.weights import load_weights

    model = build_model(backbone="densenet_mini", weights="none", image_size=32)
    path = tmp_path / f"model{suffix}"
    (model.save if suffix == ".keras" else model.save_weights)(path)
    monkeypatch.setattr("zipfile.ZipFile", denied)
    monkeypatch.setattr("h5py.File", denied)
    assert message_of(load_weights, model, str(path)).endswith("cannot be read: Permission denied; fix its permissions")


def test_a_run_folder_behind_a_link_is_emptied_and_the_link_stays(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "run.json").write_text("{}")
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    drop_run(tmp_path / "run")
    assert (tmp_path / "run").is_symlink() and os.listdir(tmp_path / "run") == []
    RunFolder(tmp_path / "run").description.write_text("{}")
    drop_run(tmp_path / "disk")
    assert not (tmp_path / "disk").exists()


class Answer(tf.Module):
    def __init__(self):
        self.one = tf.Variable(1.0)

    @tf.function(input_signature=[tf.TensorSpec([], tf.float32)])
    def answer(self, value):
        return {"sum": value + self.one}


@pytest.mark.parametrize("name", ["a [b] *?", "plain"])
def test_an_export_in_a_folder_whose_name_is_a_pattern_is_loaded(tmp_path, name):
    module = Answer()
    tf.saved_model.save(module, str(tmp_path / name), signatures=dict.fromkeys(SIGNATURES, module.answer))
    assert float(load_signatures(tmp_path / name)["study"](value=tf.constant(2.0))["sum"]) == 3


def test_a_whole_export_that_cannot_be_loaded_is_not_to_be_exported_again(tmp_path, monkeypatch):
    from kmura.export import golden
    from kmura.serving.contract import Signature

    (tmp_path / "saved_model.pb").write_bytes(b"of another version")
    (tmp_path / "signature.json").write_text("{}")
    signature = Signature("savedmodel", None, {"saved_model.pb": golden.sha256_of(tmp_path / "saved_model.pb")})
    monkeypatch.setattr(golden, "read_signature", lambda folder: signature)
    assert "its files are as exported: use the version of TensorFlow in" in message_of(load_signatures, tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"cut")
    assert message_of(load_signatures, tmp_path).endswith("has changed since the export; copy the export again")


def test_the_report_leaves_a_run_with_a_damaged_history_as_it_is(run):
    from kmura.report.run_files import read_history

    (run / "history.csv").write_text("epoch\n1\n")
    assert message_of(read_history, RunFolder(run)).endswith(
        "has no column best; repeat the kmura fit command of the run, which writes the file again from last/"
    )


def test_advice_to_delete_a_run_names_the_deletion():
    root = Path(__file__).parents[1] / "kmura"
    sources = {path: " ".join(path.read_text().split()) for path in root.rglob("*.py")}
    for path, text in sources.items():
        for place in [at for at in range(len(text)) if text.startswith("with --fresh", at)]:
            near = text[place - 200 : place + 60]
            assert "delete" in near, f"{path}: ...{near}..."
