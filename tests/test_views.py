"""Views of radiographs and the pairs of pretraining."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from layer_contract import check_layer
from scipy import ndimage

from kmura.config import DataConfig, ViewsConfig
from kmura.data.dataset import Dataset
from kmura.data.views import RandomBlur, RandomInversion, RandomNoise, blurred, view_layers
from kmura.errors import InputError

SEED = np.array([3, 4])
STILL = ViewsConfig(
    area_scale=(1.0, 1.0),
    aspect=(1.0, 1.0),
    rotation=0.0,
    flip=0.0,
    brightness=0.0,
    contrast=0.0,
    blur_sigma=(0.05, 0.05),
)  # changes nothing


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (8, 20, 24, 1)).astype(np.uint8)


@pytest.mark.parametrize(
    ("layer", "config"),
    [
        (RandomInversion, {"probability": 0.5}),
        (RandomBlur, {"probability": 0.5, "sigma": (0.0, 0.1)}),
        (RandomNoise, {"probability": 0.5, "std": (1.0, 5.0)}),
    ],
)
def test_view_layers_satisfy_the_layer_contract(layer, config, images):
    check_layer(layer, config, images.astype(np.float32), random=True, differentiable=False)
    one = layer(**config, dtype="float32")
    first = one(images, seed=SEED).numpy()
    assert (first == one(images, seed=SEED).numpy()).all() and (first[:3] == one(images[:3], seed=SEED).numpy()).all()
    assert (first != one(images, seed=SEED + 1).numpy()).any()
    assert (one(images, seed=SEED, training=False).numpy() == images).all()
    in_graph = next(iter(tf.data.Dataset.from_tensors(images).map(lambda batch: one(batch, seed=SEED)))).numpy()
    assert in_graph == pytest.approx(first, abs=1e-3)


def test_inversion_exchanges_black_and_white(images):
    inverted = RandomInversion(1.0, dtype="float32")(images, seed=SEED).numpy()
    assert (inverted == 255 - images.astype(np.float32)).all()
    half = RandomInversion(0.5, dtype="float32")(np.zeros((400, 2, 2, 1), np.uint8), seed=SEED).numpy()
    assert set(half.ravel()) == {0.0, 255.0} and 150 < (half[:, 0, 0, 0] == 255).sum() < 250


def test_a_blur_is_that_of_scipy(images):
    sigma = np.array([0.0, 0.4, 1.0, 1.7, 0.0, 1.0, 1.2, 0.9], np.float32)
    ours = blurred(images.astype(np.float32), sigma, radius=6).numpy()
    assert (ours[0] == images[0]).all()
    for image, result, width in zip(images, ours, sigma, strict=True):
        if width:
            gray = image[..., 0].astype(np.float64)
            expected = ndimage.gaussian_filter(gray, width, mode="nearest", radius=6)
            assert result[..., 0] == pytest.approx(expected, abs=1e-2)


def test_the_blur_is_relative_to_the_image():
    layer = RandomBlur(1.0, (0.05, 0.05), dtype="float32")
    for side in (20, 40):
        point = np.zeros((1, side, side, 1), np.float32)
        point[0, side // 2, side // 2] = 255
        result = layer(point, seed=SEED).numpy()[0, :, :, 0]
        place = np.arange(side) - side // 2
        assert np.sqrt((result.sum(axis=0) * place**2).sum() / 255) == pytest.approx(0.05 * side, rel=0.05)


def test_noise_has_the_given_standard_deviation():
    gray = np.full((50, 16, 16, 1), 128, np.uint8)
    noisy = RandomNoise(1.0, (6.0, 6.0), dtype="float32")(gray, seed=SEED).numpy()
    assert (noisy - 128).std() == pytest.approx(6, rel=0.05) and abs((noisy - 128).mean()) < 0.2
    assert RandomNoise(1.0, (200.0, 200.0), dtype="float32")(gray, seed=SEED).numpy().min() == 0, "clipped to 0..255"


def test_every_key_of_the_views_changes_the_images(images):
    changes = {
        "area_scale": (0.5, 0.6), "aspect": None, "rotation": 20.0, "shift": 0.2, "flip": 1.0, "brightness": 0.5,
        "contrast": 0.5, "invert": 1.0, "blur": 1.0, "blur_sigma": None, "noise": 1.0, "noise_std": None,
    }  # fmt: skip
    assert changes.keys() == ViewsConfig.__dataclass_fields__.keys()

    def seen(views):
        result = tf.constant(images)
        for number, layer in enumerate(view_layers(views)):
            result = layer(result, seed=SEED + number)
        return result.numpy()

    assert (seen(STILL) == images).all()
    for name, value in changes.items():
        if value is not None:
            assert np.abs(seen(dataclasses.replace(STILL, **{name: value})) - images).max() > 1, name


def views_of(dataset, **options):
    return list(dataset.views(**{"views": STILL, "batch_size": 4} | options).as_numpy_iterator())


def test_pairs_depend_only_on_seed_and_epoch(records):
    dataset = Dataset(records, "XR_WRIST", DataConfig(image_size=32, cache="memory"))
    options = {"views": ViewsConfig(noise=0.5), "batch_size": 8, "seed": 5}
    both, second = views_of(dataset, epochs=2, **options), views_of(dataset, epochs=2, first_epoch=1, **options)
    steps = len(dataset.index("train")) // 8
    assert len(both) == 2 * steps and len(second) == steps
    for ours, theirs in zip(both[steps:], second, strict=True):
        assert all((ours[name] == theirs[name]).all() for name in ours)
    off = views_of(dataset.of_area("XR_WRIST", DataConfig(image_size=32, cache="off")), epochs=1, **options)
    assert all((ours["image"] == theirs["image"]).all() for ours, theirs in zip(both[:steps], off, strict=True))
    assert (both[0]["image"] != both[steps]["image"]).any(), "another order in every epoch"
    assert both[0]["image"].shape == (16, 32, 32, 1) and both[0]["image"].dtype == np.float32
    assert (both[0]["image"][:8] != both[0]["image"][8:]).any(), "each view has its own random numbers"


def test_the_positive_of_an_image_is_another_image_of_its_study(records):
    dataset = Dataset(records, "XR_WRIST", DataConfig(image_size=32, cache="memory"))
    index = dataset.index("train")
    images = dataset.images("train", range(len(index)))
    row_of = {image.tobytes(): row for row, image in enumerate(images)}
    study = (index.keys["patient"] + "/" + index.keys["study"]).to_numpy()

    def pairs(positives):
        for batch in views_of(dataset, positives=positives):
            rows = [row_of[image.tobytes()] for image in batch["image"]]
            yield from zip(rows[:4], rows[4:], batch["group"], batch["label"][:, 0], strict=True)

    assert all(first == second for first, second, *_ in pairs("image"))
    seen = list(pairs("study"))
    assert all(first != second and study[first] == study[second] for first, second, *_ in seen)
    assert all((study[a[0]] == study[b[0]]) == (a[2] == b[2]) for a in seen for b in seen)
    assert all(label == index.labels[first, 0] for first, _, _, label in seen)
    patient = index.keys["patient"].to_numpy()
    of_patient = list(pairs("patient"))
    assert all(first != second and patient[first] == patient[second] for first, second, *_ in of_patient)
    assert any(study[first] != study[second] for first, second, *_ in of_patient), "also across studies of a patient"


def test_pairs_that_cannot_be_made_are_refused(medmnist_file, records, tmp_path):
    import kmura

    kmura.build_records(medmnist_file, tmp_path / "records", layout="medmnist", classes=("a", "b"), workers=1)
    dataset = Dataset(tmp_path / "records", "noisemnist", DataConfig(image_size=28))
    with pytest.raises(InputError, match="no study of area noisemnist.* has two images; use method.positives=image"):
        dataset.views(positives="study", batch_size=4)
    with pytest.raises(InputError, match="30 images, fewer than a batch of 31; reduce train.batch_size"):
        dataset.views(batch_size=31)
    assert len(views_of(dataset, batch_size=30)) == 1
