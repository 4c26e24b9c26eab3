"""Patients and studies of class folders, both nestings of splits, order of classes, and names of areas."""

import pytest
from command import kmura_main
from label_files import write_images

import kmura
from kmura.config import RecordsConfig
from kmura.errors import InputError
from kmura.records.layouts import LAYOUTS, listing_of
from kmura.records.manifest import read_manifest


def listed(root, **options):
    return listing_of(LAYOUTS["folders"], root, options)


def test_patients_of_class_folders_come_from_file_names(tmp_path):
    names = [
        f"{label}/{patient:08}_{view:03}.png" for patient in range(6) for view, label in enumerate(("ill", "well"))
    ]
    root = write_images(tmp_path / "chest", *names, "ill/odd.png")
    listing = listed(root, positive_class="ill", patient_pattern=r"(\d{8})_\d{3}\.png$")
    assert listing.has_patients
    for source in listing.sources:
        expected = source.path[-16:-8] if "odd" not in source.path else source.path
        assert (source.patient, source.study) == (expected, source.path)
    counts = {item.kind: (item.number, item.examples) for item in listing.passed_over}
    assert counts == {"images whose path does not match --patient-pattern": (1, ("ill/odd.png",))}
    out = tmp_path / "records"
    options = RecordsConfig(val_fraction=0.3, test_fraction=0.3)
    manifest = kmura.build_records(root, out, layout="folders", positive_class="ill", options=options, workers=1,
                                   patient_pattern=r"(\d{8})_\d{3}\.png$")  # fmt: skip
    assert manifest.has_patients and manifest.leaks == () and len(manifest.areas["chest"]) == 3
    assert sum(counts.patients for counts in manifest.areas["chest"].values()) == 7  # none is in two splits


