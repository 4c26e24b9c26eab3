"""Multiclass and multilabel models are exported and queried like binary ones, and match their evaluation."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from command import kmura_main
from PIL import Image
from record_files import picture

from kmura import metrics
from kmura.errors import InputError
from kmura.export.golden import difference, load_signatures
from kmura.serving.contract import Contract

LABELS = ("edema", "mass", "nodule")
NAMES = [f"probability_{name}" for name in LABELS]
SE = {"model.head": "se_attention", "model.head_widths": [8], "model.attention_maps": 2}


def made_run(folder, manifest, area, task, settings, pooling):
    """Returns an evaluated run of a random network."""
    import kmura
    from kmura.config import load_config
    from kmura.data.dataset import Dataset
    from kmura.evaluation.scoring import ScoreOptions
    from kmura.runs.run import RunFolder, write_run
    from kmura.training.claim import describe

    settings = settings | {"model.backbone": "densenet_mini", "model.weights": "none", "data.image_size": 32}
    config = load_config(None, settings | {"data.task": task})
    dataset = Dataset(folder / "records", area, config.data)
    run = folder / "runs" / area / "baseline"
    run.mkdir(parents=True)
    description = describe(dataset, "baseline", config, kind="classification", command="a test")
    write_run(RunFolder(run), dataclasses.replace(description, finished=True))
    own = {key: getattr(config.model, key) for key in ("backbone", "weights", "head", "head_widths", "attention_maps")}
    model = kmura.build_model(**own, image_size=32, num_classes=dataset.labels.outputs, seed=3)
    logits = model.get_layer("logits")
    logits.kernel.assign(logits.kernel * 40)  # with random weights, all logits are nearly equal
    shades = np.linspace(0, 255, 9, dtype=np.float32)[:, None, None, None] + np.zeros((32, 32, 1), np.float32)
    logits.bias.assign(-np.median(model(shades, training=False), axis=0))
    model.save(run / "best.keras")
    kmura.evaluate(run, options=ScoreOptions(pooling=pooling, resamples=20))
    return run


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    """(folder of images, run, export) of one model over two areas with the head se_attention and max pooling."""
    import kmura
    from kmura.config import RecordsConfig
    from kmura.phantoms.radiographs import write_phantoms

    folder = tmp_path_factory.mktemp("joint")
    areas = ("XR_ELBOW", "XR_WRIST")
    write_phantoms(folder / "images", areas=areas, train_studies=10, test_studies=6, side=64, workers=1)
    options = RecordsConfig(val_fraction=0.3, max_side=56)
    manifest = kmura.build_records(folder / "images", folder / "records", options=options, workers=1)
    run = made_run(folder, manifest, "all", "multiclass", SE, "max")
    return folder / "images", run, kmura.export(run, folder / "served")


@pytest.fixture(scope="module")
def signatures(joint):
    return load_signatures(joint[2].folder)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """(folder of images, run) of a model of three labels."""
    import kmura

    folder = tmp_path_factory.mktemp("several")
    rng = np.random.default_rng(0)
    arrays = {}
    for key, number in (("train", 12), ("val", 8), ("test", 12)):
        arrays[f"{key}_images"] = np.stack([picture(seed, (28, 28))[:28, :28] // (1 + seed) for seed in range(number)])
        arrays[f"{key}_labels"] = rng.integers(0, 2, (number, 3))
    np.savez(folder / "chest.npz", **arrays)
    manifest = kmura.build_records(
        folder / "chest.npz", folder / "records", layout="medmnist", classes=LABELS, workers=1
    )
    (folder / "images").mkdir()
    for number, pixels in enumerate(arrays["test_images"]):
        Image.fromarray(pixels).save(folder / "images" / f"{number:02}.png")
    return folder / "images", made_run(folder, manifest, "chest", "multilabel", {}, "mean")


def asked(signature, **given):
    import tensorflow as tf

    return {
        name: value.numpy() for name, value in signature(**{key: tf.constant(v) for key, v in given.items()}).items()
    }


def text(values):
    return np.strings.decode(values.astype(bytes)).tolist()


def assert_answers_are_those_of(signatures, run, contract):
    """Asserts agreement with the model in the run folder within 1e-5, for batches of 1 and 7."""
    from kmura.runs.run import load_model

    model, number = load_model(run / "best.keras"), len(contract.classes)
    for batch in (1, 7):
        images = np.random.default_rng(batch).uniform(0, 255, (batch, 32, 32, 1)).astype(np.float32)
        logit = np.asarray(model(images, training=False), float)
        answers = asked(signatures["tensor"], image=images)
        right = metrics.probabilities(logit, softmax=contract.task == "multiclass")
        assert (np.abs(answers["logit"] - logit) / np.maximum(1, np.abs(logit))).max() <= 1e-5
        assert answers["probability"].shape == (batch, number)
        assert answers["probability"] == pytest.approx(right, abs=1e-5)
        assert text(answers["decision"]) == contract.decision(right).tolist()
        assert text(answers["class_names"]) == [list(contract.classes)] * batch
        assert text(answers["calibration"]) == ["none"] * batch and "threshold" not in answers
        explained = asked(signatures["explain_tensor"], image=images)
        assert explained["probability"] == pytest.approx(right, abs=1e-5)
        assert explained["cam"].shape == (batch, 32, 32)
    assert explained["cam"].max() > 0
    return answers


@pytest.mark.slow
def test_the_predictions_of_an_export_match_keras(joint, signatures):
    _, run, found = joint
    assert max(found.parity.logit, found.parity.probability) <= 1e-5 and found.parity.warmup == len(signatures) == 5
    answers = assert_answers_are_those_of(signatures, run, found.contract)
    assert answers["abnormal_probability"] == pytest.approx(answers["probability"][:, :2].sum(1), abs=1e-6)


def test_the_predictions_of_a_multilabel_run_match_keras(several):
    from kmura.prediction.predictor import load_predictor

    _, run = several
    predictor = load_predictor(run)
    assert "abnormal_probability" not in assert_answers_are_those_of(predictor.signatures, run, predictor.contract)


@pytest.mark.slow
def test_the_predictions_of_a_multilabel_export_match_its_run(several, tmp_path):
    import kmura

    folder, run = several
    found = kmura.export(run, tmp_path / "served")
    assert_answers_are_those_of(load_signatures(found.folder), run, found.contract)
    one, other = (kmura.predict(model, folder).images for model in (run, found.folder))
    assert other[NAMES].to_numpy() == pytest.approx(one[NAMES].to_numpy(), abs=1e-5)
    assert other["decision"].tolist() == one["decision"].tolist()
    signature = json.loads((found.folder / "signature.json").read_text())
    assert "of what speaks for the most probable label" in signature["signatures"]["explain"]["gives"]
    card = (found.folder / "model_card.md").read_text()
    assert "### Classes on test\n" in card and "`none` if there is none" in card and "### Yes or no" in card


@pytest.mark.slow
def test_a_map_explains_the_decision(joint, signatures):
    from kmura import cam
    from kmura.runs.run import load_model

    _, run, found = joint
    images = np.random.default_rng(2).uniform(0, 255, (6, 32, 32, 1)).astype(np.float32)
    answers = asked(signatures["explain_tensor"], image=images)
    engine = cam.CamEngine(load_model(run / "best.keras"))
    for place, name in enumerate(text(answers["decision"])):
        right, _ = engine(images[place : place + 1], cam.named_target(name, found.contract.classes))
        assert np.abs(answers["cam"][place] - right[0]).max() <= 1e-2 * max(right.numpy().max(), 1e-12)


@pytest.mark.slow
def test_the_study_predictions_of_a_joint_model_match_its_evaluation(joint, signatures):
    import kmura

    folder, run, found = joint
    contract = found.contract
    assert contract.classes == ("Abnormal-ELBOW", "Abnormal-WRIST", "Normal-ELBOW", "Normal-WRIST")
    names = [f"probability_{name}" for name in contract.classes]
    table = pd.read_csv(run / "predictions.csv")
    table = table[table["split"] == "test"].reset_index(drop=True)
    study = (table["area"] + "/" + table["study"]).to_numpy()
    pooled = metrics.pool_classes(study, table[names], "max")
    answers = kmura.predict(run, folder / "valid")
    of_images = answers.images.set_index("image").loc[[str(folder / name) for name in table["image"]]]
    assert of_images[names].to_numpy() == pytest.approx(table[names].to_numpy(), abs=1e-5)
    assert of_images["abnormal_probability"].to_numpy() == pytest.approx(table[names[:2]].sum(axis=1), abs=1e-5)
    of_studies = answers.studies.set_index("study").loc[study[pooled.first]]
    assert of_studies[names].to_numpy() == pytest.approx(pooled.value, abs=1e-5)
    # the abnormal probability is pooled like that of the questions
    abnormal = metrics.pool_studies(study, table[names[:2]].sum(axis=1).to_numpy(), "max")
    assert of_studies["abnormal_probability"].to_numpy() == pytest.approx(abnormal.value, abs=1e-5)
    assert of_studies["decision"].tolist() == [contract.classes[best] for best in pooled.value.argmax(1)]
    # the export computes the same from the image files
    first = study[pooled.first][0]
    files = [(folder / name).read_bytes() for name in table["image"][study == first]]
    answer = asked(signatures["study"], image_bytes=files)
    assert answer["probability"] == pytest.approx(pooled.value[:1], abs=1e-4)
    assert answer["probability"].sum() == pytest.approx(1, abs=1e-6) and answer["image_logit"].shape == (len(files), 4)
    assert text(answer["decision"]) == of_studies["decision"].tolist()[:1]


def test_multilabel_decisions_match_the_evaluation(several, tmp_path):
    import kmura

    folder, run = several
    found = kmura.predict(run / "best.keras", folder, group="folder", cam=tmp_path / "maps")
    table = pd.read_csv(run / "predictions.csv")
    table = table[table["split"] == "test"].sort_values("image")
    assert found.images[NAMES].to_numpy() == pytest.approx(table[NAMES].to_numpy(), abs=1e-5)
    for row in found.images.to_dict("records"):
        assert row["decision"] == (", ".join(name for name in LABELS if row[f"probability_{name}"] >= 0.5) or "none")
    assert found.images["decision"].nunique() > 1
    assert found.studies[NAMES].to_numpy()[0] == pytest.approx(found.images[NAMES].mean().to_numpy(), abs=1e-6)
    assert len(list((tmp_path / "maps").glob("*.png"))) == len(found.images) == 12


@pytest.mark.slow
def test_the_signature_file_describes_the_columns(joint, signatures):
    _, run, found = joint
    signature = json.loads((found.folder / "signature.json").read_text())
    assert signature["contract"]["task"] == "multiclass" and signature["calibration"] == "none"
    assert signature["contract"]["classes"] == list(found.contract.classes)
    assert set(signature["answers"]) == set(asked(signatures["tensor"], image=np.zeros((1, 32, 32, 1), np.float32)))
    scores = json.loads((run / "metrics.json").read_text())["scores"]
    card = (found.folder / "model_card.md").read_text()
    held_out = scores["splits"]["test"]["study"]
    auc = held_out["scores"]["auc"]
    assert f"| auc | {auc['value']:.3f} | {auc['low']:.3f} to {auc['high']:.3f} |" in card
    of_classes = card.partition("### Classes on test, study level")[2].partition("###")[0]
    for each in held_out["classes"]:
        (line,) = [line for line in of_classes.splitlines() if line.startswith(f"| {each['name']} | {each['units']} |")]
        assert f"| {each['scores']['auc']['value']:.3f} (" in line
    asked_of = scores["questions"]["XR_WRIST"]["splits"]["test"]["study"]
    right = f"| {asked_of['studies']} | {asked_of['positives']} | {asked_of['scores']['auc']['value']:.3f} ("
    assert f"| XR\\_WRIST {right}" in card.partition("### Yes or no on test")[2]
    assert (
        f"| all areas | {len(held_out['classes']) * 3} |" in card
        and "| images of Normal-ELBOW |" in card
        and "hreshold" not in card
    )


@pytest.mark.slow
def test_the_command_line_writes_one_column_per_class(joint, several, monkeypatch, capsys, tmp_path):
    folder, _, found = joint
    code, *_ = kmura_main(monkeypatch, capsys, "predict", found.folder, folder / "valid", "--out", tmp_path / "a.csv")
    rows = pd.read_csv(tmp_path / "a.csv")
    classes = found.contract.classes
    assert code == 0 and "threshold" not in rows
    wanted = [f"{level}{name}" for level in ("probability_", "logit_", "study_probability_") for name in classes]
    assert {*wanted, "decision", "study_decision", "abnormal_probability", "study_abnormal_probability"} <= {*rows}
    assert rows[[f"study_probability_{name}" for name in classes]].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    code, out, _ = kmura_main(monkeypatch, capsys, "predict", found.folder, folder / "valid" / "XR_ELBOW")
    assert code == 0 and "studies: max" in out and "abnormal" in out and "probability_" not in out
    images, run = several
    code, out, _ = kmura_main(monkeypatch, capsys, "predict", run, images, "--format", "jsonl")
    line = json.loads(out.splitlines()[0])
    assert code == 0 and {"probability_mass", "decision"} <= set(line)
    assert kmura_main(monkeypatch, capsys, "predict", run, images)[0] == 0
    code, out, _ = kmura_main(monkeypatch, capsys, "predict", "--check", found.folder.parent)
    assert code == 0 and "all answers are as they were" in out


@pytest.mark.slow
def test_thresholds_and_models_without_class_names_are_rejected(joint, several, monkeypatch, capsys, tmp_path):
    import kmura

    folder, run, found = joint
    for model in (run, found.folder):
        code, _, errors = kmura_main(monkeypatch, capsys, "predict", model, folder, "--threshold", "0.5")
        assert code == 2 and "multiclass model, which decides by the most probable class" in errors
    with pytest.raises(InputError, match="decides by each label at 0.5; remove --threshold max_f1"):
        kmura.export(several[1], tmp_path / "out", threshold="max_f1")
    shutil.copy(run / "best.keras", tmp_path / "alone.keras")
    with pytest.raises(InputError, match="without a run, which names the classes"):
        kmura.predict(tmp_path / "alone.keras", folder)


def test_a_check_detects_another_decision_and_tolerates_a_borderline_one():
    contract = Contract(("mass", "edema", "nodule"), 32, "squash", 1, 512, task="multilabel")
    there = {"decision": np.array(["mass", "none"]), "probability": np.array([[0.1, 0.9, 0.2], [0.1, 0.49996, 0.2]])}
    assert difference("decision", there | {"decision": np.array(["mass", "mass"])}, there, contract) == 0
    assert difference("decision", there | {"decision": np.array(["none", "none"])}, there, contract) == np.inf


@pytest.mark.parametrize("how", metrics.POOLINGS)
@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_study_predictions_in_the_graph_match_the_evaluation(how, task):
    import tensorflow as tf

    from kmura.serving.answers import answers_of

    logit = np.random.default_rng(0).normal(0, 3, (5, 4)).astype(np.float32)
    logit[0] = [80, -80, 0, 0]
    contract = Contract(("a", "b", "c", "d"), 32, "squash", 1, 512, pooling=how, top_k=3, task=task)
    found = answers_of(contract).of_study(tf.constant(logit))
    right = metrics.pool_classes(
        ["one"] * 5,
        metrics.probabilities(logit, softmax=task == "multiclass"),
        how,
        k=3,
        normalize=task == "multiclass",
    )
    assert found["probability"].numpy() == pytest.approx(right.value, abs=1e-6)
    assert text(found["decision"].numpy()) == contract.decision(right.value).tolist()
    assert contract.study_probabilities(["one"] * 5, logit).value == pytest.approx(right.value)
