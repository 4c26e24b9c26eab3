"""The phase `final`: two phases in one run, one trace, what it leaves behind, and resuming after kills."""

import dataclasses
import json
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_fit import assert_same_bits, final_state

from kmura.config import config_json, load_config

AREA = "XR_WRIST"
SETTINGS = {
    "model.backbone": "densenet_mini",
    "model.weights": "none",
    "model.dropout": 0.3,
    "data.image_size": 32,
    "mix.aug_p": 1.0,
    "mix.until_epoch": 2,
    "cam.from_epoch": 2,
    "cam.erase_every": 2,
    "train.epochs": 4,
    "train.slow_from_epoch": 3,
    "train.learning_rate": 1e-3,
    "train.deterministic": True,
}
TINY = load_config("final", SETTINGS)


@pytest.fixture(scope="module")
def undisturbed(records, tmp_path_factory):
    from kmura.classification.cam_erasing import CamErasingModel
    from kmura.classification.fit import fit
    from kmura.data.dataset import Dataset
    from kmura.explain.overlays import CamOverlays

    runs = tmp_path_factory.mktemp("final")
    seen = {"traces": 0, "knobs": []}
    step = CamErasingModel.train_step

    def counted(self, batch):
        seen["traces"] += 1
        return step(self, batch)

    import keras

    class Knobs(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen["knobs"].append((float(self.model.erasing), float(self.model.optimizer.learning_rate)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CamErasingModel, "train_step", counted)
        overlays = CamOverlays(Dataset(records, AREA, TINY.data), runs / AREA / "final", every=2)
        done = fit(records, area=AREA, phase="final", runs=runs, config=TINY, callbacks=[Knobs(), overlays])
    return done, seen


@pytest.mark.slow
def test_phases_switch_without_retracing(undisturbed):
    _, seen = undisturbed
    assert seen["traces"] == 1
    assert [erasing for erasing, _ in seen["knobs"]] == [0, 1, 1, 1]
    assert [rate for _, rate in seen["knobs"]] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])


@pytest.mark.slow
def test_overlays_are_drawn_at_their_epochs_for_the_same_images(undisturbed):
    folder = undisturbed[0].folder / "cam"
    assert sorted(path.name for path in folder.iterdir()) == ["epoch-00002.png", "epoch-00004.png"]
    sheets = [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]
    assert sheets[0].shape == sheets[1].shape and (sheets[0] != sheets[1]).any()


@pytest.mark.slow
def test_metrics_contain_the_faithfulness_of_the_maps(undisturbed, records):
    from kmura import cam
    from kmura.data.dataset import Dataset
    from kmura.evaluation.evaluate import evaluate
    from kmura.evaluation.scoring import ScoreOptions
    from kmura.runs.run import load_model

    folder = undisturbed[0].folder
    evaluate(folder, options=ScoreOptions(resamples=10))
    found = json.loads((folder / "metrics.json").read_text())["localization_faithfulness"]
    assert set(found) == {"val", "test"}
    # the same, an image at a time, in numpy
    model = load_model(folder / "best.keras")
    engine, drops = cam.CamEngine(model), []
    for batch in Dataset(records, AREA, TINY.data).eval("test", batch_size=1):
        image = batch["image"].numpy()
        sign = 1 if model(image).numpy()[0, 0] >= 0 else -1
        maps = [
            engine(x, lambda logits, sign=sign: 0 * logits + sign)[0].numpy()[0] for x in (image, image[:, :, ::-1])
        ]
        heat = (maps[0] + maps[1][:, ::-1]) / 2
        order = np.argsort(-heat.ravel(), kind="stable")[: round(0.2 * (heat > 0).sum())]
        erased = image.copy()
        erased.reshape(-1)[order] = 0
        p, q = (1 / (1 + np.exp(-model(x).numpy()[0, 0])) for x in (image, erased))
        drops.append(max(0, p - q))
    assert found["test"] == pytest.approx(np.mean(drops), abs=1e-4)


FIT = """
import json, sys
from kmura.config import config_from_tables
from kmura.classification.fit import fit
fit(sys.argv[1], area="XR_WRIST", phase="final", runs=sys.argv[2], config=config_from_tables(json.loads(sys.argv[3])))
"""


@pytest.mark.slow
def test_a_final_run_killed_five_times_is_bit_identical_after_resuming(undisturbed, records, tmp_path):
    command = [sys.executable, "-c", FIT, records, tmp_path, json.dumps(config_json(TINY))]
    rng = random.Random(5)
    folder = tmp_path / AREA / "final"
    for kill in (0, 1, 1, 2, 3):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        wanted = folder / "last" / f"epoch-{kill:05d}.npz" if kill else folder / "run.json"
        while not wanted.exists() and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1) if kill else 2)
        assert process.poll() is None, "the run ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    assert_same_bits(final_state(folder), final_state(undisturbed[0].folder))
    ours, theirs = (
        pd.read_csv(path / "history.csv").drop(columns="seconds") for path in (folder, undisturbed[0].folder)
    )
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)


