"""The layout of DICOM folders: what is taken from the tags, how labels are joined, which files are left out."""

import json
import re
import shutil

import numpy as np
import pytest
from command import kmura_main
from dicom_files import RAMP, dicom, other_object
from dicom_tree import make_dicom_tree

import kmura
from kmura.config import RecordsConfig
from kmura.data.index import read_index
from kmura.errors import InputError
from kmura.records import schema, tfrecord
from kmura.records.dicom import decode_dicom
from kmura.records.images import encode_png
from kmura.records.layouts import layout_named, listing_of
from kmura.records.manifest import read_manifest
from kmura.records.sidecar import read_shard_index

pydicom = pytest.importorskip("pydicom")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_dicom_tree(tmp_path_factory.mktemp("dicom") / "tree")


@pytest.fixture
def key(tmp_path):
    return str(tmp_path / "secret" / "key")


def listed(root, key, **options):
    return listing_of(layout_named("dicom"), root, {"key_file": key, **options})


def one(root, key, **tags):
    """The listing of a folder with one file of these tags."""
    root.mkdir(exist_ok=True)
    (root / "IM1").write_bytes(
        dicom(**{"SOPInstanceUID": "1.2.3", "PatientID": "P1", "BodyPartExamined": "HAND"} | tags)
    )
    return listed(root, key)


def test_patients_studies_and_areas_come_from_the_tags(tree, key):
    listing = listed(tree.root, key)
    assert listing.has_patients and len(listing.sources) == len(tree.images) == 48 and not listing.skipped
    assert {source.area for source in listing.sources} == {"HAND"}
    by_file = {source.file: source for source in listing.sources}
    for name in ("patient", "study"):
        names = {(image[name], getattr(by_file[image["file"]], name)) for image in tree.images}
        assert len(names) == len({mine for mine, _ in names}) == len({theirs for _, theirs in names})
    assert all(source.path.startswith(f"{source.study}/image_") for source in listing.sources)
    assert all(source.study.startswith(f"{source.patient}/study_") for source in listing.sources)
    assert len({source.path for source in listing.sources}) == 48
    assert [(item.kind, item.number) for item in listing.passed_over] == [
        ("DICOM directories (DICOMDIR)", 1), ("other files", 1)
    ]  # fmt: skip


def test_the_tags_of_an_image_are_kept_in_record_and_index(tree, key, tmp_path):
    csv = tree.csv(tmp_path / "labels.csv", "PatientID", tree.labels("patient"))
    manifest = kmura.build_records(tree.root, tmp_path / "records", layout="dicom", workers=1, csv=str(csv),
                                   label_column="finding", key_file=key)  # fmt: skip
    shard = manifest.shards()[0]
    index = read_shard_index(tmp_path / "records", shard)
    records = [schema.decode(data) for data in tfrecord.read_frames(tmp_path / "records" / shard.file)]
    kept = {name: [json.loads(record.columns)[name] for record in records] for name in index.columns}
    assert kept == index.columns and manifest.columns == tuple(index.columns)
    facts = {name: texts[0] for name, texts in index.columns.items()}
    assert facts.pop("view") in ("PA", "LL") and facts.pop("sex") in "FM" and 40 <= int(facts.pop("age")) <= 80
    assert re.fullmatch("series_[0-9a-f]{16}", facts.pop("series"))
    assert facts == {"modality": "DX", "body_part": "HAND", "laterality": "R"}
    assert len(read_index(tmp_path / "records", "HAND", "train")) == manifest.areas["HAND"]["train"].images


@pytest.mark.parametrize(
    ("tags", "age"),
    [
        ({"PatientAge": "045Y"}, "45"),
        ({"PatientAge": "006M"}, "0.5"),
        ({"PatientAge": "018M"}, "1"),
        ({"PatientAge": "096Y"}, "90"),
        ({"PatientBirthDate": "19800304", "StudyDate": "20200303"}, "39"),
        ({"PatientBirthDate": "19800304", "StudyDate": "20200304"}, "40"),
        ({"PatientBirthDate": "19800304", "StudyDate": "19700304"}, None),
        ({"PatientAge": "old"}, None),
    ],
)
def test_ages_are_years_and_at_most_90(tmp_path, key, tags, age):
    assert dict(one(tmp_path / "root", key, **tags).sources[0].columns)["age"] == (age or "")


