"""Exports create complete versions or none, and invalid exports are rejected."""

import json
import os
import shutil
import signal
import sys

import pytest

from kmura.errors import InputError
from kmura.export.parity import Parity

EQUAL = Parity(logit=0.0, probability=0.0, image_bytes=0.0, study=0.0, golden=0.0, warmup=0)


@pytest.fixture
def light(monkeypatch):
    """Exports that write a few bytes without verification, to test the handling of folders."""

    def written(folder, *_):
        (folder / "variables").mkdir()
        (folder / "variables" / "data").write_bytes(b"data")

    monkeypatch.setattr("kmura.export.bundle.load_model", lambda path: None)
    monkeypatch.setattr("kmura.export.bundle.ServedModel", lambda model, contract: None)
    monkeypatch.setattr("kmura.export.bundle._write_served", written)
    monkeypatch.setattr("kmura.export.bundle.parity_in_fresh_process", lambda *_: EQUAL)


def test_versions_are_numbered_consecutively_and_a_failed_check_leaves_none(
    evaluated_run, light, tmp_path, monkeypatch
):
    import kmura

    run, out = evaluated_run[1], tmp_path / "served"
    (out / "7").mkdir(parents=True)
    assert [kmura.export(run, out).version for _ in range(2)] == [8, 9]

    def unequal(*_):
        raise InputError("the export answers otherwise")

    monkeypatch.setattr("kmura.export.bundle.parity_in_fresh_process", unequal)
    with pytest.raises(InputError, match="answers otherwise"):
        kmura.export(run, out)
    assert {path.name for path in out.iterdir()} == {"7", "8", "9", ".exporting-lock"}


def test_a_kill_at_any_moment_leaves_no_version(evaluated_run, light, tmp_path, monkeypatch):
    import kmura
    from kmura.export import bundle

    run, out = evaluated_run[1], tmp_path / "served"
    steps = ("model_card", "_write_served", "write_json", "parity_in_fresh_process", "sha256_of", "published")
    for step in (*steps, "rename"):
        child = os.fork()  # the light export avoids TensorFlow, which is not fork-safe
        if child == 0:
            try:  # whatever happens, the child must not go on as a second pytest
                place = (bundle.Path, "rename") if step == "rename" else (bundle, step)
                monkeypatch.setattr(*place, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
                kmura.export(run, out)
            finally:
                os._exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, step
        assert [path.name for path in out.iterdir() if not path.name.startswith(".")] == [], step
    assert kmura.export(run, out).version == 1
    assert {path.name for path in out.iterdir()} == {"1", ".exporting-lock"}


def test_jpeg_records_cause_a_warning_about_different_predictions(evaluated_run, tmp_path, caplog):
    from kmura.serving.contract import contract_of_run

    assert contract_of_run(evaluated_run[1]).losses == ""
    run = shutil.copytree(evaluated_run[1], tmp_path / "run")
    description = json.loads((run / "run.json").read_text())
    description["preparation"] |= {"encoding": "jpeg", "quality": 15}
    (run / "run.json").write_text(json.dumps(description))
    assert "are JPEGs of quality 15" in contract_of_run(run).losses
    assert "predictions differ slightly from those of the evaluation" in caplog.text


def test_a_format_that_fails_for_a_model_is_a_one_line_error(tmp_path, monkeypatch):
    import keras

    from kmura.export import exchange

    def fails(*_):
        raise RuntimeError("Select TensorFlow op(s)\nare not there")

    monkeypatch.setitem(exchange._CHECKS, "onnx", fails)
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(1)])
    monkeypatch.setattr(model, "export", lambda *_, **__: print("chatter"))
    with pytest.raises(
        InputError, match=r"onnx cannot be exported .* \(RuntimeError: Select TensorFlow op\(s\) are not there\)"
    ):
        exchange.write(tmp_path, model, "onnx")


def test_a_check_does_not_mention_outputs_that_were_not_compared(tmp_path, capsys):
    from kmura.cli.prediction_tables import show_check
    from kmura.export.golden import Check

    show_check(Check(tmp_path, {}, ()))
    show_check(Check(tmp_path, {"tensor": 0.0}, ()))
    without, _, compared = capsys.readouterr().out.replace("\n", " ").partition("tensor: equal")
    assert "no answers were compared" in without and "all answers are as they were" in compared


def test_invalid_exports_are_rejected_before_any_work(evaluated_run, light, tmp_path, monkeypatch):
    import kmura

    _, run = evaluated_run
    with pytest.raises(InputError, match=r"not among the rules .* evaluated \(0.5, max_f1, youden, .*kmura evaluate"):
        kmura.export(run, tmp_path / "out", threshold="0.37")
    with pytest.raises(InputError, match="choose one of savedmodel, onnx, litert"):
        kmura.export(run, tmp_path / "out", format="torch")
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis.prediction_log_pb2", None)
    with pytest.raises(
        InputError, match=r"pip install '\.\[serving\]' in a clone of kmura, or omit them with --no-warmup"
    ):
        kmura.export(run, tmp_path / "out")
    kmura.export(run, tmp_path / "cold", warmup=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs tf2onnx; run pip install '\.\[onnx\]'"):
        kmura.export(run, tmp_path / "out", format="onnx")
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "metrics.json").unlink()
    with pytest.raises(InputError, match="kmura evaluate"):
        kmura.export(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()
