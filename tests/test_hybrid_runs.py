"""Runs of the hybrid: phases, search and overlays."""

import json
import logging

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from test_fit import assert_same_bits, final_state
from test_hybrid import AREA, SETTINGS, mini

from kmura.config import load_config
from kmura.data.dataset import Dataset
from kmura.errors import InputError
from kmura.explain.overlays import GAP, SEAM
from kmura.models.build import build_model


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"model.fusion": "sum"}, "no fusion 'sum'"),
        ({"model.swin": "swin_tinny"}, "no Swin transformer 'swin_tinny'"),
        ({"model.backbone": "densenet12"}, "no backbone 'densenet12'"),
        ({"data.image_size": 96}, "image_size 96 is not supported by swin_mini"),
        ({"model.fusion": "gated", "model.fusion_width": 30}, "fusion width is 30; a multiple of 4"),
    ],
)
def test_an_invalid_hybrid_is_rejected_before_training(records, tmp_path, caplog, setting, message):
    from kmura.classification.fit import fit, fit_areas

    options = {"phase": "hybrid", "runs": tmp_path / "runs", "settings": SETTINGS | setting}
    with caplog.at_level(logging.INFO, logger="kmura"):
        for train in (lambda: fit(records, area=AREA, **options), lambda: list(fit_areas(records, **options))):
            with pytest.raises(InputError, match=message):
                train()
    assert not caplog.text and not (tmp_path / "runs").exists()


