"""Comparison of runs: pairs, averages over areas, and runs that cannot be compared."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import roc_auc_score
from test_scoring import simulated, single_views

from kmura import metrics
from kmura.config import ClassificationConfig
from kmura.errors import InputError
from kmura.evaluation.compare import compare, write_comparison
from kmura.runs.run import RunDescription, RunFolder, write_run


def write_run_of(folder, table, phase, select_on="val"):
    """Writes a run folder as `evaluate` does, without a model."""
    area = table["area"].iloc[0]
    config = ClassificationConfig()
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, select_on=select_on))
    folder.mkdir(parents=True)
    write_run(
        RunFolder(folder),
        RunDescription(
            kind="classification",
            area=area,
            phase=phase,
            records="records",
            inputs="0",
            classes=("normal", "abnormal"),
            task="binary",
            channels=1,
            config=config,
            versions={},
            command="",
        ),
    )
    table.to_csv(folder / "predictions.csv", index=False)
    return folder


def blurred(table, noise, seed=9):
    """Returns the predictions of a worse model for the same images."""
    logit = table["logit"] + np.random.default_rng(seed).normal(0, noise, len(table))
    return table.assign(logit=logit, probability=expit(logit))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    made = []
    for area, seed, studies in (("XR_WRIST", 0, 300), ("XR_HAND", 1, 150)):
        table = simulated(studies, seed, area)
        for phase, noise in (("baseline", 4.0), ("final", 0.0), ("tune", 0.05)):
            made.append(write_run_of(folder / area / phase, blurred(table, noise), phase))
    return made


@pytest.fixture(scope="module")
def found(runs):
    return compare(runs, resamples=300)


def difference(found, where, one, other, score="auc", level="study"):
    return next(
        each
        for each in found.differences
        if (each.where, each.one, each.other, each.score, each.level) == (where, one, other, score, level)
    )


def test_the_better_model_is_reported_with_an_interval(found):
    gap = difference(found, "XR_WRIST", "baseline", "final")
    assert 0 < gap.interval.low < gap.interval.value < gap.interval.high and gap.delong_p < 0.05
    assert gap.sentence == (
        f"auc on XR_WRIST, study level: final is better than baseline by {gap.interval.value:.3f} "
        f"({gap.interval.low:.3f} to {gap.interval.high:.3f})"
    )
    lower = difference(found, "XR_WRIST", "baseline", "final", "log_loss")  # lower is better
    assert lower.interval.high < 0 and "final is better than baseline by" in lower.sentence
    assert found.best["study"]["XR_WRIST"]["log_loss"] != "baseline"


def test_models_without_a_significant_difference_are_not_ranked(found):
    gap = difference(found, "XR_HAND", "final", "tune")
    assert gap.interval.low <= 0 <= gap.interval.high and "final and tune cannot be distinguished" in gap.sentence


def test_averages_and_pooled_scores_differ_and_are_correct(found, runs):
    import pandas as pd

    tables = [pd.read_csv(run / "predictions.csv") for run in runs if run.name == "baseline"]
    studies = [
        table[table["split"] == "test"].groupby("study").agg({"label": "first", "probability": "mean"})
        for table in tables
    ]
    aucs = [roc_auc_score(each["label"], each["probability"]) for each in studies]
    pooled = pd.concat(studies)
    scores = {where: models["baseline"]["auc"].value for where, models in found.scores["study"].items()}
    assert scores["macro"] == pytest.approx(np.mean(aucs))
    assert scores["weighted"] == pytest.approx(np.average(aucs, weights=[len(each) for each in studies]))
    assert scores["pooled"] == pytest.approx(roc_auc_score(pooled["label"], pooled["probability"]))
    assert len({round(scores[where], 6) for where in ("macro", "weighted", "pooled")}) == 3
    assert found.units["study"] == {"XR_WRIST": 150, "XR_HAND": 75}
    errors = {where: models["baseline"]["ece"].value for where, models in found.calibration["study"].items()}
    apart = [metrics.calibration_errors(each["label"], each["probability"])["ece"].value for each in (*studies, pooled)]
    assert errors["macro"] == pytest.approx(np.mean(apart[:2]))
    assert errors["weighted"] == pytest.approx(np.average(apart[:2], weights=[150, 75]))
    assert errors["pooled"] == pytest.approx(apart[2]) and errors["pooled"] != pytest.approx(errors["weighted"])
    assert difference(found, "macro", "baseline", "final").delong_p is None


def test_a_model_with_a_missing_area_has_no_average(runs):
    found = compare(runs[:4], resamples=50)  # only baseline covers both areas
    assert set(found.scores["study"]["XR_HAND"]) == {"baseline"}
    assert set(found.scores["study"]["pooled"]) == {"baseline"}


def test_one_area_has_the_intervals_of_its_evaluation(runs):
    import pandas as pd

    from kmura.evaluation.scoring import level_scores

    table = pd.read_csv(runs[0] / "predictions.csv").query("split == 'test'")
    alone = level_scores(table, "study", resamples=100).scores
    assert compare(runs[:2], resamples=100).scores["study"]["XR_WRIST"]["baseline"] == alone


def test_two_runs_of_the_same_phase_are_named_by_their_folders(runs, tmp_path):
    table = simulated(300, 0, "XR_WRIST")
    other = write_run_of(tmp_path / "second" / "XR_WRIST" / "baseline", table, "baseline", select_on="test")
    found = compare([runs[0], other], resamples=50)
    assert set(found.runs) == {f"{runs[0].parents[1].name}/baseline", "second/baseline"}
    assert any("chosen on test" in note and "optimistic" in note for note in found.notes)


def test_runs_that_cannot_be_compared_are_rejected(runs, tmp_path):
    other = write_run_of(tmp_path / "x" / "XR_WRIST" / "final", simulated(300, 5), "final")
    for several, message in (
        (runs[:1], "two runs or more"),
        ([runs[0], other], "different images of XR_WRIST"),
        ([runs[0], runs[0]], "give each run once"),
        ([runs[0], tmp_path], "not a run folder"),
    ):
        with pytest.raises(InputError, match=message):
            compare(several)
    only_tune = write_run_of(tmp_path / "y" / "XR_WRIST" / "final", simulated(split_shares=(1, 0)), "final")
    with pytest.raises(InputError, match="no predictions of test"):
        compare([runs[0], only_tune])


def test_a_single_class_is_noted_without_an_error(tmp_path):
    table = simulated(100)
    table = table[table["label"] == 1].reset_index(drop=True)
    made = [write_run_of(tmp_path / "XR_WRIST" / phase, table, phase) for phase in ("baseline", "final")]
    found = compare(made, resamples=50)
    assert "cannot be compared" in difference(found, "XR_WRIST", "baseline", "final").sentence
    assert "auc" not in found.best["study"]["XR_WRIST"]
    write_comparison(found, tmp_path / "compare.json")
    assert json.loads((tmp_path / "compare.json").read_text())["split"] == "test"


def few(tmp_path, phase, logit):
    """A run with four studies of four patients in each split, as case files have them."""
    label = np.arange(8) % 2
    keys = {name: [f"{name}{n}" for n in range(8)] for name in ("patient", "study", "image")}
    table = pd.DataFrame(keys | {"split": ["val"] * 4 + ["test"] * 4, "area": "XR_WRIST", "label": label})
    table["logit"] = logit(label)
    return write_run_of(tmp_path / "XR_WRIST" / phase, table.assign(probability=expit(table["logit"])), phase)


@pytest.mark.parametrize("other", ["constant", "reversed"])
def test_a_difference_without_variation_has_neither_interval_nor_p_value(tmp_path, other):
    logit = {"constant": lambda label: 0.0 * label, "reversed": lambda label: 2.0 - 4 * label}[other]
    made = [few(tmp_path, "baseline", logit), few(tmp_path, "final", lambda label: 4.0 * label - 2)]
    found = compare(made, resamples=200)
    gap = difference(found, "XR_WRIST", "baseline", "final")
    assert gap.interval.value in (0.5, 1) and np.isnan([gap.interval.low, gap.delong_p]).all()
    assert "p =" not in gap.text and "cannot be compared" in gap.text and "so there is no interval" in gap.text
    for models in found.scores["study"]["XR_WRIST"].values():
        assert all(np.isnan(score.low) or score.high - score.low > 0.01 for score in models.values())
    for each in found.differences:
        assert np.isnan(each.interval.low) or each.interval.high - each.interval.low > 1e-6
    assert any("have no interval" in note for note in found.notes)


def test_the_p_value_allows_for_several_studies_of_a_patient(tmp_path):
    table = simulated(300)
    copies = [table.assign(study=table["study"] + f"-{n}", image=table["image"] + f"-{n}") for n in range(4)]
    made = {}
    for name, rows in (("once", table), ("copied", pd.concat(copies, ignore_index=True))):
        worse = rows.assign(
            logit=rows["logit"] + np.random.default_rng(5).normal(0, 2, len(table))[rows.index % len(table)]
        )
        worse["probability"] = expit(worse["logit"])
        runs = [
            write_run_of(tmp_path / name / phase, one, phase) for phase, one in (("baseline", rows), ("final", worse))
        ]
        made[name] = difference(compare(runs, resamples=20), "XR_WRIST", "baseline", "final").delong_p
    assert made["copied"] == pytest.approx(made["once"], rel=0.05)  # four copies of a study are no news


def test_means_over_areas_have_intervals_by_patient(found):
    for where in ("macro", "weighted", "pooled"):
        auc = found.scores["study"][where]["final"]["auc"]
        assert auc.method == "logit" and auc.low < auc.value < auc.high
    parts = [found.scores["study"][area]["final"]["auc"] for area in ("XR_WRIST", "XR_HAND")]
    macro = found.scores["study"]["macro"]["final"]["auc"]
    assert macro.high - macro.low < np.mean([part.high - part.low for part in parts])


def test_runs_of_single_views_are_compared_by_images(tmp_path):
    tables = [single_views(120), blurred(single_views(120), 3.0)]
    made = [
        write_run_of(tmp_path / "XR_WRIST" / phase, table, phase)
        for phase, table in zip(("baseline", "final"), tables, strict=True)
    ]
    found = compare(made, resamples=50)
    assert found.is_single_view and found.resampled == "images"
    assert difference(found, "XR_WRIST", "baseline", "final").sentence.startswith("auc on XR_WRIST: ")


def test_redrawn_resamples_of_a_comparison_are_noted(tmp_path):
    table = single_views(60)
    table["label"] = np.where(np.arange(60) % 30 < 1, 1, 0)
    made = [write_run_of(tmp_path / "XR_WRIST" / phase, table, phase) for phase in ("baseline", "final")]
    found = compare(made, resamples=50)
    assert found.redrawn["study"] and any("were drawn again" in note for note in found.notes)
