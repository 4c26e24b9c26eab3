"""Records match those of TensorFlow in every feature and byte."""

import re
from pathlib import Path

import pytest

from kmura.data.index import read_index
from kmura.records import schema, tfrecord
from kmura.records.manifest import read_manifest
from kmura.records.sidecar import ShardIndex

GOLDEN = Path(__file__).parents[1] / "tfrecords" / "golden"

RECORD = schema.Record(
    image=b"\x89PNG bytes \x00\xff",
    format="png",
    height=480,
    width=512,
    sha256="ab" * 32,
    path="train/XR_WRIST/patient00001/study1_positive/imagé1.png",
    area="XR_WRIST",
    patient="patient00001",
    study="patient00001/study1_positive",
    label=(1, 0, -1),
    split="train",
)


def test_a_record_is_unchanged_by_encoding_and_decoding():
    assert schema.decode(schema.encode(RECORD)) == RECORD


def test_tensorflow_parses_a_record_and_writes_the_same_bytes():
    import tensorflow as tf

    example = tf.train.Example.FromString(schema.encode(RECORD))
    assert example.SerializeToString(deterministic=True) == schema.encode(RECORD)
    assert example.features.feature["label"].int64_list.value == [1, 0, -1]
    parsed = tf.io.parse_single_example(schema.encode(RECORD), schema.parse_spec())
    assert parsed["image"].numpy() == RECORD.image
    assert parsed["label"].numpy().tolist() == [1, 0, -1]
    assert parsed["path"].numpy().decode() == RECORD.path


def test_frames_match_tensorflow(tmp_path):
    import tensorflow as tf

    data = [b"", b"a", bytes(range(256)) * 40]
    with tf.io.TFRecordWriter(str(tmp_path / "theirs")) as writer:
        for item in data:
            writer.write(item)
    ours = b"".join(map(tfrecord.frame, data))
    assert (tmp_path / "theirs").read_bytes() == ours
    assert list(tfrecord.read_frames(tmp_path / "theirs")) == data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda whole: whole[:-3], "record 1 is cut off"),
        (lambda whole: whole[:50] + bytes([whole[50] ^ 1]) + whole[51:], "record 0 fails its checksum"),
        (lambda whole: bytes([whole[0] ^ 1]) + whole[1:], "record 0 has a damaged header"),
        (lambda whole: whole[: len(whole) // 2 + 5], "record 1 is cut off"),
    ],
)
def test_damage_is_reported_with_the_record(tmp_path, change, message):
    path = tmp_path / "shard"
    path.write_bytes(change(tfrecord.frame(schema.encode(RECORD)) * 2))
    with pytest.raises(tfrecord.CorruptShard, match=message):
        list(tfrecord.read_frames(path))


def test_a_record_with_a_missing_feature_is_rejected():
    example = schema.Example.FromString(schema.encode(RECORD))
    del example.features.feature["study"]
    with pytest.raises(ValueError, match="'study' is missing"):
        schema.decode(example.SerializeToString())


def test_the_tfrecords_documentation_shows_the_schema():
    text = (Path(__file__).parents[1] / "tfrecords" / "README.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([\w ]+) \| (.+) \|$", text, flags=re.MULTILINE)
    assert rows == [(name, kind, what) for name, (kind, what) in {**schema.FEATURES, **schema.OPTIONAL}.items()]
    columns = re.findall(r"^\| `(\w+)` \| ([^|]+) \|$", text, flags=re.MULTILINE)
    assert columns == list(schema.INDEX_COLUMNS.items())
    assert f"version {schema.SCHEMA_VERSION}" in text


@pytest.mark.parametrize(("version", "indexed"), [(1, False), (2, True)])
def test_golden_shards_of_every_version_can_be_read(version, indexed):
    golden = GOLDEN / f"version-{version}"
    manifest = read_manifest(golden)
    assert manifest.schema_version == version and manifest.has_patients
    for area, splits in manifest.areas.items():
        assert set(splits) == set(schema.SPLITS)
        for split, counts in splits.items():
            assert all((shard.index is not None) == indexed for shard in counts.shards)
            records = [
                schema.decode(data) for shard in counts.shards for data in tfrecord.read_frames(golden / shard.file)
            ]
            assert len(records) == counts.images > 0
            assert {record.split for record in records} == {split}
            index = read_index(golden, area, split)
            assert index.keys["image"].tolist() == [record.path for record in records]
            assert index.labels.tolist() == [list(record.label) for record in records]


def test_the_same_records_give_the_golden_files_of_the_current_version():
    golden = GOLDEN / f"version-{schema.SCHEMA_VERSION}"
    for shard in read_manifest(golden).shards():
        content, index = b"", ShardIndex()
        for data in tfrecord.read_frames(golden / shard.file):
            record = schema.decode(data)
            index.add(len(content), record)
            content += tfrecord.frame(schema.encode(record))
        assert content == (golden / shard.file).read_bytes()
        assert index.encoded() == (golden / shard.index).read_bytes()
