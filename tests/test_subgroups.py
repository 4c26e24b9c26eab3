"""Scores by subgroup, and differences between subgroups that are corrected for their number."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.special import expit
from sklearn.metrics import recall_score, roc_auc_score
from test_compare import write_run_of
from test_scoring import simulated

from kmura import metrics
from kmura.errors import InputError
from kmura.evaluation.classification import scored
from kmura.evaluation.evaluation import Evaluation
from kmura.evaluation.scoring import ScoreOptions, score_table
from kmura.evaluation.subgroup_rules import NO_VALUE, rules_of
from kmura.evaluation.subgroups import score_subgroups, subgroups_of
from kmura.files import write_json
from kmura.runs.predictions import further_columns, predictions_of, read_predictions
from kmura.runs.run import Run
from kmura.tasks import Binary
from kmura.typed import from_json

FEW = ScoreOptions(resamples=200)


def described(studies=300, seed=0, worse=0.0):
    """Predictions with sex and age of each patient and the view of each image; `worse`: noise added for women."""
    table = simulated(studies, seed)
    patient = table["patient"].str[1:].astype(int)
    rng = np.random.default_rng(seed)
    sex = np.where(patient % 2, "F", "M")
    logit = table["logit"] + worse * rng.normal(0, 1, len(table)) * (sex == "F")
    view = np.arange(len(table)) % 2
    return table.assign(sex=sex, age=patient % 40, view=view, logit=logit, probability=expit(logit))


def groups_of(found, rule, split="test", level="image"):
    return {group.name: group for group in found.splits[split][level].groups[rule]}


def test_each_subgroup_is_scored_like_a_table_of_its_rows_alone():
    table = described()
    found = groups_of(score_subgroups(table, ["sex"], FEW), "sex")
    assert list(found) == ["F", "M"]
    for name, group in found.items():
        rows = table[(table["sex"] == name) & (table["split"] == "test")]
        assert (group.units, group.positives) == (len(rows), rows["label"].sum())
        assert group.patients == rows["patient"].nunique()
        assert group.scores["auc"].value == pytest.approx(roc_auc_score(rows["label"], rows["probability"]), abs=1e-12)
        sensitivity = recall_score(rows["label"], rows["probability"] >= 0.5)
        assert group.scores["recall"].value == pytest.approx(sensitivity, abs=1e-12)
        alone = score_table(rows, FEW).splits["test"]["image"].scores["auc"]
        assert (group.scores["auc"].low, group.scores["auc"].high) == pytest.approx((alone.low, alone.high))


def test_images_of_a_study_are_pooled_within_their_subgroup():
    table = described()
    found = groups_of(score_subgroups(table, ["view"], FEW), "view", level="study")
    rows = table[(table["view"] == 1) & (table["split"] == "test")]
    studies = rows.groupby("study").agg({"label": "max", "probability": "mean"})
    assert found["1"].units == len(studies)
    assert found["1"].scores["auc"].value == pytest.approx(roc_auc_score(studies["label"], studies["probability"]))


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        ("age>=18", ["age<18", "age>=18"]),
        (" age < 18 ", ["age<18", "age>=18"]),
        ("sex==F", ["sex!=F", "sex==F"]),
        ("sex=F", ["sex!=F", "sex=F"]),
        ("view", ["0", "1"]),
    ],
)
def test_conditions_split_into_two_subgroups(rule, names):
    found = score_subgroups(described(200), [rule], dataclasses.replace(FEW, resamples=20))
    assert list(groups_of(found, found.by[0])) == names
    assert sum(group.units for group in groups_of(found, found.by[0]).values()) == len(
        described(200).query("split == 'test'")
    )


def test_images_without_a_value_are_a_subgroup_of_their_own():
    table = described().astype({"age": object})
    table.loc[table["patient"] == table["patient"].iloc[-1], "age"] = ""
    found = groups_of(score_subgroups(table, ["age>=18"], dataclasses.replace(FEW, resamples=20)), "age>=18")
    assert list(found)[-1] == NO_VALUE and found[NO_VALUE].patients == 1
    assert found[NO_VALUE].title("age>=18") == "age>=18: (no value)"
    assert found["age<18"].title("age>=18") == "age<18" and found["age<18"].title("age") == "age: age<18"


def test_whole_numbers_with_missing_ones_among_them_keep_their_names():
    table = described().assign(cast=lambda rows: np.where(rows["view"] == 1, 1.0, np.nan))
    found = groups_of(score_subgroups(table, ["cast"], dataclasses.replace(FEW, resamples=20)), "cast")
    assert list(found) == ["1", NO_VALUE]


@pytest.mark.parametrize(
    ("by", "message"),
    [
        (["sx"], r"has no column 'sx' for --by; did you mean sex\?"),
        (["age"], r"the column has 40 values, at most 20 subgroups are compared; give a condition, such as age>=\d"),
        (["sex>3"], "sex is 'M' in one row; compare it with == or !="),
        (["age>old"], "age is a number; compare it"),
        (["age>="], "is neither a column nor a condition"),
        (["sex", "sex"], "is given twice"),
        ([""], "is neither a column nor a condition"),
    ],
)
def test_an_invalid_rule_is_one_line(by, message):
    with pytest.raises(InputError, match=message):
        score_subgroups(described(), by, FEW)


def test_a_planted_difference_is_found_and_its_interval_contains_it():
    table = described(2000, worse=4.0)
    found = score_subgroups(table, ["sex", "view"], FEW).splits["test"]["image"]
    auc, view = (next(d for d in found.differences if (d.by, d.score) == (by, "auc")) for by in ("sex", "view"))
    assert (auc.low, auc.high, auc.pairs) == ("F", "M", 2)
    groups = {group.name: group.scores["auc"].value for group in found.groups["sex"]}
    assert auc.interval.value == pytest.approx(groups["M"] - groups["F"])
    assert 0 < auc.interval.low < auc.interval.value < auc.interval.high and auc.is_beyond_chance
    assert auc.p == pytest.approx(1 / 201) and auc.p_text == "0.005"
    assert not view.is_beyond_chance and view.interval.low < 0 < view.interval.high


def test_small_subgroups_are_shown_but_not_compared():
    table = described().assign(device="A")
    rare = table["patient"].isin(table["patient"].unique()[-4:])
    found = score_subgroups(table.assign(device=np.where(rare, "B", "A")), ["device"], FEW)
    assert groups_of(found, "device")["B"].patients == 4 and not found.splits["test"]["image"].differences
    assert found.notes == (
        "subgroups with fewer than 10 patients of a class that a score needs are not compared in it: device: B (test)",
    )


def test_a_perfect_small_subgroup_is_no_evidence_of_a_difference():
    """Its score is 1 in every resample, which a plain bootstrap takes for certainty."""
    table = described(400)
    table = table[table["split"] == "test"].drop_duplicates("patient")
    lucky = table["patient"].isin(table["patient"][table["label"] == 1].head(12))
    table["device"] = np.where(lucky, "B", "A")
    table.loc[lucky, "probability"], table.loc[lucky, "logit"] = 0.99, np.log(99)
    difference = score_subgroups(table, ["device"], FEW).splits["test"]["study"].differences[0]
    assert (difference.score, difference.high) == ("recall", "B") and difference.interval.value > 0.1
    assert difference.p > 0.05 and difference.interval.low < 0


def test_decisions_use_the_first_threshold_that_was_asked_for():
    table = described()
    default = score_table(table, FEW)
    level = subgroups_of(table, "XR_WRIST", Binary(("a", "b")), default, ["sex"])["XR_WRIST"].splits["test"]["study"]
    assert (level.rule, level.threshold, level.calibrated) == ("0.5", 0.5, False)
    asked = score_table(table, dataclasses.replace(FEW, rules=("sensitivity>=0.95", "0.5")))
    level = subgroups_of(table, "XR_WRIST", Binary(("a", "b")), asked, ["sex"])["XR_WRIST"].splits["test"]["study"]
    point = asked.operating_points["test"][0]
    assert (level.rule, level.threshold, level.calibrated) == (point.rule, point.threshold, True)
    groups = level.groups["sex"]
    recalled = sum(group.scores["recall"].value * group.positives for group in groups)
    assert recalled / sum(group.positives for group in groups) == pytest.approx(point.scores["recall"].value)


def test_one_comparison_is_a_z_test_of_independent_groups():
    rng = np.random.default_rng(0)
    drawn = rng.normal(0.1, 0.05, (40_000, 1))
    found = metrics.simultaneous([0.1], drawn)
    assert (found.low[0], found.high[0]) == pytest.approx((0.1 - 1.96 * 0.05, 0.1 + 1.96 * 0.05), abs=0.002)
    assert found.p[0] == pytest.approx(2 * stats.norm.sf(2), abs=0.003)


def test_several_comparisons_have_the_quantile_of_the_largest_of_them():
    """Of independent differences: Sidak's."""
    rng = np.random.default_rng(0)
    scales = np.array([0.01, 0.05, 0.2, 1.0, 3.0])
    drawn = rng.normal(0, scales, (40_000, 5))
    found = metrics.simultaneous(2.5 * scales, drawn + 2.5 * scales)
    quantile = stats.norm.ppf(0.5 + 0.5 * 0.95 ** (1 / 5))
    np.testing.assert_allclose((found.high - found.low) / 2 / scales, quantile, rtol=0.02)
    np.testing.assert_allclose(found.p, 1 - (1 - 2 * stats.norm.sf(2.5)) ** 5, atol=0.004)


