"""Padding as torch does it, for weights that were trained there.

At a stride of 2 TensorFlow's `same` pads more at the right and bottom, torch the same on all sides: the two look at
places one pixel apart. The shapes are equal, so a layer takes the other padding by taking another class.
"""

from collections.abc import Iterator

import keras


@keras.saving.register_keras_serializable("kmura", name="SymmetricConv2D")
class SymmetricConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` of an odd kernel whose input is padded by half the kernel on every side."""

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


@keras.saving.register_keras_serializable("kmura", name="SymmetricMaxPooling2D")
class SymmetricMaxPooling2D(keras.layers.MaxPooling2D):
    """`keras.layers.MaxPooling2D` of an odd window, padded by half the window on every side."""

    def call(self, inputs):
        sides = [(size // 2, size // 2) for size in self.pool_size]
        padded = keras.ops.pad(inputs, [(0, 0), *sides, (0, 0)], constant_values=-float("inf"))
        return keras.ops.max_pool(padded, self.pool_size, self.strides, "valid", self.data_format)


# the names by which weight files address the layers, see kmura.models.batch_norm
SymmetricConv2D.__name__ = keras.layers.Conv2D.__name__
SymmetricMaxPooling2D.__name__ = keras.layers.MaxPooling2D.__name__


def set_torch_padding(model: keras.Model) -> None:
    """Gives all strided `same` convolutions and max poolings of a functional model torch's padding, in place.

    Args:
        model: channels last, not yet compiled or traced.
    """
    for layer in _strided(model):
        other = SymmetricConv2D if isinstance(layer, keras.layers.Conv2D) else SymmetricMaxPooling2D
        object.__setattr__(layer, "__class__", other)


def has_same_padding(model: keras.Model) -> bool:
    """Whether a strided layer of a functional model pads as TensorFlow does."""
    return any(type(layer) not in (SymmetricConv2D, SymmetricMaxPooling2D) for layer in _strided(model))


def _strided(model: keras.Model) -> Iterator[keras.layers.Layer]:
    for layer in model.layers:
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.MaxPooling2D)):
            if layer.padding == "same" and max(layer.strides) > 1:
                yield layer
