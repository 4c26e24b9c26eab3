"""Explanations of models with known correct maps, and of a run end to end."""

import dataclasses
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from command import kmura_main
from PIL import Image
from test_hybrid import SETTINGS

from kmura.errors import InputError
from kmura.explain.boxes import scores as truth
from kmura.explain.faithfulness import STEPS, deletion_insertion, drop, maps_of_chance, masks_of_chance
from kmura.explain.overlays import GAP, SEAM
from kmura.explain.saliency import saliency_maps
from kmura.metrics import patient_means

SIZE = 24


@pytest.fixture(scope="module")
def patch_model():
    """A model whose logit is the mean of the patch [4:12, 4:12] divided by 10, minus 5; other pixels have no effect."""
    inside = np.zeros((SIZE, SIZE, 1), np.float32)
    inside[4:12, 4:12] = 1 / 64 / 10
    image = keras.Input((SIZE, SIZE, 1))
    logit = keras.ops.sum(image * inside, axis=(1, 2)) - 5.0
    return keras.Model(image, logit)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(60, 200, (6, SIZE, SIZE, 1)).astype(np.float32)


def perfect_maps(count):
    maps = np.zeros((count, SIZE, SIZE), np.float32)
    maps[:, 4:12, 4:12] = 1
    return maps


def test_a_perfect_map_is_better_than_random_and_a_wrong_map_is_not(patch_model, images):
    chance = maps_of_chance(6, images.shape[1:3], 3)
    right = deletion_insertion(patch_model, images, perfect_maps(6), chance)
    assert (right.deletion_area < right.random_deletion_area).all()
    wrong = deletion_insertion(patch_model, images, 1 - perfect_maps(6), chance)
    assert (wrong.deletion_area > wrong.random_deletion_area).all()
    assert (wrong.random_deletion == right.random_deletion).all()
    share = 64 / SIZE**2
    assert right.deletion[0] == pytest.approx(right.insertion[-1], abs=1e-6)
    assert right.deletion[right.share > share + 1e-9] == pytest.approx(1 / (1 + np.exp(5)), abs=1e-3)
    assert wrong.deletion[right.share < 1 - share] == pytest.approx(right.deletion[0], abs=1e-6)
    assert len(right.share) == STEPS + 1


def test_the_drop_matches_the_erased_part_and_random_masks_have_equal_size(patch_model, images):
    masks = perfect_maps(6)
    logit = patch_model(images).numpy()[:, 0]
    side = np.where(logit >= 0, 1, -1)
    expected = np.maximum(0, 1 / (1 + np.exp(-side * logit)) - 1 / (1 + np.exp(side * 5)))
    assert drop(patch_model, images, masks) == pytest.approx(expected, abs=1e-5)
    chance = masks_of_chance(maps_of_chance(6, (SIZE, SIZE), 3), masks)
    assert (chance.sum((1, 2)) == 64).all() and (chance != masks).any()
    assert drop(patch_model, images, np.zeros_like(masks)) == pytest.approx(0)


def test_saliency_equals_the_gradient_and_its_noise_is_seeded(patch_model, images):
    maps = saliency_maps(patch_model, images)
    assert maps[:, 4:12, 4:12] == pytest.approx(1 / 640, rel=1e-4)
    assert (maps[perfect_maps(6) == 0] == 0).all()
    state = np.random.get_state()[1].copy()
    smooth = saliency_maps(patch_model, images, smooth=True, seed=3)
    assert (smooth == saliency_maps(patch_model, images, smooth=True, seed=3)).all()
    assert (np.random.get_state()[1] == state).all()
    assert smooth == pytest.approx(maps, rel=1e-3)  # the gradient of a linear model is constant


@pytest.mark.parametrize(
    ("how", "sides", "expected"),
    [
        ("squash", (200, 100), [10, 50, 20, 100]),
        ("pad", (200, 100), [30, 50, 35, 100]),
        ("pad", (100, 100), [10, 50, 20, 100]),
    ],
)
def test_boxes_are_transformed_like_the_image(how, sides, expected):
    assert truth.placed(np.array([[0.1, 0.5, 0.2, 1.0]]), 100, how, sides) == pytest.approx(np.array([expected]))


def test_placed_boxes_follow_the_resized_pixels():
    from kmura.data.resize import axis_weights, resized, taps_needed

    image = np.zeros((90, 40, 1), np.uint8)
    image[30:60, 10:20] = 255
    for how in ("squash", "pad"):
        sides = np.array([[90, 40]])
        places, weights = axis_weights(tf.constant(sides), 64, how, taps_needed(sides, 64, how))
        bright = resized(tf.constant(image), places[0], weights[0]).numpy()[..., 0] > 127
        (box,) = truth.placed(np.array([[10 / 40, 30 / 90, 20 / 40, 60 / 90]]), 64, how, (90, 40))
        rows, columns = np.nonzero(bright)
        found = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        assert box == pytest.approx(found, abs=0.51), how


