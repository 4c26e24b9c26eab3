"""`kmura fit --folds` trains a model per fold, resumes, and scores the held-out images of all folds together."""

import pandas as pd
import pytest
from command import kmura_main

from kmura.runs.run import Run

pytestmark = pytest.mark.slow  # trains several folds

SMALL = (
    "--backbone", "densenet_mini", "--weights", "none", "--image-size", 32, "--batch-size", 16, "--precision", "float32"
)  # fmt: skip


def test_all_folds_are_trained_resumed_and_scored_together(records, tmp_path, monkeypatch, capsys):
    runs = tmp_path / "runs"
    command = ("fit", "--area", "XR_WRIST", "--records", records, "--runs", runs, *SMALL, "--folds", 3)
    code, out, err = kmura_main(monkeypatch, capsys, *command, "--epochs", 1, "--fold", 1, "--no-evaluate")
    assert code == 0, err
    assert [path.name for path in runs.iterdir() if path.is_dir()] == ["fold1"]
    code, out, err = kmura_main(monkeypatch, capsys, *command, "--epochs", 2)
    assert code == 0, err
    assert "continuing after epoch 1 of 2 epochs" in err or "fold1" in err
    for number in range(3):
        run = Run(runs / f"fold{number}" / "XR_WRIST" / "baseline")
        assert (run.config.data.folds, run.config.data.fold) == (3, number) and len(run.history()) == 2
        assert (runs / f"fold{number}" / "summary.csv").is_file()
    assert "AUC of the 3 folds" in out
    table = pd.read_csv(runs / "folds" / "XR_WRIST" / "baseline" / "predictions.csv")
    assert sorted(table["fold"].unique()) == [0, 1, 2] and not table["image"].duplicated().any()
    first = pd.read_csv(runs / "fold0" / "XR_WRIST" / "baseline" / "history.csv")

    code, _, err = kmura_main(monkeypatch, capsys, *command, "--epochs", 2, "--no-evaluate")  # nothing is left
    assert code == 0, err
    pd.testing.assert_frame_equal(first, pd.read_csv(runs / "fold0" / "XR_WRIST" / "baseline" / "history.csv"))
    code, _, err = kmura_main(monkeypatch, capsys, *command[:-1], 4, "--epochs", 2, "--fold", 1)
    assert code == 2 and "data.folds: 3 -> 4" in err
