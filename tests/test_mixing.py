"""MixUp and CutMix match their publications, labels match the actual mixture, and results depend only on the seed."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from kmura.data.mixing import CutMix, MixUp, RandomMix, beta

LAYERS = [MixUp(0.4), CutMix(1.0), RandomMix(0.4, 1.0, 1.0)]


def batch_of(number=8, height=20, width=30, seed=0):
    """Constant images with distinct gray levels, so that each pixel identifies its source image; labels likewise."""
    level = np.random.default_rng(seed).permutation(number).astype("float32") * 10 + 5
    images = np.broadcast_to(level[:, None, None, None], (number, height, width, 1)).astype("float32")
    return {"images": images.copy(), "labels": np.eye(number, dtype="float32")}, level


@pytest.mark.parametrize("alpha", [0.017368, 0.2, 1.0, 1.5])
def test_lambda_follows_the_beta_distribution(alpha):
    drawn = beta([20_000], alpha, [1, 2]).numpy()
    assert np.isfinite(drawn).all() and ((drawn >= 0) & (drawn <= 1)).all()
    assert drawn.mean() == pytest.approx(0.5, abs=0.02)
    assert drawn.var() == pytest.approx(stats.beta(alpha, alpha).var(), rel=0.05)
    middle = ((drawn > 0.1) & (drawn < 0.9)).mean()
    assert middle == pytest.approx(np.diff(stats.beta(alpha, alpha).cdf([0.1, 0.9]))[0], abs=0.015)


def test_mixup_mixes_pixels_and_labels_with_the_same_weight():
    batch, level = batch_of()
    mixed = MixUp(0.5)(batch, seed=[3, 4])
    images, labels = mixed["images"].numpy(), mixed["labels"].numpy()
    assert labels.sum(1) == pytest.approx(1.0)
    # the gray level of an image is the mean of the levels weighted by its labels
    assert images[:, 0, 0, 0] == pytest.approx(labels @ level, rel=1e-5)
    assert (images == images[:, :1, :1]).all()
    shares = labels.max(1)
    assert len(np.unique(shares.round(4))) > 4, "a lambda for each image"


def test_mixup_matches_keras_for_the_same_random_numbers():
    batch, _ = batch_of()
    number = len(batch["images"])
    seeds = tf.random.split(tf.constant([3, 4]), 3)
    numbers = {
        "mix_weight": beta([number], 0.5, seeds[1]),
        "permutation_order": tf.random.experimental.stateless_shuffle(tf.range(number), seed=seeds[0]),
    }
    reference, ours = keras.layers.MixUp(0.5), MixUp(0.5)(batch, seed=[3, 4])
    assert ours["images"].numpy() == pytest.approx(
        reference.transform_images(batch["images"], numbers).numpy(), abs=1e-4
    )
    assert ours["labels"].numpy() == pytest.approx(
        reference.transform_labels(batch["labels"], numbers).numpy(), abs=1e-6
    )


@pytest.mark.parametrize("alpha", [0.2, 1.0, 1.5])
def test_cutmix_labels_equal_the_fraction_of_pixels_actually_pasted(alpha):
    clipped = 0
    for seed in range(12):
        batch, level = batch_of(seed=seed)
        mixed = CutMix(alpha)(batch, seed=[seed, 0])
        for image, label, own in zip(mixed["images"].numpy()[..., 0], mixed["labels"].numpy(), level, strict=True):
            share = {value: float((image == value).mean()) for value in np.unique(image)}
            assert label == pytest.approx([share.get(value, 0.0) for value in level], abs=1e-6)
            pasted = np.argwhere(image != own)
            if len(pasted):  # one box
                (top, left), (bottom, right) = pasted.min(0), pasted.max(0)
                assert (bottom - top + 1) * (right - left + 1) == len(pasted)
                clipped += top == 0 or left == 0
    assert clipped > 5, "boxes reach over the border"


def test_unclipped_cutmix_boxes_have_the_requested_area():
    batch, _ = batch_of(200, 64, 64)
    labels = CutMix(1.0)(batch, seed=[5, 5])["labels"].numpy()
    pasted = 1 - labels.max(1)
    # E[area] of clipped boxes with a side of sqrt(u), u uniform, centre uniform: E[(s - s^2 / 4)^2], s = sqrt(u)
    s = np.sqrt(np.linspace(0, 1, 10_001))
    expected = ((s - s**2 / 4) ** 2).mean()
    own = labels[np.arange(200), np.arange(200)]
    assert (1 - own).mean() == pytest.approx(expected, abs=0.06)
    assert pasted.max() <= 1


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_the_same_seed_gives_the_same_batch_in_eager_graph_and_dataset_mode(layer):
    batch, _ = batch_of()
    eager = layer(batch, seed=[1, 2])
    graph = tf.function(lambda: layer(batch, seed=tf.constant([1, 2])))()
    (mapped,) = tf.data.Dataset.from_tensors(batch).map(lambda b: layer(b, seed=[1, 2]))
    other = layer(batch, seed=[1, 3])
    for name in ("images", "labels"):
        assert np.array_equal(eager[name], graph[name]) and np.array_equal(eager[name], mapped[name])
        assert eager[name].shape == batch[name].shape
    assert not np.array_equal(eager["images"], other["images"])


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_layers_can_be_restored_from_their_config_and_are_inactive_in_inference(layer):
    again = type(layer).from_config(layer.get_config())
    batch, _ = batch_of()
    assert np.array_equal(again(batch, seed=[1, 2])["images"], layer(batch, seed=[1, 2])["images"])
    assert np.array_equal(layer(batch, training=False)["images"], batch["images"])
    assert keras.saving.get_registered_name(type(layer)) == f"kmura>{type(layer).__name__}"


def test_random_mix_mixes_the_requested_fraction_of_batches_with_both_methods():
    batch, level = batch_of(6, 12, 12)
    layer = tf.function(RandomMix(0.8, 1.0, 0.4).call)
    kinds = {"none": 0, "mixup": 0, "cutmix": 0}
    for seed in range(400):
        image = layer({name: tf.constant(value) for name, value in batch.items()}, seed=tf.constant([seed, 7]))[
            "images"
        ]
        image = image.numpy()
        if np.array_equal(image, batch["images"]):
            kinds["none"] += 1
        else:
            kinds["cutmix" if np.isin(image, level).all() else "mixup"] += 1
    assert kinds["none"] == pytest.approx(240, abs=30)
    assert kinds["mixup"] == pytest.approx(80, abs=27) and kinds["cutmix"] == pytest.approx(80, abs=27)


def test_alpha_zero_disables_mixing():
    batch, _ = batch_of()
    for layer in (MixUp(0), CutMix(0), RandomMix(0, 0, 1.0), RandomMix(1, 1, 0)):
        assert np.array_equal(layer(batch, seed=[1, 2])["images"], batch["images"])
    cut_only = RandomMix(0, 1.0, 1.0)(batch, seed=[1, 2])["images"].numpy()
    assert set(np.unique(cut_only)) <= set(np.unique(batch["images"]))


def test_values_out_of_range_are_rejected():
    with pytest.raises(ValueError, match="alpha is -1"):
        MixUp(-1)
    with pytest.raises(ValueError, match="probability is 1.2"):
        RandomMix(probability=1.2)


@pytest.mark.parametrize("layer", [MixUp(0.5, per="batch"), CutMix(1.0, per="batch")])
def test_one_lambda_and_one_box_can_serve_a_whole_batch(layer):
    """The published training step: a mixture of the batch with one permutation of it, by one lambda or one box."""
    batch, level = batch_of()
    mixed = layer(batch, seed=[3, 4])
    images, labels = mixed["images"].numpy(), mixed["labels"].numpy()
    seeds = tf.random.split(tf.constant([3, 4]), 3)
    partner = tf.random.experimental.stateless_shuffle(tf.range(8), seed=seeds[0]).numpy()
    moved = partner != np.arange(8)
    shares = labels[np.arange(8), np.arange(8)][moved]
    assert np.ptp(shares) < 1e-6 and 0 < shares[0] < 1, "one share of labels"
    if isinstance(layer, MixUp):
        expected = shares[0] * batch["images"] + (1 - shares[0]) * batch["images"][partner]
        np.testing.assert_allclose(images, expected, rtol=1e-5)
    else:
        pasted = (images != batch["images"])[moved][..., 0]
        assert (pasted == pasted[0]).all(), "one box"
        assert 1 - pasted[0].mean() == pytest.approx(shares[0], abs=1e-6)


def test_a_drawn_method_that_is_off_leaves_the_batch_unmixed_or_is_replaced():
    batch, _ = batch_of()

    def mixed(if_zero, seed):
        labels = RandomMix(0.0, 1.0, 1.0, if_zero=if_zero)(batch, seed=[seed, 1])["labels"].numpy()
        return (labels != batch["labels"]).any()

    changed = {if_zero: np.mean([mixed(if_zero, seed) for seed in range(60)]) for if_zero in ("unmixed", "other")}
    assert changed["other"] == 1 and 0.3 < changed["unmixed"] < 0.7


@pytest.mark.parametrize("mode", ["mixup", "cutmix"])
def test_the_method_can_be_chosen(mode):
    batch, level = batch_of()
    for seed in range(10):
        images = RandomMix(0.5, 0.5, 1.0, mode=mode)(batch, seed=[seed, 1])["images"].numpy()
        assert np.isin(images, level).all() == (mode == "cutmix")
    alone = RandomMix(0.0, 0.5, 1.0, mode="mixup")(batch, seed=[1, 1])
    np.testing.assert_array_equal(alone["images"], batch["images"])
