"""Random affine and intensity augmentation: the effect of each parameter, and reproducibility from seeds."""

import math
from inspect import signature

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_contract import check_layer
from scipy import stats

from kmura.data.augment import (
    CROPS,
    RandomAffine,
    RandomIntensity,
    affine_matrices,
    affine_parameters,
    change_intensity,
    resized_crop,
    warp,
)

EVERYTHING = {"rotation": 30.0, "area_scale": (0.5, 1.5), "shift": 0.2, "shear": 10.0, "flip": 0.5}


@pytest.fixture(scope="module")
def images():
    """Four images [12, 16, 1] of smooth noise in 0..255 with a bright off-centre pixel."""
    rng = np.random.default_rng(0)
    pixels = rng.uniform(0, 255, (4, 12, 16, 1)).astype(np.float32)
    pixels[:, 2, 5] = 255
    return pixels


def moved(image, **parameters):
    """Returns one image [H, W] transformed with these parameters."""
    matrices = affine_matrices(*image.shape, **parameters)
    return warp(image[None, :, :, None], matrices).numpy()[0, :, :, 0]


def sampled(image, place):
    """Reference bilinear resampling: `place(x, y)` is the input position of output pixel (x, y); black outside."""
    height, width = image.shape
    result = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            at_x, at_y = place(x, y)
            for row in (math.floor(at_y), math.floor(at_y) + 1):
                for column in (math.floor(at_x), math.floor(at_x) + 1):
                    if 0 <= row < height and 0 <= column < width:
                        share = (1 - abs(at_x - column)) * (1 - abs(at_y - row))
                        result[y, x] += share * image[row, column]
    return result


@pytest.fixture(scope="module")
def image(images):
    return images[0, :, :, 0]


def test_identity_parameters_return_the_same_pixels(image):
    np.testing.assert_array_equal(moved(image), image)


def test_a_quarter_turn_is_rot90(image):
    square = image[:12, :12]
    np.testing.assert_allclose(moved(square, angle=math.pi / 2), np.rot90(square), atol=1e-2)
    np.testing.assert_allclose(moved(square, angle=-math.pi / 2), np.rot90(square, -1), atol=1e-2)
    np.testing.assert_allclose(moved(image, angle=math.pi), image[::-1, ::-1], atol=1e-2)


def test_mirroring_swaps_left_and_right_exactly(image):
    np.testing.assert_array_equal(moved(image, mirror=-1.0), image[:, ::-1])


def test_a_shift_by_whole_pixels_is_exact_and_fills_with_black(image):
    result = moved(image, shift_x=3 / 16, shift_y=-2 / 12)
    expected = np.zeros_like(image)
    expected[:-2, 3:] = image[2:, :-3]
    np.testing.assert_allclose(result, expected, atol=1e-3)


@pytest.mark.parametrize("angle", [0.3, -1.1])
def test_rotation_is_counterclockwise_about_the_centre(image, angle):
    def place(x, y):  # the y axis points down, so a counterclockwise rotation maps (x, y) to this position
        x, y = x - 7.5, y - 5.5
        return x * math.cos(angle) - y * math.sin(angle) + 7.5, x * math.sin(angle) + y * math.cos(angle) + 5.5

    np.testing.assert_allclose(moved(image, angle=angle), sampled(image, place), atol=5e-3)


@pytest.mark.parametrize(("area", "at_x", "at_y"), [(0.25, 0.0, 0.0), (0.25, -1.0, 1.0), (1.44, 1.0, -0.5)])
def test_a_crop_shows_the_requested_fraction_and_position(image, area, at_x, at_y):
    side = math.sqrt(area)
    left, top = (1 + at_x) / 2 * 16 * (1 - side), (1 + at_y) / 2 * 12 * (1 - side)  # edges of the crop

    def place(x, y):  # edges are half a pixel before the first centre
        return left + (x + 0.5) * side - 0.5, top + (y + 0.5) * side - 0.5

    result = moved(image, area=area, at_x=at_x, at_y=at_y)
    np.testing.assert_allclose(result, sampled(image, place), atol=5e-3)


