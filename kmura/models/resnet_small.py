"""ResNets for small images (He et al. 2016), as used in the benchmark of MedMNIST for 28 pixels."""

import keras
from keras import layers
from keras_hub.models import Backbone

# He et al. 2015, scaled by fan-out, as in the ResNets of torchvision.
KERNEL_INITIALIZER = {"class_name": "VarianceScaling", "config": {"scale": 2.0, "mode": "fan_out"}}
EPSILON = 1e-5


@keras.saving.register_keras_serializable("kmura")
class SmallImageResNet(Backbone):
    """A ResNet of basic blocks whose stem keeps the image size: a 3x3 convolution with stride 1, without pooling.

    ResNetBackbone of keras-hub always starts with stride 2 and pooling, which reduces an image of 28 pixels to 1 x 1 in
    the last stack. Padding is that of torch: one pixel on every side, also with stride 2.
    """

    def __init__(
        self,
        stackwise_num_filters: list[int],
        stackwise_num_blocks: list[int],
        image_shape: tuple = (None, None, 3),
        dtype=None,
        **kwargs,
    ):
        """
        Args:
            stackwise_num_filters: channels of each stack; every stack but the first halves height and width.
            stackwise_num_blocks: residual blocks of each stack.
            image_shape: height, width and channels of the input.
            dtype: policy of the layers.
        """
        image = keras.Input(image_shape, name="image")
        x = _convolution(image, stackwise_num_filters[0], 3, 1, dtype, "stem")
        x = layers.Activation("relu", dtype=dtype, name="stem_relu")(x)
        for stack, (filters, blocks) in enumerate(zip(stackwise_num_filters, stackwise_num_blocks, strict=True)):
            for block in range(blocks):
                stride = 2 if stack > 0 and block == 0 else 1
                x = _basic_block(x, filters, stride, dtype, f"stack{stack}_block{block}")
        super().__init__(inputs=image, outputs=x, dtype=dtype, **kwargs)
        self.stackwise_num_filters = stackwise_num_filters
        self.stackwise_num_blocks = stackwise_num_blocks
        self.image_shape = image_shape

    def get_config(self):
        return super().get_config() | {
            "stackwise_num_filters": self.stackwise_num_filters,
            "stackwise_num_blocks": self.stackwise_num_blocks,
            "image_shape": self.image_shape,
        }


def _basic_block(x, filters: int, stride: int, dtype, name: str):
    """Returns relu(f(x) + x) with two 3x3 convolutions in f; a 1x1 convolution projects x if the shape changes."""
    shortcut = x
    if stride != 1 or x.shape[-1] != filters:
        shortcut = _convolution(x, filters, 1, stride, dtype, f"{name}_0")
    x = _convolution(x, filters, 3, stride, dtype, f"{name}_1")
    x = layers.Activation("relu", dtype=dtype, name=f"{name}_1_relu")(x)
    x = _convolution(x, filters, 3, 1, dtype, f"{name}_2")
    x = layers.Add(dtype=dtype, name=f"{name}_add")([shortcut, x])
    return layers.Activation("relu", dtype=dtype, name=f"{name}_out")(x)


def _convolution(x, filters: int, kernel_size: int, stride: int, dtype, name: str):
    """Applies a convolution without bias, then batch normalisation."""
    padding = "same"
    if stride > 1:  # TensorFlow's "same" would pad an even side only at the right and bottom
        padding = "valid"
        if kernel_size > 1:
            x = layers.ZeroPadding2D(kernel_size // 2, dtype=dtype, name=f"{name}_pad")(x)
    x = layers.Conv2D(
        filters,
        kernel_size,
        strides=stride,
        padding=padding,
        use_bias=False,
        kernel_initializer=keras.initializers.get(KERNEL_INITIALIZER),
        dtype=dtype,
        name=f"{name}_conv",
    )(x)
    return layers.BatchNormalization(epsilon=EPSILON, dtype=dtype, name=f"{name}_bn")(x)
