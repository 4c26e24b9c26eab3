"""`kmura score`: predictions of any tool, read, scored, compared and shown without TensorFlow."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import kmura_main
from scipy import stats
from scipy.special import expit, logit
from sklearn import metrics as theirs
from test_scoring import simulated

import kmura
from kmura.errors import InputError
from kmura.evaluation.given_predictions import read_given, read_second
from kmura.evaluation.scored_predictions import score_files
from kmura.evaluation.scoring import ScoreOptions
from kmura.evaluation.table_file import TableFile
from kmura.records import label_table

FEW = ScoreOptions(resamples=100)
REAL = Path(os.environ.get("KMURA_REAL_DATA", ""), "grazped_detector_scores.csv.gz")


def foreign(studies=60, seed=0):
    """Predictions as another tool would write them: two splits, numbers of patients, studies counted per patient."""
    table = simulated(studies, seed)
    patient = table["patient"].str[1:].astype(int)
    return pd.DataFrame(
        {
            "file_name": table["image"],
            "subset": table["split"].replace({"val": "valid"}),
            "patient_id": patient,
            "exam": table["study"].str[-1].where(table["study"].str[-1] != "", "1"),
            "fracture": table["label"],
            "prob": table["probability"],
            "sex": np.where(patient % 2, "F", "M"),
            "age": 5 + patient % 30,
        }
    )


@pytest.fixture
def file(tmp_path):
    """A function that writes a table and returns the path of the file."""

    def write(table, name="predictions.csv", **options):
        table.to_csv(tmp_path / name, index=False, **options)
        return tmp_path / name

    return write


LABEL = {"label": ("fracture",)}


def test_columns_are_guessed_where_their_names_leave_no_doubt_and_the_guesses_are_told(file):
    given = read_given(file(foreign()), LABEL)
    assert given.columns.lines == (
        "image: the column file_name (guessed from its name)",
        "label: the column fracture",
        "probability: the column prob (guessed from its name)",
        "patient: the column patient_id (guessed from its name)",
        "split: the column subset (guessed from its name)",
    )
    assert given.has_patients and given.area == "fracture" and given.task.classes == ("no fracture", "fracture")


def test_a_doubtful_guess_is_not_made(file):
    given = read_given(file(foreign().assign(patient=1)), LABEL)
    assert not given.columns.patient and not given.has_patients
    assert "patient: patient_id and patient may both be meant, so none is used" in given.columns.remarks[0]
    with pytest.raises(InputError, match="which column is the label"):
        read_given(file(foreign()))
    with pytest.raises(InputError, match="which column is the prediction"):
        read_given(file(foreign().rename(columns={"prob": "score"})), LABEL)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"label": ("fractur",)}, r"no column 'fractur' \(--label-column\); did you mean fracture\?"),
        (LABEL | {"patient": ("patient_id", "sex")}, "--patient-column is one column"),
        (LABEL | {"probability": ("fracture",)}, "cannot be both label and probability"),
        (LABEL | {"probability": ("prob", "age")}, r"line 2 .*outside 0 to 1 in column prob, age"),
    ],
)
def test_a_wrong_column_is_one_line(file, named, message):
    with pytest.raises(InputError, match=message):
        read_given(file(foreign()), named)


def reference(label, probability):
    """The scores that scikit-learn computes, by name."""
    decided = probability >= 0.5
    return {
        "auc": theirs.roc_auc_score(label, probability),
        "ap": theirs.average_precision_score(label, probability),
        "accuracy": theirs.accuracy_score(label, decided),
        "precision": theirs.precision_score(label, decided),
        "recall": theirs.recall_score(label, decided),
        "specificity": theirs.recall_score(1 - label, ~decided),
        "npv": theirs.precision_score(1 - label, ~decided),
        "f1": theirs.f1_score(label, decided),
        "f1_negative": theirs.f1_score(1 - label, ~decided),
        "balanced_accuracy": theirs.balanced_accuracy_score(label, decided),
        "kappa": theirs.cohen_kappa_score(label, decided),
        "brier": theirs.brier_score_loss(label, probability),
        "log_loss": theirs.log_loss(label, probability),
    }


def values_of(scores):
    return {name: score.value for name, score in scores.items()}


def test_every_score_equals_that_of_scikit_learn(file):
    table = foreign(300)
    (scored,) = score_files([file(table)], LABEL, options=FEW)[0].files
    for split, rows in table.groupby("subset"):
        found = values_of(scored.scores.splits[split]["image"].scores)
        assert found == pytest.approx(reference(rows["fracture"], rows["prob"]), abs=1e-9)


def test_the_interval_of_the_auc_is_that_of_a_clustered_delong_test(file):
    table = foreign(300)
    (scored,) = score_files([file(table)], LABEL, options=FEW)[0].files
    for split, rows in table.groupby("subset"):
        auc = scored.scores.splits[split]["image"].scores["auc"]
        low, high = clustered_delong(rows["fracture"], rows["prob"], rows["patient_id"])
        assert (auc.low, auc.high) == pytest.approx((low, high), abs=1e-9)


def test_a_logit_alone_gives_the_same_scores_as_its_probability(file):
    table = foreign()
    logits = table.assign(logit=logit(table["prob"])).drop(columns="prob")
    one, other = (read_given(file(rows, f"{n}.csv"), LABEL).table for n, rows in enumerate((table, logits)))
    np.testing.assert_allclose(one["probability"], other["probability"], atol=1e-12)
    np.testing.assert_allclose(one["logit"], other["logit"], atol=1e-9)


def test_a_logit_that_contradicts_its_probability_is_refused_until_one_is_named(file):
    table = foreign()
    table["logit"] = logit(table["prob"])
    read_given(file(table), LABEL)
    table.loc[7, "logit"] += 1
    with pytest.raises(InputError, match=r"line 9 .*a probability that contradicts its logit; name only the right one"):
        read_given(file(table), LABEL)
    assert not read_given(file(table), LABEL | {"probability": ("prob",)}).columns.logit


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("prob", "", r"line 6 .*no number in column prob"),
        ("prob", "high", r"line 6 .*no number in column prob"),
        ("prob", "1.2", r"line 6 .*outside 0 to 1 in column prob; if they are logits, name .* with --logit-column"),
        ("fracture", "2", r"line 6 .*the label '2' in column fracture; labels are 0 and 1"),
        ("fracture", "maybe", r"line 6 .*the label 'maybe'.*--positive-class"),
        ("subset", "", r"line 6 .*no split"),
        ("file_name", "XR_WRIST/0.png", r"line 6 .*an image of an earlier row of its split"),
    ],
)
def test_an_impossible_row_is_reported_with_its_line(file, column, value, message):
    table = foreign().astype({column: str})
    table.loc[4, column] = value
    with pytest.raises(InputError, match=message):
        read_given(file(table), LABEL)


def test_unknown_labels_are_counted_and_not_scored(file):
    table = foreign().astype({"fracture": object})
    table.loc[:2, "fracture"] = ["", "-1", "NaN"]
    (scored,) = score_files([file(table)], LABEL, options=FEW)[0].files
    assert f"3 of {len(table)} images have no known label and are not scored" in scored.remarks
    assert sum(levels["image"].images for levels in scored.scores.splits.values()) == len(table) - 3


def test_labels_may_be_texts_with_a_named_positive_class(file):
    table = foreign()
    texts = table.assign(fracture=np.where(table["fracture"] == 1, "Broken", "Intact"))
    with pytest.raises(InputError, match="--positive-class"):
        read_given(file(texts), LABEL)
    with pytest.raises(InputError, match=r"no label is 'broken' \(--positive-class\); did you mean Broken"):
        read_given(file(texts), LABEL, positive_class="broken")
    given = read_given(file(texts), LABEL, positive_class="Broken")
    assert given.table["label"].tolist() == table["fracture"].tolist() and given.task.classes == ("Intact", "Broken")
    words = table.assign(fracture=np.where(table["fracture"] == 1, "Yes", "no"))
    assert read_given(file(words), LABEL).table["label"].tolist() == table["fracture"].tolist()


FORMS = {
    "semicolons and decimal commas": {"sep": ";", "decimal": ","},
    "tabs": {"sep": "\t"},
    "byte order mark": {"encoding": "utf-8-sig"},
    "Latin-1": {"encoding": "latin-1"},
    "UTF-16": {"encoding": "utf-16"},
    "CRLF": {"lineterminator": "\r\n"},
    "gzip": {"name": "predictions.csv.gz"},
    "gzip without its ending": {"name": "predictions.csv", "compression": "gzip"},
}


@pytest.mark.parametrize("form", FORMS)
def test_tables_are_read_in_the_forms_that_programs_write(file, form):
    table = foreign().assign(sex="männlich")
    given = read_given(file(table, **FORMS[form]), LABEL, by=("sex",))
    assert given.table["image"].tolist() == table["file_name"].tolist() and set(given.table["sex"]) == {"männlich"}
    np.testing.assert_allclose(given.table["probability"], table["prob"], atol=1e-12)
    assert any("is read as Latin-1" in remark for remark in given.remarks) == (form == "Latin-1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; a CSV file with a row of column names is needed"),
        (b"a,b\x00c\n", "contains zero bytes, so it is no CSV file"),
        (b"file,label,prob\n", "has no rows"),
        (b"file,label,prob,prob\na,1,0.5,0.5\n", "has 2 columns 'prob'; rename all but one"),
        (b"file,label,prob\na,1,0.5\nb,1,0.5,0.7,8\n", "Expected 3 fields in line 3, saw 5"),
        (b"file,label,prob\na,1,0.5,0.7\nb,1,0.5\n", "is not a CSV file of 3 columns with commas"),
        (gzip.compress(b"file,label,prob\n" + b"a,1,0.5\n" * 999, mtime=0)[:60], "cannot be decompressed"),
        (b"\x1f\x8bnonsense", "cannot be decompressed"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, content, message):
    (tmp_path / "p.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_given(tmp_path / "p.csv")


def test_missing_files_and_folders_are_one_line(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_given(tmp_path / "none.csv")
    with pytest.raises(InputError, match="a file is needed there, not a folder"):
        read_given(tmp_path)


def test_a_file_with_too_many_rows_is_refused_before_all_of_it_is_read(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(label_table, "BLOCK", 10)
    with open(tmp_path / "p.csv", "w") as out:
        out.write("file,label,prob\n" + "".join(f"{row},1,0.5\n" for row in range(1000)))
    original = label_table.LabelTable.blocks

    def counted(self, names):
        for part in original(self, names):
            read.append(len(part))
            yield part

    monkeypatch.setattr(label_table.LabelTable, "blocks", counted)
    with pytest.raises(InputError, match="has more than 100 rows, which would not fit"):
        TableFile(tmp_path / "p.csv").read(["file"], most=100)
    assert sum(read) == 110


def test_columns_without_a_name_do_no_harm(file):
    table = foreign()
    table.insert(0, "", range(len(table)))
    table.insert(3, " ", "x")
    assert len(read_given(file(table), LABEL).table) == len(table)


def test_subgroups_by_a_column_whose_name_kmura_uses(file):
    table = foreign(100).assign(area=lambda rows: np.where(rows["age"] % 2, "wrist", "hand"), image="x")
    named = LABEL | {"image": ("file_name",)}
    (scored,) = score_files([file(table)], named, options=FEW, by=["area"])[0].files
    assert [group.name for group in scored.subgroups["fracture"].splits["test"]["study"].groups["area"]] == [
        "hand",
        "wrist",
    ]
    with pytest.raises(InputError, match="--by image: kmura gives the name image another meaning; rename the column"):
        read_given(file(table), named, by=["image"])


def test_without_an_image_column_rows_are_numbered(file):
    given = read_given(file(foreign().drop(columns="file_name")), LABEL)
    assert given.table["image"].iloc[0] == "row 1" and not given.leaks


def test_calibration_is_fitted_on_the_validation_split_under_any_usual_name(file):
    table = foreign(120)
    table.loc[:10, "subset"] = "Train"
    (scored,) = score_files([file(table)], LABEL, options=FEW)[0].files
    assert scored.fit_on == "valid" and list(scored.scores.splits) == ["valid", "test"] and scored.split == "test"
    assert "not scored: the split Train" in scored.remarks
    assert scored.scores.calibrator is not None and len(scored.scores.operating_points["test"]) == 5
    assert scored.scores.splits["test"]["image"].images == (table["subset"] == "test").sum()


def test_splits_of_any_name_can_be_named(file):
    table = foreign(120)
    table["subset"] = table["subset"].replace({"valid": "A", "test": "B"})
    (scored,) = score_files([file(table)], LABEL, options=FEW)[0].files
    assert scored.fit_on == "" and scored.scores.calibrator is None
    assert any("name the split that they are fitted on with --fit-on (splits: A, B)" in line for line in scored.remarks)
    assert [point.rule for point in scored.scores.operating_points["B"]] == ["0.5"]
    (scored,) = score_files([file(table)], LABEL, options=FEW, fit_on="A", held_out=("B",))[0].files
    assert scored.scores.options.fit_on == "A" and scored.scores.calibrator is not None and scored.split == "B"
    with pytest.raises(InputError, match=r"no split 'Bb' \(--held-out\) in column subset; did you mean B\?"):
        read_given(file(table), LABEL, held_out=("Bb",))
    with pytest.raises(InputError, match="cannot be both fitted on"):
        read_given(file(table), LABEL, fit_on="B", held_out=("B",))


def test_one_split_is_scored_without_calibration(file):
    (scored,) = score_files([file(foreign().drop(columns="subset"))], LABEL, options=FEW)[0].files
    assert list(scored.scores.splits) == ["all"] and not scored.scores.calibrated
    assert any("not calibrated, and no thresholds chosen: there is one split" in line for line in scored.remarks)
    with pytest.raises(InputError, match="since there is no split column"):
        read_given(file(foreign().drop(columns="subset")), LABEL, fit_on="val")


def test_studies_of_two_patients_with_the_same_number_are_two_studies(file):
    table = foreign().groupby("patient_id").head(1).assign(exam=1)
    given = read_given(file(table), LABEL | {"study": ("exam",)})
    (scored,) = score_files([file(table)], LABEL | {"study": ("exam",)}, options=FEW)[0].files
    assert scored.scores.splits["test"]["study"].studies == (given.table["split"] == "test").sum()


def mixed():
    """A table in which the first study has images of both labels."""
    table = foreign(80).assign(
        exam=lambda rows: rows["file_name"].map(dict(zip(rows["file_name"], simulated(80)["study"], strict=True)))
    )
    first = table["exam"].eq(table["exam"][table["exam"].duplicated()].iloc[0])
    table.loc[first, "fracture"] = np.arange(first.sum()) % 2
    return table, first


def test_mixed_studies_are_refused_by_default_and_the_message_says_what_to_do(file):
    table, _ = mixed()
    with pytest.raises(
        InputError, match=r"1 of 80 studies have images of several labels .*--mixed-studies any-positive"
    ):
        read_given(file(table), LABEL | {"study": ("exam",)})


def test_mixed_studies_count_as_positive_or_are_dropped(file):
    table, first = mixed()
    named = LABEL | {"study": ("exam",)}
    expected = table[~first].groupby("exam")["fracture"].max()
    for rule, images, positives in (
        ("any-positive", len(table), expected.sum() + 1),
        ("drop", len(table) - first.sum(), expected.sum()),
    ):
        options = ScoreOptions(resamples=50, mixed_studies=rule)
        (scored,) = score_files([file(table)], named, options=options)[0].files
        levels = scored.scores.splits.values()
        assert sum(of_split["study"].positives for of_split in levels) == positives
        assert sum(of_split["image"].images for of_split in levels) == images
        assert any(f"({rule})" in remark for remark in scored.remarks)
    # images keep their own labels
    options = ScoreOptions(resamples=50, mixed_studies="any-positive")
    (scored,) = score_files([file(table)], named, options=options)[0].files
    assert sum(levels["image"].positives for levels in scored.scores.splits.values()) == table["fracture"].sum()


def test_further_columns_tell_studies_apart(file):
    table, first = mixed()
    table["side"] = np.where(first & (table["fracture"] == 1), "L", "R")
    given = read_given(file(table), LABEL | {"study": ("exam", "side")})
    assert given.table["study"].nunique() == 81


def test_patients_and_images_in_two_splits_are_told(file):
    table = foreign()
    assert not read_given(file(table), LABEL).leaks
    table.loc[table.index[-1], "patient_id"] = table["patient_id"].iloc[0]
    table.loc[table.index[-1], "file_name"] = table["file_name"].iloc[0]
    leaks = read_given(file(table), LABEL).leaks
    assert [leak.split(":")[0] for leak in leaks] == [
        "1 patient is in the splits test and valid (such as 0)",
        "1 image is in the splits test and valid (such as XR_WRIST/0.png)",
    ]


def test_two_files_are_compared_paired(file):
    table = foreign(200)
    noise = np.random.default_rng(3).normal(0, 2, len(table))
    second = pd.DataFrame({"file_name": table["file_name"], "prob": expit(logit(table["prob"]) + noise)})
    paths = [file(table, "ours.csv"), file(second.sample(frac=1, random_state=0), "theirs.csv")]
    found, tables = score_files(paths, LABEL, options=FEW)
    rows = table[table["subset"] == "test"]
    expected = [theirs.roc_auc_score(rows["fracture"], one["prob"][rows.index]) for one in (table, second)]
    assert [file.scores.splits["test"]["image"].scores["auc"].value for file in found.files] == pytest.approx(expected)
    (gap,) = [d for d in found.comparison.differences if (d.score, d.level) == ("auc", "image")]
    assert gap.interval.value == pytest.approx(expected[1] - expected[0], abs=1e-12)
    assert "ours is better than theirs by" in gap.sentence and gap.delong_p < 0.01
    assert tables[1].table["patient"].tolist() == tables[0].table["patient"].tolist()


def test_two_columns_of_one_file_are_compared(file):
    table = foreign(100).assign(theirs=0.5)
    found = kmura.score(
        file(table), file(table), label_column="fracture", probability_column="prob",
        second_probability_column="theirs", options=FEW,
    )  # fmt: skip
    assert [one.name for one in found.files] == ["prob", "theirs"]
    assert found.files[1].scores.splits["test"]["image"].scores["auc"].value == 0.5
    with pytest.raises(InputError, match="columns of a second file are named, but there is none"):
        kmura.score(file(table), label_column="fracture", second_logit_column="theirs")
    with pytest.raises(InputError, match="no column 'thers'.*did you mean theirs"):
        kmura.score(file(table), file(table), label_column="fracture", second_probability_column="thers")


def test_files_that_cannot_be_paired_are_refused(file):
    table = foreign()
    given = read_given(file(table), LABEL)
    with pytest.raises(InputError, match=r"lacks 2 of the \d+ images of the first file"):
        read_second(file(table.iloc[2:], "second.csv"), given, LABEL)
    with pytest.raises(InputError, match="has other labels for 1 images"):
        other = table.assign(fracture=table["fracture"].where(table.index != 3, 1 - table["fracture"]))
        read_second(file(other, "second.csv"), given, LABEL)
    with pytest.raises(InputError, match="occurs twice"):
        read_second(file(pd.concat([table, table.head(1)]), "second.csv"), given, LABEL)
    with pytest.raises(InputError, match="one file of predictions, or two"):
        score_files([])


def test_several_classes_and_several_labels_are_scored(file):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1, (200, 3))
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    names = np.array(["ankle", "hand", "wrist"])
    keys = pd.DataFrame({"image": np.arange(200), "split": np.where(np.arange(200) < 100, "val", "test")})
    columns = pd.DataFrame(probability, columns=[f"prob_{name}" for name in names])
    label = (logits + rng.normal(0, 1, logits.shape)).argmax(1)
    for labels in (label, names[label]):  # as numbers and as names
        (scored,) = score_files([file(pd.concat([keys, columns], axis=1).assign(label=labels))], options=FEW)[0].files
        assert scored.classes == ("ankle", "hand", "wrist") and not scored.is_binary
        rows = keys["split"] == "test"
        expected = theirs.roc_auc_score(label[rows], probability[rows], multi_class="ovr")
        assert scored.scores.splits["test"]["image"].scores["auc"].value == pytest.approx(expected, abs=1e-9)
    several = pd.DataFrame(
        (logits + rng.normal(0, 1, logits.shape) > 0).astype(int), columns=[f"label_{n}" for n in names]
    )
    columns = pd.DataFrame(expit(logits), columns=columns.columns)
    (scored,) = score_files([file(pd.concat([keys, several, columns], axis=1))], options=FEW)[0].files
    expected = theirs.roc_auc_score(several[rows], columns[rows])
    assert scored.scores.splits["test"]["image"].scores["auc"].value == pytest.approx(expected, abs=1e-9)
    assert set(scored.scores.questions) == set(names)


def test_probabilities_of_classes_must_sum_to_one(file):
    table = pd.DataFrame({"image": [1, 2], "label": [0, 1], "prob_a": [0.7, 0.7], "prob_b": [0.3, 0.7]})
    with pytest.raises(InputError, match="line 3 .*do not sum to 1"):
        read_given(file(table))


@pytest.fixture(scope="module")
def folder_of_scores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scored")
    table = foreign(100)
    table.loc[table.index[-1], "patient_id"] = table["patient_id"].iloc[0]
    table.to_csv(folder / "ours.csv", index=False)
    blurred = expit(logit(table["prob"]) + np.random.default_rng(1).normal(0, 1, len(table)))
    table.assign(prob=blurred).to_csv(folder / "theirs.csv", index=False)
    code = (
        "import sys; from kmura.cli.main import cli\n"
        "cli.main(sys.argv[1:], standalone_mode=False)\n"
        "assert not {'tensorflow', 'keras', 'keras_hub', 'h5py'} & set(sys.modules), sorted(sys.modules)\n"
    )
    words = ["score", "ours.csv", "theirs.csv", "--label-column", "fracture", "--study-column", "exam"]
    words += ["--mixed-studies", "any-positive", "--by", "sex,age>=18", "--out", "out", "--resamples", "100"]
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_a_fresh_process_scores_and_writes_the_page_without_tensorflow_or_keras(folder_of_scores):
    folder, printed = folder_of_scores  # the process has checked its modules
    assert {path.name for path in (folder / "out").iterdir()} == {"metrics.json", "report.html", "report-figures"}
    for text in (
        "image: the column file_name (guessed from its name)",
        "calibration and thresholds are fitted on the split valid",
        "WARNING: 1 patient is in the splits test and valid",
        "sex: F",
        "age<18",
        "largest differences on fracture, test",
        "ours is better than theirs",
        "DeLong p",
    ):
        assert text in printed, text


def test_the_page_shows_everything_and_advises_nothing_that_needs_a_model(folder_of_scores):
    folder, printed = folder_of_scores
    page = (folder / "out" / "report.html").read_text()
    for text in (
        "2 files of predictions",
        "Does it work?",
        "Can the probabilities be trusted?",
        "Does it work alike for all subgroups?",
        "Largest differences on test",
        "Leakage between splits: 1 patient",
        "Comparison",
        "calibrated on valid",
    ):
        assert text in page, text
    for text in ("fit again", "epoch", "kmura evaluate", "kmura explain", "kmura fit", "best.keras", "these records"):
        assert text not in page.lower() and text not in printed.lower(), text


def test_the_metrics_are_complete_json(folder_of_scores):
    folder, _ = folder_of_scores
    found = json.loads((folder / "out" / "metrics.json").read_text())
    assert [one["name"] for one in found["files"]] == ["ours", "theirs"] and found["comparison"]["split"] == "test"
    one = found["files"][0]
    assert one["scores"]["splits"]["test"]["image"]["scores"]["auc"]["method"] == "logit"
    difference = one["subgroups"]["fracture"]["splits"]["test"]["image"]["differences"][0]
    assert difference["interval"]["method"] == "simultaneous" and 0 < difference["p"] <= 1


def test_bad_input_is_one_line_and_leaves_earlier_results(file, tmp_path, monkeypatch, capsys):
    path, out = file(foreign()), tmp_path / "out"
    words = ("score", path, "--label-column", "fracture", "--resamples", 20)
    out.mkdir()
    (out / "metrics.json").write_text("earlier")
    for wrong, message in (
        (("--by", "sexx"), "no column 'sexx' for --by; did you mean sex?"),
        (("--by", "age"), "give a condition, such as age>="),
        (("--by", "sex>=3"), "compare it with == or !="),
        (("--by", "age>="), "is neither a column nor a condition"),
        (("--fit-on", "vlid"), "did you mean valid?"),
        (("--threshold", "best"), "threshold rule 'best' is unknown"),
        (("--score", "aucc"), "'aucc'"),
        (("--mixed-studies", "maybe"), "'maybe' is not one of"),
    ):
        code, _, err = kmura_main(monkeypatch, capsys, *words, *wrong, "--out", out)
        assert code == 2 and message in err and err.count("\n") == 1, err
    code, _, err = kmura_main(monkeypatch, capsys, *words, "--out", path)
    assert code == 2 and "is a file, but --out is a folder" in err
    assert (out / "metrics.json").read_text() == "earlier" and len(list(out.iterdir())) == 1


def test_the_python_function_returns_what_the_command_shows(file):
    found = kmura.score(file(foreign()), label_column="fracture", by="sex", options=FEW)
    assert set(found.files[0].subgroups["fracture"].splits) == {"valid", "test"}


@pytest.mark.real
def test_real_predictions_of_a_detector():
    raw = pd.read_csv(REAL)
    by = ("gender", "laterality", "projection", "device")
    options = ScoreOptions(mixed_studies="any-positive", resamples=200)
    found = kmura.score(REAL, label_column="fracture", by=by, options=options)
    scores = found.files[0].scores.splits
    assert [round(scores[split]["image"].scores["auc"].value, 4) for split in ("valid", "test")] == [0.9789, 0.9796]
    assert "202 of 3235 studies have images of several labels" in " ".join(found.files[0].remarks)
    for split, rows in raw.groupby("split"):
        auc = scores[split]["image"].scores["auc"]
        studies = rows.groupby(["patient_id", "study_number"]).agg({"fracture": "max", "probability": "mean"})
        for level, units in (("image", rows), ("study", studies)):
            expected = reference(units["fracture"], units["probability"])
            assert values_of(scores[split][level].scores) == pytest.approx(expected, abs=1e-9)
        low, high = clustered_delong(rows["fracture"], rows["probability"], rows["patient_id"])
        assert (auc.low, auc.high) == pytest.approx((low, high), abs=1e-9)
        for name in by:
            for group in found.files[0].subgroups["fracture"].splits[split]["image"].groups[name]:
                part = rows[rows[name].astype(str) == group.name]
                if part["fracture"].nunique() == 2:
                    expected = theirs.roc_auc_score(part["fracture"], part["probability"])
                    assert group.scores["auc"].value == pytest.approx(expected, abs=1e-9)


def clustered_delong(label, score, patient):
    """The interval of an AUC with the variance of Obuchowski (1997), written out from the paper's formulas.

    It is symmetric on the scale of the logit, with the quantile of Student's distribution for the rarer class.
    """
    label, score, patient = (np.asarray(values) for values in (label, score, patient))
    one, other = score[label == 1], score[label == 0]
    kernel = (one[:, None] > other) + 0.5 * (one[:, None] == other)
    auc, (m, n) = kernel.mean(), kernel.shape
    of_one, of_other = kernel.mean(1), kernel.mean(0)  # structural components V10 and V01
    sums = []
    for name in np.unique(patient):
        mine = patient[label == 1] == name, patient[label == 0] == name
        sums.append(((of_one[mine[0]] - auc).sum(), (of_other[mine[1]] - auc).sum(), *(rows.any() for rows in mine)))
    first, second, has_one, has_other = np.array(sums, float).T
    (i10, i01), i = (has_one.sum(), has_other.sum()), len(sums)
    s10 = i10 / ((i10 - 1) * m) * (first**2).sum()
    s01 = i01 / ((i01 - 1) * n) * (second**2).sum()
    s11 = i / (i - 1) * (first * second).sum()
    deviation = np.sqrt(s10 / m + s01 / n + 2 * s11 / (m * n))
    half = stats.t.ppf(0.975, min(i10, i01) - 1) * deviation / (auc * (1 - auc))
    return expit(logit(auc) - half), expit(logit(auc) + half)
