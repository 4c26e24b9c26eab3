"""The U-Net (Ronneberger et al. 2015): from slices of a volume to one map of logits per class."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from kmura.errors import InputError, check_choice
from kmura.models.backbones import BACKBONES
from kmura.models.base import NormalizedChannels, dtype_policy_scope
from kmura.models.batch_norm import set_batch_norm
from kmura.models.build import seeded
from kmura.models.heads import LOGITS
from kmura.models.lookup import entry
from kmura.models.torch_padding import set_torch_padding
from kmura.models.weights import load_weights

# channels of each level, from the full resolution down
WIDTHS = {"unet": (32, 64, 128, 256, 512, 1024), "unet_mini": (8, 16, 32, 64)}
NORMS = ("batch", "group")
GRAY_SCALE = 255.0
COORDINATE_SCALE = 100.0  # mm; a head is at most about 100 mm from its mid-sagittal plane


@keras.saving.register_keras_serializable("kmura")
class PaddedToMultiple(layers.Layer):
    """Pads images with zeros to height and width that are multiples of a number, evenly on opposite sides."""

    def __init__(self, multiple: int, **kwargs):
        """
        Args:
            multiple: pixels, 1 or more.
        """
        super().__init__(**kwargs)
        self.multiple = multiple
        self.autocast = False  # the input stays float32, because bfloat16 would round 200.4 to 200

    def call(self, images):
        """Returns images [B, h, w, C] for images [B, H, W, C], of the same dtype."""
        sizes = ops.shape(images)[1:3]
        if _fit(sizes, self.multiple):
            return images
        return tf.pad(images, [(0, 0), *(_padding(size, self.multiple) for size in sizes), (0, 0)])

    def compute_output_shape(self, input_shape):
        batch, *sides, channels = input_shape
        return (batch, *(None if side is None else side + -side % self.multiple for side in sides), channels)

    def compute_output_spec(self, images):
        return keras.KerasTensor(self.compute_output_shape(images.shape), dtype=images.dtype)

    def get_config(self):
        return super().get_config() | {"multiple": self.multiple}


@keras.saving.register_keras_serializable("kmura")
class CroppedFromMultiple(layers.Layer):
    """Removes from feature maps what `PaddedToMultiple` added to the images."""

    def __init__(self, multiple: int, **kwargs):
        """
        Args:
            multiple: as in PaddedToMultiple.
        """
        super().__init__(**kwargs)
        self.multiple = multiple
        self.autocast = False  # the images give only their shape

    def call(self, inputs):
        """Returns the maps [B, H, W, C] for `(maps [B, h, w, C], images [B, H, W, any])`, of the dtype of the maps."""
        maps, images = inputs
        height, width = sizes = ops.shape(images)[1:3]
        if _fit(sizes, self.multiple):
            return maps
        (top, _), (left, _) = (_padding(size, self.multiple) for size in sizes)
        return maps[:, top : top + height, left : left + width]

    def compute_output_spec(self, inputs):
        maps, images = inputs
        return keras.KerasTensor((maps.shape[0], *images.shape[1:3], maps.shape[-1]), dtype=maps.dtype)

    def get_config(self):
        return super().get_config() | {"multiple": self.multiple}


def _fit(sizes, multiple: int) -> bool:
    """Returns whether sizes are known when the graph is built, and are multiples."""
    return all(isinstance(size, int) and size % multiple == 0 for size in sizes)


def _padding(size, multiple: int):
    """Returns the pixels (before, after) that are missing; of numbers or of scalar tensors."""
    missing = -size % multiple
    return missing // 2, missing - missing // 2


@keras.saving.register_keras_serializable("kmura")
class UNet(keras.Model):
    """A U-Net: slices [B, H, W, slices (+ 1)] float32 -> logits [B, H, W, classes (+ 1)] float32, of any H and W.

    The gray values of the input are in 0..255; the model scales them to 0..1. The logits are those of a softmax over
    the background and the classes 1, 2, ..., or (`background=False`) of independent maps of the classes 1, 2, ....

    Every level has two 3x3 convolutions, each followed by normalisation and ReLU. On the way down, a 2x2 max pooling
    halves the resolution; on the way up, a transposed 2x2 convolution with stride 2 doubles it and halves the channels,
    and the maps of the same level on the way down are concatenated. Differences to Ronneberger et al. 2015: the
    convolutions pad, so that the output has the size of the input; normalisation (the convolutions before it have no
    bias); dropout only before the lowest level. Images whose sides are not multiples of 2 ** (levels - 1) are padded
    with zeros inside the model, and the output is cropped.

    With an encoder, its feature maps replace the way down. The level of full resolution, which a backbone does not
    have, is a level of two convolutions as above.

    Attributes:
        backbone: the encoder, normalised images [B, H, W, 3] -> P5; None for the classic U-Net.
    """

    def __init__(
        self,
        classes: int,
        *,
        slices: int = 1,
        coordinate: bool = False,
        background: bool = True,
        widths: Sequence[int] = WIDTHS["unet"],
        norm: str = "batch",
        groups: int = 8,
        dropout: float = 0.0,
        noise: float = 0.0,
        encoder: str | None = None,
        batch_norm_momentum: float = 0.9,
        fused_batch_norm: bool = True,
        torch_padding: bool = False,
        dtype=None,
        name: str | None = None,
        trainable: bool = True,
    ):
        """
        Args:
            classes: number of classes without the background.
            slices: neighbouring slices that are the channels of the input (2.5-D), an odd number; the output belongs to
                the middle one. An encoder takes the three middle ones, or the only one as gray.
            coordinate: whether the input has another, last channel with a coordinate in mm, such as the signed distance
                to the mid-sagittal plane. With an encoder, it is an input of every level of the way up.
            background: whether the first logit is the background.
            widths: channels of the levels, from the full resolution down. With an encoder: of the levels of the way up;
                there are as many as the encoder halves the resolution, and further widths are not used.
            norm: `batch` or `group` (Wu & He 2018), outside of the encoder.
            groups: groups of `group`, which divides all widths.
            dropout: fraction of the values dropped before the lowest level during training.
            noise: standard deviation of Gaussian noise added to the gray values during training, on the scale 0..1.
            encoder: None, or a name of `kmura.models.backbones.BACKBONES`.
            batch_norm_momentum, fused_batch_norm, dtype: see `kmura.models.base.ImageClassifier`.
            torch_padding: pad in the encoder as torch does; required by weights ported from torch.
            name, trainable: see keras.Model.

        Raises:
            InputError: a name does not exist, or a number is out of range.
        """
        own = {"classes": classes, "slices": slices, "widths": list(widths), "norm": norm, "groups": groups}
        own |= {"dropout": dropout, "noise": noise, "encoder": encoder, "torch_padding": torch_padding}
        self.check(**own)
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        config = own | {
            "coordinate": coordinate,
            "background": background,
            "batch_norm_momentum": batch_norm_momentum,
            "fused_batch_norm": fused_batch_norm,
            "dtype": policy.name,
        }
        with dtype_policy_scope(policy):
            images = keras.Input((None, None, slices + coordinate), dtype="float32", name="slices")
            body = None if encoder is None else BACKBONES[encoder].build()
            logits = _logits(images, body, config)
            # the layers are those of this model, too
            set_batch_norm(keras.Model(images, logits), momentum=batch_norm_momentum, fused=fused_batch_norm)
            super().__init__(images, logits, name=name, trainable=trainable)
        self.backbone, self._config = body, config

    @classmethod
    def check(
        cls,
        *,
        classes: int,
        slices: int = 1,
        widths: Sequence[int] = WIDTHS["unet"],
        norm: str = "batch",
        groups: int = 8,
        dropout: float = 0.0,
        noise: float = 0.0,
        encoder: str | None = None,
        torch_padding: bool = False,
    ) -> None:
        """Checks the arguments without building the model.

        Raises:
            InputError: a name does not exist, or a number is out of range.
        """
        if classes < 1:
            raise InputError(f"classes is {classes}; 1 or more is needed")
        if slices < 1 or slices % 2 == 0:
            raise InputError(f"slices is {slices}; give an odd number, so that there is a middle slice")
        if not widths or min(widths) < 1:
            raise InputError(f"widths is {list(widths)}; give the channels of one or more levels, each 1 or more")
        check_choice("norm", norm, NORMS)
        used = list(widths)
        if encoder is not None:
            levels = len(_taps(encoder))
            if len(widths) < levels:
                raise InputError(f"widths is {list(widths)}, but the encoder {encoder} needs {levels} numbers or more")
            used = used[:levels]
        elif torch_padding:
            raise InputError("torch_padding is an option of an encoder; remove it, or set an encoder")
        if norm == "group" and (groups < 1 or any(width % groups for width in used)):
            raise InputError(f"groups is {groups}, which does not divide all widths {used}; choose another number")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout is {dropout}; give 0 or more and less than 1")
        if noise < 0:
            raise InputError(f"noise is {noise}; give 0 or more")

    def get_config(self):
        return {"name": self.name, "trainable": self.trainable, **self._config}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)


def build_unet(
    *,
    classes: int,
    weights: str = "none",
    initial_bias: Sequence[float] | None = None,
    seed: int | None = None,
    **options,
) -> UNet:
    """Returns a U-Net for training: pretrained weights in its encoder, random weights elsewhere.

    Args:
        classes: number of classes without the background.
        weights: weights of the encoder, see `kmura.models.weights.load_weights`.
        initial_bias: initial biases of the logits, one per map; the logarithms of the classes' shares of the voxels
            speed up the first epoch. None keeps zeros (or the loaded biases).
        seed: makes the random weights reproducible and leaves the global random state unchanged; None draws from that
            state.
        **options: further arguments of UNet.

    Raises:
        InputError: an argument is not valid, or the weights cannot be loaded or do not fit.
    """
    with seeded(seed):
        model = UNet(classes, **options)
    if weights != "none":
        load_weights(model, weights)
    if initial_bias is not None:
        bias = model.get_layer(LOGITS).bias
        if len(initial_bias) != bias.shape[0]:
            raise InputError(f"initial_bias has {len(initial_bias)} numbers; give {bias.shape[0]}, one per map")
        bias.assign(np.asarray(initial_bias, np.float32))
    return model


def map_probabilities(logits, *, background: bool):
    """Returns class probabilities [..., K + 1] float32 with the background first, from the logits of a U-Net.

    Args:
        logits: [..., K + 1], or [..., K] of independent maps without background.
        background: whether there is a map of the background. Otherwise, 1 minus the largest probability of a class is
            that of the background, and all are divided by their sum: the background is the most probable one where no
            class has more than 0.5.
    """
    logits = ops.cast(logits, "float32")
    if background:
        return ops.softmax(logits, axis=-1)
    maps = ops.sigmoid(logits)
    rest = ops.sigmoid(-ops.max(logits, axis=-1, keepdims=True))
    both = ops.concatenate([rest, maps], axis=-1)
    return both / ops.sum(both, axis=-1, keepdims=True)


def _taps(encoder: str) -> tuple[str, ...]:
    """Returns the layers of an encoder whose maps have 1/2, 1/4, ... of the resolution of the image."""
    parts = entry(BACKBONES, encoder, "encoder")
    return (*parts.shallow_taps, *(parts.taps[name] for name in ("P3", "P4", "P5")))


def _logits(images, backbone: keras.Model | None, config: dict):
    """Returns the logits [B, H, W, maps] float32 of images [B, H, W, channels]."""
    slices, widths = config["slices"], config["widths"]
    levels = len(widths) - 1 if backbone is None else len(_taps(config["encoder"]))
    multiple = 2**levels
    scales = [GRAY_SCALE] * slices + [COORDINATE_SCALE] * config["coordinate"]
    padded = PaddedToMultiple(multiple, dtype="float32", name="padded")(images)
    scaled = NormalizedChannels([0.0] * len(scales), scales, dtype="float32", name="scaled")(padded)
    gray, coordinate = (scaled[..., :slices], scaled[..., slices:]) if config["coordinate"] else (scaled, None)
    if config["noise"]:
        gray = layers.GaussianNoise(config["noise"], dtype="float32", name="noise")(gray)
    visible = gray if coordinate is None else layers.Concatenate(dtype="float32", name="visible")([gray, coordinate])
    if backbone is None:
        *skips, lowest = _contracted(visible, config)
    else:
        *skips, lowest = _encoded(gray, backbone, config)
        skips = [_convolved(visible, widths[0], config, "down0"), *skips]
        if coordinate is not None:
            skips = [_with_coordinate(skip, coordinate, level) for level, skip in enumerate(skips)]
    maps = _expanded(lowest, skips, config)
    maps = CroppedFromMultiple(multiple, name="cropped")([maps, images])
    return layers.Conv2D(config["classes"] + config["background"], 1, dtype="float32", name=LOGITS)(maps)


def _contracted(maps, config: dict) -> list:
    """Returns the maps of all levels on the way down, from the full resolution to the lowest level."""
    found = []
    for level, width in enumerate(config["widths"]):
        if level:
            maps = layers.MaxPooling2D(2, name=f"down{level}_pool")(maps)
        if level == len(config["widths"]) - 1:
            maps = _dropped(maps, config)
        maps = _convolved(maps, width, config, f"down{level}")
        found.append(maps)
    return found


def _encoded(gray, backbone: keras.Model, config: dict) -> list:
    """Returns the maps of an encoder, from 1/2 of the resolution to the lowest level."""
    parts = BACKBONES[config["encoder"]]
    if config["slices"] > 3:
        middle = config["slices"] // 2
        gray = gray[..., middle - 1 : middle + 2]
    mean, std = (np.array(values) / GRAY_SCALE for values in (parts.mean, parts.std))
    normalized = NormalizedChannels(mean, std, name="normalized")(gray)
    if config["torch_padding"]:
        set_torch_padding(backbone)
    taps = [backbone.get_layer(layer).output for layer in _taps(config["encoder"])]
    *maps, lowest = keras.Model(backbone.input, taps, name="feature_maps")(normalized)
    return [*maps, _dropped(lowest, config)]


def _expanded(maps, skips: list, config: dict):
    """Returns the maps of full resolution [B, H, W, widths[0]]."""
    for level, skip in reversed(list(enumerate(skips))):
        width = config["widths"][level]
        # Ronneberger et al. call this an upsampling followed by a 2x2 convolution and compute it as here; it has the
        # same number of weights as the separate operations and takes 55 % of their time (two cores, 16 channels).
        maps = layers.Conv2DTranspose(
            width, 2, strides=2, kernel_initializer="he_normal", name=f"up{level}_transposed"
        )(maps)  # fmt: skip
        maps = layers.Concatenate(name=f"up{level}_skip")([skip, maps])
        maps = _convolved(maps, width, config, f"up{level}")
    return maps


def _convolved(maps, width: int, config: dict, name: str):
    """Applies two 3x3 convolutions, each with normalisation and ReLU."""
    for number in (1, 2):
        maps = layers.Conv2D(
            width, 3, padding="same", use_bias=False, kernel_initializer="he_normal", name=f"{name}_conv{number}"
        )(maps)  # fmt: skip
        if config["norm"] == "batch":
            maps = layers.BatchNormalization(name=f"{name}_norm{number}")(maps)
        else:
            maps = layers.GroupNormalization(config["groups"], name=f"{name}_norm{number}")(maps)
        maps = layers.Activation("relu", name=f"{name}_relu{number}")(maps)
    return maps


def _with_coordinate(maps, coordinate, level: int):
    """Concatenates the coordinate, averaged to the resolution of a level."""
    if level:
        coordinate = layers.AveragePooling2D(2**level, dtype="float32", name=f"coordinate{level}")(coordinate)
    return layers.Concatenate(name=f"down{level}_coordinate")([maps, coordinate])


def _dropped(maps, config: dict):
    return layers.Dropout(config["dropout"], name="dropout")(maps) if config["dropout"] else maps
