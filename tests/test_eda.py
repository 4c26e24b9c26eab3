"""`kmura eda` finds known duplicates, outliers and statistics."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from sklearn.decomposition import PCA, IncrementalPCA

from kmura.errors import InputError
from kmura.evaluation import eda
from kmura.evaluation.exploration import BINS


@pytest.fixture(scope="module")
def explored(tmp_path_factory):
    import kmura
    from kmura.phantoms.radiographs import write_phantoms

    folder = tmp_path_factory.mktemp("eda")
    write_phantoms(folder / "images", areas=("XR_WRIST",), train_studies=30, test_studies=10, side=96, workers=1)
    train = sorted((folder / "images" / "train").rglob("*.png"))
    held_out = sorted((folder / "images" / "valid").rglob("*.png"))
    with Image.open(train[0]) as image:
        ImageEnhance.Brightness(image).enhance(0.97).save(held_out[0])  # a near duplicate in another split
        shape = image.size
    Image.fromarray(np.random.default_rng(0).integers(235, 255, shape[::-1], np.uint8)).save(train[-1])  # overexposed
    kmura.build_records(folder / "images", folder / "records", workers=1)
    found = eda.explore(folder / "records", out=folder / "eda.json")
    return folder, found, train, held_out


def test_near_duplicates_are_found_across_splits(explored):
    folder, found, train, held_out = explored
    pairs = {frozenset((pair.one, pair.other)): pair for pair in found.areas["XR_WRIST"].near_doubles}
    names = frozenset(path.relative_to(folder / "images").as_posix() for path in (train[0], held_out[0]))
    assert pairs[names].crosses and pairs[names].correlation > 0.995
    assert len(pairs) <= 3  # phantoms of one area are similar, but not duplicates


def test_an_overexposed_image_is_the_first_outlier(explored):
    folder, found, train, _ = explored
    first = found.areas["XR_WRIST"].outliers[0]
    assert first.image == train[-1].relative_to(folder / "images").as_posix() and first.mean > 230 and first.z > 3.5


def test_counts_and_intensities_match_the_images(explored):
    folder, found, *_ = explored
    area = found.areas["XR_WRIST"]
    files = list((folder / "images").rglob("*.png"))
    assert sum(each.images for each in area.classes.values()) == len(files)
    normal = [np.asarray(Image.open(path).convert("L"), float) for path in files if "negative" in str(path)]
    assert area.classes["normal"].mean == pytest.approx(np.mean([image.mean() for image in normal]), abs=1.0)
    sizes = [Image.open(path).size for path in files]
    assert (area.width[0], area.width[2]) == (min(w for w, _ in sizes), max(w for w, _ in sizes))
    assert json.loads((folder / "eda.json").read_text())["areas"]["XR_WRIST"]["height"] == list(area.height)


def test_thumbnails_are_the_images_of_the_input_pipeline(explored):
    from kmura.config import DataConfig
    from kmura.data.dataset import Dataset

    dataset = Dataset(explored[0] / "records", "XR_WRIST", DataConfig(image_size=eda.SIDE, resize="squash"))
    index = dataset.index("train")
    expected = dataset.images("train", range(len(index))).mean(-1)
    assert np.abs(eda.thumbnails_of(index) - expected).max() <= 1.01  # Pillow also rounds between its two passes


def test_histograms_and_class_counts_match_the_images(explored):
    from kmura.records.manifest import read_manifest

    folder, found, *_ = explored
    area = found.areas["XR_WRIST"]
    manifest = read_manifest(folder / "records")
    for split, counts in manifest.areas["XR_WRIST"].items():
        assert area.splits[split] == dict(zip(manifest.classes, counts.per_class, strict=True))
    for each in area.classes.values():
        assert sum(each.histogram) == pytest.approx(1)
        centres = (np.arange(BINS) + 0.5) * 256 / BINS
        assert np.dot(each.histogram, centres) == pytest.approx(each.mean, abs=256 / BINS / 2)


def test_a_damaged_image_in_the_records_is_named(explored, tmp_path):
    import shutil

    from kmura.data.dataset import Dataset
    from kmura.records import schema
    from kmura.records.tfrecord import frame, read_frames

    records = shutil.copytree(explored[0] / "records", tmp_path / "records")
    index = Dataset(records, "XR_WRIST").index("test")
    frames = [schema.decode(data) for data in read_frames(index.shards[0])]
    frames[1] = dataclasses.replace(frames[1], image=frames[1].image[:60])
    index.shards[0].write_bytes(b"".join(frame(schema.encode(record)) for record in frames))
    with pytest.raises(InputError, match=r"the image of record 1 \(.*png\) cannot be decoded; run kmura inspect"):
        eda.thumbnails_of(index)


def test_eda_needs_no_tensorflow(explored, tmp_path):
    code = (
        "import sys; from kmura.evaluation.eda import explore; explore(sys.argv[1], out=sys.argv[2]); "
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, explored[0] / "records", tmp_path / "eda.json"], check=True)


def test_incremental_principal_components_match_scikit_learn():
    rng = np.random.default_rng(0)
    pixels = (rng.normal(size=(450, 400)) * np.geomspace(1, 0.01, 400)) @ rng.normal(size=(400, 64 * 64)) * 9 + 100
    found = eda.principal_parts(pixels.reshape(-1, 64, 64))
    order = np.random.default_rng(0).permutation(450)
    reference = IncrementalPCA(n_components=200, batch_size=400).fit(pixels[order] / 255)
    total = np.cumsum(reference.explained_variance_ratio_)
    assert found.incremental["0.9"] == np.argmax(total >= 0.9) + 1
    whole = PCA(n_components=200, svd_solver="full").fit(pixels)
    np.testing.assert_allclose(found.cumulative, np.cumsum(whole.explained_variance_ratio_)[:50], atol=1e-6)


def test_the_number_of_principal_components_matches_scikit_learn():
    rng = np.random.default_rng(0)
    thumbnails = (rng.normal(size=(60, 5)) @ rng.normal(size=(5, 64 * 64)) * 10 + 100).reshape(60, 64, 64)
    found = eda.principal_parts(thumbnails)
    reference = PCA(n_components=0.99, svd_solver="full").fit(thumbnails.reshape(60, -1))
    assert found.pca["0.99"] == reference.n_components_ == found.incremental["0.99"] <= 5
    assert found.cumulative[4] == pytest.approx(1)


def test_identical_images_are_duplicates_and_constant_images_are_not():
    images, splits = np.array(list("abc")), np.array(["train"] * 3)
    noise = np.random.default_rng(0).uniform(0, 255, (1, 64, 64))
    assert len(eda.near_doubles(images, splits, np.repeat(noise, 3, axis=0))) == 3
    assert eda.near_doubles(images, splits, np.full((3, 64, 64), 7.0)) == []
    assert eda.outliers(images, splits, np.full(3, 7.0)) == []


def test_an_unknown_area_is_rejected(explored):
    with pytest.raises(InputError, match="XR_FOOT is not in .*XR_WRIST"):
        eda.explore(explored[0] / "records", area="XR_FOOT")
