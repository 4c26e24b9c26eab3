"""Heads: published parameter counts, serialization, attention maps; the recipes with 14 classes."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import kmura
from kmura.classification.cam_erasing import CamErasingModel
from kmura.classification.losses import make_loss
from kmura.config import load_config
from kmura.errors import InputError
from kmura.models.freezing import set_trainable
from kmura.models.heads import HEADS, HeadOptions
from kmura.tasks import Multiclass
from kmura.training.optimizers import AdamL2

EXPERIMENTS = [f"multiclass-exp{number}" for number in range(1, 7)]


def model_arguments(recipe, **others):
    import dataclasses

    return dataclasses.asdict(load_config(recipe).model) | {"weights": "none", **others}


@pytest.fixture(scope="module")
def densenet():
    """What `set_trainable` uses of a classifier with DenseNet-121."""
    backbone = kmura.build_model(backbone="densenet121", weights="none", image_size=32).backbone
    return types.SimpleNamespace(backbone=backbone, get_config=lambda: {"backbone": "densenet121"})


@pytest.mark.parametrize(
    ("number", "published", "published_trainable"),
    [
        (1, 8_101_454, None),
        (2, None, 1_100_814),
        (3, 7_569_486, None),
        (4, None, 7_485_838),
        (5, 8_748_881, 8_665_233),
        (6, 10_722_705, 10_635_985),
    ],
)
def test_the_experiments_have_the_published_numbers_of_parameters(densenet, number, published, published_trainable):
    config = load_config(f"multiclass-exp{number}")
    features = keras.Input((7, 7, 1024))
    options = HeadOptions(
        config.model.dropout, config.model.map_dropout, config.model.head_widths, config.model.head_dropout,
        config.model.head_l1, config.model.head_l2, config.model.head_batch_norm, config.model.attention_maps,
    )  # fmt: skip
    head = keras.Model(features, HEADS[config.model.head](features, 14, options))
    set_trainable(densenet, config.train.unfreeze)
    total = densenet.backbone.count_params() + head.count_params()
    trainable = sum(
        variable.value.shape.num_elements()
        for part in (densenet.backbone, head)
        for variable in part.trainable_variables
    )
    assert published in (None, total)
    assert published_trainable in (None, trainable)


def test_the_projection_shortcut_is_added_before_the_activation():
    options = HeadOptions(widths=(5,), attention_maps=2)
    features = keras.Input((3, 3, 4))
    head = keras.Model(features, HEADS["se_attention_projection"](features, 2, options))
    rng = np.random.default_rng(0)
    for variable in head.variables:
        variable.assign(
            rng.uniform(0.2, 1.2, variable.shape)
            * rng.choice([-1, 1] if "kernel" in variable.path else [1], variable.shape)
        )
    value = rng.normal(size=(3, 3, 3, 4)).astype("float32")

    def dense(name, inputs):
        layer = head.get_layer(name)
        return inputs @ layer.kernel.numpy() + (layer.bias.numpy() if layer.use_bias else 0)

    def normed(name, inputs):
        gamma, beta, mean, variance = (np.asarray(weight) for weight in head.get_layer(name).get_weights())
        return (inputs - mean) / np.sqrt(variance + head.get_layer(name).epsilon) * gamma + beta

    def sigmoid(inputs):
        return 1 / (1 + np.exp(-inputs))

    excited = value * sigmoid(dense("excite_2", np.maximum(dense("excite_1", value.mean((1, 2))), 0)))[:, None, None]
    maps = sigmoid(
        np.einsum("bhwc,cn->bhwn", excited, head.get_layer("attention").kernel.numpy()[0, 0])
        + head.get_layer("attention").bias.numpy()
    )
    pooled = np.concatenate([(excited * maps[..., [number]]).mean((1, 2)) for number in range(2)], axis=1)
    first = np.maximum(normed("hidden_1_norm", dense("hidden_1", pooled)), 0)
    second = normed("hidden_1b_norm", dense("hidden_1b", first))
    residual = np.maximum(normed("shortcut_norm", dense("shortcut", pooled)) + second, 0)
    assert head.get_layer("shortcut").use_bias is False
    np.testing.assert_allclose(head.predict(value, verbose=0), dense("logits", residual), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=[] if name[-1] == "6" else pytest.mark.slow) for name in EXPERIMENTS]
)
def test_experiments_can_be_built_trained_saved_and_loaded(recipe, tmp_path):
    config = load_config(recipe)
    model = kmura.build_model(
        **model_arguments(recipe, backbone="densenet_mini"), image_size=32, num_classes=14, seed=0
    )
    trainer = CamErasingModel(model, can_erase=False)
    trainer.compile(AdamL2(1e-3), loss=make_loss(Multiclass(("a",) * 14), config.train, [1.0] * 14), jit_compile=False)
    images = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 1)).astype("float32")
    labels = np.eye(14, dtype="float32")[:4]
    batch = {"image": images, "label": labels, "mixed_image": images, "mixed_label": labels}
    before = [variable.numpy() for variable in model.trainable_variables]
    loss = trainer.fit(tf.data.Dataset.from_tensors(batch), verbose=0, shuffle=False).history["loss"][0]
    assert np.isfinite(loss)
    assert all(not np.array_equal(one, other) for one, other in zip(before, model.trainable_variables, strict=True))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_array_equal(again.predict(images, verbose=0), model.predict(images, verbose=0))
    assert again.get_config() == model.get_config()
    if config.model.head_l2:
        penalty = float(keras.ops.sum(model.losses))
        kernels = [
            layer.kernel
            for layer in model.layers
            if layer.name.startswith(("hidden", "shortcut")) and hasattr(layer, "kernel")
        ]
        expected = sum(
            config.model.head_l2 * np.square(kernel).sum() + config.model.head_l1 * np.abs(kernel).sum()
            for kernel in map(np.asarray, kernels)
        )
        assert penalty == pytest.approx(expected, rel=1e-5)


def test_attention_maps_are_multiplied_with_the_features():
    model = kmura.build_model(
        backbone="densenet_mini",
        weights="none",
        image_size=64,
        num_classes=3,
        head="attention",
        attention_maps=2,
        seed=1,
    )
    parts = keras.Model(model.input, [model.feature_maps["P5"], model.attention_maps, model.output])
    images = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 1)).astype("float32")
    features, maps, logits = (np.asarray(part) for part in parts(images, training=False))
    assert maps.shape == (*features.shape[:3], 2) and 0 < maps.min() <= maps.max() < 1
    pooled = np.concatenate([(features * maps[..., [number]]).mean((1, 2)) for number in range(2)], axis=1)
    layer = model.get_layer("logits")
    np.testing.assert_allclose(logits, pooled @ layer.kernel.numpy() + layer.bias.numpy(), rtol=1e-4, atol=1e-5)
    assert kmura.build_model(backbone="densenet_mini", weights="none", image_size=32).attention_maps is None


def test_heads_in_half_precision_return_float32_logits():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        arguments = model_arguments("multiclass-exp6", backbone="densenet_mini")
        model = kmura.build_model(**arguments, image_size=32, num_classes=14)
    finally:
        keras.config.set_dtype_policy(before)
    logits = model(np.full((2, 32, 32, 1), 99.0, "float32"))
    assert logits.dtype == tf.float32 and np.isfinite(logits).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head": "dense"}, "the head dense needs hidden layers; set model.head_widths"),
        ({"head": "linear", "head_widths": (8,)}, "the head linear has no hidden layers"),
        ({"head": "dense", "head_widths": (8, 4), "head_dropout": (0.5,)}, "1 numbers for 2 hidden layers"),
        ({"head_l2": 0.1}, "need hidden layers; set model.head_widths"),
        ({"head": "deep"}, "deep"),
        ({"head": "linear", "attention_maps": 5}, "the head linear has no attention maps; remove model.attention_maps"),
    ],
)
def test_invalid_heads_are_rejected(arguments, message):
    with pytest.raises(InputError, match=message):
        kmura.build_model(backbone="densenet_mini", weights="none", image_size=32, **arguments)