@pytest.fixture(scope="module")
def trained(records, tmp_path_factory):
    """An uninterrupted run, the weights of its backbone after each epoch, and the number of traces of its step."""
    from kmura.classification.cam_erasing import CamErasingModel
    from kmura.classification.fit import fit

    seen, traces, step = [], [], CamErasingModel.train_step

    class Weights(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append({variable.path: variable.numpy() for variable in self.model.classifier.backbone.weights})

    def counted(self, batch):
        traces.append(1)
        return step(self, batch)

    runs = tmp_path_factory.mktemp("hybrid")
    config = load_config("hybrid", SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CamErasingModel, "train_step", counted)
        run = fit(records, area=AREA, phase="hybrid", runs=runs, config=config, callbacks=[Weights()])
    return run, seen, len(traces), config


@pytest.mark.slow
def test_phase_2_trains_only_the_last_block_of_densenet(trained):
    run, (first, second), traces, config = trained
    with_head = build_model(architecture="hybrid", backbone="densenet_mini", weights="none", swin="swin_mini",
                            swin_weights="none", image_size=64, seed=0)  # fmt: skip
    start = {variable.path: variable.numpy() for variable in with_head.backbone.weights}
    assert all((start[name] == first[name]).all() for name in start)  # frozen, including statistics
    for name in start:
        in_last = name.startswith(("stack4_", "bn/"))
        assert (first[name] != second[name]).any() == in_last, name
    assert traces == 2  # one per phase


@pytest.mark.slow
def test_a_run_stopped_between_its_phases_is_bit_identical_after_resuming(trained, records, tmp_path):
    from kmura.classification.fit import fit

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                raise KeyboardInterrupt

    undisturbed, *_, config = trained
    options = {"area": AREA, "phase": "hybrid", "runs": tmp_path, "config": config}
    with pytest.raises(KeyboardInterrupt):
        fit(records, callbacks=[Stop()], **options)
    again = fit(records, **options)
    assert_same_bits(final_state(again.folder), final_state(undisturbed.folder))


@pytest.mark.slow
def test_a_search_of_the_hybrid_has_its_own_space_and_folder(records, tmp_path):
    from kmura.classification.phases import HYBRID_KEYS, OPTIONAL_KEYS, phase_config
    from kmura.classification.search import tune

    with pytest.raises(InputError, match="slow_factor is searched but never used in the 1 epochs"):
        tune(records, area=AREA, runs=tmp_path, config=load_config("tune_hybrid", SETTINGS | {"train.epochs": 1}))
    small = {
        "train.epochs": 2,
        "tune.trials": 2,
        "tune.schedule": ["cosine"],
        "tune.startup_trials": 2,
        "tune.prune": False,
    }
    config = load_config("tune_hybrid", SETTINGS | small)
    done = tune(records, area=AREA, runs=tmp_path, config=config)
    assert done.folder == tmp_path / AREA / "tune-hybrid" and (done.folder / "best.keras").exists()
    best = json.loads((done.folder / "best.json").read_text())["values"]
    assert tuple(best) == HYBRID_KEYS + OPTIONAL_KEYS
    assert 0 <= best["model.dropout"] <= 0.5 and best["train.schedule"] == "cosine"
    used, source = phase_config("hybrid", AREA, tmp_path)
    assert (
        used.train.learning_rate == best["train.learning_rate"]
        and used.train.schedule == "cosine"
        and "tune-hybrid" in source
    )
    assert phase_config("final", AREA, tmp_path)[0].train.learning_rate != best["train.learning_rate"]
    assert phase_config("tune", AREA, tmp_path, settings={"model.architecture": "hybrid"})[0].tune.trials == 25


@pytest.mark.parametrize(
    ("epochs", "frozen", "every", "expected"),
    [
        (12, 6, None, [1, 5, 8, 10, 12]),
        (4, 1, None, [1, 2, 4]),
        (12, "none", None, [1, 5, 10]),
        (7, 1, 3, [3, 6]),
        (1, 1, None, [1]),
    ],
)
def test_maps_are_drawn_after_epoch_1_every_5_epochs_and_every_2_once_the_backbone_is_unfrozen(
    records, epochs, frozen, every, expected
):
    from kmura.explain.overlays import overlays_of

    config = load_config("hybrid", SETTINGS | {"train.epochs": epochs, "train.frozen_until_epoch": frozen})
    found = overlays_of(Dataset(records, AREA, config.data), "run", config, every=every)
    assert len(found) == (expected != [])
    assert [epoch for each in found for epoch in range(1, epochs + 1) if each.due(epoch)] == expected


def test_a_classifier_draws_maps_only_if_requested(records):
    from kmura.explain.overlays import overlays_of

    config = load_config("final", {"train.epochs": 8})
    assert overlays_of(Dataset(records, AREA, config.data), "run", config) == []
    (one,) = overlays_of(Dataset(records, AREA, config.data), "run", config, every=3)
    assert [epoch for epoch in range(1, 9) if one.due(epoch)] == [3, 6]


@pytest.mark.slow
def test_the_late_sheets_of_a_hybrid_show_both_branches(records, tmp_path, caplog):
    from kmura.explain.overlays import overlays_of

    config = load_config("hybrid", SETTINGS | {"train.epochs": 4})
    (drawn,) = overlays_of(Dataset(records, AREA, config.data), tmp_path, config)
    trainer = keras.Model()
    trainer.classifier = mini()
    drawn.set_model(trainer)
    drawn.set_params({"epochs": 4})
    drawn.on_train_begin()
    assert not caplog.text
    for epoch in range(4):
        drawn.on_epoch_end(epoch)
    assert sorted(path.name for path in (tmp_path / "cam").iterdir()) == [
        f"epoch-0000{epoch}.png" for epoch in (1, 2, 4)
    ]
    sheet = np.asarray(Image.open(tmp_path / "cam" / "epoch-00002.png"))
    side, seam = 4 * 64, 4 * SEAM  # a sheet enlarges small images
    assert sheet.shape[1] == 4 * (2 * side + seam + GAP) + GAP
    ours, theirs = (sheet[GAP : GAP + side, start : start + side] for start in (GAP, GAP + side + seam))
    assert (ours != theirs).any()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"model.fusion": "gated"}, "model.fusion requires model.architecture=hybrid"),
        ({"model.fusion_width": 64}, "model.fusion_width requires model.architecture=hybrid"),
        ({"model.architecture": "hybrid", "model.fusion_width": 64}, "requires fusion gated or attention"),
        ({"model.architecture": "hybrid", "model.head": "other"}, "model.head requires model.architecture=classifier"),
        ({"cam.tap": "S4"}, "cam.tap S4 requires a hybrid"),
        ({"train.unfreeze": "half"}, "train.unfreeze is 'half'; choose all, none, last_block, last_N_conv"),
        ({"train.unfreeze": "none", "train.frozen_until_epoch": 2}, "has no effect"),
        ({"train.frozen_until_epoch": 0}, "1 or more"),
        ({"train.slow_factor": 0.0}, "above 0"),
    ],
)
def test_settings_out_of_range_are_rejected(setting, message):
    with pytest.raises(InputError, match=message):
        load_config("baseline", setting)


