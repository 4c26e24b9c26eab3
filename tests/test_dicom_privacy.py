"""No identifier leaves a folder of DICOM files: every output is searched for the identifiers of its input."""

import dataclasses
import io
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from command import kmura_main
from dicom_files import dicom
from dicom_tree import leaks, make_dicom_tree

import kmura
from kmura.config import load_config
from kmura.data.index import read_index
from kmura.evaluation.scoring import ScoreOptions
from kmura.prediction.predict import predict
from kmura.records.dicom import decode_dicom
from kmura.records.dicom_tags import identifies, read_tags
from kmura.records.images import UnreadableImage
from kmura.report.report import report
from kmura.runs.run import RunFolder, write_run
from kmura.training.claim import describe

pydicom = pytest.importorskip("pydicom")
KMURA = [sys.executable, "-c", "from kmura.cli.main import main; main()"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A folder of DICOM files with irregular tags, and with files that cannot be decoded."""
    tree = make_dicom_tree(tmp_path_factory.mktemp("private") / "export", patients=12)
    for image in tree.images[:3]:
        file = tree.root / image["file"]
        file.write_bytes(file.read_bytes()[:-99])  # cut off within the pixels
    broken = tree.root / "Wilhelmina03_Featherstone03" / "Featherstone03.dcm"
    broken.write_bytes(bytes(128) + b"DICM" + b"\xff" * 300)
    return tree


@pytest.fixture(scope="module")
def built(tree, tmp_path_factory):
    """(folder, texts): records made by the command line, and everything that it printed."""
    folder = tmp_path_factory.mktemp("built")
    csv = tree.csv(folder / "labels.csv", "StudyInstanceUID", tree.labels("study") | {"1.2.840.77.5": 1})
    done = _run("build-tfrecords", tree.root, "--layout", "dicom", "--csv", csv, "--label-column", "finding",
                "--key-file", folder / "key", "--out", folder / "records", "--workers", "2")  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, done.stdout + done.stderr


def _run(*arguments, **options) -> subprocess.CompletedProcess:
    return subprocess.run([*KMURA, *map(str, arguments)], capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def run(built):
    """An evaluated run of a random network on these records."""
    folder = built[0] / "runs" / "HAND" / "baseline"
    folder.mkdir(parents=True)
    config = load_config(None, {"model.backbone": "densenet_mini", "model.weights": "none", "data.image_size": 32})
    dataset = kmura.Dataset(built[0] / "records", "HAND", config.data)
    description = describe(dataset, "baseline", config, kind="classification", command="a test")
    write_run(RunFolder(folder), dataclasses.replace(description, finished=True))
    kmura.build_model(backbone="densenet_mini", weights="none", image_size=32, seed=3).save(folder / "best.keras")
    kmura.evaluate(folder, options=ScoreOptions(resamples=20))
    return folder


def test_the_search_finds_an_identifier_in_any_form(tree, tmp_path):
    (tmp_path / "file").write_text("a FEATHERSTONE03 b")
    (tmp_path / "19420317.txt").write_bytes(tree.images[0]["sop"].encode("utf-16-le"))
    assert len(leaks(tree.identifiers, tmp_path)) == 3 and leaks(tree.identifiers, "Mr Wilhelmina01")
    assert not leaks(tree.identifiers, "patient_0123456789abcdef")


def test_records_manifest_and_messages_of_a_build_have_no_identifiers(tree, built, monkeypatch, capsys):
    folder, printed = built
    assert printed.count("skipped patient_") == 3 and printed.count("skipped file_") == 1
    assert "1 other files; 1 rows of the CSV without an image (row 26)" in printed
    code, out, err = kmura_main(monkeypatch, capsys, "inspect", folder / "records")
    assert code == 0 and "4 source files were skipped" in out
    assert leaks(tree.identifiers | {"1.2.840.77.5"}, folder / "records", printed, out + err) == []


def test_predictions_and_report_have_no_identifiers(tree, built, run, sketched):
    report([run], built[0] / "report.html", resamples=20)
    assert "patient_" in (run / "predictions.csv").read_text()
    assert leaks(tree.identifiers, run, built[0] / "report.html", built[0] / "report-figures") == []


@pytest.mark.slow
def test_explanations_have_no_identifiers(tree, run):
    kmura.explain(run)
    assert leaks(tree.identifiers, run) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label-column", "who"], "column who of labels.csv holds identifiers of patients; give a column of labels"),
        (["--label-column", "whom"], "labels.csv has no column 'whom'; did you mean 'who'?"),
        (["--label-column", "no"], "first line of no-header.csv is no line of column names; add one"),
        (["--label-column", "label", "--strict"], "build without --strict to leave it out"),
    ],
)
def test_errors_of_a_build_have_no_identifiers(tree, built, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    rows = [f"{image['patient']},{image['sop']},Featherstone{number:02},0" for number, image in enumerate(tree.images)]
    Path("labels.csv").write_text("\n".join(["PatientID,SOPInstanceUID,who,label", *rows]))
    Path("no-header.csv").write_text("\n".join(rows))
    csv = "no-header.csv" if "no" in options else "labels.csv"
    code, out, err = kmura_main(monkeypatch, capsys, "build-tfrecords", tree.root, "--layout", "dicom", "--csv", csv,
                                "--join-by", "PatientID", "--join-column", "PatientID", "--key-file", built[0] / "key",
                                *options)  # fmt: skip
    assert code == 2 and message in err, err
    assert leaks(tree.identifiers, out + err) == []


def test_predict_has_no_identifiers_in_tables_notes_and_maps(tree, built, run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tree.root.parent)
    done = _run("predict", run, "export", "--out", tmp_path / "answers.csv", "--cam", tmp_path / "maps", "--group",
                "folder", "--link-file", tmp_path / "links.csv")  # fmt: skip
    assert done.returncode == 1 and "skipped patient_" in done.stderr, done.stderr
    assert "49 DICOM files are named by pseudonyms" in done.stderr
    assert leaks(tree.identifiers, done.stdout + done.stderr, tmp_path / "answers.csv", tmp_path / "maps") == []
    assert len(list((tmp_path / "maps").rglob("*.png"))) == 45
    links = (tmp_path / "links.csv").read_text()
    assert all(image["file"] in links for image in tree.images)


def test_predict_keeps_names_that_do_not_identify_a_patient(run, tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "IM0001").write_bytes(dicom(PatientID="MRN-12345", PatientName="Featherstone^W"))
    (tmp_path / "scans" / "mrn_12345.dcm").write_bytes(dicom(PatientID="MRN-12345", SOPInstanceUID="1.2.3.4.5"))
    caplog.set_level(logging.INFO)
    names = predict(run, tmp_path / "scans").images["image"]
    assert names[0].endswith("scans/IM0001") and names[1].startswith("patient_") and "1 DICOM files" in caplog.text
    (tmp_path / "key").write_text("a" * 64)
    names = predict(run, tmp_path / "scans", key_file=tmp_path / "key").images["image"]
    assert all(name.startswith("patient_") for name in names)


def test_predictions_and_records_have_the_same_pseudonyms(tree, built, run):
    folder = built[0]
    names = set(predict(run, tree.root, key_file=folder / "key").images["image"])

    stored = {
        name
        for split in ("train", "val", "test")
        for name in read_index(folder / "records", "HAND", split).keys["image"]
    }  # noqa: E501
    assert stored == names


@pytest.mark.parametrize(
    ("text", "identifier", "shown"),
    [
        ("a/Doe_Jane/IM1", "DOE", True),
        ("a/doejane/IM1", "Jane", True),
        ("2019-03-04/IM1", "20190304", True),
        ("04.03.2019/IM1", "20190304", True),
        ("03042019", "20190304", True),
        ("a/mrn 12345", "MRN-12345", True),
        ("a/7/IM1", "7", True),
        ("a/17/IM1", "7", False),
        ("a/IM1", "DOE", False),
        ("2019-03-05", "20190304", False),
    ],
)
def test_identifiers_in_paths_are_recognised(text, identifier, shown):
    assert identifies(text, (identifier,)) is shown


def test_messages_of_decoders_lose_identifiers(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("instance 1.2.3.4 of Featherstone^W in JPEG")

    monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.as_array", fail)
    with pytest.raises(UnreadableImage) as error:
        decode_dicom(dicom(SOPInstanceUID="1.2.3.4", PatientName="Featherstone^W"))
    assert str(error.value) == "DICOM that cannot be decoded (instance ... of ... in JPEG)"


def test_pydicom_quotes_no_values_in_warnings_and_logs(tmp_path, recwarn, caplog):
    caplog.set_level(logging.WARNING, "pydicom")
    data = dicom(SOPInstanceUID="1.2.Featherstone00")
    caplog.clear()
    assert pydicom.dcmread(io.BytesIO(data)).SOPInstanceUID == "1.2.Featherstone00"
    assert "Featherstone00" in caplog.text  # what it does by itself
    recwarn.clear()
    caplog.clear()
    warnings.simplefilter("always")
    (tmp_path / "IM1").write_bytes(data)
    decode_dicom(data)
    assert read_tags(tmp_path / "IM1").sop == "1.2.Featherstone00" and not recwarn.list and not caplog.text