def test_equal_comparisons_count_as_one():
    drawn = np.repeat(np.random.default_rng(0).normal(0, 1, (20_000, 1)), 6, axis=1)
    np.testing.assert_allclose(metrics.simultaneous([2.0] * 6, drawn + 2).p, 2 * stats.norm.sf(2), atol=0.006)


def test_a_difference_that_does_not_vary_has_no_interval_and_undefined_resamples_do_not_count():
    drawn = np.column_stack([np.full(1000, 0.2), np.random.default_rng(0).normal(0.2, 0.1, 1000)])
    drawn[::2, 1] = np.nan
    found = metrics.simultaneous([0.2, 0.2], drawn)
    assert np.isnan(found.low[0]) and np.isnan(found.p[0])
    assert found.low[1] == pytest.approx(0.2 - 1.96 * 0.1, abs=0.02)


@pytest.mark.slow
def test_the_share_of_false_alarms_is_as_stated():
    """400 sets without any difference: 3 rules with 2, 2 and 4 subgroups, 9 pairs per score."""
    alarms = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        table = simulated(240, seed, split_shares=(0.0, 1.0))
        numbers = table["patient"].str[1:].astype(int).to_numpy()
        extra = {name: rng.integers(0, k, 200)[numbers] for name, k in (("a", 2), ("b", 2), ("c", 4))}
        found = score_subgroups(table.assign(**extra), list(extra), ScoreOptions(resamples=300, seed=seed))
        of_auc = [d.p for d in found.splits["test"]["study"].differences if d.score == "auc"]
        alarms.append(min(of_auc) < 0.05)
    assert 0.015 < np.mean(alarms) < 0.085, np.mean(alarms)