def test_phases_reject_other_architectures(tmp_path):
    from kmura.classification.phases import phase_config

    for phase, architecture in (("hybrid", "classifier"), ("final", "hybrid")):
        with pytest.raises(InputError, match=f"phase {phase} takes its values from a search of another architecture"):
            phase_config(phase, AREA, tmp_path, settings={"model.architecture": architecture})


@pytest.mark.slow
def test_densenet121_with_swin_tiny_can_be_trained_resumed_evaluated_and_explained_at_224_pixels(tmp_path):
    import kmura
    from kmura.config import RecordsConfig
    from kmura.phantoms.radiographs import write_phantoms

    write_phantoms(tmp_path / "images", areas=(AREA,), train_studies=16, test_studies=6, side=224, workers=1)
    kmura.build_records(tmp_path / "images", tmp_path / "records", options=RecordsConfig(val_fraction=0.3), workers=1)
    settings = {
        "model.weights": "none",
        "model.swin": "swin_tiny",
        "model.swin_weights": "none",
        "train.batch_size": 8,
        "train.frozen_until_epoch": 1,
        "train.slow_from_epoch": 2,
    }
    options = {"area": AREA, "phase": "hybrid", "runs": tmp_path / "runs"}

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise KeyboardInterrupt

    config = load_config("hybrid", settings | {"train.epochs": 2})
    with pytest.raises(KeyboardInterrupt):
        kmura.fit(tmp_path / "records", config=config, callbacks=[Stop()], **options)
    run = kmura.fit(tmp_path / "records", config=config, **options)
    assert run.history["epoch"].tolist() == [1, 2] and np.isfinite(run.history["loss"]).all()
    scores = kmura.evaluate(run.folder).scores.splits["test"]
    assert scores["study"].studies == 6
    found = kmura.explain(run.folder, cases=1, sample=2, boxes=tmp_path / "images" / "lesions.csv")
    assert found.localization.images > 0 and found.cases


@pytest.mark.slow
def test_densenet121_with_swin_base_trains_a_few_steps_at_224_pixels():
    from kmura.classification.cam_erasing import CamErasingModel

    model = build_model(architecture="hybrid", weights="none", swin_weights="none")
    trainer = CamErasingModel(model, can_erase=False)
    trainer.compile(keras.optimizers.Adam(1e-4), keras.losses.BinaryCrossentropy(from_logits=True), jit_compile=False)
    rng = np.random.default_rng(0)
    pixels, labels = rng.uniform(0, 255, (4, 224, 224, 1)).astype(np.float32), np.array([[0.0], [1.0], [0.0], [1.0]])
    batch = {"image": pixels, "label": labels, "mixed_image": pixels, "mixed_label": labels}
    before = model.swin.stages[3].blocks[0].attn.qkv.kernel.numpy()
    losses = trainer.fit(tf.data.Dataset.from_tensors(batch), epochs=3, verbose=0).history["loss"]
    assert np.isfinite(losses).all() and (before != model.swin.stages[3].blocks[0].attn.qkv.kernel.numpy()).any()
