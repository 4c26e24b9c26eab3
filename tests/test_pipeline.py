"""Input pipeline from shards to batches: content, order, and errors for damaged files."""

import io
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from record_files import (
    AREA,
    UNCHANGED,
    assert_same_batches,
    batches,
    encoded,
    eval_dataset,
    picture,
    train_dataset,
    write_records,
)

from kmura.config import DataConfig
from kmura.data.dataset import Dataset
from kmura.data.decoded import readable_errors
from kmura.errors import InputError

SMALL = DataConfig(image_size=16, cache="off")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Eleven images in two shards."""
    return write_records(tmp_path_factory.mktemp("records"), [0, 1, 0, 1, 1, 0, 0, 1, 0, 0, 1])


def resized_by_pillow(pixels, size=(16, 16)):
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)).astype(float)


# --- what is in a batch -------------------------------------------------------------------------------------------


def test_an_epoch_contains_every_image_once_with_its_label(records):
    dataset = train_dataset(records, AREA, data=SMALL, augment=UNCHANGED, batch_size=4, epochs=2)
    found = batches(dataset)
    assert len(dataset) == 2 * Dataset(records, AREA).steps(4) == 6
    assert [len(batch["image"]) for batch in found] == [4, 4, 3] * 2
    whole = batches(eval_dataset(records, AREA, "train", data=SMALL, batch_size=20))[0]
    for epoch in (found[:3], found[3:]):
        images = np.concatenate([batch["image"] for batch in epoch])
        labels = np.concatenate([batch["label"] for batch in epoch])
        rows = [int(np.flatnonzero((whole["image"] == image).all(axis=(1, 2, 3)))[0]) for image in images]
        assert sorted(rows) == list(range(11)) != rows
        np.testing.assert_array_equal(labels, whole["label"][rows])


def test_a_batch_has_float_images_in_0_to_255_and_its_labels_twice(records):
    dataset = train_dataset(records, AREA, data=SMALL, batch_size=4)
    image, label = tf.TensorSpec([None, 16, 16, 1], tf.float32), tf.TensorSpec([None, 1], tf.float32)
    assert dataset.element_spec == {"image": image, "label": label, "mixed_image": image, "mixed_label": label}
    for batch in batches(dataset):
        assert 0 <= batch["image"].min() < batch["image"].max() <= 255
        np.testing.assert_array_equal(batch["image"], batch["mixed_image"])
        np.testing.assert_array_equal(batch["label"], batch["mixed_label"])


def test_evaluation_preserves_the_order_and_keys_of_the_records(records):
    found = batches(eval_dataset(records, AREA, "train", data=SMALL, batch_size=4))
    assert [len(batch["image"]) for batch in found] == [4, 4, 3]
    joined = {name: np.concatenate([batch[name] for batch in found]) for name in found[0]}
    keys = Dataset(records, AREA).rows("train")
    assert list(keys.columns) == ["area", "patient", "study", "image", "label"]
    assert keys.area.tolist() == [AREA] * 11
    for name, column in (("patient", "patient"), ("study", "study"), ("path", "image")):
        assert [value.decode() for value in joined[name]] == keys[column].tolist()
    assert keys.patient.tolist() == [f"{AREA}{number:05}" for number in range(11)]
    assert joined["label"][:, 0].tolist() == keys.label.tolist() == [0, 1, 0, 1, 1, 0, 0, 1, 0, 0, 1]
    assert joined["image"].dtype == joined["label"].dtype == np.float32
    for number, image in enumerate(joined["image"]):
        expected = resized_by_pillow(picture(number))
        np.testing.assert_allclose(image[:, :, 0], expected, atol=1)  # Pillow also rounds between the axes


def test_rows_can_be_read_without_tensorflow(records):
    program = (
        "import sys; from kmura.data.dataset import Dataset; "
        f"assert len(Dataset({str(records)!r}, {AREA!r}).rows('train')) == 11; assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_multiclass_labels_are_one_hot_and_unknown_labels_are_only_evaluated(tmp_path):
    write_records(tmp_path, [2, 0, -1, 1], task="multiclass", classes=("a", "b", "c"))
    whole = batches(eval_dataset(tmp_path, AREA, "train", data=SMALL))[0]
    assert whole["label"].tolist() == [[0, 0, 1], [1, 0, 0], [-1, -1, -1], [0, 1, 0]]
    assert Dataset(tmp_path, AREA).rows("train").label.tolist() == [2, 0, -1, 1]
    (batch,) = batches(train_dataset(tmp_path, AREA, data=SMALL))
    assert sorted(batch["label"].tolist()) == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
    assert Dataset(tmp_path, AREA).steps(2) == 2


def test_multilabel_labels_are_vectors_with_one_column_per_class(tmp_path):
    labels = [[1, 0, 1], [0, 0, 0], [1, -1, 0]]
    write_records(tmp_path, labels, task="multilabel", classes=("a", "b", "c"), shards=1)
    assert batches(eval_dataset(tmp_path, AREA, "train", data=SMALL))[0]["label"].tolist() == labels
    assert Dataset(tmp_path, AREA).rows("train")[["label_a", "label_b", "label_c"]].values.tolist() == labels
    (batch,) = batches(train_dataset(tmp_path, AREA, data=SMALL))
    assert sorted(batch["label"].tolist()) == sorted(labels)  # one label of the last is unknown, two are known


def test_all_areas_can_be_combined(tmp_path):
    write_records(tmp_path, [0, 1, 1], area="XR_ELBOW")
    write_records(tmp_path, [1, 0], area="XR_WRIST")
    write_records(tmp_path, [1, 1], area="XR_WRIST", split="test")
    assert Dataset(tmp_path, "all").rows("train").area.tolist() == ["XR_ELBOW"] * 3 + ["XR_WRIST"] * 2
    (batch,) = batches(train_dataset(tmp_path, "all", data=SMALL))
    assert batch["label"].sum() == 3 and len(batch["image"]) == 5
    assert len(batches(eval_dataset(tmp_path, "all", "test", data=SMALL))[0]["image"]) == 2


@pytest.mark.parametrize("form", ["png", "jpeg"])
def test_color_and_jpeg_records_can_be_read(tmp_path, form):
    write_records(tmp_path, [0, 1, 1], channels=3, form=form)
    (batch,) = batches(eval_dataset(tmp_path, AREA, "train", data=SMALL))
    assert batch["image"].shape == (3, 16, 16, 3)
    for number, image in enumerate(batch["image"]):
        stored = np.asarray(Image.open(io.BytesIO(encoded(picture(number, channels=3), form))))
        assert np.abs(image - resized_by_pillow(stored)).mean() < 1.5  # JPEG decoders differ in the color planes


def test_images_stay_float32_under_a_mixed_precision_policy(records):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        dataset = train_dataset(records, AREA, data=SMALL, batch_size=4)
        assert dataset.element_spec["image"].dtype == tf.float32
        assert_same_batches(batches(dataset), batches(train_dataset(records, AREA, data=SMALL, batch_size=4)))
    finally:
        keras.config.set_dtype_policy(before)


# --- resizing -----------------------------------------------------------------------------------------------------


def one_image(folder, pixels, data):
    """Returns one image as the model's input."""
    write_records(folder, [1], shards=1, images=[encoded(pixels)], sides=[pixels.shape])
    return batches(eval_dataset(folder, AREA, "train", data=data))[0]["image"][0, :, :, 0]


