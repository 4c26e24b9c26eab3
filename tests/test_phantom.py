"""Phantoms: a tree of synthetic radiographs with the layout of MURA that is complete, reproducible and not trivial."""

import csv
import hashlib
import itertools
import re

import numpy as np
import pytest
from PIL import Image

from kmura.errors import InputError
from kmura.phantoms import radiographs as phantom
from kmura.phantoms.radiographs import AREAS, KINDS, render_view, study_views, write_phantoms

SMALL = {"areas": ("XR_ELBOW", "XR_WRIST"), "train_studies": 10, "test_studies": 4, "side": 96, "workers": 1}


def digests(root):
    """Returns path -> digest of every file below `root`."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("L"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tree with shortcut markers on all abnormal training images, and its summary; tests must not modify it."""
    root = tmp_path_factory.mktemp("phantoms") / "tree"
    return root, write_phantoms(root, shortcut=1.0, **SMALL)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A tree of many small images of two areas, with half of the studies abnormal; tests must not modify it."""
    root = tmp_path_factory.mktemp("phantoms") / "many"
    write_phantoms(root, areas=("XR_SHOULDER", "XR_HAND"), train_studies=90, test_studies=6, side=32, workers=1)
    return root


def test_a_phantom_tree_has_the_structure_of_mura(made):
    root, summary = made
    images = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    shape = r"(train|valid)/(XR_ELBOW|XR_WRIST)/patient\d{5}/study[12]_(positive|negative)/image[1-4]\.png"
    assert all(re.fullmatch(shape, image) for image in images)
    studies = {image.rpartition("/")[0] for image in images}
    patients = {image.split("/")[2] for image in images}
    assert (summary.images, summary.studies, summary.patients) == (len(images), len(studies), len(patients))
    for area, (split, count) in itertools.product(SMALL["areas"], (("train", 10), ("valid", 4))):
        here = [study for study in studies if study.startswith(f"{split}/{area}/")]
        assert len(here) == count
        assert sum(study.endswith("positive") for study in here) == count // 2


def test_the_lists_contain_exactly_the_images_and_studies_of_the_tree(made):
    root, _ = made
    for split in ("train", "valid"):
        images = {f"MURA-v1.1/{path.relative_to(root).as_posix()}" for path in (root / split).rglob("*.png")}
        assert set((root / f"{split}_image_paths.csv").read_text().splitlines()) == images
        lines = [line.split(",") for line in (root / f"{split}_labeled_studies.csv").read_text().splitlines()]
        assert {study for study, _ in lines} == {image.rpartition("/")[0] + "/" for image in images}
        assert all(("positive" in study) == (label == "1") for study, label in lines)


def test_no_patient_is_in_two_splits_and_a_study_has_one_to_four_views(many):
    split_of, studies_of, views_of = {}, {}, {}
    for path in many.rglob("*.png"):
        split, _, patient, study, _ = path.relative_to(many).parts
        split_of.setdefault(patient, set()).add(split)
        studies_of.setdefault(patient, set()).add(study)
        views_of[patient, study] = views_of.get((patient, study), 0) + 1
    assert all(len(splits) == 1 for splits in split_of.values())
    assert {len(studies) for studies in studies_of.values()} == {1, 2}
    assert set(views_of.values()) == {1, 2, 3, 4}


def test_images_have_the_requested_longest_side_and_varying_shapes(made):
    root, _ = made
    sizes = set()
    for path in root.rglob("*.png"):
        with Image.open(path) as image:
            assert image.mode == "L"
            sizes.add(image.size)
    assert {max(size) for size in sizes} == {96}
    assert len({min(size) for size in sizes}) > 5


def test_a_fraction_of_the_images_is_stored_as_rgb_with_the_same_gray_values(made, tmp_path):
    write_phantoms(tmp_path / "tree", shortcut=1.0, rgb_fraction=0.5, **SMALL)
    modes = []
    for path in (tmp_path / "tree").rglob("*.png"):
        with Image.open(path) as image:
            modes.append(image.mode)
        np.testing.assert_array_equal(pixels(path), pixels(made[0] / path.relative_to(tmp_path / "tree")))
    assert 0.25 < np.mean([mode == "RGB" for mode in modes]) < 0.75


def test_a_single_view_can_be_reproduced_without_the_tree(made):
    root, _ = made
    first = sorted((root / "train" / "XR_ELBOW").glob("patient*/study1_*"))[0]  # the first patient has study 0
    sick = first.name.endswith("positive")
    again = render_view("XR_ELBOW", study=0, view=0, side=96, lesion=sick, shortcut=sick)
    np.testing.assert_array_equal(pixels(first / "image1.png"), again.pixels)
    marked = [row for row in rows(root / "markers.csv") if row["image"] == f"{first.relative_to(root)}/image1.png"]
    assert [row["kind"] for row in marked] == [box.kind for box in again.markers]


def test_two_workers_write_the_same_bytes_as_one(made, tmp_path):
    write_phantoms(tmp_path / "tree", shortcut=1.0, **{**SMALL, "workers": 2})
    assert digests(tmp_path / "tree") == digests(made[0])


def test_another_seed_gives_other_images(tmp_path):
    few = {**SMALL, "areas": ("XR_FINGER",), "train_studies": 2, "test_studies": 1}
    write_phantoms(tmp_path / "a", seed=1, **few)
    write_phantoms(tmp_path / "b", seed=2, **few)
    a, b = (
        {digest for path, digest in digests(tmp_path / name).items() if path.endswith("png")} for name in ("a", "b")
    )
    assert a and b and not a & b


def test_progress_counts_every_study_to_the_end(tmp_path):
    seen = []
    few = {**SMALL, "areas": ("XR_FINGER",), "train_studies": 3, "test_studies": 2}
    write_phantoms(tmp_path / "tree", progress=lambda done, total: seen.append((done, total)), **few)
    assert seen == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize("area", AREAS)
def test_lesions_of_every_area_and_kind_change_pixels_almost_only_inside_their_box(area):
    for kind in KINDS:
        cases = (
            (study, view, sick)
            for study in range(20)
            for view in range(study_views(area, study=study))
            if (sick := render_view(area, study=study, view=view, side=128, lesion=kind)).lesions
        )
        study, view, sick = next(cases)
        healthy = render_view(area, study=study, view=view, side=128)
        assert healthy.lesions == () and healthy.markers == sick.markers
        (box,) = sick.lesions
        height, width = sick.pixels.shape
        assert box.kind == kind and 0 <= box.x0 < box.x1 <= width and 0 <= box.y0 < box.y1 <= height
        change = np.abs(sick.pixels.astype(int) - healthy.pixels)
        inside = change[box.y0 : box.y1, box.x0 : box.x1]
        assert inside.max() > 40 and inside.mean() > 4
        assert inside.mean() > 3 * change.mean()


def test_boxes_lie_within_their_images_and_only_positive_studies_have_lesions(made):
    root, _ = made
    lesions, markers = rows(root / "lesions.csv"), rows(root / "markers.csv")
    assert {row["kind"] for row in lesions} <= set(KINDS)
    assert {row["kind"] for row in markers} == {"side", "shortcut"}
    for row in lesions + markers:
        height, width = pixels(root / row["image"]).shape
        assert 0 <= int(row["x0"]) < int(row["x1"]) <= width and 0 <= int(row["y0"]) < int(row["y1"]) <= height
    sick = {row["image"].rpartition("/")[0] for row in lesions}
    positive = {path.parent.relative_to(root).as_posix() for path in root.rglob("*_positive/*.png")}
    assert sick == positive


def test_every_abnormal_study_shows_its_lesion_and_some_only_in_one_of_several_views(many):
    shown, views = {}, {}
    for path in many.rglob("*_positive/*.png"):
        study = path.parent.relative_to(many).as_posix()
        views[study] = views.get(study, 0) + 1
    for row in rows(many / "lesions.csv"):
        study = row["image"].rpartition("/")[0]
        shown[study] = shown.get(study, 0) + 1
    assert shown.keys() == views.keys()
    hidden = [shown[study] == 1 for study in views if views[study] > 1]
    assert 0.02 < np.mean(hidden) < 0.4


def test_the_shortcut_marker_appears_only_on_abnormal_training_images(made):
    root, _ = made
    marked = {row["image"] for row in rows(root / "markers.csv") if row["kind"] == "shortcut"}
    assert marked == {path.relative_to(root).as_posix() for path in (root / "train").rglob("*_positive/*.png")}


def test_the_shortcut_marker_looks_the_same_at_every_position(made):
    root, _ = made
    looks, places = [], set()
    for row in rows(root / "markers.csv"):
        if row["kind"] == "shortcut":
            x0, y0, x1, y1 = (int(row[edge]) for edge in ("x0", "y0", "x1", "y1"))
            middle = slice((y0 + y1) // 2, (y0 + y1) // 2 + 1), slice(x0, x1)
            looks.append(pixels(root / row["image"])[middle][0])
            places.add((x0, y0))
    assert len(places) > 5
    assert np.ptp(np.stack(looks)[:, 1:-1], axis=0).max() == 0
    assert looks[0].max() == 255 and looks[0].min() < 60


def test_the_shortcut_marker_has_the_requested_frequency(tmp_path):
    write_phantoms(
        tmp_path / "tree", areas=("XR_FINGER",), train_studies=50, test_studies=1, side=32, shortcut=0.4, workers=1
    )
    marked = sum(row["kind"] == "shortcut" for row in rows(tmp_path / "tree" / "markers.csv"))
    abnormal = len(list((tmp_path / "tree" / "train").rglob("*_positive/*.png")))
    assert 0.2 < marked / abnormal < 0.6


@pytest.mark.parametrize("area", ("XR_SHOULDER", "XR_HAND"))
def test_thumbnails_do_not_reveal_the_label(area, many):
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    thumbnails, labels, studies = [], [], []
    for path in sorted((many / "train" / area).rglob("*.png")):
        thumbnail = Image.fromarray(pixels(path)).resize((8, 8), Image.Resampling.BOX)
        thumbnails.append(np.asarray(thumbnail, float).ravel())
        labels.append(path.parent.name.endswith("positive"))
        studies.append(str(path.parent))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    folds = StratifiedGroupKFold(5)
    scores = cross_val_predict(
        model, np.array(thumbnails), labels, groups=studies, cv=folds, method="decision_function"
    )
    assert len(labels) > 200
    assert roc_auc_score(labels, scores) < 0.75


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"areas": ("XR_KNEE",)}, "XR_KNEE.*XR_SHOULDER"),
        ({"areas": ()}, "areas.*XR_SHOULDER"),
        ({"positive_fraction": 1.5}, "positive_fraction is 1.5"),
        ({"shortcut": -0.1}, "shortcut is -0.1"),
        ({"rgb_fraction": float("nan")}, "rgb_fraction is nan"),
        ({"side": 31}, "side is 31.*32"),
        ({"train_studies": 0}, "train_studies is 0"),
        ({"test_studies": 0}, "test_studies is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"workers": 0}, "workers is 0"),
    ],
)
def test_invalid_arguments_are_rejected_in_one_line_before_writing(tmp_path, options, words):
    with pytest.raises(InputError, match=words) as caught:
        write_phantoms(tmp_path / "tree", **{**SMALL, **options})
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_nonempty_folder_is_rejected_and_not_changed(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        write_phantoms(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_existing_empty_folder_is_used(tmp_path):
    out = tmp_path / "tree"
    out.mkdir()
    write_phantoms(out, **{**SMALL, "train_studies": 1, "test_studies": 1})
    assert (out / "lesions.csv").exists() and [path.name for path in tmp_path.iterdir()] == ["tree"]


def test_a_file_at_the_output_path_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="/file: File exists"):
        write_phantoms(tmp_path / "file" / "tree", **SMALL)


@pytest.mark.parametrize("failure", (OSError(28, "No space left on device"), KeyboardInterrupt()))
def test_no_files_are_left_when_writing_fails(tmp_path, monkeypatch, failure):
    class Full:
        written = 0

        def __call__(self, *_):
            Full.written += 1
            if Full.written > 3:
                raise failure
            return original(*_)

    original = phantom._write_study
    monkeypatch.setattr(phantom, "_write_study", Full())
    with pytest.raises(InputError if isinstance(failure, OSError) else KeyboardInterrupt) as caught:
        write_phantoms(tmp_path / "tree", **SMALL)
    assert Full.written == 4 and list(tmp_path.iterdir()) == []
    if isinstance(failure, OSError):
        assert "No space left on device" in str(caught.value) and str(tmp_path / "tree") in str(caught.value)


def test_a_view_that_does_not_exist_in_a_study_is_rejected():
    with pytest.raises(InputError, match="views"):
        render_view("XR_HAND", view=study_views("XR_HAND"), side=32)
