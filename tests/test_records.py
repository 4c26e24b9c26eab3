"""Record builds are byte-identical, resumable, patient-disjoint and verified by inspect."""

import collections
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SMALL_SHARDS, make_mura_tree, textured
from dicom_files import dicom
from PIL import Image

from kmura.config import RecordsConfig
from kmura.errors import InputError
from kmura.files import sha256_of
from kmura.records import schema, splits, tfrecord
from kmura.records.image_files import PassedOver
from kmura.records.layouts.base import Source
from kmura.records.manifest import read_manifest
from kmura.records.remarks import Remark
from kmura.records.sidecar import ShardIndex, index_file, read_shard_index
from kmura.records.verify import inspect_records
from kmura.records.writer import LOCK, STAGE, build_records


def contents(folder) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_all(folder) -> list[schema.Record]:
    return [schema.decode(data) for path in sorted(folder.glob("*/*.tfrecord")) for data in tfrecord.read_frames(path)]


def test_every_image_becomes_one_record(mura_root, records):
    found = read_all(records)
    assert sorted(record.path for record in found if record.split != "test") == sorted(
        path.relative_to(mura_root).as_posix() for path in (mura_root / "train").rglob("*.png")
    )
    for record in found:
        assert record.study == f"{record.patient}/{record.path.split('/')[3]}"
        assert record.label == (int("positive" in record.study),)


def test_the_number_of_workers_does_not_change_a_byte(mura_root, records, tmp_path):
    build_records(mura_root, tmp_path / "two", options=SMALL_SHARDS, workers=2)
    assert contents(tmp_path / "two") == contents(records)


def test_another_seed_gives_another_order(mura_root, records, tmp_path):
    build_records(mura_root, tmp_path / "other", options=dataclasses.replace(SMALL_SHARDS, seed=1), workers=1)
    assert [r.path for r in read_all(tmp_path / "other")] != [r.path for r in read_all(records)]


def test_records_are_shuffled(records):
    counts = read_manifest(records).areas["XR_ELBOW"]["train"]
    paths = [r.path for r in read_all(records) if (r.area, r.split) == ("XR_ELBOW", "train")]
    assert len(paths) == counts.images and paths != sorted(paths)


def test_the_counts_of_the_manifest_match_the_shards(records):
    manifest = read_manifest(records)
    found = read_all(records)
    for area, by_split in manifest.areas.items():
        for split, counts in by_split.items():
            group = [record for record in found if (record.area, record.split) == (area, split)]
            assert counts.images == len(group)
            assert counts.studies == len({record.study for record in group})
            assert counts.patients == len({record.patient for record in group})
            assert counts.per_class == tuple(sum(record.label == (k,) for record in group) for k in (0, 1))


def test_the_index_of_a_shard_matches_its_records(records):
    for shard in read_manifest(records).shards():
        content, index = (records / shard.file).read_bytes(), read_shard_index(records, shard)
        found = [schema.decode(data) for data in tfrecord.read_frames(records / shard.file)]
        assert shard.index == index_file(shard.file) and len(index) == shard.records == len(found)
        for number, record in enumerate(found):
            frame = tfrecord.frame(schema.encode(record))
            assert content[index.start[number] :][: len(frame)] == frame
            assert index.row(number) == {
                "start": index.start[number],
                "height": record.height,
                "width": record.width,
                "label": list(record.label),
                "patient": record.patient,
                "study": record.study,
                "path": record.path,
            }


def test_no_patient_is_in_two_splits_in_any_area(records):
    where = collections.defaultdict(set)
    for record in read_all(records):
        where[record.patient].add(record.split)
    assert all(len(kinds) == 1 for kinds in where.values())


def test_the_val_split_is_stratified_by_area_and_label():
    sources = [
        Source(f"{area}/{patient}", area, f"p{patient}", f"p{patient}/1", (patient % 4 == 0,), "train", 1)
        for patient in range(400)
        for area in (("A", "B") if patient % 5 == 0 else ("A",))
    ]
    carved = splits.carve(sources, 0.1, seed=7, target="val")
    moved = {source.patient for source in carved if source.split == "val"}
    assert len(moved) == 40
    for area in "AB":
        for label in (True, False):
            group = {source.patient for source in sources if source.area == area and source.label == (label,)}
            assert abs(len(group & moved) - 0.1 * len(group)) <= 2
    assert {s.patient for s in splits.carve(sources, 0.1, seed=8, target="val") if s.split == "val"} != moved


