"""Scores of prediction tables: levels, calibration, thresholds, and invalid tables."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from kmura import metrics
from kmura.errors import InputError
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
