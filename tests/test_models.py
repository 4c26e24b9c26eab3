"""The classifier: inputs, outputs, feature maps, and saving."""

import random
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from layer_contract import check_layer

from kmura.errors import InputError
from kmura.models.backbones import BACKBONES
from kmura.models.base import NormalizedChannels
from kmura.models.batch_norm import FusedBatchNormalization
from kmura.models.build import build_model
from kmura.models.classifier import RadiographClassifier

RNG = np.random.default_rng(5)
IMAGES = RNG.uniform(0, 255, (3, 32, 48, 1)).astype(np.float32)


def small(**arguments) -> RadiographClassifier:
    return build_model(
        **{"backbone": "densenet_mini", "weights": "none", "image_size": (32, 48), "seed": 1, **arguments}
    )


@pytest.fixture(scope="module")
def model() -> RadiographClassifier:
    """A small classifier; tests must not modify it."""
    return small()


def norms(model) -> list:
    return [layer for layer in model.backbone.layers if isinstance(layer, keras.layers.BatchNormalization)]


@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_satisfies_the_layer_contract(channels):
    images = RNG.uniform(0, 255, (2, 4, 5, channels)).astype(np.float32)
    check_layer(NormalizedChannels, {"mean": [1.0, 2.0, 3.0], "std": [10.0, 20.0, 40.0]}, images)


def test_normalisation_repeats_gray_channels_and_scales_each_channel():
    gray = np.array([[[[11.0], [21.0]]]], np.float32)
    outputs = NormalizedChannels([1, 11, 21], [10, 20, 40])(gray)
    np.testing.assert_allclose(outputs, [[[[1.0, 0.0, -0.25], [2.0, 0.5, 0.0]]]], atol=1e-6)
    colour = np.array([[[[11.0, 31.0, 61.0]]]], np.float32)
    np.testing.assert_allclose(NormalizedChannels([1, 11, 21], [10, 20, 40])(colour), [[[[1.0, 1.0, 1.0]]]], atol=1e-6)


def test_pixels_are_normalised_before_they_are_rounded_to_bfloat16():
    outputs = NormalizedChannels([200.0], [1.0], dtype="mixed_bfloat16")(np.full((1, 1, 1, 1), 200.25, np.float32))
    assert float(outputs[0, 0, 0, 0]) == 0.25


@pytest.mark.parametrize("channels, num_classes", [(1, 1), (3, 1), (1, 5)])
def test_logits_have_one_column_per_class(channels, num_classes):
    classifier = small(channels=channels, num_classes=num_classes)
    logits = classifier(np.repeat(IMAGES, channels, axis=-1))
    assert logits.shape == (3, num_classes)
    assert logits.dtype == tf.float32


def test_a_gray_image_has_the_logit_of_an_rgb_image_with_equal_channels(model):
    colour = small(channels=3)
    colour.set_weights(model.get_weights())
    np.testing.assert_allclose(colour(np.repeat(IMAGES, 3, axis=-1)), model(IMAGES), atol=1e-5)


def test_uint8_images_are_accepted(model):
    pixels = IMAGES.astype(np.uint8)
    np.testing.assert_array_equal(model.predict(pixels, verbose=0), model.predict(pixels.astype(np.float32), verbose=0))


def test_feature_maps_and_logits_are_computed_in_one_forward_pass(model):
    maps = keras.Model(model.input, {**model.feature_maps, "logits": model.output})(IMAGES)
    assert list(model.feature_maps) == ["P3", "P4", "P5"]
    assert [maps[name].shape[1:3] for name in model.feature_maps] == [(4, 6), (2, 3), (1, 1)]
    np.testing.assert_allclose(maps["logits"], model(IMAGES), atol=1e-5)
    head = model.get_layer("logits")
    pooled = tf.reduce_mean(maps["P5"], (1, 2))
    np.testing.assert_allclose(pooled @ head.kernel.numpy() + head.bias.numpy(), maps["logits"], atol=1e-5)


def test_the_full_gradient_of_a_logit_passes_through_every_feature_map(model):
    """No connection bypasses a tap: the layers after it depend only on its feature map."""
    backbone, taps = model.backbone, BACKBONES["densenet_mini"].taps
    maps = keras.Model(backbone.input, [backbone.get_layer(layer).output for layer in taps.values()])
    for layer, values in zip(taps.values(), maps(np.repeat(IMAGES, 3, axis=-1)), strict=True):
        assert float(tf.reduce_min(values)) >= 0, f"{layer} is not the output of a ReLU"
        if layer != taps["P5"]:
            above = keras.Model(backbone.get_layer(layer).output, backbone.output)
            assert above(values).shape == (3, 1, 1, 68)