@pytest.mark.parametrize("shape", [(512, 512), (512, 341), (300, 411), (31, 47), (64, 64), (900, 30)])
def test_downscaling_and_upscaling_match_pillow_up_to_rounding(tmp_path, shape):
    pixels = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
    image = one_image(tmp_path, pixels, DataConfig(image_size=64, cache="off"))
    difference = np.abs(image - resized_by_pillow(pixels, (64, 64)))
    assert difference.max() <= 1 and difference.mean() < 0.3


def test_downscaling_does_not_alias_fine_stripes(tmp_path):
    stripes = np.tile(np.uint8([0, 255]), (200, 100))
    image = one_image(tmp_path, stripes, DataConfig(image_size=61, cache="off"))
    assert np.abs(image - 127.5).max() < 20  # sampling without antialiasing covers the whole range


@pytest.mark.parametrize(("shape", "rows", "columns"), [((80, 40), 32, 16), ((40, 80), 16, 32), ((11, 16), 22, 32)])
def test_pad_keeps_the_aspect_ratio_and_centres_the_image_on_black(tmp_path, shape, rows, columns):
    pixels = np.random.default_rng(1).integers(1, 256, shape).astype(np.uint8)
    image = one_image(tmp_path, pixels, DataConfig(image_size=32, resize="pad", cache="off"))
    top, left = (32 - rows) // 2, (32 - columns) // 2
    picture = image[top : top + rows, left : left + columns]
    np.testing.assert_allclose(picture, resized_by_pillow(pixels, (columns, rows)), atol=1)
    assert image.sum() == picture.sum()


