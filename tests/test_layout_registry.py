"""A layout is one class in one file and one line in the registry; all other parts use the registry."""

import dataclasses
import re

import pytest
from command import kmura_main
from conftest import textured

import kmura
from kmura.config import RecordsConfig, load_config
from kmura.records.layouts import LAYOUTS
from kmura.records.layouts.base import NAME, Layout, Listing, Option, Source, area_name, size_and_change
from kmura.records.manifest import read_manifest


class FlatFolder(Layout):
    """The toy layout: image files PATIENT_STUDY_LABEL.png in one folder; some patients can be excluded."""

    name = "flat"
    help = "ROOT/PATIENT_STUDY_LABEL.png"
    options = (NAME, Option("without", "leave out these patients.", tuple))

    def listing(self, root, *, name, without):
        area, sources = area_name(name, root.name), []
        for file in sorted(root.glob("*.png")):
            patient, study, label = re.fullmatch(r"(p\d+)_(s\d+)_(\d)", file.stem).groups()
            if patient not in without:
                study, label = f"{patient}/{study}", (int(label),)
                sources.append(Source(file.name, area, patient, study, label, "train", *size_and_change(file)))
        return Listing(("well", "ill"), "binary", tuple(sources), ("train",), has_patients=True)


@pytest.fixture
def flat(tmp_path, monkeypatch):
    """A folder with the toy layout, which is registered for the test: 20 patients, 24 studies."""
    monkeypatch.setitem(LAYOUTS, FlatFolder.name, FlatFolder())
    (tmp_path / "knees").mkdir()
    for patient in range(20):
        for study in range(2 if patient % 5 == 0 else 1):
            textured(2 * patient + study).save(tmp_path / "knees" / f"p{patient}_s{study}_{patient % 2}.png")
    return tmp_path / "knees"


OPTIONS = RecordsConfig(val_fraction=0.3, test_fraction=0.3, records_per_shard=4)


@pytest.mark.slow
def test_a_toy_layout_can_be_built_trained_and_evaluated_with_patients(flat, tmp_path):
    from kmura.evaluation.scoring import ScoreOptions  # not at module level: worker processes import this file

    records = tmp_path / "records"
    manifest = kmura.build_records(flat, records, layout="flat", options=OPTIONS, without=["p19"], workers=1)
    counts = manifest.areas["knees"]
    assert manifest.layout == "flat" and manifest.has_patients
    assert sum(split.patients for split in counts.values()) == 19 and sum(s.studies for s in counts.values()) == 23
    settings = {"model.backbone": "densenet_mini", "model.weights": "none", "data.image_size": 32, "train.epochs": 1}
    result = kmura.fit(records, area="knees", runs=tmp_path / "runs", config=load_config("baseline", settings))
    evaluation = kmura.evaluate(result.folder, options=ScoreOptions(resamples=20))
    assert evaluation.has_patients
    assert evaluation.scores.splits["test"]["study"].units == counts["test"].studies


def test_worker_processes_use_a_layout_registered_only_by_the_caller(flat, tmp_path):
    one, two = (
        kmura.build_records(flat, tmp_path / f"records{workers}", layout="flat", options=OPTIONS, workers=workers)
        for workers in (1, 2)
    )
    assert dataclasses.asdict(one) == dataclasses.asdict(two)


def test_the_command_takes_choices_and_options_from_the_registry(flat, tmp_path, monkeypatch, capsys):
    code, out, _ = kmura_main(monkeypatch, capsys, "build-tfrecords", "--help")
    text = " ".join(out.split())
    assert (
        code == 0
        and "[mura|folders|medmnist|csv|dicom|unlabelled|flat]" in text
        and "flat ROOT/PATIENT_STUDY_LABEL.png" in text
    )
    assert "--without NAMES flat: leave out these patients." in text
    assert "--name TEXT folders, medmnist, csv, unlabelled, flat: name of the area" in text
    build = ("build-tfrecords", flat, "--out", tmp_path / "records", "--layout", "flat", "--workers", 1)
    code, _, _ = kmura_main(monkeypatch, capsys, *build, "--without", "p1, p2", "--name", "XR_KNEE")
    manifest = read_manifest(tmp_path / "records")
    assert code == 0 and sum(split.patients for split in manifest.areas["XR_KNEE"].values()) == 18
    code, _, err = kmura_main(monkeypatch, capsys, *build, "--from-csv")
    assert code == 2
    assert err.splitlines()[-1] == (
        "kmura: --from-csv does not go with --layout flat, which takes --name, --without; leave it out"
    )
