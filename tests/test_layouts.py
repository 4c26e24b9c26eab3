"""Source layouts list every image with its area, patient, study, label and split."""

import os
import shutil

import numpy as np
import pytest
from conftest import make_mura_tree, textured, write_mura_csv

from kmura.errors import InputError
from kmura.records.layouts import LAYOUTS, layouts_of_options, listing_of
from kmura.records.layouts.base import Option
from kmura.records.manifest import read_manifest
from kmura.records.writer import build_records


def listed(layout, root, **options):
    """Returns the sources of a folder or file as listed by a registered layout."""
    return listing_of(LAYOUTS[layout], root, options)


@pytest.fixture
def tree(tmp_path):
    return make_mura_tree(tmp_path / "MURA-v1.1", train_patients=6, test_patients=3)


def test_labels_and_studies_are_read_from_the_folders(tree):
    listing = listed("mura", tree)
    assert listing.classes == ("normal", "abnormal") and listing.task == "binary"
    assert len(listing.sources) == len(list(tree.rglob("*.png")))
    for source in listing.sources:
        folder = {"train": "train", "test": "valid"}[source.split]
        assert source.path == f"{folder}/{source.area}/{source.study}/{source.path.rpartition('/')[2]}"
        assert source.label == (int("positive" in source.study),)
        assert source.study.startswith(f"{source.patient}/")
        assert source.bytes == (tree / source.path).stat().st_size


def test_hidden_files_and_files_without_images_are_ignored(tree):
    before = listed("mura", tree).sources
    folder = next(tree.rglob("study*"))
    (folder / "._image1.png").write_bytes(b"\0\5\x16\7")
    (folder / ".DS_Store").write_bytes(b"")
    (folder / "notes.txt").write_text("x")
    assert listed("mura", tree).sources == before


@pytest.mark.parametrize(
    "prefix", ["MURA-v1.1/", "", "/data/sets/MURA-v1.1/", "MURA-v1.1\\", "C:\\sets\\MURA-v1.1\\", "./"]
)
def test_the_csv_lists_give_the_same_sources_as_the_folder_scan(tree, prefix):
    write_mura_csv(tree, prefix)
    if "\\" in prefix:
        for name in ("train_image_paths.csv", "valid_image_paths.csv"):
            (tree / name).write_text((tree / name).read_text().replace("/", "\\"))
    assert set(listed("mura", tree, from_csv=True).sources) == set(listed("mura", tree).sources)


def test_labels_written_as_floats_and_lists_in_utf_16_are_read(tree):
    write_mura_csv(tree)
    for path in tree.glob("*_labeled_studies.csv"):
        path.write_text(path.read_text().replace(",1\n", ",1.0\n").replace(",0\n", ",0.0\n"))
    for path in tree.glob("*.csv"):
        path.write_text(path.read_text(), encoding="utf-16")
    assert set(listed("mura", tree, from_csv=True).sources) == set(listed("mura", tree).sources)


def test_lists_that_cannot_be_read_have_the_fix_that_helps(tree):
    write_mura_csv(tree)
    (tree / "train_labeled_studies.csv").write_bytes(b"\xe9")
    for from_csv in (False, True):
        with pytest.raises(InputError, match="train_labeled_studies.csv cannot be read: .* or remove it: the names"):
            listed("mura", tree, from_csv=from_csv)
    (tree / "train_image_paths.csv").unlink()
    with pytest.raises(InputError, match="train_image_paths.csv is missing; leave out --from-csv"):
        listed("mura", tree, from_csv=True)


def test_a_label_that_contradicts_the_list_is_reported_with_the_study(tree):
    write_mura_csv(tree)
    path = tree / "train_labeled_studies.csv"
    path.write_text(path.read_text().replace("/,1", "/,0", 1))
    with pytest.raises(InputError, match=r"study train/XR_\w+/patient\d+/study\d_positive is abnormal .* label 0"):
        listed("mura", tree)


