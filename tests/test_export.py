"""Predictions of an exported model equal those of the original model in every environment, and in `kmura predict`."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import kmura_main
from PIL import Image
from test_export_pixels import FILES, saved, smooth
from test_images import declares

from kmura.errors import InputError

pytestmark = pytest.mark.slow  # the export that they share takes half a minute


@pytest.fixture(scope="module")
def exported(evaluated_run, tmp_path_factory):
    """(folder, run, export): a run in the folder of its images and records, and its export."""
    import kmura

    folder, run = evaluated_run
    return folder, run, kmura.export(run, tmp_path_factory.mktemp("exported"), threshold="max_f1")


@pytest.fixture(scope="module")
def signatures(exported):
    from kmura.export.golden import load_signatures

    return load_signatures(exported[2].folder)


@pytest.fixture(scope="module")
def predictor(exported):
    from kmura.prediction.predictor import load_predictor

    return load_predictor(exported[1], threshold="max_f1")


@pytest.fixture
def loaded(predictor, monkeypatch):
    """Makes `predict` reuse the model of the run without loading it again."""
    monkeypatch.setattr("kmura.prediction.predict.load_predictor", lambda *_, **__: predictor)


def mixed_files() -> list[bytes]:
    """80 images of various sizes: PNG and JPEG, gray, RGB, palette, alpha, 16 bits, rotated."""
    rng = np.random.default_rng(1)
    files = list(FILES.values())
    while len(files) < 80:
        image = smooth(*(int(side) for side in rng.integers(20, 300, 2)))
        forms = (
            lambda image: saved(image),
            lambda image: saved(image, "JPEG", quality=80),
            lambda image: saved(Image.merge("RGB", (image, image.transpose(Image.FLIP_LEFT_RIGHT), image))),
            lambda image: saved(Image.fromarray(np.asarray(image).astype(np.uint16) * 16)),
        )
        files.append(forms[len(files) % 4](image))
    return files[:80]


WRONG = {
    "no image": (b"this is a text\n" * 50, "neither a PNG nor a JPEG image"),
    "empty": (b"", "empty, not an image"),
    "GIF": (saved(smooth(40, 40), "GIF"), "neither a PNG nor a JPEG image"),
    "20000 x 20000": (declares(20_000, 20_000), "declares more than 100,000,000 pixels"),
    "cut off": (saved(smooth(40, 40))[:-100], "Invalid PNG"),
}

# loads like TensorFlow Serving: the loader of version 1, without kmura
STRANGER = """
import sys
import numpy as np
import tensorflow as tf

folder, images, out = sys.argv[1:]
with np.load(images) as arrays:
    files, wrong = ([arrays[f"{kind}{place}"].tobytes() for place in range(int(arrays[kind]))]
                    for kind in ("files", "wrong"))
    pixels = arrays["pixels"]
found = {}
with tf.compat.v1.Session(graph=tf.Graph()) as session:
    signatures = tf.compat.v1.saved_model.loader.load(session, ["serve"], folder).signature_def

    def ask(name, value):
        signature = signatures[name]
        (given,) = signature.inputs.values()
        return session.run({key: info.name for key, info in signature.outputs.items()}, {given.name: value})

    def keep(name, answers):
        found.update({f"{name}/{key}": value.astype("S") if value.dtype == object else value
                      for key, value in answers.items()})

    for name in ("serving_default", "explain"):
        keep(name, ask(name, files))
    keep("study", ask("study", files[:3]))
    keep("single", ask("study", files[3:4]))
    for name in ("tensor", "explain_tensor"):
        keep(name, ask(name, pixels))
    errors = []
    requests = [("serving_default", [files[0], each]) for each in wrong] + [
        ("study", np.array([], dtype=object)), ("explain", [wrong[0]]), ("tensor", pixels[:1] - 300),
        ("tensor", pixels[:1] * np.nan)]
    for name, value in requests:
        try:
            ask(name, value)
            errors.append("none")
        except tf.errors.InvalidArgumentError as error:
            errors.append(error.message)
    found["errors"] = np.array(errors)
    keep("after", ask("serving_default", files[:5]))
