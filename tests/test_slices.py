"""Slices of volumes: planes, neighbours, three-dimensional augmentation, left and right."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage
from scipy.spatial.transform import Rotation

from kmura.config.segmentation import PLANES, SlicesConfig, VolumeAugmentConfig
from kmura.data import slices
from kmura.data.slices import SliceSampler, SliceTargets, rotations, slice_batches, trilinear, volume_batches
from kmura.data.volume_dataset import PLANE_AXES, Volume, slice_size
from kmura.records.manifest import VolumeFacts

NOTHING = VolumeAugmentConfig(
    rotation=0, scale=0, shift=0, elastic=0, flip=0, gamma=0, contrast=0, brightness=0, noise=0, blur=0
)
TARGETS = SliceTargets(np.arange(3, dtype=np.uint8), np.array([0, 2, 1], np.uint8), ("left", "right"))


def volume(name, shape, spacing=(1.0, 1.0, 1.0), normal=(1.0, 0.0, 0.0), offset=0.0, seed=0):
    """A smooth random volume; class 1 on the left (large x), class 2 on the right."""
    rng = np.random.default_rng(seed)
    gray = ndimage.gaussian_filter(rng.uniform(0, 255, shape), 2)
    gray = (255 * (gray - gray.min()) / np.ptp(gray)).astype(np.uint8)
    mask = np.zeros(shape, np.uint8)
    middle = shape[2] // 2
    mask[2:-2, 3:-3, middle + 2 : -2] = 1
    mask[2:-2, 3:-3, 2 : middle - 2] = 2
    facts = VolumeFacts(
        "CT", "train", shape[::-1], spacing[::-1], (0.0,) * 3, (1.0, 0, 0, 0, 1, 0, 0, 0, 1), (-124.0, 130.0),
        normal, offset, ("", "", ""), "",
    )  # fmt: skip
    return Volume(name, gray, mask, facts)


VOLUMES = [volume("a", (14, 20, 24)), volume("b", (17, 18, 22), (2.0, 1.0, 1.5), seed=1)]


def sampler(config=None, size=None, volumes=VOLUMES):
    config = config or SlicesConfig()
    return SliceSampler(volumes, config, TARGETS, size or slice_size(volumes, config))


@pytest.mark.parametrize("plane", PLANES)
def test_a_clean_slice_is_the_slice_of_the_array_with_its_neighbours(plane):
    config = SlicesConfig(plane=plane, slices=3)
    of_slices = sampler(config, (26, 26))
    across = PLANE_AXES[plane][0]
    for place, each in enumerate(VOLUMES):
        count = each.gray.shape[across]
        for number in (0, 5, count - 1):
            image, mask = of_slices.clean(tf.constant([place]), tf.constant([number]))
            for channel, neighbour in enumerate((number - 1, number, number + 1)):
                inside = 0 <= neighbour < count
                expected = np.take(each.gray, neighbour, axis=across) if inside else 0 * np.take(each.gray, 0, across)
                np.testing.assert_allclose(image[0, ..., channel], placed(expected), atol=1e-3)
            np.testing.assert_array_equal(mask[0], placed(np.take(each.mask, number, axis=across)))


def placed(slice_, size=(26, 26)):
    """A slice in the middle of a larger one, as `data.size` pads it."""
    target = np.zeros(size, slice_.dtype)
    top, left = (-((count - side) // 2) for count, side in zip(slice_.shape, size, strict=True))
    target[top : top + slice_.shape[0], left : left + slice_.shape[1]] = slice_
    return target


def test_a_smaller_size_cuts_the_middle():
    image, _ = sampler(SlicesConfig(plane="axial"), (10, 12)).clean(tf.constant([0]), tf.constant([4]))
    np.testing.assert_allclose(image[0, ..., 0], VOLUMES[0].gray[4, 5:15, 6:18], atol=1e-3)


def test_volumes_are_put_together_from_their_slices_in_every_plane():
    for plane in PLANES:
        config = SlicesConfig(plane=plane)
        for place, each in enumerate(VOLUMES):
            across, row, column = PLANE_AXES[plane]
            size = (each.gray.shape[row], each.gray.shape[column])
            batches = volume_batches(sampler(config, size), place, each.gray.shape[across], 4)
            stacked = np.concatenate([batch.numpy()[..., 0] for batch in batches])
            np.testing.assert_allclose(np.moveaxis(stacked, 0, across), each.gray, atol=1e-3)


def test_interpolation_is_that_of_scipy():
    array = VOLUMES[0].gray.astype(np.float32)
    places = np.random.default_rng(0).uniform(-2, 26, (1, 200, 3)).astype(np.float32)
    shape = np.array(array.shape, np.int32)
    ours = trilinear(tf.constant(array.reshape(-1, 1)), tf.constant(places), tf.constant([0]), shape[None])[0, :, 0]
    expected = ndimage.map_coordinates(array, np.clip(places[0].T, 0, shape[:, None] - 1), order=1)
    np.testing.assert_allclose(ours, expected, atol=2e-2)


def test_outside_of_a_volume_is_zero_which_is_reached_within_one_voxel():
    array = VOLUMES[0].gray
    places = np.random.default_rng(0).uniform(-3, 27, (1, 1, 20, 10, 3)).astype(np.float32)
    of_slices = sampler()
    points = tf.constant(places) - (np.array(array.shape, np.float32) - 1) / 2
    ours = of_slices._images(points, tf.constant([0]), tf.constant([False]))[0, ..., 0]
    flat = places.reshape(-1, 3).T
    expected = ndimage.map_coordinates(array.astype(np.float32), flat, order=1, mode="grid-constant", cval=0.0)
    np.testing.assert_allclose(ours, expected.reshape(20, 10), atol=2e-2)
    classes = of_slices._classes(points[:, 0], tf.constant([0]))[0]
    rounded = np.rint(places.reshape(-1, 3)).astype(int)
    inside = ((rounded >= 0) & (rounded < array.shape)).all(1)
    expected = [VOLUMES[0].mask[tuple(place)] if here else 0 for place, here in zip(rounded, inside, strict=True)]
    np.testing.assert_array_equal(np.ravel(classes), expected)
    assert 0 < inside.sum() < inside.size


def test_the_deformation_between_its_coarse_positions_is_nearly_linear(monkeypatch):
    config = dataclasses.replace(NOTHING, elastic=3.0, elastic_spacing=20.0)
    arguments = (tf.constant([0, 1]), tf.constant([7, 8]), tf.constant([0, 5], tf.int64), config)
    coarse, _ = sampler().augmented(*arguments)
    monkeypatch.setattr(slices, "COARSE", 1000)
    fine, _ = sampler().augmented(*arguments)
    plain, _ = sampler().clean(*arguments[:2])
    assert np.abs(coarse - fine).mean() < 0.1 * np.abs(plain - fine).mean()


def test_rotations_are_those_of_scipy():
    angles = np.random.default_rng(0).uniform(-1, 1, (5, 3)).astype(np.float32)
    for ours, (about_z, about_y, about_x) in zip(rotations(tf.constant(angles)).numpy(), angles, strict=True):
        # scipy's vectors are x, y, z; ours are z, y, x
        expected = Rotation.from_euler("ZYX", [about_z, about_y, about_x]).as_matrix()[::-1, ::-1]
        np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_an_augmented_slice_is_a_slice_of_the_turned_volume():
    """The change of position is the same for all slices of a volume that are drawn with one seed."""
    config = VolumeAugmentConfig(
        rotation=20, scale=0.1, shift=3, elastic=1.5, elastic_spacing=8, flip=0,
        gamma=0, contrast=0, brightness=0, noise=0, blur=0,
    )  # fmt: skip
    each = VOLUMES[1]
    size = each.gray.shape
    turned = {}
    for plane in PLANES:
        across, row, column = PLANE_AXES[plane]
        of_slices = sampler(SlicesConfig(plane=plane, slices=1), (size[row], size[column]), [each])
        stack = [
            of_slices.augmented(tf.constant([0]), tf.constant([number]), (3, 4), config)[0][0, ..., 0]
            for number in range(size[across])
        ]
        turned[plane] = np.moveaxis(np.stack(stack), 0, across)
    assert np.abs(turned["axial"] - each.gray).mean() > 5
    np.testing.assert_allclose(turned["axial"], turned["coronal"], atol=0.05)
    np.testing.assert_allclose(turned["axial"], turned["sagittal"], atol=0.05)


def test_the_classes_move_with_the_image():
    each = volume("c", (16, 24, 24))
    shown = Volume("c", np.where(each.mask > 0, 200, 20).astype(np.uint8), each.mask, each.facts)
    config = VolumeAugmentConfig(gamma=0, contrast=0, brightness=0, noise=0, blur=0, elastic_spacing=20, elastic=2)
    of_slices = sampler(SlicesConfig(), (24, 24), [shown])
    image, mask = of_slices.augmented(tf.zeros(40, tf.int32), tf.fill([40], 8), (1, 2), config)
    inside = np.asarray(image)[..., 0] > 110
    assert (inside == (np.asarray(mask) > 0)).mean() > 0.97, "nearest and linear interpolation differ at edges alone"
    assert len({bytes(each.numpy()) for each in image}) == 40


@pytest.mark.parametrize("flip", [0, 1])
def test_a_flip_exchanges_sides_and_their_classes_and_the_distance_follows(flip):
    each = volume("d", (10, 20, 24), normal=(1.0, 0.0, 0.0), offset=1.5)
    config = dataclasses.replace(NOTHING, flip=flip)
    of_slices = sampler(SlicesConfig(sides="coordinate"), None, [each])
    image, mask = of_slices.augmented(tf.constant([0]), tf.constant([5]), (0, 0), config)
    step = -1 if flip else 1
    np.testing.assert_allclose(image[0, ..., 0], each.gray[5][:, ::step], atol=1e-3)
    # class 1 stays where the distance to the plane is positive: on the left of the picture's patient
    columns = np.arange(24) - 11.5
    np.testing.assert_allclose(image[0, 3, :, 1], columns - 1.5 if not flip else columns + 1.5, atol=1e-4)
    expected = each.mask[5][:, ::step]
    expected = np.array([0, 2, 1], np.uint8)[expected] if flip else expected
    np.testing.assert_array_equal(mask[0], expected)
    assert (np.asarray(mask)[0][:, 18] == 1)[5], "class 1 is on the left whether flipped or not"


def test_the_distance_is_that_of_the_whole_volume():
    each = volume("e", (9, 12, 14), (2.0, 1.0, 1.5), normal=(0.96, 0.28, 0.0), offset=0.7)
    image, _ = sampler(SlicesConfig(sides="coordinate"), None, [each]).clean(tf.range(1) * 0, tf.constant([4]))
    np.testing.assert_allclose(image[0, ..., 1], each.left_of_middle()[4], atol=1e-4)


def test_batches_depend_only_on_seed_epoch_and_position():
    of_slices = sampler(SlicesConfig(slices=3))
    rows = np.array([(place, number) for place, each in enumerate(VOLUMES) for number in range(len(each.gray))])
    empty = np.array([not VOLUMES[place].mask[number].any() for place, number in rows])
    assert empty.sum() == 8

    def batches(first, last, seed=0, share=1.0, most=0):
        data, steps = slice_batches(
            of_slices, rows, empty, augment=VolumeAugmentConfig(), empty_share=share,
            epoch_slices=most, batch_size=4, seed=seed, epochs=last, first_epoch=first,
        )  # fmt: skip
        return steps, [tuple(part.numpy() for part in batch) for batch in data]

    steps, whole = batches(0, 2)
    assert steps == len(rows) // 4 and len(whole) == 2 * steps
    _, second = batches(1, 2)
    for ours, theirs in zip(whole[steps:], second, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])
    assert not np.array_equal(whole[0][0], whole[steps][0]) and not np.array_equal(
        whole[0][0], batches(0, 1, 1)[1][0][0]
    )
    assert batches(0, 1, share=0.0)[0] == (len(rows) - 8) // 4
    assert batches(0, 1, most=1000)[0] == steps
    few, parts = batches(0, 12, share=0.0, most=9)
    assert few == 2 and len(parts) == 24, "two whole batches of four in each epoch"
    means = {float(image.mean()) for part in parts for image in part[1]}
    assert len(means) > 9, "other slices in other epochs"
    assert whole[0][0].min() >= 0 and whole[0][0].max() <= 255


@pytest.mark.parametrize(
    "name", ["gamma", "contrast", "brightness", "noise", "blur", "rotation", "scale", "shift", "elastic"]
)
def test_every_key_of_the_augmentation_changes_the_slices(name):
    of_slices = sampler()
    numbers = tf.constant([0, 1, 0]), tf.constant([5, 6, 7])
    plain = of_slices.augmented(*numbers, (1, 1), NOTHING)[0]
    np.testing.assert_allclose(plain, of_slices.clean(*numbers)[0], atol=1e-3)
    changed = of_slices.augmented(
        *numbers, (1, 1), dataclasses.replace(NOTHING, **{name: 4.0 if name == "blur" else 0.5})
    )[0]
    assert (np.abs(changed - plain).mean(axis=(1, 2, 3)) > 0.01).all()
