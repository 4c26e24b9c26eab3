"""Joint, multiclass and multilabel models share the training and evaluation of binary models."""

import json

import keras
import numpy as np
import pandas as pd
import pytest
from record_files import write_records

import kmura
from kmura import metrics
from kmura.classification.fit import fit_areas
from kmura.classification.learner import validation_scores
from kmura.config import DataConfig, load_config
from kmura.data.dataset import Dataset
from kmura.errors import InputError
from kmura.evaluation.class_scores import questions_of
from kmura.evaluation.compare import compare
from kmura.evaluation.scoring import ScoreOptions
from kmura.runs.run import read_run
from kmura.tasks import Binary, Multiclass, Multilabel
from kmura.training.callbacks import has_stopped

TINY = {"model.backbone": "densenet_mini", "model.weights": "none", "data.image_size": 32, "train.epochs": 2}
FEW = ScoreOptions(resamples=20)


@pytest.fixture
def two_areas(tmp_path):
    write_records(tmp_path, [1, 0], area="XR_ELBOW")
    return write_records(tmp_path, [0, 1, -1], area="XR_WRIST")


def test_a_joint_model_has_one_class_per_area_and_label(two_areas):
    dataset = Dataset(two_areas, "all", DataConfig(task="multiclass"))
    assert dataset.labels.classes == ("Abnormal-ELBOW", "Abnormal-WRIST", "Normal-ELBOW", "Normal-WRIST")
    keys = dataset.rows("train")
    assert keys["area"].tolist() == ["XR_ELBOW"] * 2 + ["XR_WRIST"] * 3
    assert keys["label"].tolist() == [0, 2, 3, 1, -1]
    targets = dataset.labels.targets(dataset.ids("train"))
    assert targets.tolist() == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0], [-1] * 4]


def test_records_of_two_classes_support_three_tasks(two_areas):
    of_task = {
        task: Dataset(two_areas, "XR_WRIST", DataConfig(task=task)) for task in ("auto", "multiclass", "multilabel")
    }
    shapes = {task: data.labels.targets(data.ids("train"))[:2].tolist() for task, data in of_task.items()}
    assert shapes == {"auto": [[0], [1]], "multiclass": [[1, 0], [0, 1]], "multilabel": [[0], [1]]}
    assert list(of_task["multilabel"].rows("train"))[-1] == "label_abnormal"
    with pytest.raises(InputError, match="task binary does not fit these records, whose labels are multiclass"):
        write_records(two_areas / "m", [0, 1, 2], task="multiclass", classes="abc")
        Dataset(two_areas / "m", "XR_WRIST", DataConfig(task="binary"))


def test_balanced_sampling_draws_classes_equally_often_and_uses_all_images_of_rare_classes(tmp_path):
    write_records(tmp_path, [0] * 9 + [1] * 3)
    dataset = Dataset(tmp_path, "XR_WRIST", DataConfig(image_size=16, cache="off"))
    data = dataset.train(batch_size=4, epochs=2, balanced=True)
    labels = np.concatenate([batch["label"] for batch in data.as_numpy_iterator()])[:, 0].reshape(2, 12)
    assert labels.sum(axis=1).tolist() == [6, 6] and labels[0].tolist() != labels[1].tolist()


def test_classes_are_weighted_by_inverse_frequency(mura_root, tmp_path):
    manifest = kmura.build_records(mura_root, tmp_path, workers=1)
    joint = Dataset(tmp_path, "all", DataConfig(task="multiclass"))
    counts = joint.counts("train")
    by_area = {area: splits["train"].per_class for area, splits in manifest.areas.items()}
    assert counts == tuple(by_area[area][label] for label in (1, 0) for area in sorted(by_area))
    weights = joint.balance("train")
    assert np.dot(weights, counts) == pytest.approx(sum(counts))
    assert np.ptp(np.multiply(weights, counts)) == pytest.approx(0)
    negatives, positives = by_area["XR_WRIST"]
    for task in ("binary", "multilabel"):
        assert Dataset(tmp_path, "XR_WRIST", DataConfig(task=task)).balance("train") == [negatives / positives]


