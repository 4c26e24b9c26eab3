"""`inspect` warns of near-duplicate images in two splits, which `eda` lists."""

import numpy as np
import pytest
from command import kmura_main
from PIL import Image
from scipy.ndimage import gaussian_filter

import kmura
from kmura.config import RecordsConfig
from kmura.records.near_duplicates import alike_pairs
from kmura.records.verify import inspect_records


def smooth(seed, side=64):
    pixels = gaussian_filter(np.random.default_rng(seed).uniform(0, 1, (side, side)), 4)
    return np.uint8(255 * (pixels - pixels.min()) / np.ptp(pixels))


@pytest.fixture
def copied(tmp_path):
    """Records of class folders with splits; one training image is in test again, 2 gray levels brighter as a JPEG."""
    root = tmp_path / "hands"
    for seed, folder in enumerate(("train/a", "train/b", "test/a", "test/b")):
        (root / folder).mkdir(parents=True)
        for number in range(5):
            Image.fromarray(smooth(10 * seed + number)).save(root / folder / f"{number}.png")
    Image.fromarray(np.uint8(np.minimum(smooth(3).astype(int) + 2, 255))).save(root / "test/b/copy.jpg", quality=90)
    Image.fromarray(smooth(4)).save(root / "test/b/same.png")  # identical, which another finding reports
    options = {"layout": "folders", "positive_class": "b", "options": RecordsConfig(val_fraction=0), "workers": 1}
    kmura.build_records(root, tmp_path / "records", **options)
    return tmp_path / "records"


def test_near_duplicates_in_two_splits_are_warnings(copied, monkeypatch, capsys):
    inspection = inspect_records(copied)
    (text,) = [finding.text for finding in inspection.findings if "near-duplicate" in finding.text]
    assert text.startswith("hands: 1 pair of near-duplicate images across train and test (")
    assert "train: train/a/3.png" in text and "test: test/b/copy.jpg" in text and "optimistic" in text
    assert inspection.sound and any("identical images" in finding.text for finding in inspection.findings)
    assert not [f for f in inspect_records(copied, near_duplicates=False).findings if "near-duplicate" in f.text]
    code, out, _ = kmura_main(monkeypatch, capsys, "inspect", copied)
    assert code == 0 and "warning: hands: 1 pair of near-duplicate images" in out
    code, out, _ = kmura_main(monkeypatch, capsys, "inspect", copied, "--no-near-duplicates")
    assert code == 0 and "near-duplicate" not in out


def test_pairs_agree_with_the_correlation_of_numpy():
    images = np.stack([smooth(seed) for seed in range(6)] + [smooth(1) // 2 + 20])
    ((first, second, correlation),) = alike_pairs(images)
    assert (first, second) == (1, 6)
    assert correlation == pytest.approx(np.corrcoef(images[1].ravel(), images[6].ravel())[0, 1], abs=1e-5)
    assert alike_pairs(images, np.zeros(7)) == [] and len(alike_pairs(images, np.arange(7))) == 1
    assert alike_pairs(np.full((3, 64, 64), 7, np.uint8)) == []  # images of one gray value have no correlation
