"""Random augmentations of radiographs as Keras layers: one affine resampling, then a change of intensity.

Both layers work eagerly, in a graph, and inside `Dataset.map`. With an explicit `seed` they are pure functions, and the
transform of image i of a batch depends only on (seed, i).

Conventions: pixel centres have integer coordinates (x, y); x points right, y points down; the centre of an image is
((W - 1) / 2, (H - 1) / 2). A matrix maps a pixel of the OUTPUT to the position in the INPUT that it samples.
"""

import math

import keras
import tensorflow as tf

CROPS = 10  # attempts of torchvision at a crop inside the image


def affine_matrices(
    height,
    width,
    *,
    angle=0.0,
    area=1.0,
    aspect=1.0,
    at_x=0.0,
    at_y=0.0,
    shift_x=0.0,
    shift_y=0.0,
    shear=0.0,
    mirror=1.0,
) -> tf.Tensor:
    """Returns matrices [B, 2, 3] float32 that map output pixels to input pixels.

    The transforms are applied to the image in this order: mirror, shear, rotate, crop (or zoom out), shift.

    Args:
        height, width: size of the images, pixels.
        angle: rotation, counter-clockwise as displayed, radians. A number or [B], as are all arguments below.
        area: fraction of the image's area that the crop covers; above 1 the image shrinks.
        aspect: ratio of width to height of the crop, divided by that of the image.
        at_x, at_y: position of the crop within the available margin, from -1 (left, top) to 1 (right, bottom).
        shift_x, shift_y: shift to the right and down, as a fraction of the width and of the height.
        shear: angle by which vertical lines are tilted, radians (positive: the lower end moves to the right).
        mirror: -1 flips the image horizontally, 1 does not.
    """
    height, width = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    cos, sin, lean = tf.cos(angle), tf.sin(angle), tf.tan(shear)
    wide, high = tf.sqrt(area * aspect), tf.sqrt(area / aspect)
    # an output pixel (x, y), relative to the centre, samples the point (wide * x + u, high * y + v) of the rotated
    # image; the rows of the product mirror . unshear . unrotate map that point back to the original image
    u = at_x * (1 - wide) * width / 2 - wide * shift_x * width
    v = at_y * (1 - high) * height / 2 - high * shift_y * height
    xx, xy = mirror * (cos - lean * sin), mirror * (-sin - lean * cos)
    yx, yy = sin, cos
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2

    def row(to_x, to_y, middle):
        a, b = wide * to_x, high * to_y
        return a, b, to_x * u + to_y * v + (middle - a * middle_x - b * middle_y)

    entries = [*row(xx, xy, middle_x), *row(yx, yy, middle_y)]
    shape = tf.shape(sum(entries))  # the broadcast shape of all arguments
    return tf.reshape(tf.stack([tf.broadcast_to(entry, shape) for entry in entries], -1), [-1, 2, 3])


# XLA compiles this to one loop over the pixels instead of one kernel call and one pass through memory per step: 0.2 ms
# per image of 224 pixels on one core, against 1.1 ms for ImageProjectiveTransformV3 (a test asserts equal results)
@tf.function(jit_compile=True, reduce_retracing=True)
def warp(images: tf.Tensor, matrices: tf.Tensor) -> tf.Tensor:
    """Returns the images resampled bilinearly through `matrices`; pixels that map outside the input are black (0).

    Args:
        images: [B, H, W, C], any numeric type.
        matrices: float32 [B, 2, 3], output pixel to input pixel; see `affine_matrices`.

    Returns:
        float32 [B, H, W, C].
    """
    shape = tf.shape(images)
    batch, height, width, channels = shape[0], shape[1], shape[2], shape[3]
    row = width + 2  # a black border of one pixel supplies the value of all positions outside the image
    framed = tf.reshape(tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]]), [batch, (height + 2) * row, channels])
    x = tf.range(tf.cast(width, tf.float32))[None, None, :]
    y = tf.range(tf.cast(height, tf.float32))[None, :, None]
    a, b, c, d, e, f = (value[:, None, None] for value in tf.unstack(tf.reshape(matrices, [batch, 6]), axis=-1))
    at_x = tf.clip_by_value(a * x + b * y + c, -1.0, tf.cast(width, tf.float32)) + 1  # [B, H, W], bordered coordinates
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
    """Returns the images scaled by `brightness`, then scaled about their own mean by `contrast`, clipped to 0..255.

    Args:
        images: [B, H, W, C], 0..255, any numeric type.
        brightness, contrast: float32 [B], factors; 1 leaves the image unchanged.

    Returns:
        float32 [B, H, W, C], 0..255.
    """
    images = tf.cast(images, tf.float32)
    brightness, contrast = brightness[:, None, None, None], contrast[:, None, None, None]
    mean = tf.reduce_mean(images, axis=(1, 2, 3), keepdims=True)
    return tf.clip_by_value(images * (brightness * contrast) + mean * (brightness * (1 - contrast)), 0.0, 255.0)