def test_pointing_and_overlap_match_a_manual_calculation():
    heat = np.zeros((20, 20))
    heat[5:9, 5:9] = 1.0
    boxes = np.array([[0, 0, 4, 4], [5, 5, 9, 13]], float)
    found = truth.box_scores(np.stack([heat, heat * 0]), [boxes, boxes[:1]])
    assert found["pointing"].tolist() == [[1, 0], [0, 0]]
    assert found["overlap"][0] == pytest.approx([16 / 32, 0])
    assert found["iou"][0] == pytest.approx([16 / (16 + 32), 0])
    assert truth.covered(boxes, (20, 20)) == pytest.approx((16 + 32) / 400)


@pytest.mark.slow
def test_the_method_changes_the_maps_of_an_explanation(evaluated_run, tmp_path, monkeypatch, capsys):
    folder, run = evaluated_run
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    maps = {}
    for method in ("grad_cam_pp", "layer_cam"):
        options = ["--cases", "1", "--sample", "3", "--tap", "P3", "--method", method]
        code, _, err = kmura_main(monkeypatch, capsys, "explain", copy, *options)
        assert code == 0, err
        assert json.loads((copy / "explain" / "explain.json").read_text())["method"] == method
        maps[method] = {path.name: path.read_bytes() for path in (copy / "explain").glob("*-cam-0-*.png")}
    assert maps["grad_cam_pp"].keys() == maps["layer_cam"].keys() and maps["layer_cam"]
    assert any(maps["grad_cam_pp"][name] != picture for name, picture in maps["layer_cam"].items())


@pytest.fixture(scope="module")
def explained(tmp_path_factory):
    import kmura
    from kmura.config import RecordsConfig, load_config
    from kmura.phantoms.radiographs import write_phantoms

    folder = tmp_path_factory.mktemp("explained")
    write_phantoms(folder / "images", areas=("XR_WRIST",), train_studies=24, test_studies=12, side=64, workers=1)
    kmura.build_records(folder / "images", folder / "records", options=RecordsConfig(val_fraction=0.3), workers=1)
    settings = {"model.backbone": "densenet_mini", "model.weights": "none", "data.image_size": 32, "train.epochs": 1}
    run = kmura.fit(
        folder / "records", area="XR_WRIST", runs=folder / "runs", config=load_config(None, settings)
    ).folder
    kmura.evaluate(run)
    boxes = folder / "images" / "lesions.csv"
    return run, kmura.explain(run, cases=2, sample=5, boxes=boxes, towards=["normal"]), folder


@pytest.mark.slow
def test_a_run_can_be_explained_end_to_end(explained):
    run, found, _ = explained
    saved = json.loads((run / "explain" / "explain.json").read_text())
    assert saved["counts"] == found.counts and sum(found.counts.values()) > 10
    for case in found.cases:
        assert (case.outcome in ("TP", "FN")) == (case.label == 1)
        assert (case.outcome in ("TP", "FP")) == (case.probability >= 0.5)
        assert {Image.open(run / "explain" / name).size for name in case.files.values()} == {(32, 32)}
        assert (case.box is None) == case.empty
        (normal,) = case.beside
        assert normal.tap == "P5 towards normal"
        of_decision, of_normal = ((run / "explain" / file).read_bytes() for file in (case.files["cam"], normal.file))
        if case.probability < 0.5:
            assert of_normal == of_decision
        elif not (case.empty and normal.empty):
            assert of_normal != of_decision
    for outcome in ("TP", "TN", "FP", "FN"):
        sure = [abs(case.probability - 0.5) for case in found.cases if case.outcome == outcome]
        assert sure == sorted(sure, reverse=True) and len(sure) == min(2, found.counts[outcome])
    where = found.localization
    assert where.images > 0 and 0 < where.chance < 0.5 and where.patients > 1
    assert 0 < where.energy.value < 1 and 0 <= where.iou.value < 1 and 0 < where.random["iou"] < 0.5
    assert found.boxes_of == "positive" and "boxes of" in found.notes[0]
    means = found.curves.means
    assert means["deletion_gain"].value == pytest.approx(means["random_deletion"].value - means["deletion"].value)
    assert not list(run.glob(".explain*"))


@pytest.fixture(scope="module")
def hybrid(explained):
    """A run of a hybrid on the records of `explained`, explained without a selected tap."""
    import kmura
    from kmura.config import load_config
    from kmura.evaluation.scoring import ScoreOptions

    *_, folder = explained
    config = load_config(None, SETTINGS)
    run = kmura.fit(folder / "records", area="XR_WRIST", runs=folder / "hybrid", config=config).folder
    kmura.evaluate(run, options=ScoreOptions(resamples=10))
    return run, kmura.explain(run, cases=1, sample=2, boxes=folder / "images" / "lesions.csv")