def test_shear_moves_the_lower_end_of_vertical_lines_to_the_right(image):
    def place(x, y):
        return x - math.tan(0.2) * (y - 5.5), y

    np.testing.assert_allclose(moved(image, shear=0.2), sampled(image, place), atol=5e-3)


def test_transforms_are_applied_in_the_documented_order(image):
    steps = [{"mirror": -1.0}, {"shear": 0.1}, {"angle": 0.4}, {"area": 0.6, "at_x": 0.5}, {"shift_y": 0.1}]
    product = np.eye(3)
    for step in steps:  # the matrix of each step samples the result of the previous steps
        product = product @ np.vstack([affine_matrices(12, 16, **step)[0], [0, 0, 1]])
    together = {name: value for step in steps for name, value in step.items()}
    np.testing.assert_allclose(affine_matrices(12, 16, **together)[0], product[:2], atol=1e-5)
    assert not np.allclose(product[:2], affine_matrices(12, 16, **{**together, "mirror": 1.0})[0])


@settings(max_examples=15, deadline=None)
@given(
    angle=st.floats(-3, 3),
    area=st.floats(0.2, 3),
    at=st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
    shift=st.tuples(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5)),
    shear=st.floats(-0.8, 0.8),
    mirror=st.sampled_from([-1.0, 1.0]),
)
def test_resampling_matches_the_projective_transform_of_tensorflow(angle, area, at, shift, shear, mirror):
    smooth = np.add.outer(np.arange(20.0), 3 * np.arange(24.0)).astype(np.float32)[None, :, :, None]
    matrices = affine_matrices(
        20, 24, angle=angle, area=area, at_x=at[0], at_y=at[1], shift_x=shift[0], shift_y=shift[1], shear=shear,
        mirror=mirror,
    )  # fmt: skip
    reference = tf.raw_ops.ImageProjectiveTransformV3(
        images=smooth,
        transforms=tf.concat([tf.reshape(matrices, [1, 6]), tf.zeros([1, 2])], 1),
        output_shape=[20, 24],
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
        fill_value=0.0,
    )
    np.testing.assert_allclose(warp(smooth, matrices), reference, atol=0.02)


def test_each_image_of_a_batch_has_its_own_transform_and_channels_move_together(images):
    color = np.concatenate([images, 255 - images, images / 2], -1)
    angles = tf.constant([0.0, 0.5, 1.0, 1.5])
    together = warp(color, affine_matrices(12, 16, angle=angles)).numpy()
    for number in range(4):
        for channel in range(3):
            alone = moved(color[number, :, :, channel], angle=float(angles[number]))
            np.testing.assert_allclose(together[number, :, :, channel], alone, atol=1e-4)


def test_integer_and_float_images_give_the_same_result(images):
    whole = images.astype(np.uint8)
    layer = RandomAffine(**EVERYTHING)
    np.testing.assert_array_equal(layer(whole, seed=[1, 2]), layer(whole.astype(np.float32), seed=[1, 2]))


def test_intensity_applies_brightness_then_contrast_about_the_mean_then_clipping(images):
    brightness, contrast = np.float32([0.5, 1, 1.2, 1.5]), np.float32([1, 0.5, 1.5, 0.9])
    result = change_intensity(images, brightness, contrast)
    for number in range(4):
        lit = images[number] * brightness[number]
        expected = np.clip((lit - lit.mean()) * contrast[number] + lit.mean(), 0, 255)
        np.testing.assert_allclose(result[number], expected, atol=1e-3)
    assert np.max(result) == 255  # some values were clipped