@pytest.mark.slow
def test_a_resumed_run_keeps_its_initial_settings(undisturbed, tmp_path):
    from kmura.classification.phases import phase_config

    runs = undisturbed[0].folder.parents[1]
    for fresh, rate in ((False, 1e-3), (True, 6.267355e-05)):
        config, source = phase_config("final", AREA, runs, fresh=fresh)
        assert config.train.learning_rate == rate, source


def test_epochs_that_are_never_reached_are_reported():
    from kmura.classification.fit import never_reached

    assert never_reached(TINY) == []
    short = load_config("final", {"train.epochs": 2})
    assert [note.split()[0] for note in never_reached(short)] == ["train.slow_from_epoch", "cam.from_epoch"]


@pytest.mark.slow
def test_a_final_run_without_mixing_and_erasing_is_reported(records, tmp_path, caplog):
    from kmura.classification.fit import fit

    plain = dataclasses.replace(
        TINY,
        mix=dataclasses.replace(TINY.mix, until_epoch=0),
        cam=dataclasses.replace(TINY.cam, from_epoch=None),
        train=dataclasses.replace(TINY.train, epochs=1, slow_from_epoch=None),
    )
    fit(records, area=AREA, phase="final", runs=tmp_path, config=plain)
    assert "mixing and CAM-erasing are both disabled" in caplog.text


@pytest.mark.slow
def test_a_sheet_lost_in_a_kill_is_drawn_after_resuming(undisturbed, records, tmp_path, caplog):
    import keras

    from kmura.data.dataset import Dataset
    from kmura.explain.overlays import CamOverlays

    overlays = CamOverlays(Dataset(records, AREA, TINY.data), tmp_path, every=2)
    model = keras.Model()
    model.classifier = keras.saving.load_model(undisturbed[0].folder / "best.keras")
    overlays.set_model(model)
    overlays.set_params({"epochs": 1})
    overlays.on_train_begin()
    assert "no maps are drawn: they are due every 2 epochs" in caplog.text
    for epoch in (0, 1, 3):
        overlays.on_epoch_begin(epoch)
        assert not (tmp_path / "cam").exists()
    overlays.on_epoch_begin(2)
    assert [path.name for path in (tmp_path / "cam").iterdir()] == ["epoch-00002.png"]


@pytest.mark.slow
def test_erasing_and_mixing_change_the_results(undisturbed, records, tmp_path):
    from kmura.classification.fit import fit

    plain = dataclasses.replace(TINY, cam=dataclasses.replace(TINY.cam, from_epoch=None))
    history = fit(records, area=AREA, phase="final", runs=tmp_path, config=plain).history
    theirs = undisturbed[0].history
    assert history["loss"][0] == pytest.approx(theirs["loss"][0], rel=1e-5)  # nothing is erased in the first epoch
    assert history["loss"][1] != pytest.approx(theirs["loss"][1], rel=1e-5)


def test_boxes_enclose_values_above_half_of_the_maximum():
    from kmura.explain.overlays import box_of, overlay

    heat = np.zeros((8, 10))
    assert box_of(heat) is None
    heat[2:5, 3:4], heat[7, 9] = 4.0, 1.9
    assert box_of(heat) == (3, 2, 4, 5)
    image = np.full((8, 10, 1), 100.0)
    picture = np.asarray(overlay(image, heat)).astype(int)
    assert (picture[0, 0] == 100).all() and (picture[3, 3] == (90, 220, 255)).all()


def test_published_values_are_used_with_both_recipes_of_the_phase(tmp_path):
    from kmura.classification.phases import phase_config, published_values

    published = published_values("XR_SHOULDER")
    for recipe in (None, "final", "final-plus"):
        config, source = phase_config("final", "XR_SHOULDER", tmp_path, recipe)
        assert source == "tuned values published for XR_SHOULDER of MURA"
        assert config.cam.alpha_cam == published["cam.alpha_cam"]
    _, source = phase_config("final", "XR_SHOULDER", tmp_path, "pneumoniamnist_final")
    assert source.startswith("no tuned values"), "the values of another recipe are its own"


def test_the_two_recipes_of_the_phase_differ_in_the_way_of_mixing_and_erasing_alone():
    published, ours = load_config("final"), load_config("final-plus")
    assert (published.mix.per, published.mix.if_zero) == ("batch", "unmixed")
    assert (published.cam.erase_images, published.cam.erase_fill, published.cam.erase_of) == (1, "mean", "all")
    assert published.cam.method == "grad_cam_pp_summed"
    assert (ours.mix.per, ours.mix.if_zero) == ("image", "other")
    assert (ours.cam.erase_images, ours.cam.erase_fill, ours.cam.erase_of) == ("all", "black", "positive")
    assert ours.cam.method == "grad_cam_pp"
    way = {"mix": ("per", "if_zero"), "cam": ("erase_images", "erase_fill", "erase_of", "method")}
    for stage, keys in way.items():
        values = {key: getattr(getattr(ours, stage), key) for key in keys}
        published = dataclasses.replace(published, **{stage: dataclasses.replace(getattr(published, stage), **values)})
    assert published == ours
