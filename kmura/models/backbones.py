"""The registry of backbones: constructor, ImageNet weights, normalisation and feature maps of each.

keras-hub is imported only when a backbone is built, because the import takes more than a second. To add a backbone, add
an entry to `BACKBONES`.
"""

import dataclasses
from collections.abc import Callable

import keras

# Mean and standard deviation of ImageNet, RGB on the scale 0..255; the presets of torchvision, timm and keras-hub were
# trained with them.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
# Maps 0..255 to -1..1, as in the benchmark of MedMNIST.
CENTER_MEAN = (127.5, 127.5, 127.5)
CENTER_STD = (127.5, 127.5, 127.5)
# Of the training of EfficientNet-Lite in TensorFlow.
LITE_MEAN = (127.0, 127.0, 127.0)
LITE_STD = (128.0, 128.0, 128.0)


@dataclasses.dataclass(frozen=True)
class BackboneEntry:
    """A backbone that maps normalised images [B, H, W, 3] to feature maps.

    Attributes:
        build: returns the backbone with random weights for images of any size, a functional model with output P5.
        imagenet: its ImageNet weights, a keras-hub preset or a key of `kmura.models.weights.INSTALLED`; or None.
        mean: per channel, on the scale 0..255; subtracted from the image.
        std: per channel, on the scale 0..255; the difference is divided by it.
        taps: name of a feature map -> name of the layer that outputs it. P5 is the input of the head; P4 and P3 have
            two and four times its resolution. Each is the output of a ReLU through which all earlier layers are
            connected to the output, so it is non-negative and receives the full gradient.
        shallow_taps: names of the layers before P3 whose maps have 1/2, 1/4, ... of the resolution of the image; with
            P3, P4 and P5 they are the levels of a U-Net.
        last_block: prefixes of the names of the layers in the last block and after it.
        min_size: smallest image side, pixels, for which P5 is not empty.
        depthwise: whether most convolutions are depthwise, which TensorFlow computes more slowly in bfloat16 than in
            float32 on CPUs.
    """

    build: Callable[[], keras.Model]
    imagenet: str | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    taps: dict[str, str]
    last_block: tuple[str, ...]
    min_size: int
    shallow_taps: tuple[str, ...]
    depthwise: bool = False


def _densenet(repeats: list[int], growth_rate: int) -> keras.Model:
    from keras_hub.models import DenseNetBackbone

    return DenseNetBackbone(stackwise_num_repeats=repeats, growth_rate=growth_rate, image_shape=(None, None, 3))


def _resnet50() -> keras.Model:
    from keras_hub.models import ResNetBackbone

    return ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=[3, 4, 6, 3],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="bottleneck_block",
        image_shape=(None, None, 3),
    )


def _resnet18_small() -> keras.Model:
    from kmura.models.resnet_small import SmallImageResNet

    return SmallImageResNet(stackwise_num_filters=[64, 128, 256, 512], stackwise_num_blocks=[2, 2, 2, 2])


def _efficientnet_lite0() -> keras.Model:
    from kmura.models.efficientnet_lite import efficientnet_lite0

    return efficientnet_lite0()


# The pyramid outputs of keras-hub's DenseNet are not used: they precede the batch normalisation and ReLU of each stack.
DENSENET_LAST = ("stack4_", "bn")
DENSENET_SHALLOW = ("conv1_relu", "transition1_relu")
DENSENET_TAPS = {"P3": "transition2_relu", "P4": "transition3_relu", "P5": "relu"}

BACKBONES: dict[str, BackboneEntry] = {
    "densenet121": BackboneEntry(
        build=lambda: _densenet([6, 12, 24, 16], growth_rate=32),
        imagenet="densenet_121_imagenet",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        taps=DENSENET_TAPS,
        last_block=DENSENET_LAST,
        min_size=32,
        shallow_taps=DENSENET_SHALLOW,
    ),
    "densenet169": BackboneEntry(
        build=lambda: _densenet([6, 12, 32, 32], growth_rate=32),
        imagenet="densenet_169_imagenet",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        taps=DENSENET_TAPS,
        last_block=DENSENET_LAST,
        min_size=32,
        shallow_taps=DENSENET_SHALLOW,
    ),
    "resnet50": BackboneEntry(
        build=_resnet50,
        imagenet="resnet_50_imagenet",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        taps={"P3": "stack1_block3_out", "P4": "stack2_block5_out", "P5": "stack3_block2_out"},
        last_block=("stack3_",),
        min_size=32,
        shallow_taps=("conv1_relu", "stack0_block2_out"),
    ),
    # P3 and P4 are the expanded maps of the blocks that halve the resolution, since those have no shortcut.
    "efficientnet_lite0": BackboneEntry(
        build=_efficientnet_lite0,
        imagenet="efficientnet_lite0_imagenet",
        mean=LITE_MEAN,
        std=LITE_STD,
        taps={"P3": "block4a_expand_activation", "P4": "block6a_expand_activation", "P5": "top_activation"},
        last_block=("block7", "top_"),
        min_size=32,
        shallow_taps=("block2a_expand_activation", "block3a_expand_activation"),
        depthwise=True,
    ),
    # For images of 28 pixels: the stride of P5 is 8, not 32.
    "resnet18_small": BackboneEntry(
        build=_resnet18_small,
        imagenet=None,
        mean=CENTER_MEAN,
        std=CENTER_STD,
        taps={"P3": "stack1_block1_out", "P4": "stack2_block1_out", "P5": "stack3_block1_out"},
        last_block=("stack3_",),
        min_size=8,
        shallow_taps=(),
    ),
    # For tests and the demo: 127,024 parameters, trains from scratch on small images.
    "densenet_mini": BackboneEntry(
        build=lambda: _densenet([2, 2, 2, 2], growth_rate=16),
        imagenet=None,
        mean=CENTER_MEAN,
        std=CENTER_STD,
        taps=DENSENET_TAPS,
        last_block=DENSENET_LAST,
        min_size=32,
        shallow_taps=DENSENET_SHALLOW,
    ),
}
