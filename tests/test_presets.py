"""The presets of the layout csv read files of the shape of the data sets, and the real COVID-19 collection."""

import collections
import os
from pathlib import Path

import pandas as pd
import pytest
from conftest import textured
from dicom_files import dicom
from label_files import write_csv, write_images

import kmura
from kmura.data.dataset import Dataset
from kmura.errors import InputError
from kmura.records.layouts import LAYOUTS, listing_of
from kmura.records.presets import preset, preset_names, preset_summary


def listed(root, name, **options):
    return listing_of(LAYOUTS["csv"], root, {"preset": name} | options)


def by_path(listing):
    return {source.path: source for source in listing.sources}


def label_names(listing, source):
    """The names of the positive labels, and with a question mark of the unknown ones."""
    marks = {1: "", -1: "?"}
    return {name + marks[value] for name, value in zip(listing.classes, source.label, strict=True) if value}


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_recipes_of_the_options_of_the_layout(name):
    options = {option.name: option for option in LAYOUTS["csv"].options}
    values = preset(name)
    assert {"csv", "image_column"} <= set(values) <= set(options) and ": ROOT with " in preset_summary(name)
    for option, value in values.items():
        assert options[option].value(value) == value


def test_nih(tmp_path):
    root = write_images(
        tmp_path, "images_001/images/00000001_000.png", "images_001/images/00000001_001.png",
        "images_002/images/00000003_002.png", "images_002/images/00000005_000.png",
    )  # fmt: skip
    write_csv(
        root / "Data_Entry_2017_v2020.csv",
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]",
        "00000001_000.png,Cardiomegaly,0,1,57,M,PA,2682,2749,0.143,0.143",
        "00000001_001.png,Cardiomegaly|Emphysema,1,1,58,M,PA,2894,2729,0.143,0.143",
        "00000003_002.png,Hernia,2,3,75,F,AP,2500,2048,0.168,0.168",
        "00000005_000.png,No Finding,0,5,69,F,PA,2048,2500,0.168,0.168",
    )
    listing = listed(root, "nih")
    assert listing.task == "multilabel" and listing.classes == ("Cardiomegaly", "Emphysema", "Hernia")
    assert listing.has_patients and not listing.irregular
    sources = by_path(listing)
    last = sources["images_001/images/00000001_001.png"]
    assert label_names(listing, last) == {"Cardiomegaly", "Emphysema"}
    assert (last.patient, last.study) == ("1", "1/1")
    assert last.columns == (("Patient Gender", "M"), ("Patient Age", "58"), ("View Position", "PA"))
    assert not label_names(listing, sources["images_002/images/00000005_000.png"])


CHEXPERT = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,"
    "Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)


@pytest.fixture
def chexpert(tmp_path):
    root = write_images(
        tmp_path / "CheXpert-v1.0-small", "train/patient00001/study1/view1_frontal.jpg",
        "train/patient00002/study2/view1_frontal.jpg", "train/patient00002/study2/view2_lateral.jpg",
        "valid/patient64541/study1/view1_frontal.jpg",
    )  # fmt: skip
    prefix = "CheXpert-v1.0-small/"
    write_csv(
        root / "train.csv", CHEXPERT,
        f"{prefix}train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,,,,,,,,0.0,,,,1.0",
        f"{prefix}train/patient00002/study2/view1_frontal.jpg,Female,87,Frontal,AP,,,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,",
        f"{prefix}train/patient00002/study2/view2_lateral.jpg,Female,87,Lateral,,,,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,",
    )  # fmt: skip
    zeros = ",".join(["0.0"] * 10)
    write_csv(
        root / "valid.csv", CHEXPERT,
        f"{prefix}valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,AP,0.0,1.0,1.0,{zeros},0.0",
    )  # fmt: skip
    return root


def test_chexpert(chexpert):
    listing = listed(chexpert, "chexpert")
    assert listing.task == "multilabel" and len(listing.classes) == 13 and "No Finding" not in listing.classes
    assert listing.splits_given == ("train", "test") and listing.has_patients
    sources = by_path(listing)
    first = sources["train/patient00001/study1/view1_frontal.jpg"]
    assert label_names(listing, first) == {"Support Devices"} and min(first.label) == 0  # blanks are negative
    second = sources["train/patient00002/study2/view1_frontal.jpg"]
    assert label_names(listing, second) == {
        "Lung Opacity", "Fracture", "Cardiomegaly?", "Edema?", "Consolidation?", "Atelectasis?", "Pleural Effusion?"
    }  # fmt: skip
    assert (second.patient, second.study) == ("patient00002", "patient00002/study2")
    assert sources["valid/patient64541/study1/view1_frontal.jpg"].split == "test"
    assert dict(first.columns) == {"Sex": "Female", "Age": "68", "Frontal/Lateral": "Frontal", "AP/PA": "AP"}