def test_a_path_outside_the_layout_is_skipped_with_a_reason(tree):
    write_mura_csv(tree)
    with open(tree / "train_image_paths.csv", "a") as file:
        file.write("MURA-v1.1/train/XR_WRIST/image1.png\n")
    skipped = listed("mura", tree, from_csv=True).skipped
    assert [item.file for item in skipped] == ["MURA-v1.1/train/XR_WRIST/image1.png"]


@pytest.mark.parametrize("split", ["train", "valid"])
def test_an_area_without_images_in_a_split_is_an_error(tree, split):
    shutil.rmtree(tree / split / "XR_WRIST")
    with pytest.raises(InputError, match=f"XR_WRIST has no images in .*{split}"):
        listed("mura", tree)


def test_an_unknown_area_is_rejected_with_a_list_of_known_areas(tree):
    with pytest.raises(InputError, match="XR_KNEE is not in .*; there are: XR_ELBOW, XR_WRIST"):
        listed("mura", tree, areas=("XR_KNEE",))


def test_the_parent_folder_of_mura_is_recognised(tree):
    with pytest.raises(InputError, match="give .*MURA-v1.1"):
        listed("mura", tree.parent)


@pytest.fixture
def classes(tmp_path):
    for split, number in (("train", 4), ("test", 2)):
        for name in ("normal", "disease"):
            for index in range(number):
                path = tmp_path / "eyes" / split / name / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                textured(index).save(path)
    return tmp_path / "eyes"


def test_the_given_positive_class_is_used_regardless_of_alphabetical_order(classes):
    for positive, negative in (("disease", "normal"), ("normal", "disease")):
        listing = listed("folders", classes, name="EYES", positive_class=positive)
        assert listing.classes == (negative, positive)
        assert all((source.label == (1,)) == (f"/{positive}/" in source.path) for source in listing.sources)
        assert {source.split for source in listing.sources} == {"train", "test"}


def test_the_order_of_classes_is_never_guessed(classes):
    with pytest.raises(InputError, match="disease, normal: .*--positive-class"):
        listed("folders", classes, name="EYES")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positive_class": "sick"}, "class sick is not in .*; there are: disease, normal"),
        ({"classes": ("normal", "normal")}, "two or more different"),
        ({"classes": ("normal", "disease"), "positive_class": "normal"}, "contradicts"),
    ],
)
def test_wrong_class_names_are_rejected(classes, options, message):
    with pytest.raises(InputError, match=message):
        listed("folders", classes, name="EYES", **options)


def test_val_and_test_folders_keep_their_splits(classes):
    shutil.copytree(classes / "test", classes / "val")
    listing = listed("folders", classes, name="EYES", positive_class="disease")
    assert {source.path.split("/")[0]: source.split for source in listing.sources} == {
        "train": "train",
        "val": "val",
        "test": "test",
    }


def test_records_cannot_be_written_among_the_class_folders(classes):
    with pytest.raises(InputError, match="records lies in .*eyes, whose folders are read as classes"):
        build_records(classes, classes / "records", layout="folders", positive_class="disease")
    assert not (classes / "records").exists()


def test_folders_without_splits_are_all_assigned_to_train(classes):
    listing = listed("folders", classes / "train", name="EYES", classes=("disease", "normal"))
    assert {source.split for source in listing.sources} == {"train"} and listing.splits_given == ("train",)


def test_medmnist_splits_are_kept(medmnist_file):
    listing = listed("medmnist", medmnist_file, name="noise")
    assert [sum(source.split == split for source in listing.sources) for split in ("train", "val", "test")] == [
        30,
        10,
        10,
    ]
    assert listing.task == "binary" and {source.area for source in listing.sources} == {"noise"}