assert not {"kmura", "keras_hub"} & set(sys.modules)  # Keras comes with TensorFlow, unasked
np.savez(out, **found)
"""


@pytest.fixture(scope="module")
def asked(exported, predictor, tmp_path_factory):
    """Outputs of the export in a process with TensorFlow only, for 80 files and invalid requests."""
    from kmura.serving.prepare import prepared

    folder = tmp_path_factory.mktemp("asked")
    files, wrong = mixed_files(), [data for data, _ in WRONG.values()]
    pixels = np.stack([prepared(data, predictor.contract) for data in files]).astype(np.float32)
    arrays = {f"{kind}{place}": np.frombuffer(data, np.uint8) for kind, each in (("files", files), ("wrong", wrong))
              for place, data in enumerate(each)}  # fmt: skip
    np.savez(folder / "in.npz", files=len(files), wrong=len(wrong), pixels=pixels, **arrays)
    command = [sys.executable, "-c", STRANGER, exported[2].folder, folder / "in.npz", folder / "out.npz"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(folder / "out.npz") as found:
        return dict(found), files, pixels


def test_a_process_without_kmura_gets_the_predictions_of_predict(asked, exported, predictor, loaded, tmp_path):
    import kmura

    found, files, pixels = asked
    for place, data in enumerate(files):
        (tmp_path / f"{place:02}.{'png' if data[:4] == bytes([137]) + b'PNG' else 'jpg'}").write_bytes(data)
    table = kmura.predict(exported[1], tmp_path).images
    assert len(table) == 80
    for name in ("serving_default", "tensor", "explain", "explain_tensor"):
        away = {key: np.abs(found[f"{name}/{key}"] - table[key]) for key in ("logit", "probability")}
        # reduced tall images may differ by one gray level, see `pixels.reduced`; others must be equal
        few = 0 if name.endswith("tensor") else 2
        assert (away["logit"] > 1e-5).sum() <= few and (away["probability"] > 1e-4).sum() <= few, name
        assert away["logit"].max() < 5e-3 and away["probability"].max() < 1e-2, name
        near = np.abs(table["probability"] - predictor.contract.threshold) < 1e-2
        assert ((found[f"{name}/decision"].astype(str) == table["decision"]) | near).all(), name
        assert (found[f"{name}/threshold"] == np.float32(predictor.contract.threshold)).all()
        assert set(found[f"{name}/calibration"].astype(str)) == {"platt, fitted to studies"}
    right = predictor.answers(pixels, explained=True)["cam"]
    assert right.shape == (80, 32, 32) and (right.max((1, 2)) > 0).mean() > 0.5
    # Grad-CAM++ is discontinuous where a denominator of alpha is close to 0: few images may differ
    for name in ("explain", "explain_tensor"):
        away = np.abs(found[f"{name}/cam"] - right).max((1, 2)) / np.maximum(right.max((1, 2)), 1e-12)
        assert np.mean(away < 1e-2) >= 0.9, name
    assert set(table["decision"]) == {"normal", "abnormal"} or table["decision"].nunique() == 1


def test_a_process_without_kmura_gets_the_study_predictions_of_predict(asked, predictor):
    found, *_ = asked
    logit = found["serving_default/logit"]
    right = predictor.contract.study_probabilities(["one"] * 3, logit[:3]).value
    assert found["study/probability"] == pytest.approx(right, abs=1e-5)
    assert found["study/image_logit"] == pytest.approx(logit[:3], abs=1e-6)
    assert found["study/image_probability"] == pytest.approx(found["serving_default/probability"][:3], abs=1e-6)
    assert found["study/decision"].astype(str) == predictor.contract.decision(right)
    assert found["study/threshold"].shape == (1,)
    # each image is a study of one view
    assert found["single/probability"] == pytest.approx(found["serving_default/probability"][3:4], abs=1e-6)


def test_the_clients_of_the_serving_guide_get_the_predictions_of_predict(
    signatures, predictor, monkeypatch, capsys, tmp_path
):
    from serving_stand_in import served

    from kmura.serving.prepare import prepared

    data = FILES["gray"]
    (tmp_path / "image.png").write_bytes(data)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    guide = Path(__file__).parents[1] / "docs" / "serving.md"
    blocks = re.findall("```python\n(.*?)```", guide.read_text(), re.DOTALL)
    with served("wrist", signatures) as addresses:
        for port, address in zip(("8500", "8501"), addresses, strict=True):
            (client,) = (block for block in blocks if f"localhost:{port}" in block)
            exec(client.replace(f"localhost:{port}", address), {})
    by_grpc, row, study = capsys.readouterr().out.splitlines()
    right = predictor.answers(prepared(data, predictor.contract)[None].astype(np.float32))
    decision, probability = predictor.contract.decision(right["probability"]), right["probability"][0]
    assert by_grpc == f"[{decision[0].encode()}] (1, 32, 32)"
    row = ast.literal_eval(row)
    assert row["decision"] == decision[0] and row["probability"] == pytest.approx(probability, abs=1e-5)
    assert ast.literal_eval(study) == pytest.approx([probability], abs=1e-5)


def test_invalid_requests_fail_without_affecting_later_requests(asked):
    found, *_ = asked
    reasons = [reason for _, reason in WRONG.values()]
    reasons += ["has at least one image", "neither a PNG", "outside 0 to 255", "outside 0 to 255"]
    for message, reason in zip(found["errors"], reasons, strict=True):
        assert reason in message
    assert found["after/probability"] == pytest.approx(found["serving_default/probability"][:5], abs=1e-6)


@pytest.mark.parametrize("shape", [(1, 48, 48, 1), (1, 32, 16, 1), (1, 32, 32, 3), (32, 32, 1)])
def test_pixels_of_another_shape_are_refused_with_the_expected_shape(signatures, shape):
    import tensorflow as tf

    for name in ("tensor", "explain_tensor"):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"expected the shape \[B, 32, 32, 1\], received"):
            signatures[name](image=tf.zeros(shape))


def test_the_folder_of_a_version_is_complete(exported):
    from kmura.serving.signatures import SIGNATURES, read_warmup

    _, run, found = exported
    assert (found.folder.name, found.version) == ("1", 1)
    names = {path.name for path in found.folder.iterdir()}
    assert names >= {"saved_model.pb", "variables", "assets.extra", "signature.json", "model_card.md", "golden.npz"}
    assert not [path for path in found.folder.parent.iterdir() if path.name.endswith(".part")]
    assert set(read_warmup(found.folder)) == set(SIGNATURES)
    signature = json.loads((found.folder / "signature.json").read_text())
    assert signature["calibration"] == "platt, fitted to studies" and signature["contract"]["rule"] == "max_f1"
    assert found.parity.logit <= 1e-5 and found.parity.image_bytes <= 1e-3 and found.parity.warmup == len(SIGNATURES)
    scores = json.loads((run / "metrics.json").read_text())["scores"]
    auc = scores["calibrated"]["test"]["study"]["scores"]["auc"]
    card = (found.folder / "model_card.md").read_text()
    assert f"| auc | {auc['value']:.3f} | {auc['low']:.3f} to {auc['high']:.3f} |" in card
    assert "not a medical device" in card and "rule `max_f1`" in card and str(exported[0]) not in card


def test_pooling_and_calibration_match_the_evaluation(exported, predictor, loaded):
    import kmura
    from kmura.evaluation.calibrators import calibrated_levels

    folder, run, _ = exported
    table = pd.read_csv(run / "predictions.csv")
    table = table[table["split"] == "test"].reset_index(drop=True)
    images, studies = calibrated_levels(table, predictor.contract.calibrator, "study", "max")
    found = kmura.predict(run, folder / "images" / "valid")
    of_images = found.images.assign(image=[os.path.relpath(name, folder / "images") for name in found.images["image"]])
    of_images = of_images.set_index("image").loc[table["image"]]
    assert of_images["logit"].to_numpy() == pytest.approx(table["logit"].to_numpy(), abs=1e-5)
    names = ("XR_WRIST/" + table["study"])[studies.first]
    of_studies = found.studies.set_index("study").loc[names]
    assert len(found.studies) == len(names) == 12
    assert of_studies["probability"].to_numpy() == pytest.approx(studies.value, abs=1e-4)
    assert of_studies["images"].tolist() == studies.images.tolist()
    point = json.loads((run / "metrics.json").read_text())["scores"]["operating_points"]["test"][1]
    assert point["rule"] == "max_f1"
    positive = table["label"].to_numpy()[studies.first] == 1
    abnormal = (of_studies["decision"] == "abnormal").to_numpy()
    assert (abnormal & positive).sum() == point["confusion"]["tp"]


def test_run_file_and_export_give_the_same_predictions_for_lists_and_folders(
    exported, signatures, tmp_path, monkeypatch
):
    import kmura

    monkeypatch.setattr("kmura.prediction.predictor.load_signatures", {exported[2].folder: signatures}.get)

    folder, run, found = exported
    images = sorted((folder / "images" / "valid").rglob("*.png"))[:3]
    (tmp_path / "list.csv").write_text("image,study\n" + "".join(f"{image},odd one\n" for image in images))
    of_export = kmura.predict(found.folder.parent, tmp_path / "list.csv")
    of_run = kmura.predict(run / "best.keras", images, threshold="max_f1")
    assert of_export.images["probability"].tolist() == pytest.approx(of_run.images["probability"].tolist(), abs=1e-5)
    assert of_export.studies["study"].tolist() == ["odd one"] and of_export.studies["images"].tolist() == [3]
    shutil.copy(run / "best.keras", tmp_path / "alone.keras")
    alone = kmura.predict(tmp_path / "alone.keras", images, group="none")
    assert alone.contract.calibration == "none" and alone.studies.empty
    logit = alone.images["logit"].to_numpy()
    assert alone.images["probability"].to_numpy() == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-6)
    with pytest.raises(InputError, match="which is fixed in an export"):
        kmura.predict(found.folder, images, threshold="youden")
    with pytest.raises(InputError, match="is not a model"):
        kmura.predict(tmp_path / "nowhere", images)
    with pytest.raises(InputError, match="is not part of a run"):
        kmura.predict(tmp_path / "alone.keras", images, threshold="max_f1")


def test_unreadable_files_are_reported_and_change_the_exit_code(exported, loaded, monkeypatch, capsys, tmp_path):
    odd = '<b>x[red], "y"\n.png'
    (tmp_path / "in").mkdir()
    for name in ("a.png", odd):
        (tmp_path / "in" / name).write_bytes(FILES["gray"])
    (tmp_path / "in" / "bad.png").write_bytes(b"")
    call = ("predict", exported[1], tmp_path / "in", "--group", "folder")
    code, out, errors = kmura_main(monkeypatch, capsys, *call, "--format", "csv")
    assert code == 1 and f"skipped {tmp_path}/in/bad.png: empty file" in errors
    (tmp_path / "rows.csv").write_text(out)
    rows = pd.read_csv(tmp_path / "rows.csv")
    assert sorted(os.path.basename(name) for name in rows["image"]) == sorted(["a.png", odd])
    assert rows["study_images"].tolist() == [2, 2] and rows["study_probability"].nunique() == 1
    code, out, errors = kmura_main(monkeypatch, capsys, *call)
    assert code == 1 and "[red]" in out and "studies: max" in out
    code, *_ = kmura_main(monkeypatch, capsys, *call, "--out", tmp_path / "rows.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert code == 1 and {line["image"] for line in lines} == set(rows["image"])
    code, out, errors = kmura_main(monkeypatch, capsys, "predict", exported[1], tmp_path / "in" / "bad.png", "none.png")
    assert code == 2 and "none of the 2 files can be read" in errors and "No such file" in errors and out == ""
    assert kmura_main(monkeypatch, capsys, "predict", exported[1])[0] == 2
    assert kmura_main(monkeypatch, capsys, "predict", exported[1], tmp_path / "in" / "a.png")[0] == 0


def test_maps_are_drawn_over_the_images(exported, loaded, tmp_path):
    import kmura

    images = sorted((exported[0] / "images" / "valid").rglob("*.png"))[:5]
    found = kmura.predict(exported[1], images, cam=tmp_path / "maps", batch_size=2)
    files = found.images["map"].tolist()
    assert len(set(files)) == 5 and {Image.open(file).size for file in files} == {(32, 32)}
    plain = kmura.predict(exported[1], images)
    assert found.images["probability"].tolist() == pytest.approx(plain.images["probability"].tolist(), abs=1e-5)
    with pytest.raises(InputError, match="would replace the image"):
        kmura.predict(exported[1], images[:1], cam=images[0].parent)


def test_a_model_that_differs_from_the_export_is_detected(exported, tmp_path):
    from kmura.export.parity import parity, refused_unless_equal
    from kmura.runs.run import load_model

    model = load_model(exported[1] / "best.keras")
    bias = model.get_layer("logits").bias
    bias.assign(bias + 1e-4)
    model.save(tmp_path / "other.keras")
    found = parity(exported[2].folder, tmp_path / "other.keras")
    with pytest.raises(InputError, match="the export differs from .*other.keras: logit differs by 0.0001"):
        refused_unless_equal(found, tmp_path / "other.keras")


def test_a_check_detects_changed_files_and_changed_predictions(exported, signatures, tmp_path, monkeypatch, capsys):
    from kmura.export import golden
    from kmura.files import sha256_of

    copy = tmp_path / "served" / "1"
    shutil.copytree(exported[2].folder, copy)
    with monkeypatch.context() as patched:
        patched.setattr(golden, "load_signatures", {copy: signatures}.get)
        assert kmura_main(patched, capsys, "predict", "--check", copy.parent)[0] == 0
    with np.load(copy / "golden.npz") as arrays:
        arrays = dict(arrays)
    arrays["tensor/out/probability"] = arrays["tensor/out/probability"] + np.float32(1e-2)
    np.savez_compressed(copy / "golden.npz", **arrays)
    signature = json.loads((copy / "signature.json").read_text())
    signature["files"]["golden.npz"] = sha256_of(copy / "golden.npz")
    (copy / "signature.json").write_text(json.dumps(signature))
    (copy / "model_card.md").write_text("a better model")
    with monkeypatch.context() as patched:
        patched.setattr(golden, "load_signatures", {copy: signatures}.get)
        first, second = golden.check_export(copy).problems
    assert "model_card.md has changed" in first and "signature tensor differs by 0.01" in second
    with open(copy / "variables" / "variables.data-00000-of-00001", "r+b") as file:
        file.truncate(1000)
    code, _, errors = kmura_main(monkeypatch, capsys, "predict", "--check", copy)
    assert code == 2 and "variables.data-00000-of-00001 has changed" in errors


def test_the_network_can_be_exported_to_onnx(exported, tmp_path):
    import kmura

    pytest.importorskip("tf2onnx")
    found = kmura.export(exported[1], tmp_path / "onnx", format="onnx")
    assert (found.folder / "model.onnx").exists() and "its logit is that of Keras" in found.notes[1]


def test_the_network_can_be_exported_to_litert(exported, tmp_path):
    import kmura

    found = kmura.export(exported[1], tmp_path / "lite", format="litert")
    assert (found.folder / "model.tflite").stat().st_size > 100_000 and "its logit is that of Keras" in found.notes[1]
    with pytest.raises(InputError, match="has the format litert; give a savedmodel export"):
        kmura.predict(found.folder, exported[0] / "images")


def test_the_check_of_an_export_imports_nothing_from_the_current_folder(exported, tmp_path, monkeypatch):
    from kmura.export.parity import parity_in_fresh_process

    _, run, export = exported
    (tmp_path / "random.py").write_text("print('my own experiment')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert parity_in_fresh_process(export.folder, run / "best.keras").logit == export.parity.logit
