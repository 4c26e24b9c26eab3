"""The base class of all classifiers: from images to logits, with named feature maps."""

import contextlib
from collections.abc import Sequence

import keras
import numpy as np

from kmura.errors import InputError
from kmura.models.backbones import BACKBONES
from kmura.models.batch_norm import set_batch_norm
from kmura.models.lookup import entry
from kmura.models.torch_padding import set_torch_padding


@keras.saving.register_keras_serializable("kmura")
class NormalizedChannels(keras.layers.Layer):
    """Normalises each channel, (image - mean) / std; a gray image is repeated to the channels of `mean`."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], **kwargs):
        """
        Args:
            mean: one value per output channel, on the scale of the images.
            std: one value per output channel, on the scale of the images.
        """
        super().__init__(**kwargs)
        self.mean = [float(value) for value in mean]
        self.std = [float(value) for value in std]
        self.autocast = False  # the input stays float32, because bfloat16 would round 200.4 to 200

    def call(self, images):
        """Returns normalised images [..., channels] in the layer's compute dtype, from images [..., 1 or channels]."""
        images = keras.ops.cast(images, "float32")
        scale = np.divide(1.0, self.std, dtype=np.float32)
        offset = -np.divide(self.mean, self.std, dtype=np.float32)
        return keras.ops.cast(images * scale + offset, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], len(self.mean))

    def get_config(self):
        return super().get_config() | {"mean": self.mean, "std": self.std}


class ImageClassifier(keras.Model):
    """A classifier of radiographs: images [B, height, width, channels] float32 in 0..255 -> logits [B, num_classes].

    This is the base class of all classifiers. Each is a functional model wrapped in a class: the constructor arguments
    are its config. The model includes the normalisation that its backbone requires. The logits are float32. A subclass
    defines `head_sees`, `branches` and `_finished`: (images, normalised images, convolutional maps, config) -> all
    feature maps, logits.

    Attributes:
        backbone: normalised images [B, H, W, 3] -> P5; a backbone of keras-hub or of kmura.
        head_sees: names of the feature maps that are inputs of the head.
        branches: name of a branch -> its last feature map.
        feature_maps: `P3`, `P4`, `P5`, and the maps of a subclass -> KerasTensor [B, h, w, channels], connected to
            `input`: `keras.Model(model.input, [model.feature_maps["P5"], model.output])` returns maps and logits in one
            pass. P3, P4 and P5 are non-negative.
    """

    def __init__(
        self,
        *,
        backbone: str = "densenet121",
        image_size: int | tuple[int, int] = 224,
        channels: int = 1,
        num_classes: int = 1,
        dropout: float = 0.0,
        batch_norm_momentum: float = 0.9,
        fused_batch_norm: bool = True,
        torch_padding: bool = False,
        dtype=None,
        name: str | None = None,
        trainable: bool = True,
        **own,
    ):
        """
        Args:
            backbone: a name of `kmura.models.backbones.BACKBONES`.
            image_size: height and width, pixels; a single number means square images.
            channels: channels of the images, 1 (gray) or 3 (RGB).
            num_classes: number of logits.
            dropout: fraction of the features dropped before the last layer during training.
            batch_norm_momentum: momentum of the moving statistics, as in `keras.layers.BatchNormalization`.
            fused_batch_norm: use TensorFlow's fused kernel; the weights have the same layout in both cases.
            torch_padding: pad in the backbone as torch does; required by weights ported from torch.
            dtype: dtype policy of the layers (`mixed_bfloat16`); None uses the current policy of Keras. It is saved
                with the model.
            name, trainable: see keras.Model.
            **own: the arguments of the subclass.

        Raises:
            InputError: a name does not exist, or a number is out of range.
        """
        size = self.check(backbone=backbone, image_size=image_size, channels=channels, num_classes=num_classes, **own)
        parts = BACKBONES[backbone]
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        config = {
            "backbone": backbone,
            "image_size": size,
            "channels": channels,
            "num_classes": num_classes,
            "dropout": dropout,
            "batch_norm_momentum": batch_norm_momentum,
            "fused_batch_norm": fused_batch_norm,
            "torch_padding": torch_padding,
            "dtype": policy.name,
            **own,
        }
        with dtype_policy_scope(policy):
            images = keras.Input((*size, channels), dtype="float32", name="image")
            normalized = NormalizedChannels(parts.mean, parts.std, name="normalized")(images)
            body = parts.build()
            set_batch_norm(body, momentum=batch_norm_momentum, fused=fused_batch_norm)
            if torch_padding:
                set_torch_padding(body)
            taps = {name: body.get_layer(layer).output for name, layer in parts.taps.items()}
            maps = keras.Model(body.input, taps, name="feature_maps")(normalized)
            maps, logits = self._finished(images, normalized, maps, config)
            super().__init__(images, logits, name=name, trainable=trainable)
        self.backbone, self.feature_maps, self._config = body, maps, config

    @classmethod
    def check(cls, *, backbone: str, image_size, channels: int, num_classes: int) -> tuple[int, int]:
        """Checks the arguments without building the model; returns height and width of the images, pixels.

        Raises:
            InputError: a name does not exist, or a number is out of range.
        """
        smallest = entry(BACKBONES, backbone, "backbone").min_size
        if channels not in (1, 3):
            raise InputError(f"channels is {channels!r}; choose 1 (gray) or 3 (RGB)")
        if num_classes < 1:
            raise InputError(f"num_classes is {num_classes!r}; 1 or more is needed")
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if min(height, width) < smallest:
            raise InputError(
                f"image_size {height} x {width} is too small for {backbone}; give {smallest} or more, "
                "or choose the backbone resnet18_small"
            )
        return int(height), int(width)

    def get_config(self):
        return {"name": self.name, "trainable": self.trainable, **self._config}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)


@contextlib.contextmanager
def dtype_policy_scope(policy):
    """Sets the global dtype policy of Keras inside the block; keras-hub's DenseNet takes the policy in no other way."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