@pytest.mark.parametrize(
    ("labels", "task", "classes"),
    [([[0], [1], [2]], "multiclass", ("0", "1", "2")), ([[0, 1], [1, 1], [0, 0]], "multilabel", ("0", "1"))],
)
def test_medmnist_labels_determine_the_task(tmp_path, labels, task, classes):
    parts = {f"{key}_images": np.zeros((3, 28, 28), np.uint8) for key in ("train", "val", "test")}
    np.savez(tmp_path / "a.npz", **parts, **{f"{key}_labels": np.array(labels) for key in ("train", "val", "test")})
    listing = listed("medmnist", tmp_path / "a.npz", name="a")
    assert (listing.task, listing.classes) == (task, classes)
    assert listing.sources[1].label == tuple(labels[1])


def test_a_medmnist_file_with_a_missing_array_is_reported(tmp_path):
    np.savez(tmp_path / "a.npz", train_images=np.zeros((3, 28, 28), np.uint8))
    with pytest.raises(InputError, match="train_labels"):
        listed("medmnist", tmp_path / "a.npz", name="a")


@pytest.mark.parametrize(
    ("layout", "options", "message"),
    [
        (
            "mura",
            {"positive_class": "a"},
            "--positive-class does not go with --layout mura, .* --areas, --from-csv; leave",
        ),
        ("mura", {"name": "x"}, "--name does not go with --layout mura"),
        ("folders", {"areas": ["XR_HAND"]}, "--areas does not go with --layout folders, which takes --name, .*; leave"),
        ("medmnist", {"from_csv": True}, "--from-csv does not go with --layout medmnist"),
        ("mura", {"clases": ["a"]}, "option clases of build_records is unknown; did you mean classes"),
        ("folders", {"classes": "a,b"}, "classes is 'a,b'; give a list of names"),
        ("folders", {"name": 3}, "name is 3; give a value of type str"),
        ("folders", {"name": "All"}, "area name 'all' stands for every area"),
        ("folders", {"name": "a/b"}, "area name 'a/b' has characters"),
        ("nifti", {}, "layout 'nifti' is unknown; choose one of mura, folders, medmnist"),
    ],
)
def test_options_of_other_layouts_are_rejected(tree, medmnist_file, tmp_path, layout, options, message):
    root = medmnist_file if layout == "medmnist" else tree
    with pytest.raises(InputError, match=message):
        build_records(root, tmp_path / "out", layout=layout, **options)
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_not_utf8_is_skipped_with_a_reason(classes, tmp_path):
    try:
        os.rename(classes / "train" / "normal" / "0.png", os.fsencode(classes / "train" / "normal") + b"/\xff.png")
    except OSError:
        pytest.skip("this file system refuses such names")
    manifest = build_records(classes, tmp_path / "out", layout="folders", positive_class="disease", workers=1)
    assert [(item.file, item.reason) for item in manifest.skipped] == [
        (r"train/normal/\udcff.png", "name is not UTF-8")
    ]
    assert read_manifest(tmp_path / "out") == manifest


def test_empty_options_of_other_layouts_are_ignored(tree):
    options = {"name": None, "positive_class": "", "classes": (), "areas": [], "from_csv": False}
    assert listed("mura", tree, **options) == listed("mura", tree)


def test_a_root_of_the_wrong_type_is_rejected(tree, medmnist_file):
    with pytest.raises(InputError, match=r"is not a file \(.npz\), which --layout medmnist needs"):
        listed("medmnist", tree)
    with pytest.raises(InputError, match="is not a folder, which --layout folders needs"):
        listed("folders", medmnist_file)


def test_layouts_that_share_an_option_agree_on_its_type():
    for declared in layouts_of_options().values():
        assert len({(option.type, option.choices, option.default) for option in declared.values()}) == 1


