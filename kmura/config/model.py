"""Configuration of the network."""

import dataclasses
from typing import Literal

from kmura.config.keys import check_values, key
from kmura.config.names import BACKBONE_NAMES, FUSION_NAMES, HEAD_NAMES, SWIN_NAMES

_WEIGHTS = "imagenet, none, a keras-hub preset handle, or the path of a preset folder or weights file"


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network."""

    architecture: Literal["classifier", "hybrid"] = key(
        "classifier",
        "'classifier' has one convolutional backbone, 'hybrid' a convolutional backbone and a Swin transformer in "
        "parallel.",
    )
    backbone: str = key("densenet121", "Convolutional backbone.", names=BACKBONE_NAMES)
    weights: str = key("imagenet", "Initial weights of the backbone; 'none' is random.", allowed=_WEIGHTS)
    swin: str = key("swin_base", "Swin transformer of the hybrid.", names=SWIN_NAMES)
    swin_weights: str = key(
        "imagenet", "Initial weights of the hybrid's transformer; 'none' is random.", allowed=_WEIGHTS
    )
    fusion: str = key("concat", "How the hybrid combines the features of its two branches.", names=FUSION_NAMES)
    multi_scale: bool = key(False, "Fuse two levels of feature maps of the hybrid instead of the last level only.")
    fusion_width: int = key(
        256, "Channels of the hybrid's fusion 'gated' or 'attention'.", allowed="a positive multiple of 4"
    )
    head: str = key("linear", "Head of the classifier, from the last feature map to the logits.", names=HEAD_NAMES)
    head_widths: tuple[int, ...] = key((), "Units of the head's hidden layers, first to last.", at_least=1)
    head_dropout: tuple[float, ...] = key(
        (),
        "Dropout rates of the outputs of the head's hidden layers in training: one per layer, or an empty list.",
        within=(0, 0.99),
    )
    head_l1: float = key(0.0, "L1 penalty of the kernels of the head's hidden layers.", within=(0, 1))
    head_l2: float = key(0.0, "L2 penalty of the kernels of the head's hidden layers.", within=(0, 1))
    head_batch_norm: bool = key(False, "Use batch normalisation in the head's hidden layers.")
    map_dropout: float = key(
        0.0, "Dropout rate of the last feature map in training, before it is pooled.", within=(0, 0.99)
    )
    attention_maps: int = key(3, "Number of attention maps of the heads with attention.", at_least=1)
    dropout: float = key(0.0, "Dropout rate of the pooled features in training.", within=(0, 0.99))
    batch_norm_momentum: float = key(
        0.9,
        "Share of the old moving statistics that is kept at each step (Keras' convention; torch's momentum 0.1 is 0.9 "
        "here).",
        within=(0, 0.9999),
    )
    fused_batch_norm: bool = key(True, "Use TensorFlow's fused kernel for batch normalisation.")
    torch_padding: bool = key(
        False, "Pad in the backbone as torch does; weights that were ported from torch require it."
    )

    def __post_init__(self):
        check_values(self, "model")

    @property
    def words(self) -> str:
        """The network and its initial weights, for people."""
        text = f"{self.backbone}, weights {self.weights}"
        if self.architecture == "hybrid":
            text += f", beside {self.swin}, weights {self.swin_weights}, fusion {self.fusion}"
            text += f" of {self.fusion_width} channels" if self.fusion_width != ModelConfig.fusion_width else ""
            text += " on two levels" if self.multi_scale else ""
        return text
