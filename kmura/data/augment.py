"""Random changes of radiographs as Keras layers: geometry in one resampling, then intensity.

Both layers work eagerly, in a graph and inside `Dataset.map`. Given an explicit `seed` they are pure functions, and
what happens to image i of a batch depends on nothing but (seed, i).

Conventions: pixel (x, y) has its centre at whole numbers, x to the right, y down; the centre of an image is
((W - 1) / 2, (H - 1) / 2). A matrix leads from a pixel of the OUTPUT to the place in the INPUT that it shows.
"""

import math

import keras
import tensorflow as tf


def affine_matrices(
    height, width, *, angle=0.0, area=1.0, at_x=0.0, at_y=0.0, shift_x=0.0, shift_y=0.0, shear=0.0, mirror=1.0
) -> tf.Tensor:
    """Matrices [B, 2, 3] float32, output pixel -> input pixel, for images of `height` x `width` pixels.

    What the picture undergoes, in this order: mirrored, sheared, rotated, cropped (or zoomed out), shifted.

    Args:
        angle: rotation, counter-clockwise as seen, radians. This and all that follow: numbers or [B].
        area: share of the image's area that the crop shows, aspect kept; above 1 the picture shrinks.
        at_x, at_y: where the crop lies, -1 (left, top) to 1 (right, bottom) of the slack that its size leaves.
        shift_x, shift_y: shift to the right and down, as a fraction of the width and of the height.
        shear: angle by which vertical lines lean, radians (positive: the lower end to the right).
        mirror: -1 exchanges left and right, 1 does not.
    """
    height, width = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    cos, sin, side, lean = tf.cos(angle), tf.sin(angle), tf.sqrt(area), tf.tan(shear)
    # an output pixel (x, y), counted from the centre, shows the point (side * x + u, side * y + v) of the rotated
    # picture; rows of the product mirror . unshear . unrotate then lead back into the original
    u = at_x * (1 - side) * width / 2 - side * shift_x * width
    v = at_y * (1 - side) * height / 2 - side * shift_y * height
    xx, xy = mirror * (cos - lean * sin), mirror * (-sin - lean * cos)
    yx, yy = sin, cos
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2

    def row(to_x, to_y, middle):
        a, b = side * to_x, side * to_y
        return a, b, to_x * u + to_y * v + (middle - a * middle_x - b * middle_y)

    entries = [*row(xx, xy, middle_x), *row(yx, yy, middle_y)]
    shape = tf.shape(sum(entries))  # of all the arguments, broadcast
    return tf.reshape(tf.stack([tf.broadcast_to(entry, shape) for entry in entries], -1), [-1, 2, 3])


# XLA, for one loop over the pixels instead of a kernel call and a pass through memory for each step: 0.2 ms an image of
# 224 pixels against 1.1 ms of ImageProjectiveTransformV3 (same result, a test compares them), on one core
@tf.function(jit_compile=True, reduce_retracing=True)
def warp(images: tf.Tensor, matrices: tf.Tensor) -> tf.Tensor:
    """Images resampled bilinearly through `matrices` (output -> input), black (0) where they lead outside.

    Args:
        images: [B, H, W, C], any numeric type.
        matrices: float32 [B, 2, 3], see `affine_matrices`.

    Returns:
        float32 [B, H, W, C].
    """
    shape = tf.shape(images)
    batch, height, width, channels = shape[0], shape[1], shape[2], shape[3]
    row = width + 2  # a black frame of one pixel around the image catches everything outside
    framed = tf.reshape(tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]]), [batch, (height + 2) * row, channels])
    x = tf.range(tf.cast(width, tf.float32))[None, None, :]
    y = tf.range(tf.cast(height, tf.float32))[None, :, None]
    a, b, c, d, e, f = (value[:, None, None] for value in tf.unstack(tf.reshape(matrices, [batch, 6]), axis=-1))
    at_x = tf.clip_by_value(a * x + b * y + c, -1.0, tf.cast(width, tf.float32)) + 1  # [B, H, W], in the frame
    at_y = tf.clip_by_value(d * x + e * y + f, -1.0, tf.cast(height, tf.float32)) + 1
    left, top = tf.floor(at_x), tf.floor(at_y)
    right_share, lower_share = at_x - left, at_y - top
    left, top = tf.cast(left, tf.int32), tf.cast(top, tf.int32)
    right, bottom = tf.minimum(left + 1, width + 1), tf.minimum(top + 1, height + 1)

    def pixels(rows, columns):
        places = tf.reshape(rows * row + columns, [batch, height * width])
        return tf.reshape(tf.cast(tf.gather(framed, places, batch_dims=1), tf.float32), shape)

    right_share, lower_share = right_share[..., None], lower_share[..., None]
    upper = pixels(top, left) * (1 - right_share) + pixels(top, right) * right_share
    lower = pixels(bottom, left) * (1 - right_share) + pixels(bottom, right) * right_share
    return upper * (1 - lower_share) + lower * lower_share


