"""Patients and identical images in two splits are found by the build; every later stage repeats the warning."""

import dataclasses
import json
import logging
import shutil

import pytest
from command import kmura_main
from conftest import make_mura_tree, textured
from test_report import evaluated
from test_scoring import simulated

from kmura.config import RecordsConfig
from kmura.data.dataset import Dataset
from kmura.records.leakage import find_leaks
from kmura.records.manifest import read_manifest
from kmura.records.verify import inspect_records
from kmura.records.writer import build_records

PATIENT = "1 patient is in the splits train and test (such as patient00003): scores on test are optimistic"


@pytest.fixture(scope="module")
def leaking(tmp_path_factory):
    """Records of two areas: in XR_HAND, one patient and one image of another patient are in train and test."""
    root = make_mura_tree(tmp_path_factory.mktemp("leaking") / "tree", areas=("XR_HAND", "XR_WRIST"), train_patients=6)
    study = "study1_negative"
    shutil.copytree(root / "train/XR_HAND/patient00005" / study, root / "valid/XR_HAND/patient00003" / study)
    for seed, path in enumerate((root / "valid/XR_HAND/patient00003").rglob("*.png")):
        textured(500 + seed).save(path)  # the same patient, other images
    shutil.copy(
        root / "train/XR_HAND/patient00001/study1_negative/image1.png",
        root / "valid/XR_HAND/patient10001/study1_negative/image2.png",
    )
    out = root.parent / "records"
    build_records(root, out, options=RecordsConfig(val_fraction=0), workers=1)
    return out


def test_the_build_finds_patients_and_identical_images_in_two_splits(leaking):
    leaks = read_manifest(leaking).leaks
    assert [(leak.area, leak.kind, leak.splits, leak.number) for leak in leaks] == [
        ("XR_HAND", "patients", ("train", "test"), 1),
        ("XR_HAND", "images", ("train", "test"), 1),
        ("all", "patients", ("train", "test"), 1),
        ("all", "images", ("train", "test"), 1),
    ]
    assert leaks[0].text.startswith(PATIENT)
    hand = "XR_HAND/patient00001/study1_negative/image1.png"
    other = "XR_HAND/patient10001/study1_negative/image2.png"
    assert leaks[1].example == f"train: train/{hand} = test: valid/{other}"


def test_the_build_and_inspect_agree(leaking, records):
    texts = [finding.text for finding in inspect_records(leaking).findings]
    assert any(text.startswith("patient patient00003 is in the splits train, test") for text in texts)
    assert any(text.startswith("1 group of identical images across train and test") for text in texts)
    assert read_manifest(records).leaks == ()


def test_a_resumed_build_finds_the_same(mura_root, records, tmp_path, monkeypatch):
    from kmura.records import writer

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(writer, "_publish", killed)
        build_records(mura_root, tmp_path / "out", workers=1)
    monkeypatch.setattr("kmura.records.shards._write_shard", killed)  # every shard is finished
    assert build_records(mura_root, tmp_path / "out", workers=1).leaks == ()
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".building")]


def test_a_patient_in_the_train_split_of_one_area_and_the_test_split_of_another_concerns_joint_models():
    @dataclasses.dataclass
    class Row:
        area: str
        split: str
        patient: str
        path: str
        sha256: str
        image_sha256: str

    records = [
        Row("A", "train", "p", "1", "1", "1"),
        Row("B", "val", "p", "2", "2", "2"),
        Row("B", "test", "q", "3", "3", "2"),
    ]
    leaks = [(leak.area, leak.kind, leak.splits) for leak in find_leaks(records, has_patients=True)]
    assert leaks == [
        ("B", "images", ("val", "test")),
        ("all", "patients", ("train", "val")),
        ("all", "images", ("val", "test")),
    ]
    assert {leak.kind for leak in find_leaks(records, has_patients=False)} == {"images"}


def test_build_tfrecords_warns_loudly(leaking, tmp_path, monkeypatch, capsys):
    root = leaking.parent / "tree"
    code, _, err = kmura_main(
        monkeypatch, capsys, "build-tfrecords", root, "--out", tmp_path / "out", "--val-fraction", 0, "--workers", 1
    )
    assert code == 0 and f"WARNING: XR_HAND: {PATIENT}" in err


