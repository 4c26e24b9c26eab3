"""Pretraining: from images to an encoder that `fit` starts from."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from command import kmura_main

import kmura
from kmura.config import MethodConfig, PretrainingConfig, load_config
from kmura.errors import InputError
from kmura.runs.run import Run, load_model

TINY = {
    "data.image_size": 32,
    "encoder.backbone": "densenet_mini",
    "method.projector": [32, 16],
    "train.batch_size": 8,
    "train.epochs": 2,
    "train.warmup_epochs": 0,
    "train.optimizer": "adamw",
    "train.base_rate": 0.03,
    "train.deterministic": True,
}
HISTORY = ["epoch", "loss", "probe_loss", "val_loss", "val_std", "val_rank", "val_probe_auc", "learning_rate", "best"]


def pretrained(records, runs, *, callbacks=(), area="XR_WRIST", **settings):
    settings = TINY | {name.replace("__", "."): value for name, value in settings.items()}
    return kmura.pretrain(records, area=area, runs=runs, settings=settings, callbacks=callbacks)


@pytest.fixture(scope="module")
def vicreg(records, tmp_path_factory):
    """A pretraining run by VICReg; tests must not modify it."""
    return pretrained(records, tmp_path_factory.mktemp("pretrained"))


def test_a_run_has_a_history_a_model_and_an_encoder(vicreg, records):
    terms = ["invariance", "variance", "covariance"]
    assert {*HISTORY, *terms, *(f"val_{term}" for term in terms)} <= {*vicreg.history}
    assert vicreg.history["epoch"].tolist() == [1, 2] and vicreg.history["best"].all(), "the last epoch is kept"
    sums = vicreg.history[terms].sum(axis=1) + vicreg.history["probe_loss"]
    assert vicreg.history["loss"].to_numpy() == pytest.approx(sums.to_numpy(), rel=1e-4)
    assert vicreg.history["val_loss"].to_numpy() == pytest.approx(
        vicreg.history[[f"val_{term}" for term in terms]].sum(axis=1).to_numpy()
    )
    run = Run(vicreg.folder)
    assert (run.kind, run.phase, run.config.encoder.backbone) == ("pretraining", "vicreg", "densenet_mini")
    network = keras.saving.load_model(vicreg.folder / "best.keras")
    outputs = network.predict(np.zeros((3, 32, 32, 1)), verbose=0)
    assert {name: value.shape[1] for name, value in outputs.items()} == {
        "features": network.backbone.output.shape[-1],
        "embedding": 16,
        "probe": 1,
    }


@pytest.mark.slow
def test_a_classifier_starts_from_the_encoder_with_nothing_new(vicreg, records, tmp_path):
    folder = vicreg.folder / "encoder"
    assert json.loads((folder / "kmura.json").read_text()) == {"torch_padding": False, "backbone": "densenet_mini"}
    network = load_model(vicreg.folder / "best.keras")
    images = kmura.Dataset(records, "XR_WRIST", Run(vicreg.folder).config.data).images("test", range(4))
    expected = network.predict(images, verbose=0)["features"]
    for weights in (folder, vicreg.folder / "best.keras"):
        model = kmura.build_model(backbone="densenet_mini", image_size=32, weights=str(weights))
        maps = keras.Model(model.input, model.feature_maps["P5"]).predict(images, verbose=0)
        assert maps.mean(axis=(1, 2)) == pytest.approx(expected, abs=1e-5), weights
    settings = {"model.backbone": "densenet_mini", "model.weights": str(folder), "data.image_size": 32}
    run = kmura.fit(records, area="XR_WRIST", runs=tmp_path, settings=settings | {"train.epochs": 1})
    assert run.best["epoch"] == 1
    with pytest.raises(InputError, match="backbone resnet18_small needs"):
        kmura.build_model(backbone="resnet18_small", image_size=32, weights=str(folder))


def test_pretraining_starts_from_another_run(vicreg, records, tmp_path):
    from kmura.data.dataset import Dataset
    from kmura.pretraining.pair_learner import network

    settings = TINY | {"encoder.weights": str(vicreg.folder / "encoder")}
    config = load_config(None, settings, PretrainingConfig)
    started = network(Dataset(records, "XR_WRIST", config.data), config, load_weights=True)
    finished = load_model(vicreg.folder / "best.keras")
    pairs = zip(started.backbone.get_weights(), finished.backbone.get_weights(), strict=True)
    assert all((ours == theirs).all() for ours, theirs in pairs)


def test_the_probe_does_not_change_the_encoder(records, tmp_path):
    import tensorflow as tf

    from kmura.data.dataset import Dataset
    from kmura.pretraining.pair_learner import PretrainingLearner

    config = load_config(None, TINY, PretrainingConfig)
    learner = PretrainingLearner(Dataset(records, "XR_WRIST", config.data), config)
    batch = next(iter(learner.batches(0, 1)))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(learner.saved(batch["image"], training=True)["probe"] ** 2)
    gradients = tape.gradient(loss, learner.saved.trainable_variables)
    reached = {
        variable.path.split("/")[0]
        for variable, gradient in zip(learner.saved.trainable_variables, gradients, strict=True)
        if gradient is not None and np.abs(gradient).max() > 0
    }
    assert reached == {"probe"}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["lars", "sgd"])
def test_simclr_trains_with_every_optimizer_and_accumulated_gradients(records, tmp_path, optimizer):
    run = pretrained(
        records,
        tmp_path,
        method__method="simclr",
        method__projector_norm=True,
        method__positives="study",
        train__optimizer=optimizer,
        train__accumulate=2,
        train__epochs=1,
    )
    assert run.folder.name == "simclr" and np.isfinite(run.history["nt_xent"]).all()
    assert (run.folder / "encoder").is_dir()


@pytest.mark.slow
def test_a_folder_without_labels_is_enough(mura_root, tmp_path, monkeypatch, capsys):
    command = ["build-tfrecords", mura_root, "--layout", "unlabelled", "--name", "bones", "--out", tmp_path / "records"]
    code, out, err = kmura_main(monkeypatch, capsys, *command)
    assert code == 0, err
    manifest = kmura.Dataset(tmp_path / "records").manifest
    counts = manifest.areas["bones"]
    assert set(counts) == {"train", "val"} and counts["train"].per_class == (0, 0)
    images = sum(1 for _ in mura_root.rglob("*.png"))
    assert counts["train"].images + counts["val"].images == images
    run = pretrained(tmp_path / "records", tmp_path / "runs", area="bones", train__epochs=1)
    assert "val_probe_auc" not in run.history and run.history["probe_loss"].tolist() == [0.0]
    assert (run.folder / "encoder").is_dir()
    facts = kmura.evaluate(run.folder).facts
    assert "0 with a known label" in facts["images"] and "nearest neighbour" not in facts
    with pytest.raises(InputError, match="no labelled images in its val split; use train.select=last or val_loss"):
        pretrained(tmp_path / "records", tmp_path / "others", area="bones", train__select="val_probe_auc")
    with pytest.raises(InputError, match="no images of"):
        kmura.fit(tmp_path / "records", area="bones", runs=tmp_path / "runs", settings={"model.weights": "none"})


@pytest.mark.slow
def test_a_collapse_is_said_once_and_reported(records, tmp_path, caplog):
    run = pretrained(
        records,
        tmp_path,
        method__variance=0.0,
        method__covariance=0.0,
        train__epochs=3,
        train__base_rate=0.3,
    )
    warnings = [record.message for record in caplog.records if "a collapse" in record.message]
    assert len(warnings) == 1 and warnings[0].startswith("WARNING: epoch ")
    evaluation = kmura.evaluate(run.folder)
    assert evaluation.embeddings.has_collapsed and evaluation.facts["embeddings"].startswith("collapsed: ")


def test_the_evaluation_describes_the_features(vicreg, records):
    from kmura.evaluation.encoder import read_evaluation

    written = kmura.evaluate(vicreg.folder, records=records)
    evaluation, arrays = read_evaluation(vicreg.folder)
    assert evaluation == written and not (vicreg.folder / "predictions.csv").exists()
    dataset = Run(vicreg.folder).dataset()
    assert evaluation.images == evaluation.labelled == len(dataset.index("val")) == len(arrays.features)
    unit = arrays.features / np.linalg.norm(arrays.features, axis=1, keepdims=True)
    for query, neighbours, similarity in zip(arrays.queries, arrays.neighbours, arrays.similarity, strict=True):
        cosines = unit @ unit[query]
        assert query not in neighbours and similarity == pytest.approx(cosines[neighbours], abs=1e-5)
        assert similarity[0] == pytest.approx(np.delete(cosines, query).max(), abs=1e-5)
    assert arrays.pca_share[0] >= arrays.pca_share[1] > 0
    with pytest.raises(InputError, match="runs of kind pretraining have no classifier"):
        kmura.export(vicreg.folder, vicreg.folder.parent / "served")


@pytest.mark.slow
def test_the_report_shows_encoders_side_by_side(vicreg, records, tmp_path):
    from kmura.report.report import report

    kmura.evaluate(vicreg.folder)
    other = pretrained(records, tmp_path / "runs", method__method="simclr", train__epochs=1).folder
    with pytest.raises(InputError, match="make it with: kmura evaluate"):
        report([other], tmp_path / "page.html")
    kmura.evaluate(other)
    page = report([vicreg.folder, other], tmp_path / "page.html").read_text()
    assert page.count("<caption>Pretrained encoders</caption>") == 1
    rows = page.partition("<caption>Pretrained encoders</caption>")[2].partition("</table>")[0]
    assert "XR_WRIST, vicreg" in rows and "XR_WRIST, simclr" in rows
    figures = {path.stem for path in (tmp_path / "page-figures").glob("*.png")}
    names = ("terms", "progress", "spread", "maps", "neighbours")
    assert figures == {f"run{number}-{name}" for number in (0, 1) for name in names}


@pytest.mark.parametrize(
    ("settings", "units", "norm"),
    [
        ({}, (2048, 2048, 2048), False),
        ({"method": "simclr"}, (512, 128), True),
        ({"method": "simclr", "projector": (64,)}, (64,), False),
        ({"projector_norm": True}, (2048, 2048, 2048), True),
    ],
)
def test_the_projection_head_is_that_of_the_method_unless_it_is_configured(settings, units, norm):
    assert MethodConfig(**settings).projection == {"projector": units, "projector_norm": norm}


def test_other_settings_and_impossible_ones_are_refused(vicreg, records, tmp_path, monkeypatch, capsys):
    runs = vicreg.folder.parents[1]
    with pytest.raises(InputError, match="method.invariance: 25.0 -> 1.0"):
        pretrained(records, runs, method__invariance=1.0)
    with pytest.raises(InputError, match="1000 or more are needed; reduce train.batch_size"):
        pretrained(records, tmp_path, train__batch_size=1000)
    for settings, text in (
        (["method.temperature=0"], "method.temperature is 0"),
        (["method.projector=[0]"], "method.projector"),
        (["train.warmup_epochs=99"], "train.warmup_epochs is 99.0; allowed is 0 to 50"),
        (["view.flip=1"], "unknown key view in settings; did you mean views"),
    ):
        arguments = [part for setting in settings for part in ("--set", setting)]
        code, _, err = kmura_main(monkeypatch, capsys, "pretrain", "--area", "XR_WRIST", *arguments)
        assert code == 2 and text in err and err.count("\n") == 1, err


@pytest.mark.slow
def test_the_command_pretrains_evaluates_and_continues(records, tmp_path, monkeypatch, capsys):
    others = {key: json.dumps(value) for key, value in TINY.items() if key != "train.epochs"}
    options = [part for key, value in others.items() for part in ("--set", f"{key}={value}")]
    command = ["pretrain", "--area", "XR_WRIST", "--records", records, "--runs", tmp_path, *options]
    code, out, err = kmura_main(monkeypatch, capsys, *command, "--epochs", "1", "--name", "first")
    assert code == 0, err
    assert "val_probe_auc" in err and "the encoder of epoch 1" in err and "nearest neighbour: has the same label" in out
    encoder = tmp_path / "XR_WRIST" / "first" / "encoder"
    assert (encoder / "config.json").is_file()
    code, out, err = kmura_main(monkeypatch, capsys, *command, "--epochs", "1", "--name", "first", "--no-evaluate")
    assert code == 0 and "epoch 1/1" not in err and out == ""
    assert [path.name for path in encoder.parent.glob(".*")] == []


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_run_that_was_killed_within_an_epoch_gives_the_same_bits(records, tmp_path, accumulate):
    settings = {"train__accumulate": accumulate, "train__epochs": 3}
    undisturbed = pretrained(records, tmp_path / "undisturbed", **settings)
    code = (
        "import sys, test_pretraining, test_kinds; "
        "test_pretraining.pretrained(sys.argv[1], sys.argv[2], callbacks=[test_kinds.KillWithinEpoch(2)], "
        f"**{settings})"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
    killed = subprocess.run(
        [sys.executable, "-c", code, str(records), str(tmp_path / "killed")], env=environment, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (tmp_path / "killed" / "XR_WRIST" / "vicreg" / "encoder").exists()
    resumed = pretrained(records, tmp_path / "killed", **settings)
    pd.testing.assert_frame_equal(
        resumed.history.drop(columns="seconds"), undisturbed.history.drop(columns="seconds"), check_exact=True
    )
    ours, theirs = (load_model(run.folder / "best.keras").get_weights() for run in (resumed, undisturbed))
    assert all((one == other).all() for one, other in zip(ours, theirs, strict=True))