def test_pixels_are_those_of_predict(tree, key, tmp_path):
    listing = listed(tree.root, key)
    for source in listing.sources[:4]:
        image, sha256 = layout_named("dicom").read(tree.root, source, 1)
        data = (tree.root / source.file).read_bytes()
        assert (np.asarray(image) == np.asarray(decode_dicom(data))).all() and len(sha256) == 64


@pytest.mark.parametrize(
    ("column", "tag", "options"),
    [
        ("PatientID", "patient", {}),
        ("patient_id", "patient", {}),
        ("StudyInstanceUID", "study", {}),
        ("AccessionNumber", "accession", {}),
        ("SOPInstanceUID", "sop", {}),
        ("exam", "accession", {"join_by": "AccessionNumber", "join_column": "exam"}),
        ("file", "file", {}),
        ("path", "windows", {}),
        ("image", "name", {}),
    ],
)
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_labels_are_joined_by_ids_uids_and_file_names(tree, key, tmp_path, column, tag, options, separator):
    def value(image):
        if tag == "windows":
            return "D:\\export\\" + image["file"].replace("/", "\\")
        return image["file"].rpartition("/")[2].removesuffix(".dcm") if tag == "name" else image[tag]

    csv = tree.csv(tmp_path / "labels.csv", column, {value(image): image["label"] for image in tree.images},
                   separator=separator)  # fmt: skip
    listing = listed(tree.root, key, csv=str(csv), label_column="finding", **options)
    right = {image["file"]: (image["label"],) for image in tree.images}
    assert {source.file: source.label for source in listing.sources} == right
    assert listing.classes == ("negative", "positive") and listing.task == "binary" and listing.splits_given == ()


def test_several_label_columns_give_a_multilabel_task_with_unknowns(tree, key, tmp_path):
    patients = sorted({image["patient"] for image in tree.images})
    rows = [f"{name},{number % 2},{('', '-1', '1.0')[number % 3]}" for number, name in enumerate(patients)]
    (tmp_path / "labels.csv").write_text("\n".join(["PatientID,mass,nodule", *rows]))
    listing = listed(tree.root, key, csv=str(tmp_path / "labels.csv"), label_columns=("mass", "nodule"))
    assert listing.classes == ("mass", "nodule") and listing.task == "multilabel"
    patient_of = {image["file"]: image["patient"] for image in tree.images}
    for source in listing.sources:
        number = patients.index(patient_of[source.file])
        assert source.label == (number % 2, (-1, -1, 1)[number % 3])


def test_class_names_need_an_order_if_there_are_two(tree, key, tmp_path):
    names = {name: ("fracture", "none")[label] for name, label in tree.labels("patient").items()}
    csv = str(tree.csv(tmp_path / "labels.csv", "PatientID", names))
    with pytest.raises(InputError, match="classes fracture: which is positive|classes fracture, .*--positive-class"):
        listed(tree.root, key, csv=csv, label_column="finding")
    csv = str(
        tree.csv(
            tmp_path / "labels.csv",
            "PatientID",
            {name: text.replace("none", "no finding") for name, text in names.items()},
        )
    )  # noqa: E501
    listing = listed(tree.root, key, csv=csv, label_column="finding", positive_class="fracture")
    assert listing.classes == ("no finding", "fracture")
    three = {name: "abc"[number % 3] for number, name in enumerate(names)}
    csv = str(tree.csv(tmp_path / "labels.csv", "PatientID", three))
    assert listed(tree.root, key, csv=csv, label_column="finding").classes == ("a", "b", "c")


def test_contradicting_absent_and_unused_rows_are_listed_by_their_numbers(tree, key, tmp_path):
    labels = tree.labels("study")
    first, second, *_ = labels
    csv = tmp_path / "labels.csv"
    rows = [f"{name},{label}" for name, label in labels.items() if name != second]
    rows += [f"{first},{1 - labels[first]}", f"{rows[1].split(',')[0]},", "1.2.3.4,1"]
    csv.write_text("\n".join(["StudyInstanceUID,finding", *rows]))
    listing = listed(tree.root, key, csv=str(csv), label_column="finding")
    reasons = sorted(item.reason for item in listing.skipped)
    assert reasons == ["no row in labels.csv"] * 2 + ["rows 2 and 25 of labels.csv contradict each other"] * 2
    assert len(listing.sources) == 44
    assert listing.passed_over[-1].examples == ("row 27",)


