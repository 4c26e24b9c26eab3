"""The U-Net: sizes, number of parameters, the input's scale, encoders, training and saved files."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from layer_contract import check_layer

from kmura.errors import InputError
from kmura.models.backbones import BACKBONES
from kmura.models.build import build_model
from kmura.models.unet import WIDTHS, CroppedFromMultiple, PaddedToMultiple, UNet, build_unet, map_probabilities

TINY = {"classes": 2, "widths": (4, 8, 8), "seed": 0}
RNG = np.random.default_rng(5)
VARIANTS = {
    "batch": {},
    "group": {"norm": "group", "groups": 4},
    "unfused": {"fused_batch_norm": False},
    "encoder": {"encoder": "densenet_mini", "widths": (4,) * 5},
}


def slices_of(size=(20, 27), channels=1, batch=2):
    return RNG.uniform(0, 255, (batch, *size, channels)).astype(np.float32)


def parameters(widths, channels, maps):
    """Number of all weights: 9 i o of a 3x3 convolution, 4 o of its normalisation, 4 i o + o of a transposed one."""
    down, up = 0, 0
    for level, width in enumerate(widths):
        before = channels if level == 0 else widths[level - 1]
        down += 9 * before * width + 4 * width + 9 * width * width + 4 * width
    for above, below in zip(widths, widths[1:], strict=False):
        up += 4 * below * above + above + 9 * (2 * above) * above + 4 * above + 9 * above * above + 4 * above
    return down + up + widths[0] * maps + maps


def test_the_published_network_has_31_million_parameters():
    model = UNet(20, background=False, dropout=0.3, noise=0.01)
    assert model.count_params() == parameters((32, 64, 128, 256, 512, 1024), 1, 20) == 31_112_596
    mini = UNet(20, widths=WIDTHS["unet_mini"], slices=3, coordinate=True)
    assert mini.count_params() == parameters((8, 16, 32, 64), 4, 21) == 122_133


def test_an_image_of_any_size_gives_logits_of_its_size():
    model = build_unet(**TINY, slices=3)
    for size in ((20, 27), (4, 4), (1, 3), (32, 16)):
        logits = model(slices_of(size, 3))
        assert logits.shape == (2, *size, 3) and logits.dtype == "float32"
    assert build_unet(**TINY, background=False)(slices_of()).shape == (2, 20, 27, 2)
    assert model.output.shape == (None, None, None, 3)


def test_padding_inside_equals_padding_outside():
    model = build_unet(**TINY)
    image = slices_of((9, 14))
    padded = np.pad(image, [(0, 0), (1, 2), (1, 1), (0, 0)])
    np.testing.assert_allclose(model(image), model(padded)[:, 1:10, 1:15], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 5, 9, 3), (1, 8, 4, 1)])
def test_padding_and_cropping_satisfy_the_layer_contract(shape):
    images = RNG.uniform(0, 255, shape).astype(np.float32)
    options = {"keeps_float32": True, "trains": False}
    check_layer(PaddedToMultiple, {"multiple": 4}, images, **options)
    maps = RNG.normal(size=(shape[0], shape[1] + -shape[1] % 4, shape[2] + -shape[2] % 4, 2)).astype(np.float32)
    check_layer(CroppedFromMultiple, {"multiple": 4}, (maps, images), in_dataset=False, differentiable=False, **options)


def test_sizes_that_are_known_only_at_run_time_are_padded_and_cropped():
    padding, cropping = PaddedToMultiple(8), CroppedFromMultiple(8)

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 1))])
    def there_and_back(images):
        padded = padding(images)
        return padded, cropping([padded, images])

    images = slices_of((11, 16))
    padded, back = there_and_back(images)
    assert padded.shape == (2, 16, 16, 1)
    np.testing.assert_array_equal(back, images)


def test_gray_values_are_divided_by_255_and_the_coordinate_by_100_mm():
    model = build_unet(**TINY, slices=3, coordinate=True)
    scaled = keras.Model(model.input, model.get_layer("scaled").output)
    image = np.array([[[[255.0, 0.0, 51.0, -80.0]]]], np.float32)
    values = scaled(image)
    np.testing.assert_allclose(values[0, 1, 1], [1.0, 0.0, 0.2, -0.8], rtol=1e-6)  # one of 4 x 4 after the padding
    assert np.count_nonzero(values) == 3


@pytest.mark.parametrize("variant", ["batch", "encoder"])
def test_the_coordinate_changes_the_logits(variant):
    model = build_unet(**TINY | VARIANTS[variant], coordinate=True)
    images = slices_of((16, 16), 2)
    mirrored = images * np.array([1, -1], np.float32)
    assert np.abs(model(images) - model(mirrored)).max() > 1e-4


def test_noise_and_dropout_act_in_training_only():
    images = slices_of((8, 8))
    quiet = build_unet(**TINY)
    for options in ({"noise": 0.2}, {"dropout": 0.5}):
        model = build_unet(**TINY, **options)
        model.set_weights([*quiet.get_weights(), *model.get_weights()[len(quiet.weights) :]])
        np.testing.assert_array_equal(model(images), model(images))
        first, second = (model(images, training=True) for _ in range(2))
        assert np.abs(first - second).max() > 1e-4


def compiled(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, jit_compile=False)
    return model


def labelled(batch=2, size=(12, 12)):
    images = slices_of(size, batch=batch)
    return images, (images[..., 0] > 128).astype(np.int32)


@pytest.mark.parametrize(
    ("variant", "policy"),
    [
        ("batch", "mixed_bfloat16"),
        ("group", "mixed_bfloat16"),
        pytest.param("encoder", "mixed_bfloat16", marks=pytest.mark.slow),
    ],
)
def test_a_compiled_training_step_changes_every_weight(variant, policy):
    model = compiled(build_unet(**TINY | VARIANTS[variant], dropout=0.1, noise=0.01, dtype=policy))
    assert model.output.dtype == "float32"
    before = [weight.numpy() for weight in model.weights]
    assert np.isfinite(model.train_on_batch(*labelled()))
    for weight, value in zip(model.weights, before, strict=True):
        assert np.abs(weight.numpy().astype(float) - value).max() > 0, f"{weight.path} did not change"


def test_the_gradient_reaches_the_whole_encoder():
    model = build_unet(**TINY | VARIANTS["encoder"])
    images, labels = labelled()
    with tf.GradientTape() as tape:
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, model(images, training=True))
    gradients = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
    assert all(gradient is not None and np.isfinite(gradient).all() for gradient in gradients)


def test_a_small_network_learns_a_threshold():
    model = compiled(build_unet(**TINY))
    images, labels = labelled(4, (16, 16))
    before = [weight.numpy() for weight in model.weights]
    model.train_on_batch(images, labels)
    for weight, value in zip(model.weights, before, strict=True):
        assert np.abs(weight.numpy() - value).max() > 0, f"{weight.path} did not change"
    for _ in range(60):
        model.train_on_batch(images, labels)
    predicted = np.argmax(model(images, training=True), axis=-1)
    assert (predicted == labels).mean() > 0.95


def literal_unet(image, weights):
    """The figure of Ronneberger et al. 2015 with one pooling, in inference mode; with the weights in order."""
    take = iter(weights)

    def convolved(maps):
        for _ in range(2):
            maps = tf.nn.conv2d(maps, next(take), 1, "SAME")
            gamma, beta, mean, variance = (next(take) for _ in range(4))
            maps = tf.nn.relu(gamma * (maps - mean) / tf.sqrt(variance + 1e-3) + beta)
        return maps

    skip = convolved(image / 255)
    lowest = convolved(tf.nn.max_pool2d(skip, 2, 2, "VALID"))
    kernel, bias = next(take), next(take)
    up = np.zeros(skip.shape, np.float32)
    for row in range(2):  # each pixel of the lower level becomes 2 x 2 pixels, each with a matrix of its own
        for column in range(2):
            up[:, row::2, column::2] = np.einsum("bhwi,oi->bhwo", lowest, kernel[row, column]) + bias
    maps = convolved(tf.concat([skip, up], axis=-1))
    kernel, bias = next(take), next(take)
    assert next(take, None) is None
    return tf.nn.conv2d(maps, kernel, 1, "SAME") + bias


def test_the_network_is_that_of_the_paper():
    model = build_unet(classes=2, widths=(3, 5), seed=0)
    rng = np.random.default_rng(0)
    model.set_weights(
        [rng.uniform(0.1, 0.6, weight.shape) - 0.2 * (weight.ndim == 4) for weight in model.get_weights()]
    )
    image = slices_of((6, 8))
    np.testing.assert_allclose(model(image), literal_unet(image, model.get_weights()), rtol=1e-4, atol=1e-4)


def test_normalisation_is_that_of_the_argument():
    kinds = {name: {type(layer).__name__ for layer in build_unet(**TINY | VARIANTS[name]).layers} for name in VARIANTS}
    assert "GroupNormalization" in kinds["group"] and "BatchNormalization" not in kinds["group"]
    assert "BatchNormalization" in kinds["batch"] and "GroupNormalization" not in kinds["batch"]
    fused = {
        name: {type(layer) for layer in build_unet(**TINY | VARIANTS[name]).layers} & {keras.layers.BatchNormalization}
        for name in ("batch", "unfused")
    }
    assert fused == {"batch": set(), "unfused": {keras.layers.BatchNormalization}}
    model = build_unet(**TINY, batch_norm_momentum=0.7)
    assert {layer.momentum for layer in model.layers if hasattr(layer, "momentum")} == {0.7}


@pytest.mark.parametrize("variant", ["batch", "group", "encoder"])
def test_config_and_saved_file_restore_the_model(variant, tmp_path):
    model = build_unet(**TINY | VARIANTS[variant], noise=0.02, dropout=0.2, slices=3, coordinate=True, dtype="float32")
    copy = UNet.from_config(model.get_config())
    assert copy.get_config() == model.get_config()
    assert [weight.shape for weight in copy.weights] == [weight.shape for weight in model.weights]
    images = slices_of((9, 10), 4)
    model.save(tmp_path / "unet.keras")
    loaded = keras.saving.load_model(tmp_path / "unet.keras")
    assert type(loaded) is UNet and loaded.get_config() == model.get_config()
    np.testing.assert_array_equal(loaded(images), model(images))


@pytest.mark.parametrize("encoder", ["densenet_mini", "efficientnet_lite0", "resnet50", "densenet121"])
def test_the_levels_of_an_encoder_halve_the_resolution_from_1_2_to_1_32(encoder):
    if encoder == "densenet121":  # only the names: it takes 2 s to build
        assert BACKBONES[encoder].shallow_taps == BACKBONES["densenet_mini"].shallow_taps
        return
    parts = BACKBONES[encoder]
    body = parts.build()
    taps = [body.get_layer(name).output for name in (*parts.shallow_taps, *parts.taps.values())]
    shapes = keras.Model(body.input, taps).compute_output_shape((1, 64, 96, 3))
    assert [shape[1:3] for shape in shapes] == [(64 // 2**level, 96 // 2**level) for level in range(1, 6)]


def test_an_encoder_takes_one_or_the_three_middle_slices():
    options = TINY | VARIANTS["encoder"]
    assert build_unet(**options).get_layer("normalized").output.shape[-1] == 3
    model = build_unet(**options, slices=5)
    seen = keras.Model(model.input, model.get_layer("normalized").output)
    images = slices_of((32, 32), 5)
    np.testing.assert_allclose(seen(images), images[..., 1:4] / 127.5 - 1, rtol=1e-4, atol=1e-5)
    changed = images * np.array([0, 1, 1, 1, 1], np.float32)
    assert np.abs(model(images) - model(changed)).max() > 1e-4, "the level of full resolution sees all slices"


def test_an_encoder_takes_the_weights_of_a_classifier(tmp_path):
    widths = {"widths": (4, 4, 4, 4, 4)}
    classifier = build_model(backbone="densenet_mini", weights="none", image_size=32, seed=1)
    classifier.save(tmp_path / "best.keras")
    options = TINY | widths | {"encoder": "densenet_mini"}
    model = build_unet(**options, weights=str(tmp_path / "best.keras"))
    for ours, theirs in zip(model.backbone.weights, classifier.backbone.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for images in (slices_of((32, 64)), slices_of((33, 40))):
        assert model(images).shape == (*images.shape[:3], 3)
    model.save(tmp_path / "unet.keras")
    again = build_unet(**options | {"seed": 7}, weights=str(tmp_path / "unet.keras"))
    for ours, theirs in zip(again.weights, model.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    back = build_model(backbone="densenet_mini", weights=str(tmp_path / "unet.keras"), image_size=32)
    np.testing.assert_array_equal(back.backbone.weights[0], classifier.backbone.weights[0])
    with pytest.raises(InputError, match="they belong to encoder densenet_mini, but the model has resnet18_small"):
        build_unet(**TINY, encoder="resnet18_small", weights=str(tmp_path / "unet.keras"))


def test_the_seed_determines_the_weights():
    one, same, other = (build_unet(**TINY | {"seed": seed}).get_weights() for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one[0], other[0])


def test_the_initial_bias_is_that_of_the_logits():
    model = build_unet(**TINY, initial_bias=[3.0, -1.0, 0.5])
    np.testing.assert_array_equal(model.get_layer("logits").bias, [3.0, -1.0, 0.5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 0}, "classes is 0"),
        ({"slices": 2}, "slices is 2; give an odd number"),
        ({"widths": ()}, "widths is"),
        ({"norm": "layer"}, "norm 'layer' is unknown; choose one of batch, group"),
        ({"norm": "group", "groups": 3}, "groups is 3, which does not divide"),
        ({"encoder": "resnet51"}, "there is no encoder 'resnet51'; choose one of resnet50"),
        ({"encoder": "resnet50"}, "the encoder resnet50 needs 5 numbers or more"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"noise": -1.0}, "noise is -1.0"),
        ({"torch_padding": True}, "torch_padding is an option of an encoder"),
        ({"weights": "imagenet"}, "the U-Net has no encoder"),
        ({"initial_bias": [0.0]}, "initial_bias has 1 numbers; give 3"),
    ],
)
def test_wrong_arguments_give_one_line(options, message):
    with pytest.raises(InputError, match=message) as error:
        build_unet(**TINY | options)
    assert "\n" not in str(error.value)


def test_probabilities_of_independent_maps_leave_the_rest_to_the_background():
    logits = np.array([[2.0, -1.0], [-0.1, -3.0], [0.1, 0.2], [-90.0, -95.0]], np.float32)
    found = np.asarray(map_probabilities(logits, background=False))
    assert found.shape == (4, 3) and found.sum(axis=-1) == pytest.approx(1)
    assert found.argmax(axis=-1).tolist() == [1, 0, 2, 0]
    sigmoid = 1 / (1 + np.exp(-logits[0].astype(float)))
    expected = np.array([1 - sigmoid.max(), *sigmoid])
    assert found[0] == pytest.approx(expected / expected.sum(), rel=1e-5)
    three = RNG.normal(size=(5, 3)).astype(np.float32)
    exponentials = np.exp(three.astype(float))
    assert np.asarray(map_probabilities(three, background=True)) == pytest.approx(
        exponentials / exponentials.sum(axis=-1, keepdims=True), rel=1e-5
    )