@pytest.mark.slow
def test_both_branches_of_a_hybrid_are_shown_side_by_side(hybrid):
    run, found = hybrid
    assert found.tap == "P5" and [worth.tap for worth in found.beside] == ["S4"]
    assert found.beside[0].localization.images == found.localization.images > 0
    assert found.beside[0].curves.means["deletion"] != found.curves.means["deletion"]
    for case in found.cases:
        (other,) = case.beside
        ours, theirs = (Image.open(run / "explain" / file) for file in (case.files["cam"], other.file))
        assert ours.size == theirs.size == (64, 64) and (np.asarray(ours) != np.asarray(theirs)).any()
    sheet = Image.open(run / "explain" / "gallery.png")
    assert sheet.width == min(4, len(found.cases)) * (4 * (2 * 64 + SEAM) + GAP) + GAP


@pytest.mark.slow
def test_one_branch_of_a_hybrid_can_be_selected(hybrid, tmp_path):
    import shutil

    import kmura

    run = shutil.copytree(hybrid[0], tmp_path / "run")
    found = kmura.explain(run, cases=1, sample=2, tap="S4")
    assert found.tap == "S4" and not found.beside
    assert not any(case.beside for case in found.cases)


@pytest.mark.slow
def test_the_report_and_the_table_support_explanations_of_one_or_two_branches(hybrid, tmp_path, capsys):
    from kmura.cli.explanation_tables import show_explanation
    from kmura.report.report import report

    run, found = hybrid
    show_explanation(found)
    shown = capsys.readouterr().out
    assert "Grad-CAM++ of P5" in shown and "Grad-CAM++ of S4" in shown
    page = report([run], tmp_path / "page.html").read_text()
    assert page.count("Grad-CAM++ of ") == 4 and page.count('alt="map of S4') == len(found.cases)
    assert {path.name for path in (tmp_path / "page-figures").glob("*perturbation*.svg")} == {
        "run0-perturbation-P5.svg",
        "run0-perturbation-S4.svg",
    }
    saved = run / "explain" / "explain.json"
    before = saved.read_bytes()
    try:
        earlier = json.loads(before)
        for each in (earlier, *earlier["cases"]):
            del each["beside"]
        saved.write_text(json.dumps(earlier))
        page = report([run], tmp_path / "page.html").read_text()
    finally:
        saved.write_bytes(before)
    assert page.count("Grad-CAM++ of ") == 2 and "map of S4" not in page


@pytest.mark.slow
def test_repeating_an_explanation_gives_the_same_result(explained):
    import kmura

    run, found, folder = explained
    boxes = folder / "images" / "lesions.csv"
    assert kmura.explain(run, cases=2, sample=5, boxes=boxes, towards=["normal"]) == found


@pytest.mark.slow
def test_class_names_may_contain_characters_that_are_invalid_in_file_names(explained, tmp_path):
    import kmura
    from kmura.runs.run import RunFolder, read_run, write_run

    run = shutil.copytree(explained[0], tmp_path / "run")
    write_run(RunFolder(run), dataclasses.replace(read_run(run), classes=("no/..", "no ..")))
    found = kmura.explain(run, cases=1, sample=2, towards=["all"])
    assert [look.tap for look in found.cases[0].beside] == ["P5 towards no/..", "P5 towards no .."]
    files = {look.file for case in found.cases for look in case.beside}
    assert len(files) == 2 * len(found.cases) and all((run / "explain" / file).is_file() for file in files)


@pytest.mark.slow
def test_invalid_calls_do_not_change_the_existing_explanation(explained, monkeypatch):
    import kmura

    run, found, folder = explained
    before = (run / "explain" / "explain.json").read_bytes()
    (folder / "wrong.csv").write_text("image,x0,y0,x1,y1\nnone.png,0,0,.5,.5\n")
    with monkeypatch.context() as patched, pytest.raises(InputError, match="none of the boxes"):
        patched.setattr("kmura.explain.gallery._Work.gallery", lambda *_: pytest.fail("drawn before all is read"))
        kmura.explain(run, boxes=folder / "wrong.csv")
    with pytest.raises(InputError, match="does not match"):
        kmura.explain(run, split="train")
    with pytest.raises(InputError, match="there is no class 'abnorml'; choose one of abnormal, normal"):
        kmura.explain(run, towards=["abnorml"])
    with pytest.raises(InputError, match="no feature map S4 to explain; choose one of P5, P4, P3"):
        kmura.explain(run, tap="S4")
    with open(run / "predictions.csv", "a") as file:
        file.write("\n")
    with pytest.raises(InputError, match="has changed since"):
        kmura.explain(run)
    assert (run / "explain" / "explain.json").read_bytes() == before


def test_a_pointing_game_without_a_miss_has_an_interval():
    found = patient_means({"pointing": np.ones(6), "drop": np.full(6, -0.5)}, list("aabbcc"), seed=0)
    assert (found["pointing"].value, found["pointing"].high, found["pointing"].method) == (1, 1, "wilson")
    assert 0.3 < found["pointing"].low < 0.6  # of three patients
    assert str(found["drop"]) == "-0.500 (no interval)"