@tf.function(jit_compile=True, reduce_retracing=True)
def change_intensity(images: tf.Tensor, brightness: tf.Tensor, contrast: tf.Tensor) -> tf.Tensor:
    """Images times `brightness`, then their distance from their own mean times `contrast`, clipped to 0..255.

    Args:
        images: [B, H, W, C], 0..255, any numeric type.
        brightness, contrast: float32 [B], 1 changes nothing.

    Returns:
        float32 [B, H, W, C], 0..255.
    """
    images = tf.cast(images, tf.float32)
    brightness, contrast = brightness[:, None, None, None], contrast[:, None, None, None]
    mean = tf.reduce_mean(images, axis=(1, 2, 3), keepdims=True)
    return tf.clip_by_value(images * (brightness * contrast) + mean * (brightness * (1 - contrast)), 0.0, 255.0)


def affine_parameters(numbers: tf.Tensor, limits: tf.Tensor) -> dict[str, tf.Tensor]:
    """The random arguments [B] of `affine_matrices`.

    Args:
        numbers: float32 [B, 8], uniform in [0, 1).
        limits: float32 [6]: rotation (radians), smallest and largest area, shift, shear (radians), flip; see
            `RandomAffine`.
    """
    angle, area, at_x, at_y, shift_x, shift_y, shear, flip = tf.unstack(numbers, axis=-1)
    most_angle, low, high, most_shift, most_shear, flip_share = tf.unstack(limits)
    return {
        "angle": most_angle * _to_either_side(angle),
        "area": low + (high - low) * area,
        "at_x": _to_either_side(at_x),
        "at_y": _to_either_side(at_y),
        "shift_x": most_shift * _to_either_side(shift_x),
        "shift_y": most_shift * _to_either_side(shift_y),
        "shear": most_shear * _to_either_side(shear),
        "mirror": tf.where(flip < flip_share, -1.0, 1.0),
    }


# from random numbers to pixels within XLA: TensorFlow's graph optimizer rounds the few steps in between in other ways
# inside Dataset.map than elsewhere
@tf.function(jit_compile=True, reduce_retracing=True)
def _random_affine(images: tf.Tensor, numbers: tf.Tensor, limits: tf.Tensor) -> tf.Tensor:
    shape = tf.shape(images)
    return warp(images, affine_matrices(shape[1], shape[2], **affine_parameters(numbers, limits)))


@tf.function(jit_compile=True, reduce_retracing=True)
def _random_intensity(images: tf.Tensor, numbers: tf.Tensor, limits: tf.Tensor) -> tf.Tensor:
    return change_intensity(images, *tf.unstack(1 + limits * _to_either_side(numbers), axis=-1))