def test_without_a_csv_labels_are_unknown_and_nothing_is_held_out_for_testing(tree, key):
    listing = listed(tree.root, key)
    assert {source.label for source in listing.sources} == {(-1,)} and listing.splits_given == ("test",)


def test_no_patient_is_in_two_splits_and_workers_do_not_matter(tree, key, tmp_path):
    csv = str(tree.csv(tmp_path / "labels.csv", "PatientID", tree.labels("patient")))
    for workers in (1, 2):
        out = tmp_path / f"records{workers}"
        kmura.build_records(tree.root, out, layout="dicom", workers=workers, csv=csv, label_column="finding",
                            key_file=key, options=RecordsConfig(records_per_shard=8))  # fmt: skip
    manifest = read_manifest(out)
    assert not manifest.leaks and manifest.has_patients
    patients = [set(read_index(out, "HAND", split).keys["patient"]) for split in ("train", "val", "test")]
    assert sum(map(len, patients)) == len(set().union(*patients)) == 12
    for shard in manifest.shards():
        for file in (shard.file, shard.index):
            assert (tmp_path / "records1" / file).read_bytes() == (out / file).read_bytes()


def test_another_key_gives_other_pseudonyms_and_the_same_key_the_same(tree, key, tmp_path):
    first, again, other = (
        {source.file: source.path for source in listed(tree.root, file).sources} for file in (key, key, tmp_path / "k2")
    )
    assert first == again and not set(first.values()) & set(other.values())


def test_moved_files_keep_the_fingerprint(tree, key, tmp_path):
    for name in ("here", "there"):
        folder = tmp_path / "root" / name
        folder.parent.mkdir(exist_ok=True)
        if name == "here":
            shutil.copytree(tree.root, folder)
        else:
            (tmp_path / "root" / "here").rename(folder)
        kmura.build_records(tmp_path / "root", tmp_path / "records", layout="dicom", workers=1, key_file=key)


def test_a_new_key_file_is_random_and_only_for_its_user(tmp_path, key, monkeypatch, tree):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    listed(tree.root, None)
    made = tmp_path / "config" / "kmura" / "pseudonyms.key"
    assert re.fullmatch("[0-9a-f]{64}\n", made.read_text()) and made.stat().st_mode & 0o777 == 0o600
    listed(tree.root, key)
    assert made.read_text() != open(key).read()


@pytest.mark.parametrize("content", [b"", b"secret\n", b"\xff" * 64, b"0" * 63])
def test_a_file_that_is_no_key_is_refused_and_stays(tree, tmp_path, content):
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(InputError, match=r"key is not a key file \(64 hexadecimal digits\); give another --key-file"):
        listed(tree.root, str(tmp_path / "key"))
    assert (tmp_path / "key").read_bytes() == content


@pytest.mark.parametrize("option", ["key_file", "link_file"])
def test_keys_and_links_inside_the_records_are_refused(tree, tmp_path, option, key):
    options = {"key_file": key, option: str(tmp_path / "records" / "secrets" / "file")}
    with pytest.raises(InputError, match=f"--{option.replace('_', '-')} .* lies in .*records"):
        kmura.build_records(tree.root, tmp_path / "records", layout="dicom", **options)
    assert not (tmp_path / "records").exists()


def test_the_link_file_leads_from_a_pseudonym_to_its_file(tree, key, tmp_path):
    listing = listed(tree.root, key, link_file=str(tmp_path / "links.csv"))
    lines = (tmp_path / "links.csv").read_text().splitlines()
    assert lines[0] == "image,file" and len(lines) == 49
    assert f"{listing.sources[0].path},{listing.sources[0].file}" in lines
    assert (tmp_path / "links.csv").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("choice", "frame"), [("first", 0), ("middle", 2), ("last", 3), ("2", 1)])
def test_a_frame_of_several_is_chosen_by_option(tmp_path, key, choice, frame):
    frames = np.stack([np.roll(RAMP, 5 * number, axis=1) for number in range(4)])
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "IM1").write_bytes(dicom(frames, SOPInstanceUID="1.2", PatientID="P1"))
    (source,) = listed(tmp_path / "root", key, name="HAND", frame=choice).sources
    image, _ = layout_named("dicom").read(tmp_path / "root", source, 1)
    assert (np.asarray(image) == np.asarray(decode_dicom(dicom(frames[frame])))).all()
    assert source.path.endswith(f"_frame{frame + 1}")