def test_unknown_labels_are_excluded_from_the_loss_of_a_label(tmp_path):
    labels = [(1, 0), (0, 1), (0, -1), (0, -1), (-1, 1), (1, 0)]
    write_records(tmp_path, labels, task="multilabel", classes=("mass", "edema"))
    assert Dataset(tmp_path, "XR_WRIST").balance("train") == [3 / 2, 2 / 2]


@pytest.mark.parametrize(
    ("options", "labels", "missing"),
    [
        ({}, [0, 0, -1], "of abnormal"),
        ({"task": "multiclass", "classes": ("a", "b", "c", "d")}, [0, 2, 2], "of b or of d"),
        ({"task": "multilabel", "classes": ("a", "b")}, [(1, 0), (1, 0), (1, -1)], "of b or without a"),
    ],
)
def test_all_classes_missing_in_a_split_are_reported(tmp_path, options, labels, missing):
    write_records(tmp_path, labels, **options)
    with pytest.raises(InputError, match=f"XR_WRIST has no images {missing} in the train split of .*; add some$"):
        kmura.fit(tmp_path, area="XR_WRIST", runs=tmp_path / "runs", config=load_config(None, TINY))


def test_a_joint_model_reports_the_areas_with_missing_classes(two_areas):
    write_records(two_areas, [0, 0], area="XR_HAND")
    config = load_config(None, TINY | {"data.task": "multiclass"})
    with pytest.raises(
        InputError, match="no images of Abnormal-HAND in .*; add some, or build the records without that area$"
    ):
        kmura.fit(two_areas, area="all", runs=two_areas / "runs", config=config)


def test_validation_of_one_label_and_of_two_classes_matches_the_binary_task():
    rng = np.random.default_rng(0)
    study, label, logit = (
        np.repeat(np.arange(20), 2),
        np.repeat(rng.integers(0, 2, 20), 2)[:, None],
        rng.normal(size=40),
    )
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    binary = validation_scores(study, label, logit[:, None], loss, Binary(("a", "b")))
    assert validation_scores(study, label, logit[:, None], loss, Multilabel(("b",))) == binary
    pair = np.stack([np.zeros(40), logit], axis=1)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    two = validation_scores(study, label, pair, loss, Multiclass(("a", "b")))
    for name in ("val_auc_img", "val_auc_study", "val_acc_img", "val_acc_study", "val_loss_img"):
        assert two[name] == pytest.approx(binary[name], rel=1e-5), name


@pytest.fixture(scope="module")
def joint_run(records, tmp_path_factory):
    runs = tmp_path_factory.mktemp("joint")
    settings = TINY | {"data.task": "multiclass", "train.balance": True}
    run = next(iter(fit_areas(records, area="all", runs=runs, settings=settings)))
    return run, kmura.evaluate(run.folder, options=FEW)


@pytest.mark.slow
def test_a_model_of_all_areas_is_one_run_evaluated_per_class_and_per_area(joint_run, records):
    run, found = joint_run
    assert run.folder.parts[-2:] == ("all", "baseline")
    description = read_run(run.folder)
    assert description.task == "multiclass" and len(description.classes) == 4
    model = keras.saving.load_model(run.folder / "best.keras")
    assert model.output_shape == (None, 4)
    table = pd.read_csv(run.folder / "predictions.csv")
    assert table[description.labels.probability_columns].sum(axis=1).to_numpy() == pytest.approx(1)
    assert set(found.scores.questions) == {"XR_ELBOW", "XR_WRIST"}
    held_out = table[table["split"] == "test"]
    of_wrist = held_out[held_out["area"] == "XR_WRIST"]
    probability = of_wrist["probability_Abnormal-ELBOW"] + of_wrist["probability_Abnormal-WRIST"]
    abnormal = (of_wrist["label"] < 2).astype(int)
    expected = float(metrics.auc(abnormal, probability)[0])
    assert found.scores.questions["XR_WRIST"].splits["test"]["image"].scores["auc"].value == pytest.approx(expected)
    image = found.scores.splits["test"]["image"]
    predicted = table.loc[held_out.index, description.labels.probability_columns].to_numpy().argmax(axis=1)
    assert image.scores["accuracy"].value == pytest.approx((predicted == held_out["label"]).mean())
    assert np.sum(image.confusion) == image.images == len(held_out)
    assert json.loads((run.folder / "metrics.json").read_text())["classes"] == list(description.classes)