@pytest.mark.parametrize(
    "layer",
    [RandomAffine(**EVERYTHING, seed=3), RandomIntensity(0.5, 0.5, seed=3)],
    ids=lambda layer: type(layer).__name__,
)
class TestRandomLayers:
    def test_the_seed_determines_the_result(self, layer, images):
        first = layer(images, seed=[5, 6]).numpy()
        np.testing.assert_array_equal(first, layer(images, seed=[5, 6]))
        assert not np.allclose(first, layer(images, seed=[5, 7]))
        assert not np.allclose(first, layer(images, seed=[6, 6]))

    def test_eager_graph_and_dataset_mode_agree(self, layer, images):
        eager = layer(images, seed=[5, 6])
        in_graph = tf.function(lambda batch: layer(batch, seed=[5, 6]))(images)
        dataset = tf.data.Dataset.from_tensors(images).map(lambda batch: layer(batch, seed=[5, 6]))
        np.testing.assert_array_equal(eager, in_graph)
        np.testing.assert_array_equal(eager, next(iter(dataset)))

    def test_an_image_does_not_depend_on_later_images_of_the_batch(self, layer, images):
        whole = layer(images, seed=[5, 6]).numpy()
        for count in (1, 3):
            np.testing.assert_allclose(layer(images[:count], seed=[5, 6]), whole[:count], atol=1e-4)

    def test_equal_images_of_a_batch_are_transformed_differently(self, layer, images):
        same = np.repeat(images[:1], 4, axis=0)
        result = layer(same, seed=[5, 6]).numpy()
        assert all(not np.allclose(result[0], result[other]) for other in (1, 2, 3))

    def test_values_stay_within_0_and_255(self, layer, images):
        result = layer(images, seed=[5, 6]).numpy()
        assert result.min() >= 0 and result.max() <= 255.001

    def test_images_pass_unchanged_in_inference(self, layer, images):
        np.testing.assert_array_equal(layer(images, seed=[5, 6], training=False), images)

    def test_calls_without_a_seed_use_the_seed_generator_of_the_layer(self, layer, images):
        def two_calls():
            copy = type(layer).from_config(layer.get_config())
            return copy(images).numpy(), copy(images).numpy()

        first, second = two_calls()
        assert not np.allclose(first, second)
        np.testing.assert_array_equal(two_calls(), (first, second))

    def test_augmentation_layers_satisfy_the_layer_contract(self, layer, images):
        own = {name: value for name, value in layer.get_config().items() if name in signature(type(layer)).parameters}
        check_layer(type(layer), own, images, random=True, differentiable=False)  # images need no gradient


def test_a_model_with_the_layers_changes_images_only_in_training(images):
    inputs = keras.Input((12, 16, 1))
    model = keras.Model(inputs, RandomIntensity(0.5)(RandomAffine(**EVERYTHING)(inputs)))
    np.testing.assert_array_equal(model(images, training=False), images)
    np.testing.assert_array_equal(model.predict(images, verbose=0), images)
    assert not np.allclose(model(images, training=True), images)


def test_layers_with_zero_ranges_do_not_change_images(images):
    np.testing.assert_array_equal(RandomIntensity()(RandomAffine()(images, seed=[1, 2]), seed=[1, 2]), images)


def test_parameters_are_uniform_within_their_ranges():
    layer = RandomAffine(rotation=20.0, area_scale=(0.64, 1.21), shift=0.1, shear=5.0, flip=0.3)
    numbers = tf.random.stateless_uniform([20000, 8], [1, 2])
    drawn = {name: np.asarray(value) for name, value in affine_parameters(numbers, layer.limits).items()}
    ranges = {
        "angle": (math.radians(-20), math.radians(20)),
        "area": (0.64, 1.21),
        "at_x": (-1, 1),
        "at_y": (-1, 1),
        "shift_x": (-0.1, 0.1),
        "shift_y": (-0.1, 0.1),
        "shear": (math.radians(-5), math.radians(5)),
    }
    for name, (low, high) in ranges.items():
        counts, _ = np.histogram(drawn[name], 10, (low, high))
        assert counts.sum() == 20000, f"{name} leaves its range"
        assert np.abs(counts - 2000).max() < 200, f"{name} is not uniform"  # 4.7 standard deviations
    assert set(drawn["mirror"]) == {-1, 1}
    assert np.mean(drawn["mirror"] == -1) == pytest.approx(0.3, abs=0.015)
    correlations = np.corrcoef([drawn[name] for name in (*ranges, "mirror")]) - np.eye(8)
    assert np.abs(correlations).max() < 0.035, "parameters hang together"