@pytest.mark.parametrize(
    ("tags", "text"),
    [
        ({"NumberOfFrames": 4, "PixelData": RAMP.tobytes() * 4}, "DICOM of 4 frames; choose one with --frame"),
        ({"BurnedInAnnotation": "YES"}, "BurnedInAnnotation is YES.*--burned-in"),
        ({"BodyPartExamined": None}, "no BodyPartExamined.*give --name"),
        ({"BodyPartExamined": "a^b"}, "no BodyPartExamined.*give --name"),
    ],
)
def test_files_that_need_an_option_are_skipped_and_name_it(tmp_path, key, tags, text):
    root = tmp_path / "root"
    root.mkdir()
    values = {"PatientID": "P1", "BodyPartExamined": "HAND"} | tags
    values = {name: value for name, value in values.items() if value is not None}
    (root / "IM1").write_bytes(dicom(SOPInstanceUID="1.2.3", **values))
    (root / "IM2").write_bytes(dicom(SOPInstanceUID="1.2.4", PatientID="P2", BodyPartExamined="HAND"))
    listing = listed(root, key)
    assert len(listing.sources) == 1 and re.match(text, listing.skipped[0].reason)
    (root / "IM2").unlink()
    with pytest.raises(InputError, match=f"no DICOM images that can be built: 1 of 1 files: {text}"):
        listed(root, key)