def affine_parameters(numbers: tf.Tensor, limits: tf.Tensor, resized: bool = False) -> dict[str, tf.Tensor]:
    """Returns random arguments [B] for `affine_matrices`.

    Args:
        numbers: float32 [B, 8], uniform in [0, 1); [B, 8 + 2 CROPS] if `resized`.
        limits: float32 [8]: rotation (radians), smallest and largest area, shift, shear (radians), flip, smallest and
            largest aspect; see `RandomAffine`.
        resized: draw area and aspect of the crop as `resized_crop` does.
    """
    angle, area, at_x, at_y, shift_x, shift_y, shear, flip = (numbers[:, place] for place in range(8))
    most_angle, low, high, most_shift, most_shear, flip_share, narrow, broad = tf.unstack(limits)
    area, aspect = low + (high - low) * area, tf.ones_like(area)
    if resized:
        area, aspect = resized_crop(numbers[:, 8:], low, high, narrow, broad)
    return {
        "angle": most_angle * to_either_side(angle),
        "area": area,
        "aspect": aspect,
        "at_x": to_either_side(at_x),
        "at_y": to_either_side(at_y),
        "shift_x": most_shift * to_either_side(shift_x),
        "shift_y": most_shift * to_either_side(shift_y),
        "shear": most_shear * to_either_side(shear),
        "mirror": tf.where(flip < flip_share, -1.0, 1.0),
    }


