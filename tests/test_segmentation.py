"""From scans with label maps to a network of each plane, their fusion, and a segmented scan."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import kmura_main

import kmura
from kmura.config import RecordsConfig, SegmentationConfig
from kmura.config.segmentation import SlicesConfig
from kmura.data.volume_dataset import VolumeDataset
from kmura.errors import InputError
from kmura.metrics import overlap
from kmura.phantoms.ct_heads import write_heads
from kmura.report.report import report
from kmura.runs.run import Run
from kmura.segmentation import volumes
from kmura.segmentation.fit_planes import fit_planes, with_chosen_sides
from kmura.segmentation.regions import REGIONS
from kmura.segmentation.segment import region_table, segment
from kmura.segmentation.sides import midsagittal_plane
from kmura.segmentation.targets import pairs, targets_of, with_sides
from kmura.segmentation.volume_records import build_volumes
from kmura.segmentation.volume_scores import SegmentationEvaluation, VolumeScores, read_evaluation

sitk = pytest.importorskip("SimpleITK")
TINY = {
    "model.widths": [8, 16],
    "model.dropout": 0.0,
    "train.epochs": 2,
    "train.batch_size": 8,
    "train.deterministic": True,
    "data.slices": 3,
}


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads") / "heads"
    write_heads(folder, heads=5, spacing=8.0, seed=1)
    return folder


@pytest.fixture(scope="module")
def ct(heads, tmp_path_factory):
    """Records of five heads; tests must not modify them."""
    out = tmp_path_factory.mktemp("ct") / "records"
    build_volumes(heads, out, options=RecordsConfig(val_fraction=0.25, test_fraction=0.2), workers=1)
    return out


@pytest.fixture(scope="module")
def trained(ct, tmp_path_factory):
    """RUNS/AREA with the runs of three planes and their fusion, evaluated; tests must not modify it."""
    runs = tmp_path_factory.mktemp("ct-runs")
    planes = [result.folder for result in fit_planes(ct, plane="all", runs=runs, settings=TINY)]
    for folder in (*planes, planes[0].parent / "fused"):
        kmura.evaluate(folder)
    return planes[0].parent


# records


def test_the_command_makes_the_heads_of_the_library(heads, tmp_path, monkeypatch, capsys):
    command = ["segment", "demo-data", tmp_path / "heads", "--heads", 2, "--spacing", 8, "--seed", 1]
    code, out, err = kmura_main(monkeypatch, capsys, *command)
    assert (code, out) == (
        0,
        f"{tmp_path / 'heads'}: 2 heads; build records with: kmura segment build {tmp_path / 'heads'}\n",
    )
    assert {path.name: path.read_bytes() for path in (tmp_path / "heads").iterdir()} == {
        path.name: path.read_bytes() for path in heads.iterdir() if path.name[0] in "12"
    }
    code, _, err = kmura_main(monkeypatch, capsys, *command)
    assert code == 2 and err.count("\n") == 1, "not twice"


def test_a_volume_comes_back_from_its_records_on_the_grid_of_its_labels(heads, ct):
    dataset = VolumeDataset(ct, "CT_HEAD", SlicesConfig())
    assert dataset.classes == REGIONS and sorted(dataset.split_of) == ["1", "2", "3", "4", "5"]
    assert sorted(dataset.split_of.values()) == ["test", "train", "train", "train", "val"]
    for name, volume in dataset.volumes.items():
        labels = volumes.read_labels(heads / f"{name}-seg.nii.gz", REGIONS)
        np.testing.assert_array_equal(volume.mask, volumes.array_of(labels))
        scan = volumes.read_volume(heads / f"{name}.nii.gz")
        transform = volumes.read_transform(heads / f"{name}.txt")
        hounsfield = volumes.array_of(volumes.aligned(scan, transform, labels))
        np.testing.assert_array_equal(volume.gray, volumes.to_gray(hounsfield, -124, 130))
        assert volume.facts.sources == (f"{name}.nii.gz", f"{name}.txt", f"{name}-seg.nii.gz")
    assert dataset.preparation() == {"window": [-124.0, 130.0], "spacing": [8.0, 8.0, 8.0]}


@pytest.mark.slow
def test_records_do_not_depend_on_the_workers_and_list_the_regions_of_a_slice(heads, ct, tmp_path):
    build_volumes(heads, tmp_path / "two", options=RecordsConfig(val_fraction=0.25, test_fraction=0.2), workers=2)
    for path in sorted(ct.rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(ct)).read_bytes(), path.name
    dataset = VolumeDataset(ct, "CT_HEAD", SlicesConfig())
    index = dataset.index("test")
    (volume,) = dataset.of_split("test")
    for path, row in zip(index.keys["image"], index.labels, strict=True):
        present = np.unique(volume.mask[int(path.rpartition("/")[2])])
        assert np.flatnonzero(row).tolist() == [number - 1 for number in present if number]
    assert not dataset.manifest.remarks and not dataset.manifest.leaks


def test_a_flipped_header_and_other_axes_give_the_same_records(heads, ct, tmp_path):
    """Sides are those of the patient in every order of the voxels in the file."""
    for code in ("RAS", "LAS", "SPR"):
        folder = tmp_path / code
        folder.mkdir()
        for name in ("1.nii.gz", "1-seg.nii.gz"):
            sitk.WriteImage(sitk.DICOMOrient(volumes.read_volume(heads / name), code), str(folder / name))
        shutil.copy(heads / "1.txt", folder)
        build_volumes(
            folder, tmp_path / f"{code}-records", options=RecordsConfig(val_fraction=0.0, test_fraction=0.0), workers=1
        )
        found = VolumeDataset(tmp_path / f"{code}-records", "CT_HEAD").volumes["1"]
        expected = VolumeDataset(ct, "CT_HEAD").volumes["1"]
        np.testing.assert_array_equal(found.mask, expected.mask)
        assert np.abs(found.gray.astype(int) - expected.gray).max() <= 1


def test_cases_that_cannot_be_used_are_refused_in_one_line(heads, tmp_path, monkeypatch, capsys):
    def refused(*parts, change=None, options=()):
        folder = tmp_path / "cases"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in ("1.nii.gz", "1.txt", "1-seg.nii.gz"):
            shutil.copy(heads / name, folder)
        if change:
            change(folder)
        code, out, err = kmura_main(
            monkeypatch, capsys, "segment", "build", folder, "--out", tmp_path / "out", "--workers", "1", *options
        )
        assert (code, out, err.count("\n")) == (2, "", 1) and all(part in err for part in parts), err
        assert not (tmp_path / "out" / "manifest.json").exists()

    def with_labels(change):
        def write(folder):
            labels = sitk.ReadImage(str(folder / "1-seg.nii.gz"))
            sitk.WriteImage(change(labels), str(folder / "1-seg.nii.gz"))

        return write

    # the label map has another grid than the scan, whose transform is missing
    finer = with_labels(lambda labels: sitk.Expand(labels, (2, 2, 2), sitk.sitkNearestNeighbor))

    def without_transform(folder):
        finer(folder)
        (folder / "1.txt").unlink()

    refused("1-seg.nii.gz has another grid than", "there is no transform", change=without_transform)
    refused(
        "the label 21; the 20 classes are numbered",
        change=with_labels(lambda labels: labels + sitk.Cast(labels > 19, labels.GetPixelID())),
    )
    refused("no label, only background", change=with_labels(lambda labels: labels * 0))
    refused(
        "labels that are not whole numbers", change=with_labels(lambda labels: sitk.Cast(labels, sitk.sitkFloat32) / 2)
    )
    refused("has no label map 1-seg.nii.gz", change=lambda folder: (folder / "1-seg.nii.gz").unlink())
    refused("contains no scans that match", change=lambda folder: (folder / "1.nii.gz").unlink())
    refused("--images is 'x.nii'; it must contain {id} once", options=("--images", "x.nii"))
    refused("is not an ITK transform", change=lambda folder: (folder / "1.txt").write_text("x"))
    refused("there are 2 classes; give 1 to 255 different names", options=("--classes", "a,a"))
    refused("the window is [50, 20]", options=("--low", "50", "--high", "20"))

    def pairs_of(text):
        return lambda folder: (tmp_path / "pairs.csv").write_text(text)

    given = ("--pairs", tmp_path / "pairs.csv")
    pairs_of("id,image\n1,1.nii.gz\n")(None)
    refused("lacks the column labels", options=given)
    pairs_of("id,image,labels\n1,1.nii.gz,none.nii.gz\n")(None)
    refused("line 2", "none.nii.gz does not exist", options=given)
    pairs_of("id,image,labels,split\n1,1.nii.gz,1-seg.nii.gz,dev\n")(None)
    refused("split 'dev'; give train, val, test", options=given)


@pytest.mark.slow
def test_the_command_and_the_library_build_the_same_records(heads, tmp_path, monkeypatch, capsys):
    build_volumes(heads, tmp_path / "library")
    assert kmura_main(monkeypatch, capsys, "segment", "build", heads, "--out", tmp_path / "command")[0] == 0
    first, second = (tmp_path / name / "manifest.json" for name in ("library", "command"))
    assert first.read_bytes() == second.read_bytes()


def test_pairs_of_a_table_may_state_their_split(heads, tmp_path):
    rows = [f"h{n},{n}.nii.gz,{n}-seg.nii.gz,{n}.txt,{split}" for n, split in ((1, "train"), (2, "val"), (3, "test"))]
    (tmp_path / "pairs.csv").write_text("id,image,labels,transform,split\n" + "\n".join(rows) + "\n")
    build_volumes(heads, tmp_path / "records", pairs=str(tmp_path / "pairs.csv"), name="HEADS", workers=1)
    dataset = VolumeDataset(tmp_path / "records", "HEADS")
    assert dataset.split_of == {"h1": "train", "h2": "val", "h3": "test"}


def test_folds_hold_every_volume_out_once(ct):
    for folds in (3, 5):
        held_out, val = [], []
        for fold in range(folds):
            dataset = VolumeDataset(ct, "CT_HEAD", SlicesConfig(folds=folds, fold=fold))
            held_out += dataset.names("test")
            val += dataset.names("val")
            assert len(dataset.names("train")) + len(dataset.names("val")) + len(dataset.names("test")) == 5
        assert sorted(held_out) == sorted(val) == ["1", "2", "3", "4", "5"]
    with pytest.raises(InputError, match="data.folds is 6, but area CT_HEAD .* has 5 volumes"):
        VolumeDataset(ct, "CT_HEAD", SlicesConfig(folds=6))
    with pytest.raises(InputError, match="data.fold is 3; allowed is 0 to 2"):
        SlicesConfig(folds=3, fold=3)


# sides


@pytest.mark.parametrize(
    ("plane", "sides", "names", "chosen"),
    [
        ("sagittal", "auto", REGIONS, "merged"),
        ("sagittal", "auto", ("core", "penumbra"), "direct"),
        ("sagittal", "coordinate", REGIONS, "coordinate"),
        ("axial", "auto", REGIONS, "direct"),
        ("axial", "merged", REGIONS, "merged"),
    ],
)
def test_sides_are_merged_where_slices_cannot_tell_them(plane, sides, names, chosen):
    config = SegmentationConfig(data=SlicesConfig(plane=plane, sides=sides))
    assert with_chosen_sides(config, names).data == SlicesConfig(plane=plane, sides=chosen)


def test_classes_without_sides_and_back():
    names = ("a_left", "b_left", "middle", "a_right", "b_right")
    assert pairs(names) == [(1, 4), (2, 5)]
    assert targets_of(names, merged=False).mirrored.tolist() == [0, 4, 5, 3, 1, 2]
    merged = targets_of(names, merged=True)
    assert merged.names == ("a", "b", "middle") and merged.table.tolist() == [0, 1, 2, 3, 1, 2]
    found = with_sides(np.array([0, 1, 2, 3, 0, 1, 2, 3]), np.array([5, 5, 0, 5, -5, -5, -5, -5]), names)
    assert found.tolist() == [0, 1, 2, 3, 0, 4, 5, 3]
    with pytest.raises(InputError, match="no two classes are the sides"):
        targets_of(("a", "b"), merged=True)


@pytest.mark.parametrize("angles", [(0.0, 0.0, 0.0), (0.0, 15.0, -20.0), (20.0, -10.0, 12.0)])
def test_the_mid_sagittal_plane_of_a_tilted_head_is_found(heads, angles):
    labels, scan = (volumes.read_volume(heads / name) for name in ("2-seg.nii.gz", "2.nii.gz"))
    straight = volumes.aligned(scan, volumes.read_transform(heads / "2.txt"), labels)
    tilt = sitk.Euler3DTransform((0.0, 0.0, 0.0), *np.radians(angles).tolist(), (6.0, 3.0, -4.0))
    head = sitk.Resample(straight, straight, tilt.GetInverse(), sitk.sitkLinear, -1000.0)
    plane = midsagittal_plane(head)
    matrix, offset = volumes.matrix_of(tilt)
    true_normal = matrix @ (1, 0, 0)
    assert np.degrees(np.arccos(abs(true_normal @ plane.normal))) < 4
    # deep regions lie within 30 mm of the centre
    assert abs((offset - plane.point) @ np.array(plane.normal)) < 3
    assert plane.normal[0] > 0, "towards the left"


# runs


@pytest.mark.slow
def test_a_run_is_validated_on_whole_volumes(trained):
    run = Run(trained / "axial")
    history = run.history()
    assert {"val_loss", "val_dice", "val_iou", "val_dice_caudate_left", "val_dice_M3_right"} <= {*history}
    assert (run.kind, run.area, run.phase) == ("segmentation", "CT_HEAD", "axial")
    model = run.model()
    assert model(np.zeros((2, 25, 25, 3), np.float32)).shape == (2, 25, 25, 21)
    evaluation, table = read_evaluation(run)
    best = history[history["best"]].iloc[-1]
    val = evaluation.confusion("val")
    assert np.nanmean(overlap.dice(val)[1:]) == pytest.approx(best["val_dice"], abs=1e-6)
    (volume,) = run.dataset().of_split("val")
    assert val.sum() == volume.mask.size and set(table["split"]) == {"val", "test"}
    assert table.groupby("volume").size().eq(20).all()


@pytest.mark.slow
def test_the_fusion_of_the_planes_is_a_run(trained, tmp_path):
    run = Run(trained / "fused")
    assert run.kind == "fusion" and not run.folder.best.exists()
    weights = json.loads((run.path / "fusion.json").read_text())["planes"]
    assert sorted(weights) == ["axial", "coronal", "sagittal"] and sum(weights.values()) == pytest.approx(1)
    evaluation, _ = read_evaluation(run)
    assert list(evaluation.fusions) == ["mean", "majority", "weighted"]
    (volume,) = run.dataset().of_split("test")
    for fusion in evaluation.fusions:
        assert evaluation.confusion("test", fusion).sum() == volume.mask.size
    page = report([trained / "axial", trained / "fused"], tmp_path / "page.html").read_text()
    assert page.count("<caption>Segmentation</caption>") == 1 and "majority" in page and "caudate_left" in page


@pytest.mark.slow
def test_an_export_takes_slices_in_hounsfield_units(trained, tmp_path):
    import tensorflow as tf

    exported = kmura.export(trained / "coronal", tmp_path / "served")
    assert exported.folder == tmp_path / "served" / "1" and exported.difference < 1e-5
    signature = json.loads((exported.folder / "signature.json").read_text())
    assert signature["classes"] == ["background", *REGIONS] and signature["window_hu"] == [-124, 130]
    assert signature["plane"] == "coronal" and signature["spacing_mm"] == [8, 8, 8]
    answer = tf.saved_model.load(exported.folder).signatures["serving_default"]
    slices = np.random.default_rng(0).uniform(-300, 300, (2, 20, 31, 3)).astype(np.float32)
    found = answer(slices=tf.constant(slices))
    gray = np.clip(np.round((slices + 124) * (255 / 254)), 0, 255)
    expected = tf.nn.softmax(Run(trained / "coronal").model()(gray, training=False))
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)
    np.testing.assert_array_equal(found["classes"], np.argmax(found["probabilities"], axis=-1))
    with pytest.raises(InputError, match="format 'onnx' is unknown"):
        kmura.export(trained / "coronal", tmp_path / "served", format="onnx")


@pytest.mark.slow
def test_planes_and_fusions_are_compared_over_the_same_volumes(trained, tmp_path, monkeypatch, capsys):
    found = kmura.compare([trained / "axial", trained / "fused"])
    assert list(found.scores) == ["axial", "fused (mean)", "fused (majority)", "fused (weighted)"]
    evaluation, table = read_evaluation(Run(trained / "axial"))
    dice = np.nanmean(overlap.dice(evaluation.confusion("test"))[1:])
    assert found.scores["axial"]["dice"] == pytest.approx(dice)
    by_volume = table[table["split"] == "test"].groupby("volume")["dice"].mean().mean()
    mean, _ = read_evaluation(Run(trained / "fused"))
    other = np.nanmean(overlap.dice(mean.confusion("test", "mean"))[1:])
    first = found.differences[0]
    assert (first.score, first.first, first.second) == ("dice", "axial", "fused (mean)")
    assert first.value == pytest.approx(other - by_volume) and first.interval is None
    code, out, _ = kmura_main(
        monkeypatch, capsys, "compare", trained / "axial", trained / "fused", "--out", tmp_path / "c"
    )
    assert code == 0 and "too few volumes for an interval" in out and json.loads((tmp_path / "c").read_text())
    with pytest.raises(InputError, match="was already given by another run of axial"):
        kmura.compare([trained / "axial", shutil.copytree(trained / "axial", tmp_path / "again")])


@pytest.mark.parametrize("sides", [pytest.param("coordinate", marks=pytest.mark.slow), "merged"])
def test_sagittal_slices_learn_sides_from_the_plane(ct, tmp_path, sides):
    (run,) = fit_planes(ct, plane="sagittal", runs=tmp_path, settings=TINY | {"data.sides": sides, "train.epochs": 1})
    evaluation = kmura.evaluate(run.folder)
    assert evaluation.confusion("test").shape == (21, 21)
    names = Run(run.folder).history().columns
    assert ("val_dice_caudate" in names) == (sides == "merged")
    if sides == "merged":
        (volume,) = VolumeDataset(ct, "CT_HEAD").of_split("test")
        wrong = overlap.side_errors(overlap.confusion(volume.mask, with_sides(
            targets_of(REGIONS, merged=True).table[volume.mask], volume.left_of_middle(), REGIONS
        ), 21), pairs(REGIONS))  # fmt: skip
        assert wrong < 0.02, "the plane itself assigns the sides of the true regions"


@pytest.mark.slow
def test_a_scan_is_segmented_in_its_own_space_and_in_the_aligned_one(trained, heads, tmp_path, monkeypatch, capsys):
    command = ["segment", "predict", trained, heads / "1.nii.gz", "--transform", heads / "1.txt"]
    names = {"--out": "own.nii.gz", "--aligned": "aligned.nii.gz", "--table": "t.csv", "--probability": "p.nii.gz"}
    files = [part for flag, name in names.items() for part in (flag, tmp_path / name)]
    code, out, err = kmura_main(monkeypatch, capsys, *command, *files)
    assert code == 0 and "mean of axial, coronal, sagittal" in out, err
    scan, own = volumes.read_volume(heads / "1.nii.gz"), volumes.read_volume(tmp_path / "own.nii.gz")
    assert volumes.same_grid(scan, own)
    probability = volumes.array_of(volumes.read_volume(tmp_path / "p.nii.gz"))
    assert probability.min() >= 0 and probability.max() <= 1
    table = pd.read_csv(tmp_path / "t.csv")
    assert table["region"].tolist() == list(REGIONS)
    assert table["voxels"].sum() == (volumes.array_of(volumes.read_volume(tmp_path / "aligned.nii.gz")) > 0).sum()
    before = {name: (tmp_path / name).read_bytes() for name in names.values()}
    assert kmura_main(monkeypatch, capsys, *command, *files)[0] == 0
    assert before == {name: (tmp_path / name).read_bytes() for name in names.values()}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    for fusion in ("majority", "weighted"):
        assert segment(trained, heads / "1.nii.gz", transform=heads / "1.txt", fusion=fusion).fusion == fusion


@pytest.mark.slow
def test_what_cannot_be_segmented_is_said_in_one_line(trained, heads, tmp_path, monkeypatch, capsys):
    scan = heads / "1.nii.gz"

    def refused(*arguments):
        code, out, err = kmura_main(monkeypatch, capsys, "segment", "predict", *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        return err

    assert "nothing would be written" in refused(trained, scan)
    out = ("--out", tmp_path / "o.nii.gz")
    assert "is neither a run of kmura segment fit nor" in refused(tmp_path, scan, *out)
    assert "does not exist" in refused(trained, tmp_path / "none.nii.gz", *out)
    assert "there is no folder" in refused(trained, scan, "--out", tmp_path / "none" / "o.nii.gz")
    assert "fusion.json does not exist" in refused(trained / "axial", scan, "--fusion", "weighted", *out)
    code, _, err = kmura_main(monkeypatch, capsys, "predict", trained / "axial", scan)
    assert code == 2 and "have no classifier; segment a scan with kmura segment predict" in err
    code, _, err = kmura_main(monkeypatch, capsys, "export", trained / "fused", "--out", tmp_path / "served")
    assert code == 2 and "have no classifier" in err
    assert list(tmp_path.iterdir()) == []


def test_the_table_of_regions_is_volume_gray_value_and_asymmetry():
    numbers = np.zeros((4, 4, 4), np.uint8)
    numbers[0, 0], numbers[1, 1, :2] = 1, 11
    hounsfield = np.zeros((4, 4, 4))
    hounsfield[0, 0], hounsfield[1, 1, :2] = (10, 20, 30, 40), (5, 15)
    table = region_table(numbers, hounsfield, (2.0, 2.0, 5.0), REGIONS).set_index("region")
    left, right = table.loc["caudate_left"], table.loc["caudate_right"]
    assert (left.voxels, left.ml, left.mean_hu, left.asymmetry_hu) == (4, 0.08, 25, 15)
    assert (right.voxels, right.mean_hu, right.sd_hu, right.asymmetry_hu) == (2, 10, 5, 15)
    assert np.isnan(table.loc["M1_left"].mean_hu)


@pytest.mark.slow
def test_a_run_that_was_killed_within_an_epoch_gives_the_same_bits(ct, trained, tmp_path):
    code = (
        "import sys, os, signal, keras\n"
        "from kmura.segmentation.fit_planes import fit_planes\n"
        "import test_segmentation\n"
        "class Kill(keras.callbacks.Callback):\n"
        "    def on_train_batch_end(self, batch, logs=None):\n"
        "        if self.params['epochs'] and self.model.optimizer.iterations.numpy() > 1.5 * self.params['steps']:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "list(fit_planes(sys.argv[1], plane='axial', runs=sys.argv[2], settings=test_segmentation.TINY,\n"
        "                callbacks_for=lambda run, config: [Kill()]))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", code, ct, tmp_path], env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(Run(tmp_path / "CT_HEAD" / "axial").history()) == 1
    (resumed,) = fit_planes(ct, plane="axial", runs=tmp_path, settings=TINY)
    expected = Run(trained / "axial")
    for ours, theirs in zip(Run(resumed.folder).model().weights, expected.model().weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    columns = ["loss", "val_loss", "val_dice"]
    pd.testing.assert_frame_equal(resumed.history[columns], expected.history()[columns])


@pytest.mark.slow
def test_a_prediction_that_was_killed_leaves_no_result_and_gives_the_same_bits_again(trained, heads, tmp_path):
    scan, whole = heads / "1.nii.gz", tmp_path / "whole"
    whole.mkdir()
    names = {"out": "own.nii.gz", "table_out": "regions.csv"}
    segment(trained, scan, transform=heads / "1.txt", **{key: whole / name for key, name in names.items()})
    killed = tmp_path / "killed"
    killed.mkdir()
    for name in names.values():
        (killed / name).write_bytes(b"of before")
    code = (
        "import os, signal, sys\n"
        "from kmura.segmentation import segment as module\n"
        "of_plane = module.plane_file\n"
        "def plane_file(predictor, *others):\n"
        "    if predictor.config.plane == 'coronal':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return of_plane(predictor, *others)\n"
        "module.plane_file = plane_file\n"
        "model, scan, transform, out, table = sys.argv[1:]\n"
        "module.segment(model, scan, transform=transform, out=out, table_out=table)\n"
    )
    targets = [killed / name for name in names.values()]
    command = [sys.executable, "-c", code, trained, scan, heads / "1.txt", *targets]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert all(path.read_bytes() == b"of before" for path in targets)
    assert [path.name for path in killed.iterdir() if path.is_dir()] == [".own.nii.gz.planes"]
    segment(trained, scan, transform=heads / "1.txt", **{key: killed / name for key, name in names.items()})
    assert {path.name: path.read_bytes() for path in killed.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }


def test_the_mean_overlap_has_an_interval_with_five_volumes():
    rng = np.random.default_rng(0)
    matrices = rng.integers(1, 50, (6, 3, 3)) + 200 * np.eye(3, dtype=int)
    nothing = np.full(2, np.nan)
    volumes_of = [VolumeScores(str(number), "test", matrix, nothing, nothing) for number, matrix in enumerate(matrices)]

    def evaluation(count):
        return SegmentationEvaluation("r", "CT", "axial", ("a", "b"), {"single": tuple(volumes_of[:count])}, "")

    few, enough = evaluation(4).means("test"), evaluation(6).means("test")
    assert np.isnan(few["dice"].low) and few["dice"].value == pytest.approx(
        overlap.dice(matrices[:4].sum(axis=0))[1:].mean()
    )
    assert enough["iou"].low < enough["iou"].value < enough["iou"].high
    assert enough["iou"].value == pytest.approx(overlap.iou(matrices.sum(axis=0))[1:].mean())
    drawn = np.random.default_rng(1).integers(0, 6, (4000, 6))
    of_draws = [overlap.iou(matrices[rows].sum(axis=0))[1:].mean() for rows in drawn]
    expected = np.percentile(of_draws, [2.5, 97.5])
    np.testing.assert_allclose([enough["iou"].low, enough["iou"].high], expected, atol=0.003)
    assert str(enough["iou"]) in evaluation(6).facts["test"]
