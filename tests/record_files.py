"""Record files of noise images, written without `build_records`, and batches read from them."""

import hashlib
import io
import json

import numpy as np
from PIL import Image

from kmura.config import AugmentConfig
from kmura.data.dataset import Dataset
from kmura.records import schema
from kmura.records.manifest import Manifest, Shard, SplitCounts, manifest_json, per_class
from kmura.records.sidecar import ShardIndex, index_file
from kmura.records.tfrecord import frame

AREA = "XR_WRIST"
UNCHANGED = AugmentConfig(rotation=0, area_scale=(1, 1), flip=0, brightness=0, contrast=0)


def picture(seed, size=(20, 24), channels=1):
    """Returns a gray or color noise image, uint8 [H, W] or [H, W, 3]; its size depends on the seed."""
    shape = (size[0] + seed % 5, size[1] + seed % 3, *([3] if channels == 3 else []))
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def encoded(pixels, form="png"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **({"quality": 95} if form == "jpeg" else {}))
    return buffer.getvalue()


def write_records(folder, labels, *, task="binary", classes=("normal", "abnormal"), area=AREA, split="train", shards=2,
                  channels=1, form="png", images=None, sides=None):  # fmt: skip
    """Writes one record per label, distributed over shards with one index each; further calls add areas and splits.

    `images` (encoded) and `sides` (height and width in the records) replace those of `picture`.
    """
    path = folder / "manifest.json"
    areas = json.loads(path.read_text())["areas"] if path.exists() else {}
    images = images or [encoded(picture(number, channels=channels), form) for number in range(len(labels))]
    files = []
    (folder / area).mkdir(parents=True, exist_ok=True)
    for part in range(shards):
        content, index = b"", ShardIndex()
        numbers = range(part * len(labels) // shards, (part + 1) * len(labels) // shards)
        for number in numbers:
            height, width = sides[number] if sides else picture(number).shape
            name = f"{split}/{area}/patient{number:05}/study1/image1.png"
            patient = f"{area}{number:05}"
            record = schema.Record(
                images[number], form, height, width, "0" * 64, name, area, patient, f"{patient}/study1",
                tuple(np.atleast_1d(labels[number]).tolist()), split,
            )  # fmt: skip
            index.add(len(content), record)
            content += frame(schema.encode(record))
        file = f"{area}/{split}-{part:05}-of-{shards:05}.tfrecord"
        (folder / file).write_bytes(content)
        (folder / index_file(file)).write_bytes(index.encoded())
        hashes = [hashlib.sha256(data).hexdigest() for data in (content, index.encoded())]
        files.append(Shard(file, len(numbers), len(content), hashes[0], index_file(file), hashes[1]))
    each = per_class(task, len(classes), [tuple(np.atleast_1d(label).tolist()) for label in labels])
    counts = SplitCounts(len(labels), len(labels), len(labels), each, tuple(files))
    value = manifest_json(Manifest("mura", classes, task, channels, {}, "", {area: {split: counts}}, True))
    value["areas"] = {**areas, area: {**areas.get(area, {}), **value["areas"][area]}}
    path.write_text(json.dumps(value))
    return folder


def train_dataset(records, area, *, data=None, **options):
    return Dataset(records, area, data).train(**options)


def eval_dataset(records, area, split, *, data=None, **options):
    return Dataset(records, area, data).eval(split, **options)


def batches(dataset):
    return list(dataset.as_numpy_iterator())


def assert_same_batches(some, others):
    assert len(some) == len(others) > 0
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