def test_repeating_the_command_does_not_change_a_finished_build(mura_root, records):
    before = {path: path.stat().st_mtime_ns for path in records.rglob("*")}
    assert build_records(mura_root, records, options=SMALL_SHARDS) == read_manifest(records)
    assert {path: path.stat().st_mtime_ns for path in records.rglob("*")} == before


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"{}")])
def test_a_build_without_an_index_is_rebuilt(mura_root, records, tmp_path, damage):
    out = shutil.copytree(records, tmp_path / "copy")
    damage(out / read_manifest(out).shards()[1].index)
    build_records(mura_root, out, options=SMALL_SHARDS, workers=1)
    assert contents(out) == contents(records)


def test_different_options_are_rejected_and_named_unless_overwrite_is_set(mura_root, records, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(records, out)
    before = contents(out)
    changed = dataclasses.replace(SMALL_SHARDS, max_side=20)
    with pytest.raises(InputError, match="max_side 512, now 20.*--overwrite"):
        build_records(mura_root, out, options=changed)
    assert contents(out) == before
    changed = dataclasses.replace(changed, records_per_shard=100)
    build_records(mura_root, out, options=changed, overwrite=True, workers=1)
    shards = [file for shard in read_manifest(out).shards() for file in (shard.file, shard.index)]
    assert sorted(contents(out)) == sorted([*shards, "manifest.json"]), "old shards or indexes were left behind"
    assert {max(record.height, record.width) for record in read_all(out)} == {20}
    assert inspect_records(out).sound


def test_read_only_records_are_not_replaced(records, mura_root, tmp_path):
    out = shutil.copytree(records, tmp_path / "copy")
    (out / "manifest.json").chmod(0o444)
    before = contents(out)
    with pytest.raises(InputError, match="manifest.json: it is read-only; fix the permissions or choose another"):
        build_records(mura_root, out, options=RecordsConfig(max_side=20), workers=1, overwrite=True)
    assert contents(out) == before


def test_an_unreadable_image_is_skipped_and_listed(tmp_path):
    root = make_mura_tree(tmp_path / "tree", areas=("XR_HAND",))
    broken = sorted(root.rglob("*.png"))[3]
    broken.write_bytes(b"")
    manifest = build_records(root, tmp_path / "out", options=SMALL_SHARDS, workers=1)
    assert [(item.file, item.reason) for item in manifest.skipped] == [
        (broken.relative_to(root).as_posix(), "empty file")
    ]
    with pytest.raises(InputError, match="empty file; fix or remove it"):
        build_records(root, tmp_path / "out", options=SMALL_SHARDS, workers=1, strict=True)


def test_a_listed_image_that_is_missing_is_skipped_and_listed(tmp_path):
    root = make_mura_tree(tmp_path / "tree", areas=("XR_HAND",))
    for split in ("train", "valid"):
        paths = [path.relative_to(root).as_posix() for path in (root / split).rglob("*.png")]
        (root / f"{split}_image_paths.csv").write_text("\n".join(paths) + "\n")
    gone = next((root / "train").rglob("*.png"))
    gone.unlink()
    manifest = build_records(root, tmp_path / "out", from_csv=True, options=SMALL_SHARDS, workers=1)
    assert [item.file for item in manifest.skipped] == [gone.relative_to(root).as_posix()]


def test_an_area_without_positives_raises_an_error(tmp_path):
    root = make_mura_tree(tmp_path / "tree", areas=("XR_HAND",))
    for study in list((root / "train").rglob("study*_positive")):
        shutil.rmtree(study)
    with pytest.raises(InputError, match="XR_HAND .* has no abnormal training images"):
        build_records(root, tmp_path / "out")


def test_medmnist_can_be_converted_to_records(medmnist_file, tmp_path):
    manifest = build_records(medmnist_file, tmp_path / "out", layout="medmnist", classes=("normal", "ill"), workers=1)
    assert manifest.classes == ("normal", "ill") and not manifest.has_patients
    assert {split: counts.images for split, counts in manifest.areas["noisemnist"].items()} == {
        "train": 30,
        "val": 10,
        "test": 10,
    }


def test_folders_without_splits_are_split_into_train_val_and_test(tmp_path):
    for index in range(40):
        path = tmp_path / "set" / ("ill" if index % 2 else "well") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        textured(index).save(path)
    manifest = build_records(tmp_path / "set", tmp_path / "out", layout="folders", positive_class="ill", workers=1)
    images = {split: counts.images for split, counts in manifest.areas["set"].items()}
    assert images == {"train": 29, "val": 3, "test": 8}


BUILD = """
import sys
from pathlib import Path
from kmura.config import RecordsConfig
from kmura.records.writer import build_records
if __name__ == "__main__":
    build_records(sys.argv[1], sys.argv[2], options=RecordsConfig(records_per_shard=2, val_fraction=0.25), workers=2)
"""


@pytest.mark.slow
def test_a_build_killed_at_ten_random_moments_is_byte_identical_after_resuming(tmp_path):
    root = make_mura_tree(tmp_path / "tree", areas=("XR_HAND", "XR_WRIST"), train_patients=60)
    script = tmp_path / "build.py"
    script.write_text(BUILD)

    def start(out):
        return subprocess.Popen(
            [sys.executable, script, root, out], env=os.environ | {"PYTHONPATH": ":".join(sys.path)}
        )

    began = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0
    whole_time = time.monotonic() - began
    expected = contents(tmp_path / "whole")
    rng, killed, resumed_work = random.Random(0), 0, 0
    for _ in range(10):
        process = start(tmp_path / "killed")
        time.sleep(rng.uniform(0.2, 1.0) * whole_time)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
        if (tmp_path / "killed" / "manifest.json").exists():  # finished: the next attempts start from scratch
            found = contents(tmp_path / "killed").items()
            assert {name: data for name, data in found if not name.startswith(STAGE)} == expected
            shutil.rmtree(tmp_path / "killed")
        else:
            resumed_work += len(list((tmp_path / "killed").rglob("*.tfrecord.json"))) > 0
            with pytest.raises(InputError, match="no finished build"):
                read_manifest(tmp_path / "killed")
    assert killed >= 3 and resumed_work >= 1
    assert start(tmp_path / "killed").wait() == 0
    assert contents(tmp_path / "killed") == expected


def test_a_kill_while_shards_are_moved_is_resumed(mura_root, records, tmp_path, monkeypatch):
    from kmura.records import writer

    moved = []

    def die_after_three(source, target):
        if len(moved) == 3:
            raise KeyboardInterrupt
        moved.append(target)
        os.rename(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        publish = writer._publish

        def publish_and_die(*arguments):
            patch.setattr(writer.os, "replace", die_after_three)
            publish(*arguments)

        patch.setattr(writer, "_publish", publish_and_die)
        build_records(mura_root, tmp_path / "out", options=SMALL_SHARDS, workers=1)
    assert len(moved) == 3 and (tmp_path / "out" / STAGE).exists()
    build_records(mura_root, tmp_path / "out", options=SMALL_SHARDS, workers=1)
    assert contents(tmp_path / "out") == contents(records)


def test_the_staging_folder_holds_no_open_file_when_it_is_removed(mura_root, tmp_path, monkeypatch):
    from kmura.records import writer

    seen, remove = [], shutil.rmtree
    monkeypatch.setattr(writer.shutil, "rmtree", lambda path, **rest: seen.extend(path.rglob("*lock*")) or remove(path))
    build_records(mura_root, tmp_path / "out", options=SMALL_SHARDS, workers=1)
    assert seen == [], "Windows cannot remove a folder with an open file"
    assert not (tmp_path / "out" / LOCK).exists() and not (tmp_path / "out" / STAGE).exists()


def test_concurrent_builds_into_one_folder_do_not_mix(mura_root, tmp_path):
    import fcntl

    (tmp_path / "out").mkdir()
    with open(tmp_path / "out" / LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another build is writing"):
            build_records(mura_root, tmp_path / "out", options=SMALL_SHARDS, workers=1)


@pytest.fixture
def copy(records, tmp_path):
    return shutil.copytree(records, tmp_path / "copy")


def errors(folder) -> list[str]:
    return [finding.text for finding in inspect_records(folder).findings if finding.severity == "error"]


def test_valid_records_have_no_errors(records):
    assert errors(records) == []


def test_a_truncated_shard_is_reported_with_the_record(copy):
    path = sorted(copy.glob("XR_WRIST/train-*.tfrecord"))[1]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (text,) = errors(copy)
    assert text.startswith(f"XR_WRIST/{path.name}: record ") and "is cut off" in text


def test_a_flipped_bit_is_reported_with_the_record(copy):
    path = sorted(copy.glob("XR_WRIST/train-*.tfrecord"))[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (text,) = errors(copy)
    assert path.name in text and "fails its checksum" in text


def test_a_missing_shard_is_reported(copy):
    path = next(copy.glob("XR_WRIST/val-*.tfrecord"))
    path.unlink()
    assert errors(copy) == [f"XR_WRIST/{path.name} is missing; build the records again"]


def rewrite(folder, change) -> None:
    """Rewrites the modified records of a folder, with indexes and a manifest that match the new shards."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for by_split in manifest["areas"].values():
        for counts in by_split.values():
            for shard in counts["shards"]:
                path = folder / shard["file"]
                content, index = b"", ShardIndex()
                for item in list(tfrecord.read_frames(path)):
                    record = change(schema.decode(item))
                    index.add(len(content), record)
                    content += tfrecord.frame(schema.encode(record))
                path.write_bytes(content)
                (folder / shard["index"]).write_bytes(index.encoded())
                shard |= {"bytes": len(content), "sha256": sha256_of(path)}
                shard["index_sha256"] = sha256_of(folder / shard["index"])
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_missing_changed_and_unlisted_indexes_are_reported(copy):
    missing, changed = (copy / shard.index for shard in read_manifest(copy).shards()[:2])
    missing.unlink()
    changed.write_bytes(changed.read_bytes() + b" ")
    shutil.copy(changed, copy / "XR_WRIST" / "train-00000-of-00001.index.json")
    assert sorted(errors(copy)) == [
        f"index {missing} is missing; build the records again into {copy}",
        f"index {changed} is not the file that the manifest describes (SHA-256 differs); "
        f"build the records again into {copy}",
    ]
    texts = [finding.text for finding in inspect_records(copy).findings if finding.severity == "warning"]
    assert texts == ["XR_WRIST/train-00000-of-00001.index.json is not in manifest.json: it is never read"]


@pytest.mark.parametrize("column", ["start", "height", "label", "patient", "path"])
def test_an_index_that_differs_from_its_shard_is_reported_with_the_record(copy, column):
    manifest = json.loads((copy / "manifest.json").read_text())
    shard = manifest["areas"]["XR_WRIST"]["train"]["shards"][0]
    path = copy / shard["index"]
    index = json.loads(path.read_text())
    index[column][2] = index[column][1] if index[column][1] != index[column][2] else [9]
    path.write_text(json.dumps(index))
    shard["index_sha256"] = sha256_of(path)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    (text,) = errors(copy)
    assert text.startswith(f"{shard['index']}: record 2 (train/XR_WRIST/") and "differs from the shard" in text


def test_records_of_version_1_are_valid_but_have_no_index():
    inspection = inspect_records(Path(__file__).parents[1] / "tfrecords" / "golden" / "version-1")
    assert inspection.sound
    assert any(finding.text.startswith("4 shards have no index") for finding in inspection.findings)


def test_a_study_with_two_labels_is_reported(copy):
    first = read_all(copy)[0]
    rewrite(copy, lambda r: dataclasses.replace(r, label=(1 - r.label[0],)) if r.path == first.path else r)
    assert any(first.study in text and "different labels" in text for text in errors(copy))


def test_a_patient_in_two_splits_is_reported(copy):
    train = next(record for record in read_all(copy) if record.split == "train")
    rewrite(copy, lambda r: dataclasses.replace(r, patient=train.patient) if r.split == "test" else r)
    assert any(text.startswith(f"patient {train.patient} is in the splits train, test") for text in errors(copy))


def test_inconsistent_counts_are_errors(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["areas"]["XR_WRIST"]["train"]["studies"] += 1
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert any("XR_WRIST/train" in text and "studies" in text for text in errors(copy))


def test_identical_images_are_counted_across_and_within_splits(tmp_path):
    root = make_mura_tree(tmp_path / "tree", areas=("XR_HAND",))
    train, held_out = sorted((root / "train").rglob("*.png")), sorted((root / "valid").rglob("*.png"))
    shutil.copy(train[0], held_out[0])
    shutil.copy(held_out[5], held_out[4])  # the two views of one study
    from PIL import Image

    Image.open(train[1]).save(train[4], compress_level=1)  # the same pixels in another file
    build_records(root, tmp_path / "out", options=RecordsConfig(val_fraction=0), workers=1)
    texts = [finding.text for finding in inspect_records(tmp_path / "out").findings if finding.severity == "warning"]
    assert len(texts) == 3
    assert texts[0].startswith("1 group of identical images across train and test")
    assert texts[1].startswith("1 group of identical images inside train")
    assert texts[2].startswith("1 group of identical images inside test")


@pytest.mark.real
def test_the_known_duplicates_of_pneumoniamnist_are_found(tmp_path):
    root = os.environ.get("KMURA_REAL_DATA")
    if not root:
        pytest.skip("KMURA_REAL_DATA is not set")
    build_records(f"{root}/pneumoniamnist.npz", tmp_path / "out", layout="medmnist")
    texts = [finding.text for finding in inspect_records(tmp_path / "out").findings]
    assert any(text.startswith("8 groups of identical images across train and val") for text in texts)
    assert any(text.startswith("16 groups of identical images inside train") for text in texts)
    assert any(text.startswith("3 groups of identical images inside test") for text in texts)
    assert not any("different labels" in text for text in texts)


def test_the_manifest_counts_what_was_passed_over_and_names_odd_pictures(tmp_path):
    root = tmp_path / "eyes"
    for number, name in enumerate(("normal", "ill")):
        (root / name).mkdir(parents=True)
        for index in range(6):
            textured(10 * number + index).save(root / name / f"{index}.png")
    Image.new("L", (40, 40), 3).save(root / "ill" / "flat.png")
    (root / "ill" / "scan").write_bytes(dicom(WindowCenter=0, WindowWidth=0))
    (root / "ill" / "notes.txt").write_text("x")
    options = {"layout": "folders", "positive_class": "ill"}
    manifest = build_records(root, tmp_path / "records", workers=1, **options)
    assert sum(counts.images for counts in manifest.areas["eyes"].values()) == 14
    assert manifest.passed_over == (PassedOver(".txt files", 1, ("ill/notes.txt",)),)
    assert manifest.remarks == (
        Remark("ill/flat.png", "flat: one gray level"),
        Remark("ill/scan", "window of width 0 ignored"),
    )
    assert read_manifest(tmp_path / "records") == manifest
    notes = [finding.text for finding in inspect_records(tmp_path / "records").findings if finding.severity == "note"]
    assert any("passed over: 1 .txt files" in text for text in notes)
    assert any("2 of 14 pictures" in text and "ill/flat.png (flat: one gray level)" in text for text in notes)


def test_a_manifest_of_an_earlier_version_lists_no_remarks(records, tmp_path):
    raw = json.loads((records / "manifest.json").read_text())
    del raw["passed_over"], raw["remarks"]
    (tmp_path / "manifest.json").write_text(json.dumps(raw))
    manifest = read_manifest(tmp_path)
    assert manifest.passed_over == manifest.remarks == ()
