"""`fit --dry-run`: the plan agrees with what `fit` then does; it trains, writes and downloads nothing."""

import dataclasses
import shutil
import socket

import pytest
from command import kmura_main

import kmura
from kmura.classification.fit_plan import plan_areas
from kmura.errors import InputError
from kmura.runs.run import RunFolder

SETTINGS = {
    "model.backbone": "densenet_mini",
    "model.weights": "none",
    "data.image_size": 32,
    "train.epochs": 2,
    "train.batch_size": 8,
}


def planned(records, runs, area="XR_WRIST", **options):
    (plan,) = plan_areas(records, area=area, runs=runs, settings=SETTINGS | options.pop("settings", {}), **options)
    return plan


@pytest.fixture(scope="module")
def trained(records, tmp_path_factory):
    """(folder of the runs, plan made before): two epochs of XR_WRIST."""
    runs = tmp_path_factory.mktemp("runs")
    plan = planned(records, runs)
    kmura.fit(records, area="XR_WRIST", runs=runs, settings=SETTINGS)
    return runs, plan


def test_the_plan_of_a_new_run_agrees_with_the_run(records, trained):
    import keras

    runs, plan = trained
    assert (plan.area, plan.phase, plan.folder) == ("XR_WRIST", "baseline", runs / "XR_WRIST" / "baseline")
    assert not plan.continues and plan.epochs_done == 0 and plan.epochs == 2
    counts = kmura.records.manifest.read_manifest(records).areas["XR_WRIST"]
    assert plan.images == {split: of.images for split, of in counts.items()}
    assert plan.studies == {split: of.studies for split, of in counts.items()}
    assert plan.labelled == plan.images["train"]
    model = keras.saving.load_model(RunFolder(plan.folder).best)
    assert plan.parameters == model.count_params()
    assert plan.trainable == sum(int(variable.numpy().size) for variable in model.trainable_variables)
    written = sum(path.stat().st_size for path in plan.folder.rglob("*") if path.is_file())
    assert written <= plan.disk_bytes <= 3 * written
    assert plan.weights == ("densenet_mini: random",)


def test_steps_of_the_plan_are_those_of_the_optimizer(records, trained):
    import json

    import numpy as np

    _, plan = trained
    state = json.loads((RunFolder(plan.folder).last / "state.json").read_text())
    position = next(i for i, name in enumerate(state["variables"]) if name.endswith("/iteration"))
    arrays = np.load(RunFolder(plan.folder).last / state["arrays"])
    assert plan.total_steps == plan.steps_per_epoch * 2 == int(arrays[f"{position:05d}"])


def test_a_run_that_continues_has_the_epochs_that_are_left(records, trained):
    runs, _ = trained
    plan = planned(records, runs, settings={"train.epochs": 5})
    assert plan.continues and (plan.epochs_done, plan.epochs) == (2, 3)
    assert plan.weights == ("from the checkpoint of epoch 2",)
    assert planned(records, runs).epochs == 0
    fresh = planned(records, runs, fresh=True)
    assert not fresh.continues and fresh.epochs == 2


def test_what_fit_refuses_is_refused(records, trained, tmp_path):
    runs, _ = trained
    with pytest.raises(InputError, match=r"train.seed: 0 -> 5.*--fresh"):
        planned(records, runs, settings={"train.seed": 5})
    with pytest.raises(InputError, match="XR_KNEE is not in"):
        planned(records, runs, area="XR_KNEE")
    with pytest.raises(InputError, match="this file or folder does not exist"):
        planned(records, tmp_path, settings={"model.weights": str(tmp_path / "gone.keras")})
    with pytest.raises(InputError, match="densenet_mini has no ImageNet weights"):
        planned(records, tmp_path, settings={"model.weights": "imagenet"})
    copy = shutil.copytree(records, tmp_path / "copy")
    next(copy.glob("XR_WRIST/train-*.tfrecord")).unlink()
    with pytest.raises(InputError, match="is missing"):
        planned(copy, tmp_path)


def test_local_weights_are_loaded_and_refused_if_they_do_not_fit(records, trained, tmp_path):
    runs, plan = trained
    best = str(RunFolder(plan.folder).best)
    (sentence,) = planned(records, tmp_path, settings={"model.weights": best}).weights
    assert sentence == f"densenet_mini: {best}, loaded without an error"
    with pytest.raises(InputError, match="they belong to backbone densenet_mini, but the model has resnet18_small"):
        planned(records, tmp_path, settings={"model.weights": best, "model.backbone": "resnet18_small"})