@pytest.mark.parametrize("name", ["densenet_mini", "resnet18_small"])
def test_each_tap_has_half_the_resolution_of_the_previous_one(name):
    maps = RadiographClassifier(name, image_size=64).feature_maps
    sides = [maps[tap].shape[1] for tap in ("P3", "P4", "P5")]
    assert sides == ([8, 4, 2] if name == "densenet_mini" else [32, 16, 8])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, backbone_parameters, sides",
    [
        ("densenet121", 7_037_504, [28, 14, 7]),
        ("densenet169", 12_642_880, [28, 14, 7]),
        ("resnet50", 23_561_152, [28, 14, 7]),
    ],
)
def test_large_backbones_match_their_presets(name, backbone_parameters, sides):
    model = RadiographClassifier(name)
    assert model.backbone.count_params() == backbone_parameters  # as keras-hub states for the ImageNet preset
    assert type(model.backbone).presets[BACKBONES[name].imagenet]["metadata"]["params"] == backbone_parameters
    assert [model.feature_maps[tap].shape[1] for tap in ("P3", "P4", "P5")] == sides


def test_resnet18_small_matches_the_network_of_medmnist():
    backbone = RadiographClassifier("resnet18_small", image_size=28).backbone
    trainable = sum(int(np.prod(weight.shape)) for weight in backbone.trainable_weights)
    assert trainable == 11_168_832  # ResNet-18 of torch with a 3x3 stem, without its last layer
    assert backbone.count_params() - trainable == 2 * 4_800  # moving statistics of 4,800 channels
    stem = backbone.get_layer("stem_conv")
    assert (stem.kernel.shape, stem.strides) == ((3, 3, 3, 64), (1, 1))
    kernel = backbone.get_layer("stack2_block0_1_conv").kernel.numpy()
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 256)), rel=0.02)  # He et al. 2015, fan-out


def test_resnet18_small_pads_like_torch():
    """At stride 2 the windows start at pixels -1, 1, 3, ...; with the default padding of TensorFlow, at 0, 2, 4, ..."""
    backbone = RadiographClassifier("resnet18_small", image_size=28).backbone
    strided = backbone.get_layer("stack1_block0_1_conv").output
    block = keras.Model(backbone.get_layer("stack0_block1_out").output, strided)
    for pixel, windows in [(0, [0]), (1, [0, 1]), (2, [1]), (27, [13])]:
        image = np.zeros((1, 28, 28, 64), np.float32)
        image[0, pixel, pixel] = 1.0
        response = np.abs(block(image)[0]).sum(-1)
        assert response.shape == (14, 14)
        assert list(np.flatnonzero(response.diagonal())) == windows


def test_densenet_mini_has_few_parameters(model):
    assert model.backbone.count_params() == 127_024


def test_the_same_seed_gives_the_same_weights_regardless_of_earlier_random_numbers(model):
    random.seed(99)
    again = small()
    for weight, other in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, other)
    different = small(seed=2).get_weights()
    assert any(not np.array_equal(weight, other) for weight, other in zip(different, model.get_weights(), strict=True))


def test_a_seed_does_not_change_the_global_random_state():
    random.seed(7)
    expected = random.random()
    random.seed(7)
    small(seed=3)
    assert random.random() == expected


def test_momentum_and_kernel_of_batch_normalisation_are_arguments(model):
    assert {(type(layer), layer.momentum) for layer in norms(model)} == {(FusedBatchNormalization, 0.9)}
    plain = small(batch_norm_momentum=0.6, fused_batch_norm=False)
    assert {(type(layer), layer.momentum) for layer in norms(plain)} == {(keras.layers.BatchNormalization, 0.6)}
    np.testing.assert_allclose(plain(IMAGES), model(IMAGES), atol=1e-5)


def test_only_the_head_is_trained_with_a_frozen_backbone():
    classifier = small()
    classifier.backbone.trainable = False
    assert [weight.path.split("/")[-2:] for weight in classifier.trainable_weights] == [
        ["logits", "kernel"],
        ["logits", "bias"],
    ]


@pytest.mark.parametrize("bias, expected", [(-1.5, [-1.5, -1.5]), ([0.5, 2.0], [0.5, 2.0])])
def test_the_logits_start_at_the_given_bias(bias, expected):
    classifier = small(num_classes=2, initial_bias=bias)
    classifier.get_layer("logits").kernel.assign(np.zeros((68, 2)))
    np.testing.assert_allclose(classifier(IMAGES), [expected] * 3)


