"""A new kind of learning needs a learner and one entry in the registry; all other parts are shared."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
import toy_kind

import kmura
from kmura import kinds
from kmura.errors import InputError
from kmura.report.report import report
from kmura.runs.run import Run


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(kinds.KINDS, "toy", toy_kind.TOY)


class KillWithinEpoch(keras.callbacks.Callback):
    """Kills the process after the first batch of an epoch (counted from 1), like a power failure."""

    def __init__(self, epoch):
        super().__init__()
        self.doomed = epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch + 1

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == self.doomed:
            os.kill(os.getpid(), signal.SIGKILL)


def last_state(folder: Path) -> dict[str, np.ndarray]:
    (path,) = (folder / "last").glob("epoch-*.npz")
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.mark.slow
def test_a_toy_kind_resumes_after_a_kill_within_an_epoch_and_appears_in_the_report(records, tmp_path, toy):
    undisturbed = toy_kind.train(records, tmp_path / "undisturbed")
    code = (
        "import sys, toy_kind, test_kinds; "
        "toy_kind.train(sys.argv[1], sys.argv[2], callbacks=[test_kinds.KillWithinEpoch(2)])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
    killed = subprocess.run(
        [sys.executable, "-c", code, str(records), str(tmp_path / "killed")], env=environment, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    folder = tmp_path / "killed" / "XR_WRIST" / "toy"
    assert json.loads((folder / "last" / "state.json").read_text())["epoch"] == 1

    resumed = toy_kind.train(records, tmp_path / "killed")
    assert resumed.folder == folder and resumed.history["epoch"].tolist() == [1, 2, 3]
    ours, theirs = last_state(folder), last_state(undisturbed.folder)
    assert ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in ours)
    pd.testing.assert_frame_equal(
        resumed.history.drop(columns="seconds"), undisturbed.history.drop(columns="seconds"), check_exact=True
    )
    assert resumed.history["val_loss"].iloc[-1] < resumed.history["val_loss"].iloc[0]
    assert resumed.best["val_loss"] == resumed.history["val_loss"].min()

    assert Run(folder).kind == "toy" and isinstance(Run(folder).config, toy_kind.ToyConfig)
    scores = kmura.evaluate(folder)
    page = report([folder], tmp_path / "report.html").read_text()
    assert f"missed by {255 * scores['error']:.1f} of 255" in page and "<th scope" in page


def test_a_missing_part_and_an_unknown_kind_are_rejected(records, tmp_path, toy, monkeypatch):
    run = toy_kind.train(records, tmp_path, epochs=1).folder
    with pytest.raises(InputError, match="runs of kind toy have no classifier"):
        kmura.export(run, tmp_path / "served")
    monkeypatch.delitem(kinds.KINDS, "toy")
    with pytest.raises(InputError, match="kind of run 'toy' is unknown; choose one of classification"):
        kmura.evaluate(run)


def test_of_epochs_with_equal_scores_the_one_with_the_lower_loss_is_best(records, tmp_path, monkeypatch):
    class Tied(toy_kind.MeanGray):
        monitor = "val_score"

        def validate(self):
            return {"val_score": next(scores), "val_loss": next(losses)}

    scores, losses = iter([0.5, 0.5, float("nan"), 0.5, 0.7]), iter([0.4, 0.3, 0.1, 0.3, 0.9])
    monkeypatch.setattr(toy_kind, "TOY", dataclasses.replace(toy_kind.TOY, learner=Tied))
    monkeypatch.setitem(kinds.KINDS, "toy", toy_kind.TOY)
    run = toy_kind.train(records, tmp_path, epochs=5)
    assert run.history["best"].tolist() == [True, True, False, False, True]