def test_copies_of_an_instance_and_other_kinds_of_images_are_left_out(tree, key, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(tree.root, root)
    image = tree.images[0]
    shutil.copy(root / image["file"], root / "copy")
    (root / "photo.png").write_bytes(encode_png(RAMP.astype(np.uint8)))
    (root / "report").write_bytes(other_object("1.2.840.10008.5.1.4.1.1.88.11"))
    listing = listed(root, key)
    assert len(listing.sources) == 48
    assert [item.reason.partition(" as ")[0] for item in listing.skipped] == ["has the same SOPInstanceUID"]
    assert {item.kind: item.number for item in listing.passed_over} == {
        "DICOM directories (DICOMDIR)": 1, "DICOM reports": 1, "images that are not DICOM": 1, "other files": 1
    }  # fmt: skip


def test_only_the_chosen_modalities_and_areas_are_built(tree, key, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(tree.root, root)
    (root / "IM1").write_bytes(dicom(Modality="CT", BodyPartExamined="HEAD", PatientID="P9", SOPInstanceUID="1.9"))
    assert {source.area for source in listed(root, key).sources} == {"HAND", "HEAD"}
    assert {source.area for source in listed(root, key, modalities=("cr", "dx")).sources} == {"HAND"}
    assert {source.area for source in listed(root, key, areas=("HEAD",)).sources} == {"HEAD"}
    with pytest.raises(InputError, match="area FOOT is not in the DICOM files; there are: HAND, HEAD"):
        listed(root, key, areas=("FOOT",))


def test_files_without_patient_id_count_by_study_with_a_warning(tmp_path, key, caplog):
    make_dicom_tree(tmp_path / "root", patients=3, PatientID="")
    listing = listed(tmp_path / "root", key)
    assert not listing.has_patients and "12 of 12 files have no PatientID" in caplog.text
    assert len({source.patient for source in listing.sources}) == len({source.study for source in listing.sources}) == 6


def test_one_patient_id_for_all_studies_is_refused_unless_studies_stand_for_patients(tmp_path, key):
    make_dicom_tree(tmp_path / "root", patients=3, PatientID="ANONYMOUS")
    with pytest.raises(InputError, match="all 6 studies have the same PatientID.*--patient-by StudyInstanceUID"):
        listed(tmp_path / "root", key)
    listing = listed(tmp_path / "root", key, patient_by="StudyInstanceUID")
    assert listing.has_patients and len({source.patient for source in listing.sources}) == 6


def test_undecodable_files_are_skipped_with_the_name_of_the_syntax(tmp_path, key):
    tree = make_dicom_tree(tmp_path / "root", patients=4)
    data = pydicom.dcmread(tmp_path / "root" / tree.images[0]["file"])
    data.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
    data.PixelData = pydicom.encaps.encapsulate([b"\xff\x0a"])
    data["PixelData"].is_undefined_length = True
    data.save_as(tmp_path / "root" / tree.images[0]["file"])
    manifest = kmura.build_records(tmp_path / "root", tmp_path / "records", layout="dicom", workers=1, key_file=key)
    (skipped,) = manifest.skipped
    assert skipped.reason.startswith("DICOM compressed as MPEG2 Main Profile")
    assert skipped.reason.endswith("which pydicom cannot decode; export it again without compression")
    assert re.fullmatch(r"patient_\w{16}/study_\w{16}/image_\w{16}", skipped.file)
    with pytest.raises(InputError, match="MPEG2 Main Profile.*without --strict"):
        kmura.build_records(tmp_path / "root", tmp_path / "r2", layout="dicom", workers=1, key_file=key, strict=True)


@pytest.mark.parametrize(
    ("csv", "options", "message"),
    [
        ("PatientID,finding\n{0},1\n", {"label_column": "findin"}, "has no column 'findin'; did you mean 'finding'?"),
        ("PatientID,finding\n{0},1\n", {}, "needs --label-column NAME"),
        ("PatientID,finding\n{0},perhaps\n", {"label_columns": ("finding", "PatientID")}, "row 2, column finding: the"),
        ("PatientID,finding\n{0},1\n", {"label_columns": ("finding",)}, "two or more different columns"),
        ("PatientID,finding\nP,1\n", {"label_column": "finding"}, "no row of .* belongs to one of the 48 images"),
        ("exam,finding\n{0},1\n", {"label_column": "finding"}, "no column of .* is named after one of SOPInstanceUID"),
        ("exam,finding\n{0},1\n", {"label_column": "finding", "join_column": "exam"}, "exam .* unclear; give --join"),
        ("PatientID,StudyUID,finding\n{0},1,1\n", {"label_column": "finding"}, "PatientID, StudyUID .* all fit one of"),
        ("PatientID,finding,finding\n{0},1,1\n", {"label_column": "finding"}, "has 2 columns 'finding'; rename all"),
        ("file,finding\n../other/IM1,1\n", {"label_column": "finding"}, r"row 2: the path leaves .* \(\.\.\)"),
        ("{0},1\n{0},1\n", {"label_column": "x", "join_by": "PatientID", "join_column": "id"}, "no line of column"),
        ("", {"label_column": "finding"}, "is empty; a CSV file with a row of column names"),
        (None, {"label_column": "finding"}, "labels.csv does not exist; give the file of labels with --csv"),
    ],
)  # fmt: skip
def test_a_csv_that_does_not_fit_is_refused_in_one_line(tree, key, tmp_path, csv, options, message):
    path = tmp_path / "labels.csv"
    if csv is not None:
        path.write_text(csv.format(tree.images[0]["patient"]))
    with pytest.raises(InputError, match=message) as error:
        listed(tree.root, key, csv=str(path), **options)
    assert "\n" not in str(error.value) and tree.images[0]["patient"] not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label-column", "finding"], "--label-column needs the CSV of the labels; give it with --csv FILE"),
        (["--frame", "0"], "--frame '0' is unknown; give one of refuse, first, middle, last, or a number"),
        (["--csv", "labels.csv", "--join-by", "PatientName"], "PatientName"),
        (["--name", "all"], "'all' stands for every area"),
        (["--from-csv"], "--from-csv does not go with --layout dicom"),
    ],
)
def test_options_that_do_not_fit_end_with_code_2(tree, key, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    arguments = ("build-tfrecords", tree.root, "--layout", "dicom", "--key-file", key, "--out", "records", *options)
    code, _, err = kmura_main(monkeypatch, capsys, *arguments)
    assert code == 2 and message in err and err.count("\n") == 1 and not (tmp_path / "records").exists()


def test_rows_of_other_keys_take_no_memory(tmp_path):
    from kmura.records.keyed_labels import LabelColumns, read_keyed_labels

    path = tmp_path / "labels.csv"
    with open(path, "w") as file:
        file.write("id,finding\n")
        file.writelines(f"{number},{number % 2}\n" for number in range(200_000))
    import tracemalloc

    tracemalloc.start()
    table = read_keyed_labels(path, "id", LabelColumns(one="finding"), {"7", "150000"})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert table.labels == {"7": (1,), "150000": (0,)} and table.stray_count == 199_998 and peak < 8e6