def test_a_data_set_names_the_leaks_of_its_own_area(leaking):
    assert len(Dataset(leaking, "XR_HAND").leaks()) == len(Dataset(leaking).leaks()) == 2
    assert Dataset(leaking, "XR_WRIST").leaks() == ()


def test_patients_are_compared_in_records_of_an_earlier_kmura(leaking, tmp_path):
    old = shutil.copytree(leaking, tmp_path / "old")
    manifest = json.loads((old / "manifest.json").read_text())
    del manifest["leaks"]
    (old / "manifest.json").write_text(json.dumps(manifest))
    (text,) = Dataset(old, "XR_HAND").leaks()
    assert text.startswith(PATIENT)


def test_a_run_keeps_the_leaks_and_warns_of_them(leaking, caplog):
    from kmura.config import load_config
    from kmura.training.claim import describe

    config = load_config(None, {"model.backbone": "densenet_mini", "model.weights": "none", "data.image_size": 32})
    description = describe(Dataset(leaking, "XR_HAND", config.data), "baseline", config, kind="classification")
    assert description.leaks == Dataset(leaking, "XR_HAND").leaks()
    with caplog.at_level(logging.WARNING, "kmura"):
        description.warn_of_leaks()
    assert f"WARNING: XR_HAND: {PATIENT}" in caplog.text


@pytest.fixture
def leaky_run(tmp_path):
    """An evaluated run without a model whose records have a leak."""
    run = evaluated(tmp_path / "XR_WRIST" / "baseline", simulated())
    path = run / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"leaks": [f"{PATIENT}; correct the source"]}))
    return run


def test_the_report_repeats_the_warning(leaky_run):
    from kmura.report.gather import chapter_of

    assert chapter_of(leaky_run, 0).warnings[0] == f"Leakage between splits: {PATIENT}; correct the source."


def test_the_model_card_repeats_the_warning(leaky_run):
    from kmura.export.card import model_card
    from kmura.runs.run import Run
    from kmura.serving.contract import contract_of_run

    run = Run(leaky_run)
    evaluation, _ = run.part("evaluation")(run)
    card = model_card(run.description, evaluation, contract_of_run(run), trained="", made="", records="gone")
    assert f"**Leakage between splits:** {PATIENT}; correct the source." in card


@pytest.mark.parametrize("command", ["fit", "evaluate", "export"])
def test_training_evaluation_and_export_warn(command, leaky_run, leaking, caplog, monkeypatch):
    import kmura
    from kmura.runs.run import RunDescription

    class Warned(Exception):
        pass

    def warned(description):
        raise Warned(description.leaks)

    monkeypatch.setattr(RunDescription, "warn_of_leaks", warned)
    settings = {
        "model.backbone": "densenet_mini",
        "model.weights": "none",
        "data.image_size": 32,
        "train.select_on": "test",
    }
    with pytest.raises(Warned):
        if command == "fit":
            kmura.fit(leaking, area="XR_HAND", runs=leaky_run.parent.parent / "new", settings=settings)
        elif command == "evaluate":
            kmura.evaluate(leaky_run)
        else:
            kmura.export(leaky_run, leaky_run.parent / "served")


def test_the_images_of_every_class_are_counted_however_many_there_are(tmp_path, monkeypatch, capsys):
    for number in range(6):
        for image in range(10):
            path = tmp_path / "set" / f"grade{number}" / f"{image}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            textured(10 * number + image).save(path)
    names = ",".join(f"grade{number}" for number in range(6))
    build = ("build-tfrecords", tmp_path / "set", "--out", tmp_path / "out", "--layout", "folders", "--classes", names)
    code, out, _ = kmura_main(monkeypatch, capsys, *build, "--workers", 1)
    assert code == 0
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if "grade" in line]
    assert [row[:2] for row in rows] == [["set", f"grade{number}"] for number in range(6)]
    assert all(sum(map(int, row[2:])) == 10 for row in rows)