@pytest.mark.slow
def test_studies_of_the_same_name_in_two_areas_are_distinguished(joint_run):
    _, found = joint_run
    by_area = [scores.splits["test"]["study"].studies for scores in found.scores.questions.values()]
    assert found.scores.splits["test"]["study"].studies == sum(by_area)


@pytest.mark.slow
def test_a_joint_model_can_be_compared_with_models_per_area(joint_run, records, tmp_path):
    run, found = joint_run
    own = kmura.fit(records, area="XR_WRIST", runs=tmp_path, settings=TINY)
    kmura.evaluate(own.folder, options=FEW)
    result = compare([run.folder, own.folder], resamples=20)
    scores = result.scores["study"]["XR_WRIST"]
    assert set(scores) == {"baseline of all areas", "baseline"}
    expected = found.scores.questions["XR_WRIST"].splits["test"]["study"].scores["auc"].value
    assert scores["baseline of all areas"]["auc"].value == pytest.approx(expected)


def test_the_questions_of_a_multilabel_task_are_its_labels():
    table = pd.DataFrame(
        {"split": "test", "area": "chest", "patient": ["a", "b"], "study": ["a", "b"], "image": ["1", "2"]}
        | {"label_mass": [1, 0], "label_edema": [-1, 1]}
        | {f"{kind}_{name}": [0.2, 0.8] for kind in ("logit", "probability") for name in ("mass", "edema")}
    )
    found = questions_of(table, "chest", Multilabel(("mass", "edema")))
    assert found["edema"]["label"].tolist() == [-1, 1] and found["mass"]["probability"].tolist() == [0.2, 0.8]
    assert list(questions_of(table, "chest", Multilabel(("mass",)))) == ["chest"]


@pytest.mark.slow
def test_the_alphabetical_position_of_the_positive_class_does_not_change_metrics(tmp_path):
    """The positive class is bright images, named `a_bright` or `z_bright`; `normal` is sorted after or before it."""
    found = []
    for positive in ("a_bright", "z_bright"):
        root, records = tmp_path / positive, tmp_path / f"{positive}-records"
        for split, count in (("train", 12), ("test", 8)):
            for name, level in ((positive, 110), ("normal", 90)):
                for number in range(count):
                    path = root / split / name / f"{number:03d}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    rng = np.random.default_rng([number, level, split == "test"])
                    keras.utils.save_img(path, rng.normal(level + rng.normal(0, 6), 20, (32, 32, 1)), scale=False)
        kmura.build_records(root, records, layout="folders", name="x", positive_class=positive, workers=1)
        settings = TINY | {"train.select_on": "test", "train.epochs": 1 if found else 6, "train.learning_rate": 0.01}
        run = kmura.fit(records, area="x", runs=tmp_path / f"{positive}-runs", settings=settings).folder
        if found:  # the same model for both: class names change the order of records and therefore the training
            (run / "best.keras").write_bytes(found[0][0])
        scores = kmura.evaluate(run, splits=("test",), options=FEW).scores.splits["test"]["image"]
        found.append(((run / "best.keras").read_bytes(), scores))
    (_, first), (_, last) = found
    assert first.scores["auc"].value > 0.7 and first.confusion == last.confusion
    for name, score in first.scores.items():
        assert score.value == pytest.approx(last.scores[name].value, nan_ok=True), name


def losses(*values):
    return [{"epoch": number + 1, "val_loss_img": value} for number, value in enumerate(values)]