def test_option_values_are_checked_and_replaced_by_the_default():
    view = Option("view", "which view.", choices=("all", "frontal"), default="all")
    assert view.flag == "--view" and view.value(None) == "all" and view.value("frontal") == "frontal"
    with pytest.raises(InputError, match="--view 'side' is unknown; choose one of all, frontal"):
        view.value("side")
    share = Option("share", "a share.", float, default=0.5)
    assert (share.value(None), share.value(1), share.value(0.0)) == (0.5, 1, 0.0)
    with pytest.raises(InputError, match="share is '1'; give a value of type float"):
        share.value("1")


def passed_over(listing):
    """Returns kind -> (number, first example) of what a listing passes over."""
    return {item.kind: (item.number, item.examples[0]) for item in listing.passed_over}


def write_classes(root, *folders, number=2):
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for index in range(number):
            textured(index).save(root / folder / f"{index}.png")
    return root


def test_class_folders_may_contain_the_splits(tmp_path):
    root = write_classes(tmp_path / "eyes", "ill/Train", "ill/Test", "normal/train", "normal/Test/clinic")
    listing = listed("folders", root, positive_class="ill")
    assert listing.splits_given == ("train", "test") and len(listing.sources) == 8
    for source in listing.sources:
        assert source.label == (int(source.path.startswith("ill/")),)
        assert source.split == source.path.split("/")[1].lower()


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("ill/train", "ill", "normal/train"), "ill/0.png of class ill lies outside of them; move it to a split"),
        (("ill/train", "normal"), "normal/0.png of class normal lies outside"),
        (("ill/test", "normal/test"), "have splits but no train folder; add one"),
        (("ill/train", "ill/test", "normal/train"), "class normal has no images in the test split of"),
        (("train/ill", "train/normal/test"), "train/normal/test is named after two splits, train and test"),
        (("Train/ill", "Train/normal", "train/ill", "train/normal"), "both mean the split train; remove or rename"),
        (("Ill", "ill", "normal"), "class folders of .* 'Ill' and 'ill' differ only in case"),
        (("train/ill", "train/normal", "test/Ill", "test/normal"), "'Ill' and 'ill' differ only in case"),
    ],
)
def test_ambiguous_folders_are_refused(tmp_path, folders, message):
    for folder in folders:
        (tmp_path / "eyes" / folder).mkdir(parents=True, exist_ok=True)
        textured(0).save(tmp_path / "eyes" / folder / "0.png")
    with pytest.raises(InputError, match=message):
        listed("folders", tmp_path / "eyes", classes=("normal", "ill"))


def test_class_names_are_compared_in_one_unicode_form(tmp_path):
    nfc, nfd = "Br\u00fcche", "Bru\u0308che"
    root = write_classes(tmp_path / "xray", f"train/{nfd}", "train/gesund", f"test/{nfc}", "test/gesund")
    for given in (nfc, nfd):
        listing = listed("folders", root, positive_class=given)
        assert listing.classes == ("gesund", nfc) and len(listing.sources) == 8
    assert all((root / source.path).is_file() for source in listing.sources)


def test_images_outside_of_the_classes_are_counted(classes):
    write_classes(classes, "extra", "chest/train/normal", number=3)
    textured(0).save(classes / "train" / "0.png")
    (classes / "train" / "normal" / "notes.txt").write_text("x")
    listing = listed("folders", classes, positive_class="disease")
    assert len(listing.sources) == 12
    assert passed_over(listing) == {
        "images beside the split folders": (6, "chest/train/normal/0.png"),
        "images outside of class folders": (1, "train/0.png"),
        ".txt files": (1, "train/normal/notes.txt"),
    }


def test_images_of_classes_that_are_left_out_are_counted(tmp_path):
    root = write_classes(tmp_path / "eyes", "a", "b", "c", "__MACOSX")
    listing = listed("folders", root, classes=("a", "c"))
    assert len(listing.sources) == 4
    assert passed_over(listing) == {
        "images of classes that are left out": (2, "b/0.png"),
        "hidden folders": (1, "__MACOSX"),
    }