def test_runs_have_subgroups_of_the_columns_that_their_predictions_keep(tmp_path):
    run = Run(write_run_of(tmp_path / "XR_WRIST" / "baseline", described(), "baseline"))
    scores, subgroups = scored(run, FEW, ["sex", "age>=18"])
    assert list(groups_of(subgroups["XR_WRIST"], "age>=18")) == ["age<18", "age>=18"]
    with pytest.raises(InputError, match=r"predictions\.csv has no column 'sx' for --by; did you mean sex"):
        scored(run, FEW, ["sx"])
    table = read_predictions(run.folder.predictions)
    assert further_columns(table, Binary(("a", "b"))) == ["sex", "age", "view"]
    kept = {"run": str(run), "area": "XR_WRIST", "phase": "baseline", "select_on": "val", "selected_epoch_by": "auc"}
    kept |= {"has_patients": True, "model_sha256": "", "predictions_sha256": "", "localization_faithfulness": None}
    evaluation = Evaluation(**kept, scores=scores, subgroups=subgroups)
    write_json(tmp_path / "metrics.json", dataclasses.asdict(evaluation))
    import json

    assert from_json(Evaluation, json.loads((tmp_path / "metrics.json").read_text())) == evaluation


def test_predictions_keep_further_columns_of_the_rows():
    rows = pd.DataFrame(
        {"area": "A", "patient": ["p"], "study": ["s"], "image": ["i"], "label": [1], "sex": ["F"], "age": [3]}
    )
    table = predictions_of(rows, "test", np.array([[0.0]]), Binary(("no", "yes")))
    assert list(table)[-4:] == ["logit", "probability", "sex", "age"] and table["split"].tolist() == ["test"]


def test_rules_are_normalised():
    assert [rule.text for rule in rules_of([" age >= 18", "body part", "device == Siemens"])] == [
        "age>=18",
        "body part",
        "device==Siemens",
    ]
