"""A pretrained encoder, its probes and its report on records of 14 labels, as in ChestMNIST."""

import json

import numpy as np
import pandas as pd
import pytest
from command import kmura_main
from PIL import Image

import kmura
from kmura.data.dataset import Dataset
from kmura.report.report import report
from kmura.runs.run import Run

LABELS = ("atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax",
          "consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia")  # fmt: skip
NEVER = "hernia"  # has no positive image in the training split
TINY = {
    "data.image_size": 32,
    "encoder.backbone": "densenet_mini",
    "method.projector": [32, 16],
    "train.batch_size": 16,
    "train.epochs": 2,
    "train.warmup_epochs": 0,
    "train.optimizer": "adamw",
    "train.base_rate": 0.03,
}


def cut_chestmnist(path, seed=0):
    """Writes a file with the arrays of ChestMNIST: one bright spot for each label that an image has."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for split, count in (("train", 96), ("val", 40), ("test", 48)):
        labels = (rng.random((count, len(LABELS))) < 0.25).astype(np.uint8)
        if split == "train":
            labels[:, -1] = 0
        images = rng.integers(60, 100, (count, 28, 28))
        for place in range(len(LABELS)):
            row, column = 2 + 6 * (place // 4), 2 + 6 * (place % 4)
            images[:, row : row + 4, column : column + 4] += 120 * labels[:, place, None, None]
        arrays |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels}
    np.savez(path, **arrays)


@pytest.fixture(scope="module")
def chest(tmp_path_factory):
    """(records, runs, folder of the pretraining run)."""
    folder = tmp_path_factory.mktemp("chest")
    cut_chestmnist(folder / "chestmnist.npz")
    source = folder / "chestmnist.npz"
    kmura.build_records(source, folder / "records", layout="medmnist", classes=LABELS, workers=1)
    run = kmura.pretrain(folder / "records", area="chestmnist", runs=folder / "runs", settings=TINY)
    return folder / "records", folder / "runs", run


def test_the_online_probe_is_the_mean_over_labels_with_both_outcomes(chest):
    records, _, run = chest
    assert Dataset(records, "chestmnist", Run(run.folder).config.data).labels.classes == LABELS
    assert run.history["val_probe_auc"].between(0, 1).all()
    evaluation = kmura.evaluate(run.folder)
    assert evaluation.labelled == evaluation.images == 40


@pytest.mark.slow
def test_probes_of_14_labels_stand_beside_the_floor_in_the_report(chest, tmp_path, sketched, caplog):
    records, runs, run = chest
    result = kmura.probe(run.folder, records=records, area="chestmnist", runs=runs)
    assert any(NEVER in record.message for record in caplog.records), "a label that cannot be learnt is named"
    knn = kmura.probe(run.folder, records=records, area="chestmnist", runs=runs, method="knn")
    assert knn.floor == result.floor
    table = pd.read_csv(result.run / "predictions.csv")
    assert {f"probability_{label}" for label in LABELS} <= {*table}
    constant = table[f"probability_{NEVER}"]
    assert constant.nunique() == 1 and constant.iloc[0] < 0.05
    for folder in (result.run, result.floor, knn.run):
        scores = json.loads((folder / "metrics.json").read_text())["scores"]["splits"]["test"]["study"]["scores"]
        assert 0 <= scores["auc"]["value"] <= 1
    kmura.evaluate(run.folder)
    page = report([run.folder, result.run, knn.run, result.floor], tmp_path / "page.html").read_text()
    assert "Pretrained encoders" in page and all(label in page for label in LABELS)


@pytest.mark.slow
def test_a_linear_probe_is_a_model_that_is_explained_and_exported(chest, tmp_path):
    records, runs, run = chest
    probe = kmura.probe(run.folder, records=records, area="chestmnist", runs=runs)
    explanation = kmura.explain(probe.run, cases=1, sample=4)
    assert explanation.split == "test" and len(explanation.cases) >= 1
    exported = kmura.export(probe.run, tmp_path / "served", warmup=False)
    assert exported.contract.classes == LABELS and exported.parity.logit < 1e-4


@pytest.mark.slow
def test_what_an_encoder_and_a_vote_cannot_do_is_said_in_one_line(chest, tmp_path, monkeypatch, capsys):
    records, runs, run = chest
    linear, knn = (
        kmura.probe(run.folder, records=records, area="chestmnist", runs=runs, method=method).run
        for method in ("linear", "knn")
    )
    image = tmp_path / "image.png"
    Image.new("L", (28, 28), 90).save(image)
    kmura.evaluate(run.folder)
    for folder, instead in ((run.folder, "kmura fit --weights RUN/encoder"), (knn, "--method linear or layer")):
        for command in (["explain", folder], ["predict", folder, image], ["export", folder, "--out", tmp_path / "out"]):
            code, out, err = kmura_main(monkeypatch, capsys, *command)
            assert (code, out, err.count("\n")) == (2, "", 1), err
            assert "have no classifier" in err and instead in err
    code, _, err = kmura_main(monkeypatch, capsys, "compare", linear, run.folder)
    assert code == 2 and err.count("\n") == 1 and "runs of kind pretraining have no class predictions" in err
