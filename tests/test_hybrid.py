"""The hybrid model: Swin feature maps, fusions, frozen parts."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from layer_contract import check_layer

from kmura import cam
from kmura.config import CamConfig, load_config
from kmura.errors import InputError
from kmura.models.build import build_model
from kmura.models.classifier import RadiographClassifier
from kmura.models.freezing import set_trainable
from kmura.models.fusion import FUSIONS
from kmura.models.hybrid import HybridClassifier
from kmura.models.swin import SwinMaps

AREA = "XR_WRIST"
SETTINGS = {
    "model.architecture": "hybrid",
    "model.backbone": "densenet_mini",
    "model.weights": "none",
    "model.swin": "swin_mini",
    "model.swin_weights": "none",
    "data.image_size": 64,
    "train.epochs": 2,
    "train.frozen_until_epoch": 1,
    "train.unfreeze": "last_block",
    "train.slow_from_epoch": 2,
    "train.learning_rate": 1e-3,
    "train.deterministic": True,
}


def mini(fusion="concat", multi_scale=False, **options):
    return HybridClassifier("densenet_mini", "swin_mini", fusion, multi_scale, width=16, image_size=64, **options)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(0, 255, (3, 64, 64, 1)).astype(np.float32)


@pytest.mark.parametrize(
    ("swin", "side", "safe"), [("swin_tiny", 256, "224, 448 or 672"), ("swin_base_384", 224, "384, 768 or 1152")]
)
def test_sizes_that_keras_hub_gets_wrong_are_refused_with_the_safe_ones(swin, side, safe):
    with pytest.raises(InputError, match=f"image_size {side} is not supported by {swin}.* give {safe}"):
        HybridClassifier("densenet_mini", swin, image_size=side)


def test_invalid_names_and_shapes_are_rejected():
    with pytest.raises(InputError, match="no Swin transformer 'swin_tinny'; choose one of swin_tiny"):
        HybridClassifier("densenet_mini", "swin_tinny")
    with pytest.raises(InputError, match="no fusion 'sum'"):
        mini("sum")
    with pytest.raises(InputError, match="square"):
        HybridClassifier("densenet_mini", "swin_mini", image_size=(64, 128))


def test_the_last_feature_map_matches_keras_hub():
    layer = SwinMaps("swin_mini", 64, third_stage=True)
    pixels = np.random.default_rng(1).normal(size=(2, 64, 64, 3)).astype(np.float32)
    maps = layer(pixels)
    assert maps["S3"].shape == (2, 4, 4, 64) and maps["S4"].shape == (2, 2, 2, 128)
    whole = np.asarray(layer.backbone(pixels, training=False))
    assert np.asarray(maps["S4"]).reshape(2, 4, 128) == pytest.approx(whole, abs=1e-6)
    norms = [part.epsilon for part in layer._flatten_layers() if isinstance(part, keras.layers.LayerNormalization)]
    assert norms and set(norms) == {1e-5}  # the default of Keras, 1e-3, changes the outputs of ported weights


@pytest.mark.slow
def test_swin_maps_satisfy_the_layer_contract():
    pixels = np.random.default_rng(1).normal(size=(2, 64, 64, 3)).astype(np.float32)
    check_layer(SwinMaps, {"swin": "swin_mini", "side": 64}, pixels, random=True, in_dataset=False)  # DropPath


@pytest.mark.parametrize(
    ("fusion", "multi_scale"),
    [
        ("concat", False),
        *(
            pytest.param(fusion, scales, marks=pytest.mark.slow)
            for fusion in FUSIONS
            for scales in (False, True)
            if (fusion, scales) != ("concat", False)
        ),
    ],
)
def test_every_fusion_trains_all_variables_and_is_saved_completely(fusion, multi_scale, images, tmp_path):
    model = mini(fusion, multi_scale, dropout=0.1)
    before = [variable.numpy() for variable in model.trainable_variables]
    model.compile(keras.optimizers.SGD(1.0), keras.losses.BinaryCrossentropy(from_logits=True), jit_compile=False)
    for _ in range(3):  # DropPath may skip a block in a step
        model.train_on_batch(images, np.array([[0.0], [1.0], [1.0]]))
    after = [variable.numpy() for variable in model.trainable_variables]
    still = [v.path for v, a, b in zip(model.trainable_variables, before, after, strict=True) if (a == b).all()]
    assert not still
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert np.asarray(again(images)) == pytest.approx(np.asarray(model(images)), abs=1e-6)
    assert again.get_config() == model.get_config()


def test_the_gated_fusion_matches_the_published_formula(images):
    model = mini("gated")
    level = keras.Model(model.input, [model.feature_maps["P5"], model.feature_maps["S4"], model.output])
    p5, s4, logits = (np.asarray(each, np.float64) for each in level(images))
    x, y = p5.mean((1, 2)), s4.mean((1, 2))

    def dense(name, values):
        kernel, bias = (np.asarray(each, np.float64) for each in model.get_layer(name).get_weights())
        return values @ kernel + bias

    z = 1 / (1 + np.exp(-dense("gate_0", np.concatenate([x, y], 1))))
    joined = z * np.tanh(dense("gated_0_cnn", x)) + (1 - z) * np.tanh(dense("gated_0_swin", y))
    assert logits == pytest.approx(dense("logits", joined), abs=1e-4)


def test_maps_of_both_branches_equal_cam_for_the_plain_fusion(images):
    model = mini("concat")
    kernel = model.get_layer("logits").get_weights()[0][:, 0]
    channels = model.feature_maps["P5"].shape[-1]
    for tap, weights in (("P5", kernel[:channels]), ("S4", kernel[channels:])):
        maps, logits = cam.CamEngine(model, method="grad_cam", tap=tap, fallback=None)(images, size=(2, 2))
        activations, expected = keras.Model(model.input, [model.feature_maps[tap], model.output])(images)
        assert np.asarray(logits) == pytest.approx(np.asarray(expected), abs=1e-5)
        sign = np.asarray(cam.predicted_sign(expected))[:, :, None]
        classic = (
            np.maximum(0, (np.asarray(activations) * weights).sum(-1) * sign) / 4
        )  # weights of Grad-CAM: w / (h w)
        assert np.asarray(maps) == pytest.approx(classic, abs=1e-5)


@pytest.mark.slow
def test_the_gradient_of_a_finer_map_includes_both_paths_to_a_multi_scale_fusion(images):
    model = mini("concat", multi_scale=True)
    maps = {
        name: tf.convert_to_tensor(value)
        for name, value in keras.Model(model.input, model.feature_maps)(images).items()
    }
    head = keras.Model([model.feature_maps[name] for name in model.head_sees], model.output)
    inner = model.get_layer("feature_maps")
    last_block = keras.Model(inner.output["P4"], inner.output["P5"])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(maps)
        alone = head([maps[name] for name in model.head_sees])  # P5 does not depend on P4 here
        p5 = last_block(maps["P4"])
        logits = cam._tail(model, "P4")(maps)
    direct = tape.gradient(alone, maps["P4"])
    over_p5 = tape.gradient(p5, maps["P4"], output_gradients=tape.gradient(alone, maps["P5"]))
    assert float(tf.reduce_max(abs(over_p5))) > 0.01 * float(tf.reduce_max(abs(direct)))
    assert np.asarray(tape.gradient(logits, maps["P4"])) == pytest.approx(np.asarray(direct + over_p5), abs=1e-6)


@pytest.mark.parametrize(
    ("part", "first"), [("last_block", "stack4_block1_1_bn"), ("last_2_conv", "stack4_block2_1_conv"), ("none", None)]
)
def test_only_the_unfrozen_part_is_trained(part, first):
    model = RadiographClassifier("densenet_mini", 32)
    set_trainable(model, part)
    names = [layer.name for layer in model.backbone.layers if layer.weights]
    learning = [layer.name for layer in model.backbone.layers if layer.trainable_weights]
    assert learning == (names[names.index(first) :] if first else [])
    assert model.get_layer("logits").trainable_weights
    with pytest.raises(InputError, match="last_99_conv, but the backbone has"):
        set_trainable(model, "last_99_conv")


def test_the_last_convolutions_can_be_trained_alone():
    model = RadiographClassifier("densenet_mini", 32)
    set_trainable(model, "last_2_conv_only")
    learning = [layer.name for layer in model.backbone.layers if layer.trainable_weights]
    assert learning == ["stack4_block2_1_conv", "stack4_block2_2_conv"]


@pytest.mark.parametrize(
    ("part", "convolutions"),
    [
        ("last_3_conv", ["0_2", "1_1", "1_2"]),
        ("last_4_conv", ["0_0", "0_2", "1_1", "1_2"]),
    ],  # 0_0 belongs to the shortcut
)
def test_shortcut_convolutions_are_ordered_by_depth(part, convolutions):
    model = RadiographClassifier("resnet18_small", 28)
    set_trainable(model, part)
    learning = [layer.name for layer in model.backbone.layers if layer.trainable_weights]
    found = [name for name in learning if name.endswith("_conv")]
    assert found == [f"stack3_block{place}_conv" for place in convolutions]
    assert "stack3_block0_0_bn" in learning  # follows the first of these convolutions, as documented


@pytest.mark.slow
def test_the_width_of_a_fusion_can_be_configured():
    config = load_config("hybrid", SETTINGS | {"model.fusion": "gated", "model.fusion_width": 12})
    model = build_model(**dataclasses.asdict(config.model), image_size=64)
    assert model.get_layer("gate_0").units == 12 and "fusion gated of 12 channels" in config.model.words


def erasing_step(model, images, tap):
    """Returns the loss of one erasing step."""
    from kmura.classification.cam_erasing import CamErasingModel
    from kmura.classification.losses import WeightedBinaryCrossentropy
    from kmura.training.optimizers import AdamL2

    trainer = CamErasingModel(model, how=CamConfig(tap=tap))
    trainer.compile(AdamL2(1e-3), WeightedBinaryCrossentropy(1.0), jit_compile=False)
    trainer.set_erasing(True, CamConfig(erase_every=1))
    labels = np.array([[0.0], [1.0], [1.0]], np.float32)
    batch = {"image": images, "label": labels, "mixed_image": images, "mixed_label": labels}
    return trainer.fit(tf.data.Dataset.from_tensors(batch), shuffle=False, verbose=0).history["loss"][0]


@pytest.mark.slow
@pytest.mark.parametrize("tap", ["S4", "P5"])
def test_erasing_supports_the_maps_of_either_branch_of_a_hybrid(tap, images):
    model = mini()
    table = model.swin.stages[2].blocks[0].attn.relative_position_bias_table
    before = table.numpy()
    assert np.isfinite(erasing_step(model, images, tap))
    assert (before != table.numpy()).any()


@pytest.mark.slow
def test_a_hybrid_can_be_trained_in_mixed_precision(images):
    model = mini("gated", dtype="mixed_bfloat16")
    kept = model.swin.stages[0].blocks[0].attn.qkv.kernel, model.backbone.get_layer("conv1_conv").kernel
    before = [variable.numpy() for variable in kept]
    assert model.feature_maps["P5"].dtype == model.feature_maps["S4"].dtype == "bfloat16"
    assert model.output.dtype == "float32" and {variable.dtype for variable in kept} == {"float32"}
    assert np.isfinite(erasing_step(model, images, "S4"))
    assert all((variable.numpy() != value).any() for variable, value in zip(kept, before, strict=True))
    assert keras.config.dtype_policy().name == "float32"


def test_swin_receives_images_on_its_pretraining_scale():
    from kmura.models.swin import SWINS

    model = mini()  # densenet_mini expects -1..1
    layer = model.get_layer("normalized_swin")
    assert layer.mean == list(SWINS["swin_mini"].mean) != model.get_layer("normalized").mean


@pytest.mark.slow
def test_weights_of_a_hybrid_can_be_loaded_into_hybrids_and_classifiers(tmp_path):
    model = mini()
    model.save(tmp_path / "hybrid.keras")
    same = {"architecture": "hybrid", "backbone": "densenet_mini", "swin": "swin_mini", "image_size": 64}
    whole = build_model(weights=str(tmp_path / "hybrid.keras"), seed=1, **same)
    for one, other in zip(model.weights, whole.weights, strict=True):
        assert one.dtype != "float32" or (one.numpy() == other.numpy()).all()
    path = str(tmp_path / "hybrid.keras")
    other = build_model(weights=path, swin_weights=path, fusion="gated", seed=1, **same)
    for body in ("backbone", "swin"):
        for one, two in zip(getattr(model, body).weights, getattr(other, body).weights, strict=True):
            assert one.dtype != "float32" or (one.numpy() == two.numpy()).all()
    alone = build_model(backbone="densenet_mini", weights=path, image_size=64)
    kernel = "stack4_block2_2_conv"
    assert (alone.backbone.get_layer(kernel).kernel.numpy() == model.backbone.get_layer(kernel).kernel.numpy()).all()