def test_a_run_stops_early_when_its_loss_plateaus():
    train = load_config(None, {"train.stop_patience": 2}).train
    assert not has_stopped(train, losses(3, 2, 2.5), "val_loss_img")
    assert has_stopped(train, losses(3, 2, 2.5, 2.1), "val_loss_img")
    assert not has_stopped(load_config(None).train, losses(*range(9)), "val_loss_img")


@pytest.mark.slow
def test_a_resumed_run_with_patience_equals_an_uninterrupted_run(records, tmp_path):
    """Learning rate and early stopping depend on the losses of all epochs, including those before an interruption."""
    settings = TINY | {
        "train.epochs": 5,
        "train.learning_rate": 0.03,
        "train.plateau_patience": 1,
        "train.stop_patience": 4,
        "train.deterministic": True,
    }

    class Break(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    through = kmura.fit(records, area="XR_WRIST", runs=tmp_path / "one", settings=settings).history
    with pytest.raises(KeyboardInterrupt):
        kmura.fit(records, area="XR_WRIST", runs=tmp_path / "two", settings=settings, callbacks=[Break()])
    resumed = kmura.fit(records, area="XR_WRIST", runs=tmp_path / "two", settings=settings).history
    columns = ["epoch", "loss", "val_loss_img", "learning_rate"]
    pd.testing.assert_frame_equal(through[columns], resumed[columns], check_exact=True)
    assert through["learning_rate"].iloc[-1] < 0.03
    again = kmura.fit(records, area="XR_WRIST", runs=tmp_path / "two", settings=settings).history
    assert len(again) == len(resumed)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train.focal_alpha": 0.25}, "focal_alpha requires train.loss=focal"),
        ({"train.stop_patience": 2, "train.frozen_until_epoch": 1}, "could end training before"),
        ({"train.focal_gamma": -1}, "train.focal_gamma is -1"),
        ({"train.plateau_patience": 0}, "train.plateau_patience is 0; 1 or more"),
        ({"train.plateau_patience": 2, "train.schedule": "cosine"}, "requires schedule constant"),
        ({"model.head_dropout": [1.0]}, "model.head_dropout is 1.0"),
    ],
)
def test_invalid_settings_are_rejected(settings, message):
    with pytest.raises(InputError, match=message):
        load_config(None, settings)


def test_settings_that_do_not_suit_the_task_are_rejected(records, tmp_path):
    joint = TINY | {"data.task": "multiclass"}
    for more, message in (
        ({"cam.erase": "positive"}, "cam.erase=positive requires a model with one logit, this one has 4"),
        ({"train.loss": "focal", "train.focal_alpha": 0.3}, "focal_alpha requires a binary or multilabel model"),
    ):
        with pytest.raises(InputError, match=message):
            kmura.fit(records, area="all", runs=tmp_path, settings=joint | more)


@pytest.mark.slow
def test_a_single_label_is_trained_bit_identically_to_the_binary_task(records, tmp_path):
    tables = {}
    for task in ("binary", "multilabel"):
        settings = TINY | {"data.task": task, "train.deterministic": True}
        run = kmura.fit(records, area="XR_WRIST", runs=tmp_path / task, settings=settings).folder
        kmura.evaluate(run, options=FEW)
        tables[task] = pd.read_csv(run / "predictions.csv")
    one, other = tables["binary"], tables["multilabel"]
    assert (
        one["image"].tolist() == other["image"].tolist() and one["label"].tolist() == other["label_abnormal"].tolist()
    )
    assert one["logit"].tolist() == other["logit_abnormal"].tolist()


@pytest.mark.slow
def test_mixing_and_erasing_support_several_classes(records, tmp_path):
    settings = TINY | {"data.task": "multiclass", "train.epochs": 1, "mix.until_epoch": 1, "mix.aug_p": 1.0}
    plain, erased = (
        kmura.fit(records, area="all", runs=tmp_path / name, settings=settings | more).history["loss"][0]
        for name, more in (("plain", {}), ("erased", {"cam.from_epoch": 1, "cam.erase_every": 1}))
    )
    assert np.isfinite([plain, erased]).all() and plain != erased
