"""Shared fixtures: small image trees, their records, and an evaluated run."""

import dataclasses
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kmura.config import RecordsConfig


def pytest_configure(config):
    """Switches TensorFlow's graph optimizer off for the fast tests, whose small graphs it slows down by a seventh."""
    controls_workers = config.getoption("numprocesses", None) and not hasattr(config, "workerinput")
    if "not slow" in config.option.markexpr and not controls_workers:
        import tensorflow as tf

        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


def textured(seed, size=(40, 32)) -> Image.Image:
    """Returns a gray image of size (width, height) that depends on the seed."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, size[::-1]).astype(np.uint8))


def make_mura_tree(root: Path, areas=("XR_ELBOW", "XR_WRIST"), train_patients=20, test_patients=6, views=2) -> Path:
    """Writes a tree with the layout of MURA; every third patient has a second study; labels alternate."""
    seed = 0
    for area_number, area in enumerate(areas):
        for split, patients, first in (("train", train_patients, 0), ("valid", test_patients, 10_000)):
            for patient in range(patients):
                for study in range(1, 3 if patient % 3 == 0 else 2):
                    outcome = "positive" if (patient + study) % 2 else "negative"
                    number = first + 100 * area_number + patient
                    folder = root / split / area / f"patient{number:05d}" / f"study{study}_{outcome}"
                    folder.mkdir(parents=True)
                    for view in range(1, views + 1):
                        seed += 1
                        textured(seed, (30 + seed % 15, 36)).save(folder / f"image{view}.png")
    return root


def write_mura_csv(root: Path, prefix="MURA-v1.1/") -> None:
    """Writes the two types of lists that MURA contains, for the images of a tree."""
    for split in ("train", "valid"):
        images = sorted(path.relative_to(root).as_posix() for path in (root / split).rglob("image*.png"))
        (root / f"{split}_image_paths.csv").write_text("".join(f"{prefix}{path}\n" for path in images))
        studies = sorted({path.rpartition("/")[0] for path in images})
        lines = [f"{prefix}{study}/,{int(study.endswith('positive'))}\n" for study in studies]
        (root / f"{split}_labeled_studies.csv").write_text("".join(lines))


SMALL_SHARDS = RecordsConfig(records_per_shard=8, val_fraction=0.25)


@pytest.fixture(scope="session")
def mura_root(tmp_path_factory) -> Path:
    """A tree of noise images with the layout of MURA; tests must not modify it."""
    return make_mura_tree(tmp_path_factory.mktemp("mura") / "tree")


@pytest.fixture(scope="session")
def records(mura_root, tmp_path_factory) -> Path:
    """Records of `mura_root`; tests must not modify them."""
    from kmura.records.writer import build_records

    out = tmp_path_factory.mktemp("records") / "records"
    build_records(mura_root, out, options=SMALL_SHARDS, workers=1)
    return out


@pytest.fixture
def medmnist_file(tmp_path) -> Path:
    """A binary MedMNIST file of noise: 30 train, 10 val and 10 test images with 28 pixels per side."""
    rng = np.random.default_rng(0)
    arrays = {}
    for key, number in (("train", 30), ("val", 10), ("test", 10)):
        arrays[f"{key}_images"] = rng.integers(0, 256, (number, 28, 28)).astype(np.uint8)
        arrays[f"{key}_labels"] = (np.arange(number)[:, None] % 2).astype(np.uint8)
    path = tmp_path / "noisemnist.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="session")
def evaluated_run(tmp_path_factory):
    """(folder, run): the evaluated run (max pooling) of a random network on phantoms, and its parent folder.

    The folder also contains `images` and `records`; tests must not modify any of them.
    """
    import kmura
    from kmura.config import load_config
    from kmura.evaluation.scoring import ScoreOptions
    from kmura.phantoms.radiographs import write_phantoms
    from kmura.runs.run import RunFolder, write_run
    from kmura.training.claim import describe

    folder = tmp_path_factory.mktemp("evaluated")
    write_phantoms(folder / "images", areas=("XR_WRIST",), train_studies=24, test_studies=12, side=64, workers=1)
    options = RecordsConfig(val_fraction=0.3, max_side=56)
    kmura.build_records(folder / "images", folder / "records", options=options, workers=1)
    settings = {"model.backbone": "densenet_mini", "model.weights": "none", "data.image_size": 32}
    run = folder / "runs" / "XR_WRIST" / "baseline"
    run.mkdir(parents=True)
    config = load_config(None, settings)
    dataset = kmura.Dataset(folder / "records", "XR_WRIST", config.data)
    description = describe(dataset, "baseline", config, kind="classification", command="a test")
    write_run(RunFolder(run), dataclasses.replace(description, finished=True))
    model = kmura.build_model(backbone="densenet_mini", weights="none", image_size=32, seed=3)
    logits = model.get_layer("logits")
    logits.kernel.assign(logits.kernel * 40)  # with random weights, all logits are nearly equal
    model.save(run / "best.keras")
    kmura.evaluate(run, options=ScoreOptions(pooling="max", resamples=50))
    return folder, run


@pytest.fixture(scope="session")
def small_export(evaluated_run, tmp_path_factory):
    """The folder `wrist` with version 1, an export of `evaluated_run` at max_f1; tests must not modify it.

    The comparison in a fresh process is left out, which takes most of the time of an export; test_export.py has it.
    """
    import kmura
    from kmura.export import bundle
    from kmura.export.parity import Parity

    out = tmp_path_factory.mktemp("served") / "wrist"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bundle, "parity_in_fresh_process", lambda *_: Parity(0, 0, 0, 0, 0, 0))
        kmura.export(evaluated_run[1], out, threshold="max_f1", warmup=False)
    return out


@pytest.fixture(scope="session")
def fold_runs(evaluated_run, tmp_path_factory):
    """The evaluated runs of three folds (random networks) of the records of `evaluated_run`, pooled; their RUNS folder.

    `RUNS/fold0/XR_WRIST/baseline`, ... and `RUNS/folds/XR_WRIST/baseline`; tests must not modify them.
    """
    import kmura
    from kmura.evaluation.scoring import ScoreOptions

    runs = tmp_path_factory.mktemp("folds") / "runs"
    model = kmura.build_model(backbone="densenet_mini", weights="none", image_size=32, seed=3)
    paths = [untrained_fold(runs, evaluated_run[0] / "records", number, model=model) for number in range(3)]
    kmura.evaluate(paths, options=ScoreOptions(resamples=50))
    return runs


def untrained_fold(
    runs: Path, records: Path, fold: int, *, folds=3, area="XR_WRIST", phase="baseline", model=None, **settings
) -> Path:
    """Writes a finished run of a fold with a random network, without evaluating it; returns its folder.

    The weights of `model`, if given, are used except for random ones of the last layer.
    """
    import kmura
    from kmura.config import load_config
    from kmura.runs.run import RunFolder, write_run
    from kmura.training.claim import describe

    given = {"model.backbone": "densenet_mini", "model.weights": "none", "data.image_size": 32} | settings
    config = load_config(None, given | {"data.folds": folds, "data.fold": fold})
    dataset = kmura.Dataset(records, area, config.data)
    run = runs / f"fold{fold}" / area / phase
    run.mkdir(parents=True)
    description = describe(dataset, phase, config, kind="classification", command="a test")
    write_run(RunFolder(run), dataclasses.replace(description, finished=True))
    model = model or kmura.build_model(
        backbone="densenet_mini",
        weights="none",
        image_size=config.data.image_size,
        num_classes=dataset.labels.outputs,
    )
    kernel = model.get_layer("logits").kernel
    # large weights, since all logits of a random network are nearly equal
    kernel.assign(np.random.default_rng(fold).normal(size=kernel.shape, scale=5))
    model.save(run / "best.keras")
    return run


@pytest.fixture
def sketched(monkeypatch):
    """Leaves the drawing of figures out, which takes most of the time of a report."""
    from kmura.report import class_figures, comparison_section, eda_figures, figures

    def sketch(name, title, draw, **options):
        return figures.Picture(name, title, '<svg aria-label="none"></svg>', b"")

    for module in (figures, class_figures, eda_figures, comparison_section):
        monkeypatch.setattr(module, "drawn", sketch)
