"""Run folders of run version 1, which call the splits `tune` and `valid`, stay readable."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

import kmura
from kmura.errors import InputError
from kmura.evaluation.scoring import ScoreOptions
from kmura.files import sha256_of
from kmura.report.report import report
from kmura.runs.run import Run
from kmura.serving.contract import contract_of_run

OLD_NAMES = {"val": "tune", "test": "valid"}


def renamed(value):
    """Content of a JSON file with the old names of the splits."""
    if isinstance(value, dict):
        return {OLD_NAMES.get(key, key): renamed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [renamed(item) for item in value]
    return OLD_NAMES.get(value, value) if isinstance(value, str) else value


def of_version_2(value, field=""):
    """The content of a metrics.json without what version 3 added: methods of intervals, a second debiased error."""
    if isinstance(value, list):
        return [of_version_2(item) for item in value]
    if not isinstance(value, dict):
        return value
    if field == "calibration":
        value = {name: error for name, error in value.items() if name != "ece_debiased"}
        value = {{"rmsce_debiased": "ece_debiased"}.get(name, name): error for name, error in value.items()}
    if value.keys() == {"value", "low", "high", "method"}:
        value = {name: item for name, item in value.items() if name != "method"}
    version = {"metrics_version": 2} if "metrics_version" in value else {}
    return {name: of_version_2(item, name) for name, item in value.items()} | version


@pytest.fixture
def old_run(evaluated_run, tmp_path):
    """The evaluated run as kmura 0.1.0 wrote it."""
    run = tmp_path / "XR_WRIST" / "baseline"
    shutil.copytree(evaluated_run[1], run)
    description = renamed(json.loads((run / "run.json").read_text()))
    assert description.pop("kind") == "classification" and description.pop("areas") == []
    (run / "run.json").write_text(json.dumps(description | {"run_version": 1}))
    table = pd.read_csv(run / "predictions.csv")
    table.assign(split=table["split"].map(OLD_NAMES)).to_csv(run / "predictions.csv", index=False)
    metrics = renamed(of_version_2(json.loads((run / "metrics.json").read_text())))
    assert metrics.pop("metrics_version") == 2
    metrics["predictions_sha256"] = sha256_of(run / "predictions.csv")
    (run / "metrics.json").write_text(json.dumps(metrics))
    return run


@pytest.mark.slow
def test_an_old_run_is_reported_with_the_names_of_today(evaluated_run, old_run, tmp_path):
    assert Run(old_run).kind == "classification" and Run(old_run).config.train.select_on == "val"
    page = report([old_run], tmp_path / "old.html", resamples=20).read_text()
    current = report([evaluated_run[1]], tmp_path / "new.html", resamples=20).read_text()
    assert "Scores on test" in page and "valid" not in page.replace("invalid", "")
    auc = json.loads((evaluated_run[1] / "metrics.json").read_text())["scores"]["splits"]["test"]["study"]["scores"]
    assert f"{auc['auc']['value']:.3f}" in page and f"{auc['auc']['value']:.3f}" in current


def test_an_old_run_answers_as_it_did_and_can_be_evaluated_again(evaluated_run, old_run):
    assert contract_of_run(old_run) == contract_of_run(evaluated_run[1])
    before = pd.read_csv(evaluated_run[1] / "predictions.csv")
    kmura.evaluate(old_run, options=ScoreOptions(pooling="max", resamples=20))
    after = pd.read_csv(old_run / "predictions.csv")
    assert after["split"].tolist() == before["split"].tolist()
    np.testing.assert_array_equal(after["logit"], before["logit"])


def test_a_run_of_a_later_version_says_what_to_do(old_run):
    description = json.loads((old_run / "run.json").read_text())
    (old_run / "run.json").write_text(json.dumps(description | {"run_version": 3}))
    with pytest.raises(InputError, match="run version 3, this kmura reads versions 1 and 2; use the version"):
        Run(old_run)