def test_flip_probabilities_zero_and_one_are_exact():
    numbers = tf.random.stateless_uniform([1000, 8], [1, 2])
    assert set(affine_parameters(numbers, RandomAffine(flip=0.0).limits)["mirror"].numpy()) == {1}
    assert set(affine_parameters(numbers, RandomAffine(flip=1.0).limits)["mirror"].numpy()) == {-1}


def test_intensity_factors_are_uniform_around_one():
    gray = np.full((5000, 2, 2, 1), 100, np.float32)
    factors = RandomIntensity(brightness=0.2)(gray, seed=[1, 2]).numpy()[:, 0, 0, 0] / 100
    assert factors.min() == pytest.approx(0.8, abs=0.002) and factors.max() == pytest.approx(1.2, abs=0.002)
    assert factors.mean() == pytest.approx(1, abs=0.01) and factors.std() == pytest.approx(0.4 / 12**0.5, abs=0.004)
    halves = np.broadcast_to(np.float32([[50], [150]])[:, :, None], (5000, 2, 1, 1))
    spread = np.ptp(RandomIntensity(contrast=0.2)(halves, seed=[1, 2]).numpy(), axis=(1, 2, 3)) / 100
    assert spread.min() == pytest.approx(0.8, abs=0.002) and spread.max() == pytest.approx(1.2, abs=0.002)


def test_a_resized_crop_has_the_distribution_of_torchvision():
    """Area and aspect of RandomResizedCrop on a square image, drawn one by one by its rules."""
    rng, expected = np.random.default_rng(0), []
    for _ in range(20_000):
        for _ in range(CROPS):
            area, aspect = rng.uniform(0.5, 1.1), math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            if area * aspect <= 1 and area / aspect <= 1:
                break
        else:
            area = aspect = 1.0
        expected.append((area, aspect))
    numbers = tf.random.stateless_uniform([20_000, 2 * CROPS], [1, 2])
    found = np.stack(resized_crop(numbers, 0.5, 1.1, 3 / 4, 4 / 3), axis=1)
    for drawn, reference in zip(found.T, np.array(expected).T, strict=True):
        assert stats.ks_2samp(drawn, reference).pvalue > 0.01
    wide, high = np.sqrt(found[:, 0] * found[:, 1]), np.sqrt(found[:, 0] / found[:, 1])
    assert wide.max() <= 1 + 1e-6 and high.max() <= 1 + 1e-6, "a crop stays inside the image"
    whole = np.stack(resized_crop(numbers, 1.0, 1.0, 3 / 4, 4 / 3), axis=1)
    assert (whole == 1).all()


def test_the_aspect_of_a_crop_scales_the_two_sides(image):
    def place(x, y):  # a crop of half the area, twice as wide as high
        return (x - 7.5) * 1.0 + 7.5, (y - 5.5) * 0.5 + 5.5

    np.testing.assert_allclose(moved(image, area=0.5, aspect=2.0), sampled(image, place), atol=1e-2)


def test_the_default_augmentation_is_the_published_crop_and_earlier_runs_keep_theirs():
    from kmura.config import config_from_tables, filled_as_before, load_config

    augment = load_config("baseline").augment
    assert augment.crop == "resized" and augment.aspect == pytest.approx((3 / 4, 4 / 3))
    earlier = config_from_tables(filled_as_before({"augment": {"area_scale": [0.9, 1.1]}}), "run.json")
    assert earlier.augment.crop == "zoom"
