"""A label that is unknown (-1) takes part in nothing, and the other labels of its image take part in everything."""

import keras
import numpy as np
import pandas as pd
import pytest
from command import kmura_main
from label_files import write_csv, write_images
from record_files import UNCHANGED, write_records
from sklearn.metrics import roc_auc_score

import kmura
from kmura.classification.learner import _accuracy, validation_scores
from kmura.classification.losses import BinaryFocalLoss, WeightedBinaryCrossentropy, make_loss
from kmura.config import DataConfig, RecordsConfig, load_config
from kmura.data.dataset import Dataset
from kmura.data.mixing import CutMix, MixUp
from kmura.tasks import Multilabel

RNG = np.random.default_rng(3)
LOGITS = RNG.normal(0, 2, (9, 3)).astype("float32")
LABELS = RNG.integers(0, 2, (9, 3)).astype("float32")
UNKNOWN = RNG.random((9, 3)) < 0.4
PARTLY = np.where(UNKNOWN, -1, LABELS).astype("float32")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [1.0, [0.5, 2.0, 3.0]])
def test_cross_entropy_is_that_of_keras_without_the_terms_of_unknown_labels(weights, smoothing):
    y, weights_of = LABELS * (1 - smoothing) + smoothing / 2, np.broadcast_to(weights, 3)
    terms = keras.losses.binary_crossentropy(y[..., None], LOGITS[..., None], from_logits=True)
    positive = keras.losses.binary_crossentropy(np.ones((9, 3, 1)), LOGITS[..., None], from_logits=True)
    terms = np.array(terms) + (weights_of - 1) * y * np.array(positive)
    loss = WeightedBinaryCrossentropy(weights, smoothing)
    assert float(loss(PARTLY, LOGITS)) == pytest.approx((terms * ~UNKNOWN).mean(), rel=1e-5)
    assert float(loss(LABELS, LOGITS)) == pytest.approx(terms.mean(), rel=1e-5)


@pytest.mark.parametrize("alpha", [None, 0.25, [0.2, 0.5, 0.9]])
def test_the_focal_loss_is_that_of_keras_without_the_terms_of_unknown_labels(alpha):
    columns = []
    for number in range(3):
        of_label = alpha[number] if isinstance(alpha, list) else alpha
        options = {} if alpha is None else {"apply_class_balancing": True, "alpha": of_label}
        y, x = LABELS[:, number, None], LOGITS[:, number, None]
        columns.append(keras.losses.binary_focal_crossentropy(y, x, gamma=2.0, from_logits=True, **options))
    terms = np.stack([np.array(column) for column in columns], axis=1)
    loss = BinaryFocalLoss(2.0, 1.5, alpha)
    assert float(loss(PARTLY, LOGITS)) == pytest.approx(1.5 * (terms * ~UNKNOWN).mean(), rel=1e-5)
    assert float(loss(LABELS, LOGITS)) == pytest.approx(1.5 * terms.mean(), rel=1e-5)


@pytest.mark.parametrize(
    "loss", [WeightedBinaryCrossentropy([1.0, 2.0, 3.0], 0.1), BinaryFocalLoss(2.0, 1.0, 0.3, 0.1)]
)
def test_unknown_labels_have_no_gradient_and_others_the_same_as_before(loss):
    import tensorflow as tf

    gradients = []
    for labels in (LABELS, PARTLY):
        logits = tf.Variable(LOGITS)
        with tf.GradientTape() as tape:
            value = loss(labels, logits)
        gradients.append(tape.gradient(value, logits).numpy())
    assert (gradients[1][UNKNOWN] == 0).all() and (gradients[0][UNKNOWN] != 0).all()
    np.testing.assert_allclose(gradients[1][~UNKNOWN], gradients[0][~UNKNOWN], rtol=1e-5)


@pytest.mark.parametrize("layer", [MixUp(0.4), CutMix(1.0), MixUp(0.4, per="batch")])
def test_a_mixture_with_an_unknown_label_has_it_unknown(layer):
    images = RNG.uniform(0, 255, (9, 8, 8, 1)).astype("float32")
    mixed = [layer({"images": images, "labels": labels}, seed=[1, 2], training=True) for labels in (LABELS, PARTLY)]
    whole, partly = (np.array(batch["labels"]) for batch in mixed)
    np.testing.assert_array_equal(mixed[0]["images"], mixed[1]["images"])
    known = partly >= 0
    assert ((partly >= 0) | (partly == -1)).all() and not known[UNKNOWN].any()
    np.testing.assert_array_equal(partly[known], whole[known])
    assert 0 < known.sum() < (~UNKNOWN).sum()  # partners spread what is unknown


def test_the_accuracy_of_training_counts_known_labels():
    metric = _accuracy(Multilabel(("a", "b", "c")))
    for rows in (slice(0, 4), slice(4, 9)):
        metric.update_state(PARTLY[rows], LOGITS[rows])
    right = (LABELS == 1) == (LOGITS >= 0)
    assert float(metric.result()) == pytest.approx(right[~UNKNOWN].mean(), rel=1e-6)


