"""Configuration of pretraining: views, encoder, method and training loop."""

import dataclasses
from typing import Literal

from kmura.config.keys import Range, check_values, key
from kmura.config.names import BACKBONE_NAMES
from kmura.errors import InputError

# method -> units of the layers of its projection head, and whether the last one has batch normalisation, too
PROJECTORS = {"vicreg": ((2048, 2048, 2048), False), "simclr": ((512, 128), True)}
RATE_IMAGES = 256  # images of a step to which `train.base_rate` refers


@dataclasses.dataclass(frozen=True)
class ViewsConfig:
    """Random changes that make two views of an image; each view has its own random numbers."""

    area_scale: tuple[float, float] = key(
        (0.5, 1.0),
        "Smallest and largest share of the image's area that a random crop shows, as torchvision's RandomResizedCrop.",
        pair=Range(0, 1, above=True),
    )
    aspect: tuple[float, float] = key(
        (3 / 4, 4 / 3),
        "Smallest and largest aspect ratio of the crop, relative to that of the image.",
        pair=Range(0, 10, above=True),
    )
    rotation: float = key(10.0, "Largest rotation in either direction, degrees.", within=(0, 180))
    shift: float = key(0.0, "Largest shift along each axis, as a fraction of the image side.", within=(0, 1))
    flip: float = key(0.5, "Probability of a horizontal flip.", within=(0, 1))
    brightness: float = key(
        0.2, "Largest relative change b of brightness; the factor is drawn from 1 - b to 1 + b.", within=(0, 1)
    )
    contrast: float = key(
        0.2,
        "Largest relative change c of contrast about the image's mean; the factor is drawn from 1 - c to 1 + c.",
        within=(0, 1),
    )
    invert: float = key(0.0, "Probability that black and white are exchanged (255 - x).", within=(0, 1))
    blur: float = key(0.0, "Probability of a Gaussian blur.", within=(0, 1))
    blur_sigma: tuple[float, float] = key(
        (0.0005, 0.009),
        "Smallest and largest standard deviation of the blur, as a fraction of the image side.",
        pair=Range(0, 0.1),
    )
    noise: float = key(0.0, "Probability of additive Gaussian noise.", within=(0, 1))
    noise_std: tuple[float, float] = key(
        (0.0, 10.0),
        "Smallest and largest standard deviation of the noise, gray levels of 0 to 255.",
        pair=Range(0, 255),
    )

    def __post_init__(self):
        check_values(self, "views")


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The encoder that is pretrained."""

    backbone: str = key("densenet121", "Convolutional backbone.", names=BACKBONE_NAMES)
    weights: str = key(
        "none",
        "Initial weights of the backbone; 'none' is random.",
        allowed="imagenet, none, a keras-hub preset handle, or the path of a preset folder or weights file",
    )
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
        check_values(self, "encoder")


@dataclasses.dataclass(frozen=True)
class MethodConfig:
    """The method of pretraining: its pairs, projection head and loss."""

    method: Literal["simclr", "vicreg"] = key(
        "vicreg", "Method: SimCLR (Chen et al. 2020) or VICReg (Bardes et al. 2022)."
    )
    positives: Literal["image", "study", "patient"] = key(
        "image",
        "Images of a positive pair: two views of one 'image', or views of two different images of one 'study' or one "
        "'patient' of an area (Azizi et al. 2021); an image without a partner is paired with itself.",
    )
    projector: tuple[int, ...] = key(
        (),
        "Units of the layers of the projection head, first to last; [] takes those of the method: [2048, 2048, 2048] "
        "(vicreg), or [512, 128] with batch normalisation after the last layer, too (simclr).",
        at_least=1,
    )
    projector_norm: bool = key(False, "Use batch normalisation also after the last layer of the projection head.")
    temperature: float = key(0.5, "Temperature of NT-Xent (simclr).", above=(0, 10))
    invariance: float = key(25.0, "Weight of the invariance term (vicreg).", within=(0, 1000))
    variance: float = key(25.0, "Weight of the variance term (vicreg).", within=(0, 1000))
    covariance: float = key(1.0, "Weight of the covariance term (vicreg).", within=(0, 1000))

    def __post_init__(self):
        check_values(self, "method")
        if self.method == "vicreg" and not (self.invariance or self.variance or self.covariance):
            raise InputError("method.invariance, method.variance and method.covariance are all 0; set one of them")

    @property
    def projection(self) -> dict:
        """The arguments `projector` and `projector_norm` of a network: as configured, or those of the method."""
        units, norm = PROJECTORS[self.method]
        return {
            "projector": self.projector or units,
            "projector_norm": self.projector_norm or (norm and not self.projector),
        }


@dataclasses.dataclass(frozen=True)
class PretrainLoopConfig:
    """The training loop: epochs, optimizer and schedule."""

    epochs: int = key(50, "Passes over the training split.", at_least=1)
    batch_size: int = key(
        64,
        "Images per step, each with two views; the images left over at the end of an epoch are not used.",
        at_least=2,
    )
    accumulate: int = key(
        1,
        "Steps whose gradients are averaged for one update. The loss still compares only the images of one step.",
        at_least=1,
    )
    optimizer: Literal["lars", "sgd", "adamw"] = key(
        "lars", "Optimizer: LARS (You et al. 2017), SGD with momentum, or AdamW (Loshchilov & Hutter 2019)."
    )
    base_rate: float = key(
        0.3,
        f"Largest learning rate for {RATE_IMAGES} images per update; it is multiplied by batch_size * accumulate / "
        f"{RATE_IMAGES}.",
        within=(1e-12, 100),
    )
    schedule: Literal["constant", "cosine"] = key(
        "cosine", "Schedule of the learning rate: 'constant', or 'cosine' (decays to zero at the last step)."
    )
    warmup_epochs: float = key(
        10.0, "Epochs over which the learning rate rises linearly from zero at the start.", allowed="0 to train.epochs"
    )
    weight_decay: float = key(
        1e-6,
        "Weight decay of kernels: an L2 penalty in the gradient of LARS, decoupled from it in SGD and AdamW.",
        within=(0, 1),
    )
    momentum: float = key(0.9, "Momentum of LARS and SGD.", within=(0, 0.9999))
    trust: float = key(0.001, "Trust coefficient of LARS.", within=(1e-6, 1))
    select: Literal["last", "val_probe_auc", "val_loss"] = key(
        "last", "Epoch whose encoder is kept: the 'last' one, or the best by the online probe or the loss on val."
    )
    precision: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = key(
        "float32",
        "Keras dtype policy; 'auto' is mixed_bfloat16 where the processor or GPU has bfloat16 instructions, else "
        "float32 (on a processor also for efficientnet_lite0, whose convolutions bfloat16 slows down).",
    )
    seed: int = key(0, "Seed of the initial weights, the order of the images and the views.", within=(0, 2**31 - 1))
    deterministic: bool = key(
        False, "Use only operations that give the same bits in every run; slower on some machines."
    )

    def __post_init__(self):
        check_values(self, "train")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise InputError(f"train.warmup_epochs is {self.warmup_epochs}; allowed is 0 to {self.epochs}")

    @property
    def learning_rate(self) -> float:
        """The largest learning rate of the schedule."""
        return self.base_rate * self.batch_size * self.accumulate / RATE_IMAGES