class _RandomLayer(keras.layers.Layer):
    """What both layers share: when they act and where their random numbers come from."""

    def __init__(self, *, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.seed = seed
        self.generator = keras.random.SeedGenerator(seed)

    def call(self, images, seed=None, training=None):
        """The changed images [B, H, W, C] in the layer's compute dtype.

        Args:
            images: [B, H, W, C], 0..255, integers or floats.
            seed: integers [2] make the output a pure function of images and seed; None draws from the layer's own
                generator.
            training: False returns the images unchanged. None counts as True outside a model, as for Keras' own random
                layers; inside one the model decides.
        """
        if training is False or self.changes_nothing:
            return tf.cast(images, self.compute_dtype)
        if seed is None:
            seed = tf.cast(self.generator.next(), tf.int64)
        return tf.cast(self.changed(images, seed), self.compute_dtype)

    def compute_output_shape(self, input_shape, *_, **__):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}


@keras.saving.register_keras_serializable(package="kmura")
class RandomAffine(_RandomLayer):
    """Images mirrored, sheared, rotated, zoomed and shifted at random, resampled once.

    Zooming is a random resized crop: the crop's share of the area is uniform in `area_scale`, its aspect that of the
    image, its place uniform in the slack. Each image of the batch draws its own numbers. Order and directions:
    `affine_matrices`; resampling: `warp`.

    Args:
        rotation: largest rotation to either side, degrees.
        area_scale: smallest and largest share of the image's area that a crop shows (above 1: zooms out).
        shift: largest shift in x and in y, as a fraction of the side.
        shear: largest angle to either side by which vertical lines lean, degrees.
        flip: probability of a horizontal flip.
        seed: of the layer's own generator, for calls without a seed.
    """

    def __init__(self, rotation=0.0, area_scale=(1.0, 1.0), shift=0.0, shear=0.0, flip=0.0, **kwargs):
        super().__init__(**kwargs)
        self.rotation = rotation
        self.area_scale = tuple(area_scale)
        self.shift = shift
        self.shear = shear
        self.flip = flip

    @property
    def changes_nothing(self) -> bool:
        """Whether every parameter stands at its identity."""
        return not (self.rotation or self.shift or self.shear or self.flip) and self.area_scale == (1.0, 1.0)

    @property
    def limits(self) -> tuple[float, ...]:
        """What `affine_parameters` takes, with angles in radians."""
        return (math.radians(self.rotation), *self.area_scale, self.shift, math.radians(self.shear), self.flip)

    def changed(self, images, seed):
        """The images [B, H, W, C] float32, each through the transform that the seed gives it."""
        return _random_affine(images, _uniform(images, 8, seed), tf.constant(self.limits, tf.float32))

    def get_config(self):
        names = ("rotation", "area_scale", "shift", "shear", "flip")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable(package="kmura")
class RandomIntensity(_RandomLayer):
    """Images brightened and their contrast changed at random, clipped to 0..255; see `change_intensity`.

    Args:
        brightness: largest change of brightness, as a fraction of itself (factor 1 - b to 1 + b).
        contrast: largest change of contrast about the image's mean (factor 1 - c to 1 + c).
        seed: of the layer's own generator, for calls without a seed.
    """

    def __init__(self, brightness=0.0, contrast=0.0, **kwargs):
        super().__init__(**kwargs)
        self.brightness = brightness
        self.contrast = contrast

    @property
    def changes_nothing(self) -> bool:
        """Whether both parameters stand at zero."""
        return not (self.brightness or self.contrast)

    def changed(self, images, seed):
        """The images [B, H, W, C] float32, each with the factors that the seed gives it."""
        limits = tf.constant([self.brightness, self.contrast], tf.float32)
        return _random_intensity(images, _uniform(images, 2, seed), limits)

    def get_config(self):
        return {**super().get_config(), "brightness": self.brightness, "contrast": self.contrast}


def _uniform(images: tf.Tensor, count: int, seed) -> tf.Tensor:
    """`count` numbers for each image, float32 [B, count] in [0, 1), row i the same whatever follows it.

    Counter-based and filled row after row; Philox by name, because the default differs between devices.
    """
    return tf.random.stateless_uniform([tf.shape(images)[0], count], seed, alg="philox")


def _to_either_side(number):
    """A number uniform in [0, 1) as one uniform in [-1, 1)."""
    return 2 * number - 1
