"""Fused batch normalisation matches Keras: outputs, gradients, statistics, config and weights."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from layer_contract import check_layer

from kmura.models.batch_norm import FusedBatchNormalization, set_batch_norm

PLAIN = keras.layers.BatchNormalization
RNG = np.random.default_rng(3)
IMAGES = RNG.normal(2.0, 3.0, (4, 5, 6, 7)).astype(np.float32)
VALUES = [RNG.normal(size=7).astype(np.float32) for _ in range(3)] + [RNG.uniform(0.5, 3, 7).astype(np.float32)]
UPSTREAM = RNG.normal(size=IMAGES.shape)  # the upstream gradient
EPSILON = 1e-5


def built(layer_class=FusedBatchNormalization, shape=IMAGES.shape, **config):
    """Returns a layer with gamma, beta, moving mean and moving variance from VALUES."""
    layer = layer_class(**{"epsilon": EPSILON, "momentum": 0.9, **config})
    layer.build(shape)
    for name, value in zip(("gamma", "beta", "moving_mean", "moving_variance"), VALUES, strict=True):
        if getattr(layer, name) is not None:
            getattr(layer, name).assign(np.resize(value, getattr(layer, name).shape))
    return layer


def reference(images, gamma, beta, mean=None, variance=None):
    """Ioffe & Szegedy (2015), Algorithm 1, in float64; inference if `mean` and `variance` are given."""
    if mean is None:
        mean = tf.reduce_mean(images, (0, 1, 2))
        variance = tf.reduce_mean(tf.square(images - mean), (0, 1, 2))
    return gamma * (images - mean) / tf.sqrt(variance + EPSILON) + beta


@pytest.mark.parametrize("config", [{}, {"center": False}, {"scale": False}])
def test_fused_batch_normalisation_satisfies_the_layer_contract(config):
    check_layer(FusedBatchNormalization, {"epsilon": 1e-4, "momentum": 0.8, **config}, IMAGES)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("config", [{}, {"center": False}, {"scale": False}, {"epsilon": 0.1}])
def test_outputs_match_keras(training, config):
    plain, fused = (
        built(layer_class, **config)(IMAGES, training=training) for layer_class in (PLAIN, FusedBatchNormalization)
    )
    np.testing.assert_allclose(fused, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_match_float64(training):
    layer = built()
    exact = [tf.constant(value, tf.float64) for value in (IMAGES, *VALUES)]
    with tf.GradientTape() as tape:
        tape.watch(exact)
        loss = tf.reduce_sum(reference(*exact[: 3 if training else 5]) * UPSTREAM)
    expected = tape.gradient(loss, exact[:3])
    images = tf.constant(IMAGES)
    with tf.GradientTape() as tape:
        tape.watch(images)
        loss = tf.reduce_sum(layer(images, training=training) * UPSTREAM.astype(np.float32))
    gradients = tape.gradient(loss, [images, layer.gamma.value, layer.beta.value])
    for gradient, exact_one in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, exact_one, rtol=1e-4, atol=1e-5 * np.abs(exact_one).max())


def test_moving_statistics_take_the_mean_and_the_unbiased_variance_of_the_batch():
    layer = built(momentum=0.75)
    layer(IMAGES, training=True)
    rows = IMAGES.reshape(-1, 7).astype(np.float64)
    np.testing.assert_allclose(layer.moving_mean.numpy(), 0.75 * VALUES[2] + 0.25 * rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, 0.75 * VALUES[3] + 0.25 * rows.var(0, ddof=1), rtol=1e-5)


def test_a_single_value_per_channel_gives_finite_statistics():
    layer = built(shape=(1, 1, 1, 7))
    layer(IMAGES[:1, :1, :1], training=True)
    assert all(np.isfinite(weight).all() for weight in layer.get_weights())


@pytest.mark.parametrize("call", [{"training": False}, {}])
def test_inference_does_not_change_the_statistics(call):
    layer = built()
    layer(IMAGES, **call)
    np.testing.assert_array_equal(layer.get_weights(), VALUES)


def test_a_frozen_layer_runs_in_inference_mode_during_training():
    layer = built()
    layer.trainable = False
    outputs = layer(IMAGES, training=True)
    np.testing.assert_array_equal(layer.moving_mean.numpy(), VALUES[2])
    np.testing.assert_array_equal(layer.moving_variance.numpy(), VALUES[3])
    np.testing.assert_allclose(outputs, reference(IMAGES, *VALUES), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("training", [True, False])
def test_mixed_precision_computes_statistics_in_float32(policy, training):
    layer = built(dtype=policy)
    outputs = layer(IMAGES, training=training)
    assert outputs.dtype == policy.removeprefix("mixed_")
    step = {"mixed_float16": 2.0**-10, "mixed_bfloat16": 2.0**-7}[policy]
    expected = built()(IMAGES, training=training).numpy()
    np.testing.assert_allclose(tf.cast(outputs, tf.float32), expected, rtol=2 * step, atol=6 * step)
    rounded = tf.cast(tf.cast(IMAGES, layer.compute_dtype), tf.float32).numpy().reshape(-1, 7)
    if training:
        np.testing.assert_allclose(layer.moving_mean, 0.9 * VALUES[2] + 0.1 * rounded.mean(0), rtol=1e-5, atol=1e-6)
        assert layer.moving_mean.dtype == layer.gamma.dtype == "float32"


def operations(layer, inputs, **call):
    function = tf.function(lambda images: layer(images, training=True, **call))
    return {operation.type for operation in function.get_concrete_function(inputs).graph.get_operations()}


def test_the_kernel_is_used_for_images():
    assert "FusedBatchNormV3" in operations(built(), IMAGES)


MASK = np.arange(24).reshape(2, 3, 4) % 3 > 0
ELSEWHERE = {
    "channels first": ({"axis": 1}, (2, 3, 4, 5), {}),
    "rank 2": ({}, (6, 5), {}),
    "rank 5": ({}, (2, 2, 3, 2, 5), {}),
    "mask": ({}, (2, 3, 4, 5), {"mask": MASK}),
    "renorm": ({"renorm": True}, (2, 3, 4, 5), {}),
    "synchronized": ({"synchronized": True}, (2, 3, 4, 5), {}),
    "float64": ({"dtype": "float64"}, (2, 3, 4, 5), {}),
}


@pytest.mark.parametrize("config, shape, call", ELSEWHERE.values(), ids=ELSEWHERE)
def test_the_parent_implementation_is_used_where_the_kernel_is_unsupported(config, shape, call):
    inputs = RNG.normal(1.0, 2.0, shape).astype(config.get("dtype", "float32"))
    plain, fused = built(PLAIN, shape, **config), built(FusedBatchNormalization, shape, **config)
    for training in (True, False):
        np.testing.assert_allclose(fused(inputs, training=training, **call), plain(inputs, training=training, **call))
    for weight, other in zip(fused.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(weight, other)
    assert "FusedBatchNormV3" not in operations(fused, inputs, **call)


def small_backbone():
    from keras_hub.models import DenseNetBackbone

    backbone = DenseNetBackbone(stackwise_num_repeats=[1, 1], growth_rate=4, image_shape=(None, None, 3))
    backbone.set_weights([RNG.uniform(0.1, 1.0, weight.shape) for weight in backbone.weights])
    return backbone


def norms(model):
    return [layer for layer in model.layers if isinstance(layer, PLAIN)]


def test_a_backbone_stays_the_same_class_with_the_same_names_and_weights():
    backbone = small_backbone()
    images = RNG.normal(size=(2, 32, 32, 3)).astype(np.float32)
    kind, names, outputs = type(backbone), [layer.name for layer in backbone.layers], np.asarray(backbone(images))
    assert {(type(layer), layer.momentum) for layer in norms(backbone)} == {(PLAIN, 0.99)}
    set_batch_norm(backbone, momentum=0.8, fused=True)
    assert type(backbone) is kind and [layer.name for layer in backbone.layers] == names
    assert {(type(layer), layer.momentum) for layer in norms(backbone)} == {(FusedBatchNormalization, 0.8)}
    np.testing.assert_allclose(backbone(images), outputs, rtol=1e-4, atol=1e-4)


def test_nested_models_are_converted():
    inner = keras.Sequential([keras.Input((4, 4, 3)), PLAIN(name="inner_bn")], name="inner")
    image = keras.Input((4, 4, 3))
    model = keras.Model(image, PLAIN(name="outer_bn")(inner(image)))
    set_batch_norm(model, momentum=0.9, fused=True)
    layers = [inner.get_layer("inner_bn"), model.get_layer("outer_bn")]
    assert [type(layer) for layer in layers] == [FusedBatchNormalization] * 2


def test_the_momentum_can_change_without_changing_the_kernel():
    backbone = small_backbone()
    set_batch_norm(backbone, momentum=0.5, fused=False)
    assert {(type(layer), layer.momentum) for layer in norms(backbone)} == {(PLAIN, 0.5)}


@pytest.mark.parametrize("source, target", [(PLAIN, FusedBatchNormalization), (FusedBatchNormalization, PLAIN)])
def test_weight_files_of_either_class_load_into_the_other(source, target, tmp_path):
    def model(layer_class):
        return keras.Sequential([keras.Input((5, 6, 7)), keras.layers.Conv2D(7, 1), layer_class(), layer_class()])

    saved, loaded = model(source), model(target)
    saved.set_weights([RNG.uniform(0.1, 1.0, weight.shape) for weight in saved.weights])
    saved.save_weights(tmp_path / "model.weights.h5")
    loaded.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(loaded(IMAGES), saved(IMAGES), rtol=1e-4, atol=1e-5)


def test_a_saved_model_is_restored_with_fused_layers(tmp_path):
    model = keras.Sequential([keras.Input((5, 6, 7)), FusedBatchNormalization(momentum=0.7)])
    model.save(tmp_path / "model.keras")
    (layer,) = norms(keras.saving.load_model(tmp_path / "model.keras"))
    assert type(layer) is FusedBatchNormalization
    assert layer.momentum == 0.7


REPLICAS = """
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from kmura.models.batch_norm import FusedBatchNormalization

images = np.random.default_rng(0).normal(1, 2, (4, 3, 3, 2)).astype("float32")
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
moved = []
for layer_class in (keras.layers.BatchNormalization, FusedBatchNormalization):
    with strategy.scope():
        layer = layer_class(momentum=0.5)
        model = keras.Sequential([keras.Input((3, 3, 2)), layer, keras.layers.GlobalAveragePooling2D()])
        model.compile("sgd", "mse")
    model.fit(images, np.zeros((4, 2)), batch_size=4, shuffle=False, verbose=0)
    moved.append([weight.numpy() for weight in (layer.moving_mean, layer.moving_variance)])
(plain_mean, plain_variance), (mean, variance) = moved
np.testing.assert_allclose(mean, plain_mean, rtol=1e-5)
n = images[:2].size / 2  # values of a channel on one replica
np.testing.assert_allclose(variance - 0.5, (plain_variance - 0.5) * n / (n - 1), rtol=1e-4)
"""


@pytest.mark.slow
def test_the_fused_layer_can_be_trained_on_two_replicas_of_a_mirrored_strategy():
    done = subprocess.run([sys.executable, "-c", REPLICAS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