def test_options_that_are_given_go_before_those_of_a_preset(chexpert):
    listing = listed(chexpert, "chexpert", uncertain="positive", label_columns=("Edema", "Fracture"),
                     where='`Frontal/Lateral` == "Frontal"', csv=("train.csv",))  # fmt: skip
    assert listing.classes == ("Edema", "Fracture") and listing.splits_given == ("train",)
    assert [source.label for source in listing.sources] == [(0, 0), (1, 1)]
    assert listing.notes[0].startswith("preset chexpert (CheXpert): --image-column Path --blank negative")
    with pytest.raises(InputError, match=r"has no column 'Oedema' \(--label-columns\); did you mean 'Edema'"):
        listed(chexpert, "chexpert", label_columns=("Oedema",))


def test_the_condition_of_a_preset_holds_beside_the_one_given(tmp_path):
    root = write_images(tmp_path, "a.png", "b.png", "c.png")
    rows = ("patientid,finding,modality,view,sex,age,filename", "1,No Finding,X-ray,PA,M,5,a.png",
            "2,COVID-19,X-ray,L,M,5,b.png", "3,COVID-19,CT,PA,M,5,c.png")  # fmt: skip
    write_csv(root / "metadata.csv", *rows)
    assert [source.path for source in listed(root, "covid", where='view == "PA" or view == "L"').sources] == [
        "a.png",
        "b.png",
    ]


VINDR = (
    "Aortic enlargement,Atelectasis,Calcification,Cardiomegaly,Clavicle fracture,Consolidation,Edema,Emphysema,"
    "Enlarged PA,ILD,Infiltration,Lung Opacity,Lung cavity,Lung cyst,Mediastinal shift,Nodule/Mass,Pleural effusion,"
    "Pleural thickening,Pneumothorax,Pulmonary fibrosis,Rib fracture,Other lesion,COPD,Lung tumor,"
    "Pneumonia,Tuberculosis"
)


def test_vindr_cxr(tmp_path):
    for path in ("train/000434271f63a053c4128a0ba6352c7f.dicom", "test/002a34c58c5b758217ed1f584ccbcfe9.dicom"):
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).write_bytes(dicom())
    nothing = ["0"] * 24

    def row(image, reader, first, second, *rest):
        return ",".join([image, *reader, first, second, *nothing, *rest])

    write_csv(
        tmp_path / "annotations/image_labels_train.csv", f"image_id,rad_id,{VINDR},Other diseases,No finding",
        row("000434271f63a053c4128a0ba6352c7f", ["R6"], "1", "0", "1", "0"),
        row("000434271f63a053c4128a0ba6352c7f", ["R2"], "1", "1", "0", "0"),
        row("000434271f63a053c4128a0ba6352c7f", ["R3"], "0", "0", "0", "1"),
    )  # fmt: skip
    write_csv(
        tmp_path / "annotations/image_labels_test.csv", f"image_id,{VINDR},Other disease,No finding",
        row("002a34c58c5b758217ed1f584ccbcfe9", [], "0", "1", "1", "0"),
    )  # fmt: skip
    listing = listed(tmp_path, "vindr-cxr")
    assert listing.task == "multilabel" and len(listing.classes) == 27 and not listing.has_patients
    train, test = (by_path(listing)[path] for path in sorted(by_path(listing), reverse=True))
    assert (train.split, test.split) == ("train", "test")
    assert label_names(listing, train) == {"Aortic enlargement"}  # of two of three readers
    assert label_names(listing, test) == {"Atelectasis", "Other diseases"}
    assert not listing.irregular


def test_rsna(tmp_path):
    (tmp_path / "stage_2_train_images").mkdir()
    names = ["0004cfab-14fd-4e49-80ba-63a80b6bddd6", "00436515-870c-4b36-a041-de91049b9ab4"]
    for name in names:
        (tmp_path / "stage_2_train_images" / f"{name}.dcm").write_bytes(dicom())
    write_csv(
        tmp_path / "stage_2_train_labels.csv", "patientId,x,y,width,height,Target", f"{names[0]},,,,,0",
        f"{names[1]},264.0,152.0,213.0,379.0,1", f"{names[1]},562.0,152.0,256.0,453.0,1",
    )  # fmt: skip
    listing = listed(tmp_path, "rsna")
    assert listing.task == "binary" and listing.classes == ("no pneumonia", "pneumonia")
    assert {source.path[21:57]: source.label for source in listing.sources} == {names[0]: (0,), names[1]: (1,)}
    assert not listing.has_patients and not listing.irregular


