"""The layout csv: labels, patients, studies, splits, folds and metadata from CSV files."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from command import kmura_main
from conftest import textured
from label_files import write_csv, write_images

import kmura
from kmura.config import RecordsConfig
from kmura.data.dataset import Dataset
from kmura.errors import InputError
from kmura.records import label_rows, label_table
from kmura.records.image_lookup import ImageLookup
from kmura.records.layouts import LAYOUTS, listing_of
from kmura.records.manifest import read_manifest
from kmura.records.row_filter import RowFilter
from kmura.records.verify import inspect_records

NAMES = [f"p{patient}/i{view}.png" for patient in range(4) for view in range(2)]
ROWS = ("image,label,patient,sex", *(f"{name},{int(name[1]) % 2},{name[1]},{'MF'[int(name[1]) % 2]}" for name in NAMES))


@pytest.fixture
def root(tmp_path):
    """Four patients with two images each, of which 1 and 3 are ill."""
    return write_images(tmp_path / "chest", *NAMES)


def listed(root, *rows, **options):
    """The listing of a folder with a table of these rows in it."""
    if rows:
        write_csv(root / "labels.csv", *rows)
    options = {"csv": ("labels.csv",), "image_column": "image"} | options
    return listing_of(LAYOUTS["csv"], root, options)


def labels_of(listing):
    return {source.path: source.label for source in listing.sources}


def counted(items):
    return {item.kind: item.number for item in items}


def test_a_column_of_0_and_1_is_binary_and_named_after_the_column(root):
    listing = listed(root, *ROWS, label_column="label", patient_column="patient", keep_columns=["sex"])
    assert (listing.task, listing.classes) == ("binary", ("no label", "label"))
    assert listing.has_patients and listing.splits_given == ("train",)
    for source in listing.sources:
        assert source.label == (int(source.patient) % 2,) and source.path.startswith(f"p{source.patient}/")
        assert source.columns == (("sex", "MF"[int(source.patient) % 2]),)
        assert source.study == source.path
    assert any("holds 0 and 1: the classes are no label and label" in note for note in listing.notes)


@pytest.mark.parametrize(
    ("values", "options", "classes", "labels"),
    [
        (["a", "b", "a", "b"], {"positive_class": "a"}, ("b", "a"), [1, 0, 1, 0]),
        (["no", "yes", "", "No"], {}, ("No", "yes"), None),
        (["False", "True", "nan", "False"], {"unknown_labels": ["nan"]}, ("False", "True"), [0, 1, -1, 0]),
        (["1.0", "0.0", "-1.0", ""], {}, ("no label", "label"), [1, 0, -1, -1]),
        (["1", "0", "-1.0", ""], {"uncertain": "positive", "blank": "negative"}, ("no label", "label"), [1, 0, 1, 0]),
        (["1", "0", "-1", ""], {"uncertain": "negative", "classes": ["fine", "ill"]}, ("fine", "ill"), [1, 0, 0, -1]),
        (["10", "2", "1", "2"], {}, ("1", "2", "10"), [2, 1, 0, 1]),
        (["c", "B", "a", "todo"], {"unknown_labels": ["todo"]}, ("a", "B", "c"), [2, 1, 0, -1]),
        (["x", "b", "a", "b"], {"merge_labels": ["x=a"], "positive_class": "a"}, ("b", "a"), [1, 0, 1, 0]),
    ],
)  # fmt: skip
def test_values_of_a_label_column(tmp_path, values, options, classes, labels):
    root = write_images(tmp_path / "x", *(f"{number}.png" for number in range(4)))
    rows = ["image,label", *(f"{number}.png,{value}" for number, value in enumerate(values))]
    if labels is None:  # 'no' and 'No' are two spellings, hence three classes
        with pytest.raises(InputError, match="differ only in case"):
            listed(root, *rows, label_column="label", **options)
        return
    listing = listed(root, *rows, label_column="label", **options)
    assert listing.classes == classes
    assert [label for (label,) in labels_of(listing).values()] == labels


def test_three_classes_are_in_alphabetical_order_which_is_said(tmp_path):
    root = write_images(tmp_path / "x", "1.png", "2.png", "3.png")
    listing = listed(root, "image,kind", "1.png,b", "2.png,c", "3.png,a", label_column="kind")
    assert listing.task == "multiclass" and listing.classes == ("a", "b", "c")
    assert any(note.endswith("3 classes in alphabetical order (a, b, c)") for note in listing.notes)


def test_columns_of_0_and_1_are_labels_of_their_own(tmp_path):
    root = write_images(tmp_path / "x", "1.png", "2.png", "3.png")
    rows = ("image,Mass,Edema,Fluid", "1.png,1,-1,", "2.png,0.0,1.0,1", "3.png,,0,0")
    listing = listed(root, *rows, label_columns=["Mass", "Edema", "Fluid"], merge_labels=["Fluid=Edema"])
    assert listing.task == "multilabel" and listing.classes == ("Mass", "Edema")
    assert list(labels_of(listing).values()) == [(1, -1), (0, 1), (-1, 0)]
    assert listing.notes[-1] == "unknown among 3 images: Mass of 1, Edema of 1"
    listing = listed(root, label_columns=["Mass", "Edema", "Fluid"], classes=["Edema"])
    assert listing.classes == ("Edema",) and list(labels_of(listing).values()) == [(-1,), (1,), (0,)]


def test_several_labels_in_one_cell(tmp_path):
    root = write_images(tmp_path / "x", *(f"{number}.png" for number in range(6)))
    cells = ("Mass|Nodule", "No Finding", "nodule2", "", "todo", "Mass|Odd")
    rows = ("image,found", *(f"{number}.png,{cell}" for number, cell in enumerate(cells)))
    options = {"label_column": "found", "label_separator": "|", "merge_labels": ["nodule2=Nodule"]}
    options |= {"drop_labels": ["Odd"], "unknown_labels": ["todo"]}
    listing = listed(root, *rows, **options)
    assert listing.task == "multilabel" and listing.classes == ("Mass", "Nodule")
    assert list(labels_of(listing).values()) == [(1, 1), (0, 0), (0, 1), (-1, -1), (-1, -1), (1, 0)]
    assert any("No Finding means none of the labels" in note for note in listing.notes)
    listing = listed(root, classes=["Nodule"], blank="negative", **options)
    assert list(labels_of(listing).values()) == [(1,), (0,), (1,), (0,), (-1,), (0,)]
    assert any("labels without a class: Mass (2)" in note for note in listing.notes)


@pytest.mark.parametrize(
    ("separator", "end", "encoding", "note"),
    [
        (",", "\r\n", "utf-8-sig", None),
        (";", "\n", "utf-8", "is separated by semicolons"),
        ("\t", "\r\n", "utf-8", "is separated by tabs"),
        (";", "\r\n", "latin-1", "is not UTF-8 .* read as Latin-1"),
        ("\t", "\r\n", "utf-16", "is read as UTF-16"),
    ],
)
def test_separators_line_ends_and_encodings(tmp_path, separator, end, encoding, note):
    root = write_images(tmp_path / "x", "1.png", "Brüche 2.png", "3.png")
    rows = ("image,art", "1.png,gesund", "Brüche 2.png,Brüche", "3.png,gesund")
    write_csv(root / "labels.csv", *rows, separator=separator, end=end, encoding=encoding)
    listing = listed(root, label_column="art", positive_class="Brüche")
    assert labels_of(listing) == {"1.png": (0,), "3.png": (0,), "Brüche 2.png": (1,)}
    if note:
        assert any(pd.Series([text]).str.contains(note).all() for text in listing.notes)
    else:
        assert not any("labels.csv is" in text for text in listing.notes)


def test_line_breaks_in_quotes_and_compressed_files_are_read(tmp_path):
    import gzip

    root = write_images(tmp_path / "x", "1.png", "2.png")
    text = b'image,label,note\n1.png,1,"two\nlines, one comma"\n2.png,0,\n'
    (root / "labels.csv.gz").write_bytes(gzip.compress(text))
    listing = listed(root, csv=("labels.csv.gz",), label_column="label")
    assert labels_of(listing) == {"1.png": (1,), "2.png": (0,)}


FILES = ("part1/images/a.png", "part2/images/b.jpg", "c.png", "one/d.png", "two/d.png", "train/e.png")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a.png", 0),
        ("a", 0),
        ("images/a.png", 0),
        ("part1\\images\\a.png", 0),
        ("CheXpert-v1.0/part1/images/a.png", 0),
        ("C:\\sets\\xray\\a.png", 0),
        ("/data/images/a.png", 0),
        ("./part1/../part1/images/a.png", 0),
        ("b.png", 1),  # another suffix
        ("  c.png ", 2),
        ("one/d.png", 3),
        ("/elsewhere/two/d", 4),
        ("e.png", 5),
    ],
)
def test_names_find_their_file(name, file):
    assert ImageLookup(FILES).files(name) == [file]


@pytest.mark.parametrize(
    ("name", "files"), [("x.png", []), ("valid/e.png", []), ("d.png", [3, 4]), ("three/d.png", []), ("", []), (".", [])]
)
def test_names_without_a_file_or_with_several(name, files):
    assert ImageLookup(FILES).files(name) == files


@pytest.mark.parametrize("name", ["../a.png", "images/../../a.png", "..\\a.png", ".."])
def test_names_outside_of_the_root_are_refused(root, name):
    with pytest.raises(InputError, match=r"labels.csv, row 2: image .* lies outside of ROOT"):
        listed(root, "image,label", "p0/i0.png,0", f"{name},1", label_column="label")


def test_names_with_another_suffix_are_said(tmp_path):
    root = write_images(tmp_path / "x", "1.png", "2.png")
    listing = listed(root, "image,label", "1.dcm,0", "2.dcm,1", label_column="label")
    assert "2 images have another suffix than in the CSV (such as 1.dcm: 1.png)" in listing.notes


def test_irregular_rows_and_images_are_counted_listed_and_refused_with_strict(tmp_path):
    root = write_images(tmp_path / "x", *(f"{number}.png" for number in range(6)), "a/t.png", "b/t.png")
    rows = ("image,label", "0.png,0", "1.png,1", "1.png,1", "2.png,0", "2.png,1", "3.png,1", "4.png,0", "9.png,1",
            "t.png,1")  # fmt: skip
    listing = listed(root, *rows, label_column="label")
    assert sorted(labels_of(listing)) == ["0.png", "1.png", "3.png", "4.png"]
    assert counted(listing.irregular) == {
        "images with contradictory rows": 1,
        "images without a row": 1,
        "repeated rows": 1,
        "rows whose image is missing": 1,
        "rows whose image name fits several files": 1,
    }
    examples = {item.kind: item.examples for item in listing.irregular}
    assert examples["images with contradictory rows"] == ("labels.csv row 4, labels.csv row 5",)
    assert examples["images without a row"] == ("5.png",)
    assert examples["rows whose image is missing"] == ("labels.csv row 8: 9.png",)
    options = {"layout": "csv", "csv": ["labels.csv"], "image_column": "image", "label_column": "label", "workers": 1}
    with pytest.raises(InputError, match="1 images with contradictory rows .* build without --strict"):
        kmura.build_records(root, tmp_path / "out", strict=True, **options)
    assert not (tmp_path / "out").exists()
    manifest = kmura.build_records(root, tmp_path / "out", options=RecordsConfig(test_fraction=0), **options)
    assert {item.kind for item in listing.irregular} <= {item.kind for item in manifest.passed_over}
    assert read_manifest(tmp_path / "out") == manifest and manifest.notes == listing.notes


def test_all_irregular_images_are_listed_up_to_a_hundred(tmp_path):
    root = write_images(tmp_path / "x", "0.png", "1.png")
    rows = ("image,label", "0.png,0", "1.png,1", *(f"gone{number}.png,1" for number in range(150)))
    (item,) = listed(root, *rows, label_column="label").irregular
    assert item.number == 150 and len(item.examples) == 100 and item.examples[99].endswith("gone99.png")


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("any", {"a.png": (1, 1), "b.png": (0, -1)}), ("majority", {"a.png": (1, 0), "b.png": (0, 0)})],
)
def test_several_readers_of_one_image(tmp_path, rule, expected):
    root = write_images(tmp_path / "x", "a.png", "b.png")
    rows = ("image,reader,M,N", "a,R1,1,0", "a,R2,1,0", "a,R3,0,1", "b,R1,0,-1", "b,R2,0,0", "b,R3,0,0")
    listing = listed(root, *rows, label_columns=["M", "N"], repeated_rows=rule)
    assert labels_of(listing) == expected and not listing.irregular


def test_splits_of_a_column_are_mapped(root):
    splits = dict(zip(NAMES, ["train"] * 4 + ["Validation", "Validation", "holdout", "holdout"], strict=True))
    rows = ("image,label,part", *(f"{name},{int(name[1]) % 2},{split}" for name, split in splits.items()))
    options = {"label_column": "label", "split_column": "part"}
    with pytest.raises(InputError, match="row 7: 'holdout' in column 'part' is no split .*holdout=test maps"):
        listed(root, *rows, **options)
    listing = listed(root, split_values=["holdout=test"], **options)
    assert listing.splits_given == ("train", "val", "test")
    assert {source.path: source.split for source in listing.sources} == {
        name: {"holdout": "test", "Validation": "val"}.get(split, "train") for name, split in splits.items()
    }
    assert "splits from column 'part': Validation is val, holdout is test, train is train" in listing.notes


def test_files_named_after_splits_give_the_splits(root):
    write_csv(root / "labels_train.csv", *ROWS[:7])
    write_csv(root / "labels_test.csv", ROWS[0], *ROWS[7:])
    listing = listed(root, csv=("labels_train.csv", "labels_test.csv"), label_column="label")
    assert [source.split for source in listing.sources] == ["train"] * 6 + ["test"] * 2
    assert any(note.startswith("splits from the names of the files") for note in listing.notes)
    with pytest.raises(InputError, match="row 1 of labels_test.csv: 'x' is no label"):
        write_csv(root / "labels_test.csv", ROWS[0], "p3/i0.png,x,3,M", "p3/i1.png,y,3,M")
        listed(root, csv=("labels_train.csv", "labels_test.csv"), label_columns=["label"])


def test_a_condition_leaves_rows_out(root):
    listing = listed(root, *ROWS, label_column="label", where='sex == "F" or patient < 1')
    assert {source.path[1] for source in listing.sources} == {"0", "1", "3"}
    assert counted(listing.passed_over)["images of rows that --where leaves out"] == 2
    assert not listing.irregular


TABLE = pd.DataFrame(
    {"modality": ["X-ray", "CT", ""], "Patient Age": ["18", "3", ""], "view": ["PA", "AP", "L"]}, index=[1, 2, 3]
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('modality == "X-ray"', [1, 0, 0]),
        ('modality != "X-ray"', [0, 1, 1]),
        ('modality=="X-ray" & `Patient Age` >= 5', [1, 0, 0]),
        ('~(view == "PA") | modality == "CT"', [0, 1, 1]),
        ('view in ["PA", "L"] and not modality.isna()', [1, 0, 0]),
        ('view not in ["PA"]', [0, 1, 1]),
        ("`Patient Age`.between(1, 10)", [0, 1, 0]),
        ("`Patient Age` in [18, 4]", [1, 0, 0]),
        ("2 < `Patient Age` < 10", [0, 1, 0]),
        ('modality.str.contains("ray", case=False)', [1, 0, 0]),
        ("modality.str.len() > 2", [1, 0, 0]),
    ],
)
def test_conditions_mean_what_pandas_says(text, expected):
    assert RowFilter(text).mask(TABLE).tolist() == [bool(value) for value in expected]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('modality.to_csv("x")', r"uses \.to_csv"),
        ("modality.__class__", r"uses \.__class__"),
        ('__import__("os")', "uses a call of a function"),
        ("modality[0] == 'a'", "uses Subscript"),
        ("@root == 1", "is no condition"),
        ("modality ==", "is no condition"),
        ("view", "neither true nor false"),
        ("1 == 1", "no condition on columns"),
        ("view == 3", "row 1 has 'PA'; compare it with text in quotes"),
        ("", "is no condition"),
    ],
)
def test_conditions_cannot_do_anything_else(text, message):
    with pytest.raises(InputError, match=message):
        RowFilter(text).mask(TABLE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_column": "lable"}, r"no column 'lable' \(--label-column\); did you mean 'label'\?"),
        ({"label_column": "label", "image_column": "Image"}, "no column 'Image' .*; did you mean 'image'"),
        ({"label_column": "label", "patient_column": "zzz"}, "no column 'zzz' .*; there are: 'image', "),
        ({"label_column": "label", "where": 'sexx == "M"'}, "--where names 'sexx', which is no .*did you mean 'sex'"),
        ({"label_column": "label", "where": 'sex == "X"'}, "leaves no row with an image"),
        ({"label_column": "label", "label_columns": ["label"]}, "either --label-column COLUMN or --label-columns"),
        ({}, "either --label-column COLUMN or --label-columns"),
        ({"label_column": "label", "csv": ()}, "needs --csv FILE, or --preset"),
        ({"label_column": "label", "csv": ("label.csv",)}, "label.csv does not exist.*did you mean labels.csv"),
        ({"label_column": "sex"}, "the order of labels is never guessed; give --positive-class"),
        ({"label_column": "sex", "positive_class": "W"}, "class W is not in .*; there are: F, M"),
        ({"label_columns": ["sex"]}, "column 'sex', row 1: 'M' is no label; 1, 0, -1"),
        ({"label_columns": ["label"], "label_separator": "|"}, "--label-separator goes with --label-column"),
        ({"label_column": "label", "patient_column": "sex", "patient_pattern": "(x)"}, "contradicts --patient-pattern"),
        ({"label_column": "label", "patient_pattern": "p[0-9]"}, "has 0 groups; put the part .* into parentheses"),
        ({"label_column": "label", "patient_pattern": "(p)([0-9])"}, "has 2 groups"),
        ({"label_column": "label", "patient_pattern": "(p"}, "is no regular expression"),
        ({"label_column": "label", "patient_pattern": "(q)"}, "matches no path, such as p0/i0.png"),
        ({"label_column": "label", "keep_columns": ["label"]}, "--keep-columns label: predictions.csv has a column"),
        ({"label_column": "label", "keep_columns": ["sex", "sex"]}, "names a column twice"),
        ({"label_column": "label", "keep_columns": ["Patient's Name"]}, "would copy identifiers of patients"),
        ({"label_column": "label", "keep_columns": ["sx"]}, r"no column 'sx' \(--keep-columns\); did you mean 'sex'"),
        ({"label_column": "label", "merge_labels": ["a"]}, "--merge-labels 'a' has to have the form OLD=NEW"),
        ({"label_column": "label", "split_column": "sex"}, "row 1: 'M' in column 'sex' is no split"),
        ({"label_column": "label", "split_column": "sex", "split_values": ["M=dev"]}, "'dev' is no split; choose"),
        ({"label_column": "label", "split_column": "sex", "split_values": ["M=val", "F=test"]}, "no training images"),
        ({"label_column": "label", "preset": "mimic"}, "--preset 'mimic' is unknown; choose one of chexpert, covid"),
        ({"label_column": "label", "image_column": "sex"}, "none of the 8 rows of labels.csv names an image in .*"
         "column 'sex' has for example 'M', and the folder has 'p0/i0.png'"),
        ({"label_column": "patient", "label_separator": "|", "classes": ["4"]}, "class 4 is not in .*; there are: 0"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused_in_one_line(root, options, message):
    with pytest.raises(InputError, match=message) as error:
        listed(root, *ROWS, **options)
    assert "\n" not in str(error.value)


def test_an_unknown_separator_shows_the_header(root):
    write_csv(root / "labels.csv", *ROWS, separator=":")
    with pytest.raises(InputError, match="its header is 'image:label:patient:sex', and columns are"):
        listed(root, label_column="label")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "labels.csv is empty"),
        (b"image,label\np0/i0.png,1,2\np0/i1.png,0\n", "is not a CSV file of 2 columns with commas"),
        (b"image,label\np0/i0.png,1\np0/i1.png,0,0\n", "is not a CSV file of 2 columns .*line 3"),
        (b'image,label\np0/i0.png,"1\n', "is not a CSV file"),
        (b"image,image,label\n1,2,3\n", "has 2 columns 'image'.*rename all but one"),
        (b"image,label\n\0\0\0\0\0", "contains zero bytes"),
        (b"image,label\n", "none of the 0 rows"),
    ],
)
def test_damaged_tables_are_refused(root, content, message):
    (root / "labels.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        listed(root, label_column="label")


def test_images_named_after_persons_are_refused_without_naming_them(tmp_path):
    root = write_images(tmp_path / "x", "DOE_JANE_1.png", "2.png")
    rows = ("image,label,PatientName", "DOE_JANE_1.png,1,Doe^Jane", "2.png,0,Roe^Ann")
    with pytest.raises(InputError, match=r"1 image paths contain the value of column 'PatientName' .*row 1") as error:
        listed(root, *rows, label_column="label")
    assert "doe" not in str(error.value).lower()
    write_images(root, "1.png")
    assert listed(root, "image,label,PatientName", "1.png,1,Doe^Jane", "2.png,0,Roe^Ann", label_column="label").sources


def test_patients_and_studies_come_from_paths(root):
    listing = listed(root, *ROWS, label_column="label", patient_pattern=r"p(\d)/", study_pattern=r"(?P<study>p\d)/(i)")
    assert listing.has_patients
    assert {(source.patient, source.study) for source in listing.sources} == {(str(n), f"{n}/p{n}") for n in range(4)}


def test_studies_whose_images_differ_are_settled_by_option(tmp_path):
    root = write_images(tmp_path / "x", *(f"{number}.png" for number in range(4)))
    rows = ("image,label,who,visit", "0.png,0,A,1", "1.png,1,A,1", "2.png,0,A,2", "3.png,0,B,1")
    options = {"label_column": "label", "patient_column": "who", "study_column": "visit"}
    with pytest.raises(InputError, match=r"1 of 3 studies have images of different labels \(such as A/1\)"):
        listed(root, *rows, **options)
    listing = listed(root, mixed_studies="any-positive", **options)
    assert [source.label for source in listing.sources] == [(1,), (1,), (0,), (0,)]
    assert [source.study for source in listing.sources] == ["A/1", "A/1", "A/2", "B/1"]
    listing = listed(root, mixed_studies="separate", **options)
    assert [source.label for source in listing.sources] == [(0,), (1,), (0,), (0,)]
    assert [source.study for source in listing.sources] == ["0.png", "1.png", "A/2", "B/1"]
    assert any("each of their images is a study" in note for note in listing.notes)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(label_table, "BLOCK", 2000)
    monkeypatch.setattr(label_rows, "BLOCK", 2000)
    root = write_images(tmp_path / "x", "0.png", "1.png")

    def peak(number):
        with open(root / "labels.csv", "w") as file:
            file.write("image,label,note\n")
            for row in range(number):
                file.write(f"{row % 2 if row % 10 == 0 or row == 1 else f'gone{row}'}.png,{row % 2},{'x' * 40}\n")
        tracemalloc.start()
        listing = listed(root, label_column="label", keep_columns=[])
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(listing.sources) == 2 and counted(listing.irregular)["rows whose image is missing"] > 0.8 * number
        return size

    peak(4000)
    small, large = peak(20_000), peak(120_000)
    assert large < 1.5 * small


def test_a_table_with_too_many_different_rows_per_image_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(label_table, "BLOCK", 100)
    monkeypatch.setattr(label_rows, "BLOCK", 100)
    root = write_images(tmp_path / "x", "0.png")
    rows = ("image,label,time", *(f"0.png,1,{row}" for row in range(3000)))
    with pytest.raises(InputError, match="more than 100 different rows per image"):
        listed(root, *rows, label_column="label", keep_columns=["time"])


@pytest.fixture
def folded(tmp_path):
    """Records of 24 patients in four folds, with metadata."""
    names = [f"{patient:02}_{view}.png" for patient in range(24) for view in range(2)]
    root = write_images(tmp_path / "knees and hips", *names)
    rows = [
        f"{name},{int(name[:2]) % 2},{name[:2]},{'MF'[int(name[:2]) // 2 % 2]},{20 + int(name[:2])}" for name in names
    ]
    write_csv(root / "labels.csv", "image,ill,who,sex,age", *rows)
    out = tmp_path / "records"
    options = RecordsConfig(val_fraction=0.25, test_fraction=0.2, records_per_shard=8)
    manifest = kmura.build_records(
        root, out, layout="csv", csv=["labels.csv"], image_column="image", label_column="ill", patient_column="who",
        keep_columns=["sex", "age"], folds=4, options=options, workers=1,
    )  # fmt: skip
    return out, manifest


def test_records_keep_metadata_and_folds(folded):
    out, manifest = folded
    assert manifest.columns == ("sex", "age") and manifest.folds == 4
    assert list(manifest.areas) == ["knees_and_hips"]
    assert any("is called knees_and_hips" in note for note in manifest.notes)
    dataset = Dataset(out, "knees_and_hips")
    fold_of = {}
    for split in ("train", "val", "test"):
        rows, folds = dataset.rows(split), dataset.folds(split)
        assert list(rows) == ["area", "patient", "study", "image", "label", "sex", "age"]
        assert (rows["age"].astype(int) == 20 + rows["patient"].astype(int)).all()
        assert (rows["sex"] == rows["patient"].astype(int).map(lambda patient: "MF"[patient // 2 % 2])).all()
        assert (folds == -1).all() if split == "test" else set(folds) <= set(range(4))
        for patient, label, fold in zip(rows["patient"], rows["label"], folds, strict=True):
            assert fold_of.setdefault(patient, (label, fold)) == (label, fold)
    counts = pd.Series([pair for pair in fold_of.values() if pair[1] >= 0]).value_counts()
    assert len(counts) == 8 and counts.max() - counts.min() <= 1  # both labels in all four folds
    inspection = inspect_records(out)
    assert inspection.sound, inspection.findings


def test_a_changed_fold_in_an_index_is_found(folded):
    import hashlib
    import json

    out, _ = folded
    path = next(out.glob("*/train-00000*.json"))
    raw = json.loads(path.read_text())
    raw["fold"][0] = (raw["fold"][0] + 1) % 4
    path.write_text(json.dumps(raw))
    manifest = json.loads((out / "manifest.json").read_text())
    for shard in manifest["areas"]["knees_and_hips"]["train"]["shards"]:
        if (out / shard["index"]) == path:
            shard["index_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert any("record 0" in finding.text and "differs" in finding.text for finding in inspect_records(out).findings)


def test_predictions_have_the_kept_columns(folded):
    from kmura.runs.predictions import predictions_of, read_predictions

    out, _ = folded
    dataset = Dataset(out, "knees_and_hips")
    rows = dataset.rows("test")
    table = predictions_of(rows, "test", np.zeros((len(rows), 1)), dataset.labels)
    assert list(table)[-2:] == ["sex", "age"]
    table.to_csv(out / "predictions.csv", index=False)
    assert read_predictions(out / "predictions.csv", dataset.labels)["sex"].tolist() == rows["sex"].tolist()


def test_folds_of_a_column(root):
    rows = ["image,ill,who,part", *(f"{name},{name[-5]},{name[1]},{'AB'[int(name[1]) // 2]}" for name in NAMES)]
    options = {"label_column": "ill", "patient_column": "who", "folds_column": "part"}
    listing = listed(root, *rows, **options)
    assert {(source.patient, source.fold) for source in listing.sources} == {("0", 0), ("1", 0), ("2", 1), ("3", 1)}
    assert "folds from column 'part': A is 0, B is 1" in listing.notes
    with pytest.raises(InputError, match="column 'part' is empty for p0/i0.png"):
        listed(root, *[row.replace(",A", ",") for row in rows], **options)
    with pytest.raises(InputError, match="has 1 fold"):
        listed(root, *[row.replace(",A", ",B") for row in rows], **options)


@pytest.mark.parametrize(
    ("rows", "folds", "message"),
    [
        (ROWS, 1, "--folds 1: 2 or more are needed"),
        (ROWS, 9, "--folds 9 is more than the 4 patients"),
        (ROWS, 4, "fold 0 of area chest has no label images; give fewer --folds"),
        ([row + (",fold" if number == 0 else f",{number % 2}") for number, row in enumerate(ROWS)], 0,
         "patient 0 is in the folds"),
    ],
)  # fmt: skip
def test_folds_that_cannot_be_scored_are_refused(root, tmp_path, rows, folds, message):
    write_csv(root / "labels.csv", *rows)
    more = {"folds_column": "fold"} if "fold" in rows[0] else {}
    with pytest.raises(InputError, match=message):
        kmura.build_records(
            root, tmp_path / "out", layout="csv", csv=["labels.csv"], image_column="image", label_column="label",
            patient_column="patient", folds=folds, options=RecordsConfig(test_fraction=0, val_fraction=0), **more,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_the_command_builds_and_says_what_it_decided(root, tmp_path, monkeypatch, capsys):
    write_csv(root / "labels.csv", *ROWS)
    build = (
        "build-tfrecords",
        root,
        "--out",
        tmp_path / "out",
        "--layout",
        "csv",
        "--csv",
        "labels.csv",
        "--workers",
        1,
    )
    build += ("--image-column", "image", "--test-fraction", 0, "--val-fraction", 0)
    code, out, err = kmura_main(monkeypatch, capsys, *build, "--label-column", "lbel")
    assert code == 2 and len(err.splitlines()) == 1 and "did you mean 'label'?" in err
    assert not (tmp_path / "out").exists()
    code, out, err = kmura_main(monkeypatch, capsys, *build, "--label-column", "label", "--where", "patient > 0")
    assert code == 0 and "8 rows in labels.csv, taken where patient > 0" in err
    assert "2 images of rows that --where leaves out" in err and "no label" in out


def test_records_are_the_same_with_any_number_of_workers_and_blocks(root, tmp_path, monkeypatch):
    write_csv(root / "labels.csv", *ROWS)
    options = {"layout": "csv", "csv": ["labels.csv"], "image_column": "image", "label_column": "label"}
    options |= {"options": RecordsConfig(records_per_shard=2), "patient_column": "patient", "keep_columns": ["sex"]}
    one = kmura.build_records(root, tmp_path / "one", workers=1, **options)
    monkeypatch.setattr(label_table, "BLOCK", 3)
    assert kmura.build_records(root, tmp_path / "two", workers=2, **options) == one
    assert kmura.build_records(root, tmp_path / "one", workers=1, **options) == one  # finished already


def test_changed_labels_are_another_input(root, tmp_path):
    write_csv(root / "labels.csv", *ROWS)
    options = {"layout": "csv", "csv": ["labels.csv"], "image_column": "image", "label_column": "label", "workers": 1}
    options |= {"options": RecordsConfig(test_fraction=0)}
    kmura.build_records(root, tmp_path / "out", **options)
    write_csv(root / "labels.csv", *ROWS[:-1], "p3/i1.png,0,3,M")
    with pytest.raises(InputError, match="images were added, removed or changed"):
        kmura.build_records(root, tmp_path / "out", **options)


def test_records_cannot_be_written_among_the_images(root):
    with pytest.raises(InputError, match="which is searched for images; choose an --out outside of it"):
        kmura.build_records(root, root / "records", layout="csv", csv=["labels.csv"], image_column="image")


def test_dicom_files_without_a_suffix_are_found(tmp_path):
    from dicom_files import dicom

    root = tmp_path / "x"
    root.mkdir()
    (root / "1.2.840.1").write_bytes(dicom())
    textured(1).save(root / "b.png")
    listing = listed(root, "image,label", "1.2.840.1,1", "b,0", label_column="label")
    assert labels_of(listing) == {"1.2.840.1": (1,), "b.png": (0,)}