def test_validation_scores_are_means_over_labels_of_their_known_images():
    task = Multilabel(("a", "b", "c"))
    loss = make_loss(task, load_config("baseline").train, [1.0] * 3)
    labels = PARTLY.astype(int)
    labels[0] = -1  # an image without any label
    scores = validation_scores(np.arange(9), labels, LOGITS, loss, task)
    known = labels >= 0
    aucs = [roc_auc_score(labels[rows, n], LOGITS[rows, n]) for n, rows in enumerate(known.T)]
    assert scores["val_auc_img"] == pytest.approx(np.mean(aucs))
    accuracies = [((LOGITS[rows, n] >= 0) == labels[rows, n]).mean() for n, rows in enumerate(known.T)]
    assert scores["val_acc_img"] == pytest.approx(np.mean(accuracies))


def test_images_with_one_known_label_are_drawn_and_balance_counts_known_labels(tmp_path):
    labels = [(1, -1), (0, 1), (-1, 0), (-1, -1), (1, 0), (0, 0)]
    write_records(tmp_path, labels, task="multilabel", classes=("a", "b"))
    dataset = Dataset(tmp_path, "XR_WRIST", DataConfig(image_size=32))
    assert dataset.steps(batch_size=1) == 5 and dataset.balance() == [2 / 2, 3 / 1]
    drawn = [
        tuple(label) for batch in dataset.train(augment=UNCHANGED, batch_size=2) for label in batch["label"].numpy()
    ]
    assert sorted(drawn) == sorted(label for label in labels if label != (-1, -1))


@pytest.fixture(scope="module")
def partly_labelled(tmp_path_factory):
    """Images whose mean gray value is label `bright` and whose left half is label `left`; two thirds are known."""
    from PIL import Image

    folder, rng, rows = tmp_path_factory.mktemp("partly"), np.random.default_rng(0), ["image,bright,left,patient,sex"]
    (folder / "images").mkdir()
    for number in range(72):
        bright, left = rng.integers(0, 2, 2)
        pixels = rng.uniform(0, 80, (32, 32)) + 90 * bright
        pixels[:, :12] += 85 * left
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{number}.png")
        cells = [str(value) if rng.random() > 1 / 3 else random for value, random in ((bright, "-1"), (left, ""))]
        rows.append(f"{number}.png,{','.join(cells)},{number // 2},{'MF'[number % 2]}")
    write_csv(folder / "labels.csv", *rows)
    options = {"layout": "csv", "csv": [str(folder / "labels.csv")], "image_column": "image", "keep_columns": ["sex"]}
    options |= {"label_columns": ["bright", "left"], "patient_column": "patient", "name": "toy", "workers": 1}
    kmura.build_records(folder / "images", folder / "records", options=RecordsConfig(val_fraction=0.3), **options)
    return folder


@pytest.mark.slow
def test_multilabel_works_through_every_step_with_unknown_labels(partly_labelled, tmp_path, monkeypatch, capsys):
    from kmura.evaluation.scoring import ScoreOptions

    folder = partly_labelled
    settings = {
        "model.backbone": "densenet_mini", "model.weights": "none", "data.image_size": 32, "train.epochs": 2,
        "train.balance": True, "mix.until_epoch": 1, "mix.mixup_alpha": 0.4, "cam.from_epoch": 2,
    }  # fmt: skip
    config = load_config("baseline", settings)
    result = kmura.fit(folder / "records", area="toy", runs=tmp_path / "runs", config=config)
    run = result.folder
    kmura.evaluate(run, options=ScoreOptions(resamples=20))
    table = pd.read_csv(run / "predictions.csv")
    assert {"sex", "label_bright", "label_left"} <= set(table) and (table["label_left"] == -1).any()
    test = table[(table["split"] == "test") & (table["label_left"] >= 0)]
    evaluation = kmura.evaluate(run, options=ScoreOptions(resamples=20))
    (left,) = [of_class for of_class in evaluation.scores.splits["test"]["image"].classes if of_class.name == "left"]
    assert left.scores["auc"].value == pytest.approx(roc_auc_score(test["label_left"], test["probability_left"]))
    history = pd.read_csv(run / "history.csv")
    assert np.isfinite(history["loss"]).all() and history["acc"].between(0, 1).all()
    kmura.explain(run)
    kmura.export(run, tmp_path / "export")
    code, out, _ = kmura_main(monkeypatch, capsys, "predict", tmp_path / "export", folder / "images" / "0.png")
    assert code == 0 and "labels (of 2)" in out
    code, out, err = kmura_main(monkeypatch, capsys, "report", run, "--out", tmp_path / "page.html")
    assert code == 0, err


def test_binary_images_with_an_unknown_label_are_left_out_as_before(tmp_path):
    root = write_images(tmp_path / "x", *(f"{number}.png" for number in range(8)))
    write_csv(tmp_path / "l.csv", "image,ill", *(f"{number}.png,{(0, 1, -1, '')[number % 4]}" for number in range(8)))
    options = {"layout": "csv", "csv": [str(tmp_path / "l.csv")], "image_column": "image", "label_column": "ill"}
    no_split = RecordsConfig(test_fraction=0, val_fraction=0)
    manifest = kmura.build_records(root, tmp_path / "out", options=no_split, workers=1, **options)
    assert manifest.areas["x"]["train"].per_class == (2, 2)
    assert Dataset(tmp_path / "out", "x").steps(batch_size=1) == 4