# --- order and randomness -----------------------------------------------------------------------------------------


def test_resuming_at_an_epoch_is_bit_identical_to_an_uninterrupted_run(records):
    through = batches(train_dataset(records, AREA, data=SMALL, batch_size=4, seed=7, epochs=4))
    resumed = batches(train_dataset(records, AREA, data=SMALL, batch_size=4, seed=7, epochs=4, first_epoch=2))
    assert_same_batches(resumed, through[6:])
    assert not batches(train_dataset(records, AREA, data=SMALL, epochs=2, first_epoch=2))


def test_caches_and_threads_do_not_change_any_bit(records, tmp_path):
    def made(cache, threads=None):
        data = DataConfig(image_size=16, cache=cache)
        dataset = train_dataset(records, AREA, data=data, batch_size=4, epochs=2)
        if threads:
            options = tf.data.Options()
            options.threading.private_threadpool_size = threads
            dataset = dataset.with_options(options)
        return batches(dataset)

    plain = made("off")
    for cache in ("off", "memory", "disk", "auto"):
        assert_same_batches(made(cache), plain)
    assert_same_batches(made("off", threads=1), plain)
    assert_same_batches(made("memory", threads=8), plain)


def test_epochs_seeds_and_batches_have_different_random_numbers(records):
    first, second = batches(train_dataset(records, AREA, data=SMALL, batch_size=11, epochs=2))
    (other,) = batches(train_dataset(records, AREA, data=SMALL, batch_size=11, seed=1))
    assert not np.array_equal(first["label"], second["label"]) and not np.array_equal(first["label"], other["label"])

    def brightest(batch):  # independent of the order, changed only by augmentation
        return np.sort(batch["image"].max(axis=(1, 2, 3)))

    assert not np.allclose(brightest(first), brightest(second))
    assert not np.allclose(brightest(first), brightest(other))


def test_augmentation_changes_only_the_training_images(records):
    (changed,) = batches(train_dataset(records, AREA, data=SMALL, batch_size=11))
    (plain,) = batches(train_dataset(records, AREA, data=SMALL, batch_size=11, augment=UNCHANGED))
    np.testing.assert_array_equal(changed["label"], plain["label"])
    difference = np.abs(changed["image"] - plain["image"]).mean(axis=(1, 2, 3))
    assert difference.min() > 1, "an image passed unchanged"


# --- damage -------------------------------------------------------------------------------------------------------


def test_missing_and_truncated_shards_are_reported_before_training(tmp_path):
    write_records(tmp_path, [0, 1, 0, 1])
    shard = tmp_path / AREA / "train-00001-of-00002.tfrecord"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(InputError, match="train-00001-of-00002.tfrecord has .* bytes, the manifest says"):
        train_dataset(tmp_path, AREA, data=SMALL)
    shard.unlink()
    with pytest.raises(InputError, match="train-00001-of-00002.tfrecord is missing"):
        eval_dataset(tmp_path, AREA, "train", data=SMALL)


@pytest.mark.parametrize("cache", ["off", "memory"])
def test_a_flipped_bit_is_reported_when_the_record_is_read(tmp_path, cache):
    write_records(tmp_path, [0, 1, 0, 1, 1])
    dataset = train_dataset(tmp_path, AREA, data=SMALL)  # undamaged, and already opened by this process
    shard = tmp_path / AREA / "train-00001-of-00002.tfrecord"
    content = bytearray(shard.read_bytes())
    content[-40] ^= 1
    shard.write_bytes(content)
    sentence = r"train-00001-of-00002.tfrecord: record 2 fails its checksum; run kmura inspect"
    with pytest.raises(InputError, match=sentence), readable_errors(tmp_path):
        batches(dataset)
    with pytest.raises(InputError, match=sentence), readable_errors(tmp_path):
        batches(train_dataset(tmp_path, AREA, data=DataConfig(image_size=16, cache=cache)))


def test_missing_records_and_labels_outside_the_classes_are_reported(tmp_path):
    write_records(tmp_path, [0, 1, 2, 1])
    with pytest.raises(InputError, match=r"00001-of-00002.tfrecord: record 0 has the label \[2\].*-1 to 1"):
        Dataset(tmp_path, AREA).rows("train")
    write_records(tmp_path, [0, 1, 1, 1])
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"records": 2', '"records": 3', 1))
    with pytest.raises(InputError, match="00000-of-00002.index.json holds 2 records, the manifest says 3"):
        Dataset(tmp_path, AREA).rows("train")


