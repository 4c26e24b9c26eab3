"""Opening records reads the index of each shard, not the images; the index must match its shard."""

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from record_files import AREA, batches, encoded, eval_dataset, picture, write_records

from kmura.config import ClassificationConfig, DataConfig
from kmura.data.dataset import Dataset
from kmura.data.decoded import readable_errors
from kmura.data.index import Index, read_index
from kmura.errors import InputError
from kmura.files import sha256_of
from kmura.records.manifest import read_manifest
from kmura.records.sidecar import read_shard_index

SMALL = DataConfig(image_size=16, cache="off")


def without_indexes(folder):
    """Converts current records to schema version 1, which has no index."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    names = {"train": "train", "val": "tune", "test": "valid"}
    for area, splits in manifest["areas"].items():
        manifest["areas"][area] = {names[split]: counts for split, counts in splits.items()}
        for counts in splits.values():
            for shard in counts["shards"]:
                (folder / shard.pop("index")).unlink()
                del shard["index_sha256"]
    path.write_text(json.dumps(manifest | {"schema_version": 1}))


def assert_same_index(one: Index, other: Index):
    for field in dataclasses.fields(Index):
        value, expected = getattr(one, field.name), getattr(other, field.name)
        if field.name == "keys":
            assert value.equals(expected) and (value.dtypes == expected.dtypes).all()
        elif field.name != "manifest":
            np.testing.assert_array_equal(value, expected)
            assert not isinstance(value, np.ndarray) or value.dtype == expected.dtype == np.int64


@pytest.mark.parametrize(
    ("options", "labels"),
    [({}, [0, 1, 1, 0, -1]), ({"task": "multilabel", "classes": ("a", "b")}, [[0, 1], [1, 1], [-1, 0], [0, 0]])],
)
def test_an_index_file_equals_the_index_read_from_the_shards(tmp_path, options, labels):
    for area in ("XR_ELBOW", AREA):
        for split in ("train", "val", "test"):
            write_records(tmp_path, labels, area=area, split=split, **options)
    keys = [(area, split) for area in ("XR_ELBOW", AREA, "all") for split in ("train", "val", "test")]
    indexed = [read_index(tmp_path, *key) for key in keys]
    assert indexed[-1].labels.tolist() == 2 * [np.atleast_1d(label).tolist() for label in labels]
    without_indexes(tmp_path)
    for key, index in zip(keys, indexed, strict=True):
        assert_same_index(index, read_index(tmp_path, *key))


def test_opening_a_dataset_does_not_read_images(tmp_path):
    write_records(tmp_path, [0, 1, 0, 1])
    for shard in tmp_path.glob("*/*.tfrecord"):
        shard.write_bytes(bytes(shard.stat().st_size))
    assert read_index(tmp_path, AREA, "train").labels.ravel().tolist() == [0, 1, 0, 1]


def test_opening_a_dataset_does_not_import_tensorflow(tmp_path):
    write_records(tmp_path, [0, 1, 0, 1])
    code = "import sys; from kmura.data.index import read_index; read_index(sys.argv[1], 'all', 'train')\n"
    code += "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)


@pytest.fixture
def index_file(tmp_path):
    """The index of the second shard of records that this process has already opened."""
    write_records(tmp_path, [0, 1, 0, 1])
    read_index(tmp_path, AREA, "train")
    return tmp_path / AREA / "train-00001-of-00002.index.json"


def test_a_missing_index_is_reported_with_the_fix(tmp_path, index_file):
    index_file.unlink()
    with pytest.raises(InputError, match=r"index .*00001-of-00002.index.json is missing; build the records again into"):
        read_index(tmp_path, AREA, "train")


@pytest.mark.parametrize(
    "change", [lambda data: data[:-5], lambda data: data.replace(b"[1]", b"[0]"), lambda data: b""]
)
def test_a_changed_index_is_reported_with_the_fix(tmp_path, index_file, change):
    index_file.write_bytes(change(index_file.read_bytes()))
    with pytest.raises(
        InputError, match=r"00001-of-00002.index.json is not the file .* \(SHA-256 differs\); build the"
    ):
        read_index(tmp_path, AREA, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2", "is damaged"),
        ('{"start": [0, 1]}', "is damaged .*KeyError: 'height'"),
        ("[]", "is damaged .*TypeError"),
    ],
)
def test_an_index_without_the_required_columns_is_damaged(tmp_path, index_file, content, message):
    before = sha256_of(index_file)
    index_file.write_text(content)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(manifest.read_text().replace(before, sha256_of(index_file)))
    with pytest.raises(InputError, match=f"00001-of-00002.index.json {message}"):
        read_index(tmp_path, AREA, "train")


def test_a_shard_of_other_records_with_the_same_size_is_reported_when_it_is_read(tmp_path):
    images = [encoded(picture(0))] * 4
    sides = [picture(0).shape] * 4
    write_records(tmp_path / "a", [0, 1, 0, 1], images=images, sides=sides)
    write_records(tmp_path / "b", [0, 0, 0, 1, 0, 1], images=images * 2, sides=sides * 2, shards=3)
    (other,) = (tmp_path / "b").rglob("train-00002-of-00003.tfrecord")  # images 4 and 5
    shard = tmp_path / "a" / AREA / "train-00001-of-00002.tfrecord"  # images 2 and 3
    assert other.stat().st_size == shard.stat().st_size
    shard.write_bytes(other.read_bytes())
    dataset = eval_dataset(tmp_path / "a", AREA, "train", data=SMALL)
    message = r"train-00001-of-00002.tfrecord: record 0 \(.*patient00004.*\) differs from the index"
    with pytest.raises(InputError, match=message), readable_errors(tmp_path / "a"):
        batches(dataset)


def test_a_record_with_another_label_than_its_index_is_reported_when_it_is_read(tmp_path):
    write_records(tmp_path / "a", [0, 1, 0, 1])
    write_records(tmp_path / "b", [0, 1, 1, 1])  # same images, one other label
    file = f"{AREA}/train-00001-of-00002.tfrecord"
    (tmp_path / "a" / file).write_bytes((tmp_path / "b" / file).read_bytes())
    dataset = eval_dataset(tmp_path / "a", AREA, "train", data=SMALL)
    message = r"train-00001-of-00002.tfrecord: record 0 \(.*patient00002.*\) differs from the index"
    with pytest.raises(InputError, match=message), readable_errors(tmp_path / "a"):
        batches(dataset)


@pytest.mark.parametrize(("key", "value"), [("task", "regression"), ("has_patients", "yes")])
def test_a_manifest_with_an_unknown_value_is_damaged(tmp_path, key, value):
    path = write_records(tmp_path, [0, 1]) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(InputError, match=f"manifest.json .*{key} '{value}'"):
        read_manifest(tmp_path)


def test_a_data_set_names_a_wrong_argument(tmp_path):
    write_records(tmp_path, [0, 1])
    with pytest.raises(InputError, match="a DataConfig .* and ClassificationConfig"):
        Dataset(tmp_path, AREA, ClassificationConfig())
    with pytest.raises(InputError, match="batch_size is 0; 1 or more is needed"):
        Dataset(tmp_path, AREA, SMALL).eval("train", batch_size=0)
    with pytest.raises(InputError, match="seed is -1; 0 or more is needed"):
        Dataset(tmp_path, AREA, SMALL).train(seed=-1)


def test_the_index_gives_the_byte_ranges_of_the_records(tmp_path):
    write_records(tmp_path, [0, 1, 0, 1, 1])
    index = read_index(tmp_path, AREA, "train")
    rows = [4, 0, 3]
    content = [path.read_bytes() for path in index.shards]
    for row in rows:
        frame = content[index.shard[row]][index.start[row] :]
        length = int.from_bytes(frame[:8], "little")
        assert index.keys["image"][row].encode() in frame[: 12 + length]


def test_fit_reports_a_damaged_record_when_it_is_read(records, tmp_path):
    from kmura import fit
    from kmura.config import load_config

    copy = shutil.copytree(records, tmp_path / "records")
    shard = sorted(copy.glob("XR_WRIST/train-*.tfrecord"))[1]
    content = bytearray(shard.read_bytes())
    index = read_shard_index(copy, read_manifest(copy).areas["XR_WRIST"]["train"].shards[1])
    content[index.start[3] + 100] ^= 1
    shard.write_bytes(content)
    settings = {"model.backbone": "densenet_mini", "model.weights": "none", "data.image_size": 32, "data.cache": "off"}
    with pytest.raises(InputError, match=f"{shard.name}: record 3 fails its checksum; run kmura inspect"):
        fit(copy, area="XR_WRIST", runs=tmp_path / "runs", config=load_config("baseline", settings))
