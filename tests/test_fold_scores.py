"""Held-out predictions of all folds are scored together, without leakage of labels into calibration and decisions."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from command import kmura_main
from conftest import untrained_fold
from scipy import special
from sklearn.metrics import log_loss, roc_auc_score

import kmura
from kmura.errors import InputError
from kmura.evaluation.calibrators import logits_of
from kmura.evaluation.compare import compare
from kmura.evaluation.evaluation import read_evaluation
from kmura.evaluation.fold_scores import CALIBRATED
from kmura.evaluation.scoring import ScoreOptions
from kmura.report.report import report
from kmura.runs.fold_runs import fold_groups, with_folds_pooled
from kmura.runs.run import Run

AREA = "XR_WRIST"
FAST = ScoreOptions(resamples=50)


def pooled_of(runs):
    return runs / "folds" / AREA / "baseline"


def fold_paths(runs):
    return [runs / f"fold{number}" / AREA / "baseline" for number in range(3)]


@pytest.fixture(scope="module")
def pooled(fold_runs):
    """(evaluation, table) of the folds."""
    run = Run(pooled_of(fold_runs))
    return run.part("evaluation")(run)


@pytest.fixture
def own_runs(fold_runs, tmp_path):
    """A copy of `fold_runs` that a test may change."""
    return shutil.copytree(fold_runs, tmp_path / "copied")


def test_the_table_has_each_image_outside_of_test_once_as_its_fold_predicts_it(pooled, fold_runs, evaluated_run):
    _, table = pooled
    plain = kmura.Dataset(evaluated_run[0] / "records", AREA)
    assert sorted(table["image"]) == sorted([*plain.rows("train")["image"], *plain.rows("val")["image"]])
    assert set(table["split"]) == {"test"} and not table["image"].duplicated().any()
    for number, path in enumerate(fold_paths(fold_runs)):
        own = read_evaluation(path)[1]
        own = own[own["split"] == "test"].reset_index(drop=True)
        pd.testing.assert_frame_equal(own, table.loc[table["fold"] == number, own.columns].reset_index(drop=True))
        mine = set(own["patient"])
        assert not mine & set(table.loc[table["fold"] != number, "patient"])


def test_pooled_scores_are_those_of_scikit_learn(pooled):
    evaluation, table = pooled
    scores = evaluation.scores.splits["test"]
    assert scores["image"].scores["auc"].value == pytest.approx(roc_auc_score(table["label"], table["probability"]))
    studies = table.groupby(["patient", "study"]).agg(label=("label", "first"), p=("probability", "mean"))
    assert scores["study"].scores["auc"].value == pytest.approx(roc_auc_score(studies["label"], studies["p"]))
    assert scores["study"].scores["log_loss"].value == pytest.approx(log_loss(studies["label"], studies["p"]))
    assert scores["image"].patients == table["patient"].nunique()
    interval = scores["study"].scores["auc"]
    assert interval.low < interval.value < interval.high


def test_the_mean_auc_is_the_mean_over_the_folds(pooled):
    evaluation, table = pooled
    each = [roc_auc_score(rows["label"], rows["probability"]) for _, rows in table.groupby("fold")]
    assert [one.auc["image"].value for one in evaluation.folds] == pytest.approx(each)
    assert evaluation.mean_auc["image"].value == pytest.approx(np.mean(each))
    assert evaluation.mean_auc["image"].low < np.mean(each) < evaluation.mean_auc["image"].high
    assert sum(one.images for one in evaluation.folds) == len(table)


def test_the_interval_of_the_mean_is_that_of_independent_folds(pooled):
    """Folds share no patient, so on the logit scale the variance of the mean is the mean of the variances over K."""
    evaluation, table = pooled
    from kmura import metrics

    variances = []
    for _, rows in table.groupby("fold"):
        place = np.unique(rows["patient"], return_inverse=True)[1]
        auc = metrics.clustered_auc(rows["label"], rows["probability"], place)
        scale = [np.sqrt(count / (count - 1)) for count in (auc.positives, auc.negatives)]
        variances.append(((scale[0] * auc.of_positives + scale[1] * auc.of_negatives) ** 2).sum())
    mean = evaluation.mean_auc["image"]
    half = (special.logit(mean.high) - special.logit(mean.low)) / 2
    error = np.sqrt(np.sum(variances)) / 3 / (mean.value * (1 - mean.value))
    assert 1.9 < half / error < 13  # Student's t of the patients of the rarest class


def test_each_fold_is_calibrated_and_decided_on_its_own_val_fold(pooled, fold_runs):
    evaluation, table = pooled
    calibrated, labels, positive = [], [], {rule: [] for rule in evaluation.folds[0].thresholds}
    for one, path in zip(evaluation.folds, fold_paths(fold_runs), strict=True):
        own = read_evaluation(path)[0].scores
        assert own.options.fit_on == "val" and one.calibrator == own.calibrator
        assert one.thresholds == {point.rule: point.threshold for point in own.operating_points["test"]}
        rows = table[table["fold"] == one.fold]
        logit = logits_of(rows["probability"])
        by_hand = special.expit(logit / one.calibrator.temperature + one.calibrator.bias)
        assert rows[CALIBRATED].to_numpy() == pytest.approx(by_hand)
        studies = rows.groupby(["patient", "study"]).agg(label=("label", "first"), p=("probability", "mean"))
        p = special.expit(logits_of(studies["p"]) / one.calibrator.temperature + one.calibrator.bias)
        calibrated.append(p)
        labels.append(studies["label"])
        for rule, threshold in one.thresholds.items():
            positive[rule].append(p >= threshold)
    label, p = np.concatenate(labels), np.concatenate(calibrated)
    study = evaluation.scores.calibrated["test"]["study"]
    assert study.scores["log_loss"].value == pytest.approx(log_loss(label, p))
    assert study.scores["auc"].value == pytest.approx(roc_auc_score(label, p))
    assert evaluation.scores.calibrator is None and "image" not in evaluation.scores.calibrated["test"]
    for point in evaluation.scores.operating_points["test"]:
        decided = np.concatenate(positive[point.rule])
        assert point.confusion["tp"] == (decided & (label == 1)).sum()
        assert point.confusion["fp"] == (decided & (label == 0)).sum()
        assert point.threshold == pytest.approx(np.mean([one.thresholds[point.rule] for one in evaluation.folds]))


def test_labels_of_held_out_images_do_not_change_calibration_and_thresholds(own_runs):
    path = fold_paths(own_runs)[0]
    table = pd.read_csv(path / "predictions.csv")
    before = json.loads((pooled_of(own_runs) / "metrics.json").read_text())["folds"]
    table.loc[table["split"] == "test", "label"] = 1 - table.loc[table["split"] == "test", "label"]
    table.to_csv(path / "predictions.csv", index=False)
    raw = json.loads((path / "metrics.json").read_text())
    from kmura.files import sha256_of

    raw["predictions_sha256"] = sha256_of(path / "predictions.csv")
    (path / "metrics.json").write_text(json.dumps(raw))
    after = kmura.evaluate(pooled_of(own_runs), options=FAST).folds
    for one, other in zip(before, after, strict=True):
        assert one["thresholds"] == other.thresholds
        assert one["calibrator"] == json.loads(json.dumps(dataclasses.asdict(other.calibrator)))
    assert after[0].auc["image"].value == pytest.approx(1 - before[0]["auc"]["image"]["value"])


def test_evaluating_with_other_options_also_changes_the_runs_of_the_folds(own_runs):
    options = ScoreOptions(pooling="max", calibration="isotonic", rules=("0.5", "youden"), resamples=50)
    evaluation = kmura.evaluate(own_runs, options=options)
    for one, path in zip(evaluation.folds, fold_paths(own_runs), strict=True):
        own = read_evaluation(path)[0].scores
        assert own.options == options and own.calibrator == one.calibrator and one.calibrator.method == "isotonic"
    without = kmura.evaluate(own_runs, options=dataclasses.replace(options, calibration="none"))
    assert not without.scores.calibrated and CALIBRATED not in pd.read_csv(pooled_of(own_runs) / "predictions.csv")
    at_image = dataclasses.replace(options, calibrate_at="image", calibration="platt")
    assert set(kmura.evaluate(own_runs, options=at_image).scores.calibrated["test"]) == {"image", "study"}


def test_the_command_prints_the_folds_and_a_missing_one(own_runs, monkeypatch, capsys):
    shutil.rmtree(own_runs / "fold1")
    code, out, _ = kmura_main(monkeypatch, capsys, "evaluate", own_runs, "--resamples", 20)
    assert code == 0 and "AUC of the 3 folds, each held out from its model" in out
    assert "fold 1 of 3 has no run, so their images are not scored" in out and "mean" in out


def test_a_stale_fold_is_noticed(own_runs):
    kmura.build_model(backbone="densenet_mini", weights="none", image_size=32, seed=9).save(
        fold_paths(own_runs)[2] / "best.keras"
    )
    with pytest.raises(InputError, match="has changed since the folds were pooled; run kmura evaluate"):
        Run(pooled_of(own_runs)).part("evaluation")(pooled_of(own_runs))
    kmura.evaluate(own_runs, options=FAST)  # evaluates that fold again
    Run(pooled_of(own_runs)).part("evaluation")(pooled_of(own_runs))


def test_paths_stand_for_cross_validations(fold_runs, evaluated_run, tmp_path):
    for paths in ([fold_runs], fold_paths(fold_runs), [pooled_of(fold_runs)], fold_paths(fold_runs)[::-1]):
        (group,) = fold_groups(paths)
        assert [run.config.data.fold for run in group.runs] == [0, 1, 2] and group.missing == ()
    assert with_folds_pooled([fold_runs, evaluated_run[1]]) == [pooled_of(fold_runs).resolve(), evaluated_run[1]]
    assert with_folds_pooled(fold_paths(fold_runs)) == fold_paths(fold_runs)
    assert with_folds_pooled(fold_paths(fold_runs), also_single=True) == [pooled_of(fold_runs).resolve()]
    with pytest.raises(InputError, match="was not trained on folds, so it cannot be pooled with others"):
        kmura.evaluate([evaluated_run[1], fold_paths(fold_runs)[0]])
    with pytest.raises(InputError, match="is neither a run .* nor a folder of folds"):
        kmura.evaluate([tmp_path, fold_paths(fold_runs)[0]])
    with pytest.raises(InputError, match="both hold out fold 1; give each fold once"):
        kmura.evaluate([fold_paths(fold_runs)[1]] * 2)


def test_folds_of_different_models_are_refused(fold_runs, own_runs, evaluated_run):
    shutil.rmtree(own_runs / "fold2")
    untrained_fold(own_runs, evaluated_run[0] / "records", 2, **{"data.image_size": 48})
    with pytest.raises(InputError, match="are not folds of one model .data.image_size: 32 -> 48"):
        kmura.evaluate(own_runs)
    shutil.rmtree(own_runs / "fold2")
    untrained_fold(own_runs, evaluated_run[0] / "records", 2, phase="final")
    with pytest.raises(InputError, match="these are the folds of 2 models"):
        kmura.evaluate(own_runs)
    with pytest.raises(InputError, match="faithfulness is measured for the run of one fold"):
        kmura.evaluate(fold_runs, faithfulness=True)


def test_cross_validations_are_compared_paired_by_image(pooled, fold_runs, own_runs, monkeypatch, capsys):
    found = compare([fold_runs, own_runs], resamples=50)
    assert set(found.runs) == {"runs/baseline", "copied/baseline"}
    auc = next(one for one in found.differences if one.score == "auc" and one.level == "study")
    assert auc.interval.value == 0 and found.units["image"][AREA] == len(pooled[1])
    code, out, _ = kmura_main(
        monkeypatch, capsys, "compare", *fold_paths(fold_runs), *fold_paths(own_runs), "--resamples", 20
    )
    assert code == 0 and "runs/baseline" in out and "copied/baseline" in out
    shutil.rmtree(own_runs / "folds")
    with pytest.raises(InputError, match="are not pooled; run kmura evaluate .*fold0"):
        compare([fold_runs, own_runs])
    with pytest.raises(InputError, match="compare needs two runs or more"):
        compare(fold_paths(fold_runs))


def test_the_report_has_a_chapter_of_the_folds(fold_runs, tmp_path, sketched):
    page = report([fold_runs], tmp_path / "page.html").read_text()
    assert "3 folds, each predicted by a model trained without it" in page
    assert "The 3 folds" in page and "fold 2" in page and "val of each fold" in page


def test_a_cross_validation_has_no_maps(fold_runs):
    from kmura.explain.gallery import explain

    with pytest.raises(InputError, match="give the runs of its folds, RUNS/foldN/AREA/PHASE"):
        explain(pooled_of(fold_runs))
