"""Layers with the padding of torch, for weights that were trained in torch.

With stride 2, `same` of TensorFlow pads more at the right and bottom, torch pads equally on all sides, so they sample
positions one pixel apart. The shapes are equal, so replacing the class of a layer is enough to change its padding.
"""

from collections.abc import Iterator

import keras


@keras.saving.register_keras_serializable("kmura", name="SymmetricConv2D")
class SymmetricConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` with an odd kernel whose input is padded by half the kernel on every side."""

    def call(self, inputs):
        sides = [(size // 2, size // 2) for size in self.kernel_size]
        outputs = keras.ops.conv(
            keras.ops.pad(inputs, [(0, 0), *sides, (0, 0)]),
            self.kernel,
            strides=list(self.strides),
            padding="valid",
            data_format=self.data_format,
        )
        return outputs if self.bias is None else outputs + self.bias


@keras.saving.register_keras_serializable("kmura", name="SymmetricDepthwiseConv2D")
class SymmetricDepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` with an odd kernel whose input is padded by half the kernel on every side."""

    def call(self, inputs):
        sides = [(size // 2, size // 2) for size in self.kernel_size]
        outputs = keras.ops.depthwise_conv(
            keras.ops.pad(inputs, [(0, 0), *sides, (0, 0)]),
            self.kernel,
            strides=tuple(self.strides),
            padding="valid",
            data_format=self.data_format,
        )
        return outputs if self.bias is None else outputs + self.bias


@keras.saving.register_keras_serializable("kmura", name="SymmetricMaxPooling2D")
class SymmetricMaxPooling2D(keras.layers.MaxPooling2D):
    """`keras.layers.MaxPooling2D` with an odd window whose input is padded by half the window on every side."""

    def call(self, inputs):
        sides = [(size // 2, size // 2) for size in self.pool_size]
        padded = keras.ops.pad(inputs, [(0, 0), *sides, (0, 0)], constant_values=-float("inf"))
        return keras.ops.max_pool(padded, self.pool_size, self.strides, "valid", self.data_format)


# weight files address layers by the names of their classes, see kmura.models.batch_norm
SymmetricConv2D.__name__ = keras.layers.Conv2D.__name__
SymmetricDepthwiseConv2D.__name__ = keras.layers.DepthwiseConv2D.__name__
SymmetricMaxPooling2D.__name__ = keras.layers.MaxPooling2D.__name__
# class of Keras -> the class with torch's padding
SYMMETRIC = {
    keras.layers.Conv2D: SymmetricConv2D,
    keras.layers.DepthwiseConv2D: SymmetricDepthwiseConv2D,
    keras.layers.MaxPooling2D: SymmetricMaxPooling2D,
}


def set_torch_padding(model: keras.Model) -> None:
    """Changes the strided `same` convolutions (also depthwise) and max poolings to torch's padding, in place.

    Args:
        model: a functional, channels-last model that is not compiled or traced yet.
    """
    for layer in _strided(model):
        object.__setattr__(layer, "__class__", next(new for old, new in SYMMETRIC.items() if isinstance(layer, old)))


def has_same_padding(model: keras.Model) -> bool:
    """Returns whether any strided layer of a functional model pads as TensorFlow does."""
    return any(type(layer) not in SYMMETRIC.values() for layer in _strided(model))


def _strided(model: keras.Model) -> Iterator[keras.layers.Layer]:
    for layer in model.layers:
        if isinstance(layer, tuple(SYMMETRIC)):
            if layer.padding == "same" and max(layer.strides) > 1:
                yield layer