@pytest.mark.parametrize("preset", ["hf://keras/densenet_121_imagenet", "densenet_121_imagenet"])
def test_weights_that_must_be_downloaded_are_named_and_not_fetched(records, tmp_path, monkeypatch, preset):
    def no_network(*arguments):
        raise AssertionError("a dry run uses no network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kaggle"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (sentence,) = planned(records, tmp_path, settings={"model.weights": preset}).weights
    assert preset in sentence and "will be downloaded" in sentence


def test_the_memory_estimate_grows_with_batch_and_image_and_the_cache_is_exact(records, tmp_path, monkeypatch):
    from kmura.classification import fit_plan as module

    small = planned(records, tmp_path)
    larger = planned(records, tmp_path, settings={"train.batch_size": 64})
    wider = planned(records, tmp_path, settings={"data.image_size": 128})
    assert small.training_bytes < larger.training_bytes and small.training_bytes < wider.training_bytes
    mixed = planned(records, tmp_path, settings={"train.batch_size": 64, "train.precision": "mixed_bfloat16"})
    assert mixed.training_bytes < larger.training_bytes
    assert small.cache_bytes == {split: small.images[split] * 32 * 32 for split in ("train", "val")}
    assert small.cache == {"train": "memory", "val": "memory"}
    off = planned(records, tmp_path, settings={"data.cache": "off"})
    assert off.cache == {"train": "off", "val": "off"}
    disk = planned(records, tmp_path, settings={"data.cache": "disk"})
    assert disk.disk_bytes == off.disk_bytes + sum(disk.cache_bytes.values())
    monkeypatch.setattr(module, "available_memory", lambda: 10_000)
    tight = planned(records, tmp_path)
    assert tight.cache == {"train": "off", "val": "off"} and "reduce train.batch_size" in tight.notes[-1]


def test_the_estimate_of_a_known_network_follows_the_formula():
    import os

    import keras

    from kmura.classification.fit_plan import KEPT_SHARE, PROCESS_BYTES, training_memory

    image = keras.Input((8, 8, 1))
    model = keras.Model(image, keras.layers.Conv2D(2, 1, use_bias=False)(image))
    frozen = keras.models.clone_model(model)
    frozen.trainable = False
    kept, ahead = KEPT_SHARE * 8 * 8 * 2 * 4 * 4, (os.cpu_count() + 2) * 4 * 64 * 4 * 2
    assert training_memory(model, 4, "float32") == round(PROCESS_BYTES + 16 * 2 + kept + ahead)
    assert training_memory(frozen, 4, "float32") == round(PROCESS_BYTES + 4 * 2 + kept + ahead)


def test_too_little_disk_and_a_folder_that_cannot_be_made_are_refused(records, tmp_path, monkeypatch):
    from kmura.classification import fit_plan as module

    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to .*file is not a folder"):
        planned(records, tmp_path / "file" / "runs")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**5))
    with pytest.raises(InputError, match="of disk space, 0 MB are free"):
        planned(records, tmp_path)


def test_a_search_is_planned_by_its_trials(records, tmp_path):
    settings = {"tune.trials": 4, "train.epochs": 2}
    plan = planned(records, tmp_path, phase="tune", settings=settings)
    assert plan.trials == 4 and plan.total_steps == 4 * 2 * plan.steps_per_epoch
    assert plan.folder == tmp_path / "XR_WRIST" / "tune"
    settings = {"tune.tuner": "hyperband", "train.epochs": 3}
    plan = planned(records, tmp_path, phase="tune", settings=settings)
    assert plan.trials is None and plan.total_steps is None
    with pytest.raises(InputError, match="hyperband has nothing to stop"):
        planned(records, tmp_path, phase="tune", settings=settings | {"train.epochs": 2})


def test_areas_share_one_model(records, tmp_path, monkeypatch):
    from kmura.classification import fit_plan as module

    built = []
    build = module.build_model
    monkeypatch.setattr(module, "build_model", lambda **options: built.append(1) or build(**options))
    plans = plan_areas(records, area="all", runs=tmp_path, settings=SETTINGS)
    assert [plan.area for plan in plans] == ["XR_ELBOW", "XR_WRIST"] and len(built) == 1


def test_the_command_prints_the_plans_and_writes_nothing(records, tmp_path, monkeypatch, capsys):
    before = sorted(records.rglob("*"))
    flags = ("--backbone", "densenet_mini", "--weights", "none", "--image-size", 32, "--epochs", 2)
    runs = tmp_path / "runs"
    command = ("fit", "--area", "all", "--records", records, "--runs", runs, *flags, "--dry-run")
    code, out, _ = kmura_main(monkeypatch, capsys, *command)
    assert code == 0
    plan = planned(records, runs, settings={"train.batch_size": 16})
    for text in (
        "XR_ELBOW, baseline",
        f"{runs}/XR_WRIST/baseline: a new run",
        f"{plan.steps_per_epoch} per epoch (batches of 16) x 2 epochs = {plan.total_steps}",
        f"{plan.parameters:,}, {plan.trainable:,} of them trainable",
        "densenet_mini: random",
        "kept in memory",
        "dry run: nothing was trained or written",
    ):
        assert text in " ".join(out.replace("│", " ").split()), text
    assert not runs.exists() and sorted(records.rglob("*")) == before


def test_sizes_are_printed_for_people():
    from kmura.cli.plan_table import size_text

    assert size_text(12_300_000) == "12 MB" and size_text(3_400_000_000) == "3.4 GB"


def test_a_plan_cannot_be_changed(trained):
    with pytest.raises(dataclasses.FrozenInstanceError):
        trained[1].area = "XR_ELBOW"
