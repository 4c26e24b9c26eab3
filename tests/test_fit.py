"""A run learns, is evaluated, and resumes after any kill without a difference."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from kmura.config import load_config
from kmura.errors import InputError

SETTINGS = {
    "model.backbone": "densenet_mini",
    "model.weights": "none",
    "model.dropout": 0.3,
    "data.image_size": 32,
    "train.epochs": 3,
    "train.batch_size": 16,
    "train.learning_rate": 1e-3,
    "train.deterministic": True,
}
TINY = load_config("baseline", SETTINGS)


def changed(**train):
    return dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, **train))


def final_state(folder) -> dict[str, np.ndarray]:
    state = json.loads((folder / "last" / "state.json").read_text())
    with np.load(folder / "last" / state["arrays"]) as arrays:
        return {"epoch": np.array(state["epoch"])} | dict(arrays.items())


def assert_same_bits(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert np.array_equal(one[name], other[name]), name


@pytest.fixture(scope="module")
def undisturbed(records, tmp_path_factory):
    from kmura.classification.fit import fit

    return fit(records, area="XR_WRIST", runs=tmp_path_factory.mktemp("undisturbed"), config=TINY)


def test_a_run_writes_all_of_its_files(undisturbed, records):
    from kmura.runs.run import read_run

    names = {path.name for path in undisturbed.folder.iterdir()}
    assert names == {"run.json", "history.csv", "best.keras", "last"}
    history = pd.read_csv(undisturbed.folder / "history.csv")
    assert history["epoch"].tolist() == [1, 2, 3]
    columns = "loss acc val_loss_img val_acc_img val_auc_img val_f1_img val_acc_study val_auc_study val_f1_study"
    columns += " learning_rate"
    assert set(columns.split()) <= set(history.columns)
    description = read_run(undisturbed.folder)
    assert description.finished and description.config == TINY and description.records == str(records.resolve())
    summary = pd.read_csv(undisturbed.folder.parents[1] / "summary.csv")
    best = history[history["val_auc_img"] == history["val_auc_img"].max()].iloc[0]
    assert summary[["area", "phase", "epoch"]].to_numpy().tolist() == [["XR_WRIST", "baseline", best["epoch"]]]
    assert len(pd.read_csv(undisturbed.folder.parents[1] / "history.csv")) == 3


@pytest.mark.slow
def test_best_keras_can_be_loaded_by_a_new_process_that_imports_kmura(undisturbed):
    code = (
        "import sys, kmura, keras\n"
        "model = keras.saving.load_model(sys.argv[1])\n"
        "assert type(model).__name__ == 'RadiographClassifier' and not model.compiled\n"
    )
    subprocess.run([sys.executable, "-c", code, undisturbed.folder / "best.keras"], check=True)


def test_best_keras_is_the_classifier_of_the_best_epoch(undisturbed, records):
    from kmura.data.dataset import Dataset
    from kmura.evaluation.inference import predict_split
    from kmura.evaluation.scoring import level_scores
    from kmura.runs.run import load_model

    table = predict_split(load_model(undisturbed.folder / "best.keras"), Dataset(records, "XR_WRIST", TINY.data), "val")
    score = level_scores(table, "image", resamples=10).scores["auc"].value
    assert score == pytest.approx(undisturbed.best["val_auc_img"], abs=1e-9)


def test_repeating_the_call_on_a_finished_run_changes_nothing(undisturbed, records):
    from kmura.classification.fit import fit

    before = final_state(undisturbed.folder)
    again = fit(records, area="XR_WRIST", runs=undisturbed.folder.parents[1], config=TINY)
    assert_same_bits(final_state(undisturbed.folder), before)
    assert again.best == undisturbed.best


@pytest.mark.slow
def test_adding_epochs_is_equivalent_to_a_longer_run(undisturbed, records, tmp_path):
    from kmura.classification.fit import fit

    short = fit(records, area="XR_WRIST", runs=tmp_path, config=changed(epochs=1))
    assert_same_bits(
        final_state(fit(records, area="XR_WRIST", runs=tmp_path, config=TINY).folder), final_state(undisturbed.folder)
    )
    assert len(short.history) == 1


FIT = """
import json, sys
from kmura.config import config_from_tables
from kmura.classification.fit import fit
fit(sys.argv[1], area="XR_WRIST", runs=sys.argv[2], config=config_from_tables(json.loads(sys.argv[3])))
"""


@pytest.mark.slow
def test_a_run_killed_at_random_moments_is_bit_identical_after_resuming(undisturbed, records, tmp_path):
    from kmura.config import config_json

    command = [sys.executable, "-c", FIT, records, tmp_path, json.dumps(config_json(TINY))]
    rng = random.Random(1)
    folder = tmp_path / "XR_WRIST" / "baseline"
    for kill in range(2):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        wanted = folder / "last" / f"epoch-{kill + 1:05d}.npz"
        while not wanted.exists() and process.poll() is None:  # past an epoch, then anywhere in the next
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.3))
        assert process.poll() is None, "the run ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    assert_same_bits(final_state(folder), final_state(undisturbed.folder))
    ours, theirs = (pd.read_csv(path / "history.csv").drop(columns="seconds") for path in (folder, undisturbed.folder))
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)


@pytest.mark.slow
def test_another_seed_gives_other_weights(undisturbed, records, tmp_path):
    from kmura.classification.fit import fit

    other = fit(records, area="XR_WRIST", runs=tmp_path, config=changed(seed=1))
    assert not np.array_equal(final_state(other.folder)["00000"], final_state(undisturbed.folder)["00000"])


@pytest.mark.slow
def test_a_failed_start_keeps_the_existing_run_and_releases_the_lock(records, tmp_path):
    from kmura.classification.fit import fit

    wrong = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, weights=str(tmp_path / "nowhere")))
    with pytest.raises(InputError):
        fit(records, area="XR_WRIST", runs=tmp_path, config=wrong)
    done = fit(records, area="XR_WRIST", runs=tmp_path, config=changed(epochs=1))
    before = final_state(done.folder)
    with pytest.raises(InputError):
        fit(records, area="XR_WRIST", runs=tmp_path, config=wrong, fresh=True)
    assert_same_bits(final_state(done.folder), before)
    assert (done.folder / "best.keras").exists()


@pytest.mark.slow
def test_mixing_changes_training_until_its_last_epoch(undisturbed, records, tmp_path):
    from kmura.classification.fit import fit
    from kmura.config import MixConfig

    mixed = dataclasses.replace(TINY, mix=MixConfig(aug_p=1.0, until_epoch=2))
    history = fit(records, area="XR_WRIST", runs=tmp_path, config=mixed).history
    assert history["loss"][0] != undisturbed.history["loss"][0]


@pytest.mark.slow
def test_fresh_restarts_a_run_and_keeps_folders_that_are_not_runs(undisturbed, records, tmp_path):
    from kmura.classification.fit import fit

    fit(records, area="XR_WRIST", runs=tmp_path, config=changed(epochs=1))
    again = fit(records, area="XR_WRIST", runs=tmp_path, config=changed(epochs=1, seed=3), fresh=True)
    assert len(again.history) == 1
    other = tmp_path / "XR_ELBOW" / "baseline"
    other.mkdir(parents=True)
    (other / "thesis.tex").write_text("keep me")
    with pytest.raises(InputError, match="is not a run folder"):
        fit(records, area="XR_ELBOW", runs=tmp_path, config=TINY, fresh=True)
    assert (other / "thesis.tex").read_text() == "keep me"


def test_two_processes_cannot_train_the_same_run(records, tmp_path):
    from kmura.classification.fit import fit
    from kmura.runs.run import claimed

    with claimed(tmp_path / "XR_WRIST" / "baseline"):
        with pytest.raises(InputError, match="another process is training"):
            fit(records, area="XR_WRIST", runs=tmp_path, config=TINY)


@pytest.mark.slow
def test_resuming_with_other_records_is_rejected(records, mura_root, tmp_path):
    from conftest import SMALL_SHARDS

    from kmura.classification.fit import fit
    from kmura.records.writer import build_records

    fit(records, area="XR_WRIST", runs=tmp_path / "runs", config=changed(epochs=1))
    other = tmp_path / "other"
    build_records(mura_root, other, options=dataclasses.replace(SMALL_SHARDS, seed=9), workers=1)
    with pytest.raises(InputError, match="was trained on other records"):
        fit(other, area="XR_WRIST", runs=tmp_path / "runs", config=changed(epochs=1))


def test_a_nan_loss_stops_the_run_and_keeps_the_last_epoch(records, tmp_path):
    import keras

    from kmura.classification.fit import fit

    class Poison(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if self.model.optimizer.iterations == 4:  # 40 images, batches of 16: the second batch of epoch 2
                self.model.classifier.get_layer("logits").bias.assign([float("nan")])

    with pytest.raises(InputError, match=r"loss is nan in epoch 2, batch 2; .*last holds the end of epoch 1"):
        fit(records, area="XR_WRIST", runs=tmp_path, config=TINY, callbacks=[Poison()])
    assert final_state(tmp_path / "XR_WRIST" / "baseline")["epoch"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("precision", [pytest.param("mixed_bfloat16", marks=pytest.mark.slow), "mixed_float16"])
def test_training_in_half_precision_gives_finite_scores(records, tmp_path, precision):
    from kmura.classification.fit import fit

    done = fit(
        records, area="XR_WRIST", runs=tmp_path, config=changed(epochs=1, precision=precision, deterministic=False)
    )
    assert np.isfinite(done.history["loss"]).all() and np.isfinite(done.best["val_auc_img"])


def test_the_weighted_loss_matches_its_formula():
    from kmura.classification.losses import WeightedBinaryCrossentropy

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 3)) * 4, rng.integers(0, 2, (7, 3)).astype(float)
    s = 1 / (1 + np.exp(-x))
    expected = np.mean(-(2.5 * y * np.log(s) + (1 - y) * np.log(1 - s)))
    assert float(WeightedBinaryCrossentropy(2.5)(y, x)) == pytest.approx(expected, rel=1e-6)
    assert np.isfinite(float(WeightedBinaryCrossentropy(2.5)([[1.0]], [[-1000.0]])))


@pytest.mark.parametrize(("schedule", "expected"), [("constant", 1.0), ("cosine", 0.0)])
def test_the_learning_rate_warms_up_and_follows_its_schedule(schedule, expected):
    from kmura.training.optimizers import learning_rate

    rate = learning_rate(changed(learning_rate=1.0, schedule=schedule, warmup_epochs=1.0, epochs=3).train, 10)
    assert float(rate(5)) == pytest.approx(0.5) and float(rate(10)) == pytest.approx(1.0)
    assert float(rate(30)) == pytest.approx(expected, abs=1e-6)


def test_evaluation_matches_scikit_learn_on_the_predictions(undisturbed, records):
    from sklearn.metrics import roc_auc_score

    from kmura.evaluation.evaluate import evaluate
    from kmura.evaluation.scoring import ScoreOptions

    found = evaluate(undisturbed.folder, options=ScoreOptions(resamples=200))
    table = pd.read_csv(undisturbed.folder / "predictions.csv")
    assert table.columns.tolist() == "split area patient study image label logit probability".split()
    held_out = table[table["split"] == "test"]
    studies = held_out.groupby("study").agg({"label": "first", "probability": "mean"})
    scores = found.scores.splits["test"]["study"]
    assert scores.scores["auc"].value == pytest.approx(roc_auc_score(studies["label"], studies["probability"]))
    assert scores.studies == len(studies) and scores.positives == studies["label"].sum()
    assert sum(scores.confusion.values()) == len(studies)
    assert scores.scores["auc"].low <= scores.scores["auc"].value <= scores.scores["auc"].high
    saved = json.loads((undisturbed.folder / "metrics.json").read_text())
    assert saved["scores"]["splits"]["test"]["study"]["scores"]["auc"]["value"] == scores.scores["auc"].value


def test_no_partial_files_are_left(undisturbed):
    assert not [path for path in undisturbed.folder.parents[1].rglob("*") if ".part" in path.name]
    assert os.listdir(undisturbed.folder / "last") != []
