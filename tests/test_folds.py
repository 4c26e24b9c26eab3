"""Folds of a cross-validation are splits of a Dataset: whole patients, stratified, each image held out once."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from command import kmura_main
from conftest import SMALL_SHARDS, make_mura_tree
from record_files import write_records

import kmura
from kmura.classification.fold_options import options_of_folds
from kmura.config import DataConfig
from kmura.data.dataset import Dataset
from kmura.data.decoded import FOLDER
from kmura.errors import InputError
from kmura.records.manifest import read_manifest

K = 4
SMALL = DataConfig(image_size=16, folds=K)


def fold_of(records, number, area="XR_WRIST", **config):
    return Dataset(records, area, dataclasses.replace(SMALL, fold=number, **config))


@pytest.fixture(scope="module")
def folded_records(mura_root, tmp_path_factory):
    """Records of `mura_root` that keep a fold per image."""
    out = tmp_path_factory.mktemp("folded") / "records"
    kmura.build_records(mura_root, out, options=SMALL_SHARDS, folds=K, workers=1)
    return out


def test_each_image_outside_of_test_is_held_out_once_with_all_images_of_its_patient(records):
    plain = Dataset(records, "XR_WRIST", DataConfig(image_size=16))
    whole = pd.concat([plain.rows("train"), plain.rows("val")])
    held_out = [fold_of(records, number).rows("test") for number in range(K)]
    assert sorted(pd.concat(held_out)["image"]) == sorted(whole["image"])
    for number in range(K):
        dataset = fold_of(records, number)
        rows = {split: dataset.rows(split) for split in dataset.splits}
        assert dataset.splits == ("train", "val", "test")
        assert sum(map(len, rows.values())) == len(whole)
        patients = [set(table["patient"]) for table in rows.values()]
        assert not any(patients[one] & patients[other] for one, other in ((0, 1), (0, 2), (1, 2)))
        pd.testing.assert_frame_equal(rows["val"], held_out[(number + 1) % K])
        assert set(dataset.folds("test")) == {number} and set(dataset.folds("val")) == {(number + 1) % K}


def test_folds_are_stratified_by_label(records):
    shares = [fold_of(records, number).ids("test").mean() for number in range(K)]
    sizes = [len(fold_of(records, number).rows("test")["patient"].unique()) for number in range(K)]
    assert max(shares) - min(shares) < 0.2 and max(sizes) - min(sizes) <= 2


def test_folds_made_on_the_fly_are_those_of_the_build_and_of_all_areas(records, folded_records):
    assert read_manifest(folded_records).folds == K and not read_manifest(records).folds
    for number in range(K):
        for area in ("XR_WRIST", "XR_ELBOW", "all"):
            one, other = (fold_of(folder, number, area).rows("test") for folder in (records, folded_records))
            assert sorted(one["image"]) == sorted(other["image"])
    joint = fold_of(records, 1, "all", task="multiclass")
    parts = pd.concat([fold_of(records, 1, area).rows("test") for area in ("XR_ELBOW", "XR_WRIST")])
    assert sorted(joint.rows("test")["image"]) == sorted(parts["image"])
    assert sum(joint.counts("test")) == len(parts)
    assert joint.counts("test") == tuple(np.bincount(joint.ids("test")[:, 0], minlength=4))


def test_counts_steps_and_balance_are_of_the_fold(records):
    dataset = fold_of(records, 2)
    labels = dataset.rows("train")["label"]
    assert dataset.counts("train") == ((labels == 0).sum(), (labels == 1).sum())
    assert dataset.balance("train") == [pytest.approx((labels == 0).sum() / (labels == 1).sum())]
    assert dataset.steps(8) == -(-len(labels) // 8)


@pytest.mark.parametrize("cache", ["off", "memory", "disk"])
def test_the_pixels_of_a_fold_are_those_of_the_records_with_every_cache(records, cache, tmp_path):
    import shutil

    folder = shutil.copytree(records, tmp_path / "records")
    plain = Dataset(folder, "XR_WRIST", DataConfig(image_size=16, cache="off"))
    images = {}
    for split in ("train", "val"):
        for batch in plain.eval(split).as_numpy_iterator():
            images |= dict(zip(batch["path"], batch["image"], strict=True))
    for number in (0, 3):
        dataset = fold_of(folder, number, cache=cache)
        seen = 0
        for split in ("val", "test"):
            for batch in dataset.eval(split).as_numpy_iterator():
                for path, image in zip(batch["path"], batch["image"], strict=True):
                    assert (images[path] == image).all()
                    seen += 1
        assert seen == len(dataset.rows("val")) + len(dataset.rows("test"))
        (batch,) = dataset.train(batch_size=1000, seed=1).as_numpy_iterator()
        assert len(batch["image"]) == len(dataset.rows("train"))
    # the folds share the decoded images of the records: no copies
    assert len(list((folder / FOLDER).glob("*.npy"))) == (cache == "disk")


def test_a_damaged_image_of_a_fold_is_named(records, tmp_path):
    import shutil

    folder = shutil.copytree(records, tmp_path / "records")
    shard = sorted((folder / "XR_WRIST").glob("val-*.tfrecord"))[0]
    data = bytearray(shard.read_bytes())
    at = data.index(b"IDAT") + 8
    data[at : at + 40] = bytes(40)
    shard.write_bytes(data)
    with pytest.raises(InputError, match="val-00000"):
        for number in range(K):
            dataset = fold_of(folder, number, cache="memory")
            with dataset.readable_errors():
                list(dataset.eval("test").as_numpy_iterator())


@pytest.mark.parametrize(
    ("folds", "fold", "message"),
    [
        (2, 0, "give 0 or 3 and more"),
        (-1, 0, "give 0 or 3 and more"),
        (5, 5, r"data.fold is 5; allowed is 0 to 4"),
        (0, 1, r"data.fold is 1; allowed is 0 to 0"),
    ],
)
def test_impossible_folds_are_refused(folds, fold, message):
    with pytest.raises(InputError, match=message):
        DataConfig(folds=folds, fold=fold)


def test_more_folds_than_patients_are_refused(records):
    with pytest.raises(InputError, match="--folds 500 is more than the 40 patients outside of test; give fewer"):
        Dataset(records, "XR_WRIST", DataConfig(folds=500)).rows("test")


def test_another_number_than_that_of_the_records_is_refused(folded_records):
    with pytest.raises(InputError, match="data.folds is 5, but the images of .* are in 4 folds; give --folds 4"):
        Dataset(folded_records, "XR_WRIST", DataConfig(folds=5)).rows("test")


def test_a_fold_without_positives_is_refused_before_any_training(tmp_path):
    write_records(tmp_path, [0] * 20 + [1] * 4, split="train")
    with pytest.raises(InputError, match=r"no images of abnormal in the test \(fold \d of 5\) split.*fewer --folds"):
        for number in range(5):
            if number != 3:  # whose val fold lacks them too, which is found first
                Dataset(tmp_path, "XR_WRIST", DataConfig(folds=5, fold=number)).check(("train", "val"))


def test_options_of_folds_are_those_of_each_fold(records, folded_records):
    each = options_of_folds(records, 3, None, {"runs": "r", "settings": ["train.epochs=2"]})
    assert [str(one["runs"]) for one in each] == ["r/fold0", "r/fold1", "r/fold2"]
    assert each[2]["settings"] == {"train.epochs": 2, "data.folds": 3, "data.fold": 2}
    (one,) = options_of_folds(folded_records, 0, 1, {})  # the number is that of the records
    assert one["settings"] == {"data.folds": K, "data.fold": 1}
    assert options_of_folds(records, 0, None, {"runs": "r"}) == [{"runs": "r"}]
    for folds, fold, message in (
        (0, 1, "has no folds; give their number with --folds"),
        (3, 3, "--fold 3 of --folds 3: give a fold of 0 to 2"),
        (3, -1, "--fold -1 of --folds 3"),
    ):
        with pytest.raises(InputError, match=message):
            options_of_folds(records, folds, fold, {})
    with pytest.raises(InputError, match="data.fold is set by --fold; leave --set data.fold out"):
        options_of_folds(records, 3, None, {"settings": ["data.fold=1"]})


def test_the_plan_of_folds_counts_their_images(records, tmp_path, monkeypatch, capsys):
    from kmura.classification.fit_plan import plan_areas

    settings = {"model.backbone": "densenet_mini", "model.weights": "none", "data.image_size": 32}
    plans = plan_areas(records, area="XR_WRIST", runs=tmp_path, settings=settings, folds=K)
    assert [plan.folder.relative_to(tmp_path).parts[0] for plan in plans] == [f"fold{n}" for n in range(K)]
    for number, plan in enumerate(plans):
        dataset = fold_of(records, number)
        assert plan.images == {split: len(dataset.rows(split)) for split in dataset.splits}
        assert plan.studies == {split: dataset.rows(split)["study"].nunique() for split in dataset.splits}
    code, _, err = kmura_main(
        monkeypatch, capsys, "fit", "--area", "XR_WRIST", "--records", records, "--folds", 4, "--fold", 4, "--dry-run"
    )
    assert code == 2 and err.strip().splitlines()[-1].endswith("--fold 4 of --folds 4: give a fold of 0 to 3")


def test_records_without_patients_have_folds_of_images(tmp_path):
    write_records(tmp_path, [0, 1] * 12)
    tables = [Dataset(tmp_path, "XR_WRIST", DataConfig(folds=3, fold=n)).rows("test") for n in range(3)]
    assert [len(table) for table in tables] == [8, 8, 8] and [table["label"].sum() for table in tables] == [4, 4, 4]


def test_patients_in_two_splits_of_the_records_are_no_leak_between_folds(tmp_path):
    root = make_mura_tree(tmp_path / "tree", areas=("XR_WRIST",), train_patients=12, test_patients=4, views=1)
    kmura.build_records(root, tmp_path / "records", options=SMALL_SHARDS, workers=1)
    assert fold_of(tmp_path / "records", 0).leaks() == ()