def test_studies_of_class_folders_come_from_paths(tmp_path):
    root = write_images(tmp_path / "x", "ill/p1-s1-a.png", "ill/p1-s1-b.png", "ill/p2-s1-a.png", "well/p2-s2-a.png")
    options = {"positive_class": "ill", "patient_pattern": "(p[0-9])"}
    listing = listed(root, study_pattern="(s[0-9])", **options)
    assert [source.study for source in listing.sources] == ["p2/s2", "p1/s1", "p1/s1", "p2/s1"]
    with pytest.raises(InputError, match="study p2/- has images of the classes well and ill"):
        listed(root, study_pattern="(-)", **options)
    listing = listed(root, positive_class="ill", study_pattern="(p[0-9]-s[0-9])")
    assert not listing.has_patients and [source.patient for source in listing.sources][:2] == ["p2-s2", "p1-s1"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"\d+", "--patient-pattern .* has 0 groups; put the part of the path that is the patient into parentheses"),
        ("(", "is no regular expression"),
        ("(zzz)", "matches no path, such as well/1.png; correct the pattern"),
    ],
)
def test_bad_patterns_are_refused_in_one_line(tmp_path, monkeypatch, capsys, pattern, message):
    root = write_images(tmp_path / "x", "ill/1.png", "well/1.png")
    with pytest.raises(InputError, match=message):
        listed(root, positive_class="ill", patient_pattern=pattern)
    build = ("build-tfrecords", root, "--out", tmp_path / "out", "--layout", "folders", "--positive-class", "ill")
    code, _, err = kmura_main(monkeypatch, capsys, *build, "--patient-pattern", pattern)
    assert code == 2 and len(err.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_copies_by_annotation_tools_are_said_unless_a_pattern_groups_them(tmp_path):
    copies = [f"ill/wrist_png.rf.{hash * 16}.jpg" for hash in "0a"]
    root = write_images(tmp_path / "x", *copies, "well/1.png", "well/lone.rf.0123456789abcdef.jpg")
    (note,) = listed(root, positive_class="ill").notes
    assert note.startswith("2 files look like copies of 1 images by an annotation tool (such as ill/wrist_png.rf.0")
    listing = listed(root, positive_class="ill", patient_pattern=r"([^/]+)\.rf\.")
    assert not listing.notes and [source.patient for source in listing.sources][-2:] == ["wrist_png"] * 2


@pytest.mark.parametrize(
    ("folders", "note"),
    [
        (("Train/a", "Train/b", "Test/a", "Test/b"), "above the class folders (ROOT/SPLIT/CLASS)"),
        (("a/Train", "b/Train", "a/Test", "b/Test"), "inside the class folders (ROOT/CLASS/SPLIT)"),
    ],
)
def test_both_nestings_are_recognised_and_said(tmp_path, folders, note):
    root = write_images(tmp_path / "x", *(f"{folder}/1.png" for folder in folders))
    listing = listed(root, positive_class="b")
    assert listing.splits_given == ("train", "test")
    assert any(f"{note}: Test is test, Train is train" in text for text in listing.notes)
    for source in listing.sources:
        assert source.split in source.path.lower() and source.label == (int("/b/" in f"/{source.path}"),)


def test_three_classes_are_in_alphabetical_order_and_all_are_counted(tmp_path, monkeypatch, capsys):
    names = ("normal", "Edema", "mass", "10", "9", "cyst")
    images = [f"{name}/{number}.png" for name in names for number in range(4)]
    root = write_images(tmp_path / "x", *images)
    build = ("build-tfrecords", root, "--out", tmp_path / "out", "--layout", "folders", "--workers", 1)
    code, out, err = kmura_main(monkeypatch, capsys, *build, "--test-fraction", 0, "--val-fraction", 0)
    assert code == 0
    assert read_manifest(tmp_path / "out").classes == ("9", "10", "cyst", "Edema", "mass", "normal")
    assert "6 classes in alphabetical order (9, 10, cyst, Edema, mass, normal)" in err
    lines = [line for line in out.splitlines() if "│" in line]
    for name in names:
        assert any(name in line.split() and "4" in line.split() for line in lines)
    listing = listed(root, classes=("normal", "mass", "Edema"))
    assert listing.classes == ("normal", "mass", "Edema") and not listing.notes


def test_two_classes_still_need_a_positive_one(tmp_path):
    root = write_images(tmp_path / "x", "a/1.png", "b/1.png")
    with pytest.raises(InputError, match="the order of labels is never guessed; give --positive-class"):
        listed(root)
    with pytest.raises(InputError, match=r"class healty is not in .*did you mean"):
        listed(write_images(tmp_path / "y", "healthy/1.png", "ill/1.png"), positive_class="healty")


@pytest.mark.parametrize("layout", ["folders", "unlabelled"])
def test_a_folder_name_with_spaces_becomes_an_area_which_is_said(tmp_path, layout):
    root = write_images(tmp_path / "Chest X-rays (2020)", "a/1.png", "b/1.png")
    options = {"positive_class": "a"} if layout == "folders" else {}
    listing = listing_of(LAYOUTS[layout], root, options)
    assert {source.area for source in listing.sources} == {"Chest_X-rays_2020"}
    assert "the area of 'Chest X-rays (2020)' is called Chest_X-rays_2020; --name gives another name" in listing.notes
    with pytest.raises(InputError, match="area name 'a b' has characters"):
        listing_of(LAYOUTS[layout], root, options | {"name": "a b"})


def test_folds_of_class_folders_keep_patients_together(tmp_path):
    names = [f"{'ab'[patient % 2]}/{patient:02}_{view}.png" for patient in range(12) for view in range(3)]
    root = write_images(tmp_path / "x", *names)
    options = {"layout": "folders", "positive_class": "b", "patient_pattern": r"(\d+)_", "folds": 3, "workers": 1}
    manifest = kmura.build_records(root, tmp_path / "out", options=RecordsConfig(test_fraction=0), **options)
    dataset = kmura.Dataset(tmp_path / "out", "x")
    fold_of = {}
    for split in dataset.splits:
        rows = dataset.rows(split)
        for patient, label, fold in zip(rows["patient"], rows["label"], dataset.folds(split), strict=True):
            assert fold_of.setdefault(patient, (fold, label)) == (fold, label)
    assert manifest.folds == 3 and sorted(fold_of.values()) == [(f, label) for f in range(3) for label in (0, 0, 1, 1)]