def resized_crop(numbers: tf.Tensor, low, high, narrow, broad) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns area and aspect [B] of random crops, relative to the image, as of torchvision's RandomResizedCrop.

    The area is uniform from `low` to `high`, the logarithm of the aspect from log `narrow` to log `broad`. A crop that
    is wider or higher than the image is rejected and drawn again, CROPS times in all; after that the crop is the image.
    torchvision takes the ratio of width to height itself and whole pixels; on a square image both are the same apart
    from rounding.

    Args:
        numbers: float32 [B, 2 CROPS], uniform in [0, 1).
        low, high: smallest and largest area; narrow, broad: smallest and largest aspect, above 0.
    """
    areas = low + (high - low) * numbers[:, :CROPS]
    aspects = tf.exp(tf.math.log(narrow) + (tf.math.log(broad) - tf.math.log(narrow)) * numbers[:, CROPS:])
    fits = (areas * aspects <= 1) & (areas <= aspects)  # sides sqrt(area * aspect), sqrt(area / aspect)
    first = tf.argmax(fits, axis=1)
    some = tf.reduce_any(fits, axis=1)
    area, aspect = (tf.gather(values, first, batch_dims=1) for values in (areas, aspects))
    return tf.where(some, area, 1.0), tf.where(some, aspect, 1.0)


# XLA compiles everything from the random numbers to the pixels, because TensorFlow's graph optimizer rounds the
# intermediate steps differently inside Dataset.map
@tf.function(jit_compile=True, reduce_retracing=True)
def _random_affine(images: tf.Tensor, numbers: tf.Tensor, limits: tf.Tensor, resized: bool) -> tf.Tensor:
    shape = tf.shape(images)
    return warp(images, affine_matrices(shape[1], shape[2], **affine_parameters(numbers, limits, resized)))


@tf.function(jit_compile=True, reduce_retracing=True)
def _random_intensity(images: tf.Tensor, numbers: tf.Tensor, limits: tf.Tensor) -> tf.Tensor:
    return change_intensity(images, *tf.unstack(1 + limits * to_either_side(numbers), axis=-1))


class RandomLayer(keras.layers.Layer):
    """The common base of random layers: the `training` flag and the source of random numbers."""

    def __init__(self, *, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.seed = seed
        self.generator = keras.random.SeedGenerator(seed)

    def call(self, images, seed=None, training=None):
        """Returns the augmented images [B, H, W, C] in the layer's compute dtype.

        Args:
            images: [B, H, W, C], 0..255, integers or floats.
            seed: integers [2] make the output a pure function of images and seed; None draws from the layer's own
                generator.
            training: False returns the images unchanged. Outside a model, None means True, as in the random layers of
                Keras; inside a model, the model sets it.
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
class RandomAffine(RandomLayer):
    """Randomly flips, shears, rotates, zooms and shifts images, with a single resampling.

    The crop is drawn in one of two ways, and its position is uniform in the available margin. With `crop="zoom"` its
    fraction of the area is uniform in `area_scale` and its aspect ratio is that of the image; a fraction above 1 zooms
    out. With `crop="resized"` it is a random resized crop, see `resized_crop`. Each image of a batch has its own random
    numbers. See `affine_matrices` for order and directions, and `warp` for the resampling.

    Args:
        rotation: maximum rotation in either direction, degrees.
        area_scale: minimum and maximum fraction of the image's area that a crop covers.
        crop: `zoom` or `resized`.
        aspect: minimum and maximum of the crop's ratio of width to height relative to the image's; for `resized`.
        shift: maximum shift in x and in y, as a fraction of the side.
        shear: maximum angle in either direction by which vertical lines are tilted, degrees.
        flip: probability of a horizontal flip.
        seed: seed of the layer's own generator, which is used in calls without a seed.
    """

    def __init__(
        self,
        rotation=0.0,
        area_scale=(1.0, 1.0),
        shift=0.0,
        shear=0.0,
        flip=0.0,
        *,
        crop="zoom",
        aspect=(1.0, 1.0),
        **kwargs,
    ):
        super().__init__(**kwargs)
        if crop not in ("zoom", "resized"):
            raise ValueError(f"crop is {crop!r}; choose zoom or resized")
        self.crop = crop
        self.aspect = tuple(aspect)
        self.rotation = rotation
        self.area_scale = tuple(area_scale)
        self.shift = shift
        self.shear = shear
        self.flip = flip

    @property
    def changes_nothing(self) -> bool:
        """Whether every parameter has its identity value."""
        return not (self.rotation or self.shift or self.shear or self.flip) and self.area_scale == (1.0, 1.0)

    @property
    def limits(self) -> tuple[float, ...]:
        """The argument `limits` of `affine_parameters`, with angles in radians."""
        shear = math.radians(self.shear)
        return (math.radians(self.rotation), *self.area_scale, self.shift, shear, self.flip, *self.aspect)

    def changed(self, images, seed):
        """Returns the images [B, H, W, C] float32, each under the transform determined by the seed."""
        resized = self.crop == "resized"
        numbers = uniform(images, 8 + 2 * CROPS if resized else 8, seed)
        return _random_affine(images, numbers, tf.constant(self.limits, tf.float32), resized)

    def get_config(self):
        names = ("rotation", "area_scale", "shift", "shear", "flip", "crop", "aspect")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable(package="kmura")
class RandomIntensity(RandomLayer):
    """Randomly changes the brightness and contrast of images and clips them to 0..255; see `change_intensity`.

    Args:
        brightness: maximum relative change of brightness, b (factor 1 - b to 1 + b).
        contrast: maximum relative change of contrast about the image's mean, c (factor 1 - c to 1 + c).
        seed: seed of the layer's own generator, which is used in calls without a seed.
    """

    def __init__(self, brightness=0.0, contrast=0.0, **kwargs):
        super().__init__(**kwargs)
        self.brightness = brightness
        self.contrast = contrast

    @property
    def changes_nothing(self) -> bool:
        """Whether both parameters are zero."""
        return not (self.brightness or self.contrast)

    def changed(self, images, seed):
        """Returns the images [B, H, W, C] float32, each changed by the factors determined by the seed."""
        limits = tf.constant([self.brightness, self.contrast], tf.float32)
        return _random_intensity(images, uniform(images, 2, seed), limits)

    def get_config(self):
        return {**super().get_config(), "brightness": self.brightness, "contrast": self.contrast}


def uniform(images: tf.Tensor, count: int, seed) -> tf.Tensor:
    """Returns `count` numbers per image, float32 [B, count] in [0, 1); row i does not depend on the batch size.

    The generator is counter-based and fills the array row by row. The algorithm is set to Philox explicitly, because
    the default differs between devices.
    """
    return tf.random.stateless_uniform([tf.shape(images)[0], count], seed, alg="philox")


def to_either_side(number):
    """Maps a number that is uniform in [0, 1) to one that is uniform in [-1, 1)."""
    return 2 * number - 1
