"""What `kmura eda` finds is what was put there."""

import json

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from sklearn.decomposition import PCA

from kmura.errors import InputError
from kmura.evaluation import eda


@pytest.fixture(scope="module")
def explored(tmp_path_factory):
    import kmura
    from kmura.phantoms.radiographs import write_phantoms

    folder = tmp_path_factory.mktemp("eda")
    write_phantoms(folder / "images", areas=("XR_WRIST",), train_studies=30, test_studies=10, side=96, workers=1)
    train = sorted((folder / "images" / "train").rglob("*.png"))
    held_out = sorted((folder / "images" / "valid").rglob("*.png"))
    with Image.open(train[0]) as image:
        ImageEnhance.Brightness(image).enhance(0.97).save(held_out[0])  # a near-duplicate in another split
        shape = image.size
    Image.fromarray(np.random.default_rng(0).integers(235, 255, shape[::-1], np.uint8)).save(train[-1])  # overexposed
    kmura.build_records(folder / "images", folder / "records", workers=1)
    found = eda.explore(folder / "records", out=folder / "eda.json")
    return folder, found, train, held_out


def test_near_doubles_are_found_across_splits(explored):
    folder, found, train, held_out = explored
    pairs = {frozenset((pair.one, pair.other)): pair for pair in found.areas["XR_WRIST"].near_doubles}
    names = frozenset(path.relative_to(folder / "images").as_posix() for path in (train[0], held_out[0]))
    assert pairs[names].crosses and pairs[names].correlation > 0.995
    assert len(pairs) <= 3  # phantoms of one area are alike, but not that much


def test_an_overexposed_image_is_the_first_outlier(explored):
    folder, found, train, _ = explored
    first = found.areas["XR_WRIST"].outliers[0]
    assert first.image == train[-1].relative_to(folder / "images").as_posix() and first.mean > 230 and first.z > 3.5


def test_counts_and_intensities_are_those_of_the_images(explored):
    folder, found, *_ = explored
    area = found.areas["XR_WRIST"]
    files = list((folder / "images").rglob("*.png"))
    assert sum(each.images for each in area.classes.values()) == len(files)
    normal = [np.asarray(Image.open(path).convert("L"), float) for path in files if "negative" in str(path)]
    assert area.classes["normal"].mean == pytest.approx(np.mean([image.mean() for image in normal]), abs=1.0)
    sizes = [Image.open(path).size for path in files]
    assert (area.width[0], area.width[2]) == (min(w for w, _ in sizes), max(w for w, _ in sizes))
    assert json.loads((folder / "eda.json").read_text())["areas"]["XR_WRIST"]["height"] == list(area.height)


def test_principal_parts_are_counted_as_scikit_learn_does():
    rng = np.random.default_rng(0)
    thumbnails = (rng.normal(size=(60, 5)) @ rng.normal(size=(5, 64 * 64)) * 10 + 100).reshape(60, 64, 64)
    found = eda.principal_parts(thumbnails)
    reference = PCA(n_components=0.99, svd_solver="full").fit(thumbnails.reshape(60, -1))
    assert found.pca["0.99"] == reference.n_components_ == found.incremental["0.99"] <= 5
    assert found.cumulative[4] == pytest.approx(1)


def test_equal_images_are_all_doubles_and_flat_ones_none():
    images, splits = np.array(list("abc")), np.array(["train"] * 3)
    noise = np.random.default_rng(0).uniform(0, 255, (1, 64, 64))
    assert len(eda.near_doubles(images, splits, np.repeat(noise, 3, axis=0))) == 3
    assert eda.near_doubles(images, splits, np.full((3, 64, 64), 7.0)) == []
    assert eda.outliers(images, splits, np.full(3, 7.0)) == []


def test_an_unknown_area_is_refused(explored):
    with pytest.raises(InputError, match="XR_FOOT is not in .*XR_WRIST"):
        eda.explore(explored[0] / "records", area="XR_FOOT")