def test_training_without_labelled_images_is_rejected(tmp_path):
    write_records(tmp_path, [-1, -1])
    with pytest.raises(InputError, match="known label"):
        train_dataset(tmp_path, AREA, data=SMALL)
    assert batches(eval_dataset(tmp_path, AREA, "train", data=SMALL))[0]["label"].tolist() == [[-1], [-1]]
    with pytest.raises(InputError, match="no test split"):
        eval_dataset(tmp_path, AREA, "test", data=SMALL)
    with pytest.raises(InputError, match="no test split"):
        eval_dataset(tmp_path, "all", "test", data=SMALL)


@pytest.fixture
def undecodable(tmp_path):
    """Records with valid checksums whose fourth image (record 1 of the second shard) is truncated."""
    images = [encoded(picture(number)) for number in range(5)]
    images[3] = images[3][: len(images[3]) // 2]
    return write_records(tmp_path, [0, 1, 0, 1, 1], images=images)


IMAGE = r"the image of record 1 \(.*patient00003.*\)"
SENTENCE = rf"train-00001-of-00002.tfrecord: {IMAGE} cannot be decoded; run kmura inspect"


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_an_undecodable_image_is_reported_when_the_cache_is_filled(undecodable, cache):
    with pytest.raises(InputError, match=SENTENCE):
        train_dataset(undecodable, AREA, data=DataConfig(image_size=16, cache=cache))


def test_an_undecodable_image_is_reported_during_iteration_without_a_cache(undecodable):
    dataset = train_dataset(undecodable, AREA, data=SMALL, batch_size=2)
    with pytest.raises(InputError, match=SENTENCE), readable_errors(undecodable):
        batches(dataset)
    with pytest.raises(InputError, match=SENTENCE), readable_errors(undecodable, AREA, "train"):
        batches(dataset)


def test_an_image_whose_size_differs_from_its_record_is_reported(tmp_path):
    images = [encoded(picture(number)) for number in range(4)]
    images[3] = encoded(np.zeros((50, 60), np.uint8))
    write_records(tmp_path, [0, 1, 0, 1], images=images)
    dataset = eval_dataset(tmp_path, AREA, "train", data=SMALL)
    with pytest.raises(InputError, match="image of record 1 .*patient00003"), readable_errors(tmp_path):
        batches(dataset)


def test_a_shard_deleted_during_training_is_reported(tmp_path):
    write_records(tmp_path, [0, 1, 0, 1])
    dataset = train_dataset(tmp_path, AREA, data=SMALL)
    shard = tmp_path / AREA / "train-00001-of-00002.tfrecord"
    content = shard.read_bytes()
    for size in (10, len(content) // 2 + 5, len(content) - 5):
        shard.write_bytes(content[:size])
        with pytest.raises(InputError, match=r"00001-of-00002.tfrecord has .* bytes, the manifest says"):
            with readable_errors(tmp_path):
                batches(dataset)
    shard.unlink()
    with pytest.raises(InputError, match=r"00001-of-00002.tfrecord is missing"), readable_errors(tmp_path):
        batches(dataset)


def test_unrelated_errors_pass_unchanged(records):
    with pytest.raises(tf.errors.InvalidArgumentError), readable_errors(records):
        tf.debugging.assert_equal(1, 2, "an image of mine")
    with pytest.raises(ZeroDivisionError), readable_errors(records):
        1 / 0  # noqa: B018


DROP = """
import sys
from kmura.config import DataConfig
from kmura.data.dataset import Dataset
for cache in ("memory", "off"):
    dataset = Dataset(sys.argv[1], sys.argv[2], DataConfig(image_size=32, cache=cache)).train(epochs=500)
    for _ in range(3):
        iterator = iter(dataset)
        next(iterator)  # then it goes while batches are being made, the last one at the end of the program
"""


@pytest.mark.slow
def test_a_dataset_released_during_iteration_does_not_deadlock(records):
    command = [sys.executable, "-c", DROP, str(records), AREA]
    subprocess.run(command, check=True, timeout=120, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("cache", ["off", "memory", "disk"])
def test_the_pipeline_runs_no_python_functions(records, cache):
    # TensorFlow waits for its threads while it holds the GIL; a Python function in a thread would deadlock
    data = DataConfig(image_size=32, cache=cache)
    for dataset in (train_dataset(records, AREA, data=data), eval_dataset(records, AREA, "train", data=data)):
        graph = dataset._as_serialized_graph().numpy()  # of all steps and their functions
        assert b"PyFunc" not in graph and b"ParallelMap" in graph
