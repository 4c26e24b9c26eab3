"""Backbones by name: how each is built, its ImageNet weights, what it expects and where it is tapped.

keras-hub is imported when a backbone is built, not before: it takes over a second. To add a backbone, add an
entry to `BACKBONES`.
"""

import dataclasses
from collections.abc import Callable

import keras

# Of ImageNet's images in RGB, on the scale 0..255; what torchvision, timm and keras-hub's presets were
# trained with.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
# Maps 0..255 to -1..1, as MedMNIST's benchmark does.
CENTER_MEAN = (127.5, 127.5, 127.5)
CENTER_STD = (127.5, 127.5, 127.5)


@dataclasses.dataclass(frozen=True)
class BackboneEntry:
    """One way to turn normalised images [B, H, W, 3] into feature maps.

    Attributes:
        build: a backbone with random weights for images of any size, a functional model whose output is P5.
        imagenet: keras-hub preset of its ImageNet weights, or None.
        mean: of each channel, on the scale 0..255, taken off the image first.
        std: of each channel, on the scale 0..255, by which the image is divided then.
        taps: name of a feature map -> the layer whose output it is. P5 is what the head sees; P4 and P3 are
            twice and four times as fine. All are outputs of a ReLU through which everything below passes:
            non-negative, and with the whole gradient.
        last_block: beginnings of the names of the layers of the last block and of what comes after it.
        min_size: smallest image side, pixels, that leaves something to see at P5.
    """

    build: Callable[[], keras.Model]
    imagenet: str | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    taps: dict[str, str]
    last_block: tuple[str, ...]
    min_size: int


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


# keras-hub's own pyramid of a DenseNet is tapped before the batch normalisation and ReLU that end each stack.
DENSENET_LAST = ("stack4_", "bn")
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
    ),
    "densenet169": BackboneEntry(
        build=lambda: _densenet([6, 12, 32, 32], growth_rate=32),
        imagenet="densenet_169_imagenet",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        taps=DENSENET_TAPS,
        last_block=DENSENET_LAST,
        min_size=32,
    ),
    "resnet50": BackboneEntry(
        build=_resnet50,
        imagenet="resnet_50_imagenet",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        taps={"P3": "stack1_block3_out", "P4": "stack2_block5_out", "P5": "stack3_block2_out"},
        last_block=("stack3_",),
        min_size=32,
    ),
    # For images of 28 pixels: P5 is an eighth of the image's side, not a thirty-second.
    "resnet18_small": BackboneEntry(
        build=_resnet18_small,
        imagenet=None,
        mean=CENTER_MEAN,
        std=CENTER_STD,
        taps={"P3": "stack1_block1_out", "P4": "stack2_block1_out", "P5": "stack3_block1_out"},
        last_block=("stack3_",),
        min_size=8,
    ),
    # For tests and the demo: 127,024 parameters, learns from scratch on small images.
    "densenet_mini": BackboneEntry(
        build=lambda: _densenet([2, 2, 2, 2], growth_rate=16),
        imagenet=None,
        mean=CENTER_MEAN,
        std=CENTER_STD,
        taps=DENSENET_TAPS,
        last_block=DENSENET_LAST,
        min_size=32,
    ),
}