def test_dropout_is_active_in_training_only():
    classifier = small(dropout=0.5)
    assert classifier.get_layer("dropout").rate == 0.5
    np.testing.assert_array_equal(classifier(IMAGES), classifier(IMAGES))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_logits_are_float32_in_mixed_precision(policy, model):
    keras.config.set_dtype_policy(policy)
    try:
        mixed = small()
    finally:
        keras.config.set_dtype_policy("float32")
    mixed.set_weights(model.get_weights())
    logits = mixed(IMAGES)
    assert logits.dtype == tf.float32
    assert {layer.compute_dtype for layer in mixed.backbone.layers} == {policy.removeprefix("mixed_")}
    np.testing.assert_allclose(logits, model(IMAGES), atol=0.02)


def same_after_loading(model, path):
    model.save(path)
    loaded = keras.saving.load_model(path)
    assert type(loaded) is RadiographClassifier
    assert loaded.get_config() == model.get_config()
    np.testing.assert_array_equal(loaded(IMAGES), model(IMAGES))
    return loaded


def test_a_saved_classifier_is_restored_completely(tmp_path):
    model = small(num_classes=3, dropout=0.2, batch_norm_momentum=0.7, initial_bias=[1, 2, 3])
    model(IMAGES, training=True)  # updates the statistics
    loaded = same_after_loading(model, tmp_path / "model.keras")
    assert {(type(layer), layer.momentum) for layer in norms(loaded)} == {(FusedBatchNormalization, 0.7)}


def test_a_saved_classifier_keeps_its_precision_policy(tmp_path):
    model = RadiographClassifier("densenet_mini", (32, 48), dtype="mixed_bfloat16")
    assert keras.config.dtype_policy().name == "float32", "building must not change the global policy"
    loaded = same_after_loading(model, tmp_path / "model.keras")
    assert loaded.backbone.layers[1].compute_dtype == "bfloat16"


def test_weights_can_be_exchanged_between_classifiers_with_and_without_the_kernel(model, tmp_path):
    model.save_weights(tmp_path / "a.weights.h5")
    plain = small(fused_batch_norm=False, seed=2)
    plain.load_weights(tmp_path / "a.weights.h5")
    np.testing.assert_allclose(plain(IMAGES), model(IMAGES), atol=1e-5)


LOAD = """
import importlib.util, sys
import kmura
assert "keras" not in sys.modules
importlib.util.find_spec("keras")  # looking for keras is not yet importing it
import keras
model = keras.saving.load_model(sys.argv[1])
assert type(model).__name__ == "RadiographClassifier", type(model)
"""


@pytest.mark.slow
def test_a_new_process_can_load_a_classifier_after_importing_kmura(model, tmp_path):
    model.save(tmp_path / "model.keras")
    command = [sys.executable, "-c", LOAD, str(tmp_path / "model.keras")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_a_classifier_learns_and_performs_equally_in_inference():
    """Fine against coarse stripes, from scratch; with a momentum of 0.99 (Keras), inference is still at chance."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    rows = np.arange(32)
    labels = rng.integers(0, 2, 64)
    periods = np.where(labels == 1, 4.0, 9.0) * rng.uniform(0.9, 1.1, 64)
    stripes = np.sin(2 * np.pi * rows[None] / periods[:, None] + rng.uniform(0, 6, (64, 1)))
    images = 127 + 80 * stripes[:, :, None, None] * np.ones((1, 1, 32, 1)) + rng.normal(0, 20, (64, 32, 32, 1))
    model = build_model(backbone="densenet_mini", weights="none", image_size=32, seed=0)
    model.compile(keras.optimizers.Adam(3e-3), keras.losses.BinaryCrossentropy(from_logits=True))
    before = model.evaluate(images, labels[:, None], verbose=0)
    model.fit(images[:48], labels[:48, None], batch_size=16, epochs=12, verbose=0)
    logits = model.predict(images[48:], verbose=0)[:, 0]
    assert np.mean((logits > 0) == labels[48:]) > 0.9
    assert model.evaluate(images[:48], labels[:48, None], verbose=0) < before / 3


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            {"backbone": "densenet112"},
            "no backbone 'densenet112'; choose one of densenet121, densenet169, densenet_mini",
        ),
        ({"head": "liner"}, "no head 'liner'; choose one of linear"),
        ({"channels": 2}, "channels is 2; choose 1"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"image_size": 28}, "28 x 28 is too small for densenet_mini; give 32 or more"),
        ({"image_size": (64, 16)}, "64 x 16 is too small"),
        ({"initial_bias": [1, 2]}, "initial_bias has 2 numbers; give one or 1"),
    ],
)
def test_a_model_that_cannot_be_built_raises_a_one_line_error(arguments, message):
    with pytest.raises(InputError) as raised:
        small(**arguments)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
