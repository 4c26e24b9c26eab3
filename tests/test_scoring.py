"""Scores of prediction tables: levels, calibration, thresholds, and invalid tables."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from kmura import metrics
from kmura.errors import InputError
from kmura.evaluation.calibrators import logits_of
from kmura.evaluation.scoring import ScoreOptions, score_table
from kmura.runs.predictions import COLUMNS, read_predictions

FEW = ScoreOptions(resamples=200)


def simulated(studies=300, seed=0, area="XR_WRIST", shift=0.0, split_shares=(0.5, 0.5)):
    """Returns predictions of studies with 1 to 4 views; image logits vary around a logit per study, plus `shift`."""
    rng = np.random.default_rng(seed)
    views = rng.integers(1, 5, studies)
    study = np.repeat(np.arange(studies), views)
    truth = rng.normal(0, 2, studies)
    label = (rng.random(studies) < expit(truth)).astype(int)
    logit = truth[study] + rng.normal(0, 0.5, len(study)) + shift
    split = np.where(np.arange(studies) < split_shares[0] * studies, "val", "test")[study]
    return pd.DataFrame(
        {
            "split": split,
            "area": area,
            "patient": [f"p{number // 2}" for number in study],
            "study": [f"p{number // 2}/s{number}" for number in study],
            "image": [f"{area}/{n}.png" for n in range(len(study))],
            "label": label[study],
            "logit": logit,
            "probability": expit(logit),
        }
    )[list(COLUMNS)]


def test_calibration_fitted_on_val_corrects_a_shift_on_test():
    found = score_table(simulated(4000, shift=1.5), dataclasses.replace(FEW, resamples=20))
    before, after = (levels["test"]["study"] for levels in (found.splits, found.calibrated))
    assert before.calibration["ece"].value > 2 * before.calibration["ece"].high
    assert after.calibration["ece"].value < 1.5 * after.calibration["ece"].high
    assert after.scores["log_loss"].value < before.scores["log_loss"].value
    assert after.scores["auc"].value == pytest.approx(before.scores["auc"].value)  # the order is unchanged


@pytest.mark.parametrize("level", ["image", "study"])
@pytest.mark.parametrize("method", ["temperature", "isotonic", "none"])
def test_every_method_works_at_both_levels(method, level):
    options = dataclasses.replace(FEW, calibration=method, calibrate_at=level, pooling="max")
    found = score_table(simulated(), options)
    assert (found.calibrator is None) == (method == "none") == (not found.calibrated)
    for split, levels in found.calibrated.items():
        assert set(levels) == ({"study"} if level == "study" else {"image", "study"}), split


def test_thresholds_selected_on_val_are_evaluated_on_test_with_intervals():
    rules = ("0.5", "sensitivity>=0.95")
    found = score_table(simulated(1000), dataclasses.replace(FEW, rules=rules))
    on_val, on_test = (found.operating_points[split][1] for split in ("val", "test"))
    assert on_val.threshold == on_test.threshold and on_val.scores["recall"].value >= 0.95
    reached = on_test.scores["recall"]
    assert reached.low < reached.value < reached.high and reached.value == pytest.approx(0.95, abs=0.05)
    assert found.operating_points["test"][0].scores == {
        name: score
        for name, score in found.calibrated["test"]["study"].scores.items()
        if name in found.operating_points["test"][0].scores
    }


def test_a_split_of_one_class_is_scored_partially_with_a_note():
    table = simulated()
    one_class = table[(table["split"] == "val") | (table["label"] == 1)]
    found = score_table(one_class, FEW)
    assert "test, study level: AUC is undefined, since all labels are of one class" in found.notes
    assert np.isnan(found.splits["test"]["study"].scores["auc"].value)
    assert found.splits["test"]["study"].scores["recall"].value > 0


def test_a_split_without_known_labels_does_not_crash():
    table = simulated(60)
    table.loc[table["split"] == "test", "label"] = -1
    found = score_table(table, FEW)
    assert found.splits["test"]["study"].studies == 0 and found.splits["val"]["study"].studies == 30
    assert any("test, study level: AUC is undefined" in note for note in found.notes)


@pytest.mark.parametrize("val", ["absent", "one class"])
def test_a_missing_calibration_split_is_noted_and_disables_calibration(val):
    table = simulated()
    keep = (table["label"] == 1) if val == "one class" else False
    found = score_table(table[(table["split"] == "test") | keep], FEW)
    assert found.calibrator is None and found.calibrated == {}
    assert [point.rule for point in found.operating_points["test"]] == ["0.5"]
    assert len(found.notes) >= 2


def test_a_different_prevalence_is_noted():
    table = simulated(600)
    rare = table[(table["split"] == "val") | (table["label"] == 0) | (table.index % 4 == 0)]
    assert any("reflect the former prevalence" in note for note in score_table(rare, FEW).notes)
    assert not score_table(table, FEW).notes


def test_unknown_labels_are_excluded():
    table = simulated()
    table.loc[table["study"] == table["study"].iloc[-1], "label"] = -1
    assert score_table(table, FEW).splits["test"]["study"].studies == 149


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling": "median"}, "pooling 'median' is unknown"),
        ({"calibration": "beta"}, "calibration 'beta' is unknown"),
        ({"rules": ("best",)}, "threshold rule 'best'"),
        ({"rules": ("sensitivity>=2",)}, "outside 0 to 1"),
    ],
)
def test_invalid_options_are_rejected(changes, message):
    with pytest.raises(InputError, match=message):
        score_table(simulated(), dataclasses.replace(FEW, **changes))


def written(tmp_path, table):
    table.to_csv(tmp_path / "predictions.csv", index=False)
    return tmp_path / "predictions.csv"


def test_a_table_is_read_as_it_was_written(tmp_path):
    table = simulated().assign(study=lambda rows: "<b>" + rows["study"] + ',"x"')
    pd.testing.assert_frame_equal(read_predictions(written(tmp_path, table)), table, check_dtype=False, rtol=1e-12)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("probability", np.nan, "line 5 .*a probability that is not a number"),
        ("probability", 1.5, "line 5 .*a probability"),
        ("probability", "high", "line 5 .*a probability"),
        ("logit", np.inf, "line 5 .*a logit"),
        ("label", 2, "line 5 .*a label"),
        ("study", "", "line 5 .*no study"),
        ("image", "XR_WRIST/0.png", "line 5 .*an image of an earlier row"),
    ],
)
def test_an_invalid_row_is_reported(tmp_path, column, value, message):
    table = simulated().astype({column: object})
    table.loc[3, column] = value
    if column == "image":
        table.loc[3, "split"] = table.loc[0, "split"]
    with pytest.raises(InputError, match=message):
        read_predictions(written(tmp_path, table))


def test_a_study_with_both_labels_is_reported(tmp_path):
    table = simulated()
    study = table["study"][table["study"].duplicated()].iloc[0]
    table.loc[np.flatnonzero(table["study"] == study)[0], "label"] ^= 1
    with pytest.raises(InputError, match=f"study {study} of XR_WRIST, .*both labels"):
        read_predictions(written(tmp_path, table))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00garbage", b"a,b\n1,2\n", ",".join(COLUMNS).encode() + b"\n"])
def test_a_file_that_is_not_a_table_is_an_error(tmp_path, content):
    (tmp_path / "predictions.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"predictions\.csv"):
        read_predictions(tmp_path / "predictions.csv")
    with pytest.raises(InputError, match="does not exist"):
        read_predictions(tmp_path / "none.csv")


def test_a_proportion_of_one_has_an_interval():
    table = simulated(200)
    table["logit"] = np.where(table["label"] == 1, 3.0, -3.0)  # error-free
    table["probability"] = expit(table["logit"])
    found = score_table(table, FEW)
    level = found.splits["test"]["study"]
    patients = table[(table["split"] == "test") & (table["label"] == 1)]["patient"].nunique()
    recall = level.scores["recall"]
    assert (recall.value, recall.high) == (1, 1)
    assert recall.low == pytest.approx(float(metrics.wilson(1.0, patients)[0])) and recall.low < 0.97
    assert found.operating_points["test"][0].scores["specificity"].low < 0.97
    assert (level.scores["auc"].value, level.scores["auc"].high) == (1, 1) and 0.9 < level.scores["auc"].low < 0.99


def test_harmful_calibration_is_noted():
    table = simulated(400)
    val = table["split"] == "val"
    table.loc[val, "logit"] = -table.loc[val, "logit"] / 4 + 1  # val has another distribution
    table["probability"] = expit(table["logit"])
    notes = " ".join(score_table(table, FEW).notes)
    assert "test, study level: calibration increased the log loss" in notes
    assert "worse" not in " ".join(score_table(simulated(400), FEW).notes)


def test_separable_classes_cause_a_note_on_the_temperature():
    table = simulated(100)
    table["logit"] = np.where(table["label"] == 1, 1.0, -1.0)
    table["probability"] = expit(table["logit"])
    notes = score_table(table, dataclasses.replace(FEW, calibration="temperature")).notes
    assert any("the temperature is undetermined" in note for note in notes)


def single_views(number=200, seed=0, patients=False):
    """Predictions of images that are each a study, as of class folders; without patients each is its own patient."""
    table = simulated(number, seed).drop_duplicates("study").reset_index(drop=True)
    return table if patients else table.assign(patient=table["image"], study=table["image"])


def test_intervals_state_their_methods():
    scores = score_table(simulated(), FEW).splits["test"]["study"].scores
    assert scores["auc"].method == "logit" and scores["f1"].method == "bootstrap"
    saved = json.loads(json.dumps(dataclasses.asdict(scores["auc"])))
    assert saved["method"] == "logit"


def test_a_perfect_model_on_few_studies_has_no_interval_of_zero_width():
    label = np.arange(8) % 2
    logit = 4.0 * label - 2
    keys = {name: [f"{name}{n}" for n in range(8)] for name in ("patient", "study", "image")}
    table = pd.DataFrame(keys | {"split": ["val"] * 4 + ["test"] * 4, "area": "A", "label": label, "logit": logit})
    found = score_table(table.assign(probability=expit(logit)), FEW)
    for levels in (*found.splits.values(), *found.calibrated.values()):
        for level in levels.values():
            for name, score in level.scores.items():
                assert np.isnan(score.low) or score.high - score.low > 0.01, name
    assert found.splits["test"]["study"].scores["auc"].low < 0.6
    for point in found.operating_points["test"]:
        assert all(np.isnan(score.low) or score.high - score.low > 0.01 for score in point.scores.values())


def test_a_split_of_one_class_keeps_the_intervals_that_are_defined():
    table = simulated()
    found = score_table(table[(table["split"] == "val") | (table["label"] == 1)], FEW).splits["test"]["study"]
    assert found.scores["recall"].low < found.scores["recall"].value < found.scores["recall"].high
    assert found.scores["log_loss"].low < found.scores["log_loss"].high and found.resamples == 200
    assert str(found.scores["auc"]) == "undefined" and str(found.scores["balanced_accuracy"]) == "undefined"


def test_redrawn_resamples_are_noted():
    table = single_views(40)
    table["label"] = np.where(np.arange(40) % 20 < 1, 1, 0)  # one positive per split
    found = score_table(table, FEW)
    redrawn = found.splits["test"]["study"].redrawn
    assert redrawn > 20
    assert any(note.startswith(f"test: {redrawn} bootstrap resamples without both classes") for note in found.notes)


def test_a_study_id_of_two_patients_is_two_studies():
    table = simulated(100)
    table["study"] = "study1"  # as of a hospital that counts from 1 for every patient
    found = score_table(table.groupby("patient").head(1), FEW).splits["test"]
    assert found["study"].studies == found["study"].patients == found["image"].images
    assert found["study"].scores["auc"].value == found["image"].scores["auc"].value


def test_two_patients_with_the_same_study_id_may_have_different_labels(tmp_path):
    table = simulated(40).drop_duplicates("patient").reset_index(drop=True).assign(study="study1")
    assert table.groupby("split")["label"].nunique().max() == 2
    assert read_predictions(written(tmp_path, table))["label"].tolist() == table["label"].tolist()


@pytest.mark.parametrize("blank", ["", " ", np.nan])
def test_images_without_a_patient_are_patients_of_their_own(blank):
    table = simulated(200)
    expected = score_table(table.assign(patient=table["study"]), FEW)
    found = score_table(table.assign(patient=blank), FEW)
    for level in ("image", "study"):
        ours, theirs = (scores.splits["test"][level] for scores in (found, expected))
        assert ours.patients == theirs.studies == 100
        assert ours.scores["auc"] == theirs.scores["auc"]
        assert ours.scores["f1"].low < ours.scores["f1"].high
    images = found.splits["test"]["image"].images
    assert f"test: {images} images have no patient; each of their studies counts as a patient of its own" in found.notes


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"probability": np.nan}, "row 7 .*a probability that is not a number"),
        ({"logit": np.nan}, "row 7 .*a logit that is not a finite"),
        ({"label": np.nan}, "row 7 .*a label other than"),
        ({"probability": 0.123, "logit": 3.0}, "row 7 .*a probability that contradicts its logit"),
    ],
)
def test_an_impossible_row_of_a_table_in_memory_is_one_clear_error(changes, problem):
    table = simulated(60).astype({"label": float})
    for name, value in changes.items():
        table.loc[7, name] = value
    with pytest.raises(InputError, match=problem):
        score_table(table, FEW)


def test_logits_that_contradict_probabilities_are_refused_by_the_reader(tmp_path):
    table = simulated(60)
    table["probability"] = 1 - table["probability"]
    with pytest.raises(InputError, match=r"predictions\.csv, line 2 .*a probability that contradicts its logit"):
        read_predictions(written(tmp_path, table))
    rounded = simulated(60).round({"probability": 3})
    read_predictions(written(tmp_path, rounded))


def test_a_missing_split_for_thresholds_is_not_called_one_of_one_class():
    found = score_table(simulated(split_shares=(0, 1)), FEW)
    assert any("val is not among the predictions" in note for note in found.notes)
    assert not any("does not have both classes" in note for note in found.notes)


def test_an_increase_of_the_log_loss_within_noise_is_not_noted():
    for seed in range(8):
        notes = score_table(simulated(120, seed), dataclasses.replace(FEW, resamples=20)).notes
        assert not any("increased" in note for note in notes), seed


def hard_zeros(seed=0, studies=3000):
    """Predictions of a detector with 28 % scores of exactly 0, on single views."""
    rng = np.random.default_rng(seed)
    label = (rng.random(studies) < 0.3).astype(int)
    probability = expit(rng.normal(2.5 * label - 2.5, 1.2))
    probability[rng.random(studies) < np.where(label == 1, 0.05, 0.38)] = 0
    keys = {name: [f"{name}{n}" for n in range(studies)] for name in ("patient", "study", "image")}
    split = np.where(np.arange(studies) < studies / 2, "val", "test")
    table = pd.DataFrame(keys | {"split": split, "area": "A", "label": label, "probability": probability})
    return table.assign(logit=logits_of(probability))


def test_hard_zeros_do_not_spoil_the_calibration():
    found = score_table(hard_zeros(), dataclasses.replace(FEW, resamples=20))
    before, after = (levels["test"]["study"].scores for levels in (found.splits, found.calibrated))
    assert after["accuracy"].value > before["accuracy"].value
    assert after["log_loss"].value < before["log_loss"].value - 0.2
    assert after["auc"].value == pytest.approx(before["auc"].value, abs=2e-3)


def test_remaining_miscalibration_is_noted():
    table = simulated(4000)
    table["logit"] = np.sign(table["logit"]) * np.abs(table["logit"]) ** 3  # no sigmoid of the logit fits
    table["probability"] = metrics.probabilities(table[["logit"]].to_numpy(), softmax=False)[:, 0]
    found = score_table(table, dataclasses.replace(FEW, resamples=20))
    assert any("test, study level: calibration left the probabilities miscalibrated" in note for note in found.notes)
    isotonic = score_table(table, dataclasses.replace(FEW, resamples=20, calibration="isotonic"))
    assert not any("miscalibrated" in note for note in isotonic.notes)


def test_calibration_on_scores_that_do_not_rise_with_the_label_is_noted():
    table = simulated(300)
    table = table.assign(logit=-table["logit"], probability=1 - table["probability"])
    assert any("higher scores are hardly more often positive on val" in note for note in score_table(table, FEW).notes)


def test_images_that_are_studies_of_their_own_are_recognised():
    folders, patients, views = (
        score_table(table, FEW).splits["test"]["study"]
        for table in (single_views(), single_views(patients=True), simulated())
    )
    assert (folders.is_single_view, folders.resampled) == (True, "images")
    assert (patients.is_single_view, patients.resampled) == (True, "patients")
    assert (views.is_single_view, views.resampled) == (False, "patients")
    assert "bootstrap over images" in folders.intervals_in_words
