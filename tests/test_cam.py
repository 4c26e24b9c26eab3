"""Maps match the publications and manual calculations, and masks never erase a whole image."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from kmura import cam

# two channels of 2 x 2 activations, and gradients that differ by position
A = np.array([[[1.0, 0.0], [2.0, 1.0]], [[0.0, 3.0], [1.0, 1.0]]])[None]
G = np.array([[[0.5, -1.0], [0.0, 2.0]], [[1.0, 0.5], [-0.5, -0.5]]])[None]


def literal_grad_cam_pp_summed(activations, gradients):
    """The map of `grad_cam_pp_summed`, computed per element."""
    batch, height, width, channels = activations.shape
    maps = np.zeros((batch, height, width))
    for b in range(batch):
        for k in range(channels):
            total = sum(
                activations[b, i, j, k] * gradients[b, i, j, k] ** 3 for i in range(height) for j in range(width)
            )
            weight = 0.0
            for i in range(height):
                for j in range(width):
                    g = gradients[b, i, j, k]
                    denominator = 2 * g**2 + total
                    alpha = g**2 / denominator if denominator else 0.0
                    weight += alpha * max(g, 0.0)
            maps[b] += weight * activations[b, :, :, k]
    return np.maximum(maps, 0)


def map_of(method, activations=A, gradients=G):
    activations, gradients = (tf.constant(array, tf.float32) for array in (activations, gradients))
    return cam.weighted_map(activations, cam.METHODS[method](activations, gradients)).numpy()


def test_cam_matches_a_manual_calculation():
    # channel weights: 0.5 + 0 + 1 - 0.5 = 1 and -1 + 2 + 0.5 - 0.5 = 1
    assert map_of("cam")[0] == pytest.approx(np.array([[1.0, 3.0], [3.0, 2.0]]))


def test_grad_cam_matches_a_manual_calculation():
    assert map_of("grad_cam")[0] == pytest.approx(np.array([[0.25, 0.75], [0.75, 0.5]]))


def test_layer_cam_matches_a_manual_calculation():
    assert map_of("layer_cam")[0] == pytest.approx(np.array([[0.5, 2.0], [1.5, 0.0]]))


def test_grad_cam_pp_matches_a_manual_calculation():
    # channel 0: sum A = 4 -> alpha = 1 / (2 + 4 g) -> w = 0.5 / 4 + 1 / 6
    # channel 1: sum A = 5 -> alpha = 1 / (2 + 5 g) -> w = 2 / 12 + 0.5 / 4.5
    first, second = 0.5 / 4 + 1 / 6, 2 / 12 + 0.5 / 4.5
    expected = [[first, 2 * first + second], [3 * second, first + second]]
    assert map_of("grad_cam_pp")[0] == pytest.approx(np.array(expected), rel=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e3])
def test_summed_grad_cam_pp_matches_its_formula_for_gradients_of_any_scale(scale):
    rng = np.random.default_rng(0)
    activations = np.maximum(rng.normal(size=(3, 4, 5, 6)), 0)
    gradients = rng.normal(size=activations.shape) * scale
    expected = literal_grad_cam_pp_summed(activations, gradients)
    found = map_of("grad_cam_pp_summed", activations, gradients)
    assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("constant", [True, False])
def test_grad_cam_pp_has_the_weights_of_pytorch_grad_cam(constant):
    rng = np.random.default_rng(1)
    activations = np.maximum(rng.normal(size=(3, 4, 5, 6)), 0)
    shape = (3, 1, 1, 6) if constant else activations.shape
    gradients = (
        rng.choice([-1, 1], shape) * rng.uniform(0.3, 2, shape) * np.ones(activations.shape)
    )  # above its epsilon
    squared, total = gradients**2, activations.sum((1, 2), keepdims=True)
    alpha = squared / (2 * squared + total * gradients**3 + 1e-6)  # as its class GradCAMPlusPlus
    expected = (np.maximum(gradients, 0) * alpha).sum((1, 2), keepdims=True)
    tensors = [tf.constant(array, tf.float32) for array in (activations, gradients)]
    weights = {name: cam.METHODS[name](*tensors).numpy() for name in ("grad_cam_pp", "grad_cam_pp_summed")}
    assert np.abs(weights["grad_cam_pp"] - expected).max() < 1e-5
    assert (np.abs(weights["grad_cam_pp_summed"] - expected).max() < 1e-5) == constant


def test_a_zero_gradient_gives_an_empty_map_without_nan():
    for method in cam.METHODS:
        assert (map_of(method, A, 0 * G) == 0).all()


@pytest.fixture(scope="module")
def model():
    from kmura.models.build import build_model

    model = build_model(backbone="densenet_mini", weights="none", image_size=64, seed=1)
    model.get_layer("logits").bias.assign([0.1])
    return model


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(0, 255, (4, 64, 64, 1)).astype("float32")


def test_grad_cam_equals_cam_for_global_pooling_and_a_dense_layer(model, images):
    import keras

    engine = cam.CamEngine(model, method="cam", fallback=None)
    maps, logits = engine(images, target=lambda logits: tf.ones_like(logits), size=(2, 2))
    features, expected_logits = keras.Model(model.input, [model.feature_maps["P5"], model.output])(images)
    kernel = model.get_layer("logits").kernel.numpy()[:, 0]
    assert logits.numpy() == pytest.approx(expected_logits.numpy(), abs=1e-6)
    assert maps.numpy() == pytest.approx(np.maximum(features.numpy() @ kernel, 0), rel=1e-4, abs=1e-6)
    fourth, _ = cam.CamEngine(model, method="grad_cam", fallback=None)(images, lambda x: tf.ones_like(x), (2, 2))
    assert (4 * fourth).numpy() == pytest.approx(maps.numpy(), rel=1e-4, abs=1e-6)  # mean over 2 x 2 positions


def test_the_predicted_side_is_explained():
    assert cam.predicted_sign(tf.constant([[0.3], [0.0], [-0.2]])).numpy().tolist() == [[1.0], [1.0], [-1.0]]
    assert cam.predicted_sign(tf.constant([[0.1, 0.9, 0.3]])).numpy().tolist() == [[0.0, 1.0, 0.0]]


def test_normal_and_abnormal_maps_explain_opposite_scores(model, images):
    engine = cam.CamEngine(model, method="cam", fallback=None)
    for_abnormal, _ = engine(images, lambda logits: tf.ones_like(logits), (2, 2))
    for_normal, _ = engine(images, lambda logits: -tf.ones_like(logits), (2, 2))
    assert (for_abnormal.numpy() * for_normal.numpy() == 0).all()  # ReLU of m and of -m
    assert for_normal.numpy().max() > 0 or for_abnormal.numpy().max() > 0


def test_targets_can_be_selected_by_name():
    one, three = tf.constant([[0.3], [-0.2]]), tf.constant([[0.1, 0.9, 0.3]])
    classes = ("healthy", "broken")
    for name, sign in (("abnormal", 1.0), ("normal", -1.0), ("broken", 1.0), ("healthy", -1.0)):
        assert cam.named_target(name, classes)(one).numpy().tolist() == [[sign], [sign]]
    assert cam.named_target("predicted", classes)(one).numpy().tolist() == [[1.0], [-1.0]]
    assert cam.named_target("c", ("a", "b", "c"))(three).numpy().tolist() == [[0.0, 0.0, 1.0]]
    with pytest.raises(ValueError, match="target 'abnormal' is unknown; choose one of predicted, a, b, c"):
        cam.named_target("abnormal", ("a", "b", "c"))


def test_flip_averaging_gives_mirrored_images_mirrored_maps(model, images):
    engine = cam.CamEngine(model, method="grad_cam", tap="P4", fallback=None)
    target = cam.named_target("abnormal", ("normal", "abnormal"))
    maps, logits = engine(images, target, flip=True)
    mirrored, _ = engine(images[:, :, ::-1], target, flip=True)
    assert maps.numpy().max() > 0
    assert mirrored.numpy()[:, :, ::-1] == pytest.approx(maps.numpy(), rel=1e-3, abs=1e-6)
    assert logits.numpy() == pytest.approx(model(images).numpy(), abs=1e-5)


def test_a_flipped_image_is_explained_for_the_predicted_side_of_the_original(model, images):
    """Both passes explain the same side, even if the prediction for the mirrored image is the other side."""
    engine = cam.CamEngine(model, method="cam", tap="P4", fallback=None)
    maps, logits = engine(images, flip=True)
    sign = np.where(logits.numpy() >= 0, 1.0, -1.0).astype("float32")
    fixed, _ = engine(images, lambda _: tf.constant(sign), flip=True)
    assert maps.numpy() == pytest.approx(fixed.numpy(), abs=1e-6)


def test_the_compiled_engine_gives_the_same_maps_and_is_traced_once(model, images):
    engine = cam.CamEngine(model)
    for part in (images, images[:3], images[:2]):
        maps, logits = engine.compiled(tf.constant(part))
        expected, expected_logits = engine(part)
        assert maps.numpy() == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-6)
        assert logits.numpy() == pytest.approx(expected_logits.numpy(), abs=1e-5)
    assert engine.compiled.experimental_get_tracing_count() <= 2  # first a fixed, then a variable batch size


@pytest.mark.parametrize("name", ["grad_cam", "layer_cam"])
def test_maps_match_tf_keras_vis(model, images, name):
    """Grad-CAM and LayerCAM, whose definitions agree (Grad-CAM++ of tf-keras-vis divides alpha by its sum)."""
    import keras
    from tf_keras_vis.gradcam import Gradcam
    from tf_keras_vis.layercam import Layercam

    inputs = keras.Input(model.input_shape[1:])
    tap = keras.layers.Identity(name="tap")(keras.Model(model.input, model.feature_maps["P5"])(inputs))
    tapped = keras.Model(inputs, keras.Model(model.feature_maps["P5"], model.output)(tap))
    theirs = {"grad_cam": Gradcam, "layer_cam": Layercam}[name](tapped, clone=False)
    expected = theirs(
        lambda output: output[:, 0],
        images,
        penultimate_layer="tap",
        seek_penultimate_conv_layer=False,
        expand_cam=False,
        normalize_cam=False,
    )
    maps, _ = cam.CamEngine(model, method=name, fallback=None)(images, lambda x: tf.ones_like(x), (2, 2))
    assert maps.numpy() == pytest.approx(np.asarray(expected), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("tap", ["P4", "P5"])
def test_grad_cam_pp_with_normalized_alpha_matches_tf_keras_vis(model, images, tap):
    """tf-keras-vis divides alpha by its sum over the map, and multiplies each map by exp(S)."""
    import keras
    from tf_keras_vis.gradcam_plus_plus import GradcamPlusPlus

    inputs = keras.Input(model.input_shape[1:])
    features = keras.Model(model.input, model.feature_maps[tap])
    head = keras.Model(model.feature_maps["P5"], model.output)
    inner = model.get_layer("feature_maps").output
    between = keras.Model(inner["P4"], inner["P5"]) if tap == "P4" else keras.layers.Identity()

    def tail(maps):
        return head(between(maps))

    tapped = keras.Model(inputs, tail(keras.layers.Identity(name="tap")(features(inputs))))
    expected = GradcamPlusPlus(tapped, clone=False)(
        lambda output: output[:, 0],
        images,
        penultimate_layer="tap",
        seek_penultimate_conv_layer=False,
        expand_cam=False,
        normalize_cam=False,
    )
    activations = tf.constant(features(images))
    with tf.GradientTape() as tape:
        tape.watch(activations)
        score = tail(activations)
    gradients = tape.gradient(score, activations)
    alpha = np.where(gradients == 0, 0, cam.grad_cam_pp_alpha(activations, gradients))
    total = alpha.sum((1, 2), keepdims=True)
    weights = (alpha / np.where(total == 0, 1, total) * np.maximum(gradients, 0)).sum((1, 2), keepdims=True)
    maps = np.exp(score.numpy())[:, :, None] * cam.weighted_map(activations, weights)
    assert np.asarray(expected).max() > 0
    assert np.abs(maps - expected).max() < 1e-5 * np.asarray(expected).max()


def test_the_fallback_for_empty_maps_is_per_image(model, images):
    primary = cam.CamEngine(model, method="cam", fallback=None)
    whole = cam.CamEngine(model, method="cam", tap="P5", fallback="P4")
    other = cam.CamEngine(model, method="cam", tap="P4", fallback=None)
    for sign in (1.0, -1.0):
        target = lambda logits, sign=sign: sign * tf.ones_like(logits)  # noqa: E731
        first, second, both = (engine(images, target)[0].numpy() for engine in (primary, other, whole))
        for image in range(len(images)):
            assert np.allclose(both[image], first[image] if first[image].max() > 0 else second[image], atol=1e-6)
    # the test covers both cases
    maxima = [primary(images, lambda x, s=s: s * tf.ones_like(x))[0].numpy().max((1, 2)) for s in (1.0, -1.0)]
    assert (np.array(maxima) > 0).any()


def test_unknown_names_list_the_available_names(model):
    with pytest.raises(ValueError, match="'gradcam' is unknown; choose one of cam, grad_cam"):
        cam.CamEngine(model, method="gradcam")
    with pytest.raises(ValueError, match="'P9' is unknown"):
        cam.CamEngine(model, tap="P9")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9999), st.floats(0.05, 0.95), st.sampled_from(["noise", "ties", "flat", "empty", "mostly empty"]))
def test_the_mask_selects_the_top_fraction_of_the_positive_pixels(seed, q, kind):
    rng = np.random.default_rng(seed)
    maps = rng.uniform(0, 1, (2, 7, 9)).astype("float32")
    if kind == "ties":
        maps = np.round(maps * 3) / 3
    elif kind == "flat":
        maps[:] = 0.7
    elif kind == "empty":
        maps[:] = 0
    elif kind == "mostly empty":
        maps *= rng.uniform(size=maps.shape) < 0.1
    mask = cam.erase_mask(maps, q).numpy()
    assert set(np.unique(mask)) <= {0.0, 1.0}
    for image, erased in zip(maps, mask, strict=True):
        positive = (image > 0).sum()
        assert abs(erased.sum() - (1 - q) * positive) <= 0.5 + 1e-4
        assert (image[erased == 1] > 0).all()
        if 0 < erased.sum() < erased.size:
            assert image[erased == 1].min() >= image[erased == 0].max()


def test_a_mask_can_be_computed_at_another_size():
    maps = np.zeros((1, 4, 4), "float32")
    maps[0, 1, 2] = 1.0
    mask = cam.erase_mask(maps, 0.75, (8, 8)).numpy()[0]
    big = tf.image.resize(maps[..., None], (8, 8)).numpy()[0, ..., 0]
    assert mask.shape == (8, 8) and mask.sum() == round(0.25 * (big > 0).sum())


def test_a_quantile_over_all_pixels_would_erase_the_whole_image():
    maps = np.zeros((1, 10, 10), "float32")
    maps[0, 0, :5] = 1.0  # 95 % of the map is zero, so its 80 % quantile is too
    assert (maps >= np.quantile(maps, 0.8)).all()
    assert cam.erase_mask(maps, 0.8).numpy().sum() == 1


def test_a_mask_of_all_pixels_is_above_the_quantile_of_numpy():
    maps = np.random.default_rng(0).normal(size=(3, 7, 9)).clip(0).astype("float32")
    for q in (0.3, 0.81, 0.9):
        mask = cam.erase_mask(maps, q, of="all").numpy()
        expected = maps > np.quantile(maps.reshape(3, -1), q, axis=1)[:, None, None]
        np.testing.assert_array_equal(mask, expected)
    assert cam.erase_mask(np.zeros((1, 4, 4), np.float32), 0.8, of="all").numpy().sum() == 0


def test_every_method_can_be_configured_and_has_a_title():
    from typing import get_args, get_type_hints

    from kmura.config import CamConfig
    from kmura.explain.explanation import TITLES

    assert set(get_args(get_type_hints(CamConfig)["method"])) == set(cam.METHODS) == set(TITLES)