def test_grazped(tmp_path):
    stems = ["0001_1297860395_01_WRI-L1_M014", "0001_1297860435_01_WRI-L2_M014", "0002_0354485735_01_WRI-R1_F012"]
    root = write_images(
        tmp_path, f"images_part1/{stems[0]}.png", f"images_part1/{stems[1]}.png", f"images_part2/{stems[2]}.png"
    )
    write_csv(
        root / "dataset.csv",
        "filestem,patient_id,study_number,timehash,gender,age,laterality,projection,initial_exam,ao_classification,cast,"
        "diagnosis_uncertain,osteopenia,fracture_visible,metal,pixel_spacing,device_manufacturer",
        f"{stems[0]},1,1,1297860395,M,14.0,L,1,1,23r-M/2.1,,,,1,,0.144,Siemens",
        f"{stems[1]},1,1,1297860435,M,14.0,L,2,1,23r-M/2.1,,,,,,0.144,Siemens",
        f"{stems[2]},2,1,354485735,F,12.0,R,1,1,,,,,,,0.144,Agfa",
    )
    listing = listed(root, "grazped")
    assert listing.task == "binary" and listing.classes == ("no fracture", "fracture") and listing.has_patients
    sources = by_path(listing)
    first = sources[f"images_part1/{stems[0]}.png"]
    assert (first.patient, first.label, dict(first.columns)["device_manufacturer"]) == ("1", (1,), "Siemens")
    assert [source.label for source in listing.sources] == [(1,), (0,), (0,)]
    listing = listed(root, "grazped", study_column="study_number", mixed_studies="any-positive")
    assert [(source.study, source.label) for source in listing.sources] == [("1/1", (1,)), ("1/1", (1,)), ("2/1", (0,))]


def test_covid(tmp_path):
    root = tmp_path
    (root / "images").mkdir()
    for seed, name in enumerate(("a.jpg", "b.png", "c.jpeg", "d.jpg")):
        textured(seed).save(root / "images" / name)
    write_csv(
        root / "metadata.csv", "patientid,offset,sex,age,finding,view,modality,folder,filename,url,license",
        "2,0,M,65,Pneumonia/Viral/COVID-19,PA,X-ray,images,a.jpg,,CC BY",
        "2,3,M,65,COVID-19/ ARDS,AP Supine,X-ray,images,b.png,,CC BY",
        "19a,,F,,No Finding,L,X-ray,images,c.jpeg,,CC BY",
        "20,,,,todo,PA,X-ray,images,d.jpg,,CC BY",
        "21,,,,todo,Axial,CT,volumes,coronacases_1.nii.gz,,CC BY",
    )  # fmt: skip
    listing = listed(root, "covid")
    assert listing.classes == ("ARDS", "COVID-19", "Pneumonia", "Viral")
    sources = by_path(listing)
    assert label_names(listing, sources["images/a.jpg"]) == {"Pneumonia", "Viral", "COVID-19"}
    assert label_names(listing, sources["images/b.png"]) == {"ARDS", "COVID-19"}
    assert sources["images/c.jpeg"].label == (0, 0, 0, 0) and sources["images/d.jpg"].label == (-1, -1, -1, -1)
    assert {source.patient for source in listing.sources} == {"2", "19a", "20"} and not listing.irregular


@pytest.fixture(scope="module")
def covid_root():
    root = os.environ.get("KMURA_REAL_DATA")
    if not root:
        pytest.skip("KMURA_REAL_DATA is not set")
    return Path(root) / "covid_chestxray"


@pytest.mark.real
def test_the_real_covid_collection_counts_as_pandas_counts(covid_root, tmp_path):
    where, views = 'view in ["PA", "AP", "AP Supine"]', ["PA", "AP", "AP Supine"]
    manifest = kmura.build_records(
        covid_root, tmp_path / "out", layout="csv", preset="covid", where=where, name="chest"
    )
    table, sizes = pd.read_csv(covid_root / "metadata.csv"), pd.read_csv(covid_root / "sizes.csv")
    saved = dict(zip(sizes["original_name"], sizes["saved_name"], strict=True))
    xray = table[(table["modality"] == "X-ray") & table["view"].isin(views)]
    there = xray[xray["filename"].isin(saved)].assign(saved=lambda rows: rows["filename"].map(saved))
    dataset = Dataset(tmp_path / "out", "chest")
    rows = pd.concat([dataset.rows(split).assign(split=split) for split in dataset.splits])
    assert len(rows) == len(there) == 571 == sum(counts.images for counts in manifest.areas["chest"].values())
    assert rows["patient"].nunique() == there["patientid"].nunique()
    assert rows["view"].value_counts().to_dict() == there["view"].value_counts().to_dict()
    assert rows.groupby("patient")["split"].nunique().max() == 1
    assert set(rows["image"]) == {f"images_256/{name}" for name in there["saved"]}
    findings = collections.Counter(
        part.strip()
        for cell in there["finding"]
        for part in cell.split(",")
        if cell not in ("todo", "Unknown", "No Finding")
    )
    labels = rows[[column for column in rows if column.startswith("label_")]]
    assert {column.removeprefix("label_"): int((labels[column] == 1).sum()) for column in labels} == findings
    assert (labels == -1).all(axis=1).sum() == there["finding"].isin(["todo", "Unknown"]).sum()
    one = rows.merge(there.assign(image="images_256/" + there["saved"]), on="image", suffixes=("", " of the table"))
    assert (one["sex"] == one["sex of the table"].fillna("")).all()
    assert (one["patient"] == one["patientid"]).all()
    missing = {item.kind: item.number for item in manifest.passed_over}["rows whose image is missing"]
    assert missing == len(xray) - len(there)
