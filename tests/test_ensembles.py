"""Several models form an ensemble: the mean of their calibrated probabilities, in predict and in one export."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from command import kmura_main
from conftest import untrained_fold
from scipy import special

import kmura
from kmura import metrics
from kmura.errors import InputError
from kmura.evaluation.calibrators import Calibrator
from kmura.evaluation.evaluation import read_evaluation
from kmura.prediction.arguments import models_and_images
from kmura.prediction.predictor import Predictor, load_predictor
from kmura.runs.run import Run
from kmura.serving.answers import answers_of
from kmura.serving.contract import Contract, Member, contract_of_run
from kmura.serving.ensemble_contract import Candidate, ensemble_contract, name_of

AREA = "XR_WRIST"
PLATT = Calibrator("platt", 2.0, 0.3)
ISOTONIC = Calibrator("isotonic", knots=((-2.0, 0.1), (0.0, 0.3), (2.0, 0.9)))
BINARY = Contract(("normal", "abnormal"), 32, "squash", 1, 512)


def fold_paths(runs):
    return [runs / f"fold{number}" / AREA / "baseline" for number in range(3)]


def candidates(*contracts, areas=None):
    areas = areas or [AREA] * len(contracts)
    return [
        Candidate(f"run{n}", f"run{n}", area, one) for n, (one, area) in enumerate(zip(contracts, areas, strict=True))
    ]


def test_the_probability_of_an_ensemble_is_the_mean_of_the_calibrated_probabilities():
    one = dataclasses.replace(BINARY, calibrator=PLATT, calibrated_at="image", threshold=0.4, rule="max_f1")
    other = dataclasses.replace(BINARY, calibrator=ISOTONIC, threshold=0.6, rule="max_f1")
    contract = ensemble_contract(candidates(one, other))
    assert contract.threshold == pytest.approx(0.5) and contract.rule == "max_f1" and contract.calibrator is None
    assert contract.calibration == ("mean of 2 models, each: platt, fitted to images or isotonic, fitted to studies")
    raw = np.array([[0.5, -1.0], [2.0, 0.3], [-1.0, 1.0]])  # [N, M]
    found = contract.study_probabilities(["a", "a", "b"], raw)
    first = [special.expit(np.array([0.5, 2.0]) / 2 + 0.3).mean(), special.expit(-1 / 2 + 0.3)]
    mean = special.expit([-1.0, 0.3]).mean()
    second = np.interp([special.logit(mean), 1.0], *np.array(ISOTONIC.knots).T)
    assert found.value == pytest.approx((np.array(first) + second) / 2)


def test_ensembles_of_ensembles_count_each_model_once():
    pair = ensemble_contract(candidates(BINARY, dataclasses.replace(BINARY, calibrator=PLATT)))
    three = ensemble_contract(candidates(pair, dataclasses.replace(BINARY, calibrator=ISOTONIC)))
    assert [member.calibrator for member in three.members] == [None, PLATT, ISOTONIC] and three.raw_shape == (3,)


@pytest.mark.parametrize("how", metrics.POOLINGS)
@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_answers_in_the_graph_equal_those_of_the_contract(how, task):
    rng = np.random.default_rng(0)
    binary = task == "binary"
    classes = ("normal", "abnormal") if binary else ("a", "b", "c", "d")
    plain = Contract(classes, 32, "squash", 1, 512, pooling=how, task=task, abnormal=2 * (task == "multiclass"))
    members = (
        (Member("x", PLATT, "image"), Member("y", ISOTONIC, "study"), Member("z")) if binary else (Member("x"),) * 3
    )
    contract = dataclasses.replace(plain, members=members)
    logit = rng.normal(0, 2, (5, 3, 1 if binary else 4)).astype(np.float32)
    raw = logit[..., 0] if binary else logit
    assert raw.shape[1:] == contract.raw_shape
    answers = answers_of(contract)
    images, study = answers.of_images(tf.constant(logit)), answers.of_study(tf.constant(logit))
    alone = contract.study_probabilities(np.arange(5), raw).value
    together = contract.study_probabilities(["one"] * 5, raw).value
    assert images["probability"].numpy() == pytest.approx(alone, abs=1e-6)
    assert study["probability"].numpy() == pytest.approx(together, abs=1e-6)
    assert study["image_probability"].numpy() == pytest.approx(alone, abs=1e-6)
    assert (images["member_logit"].numpy() == raw).all() and (study["image_member_logit"].numpy() == raw).all()
    back = special.softmax(images["logit"], axis=1) if task == "multiclass" else special.expit(images["logit"])
    assert back == pytest.approx(alone, abs=1e-5)
    assert [name.decode() for name in images["decision"].numpy()] == contract.decision(alone).tolist()
    assert set(answers.described) >= set(images) - {"calibration"} and "member_logit" in answers.each
    if contract.abnormal:
        assert images["abnormal_probability"].numpy() == pytest.approx(alone[:, :2].sum(1), abs=1e-6)
        pooled = metrics.pool_studies(["one"] * 5, alone[:, :2].sum(1), how).value
        assert study["abnormal_probability"].numpy() == pytest.approx(pooled, abs=1e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": ("healthy", "ill")}, r"different classes \(normal, abnormal, healthy, ill\)"),
        ({"image_size": 64}, r"different image sizes \(32, 64\)"),
        ({"channels": 3}, "different channels"),
        ({"task": "multilabel"}, "different tasks"),
        ({"pooling": "max"}, "different poolings of studies; evaluate them with the same --pooling"),
        ({"rule": "youden"}, "different rules of the threshold"),
    ],
)
def test_models_that_do_not_fit_are_refused(changed, message):
    with pytest.raises(InputError, match=f"run0 and run1 cannot form an ensemble: they have {message}"):
        ensemble_contract(candidates(BINARY, dataclasses.replace(BINARY, **changed)))


def test_models_of_different_areas_and_models_given_twice_are_refused(fold_runs, tmp_path, monkeypatch, capsys):
    with pytest.raises(InputError, match="run0 is of the area XR_WRIST and run1 of XR_ELBOW; an ensemble needs"):
        ensemble_contract(candidates(BINARY, BINARY, areas=["XR_WRIST", "XR_ELBOW"]))
    ensemble_contract(candidates(BINARY, BINARY, areas=["XR_WRIST", ""]))  # a .keras file has no area
    path = fold_paths(fold_runs)[0]
    with pytest.raises(InputError, match="is given twice; give each model of an ensemble once"):
        kmura.export([path, path], tmp_path / "out")
    copied = shutil.copytree(path, tmp_path / "elbow")
    description = json.loads((copied / "run.json").read_text())
    (copied / "run.json").write_text(json.dumps(description | {"area": "XR_ELBOW"}))
    code, _, err = kmura_main(monkeypatch, capsys, "export", path, copied, "--out", tmp_path / "out")
    assert code == 2 and "is of the area XR_WRIST and" in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_other_formats_and_unknown_rules_are_refused_for_ensembles(fold_runs, tmp_path):
    with pytest.raises(InputError, match="an ensemble can be exported as savedmodel only, not as onnx"):
        kmura.export(fold_paths(fold_runs), tmp_path / "out", format="onnx")
    with pytest.raises(InputError, match="not among the rules"):
        kmura.export(fold_runs, tmp_path / "out", threshold="0.37")
    with pytest.raises(InputError, match="no model is given"):
        kmura.export([], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_leading_arguments_that_look_like_models_are_models(fold_runs, tmp_path):
    one, two, three = fold_paths(fold_runs)
    (tmp_path / "1").mkdir()  # a folder of images of a patient, not of an export
    assert models_and_images([one, two, tmp_path, three]) == ([one, two], [tmp_path, three])
    assert models_and_images([fold_runs, tmp_path]) == ([fold_runs], [tmp_path])
    assert models_and_images([one, fold_runs, "x.keras", "x.png"]) == ([one, fold_runs, "x.keras"], ["x.png"])
    (tmp_path / "1" / "signature.json").write_text("{}")
    assert models_and_images([one, tmp_path]) == ([one, tmp_path], [])


def one_sided(image):
    """Outputs of a model whose logits tell images from their mirror images: 4 x left half - right half."""
    left, right = (tf.reduce_mean(half, axis=(1, 2, 3)) / 255 for half in (image[:, :, :16], image[:, :, 16:]))
    logit = 4 * left - right
    return {"logit": logit, "member_logit": tf.stack([logit, -logit], axis=1)}


def test_flip_takes_the_mean_of_the_logits_of_image_and_mirror_image():
    contract = dataclasses.replace(BINARY, calibrator=PLATT)
    images = np.random.default_rng(0).uniform(0, 255, (3, 32, 32, 1)).astype(np.float32)
    images[0, :, :16] = 0
    sides = images.reshape(3, 32, 2, 16).mean((1, 3)) / 255
    logit = 1.5 * sides.sum(1)  # the mean of 4 a - b and 4 b - a
    found = Predictor(contract, {"tensor": one_sided}, flips=True).answers(images)
    assert found["logit"] == pytest.approx(logit, abs=1e-5) and found["raw"] == pytest.approx(logit, abs=1e-5)
    assert found["probability"] == pytest.approx(special.expit(logit / 2 + 0.3), abs=1e-5)
    both = dataclasses.replace(BINARY, members=(Member("a", PLATT), Member("b")))
    found = Predictor(both, {"tensor": one_sided}, flips=True).answers(images)
    assert found["raw"] == pytest.approx(np.stack([logit, -logit], 1), abs=1e-5)
    assert found["probability"] == pytest.approx((special.expit(logit / 2 + 0.3) + special.expit(-logit)) / 2, abs=1e-5)


def test_maps_are_refused_where_there_are_none(fold_runs, evaluated_run, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="--cam shows the map of an image as it is, not with --tta flip"):
        kmura.predict(fold_runs, evaluated_run[0] / "images", tta="flip", cam=tmp_path / "maps")
    with pytest.raises(InputError, match="tta 'rotate' is unknown; choose one of none, flip"):
        kmura.predict(fold_runs, evaluated_run[0] / "images", tta="rotate")
    monkeypatch.setattr(
        "kmura.prediction.predict.load_predictor", lambda *_, **__: Predictor(BINARY, {"tensor": one_sided})
    )
    with pytest.raises(InputError, match="--cam needs one model, or several runs or .keras files"):
        kmura.predict(fold_runs, evaluated_run[0] / "images", cam=tmp_path / "maps")


@pytest.fixture(scope="module")
def images(evaluated_run, tmp_path_factory):
    """A folder of six images in two folders of studies."""
    folder = tmp_path_factory.mktemp("few")
    for number, path in enumerate(sorted((evaluated_run[0] / "images" / "valid").rglob("*.png"))[:6]):
        (folder / f"study{number // 3}").mkdir(exist_ok=True)
        shutil.copy(path, folder / f"study{number // 3}" / f"{number}.png")
    return folder


def test_the_card_of_an_ensemble_lists_its_members_and_the_scores_of_the_folds(fold_runs, evaluated_run):
    from kmura.export.ensemble import ensemble_card

    runs = [Run(path) for path in fold_paths(fold_runs)]
    evaluations = [read_evaluation(run)[0] for run in runs]
    contracts = [contract_of_run(run) for run in runs]
    contract = ensemble_contract(
        [Candidate(str(run), name_of(run), run.area, one) for run, one in zip(runs, contracts, strict=True)]
    )
    card = ensemble_card(runs, evaluations, contract, "today")
    assert "an ensemble of 3 classifiers" in card and "The ensemble has not been scored" in card
    assert "Held-out predictions of all 3 folds" in card and "test (fold 2 of 3)" in card
    assert f"| fold1/{AREA}/baseline |" in card and str(fold_runs) not in card
    assert "Held-out predictions" not in ensemble_card(runs[:2], evaluations[:2], contract, "today")
    with_other = [*runs[:2], Run(evaluated_run[1])]
    assert "Held-out predictions" not in ensemble_card(with_other, evaluations, contract, "today")


@pytest.mark.slow
def test_an_export_of_folds_predicts_the_mean_of_its_members(fold_runs, images, tmp_path, monkeypatch, capsys):
    paths = fold_paths(fold_runs)
    code, out, err = kmura_main(
        monkeypatch, capsys, "export", *paths[:2], "--out", tmp_path / "out", "--threshold", "max_f1"
    )
    assert code == 0, err
    assert "mean of 2 models, each: platt, fitted to studies" in out and "in a fresh process" in out
    folder = tmp_path / "out" / "1"
    signature = json.loads((folder / "signature.json").read_text())
    assert [one["run"] for one in signature["members"]] == [f"fold{n}/{AREA}/baseline" for n in range(2)]
    assert signature["parity"]["logit"] <= 1e-5 and signature["parity"]["golden"] <= 1e-4
    assert str(fold_runs) not in (folder / "signature.json").read_text()

    how = {"group": "folder", "threshold": "max_f1"}
    each = [kmura.predict(path, images, **how) for path in paths]
    exported, mixed = kmura.predict(folder, images, **how), kmura.predict([folder, paths[2]], images, **how)
    for found, number in ((exported, 2), (mixed, 3)):
        for name in ("images", "studies"):
            mean = np.mean([getattr(one, name)["probability"] for one in each[:number]], axis=0)
            assert getattr(found, name)["probability"].to_numpy() == pytest.approx(mean, abs=1e-5)
        thresholds = [one.contract.threshold for one in each[:number]]
        assert found.contract.threshold == pytest.approx(np.mean(thresholds))
    with pytest.raises(InputError, match="--cam needs one model"):
        kmura.predict([folder, paths[2]], images, threshold="max_f1", cam=tmp_path / "maps")

    code, out, _ = kmura_main(monkeypatch, capsys, "predict", tmp_path / "out", "--check")
    assert code == 0 and "all answers are as they were" in out


@pytest.mark.slow
def test_the_command_predicts_with_several_models_maps_and_flips(fold_runs, images, tmp_path, monkeypatch, capsys):
    paths = fold_paths(fold_runs)[:2]
    each = [kmura.predict(path, images) for path in paths]
    code, _, err = kmura_main(
        monkeypatch, capsys, "predict", *paths, images, "--out", tmp_path / "a.csv", "--cam", tmp_path / "maps"
    )
    assert code == 0, err
    assert len(list((tmp_path / "maps").rglob("*.png"))) == 6
    predictor = load_predictor(paths)
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 1)).astype(np.float32)
    found = predictor.answers(pixels, explained=True)["cam"]
    assert found.shape == (2, 32, 32) and (found >= 0).all()
    code, _, err = kmura_main(
        monkeypatch, capsys, "predict", *paths, images, "--out", tmp_path / "b.csv", "--tta", "flip"
    )
    assert code == 0, err
    plain, flipped = pd.read_csv(tmp_path / "a.csv"), pd.read_csv(tmp_path / "b.csv")
    mean = np.mean([one.images["probability"] for one in each], axis=0)
    assert plain["probability"].to_numpy() == pytest.approx(mean, abs=1e-5)
    assert (plain["probability"] != flipped["probability"]).any()
    flips = dataclasses.replace(predictor, flips=True)
    mirrored = [one.answers(some)["probability"] for one in (flips,) for some in (pixels, pixels[:, :, ::-1])]
    assert mirrored[0] == pytest.approx(mirrored[1], abs=1e-5)


@pytest.mark.slow
def test_an_ensemble_of_several_classes_is_exported(evaluated_run, tmp_path):
    runs = [
        untrained_fold(tmp_path, evaluated_run[0] / "records", number, **{"data.task": "multiclass"})
        for number in range(3)
    ]
    kmura.evaluate(tmp_path)
    found = kmura.export(runs, tmp_path / "out", warmup=False)
    assert found.contract.raw_shape == (3, 2) and found.parity.probability <= 1e-5
