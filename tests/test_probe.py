"""Probes of a frozen encoder are runs like any other, and stand beside the floor of raw pixels."""

import json
import os

import keras
import numpy as np
import pandas as pd
import pytest
from command import kmura_main
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import kmura
from kmura import metrics
from kmura.config import DataConfig
from kmura.data.dataset import Dataset
from kmura.errors import InputError
from kmura.evaluation.evaluation import read_evaluation
from kmura.models.weights import PORTED
from kmura.pretraining import features
from kmura.pretraining.linear_probes import linear_layer, logistic_regression, neighbour_logits
from kmura.pretraining.probe import encoder_of, labelled_rows
from kmura.report.report import report
from kmura.runs.predictions import read_predictions
from kmura.runs.run import Run
from kmura.tasks import Binary, Multiclass, Multilabel

AREA = "XR_WRIST"


@pytest.fixture(scope="module")
def probed(evaluated_run, tmp_path_factory):
    """(records, runs, result of the probe `linear` of a trained run)."""
    folder, run = evaluated_run
    runs = tmp_path_factory.mktemp("probes") / "runs"
    return folder / "records", runs, run, kmura.probe(run, records=folder / "records", area=AREA, runs=runs)


def test_the_logits_of_a_linear_probe_are_those_of_scikit_learn(probed):
    records, _, source, result = probed
    model, run = Run(result.run).model(), Run(result.run)
    dataset = Dataset(records, AREA, DataConfig(image_size=32))
    encode = keras.Model(model.input, model.get_layer("pool").output)
    images = {split: np.concatenate([b["image"].numpy() for b in dataset.eval(split)]) for split in ("train", "test")}
    pooled = {split: encode.predict(value, verbose=0) for split, value in images.items()}
    scaler = StandardScaler().fit(pooled["train"])
    (c,) = run.history()["C"]
    assert json.loads((result.run / "probe.json").read_text())["C"] == c
    reference = LogisticRegression(C=c, max_iter=500)
    reference.fit(scaler.transform(pooled["train"]), dataset.ids("train")[:, 0])
    expected = reference.decision_function(scaler.transform(pooled["test"]))
    np.testing.assert_allclose(model.predict(images["test"], verbose=0)[:, 0], expected, atol=1e-4)
    weights = Run(source).model().backbone.weights
    for ours, theirs in zip(model.backbone.weights, weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_a_linear_probe_and_its_floor_are_evaluated_compared_reported_and_predicted(probed, tmp_path, sketched):
    records, runs, source, result = probed
    assert result.run == runs / AREA / "baseline-linear" and result.floor == runs / AREA / "pixels"
    assert (Run(result.run).kind, Run(result.floor).kind) == ("classification", "probe")
    for folder in (result.run, result.floor):
        before = read_evaluation(folder)[0]
        after = kmura.evaluate(folder)
        assert str(after.scores.splits) == str(before.scores.splits)
        assert after.predictions_sha256 == before.predictions_sha256
    comparison = kmura.compare([result.run, result.floor], resamples=50)
    assert list(comparison.runs) == ["baseline-linear", "pixels"]
    page = report([result.run, result.floor], tmp_path / "report.html", resamples=50).read_text()
    assert "logistic regression on raw pixels" in page and "baseline-linear" in page
    of_floor = report([result.floor], tmp_path / "floor.html", resamples=50).read_text()
    assert "Does it work?" in of_floor and "How did the training go?" not in of_floor
    assert "Do the maps show what the model uses?" not in of_floor
    picture = next((records.parent / "images").rglob("*.png"))
    assert len(kmura.predict(result.run, [picture]).images) == 1


def test_the_floor_has_no_model_and_says_so(probed):
    floor = probed[3].floor
    with pytest.raises(InputError, match="has no model, which faithfulness requires"):
        kmura.evaluate(floor, faithfulness=True)
    with pytest.raises(InputError, match="runs of kind probe have no classifier"):
        kmura.export(floor, floor.parent / "served")


@pytest.mark.slow
def test_other_methods_reuse_the_features_and_the_floor(probed, monkeypatch):
    records, runs, source, first = probed
    stamps = {file: file.stat().st_mtime_ns for file in (runs / AREA / features.CACHE).glob("*.npy")}
    floor = (first.floor / "predictions.csv").stat().st_mtime_ns
    assert len(stamps) == 2  # train and val
    for method in ("layer", "knn"):
        result = kmura.probe(source, records=records, area=AREA, runs=runs, method=method)
        read_predictions(result.run / "predictions.csv", Run(result.run).labels)
        assert result.floor == first.floor
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in stamps.items())
    assert (first.floor / "predictions.csv").stat().st_mtime_ns == floor
    layer = Run(runs / AREA / "baseline-layer")
    assert len(layer.history()) == 30 and layer.history()["best"].any()
    assert Run(runs / AREA / "baseline-knn").kind == "probe"


def test_a_finished_probe_is_read_again_and_other_settings_are_refused(probed):
    records, runs, source, first = probed
    stamp = (first.run / "best.keras").stat().st_mtime_ns
    again = kmura.probe(source, records=records, area=AREA, runs=runs)
    assert again.verdict == first.verdict and (first.run / "best.keras").stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match=r"other settings \(seed\).*--fresh"):
        kmura.probe(source, records=records, area=AREA, runs=runs, seed=1)
    with pytest.raises(InputError, match="is not a probe"):
        kmura.probe(source, records=records, area=AREA, runs=source.parent.parent, name="baseline")