def test_a_link_to_the_folder_of_its_class_adds_no_images_and_no_class(tmp_path):
    root = write_classes(tmp_path / "eyes", "healthy", "ill")
    (root / "ill" / "again").symlink_to(".")
    (root / "current").symlink_to("ill")
    listing = listed("folders", root, positive_class="ill")
    assert len(listing.sources) == 4 and set(passed_over(listing)) == {
        "links in circles",
        "files and folders that are listed already (links)",
    }


def test_mura_counts_what_it_passes_over(tree):
    folder = next(path for path in sorted(tree.rglob("study*")) if path.is_dir())
    (folder / "._image1.png").write_bytes(b"")
    (folder / "notes.txt").write_text("x")
    (tree / "Train" / "XR_HAND").mkdir(parents=True)
    assert passed_over(listed("mura", tree)) == {
        "hidden files": (1, f"{folder.relative_to(tree).as_posix()}/._image1.png"),
        ".txt files": (1, f"{folder.relative_to(tree).as_posix()}/notes.txt"),
        "folders beside train and valid": (1, "Train"),
    }


def test_areas_whose_names_differ_only_in_case_are_refused(tree):
    shutil.copytree(tree / "train" / "XR_WRIST", tree / "train" / "XR_wrist")
    with pytest.raises(InputError, match="areas of .* 'XR_WRIST' and 'XR_wrist' differ only in case"):
        listed("mura", tree)


def test_medmnist_counts_arrays_of_other_names(tmp_path):
    parts = {f"{key}_images": np.zeros((3, 28, 28), np.uint8) for key in ("train", "val", "test", "extra")}
    labels = {f"{key}_labels": np.array([[0], [1], [1]]) for key in ("train", "val", "test")}
    np.savez(tmp_path / "a.npz", **parts, **labels)
    assert passed_over(listed("medmnist", tmp_path / "a.npz")) == {"arrays of other names": (1, "extra_images")}


def test_a_file_that_is_linked_into_two_classes_is_refused(classes):
    (classes / "train" / "normal" / "x.png").symlink_to(classes / "train" / "disease" / "0.png")
    with pytest.raises(
        InputError, match="normal/x.png is a link to .*disease/0.png, so one image would have the classes"
    ):
        listed("folders", classes, positive_class="disease")


def test_a_file_that_is_linked_into_its_own_class_is_listed_once(classes):
    (classes / "test" / "normal" / "x.png").symlink_to(classes / "train" / "normal" / "0.png")
    listing = listed("folders", classes, positive_class="disease")
    assert len(listing.sources) == 12 and listing.passed_over[0].examples == ("test/normal/x.png",)


def test_strict_also_fails_for_files_that_are_skipped_before_they_are_read(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "source" / name).mkdir(parents=True)
        for number in range(12):
            textured(number).save(tmp_path / "source" / name / f"{number}.png")
    raw = os.path.join(os.fsencode(tmp_path / "source" / "a"), b"latin\xe9.png")
    textured(99).save(os.fsdecode(raw))
    options = {"layout": "folders", "positive_class": "b", "workers": 1}
    manifest = build_records(tmp_path / "source", tmp_path / "records", **options)
    assert [item.reason for item in manifest.skipped] == ["name is not UTF-8"]
    with pytest.raises(InputError, match="name is not UTF-8; fix or remove it, or build without --strict"):
        build_records(tmp_path / "source", tmp_path / "other", strict=True, **options)
    assert not (tmp_path / "other").exists()


def test_an_area_that_is_spelled_differently_in_one_split_is_named(tmp_path):
    root = make_mura_tree(tmp_path / "tree", areas=("XR_WRIST",), train_patients=4, test_patients=4)
    (root / "train" / "XR_WRIST").rename(root / "train" / "wrist")
    with pytest.raises(InputError, match="files were skipped, such as train/wrist/.*add or rename them"):
        build_records(root, tmp_path / "records", workers=1)