def test_the_command_prints_the_probe_beside_the_floor(probed, monkeypatch, capsys):
    records, runs, source, result = probed
    options = ("--records", records, "--area", AREA, "--runs", runs)
    code, out, _ = kmura_main(monkeypatch, capsys, "probe", source, *options)
    assert code == 0 and "pixels" in out and "baseline-linear" in out and result.verdict in out
    code, _, err = kmura_main(monkeypatch, capsys, "probe", "none", *options)
    assert code == 2 and "does not say its backbone; give it with --backbone" in err


def test_a_share_of_the_labels_is_drawn_by_patient_from_each_class():
    rows = pd.DataFrame({"area": "A", "patient": np.repeat([f"p{n}" for n in range(100)], 2), "study": "s"})
    targets = np.repeat(np.arange(100) % 4 == 0, 2).astype(np.float32)[:, None]
    chosen = labelled_rows(rows, targets, 0.2, seed=0)
    assert len(chosen) == 40 and targets[chosen].sum() == 10
    assert rows["patient"][chosen].value_counts().eq(2).all()
    assert not np.array_equal(chosen, labelled_rows(rows, targets, 0.2, seed=1))
    assert len(labelled_rows(rows, targets, 1, seed=0)) == 200
    assert targets[labelled_rows(rows, targets, 0.001, seed=0)].sum() == 2


def blobs(task, images=600, seed=0):
    """Features whose first dimensions tell the labels, and targets with unknown ones."""
    rng = np.random.default_rng(seed)
    classes = task.outputs
    if task.by_label:
        ids = rng.integers(0, 2, (images, classes))
    else:
        ids = rng.integers(0, max(2, classes), (images, 1))
    targets = task.targets(ids)
    values = rng.normal(size=(images, 8)) * 3 + 5
    values[:, :classes] += 9 * targets
    unknown = rng.random(targets.shape) < 0.1 if task.by_label else rng.random((images, 1)) < 0.1
    return values.astype(np.float32), np.where(unknown, -1, targets).astype(np.float32)


TASKS = [
    Binary(("normal", "ill")),
    Multiclass(("a", "b", "c")),
    Multiclass(("a", "b")),
    Multilabel(("a", "b", "c")),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.name}{task.outputs}")
def test_every_method_separates_classes_and_ignores_unknown_labels(task):
    train, val, test = (blobs(task, seed=seed) for seed in range(3))
    regression, layer = logistic_regression(task, train, val), linear_layer(task, train, val)
    neighbours, k = neighbour_logits(task, train, val, {"test": test[0]})
    for logits in (regression.logits(test[0]), layer.logits(test[0]), neighbours["test"]):
        assert logits.shape == (600, task.outputs) and np.isfinite(logits).all()
        assert metrics.macro_auc(test[1], task.probabilities(logits)) > 0.8
    garbled = train[0].copy(), train[1]
    garbled[0][(train[1] < 0).all(axis=1)] = 1e6
    np.testing.assert_allclose(logistic_regression(task, garbled, val).kernel, regression.kernel, rtol=1e-6)


def test_missing_classes_are_named_and_a_single_outcome_gives_a_constant():
    task = Binary(("normal", "ill"))
    train, val = blobs(task), blobs(task, seed=1)
    with pytest.raises(InputError, match="no training image has the class ill"):
        logistic_regression(task, (train[0], np.zeros_like(train[1])), val)
    with pytest.raises(InputError, match="both outcomes in the split val"):
        logistic_regression(task, train, (val[0], np.zeros_like(val[1])))
    task = Multilabel(("a", "b"))
    train, val = blobs(task), blobs(task, seed=1)
    train[1][:, 1] = 0
    logits = logistic_regression(task, train, val).logits(val[0])
    assert np.ptp(logits[:, 1]) < 1e-9 and logits[0, 1] < -3 and np.ptp(logits[:, 0]) > 1


def test_a_preset_states_its_backbone_and_padding(tmp_path):
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / PORTED).write_text(json.dumps({"torch_padding": True, "backbone": "resnet18_small"}))
    encoder = encoder_of(tmp_path / "encoder")
    assert (encoder.name, encoder.backbone, encoder.torch_padding) == ("encoder", "resnet18_small", True)
    with pytest.raises(InputError, match="has backbone resnet18_small, not densenet_mini"):
        encoder_of(tmp_path / "encoder", "densenet_mini")
    assert encoder_of("hf://keras/densenet_121_imagenet", "densenet121").name == "hf-keras-densenet_121_imagenet"


@pytest.mark.real
def test_raw_pixels_of_pneumoniamnist_reach_their_known_auc(tmp_path):
    root = os.environ.get("KMURA_REAL_DATA")
    if not root:
        pytest.skip("KMURA_REAL_DATA is not set")
    kmura.build_records(f"{root}/pneumoniamnist.npz", tmp_path / "records", layout="medmnist")
    dataset = Dataset(tmp_path / "records", "all", DataConfig(image_size=28))
    parts = {
        split: (features.pixels(dataset, split), dataset.labels.targets(dataset.ids(split)))
        for split in ("train", "val", "test")
    }
    fitted = logistic_regression(dataset.labels, parts["train"], parts["val"], cs=(0.01,))
    auc = metrics.macro_auc(parts["test"][1], dataset.labels.probabilities(fitted.logits(parts["test"][0])))
    assert auc == pytest.approx(0.927, abs=0.002)
