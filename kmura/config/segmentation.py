"""Configuration of segmentation: slices of volumes, augmentation, network, loss and training loop."""

import dataclasses
from typing import Literal

from kmura.config.keys import check_values, key
from kmura.config.names import BACKBONE_NAMES
from kmura.config.records import RecordsConfig
from kmura.errors import InputError

PLANES = ("axial", "coronal", "sagittal")
VOLUME_SPLITS = RecordsConfig(val_fraction=0.15, test_fraction=0.2)  # of volumes, which are few


@dataclasses.dataclass(frozen=True)
class SlicesConfig:
    """The slices of the volumes, and which volumes are trained on."""

    plane: Literal["axial", "coronal", "sagittal"] = key("axial", "Anatomical plane of the slices.")
    size: tuple[int, int] = key(
        (0, 0),
        "Rows and columns of a slice, pixels; a volume is cut or padded evenly on both sides. 0 takes the largest of "
        "the volumes.",
        at_least=0,
    )
    slices: int = key(
        1, "Neighbouring slices that are the channels of the input (2.5-D); an odd number.", within=(1, 15)
    )
    sides: Literal["auto", "direct", "coordinate", "merged"] = key(
        "auto",
        "How left and right are distinguished: 'direct' (by the network alone), 'coordinate' (an input channel with "
        "the signed distance to the mid-sagittal plane), 'merged' (the network predicts regions without side, which "
        "the plane assigns afterwards), or 'auto' (merged for sagittal slices of regions with two sides, else direct).",
    )
    empty: float = key(
        1.0,
        "Share of the slices without any region that are used for training, drawn anew in every epoch.",
        within=(0, 1),
    )
    epoch_slices: int = key(
        0,
        "Largest number of slices per epoch, drawn anew from those above in every epoch, so that the time of an epoch "
        "does not grow with the number of volumes; 0 takes all.",
        at_least=0,
    )
    folds: int = key(
        0,
        "Folds of cross-validation over the volumes, which replace the splits of the records; 0 uses the splits, and "
        "the number of volumes leaves one out.",
        at_least=0,
    )
    fold: int = key(0, "Fold whose volumes are held out as `test`, counted from 0; the next fold is `val`.", at_least=0)

    def __post_init__(self):
        check_values(self, "data")
        if self.slices % 2 == 0:
            raise InputError(f"data.slices is {self.slices}; give an odd number, such as {self.slices + 1}")
        if self.folds in (1, 2):
            raise InputError(
                f"data.folds is {self.folds}; give 0 or 3 and more, since one fold is test and another one is val"
            )
        if self.fold and self.fold >= self.folds:
            raise InputError(f"data.fold is {self.fold}; allowed is 0 to {max(0, self.folds - 1)} (data.folds - 1)")
        if min(self.size) == 0 and max(self.size) > 0:
            raise InputError(f"data.size is {list(self.size)}; give two positive numbers, or [0, 0]")


@dataclasses.dataclass(frozen=True)
class VolumeAugmentConfig:
    """Random changes of a volume, of which a slice is then taken; drawn for every slice and epoch."""

    rotation: float = key(10.0, "Largest rotation about each of the three axes, degrees.", within=(0, 180))
    scale: float = key(
        0.1, "Largest relative change s of the size; the factor is drawn from 1 - s to 1 + s.", within=(0, 0.9)
    )
    shift: float = key(8.0, "Largest shift along each axis, mm.", within=(0, 200))
    elastic: float = key(
        3.0, "Standard deviation of the displacement of the control points of a smooth deformation, mm.", within=(0, 50)
    )
    elastic_spacing: float = key(40.0, "Distance of the control points, mm.", within=(5, 500))
    flip: float = key(
        0.5, "Probability of exchanging left and right; the labels of the two sides are exchanged, too.", within=(0, 1)
    )
    gamma: float = key(
        0.2,
        "Largest change g of the exponent; gray values x of 0..1 become x^e, e from 1 / (1 + g) to 1 + g.",
        within=(0, 5),
    )
    contrast: float = key(0.15, "Largest relative change of the gray values.", within=(0, 1))
    brightness: float = key(0.08, "Largest shift of the gray values, as a share of the window.", within=(0, 1))
    noise: float = key(
        0.05, "Largest standard deviation of additive Gaussian noise, as a share of the window.", within=(0, 1)
    )
    blur: float = key(0.7, "Largest standard deviation of a Gaussian blur of the slice, pixels.", within=(0, 5))

    def __post_init__(self):
        check_values(self, "augment")


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """The U-Net."""

    widths: tuple[int, ...] = key(
        (32, 64, 128, 256, 512, 1024),
        "Filters of each level, from the full resolution down; without an encoder.",
        at_least=1,
    )
    norm: Literal["batch", "group"] = key("batch", "Normalisation after each convolution.")
    groups: int = key(8, "Groups of the group normalisation.", at_least=1)
    noise: float = key(
        0.0, "Standard deviation of Gaussian noise on the input in training, as a share of the window.", within=(0, 1)
    )
    dropout: float = key(0.2, "Dropout before the lowest level.", within=(0, 0.95))
    background: bool = key(
        True,
        "Softmax over the regions and the background; False gives independent maps of the regions, without background "
        "(the older way).",
    )
    encoder: str = key(
        "none",
        "Backbone that replaces the contracting path; 'none' is the classic U-Net.",
        names=("none", *BACKBONE_NAMES),
    )
    weights: str = key(
        "none",
        "Initial weights of the encoder; 'none' is random.",
        allowed="imagenet, none, a keras-hub preset handle, or the path of a preset folder or weights file",
    )
    fused_batch_norm: bool = key(True, "Use TensorFlow's fused kernel for batch normalisation.")

    def __post_init__(self):
        check_values(self, "model")


@dataclasses.dataclass(frozen=True)
class SegmentationLossConfig:
    """The loss: a weighted sum of an overlap term and of the cross-entropy."""

    tversky: float = key(1.0, "Weight of the Tversky loss (Salehi et al. 2017).", within=(0, 100))
    alpha: float = key(0.5, "Weight of the false positives in the Tversky index.", within=(0, 1))
    beta: float = key(0.5, "Weight of the false negatives in the Tversky index.", within=(0, 1))
    focal_gamma: float = key(
        1.0,
        "Exponent of the focal Tversky loss, (1 - index)^(1 / gamma) (Abraham & Khan 2019); 1 is not focal.",
        within=(0.1, 10),
    )
    cross_entropy: float = key(1.0, "Weight of the cross-entropy.", within=(0, 100))

    def __post_init__(self):
        check_values(self, "loss")
        if not self.tversky and not self.cross_entropy:
            raise InputError("loss.tversky and loss.cross_entropy are both 0; set one of them")


@dataclasses.dataclass(frozen=True)
class FusionStage:
    """The fusion of the planes."""

    planes: tuple[str, ...] = key(PLANES, "The planes that are fused.", names=PLANES)

    def __post_init__(self):
        check_values(self, "fusion")


@dataclasses.dataclass(frozen=True)
class SegmentationLoopConfig:
    """The training loop: epochs, optimizer and schedule."""

    epochs: int = key(60, "Passes over the slices of the training volumes.", at_least=1)
    batch_size: int = key(4, "Slices per step.", at_least=1)
    learning_rate: float = key(1e-3, "Largest learning rate of Adam.", above=(0, 1))
    schedule: Literal["constant", "cosine"] = key(
        "cosine", "Schedule of the learning rate: 'constant', or 'cosine' (decays to zero at the last step)."
    )
    warmup_epochs: float = key(
        1.0, "Epochs over which the learning rate rises linearly from zero at the start.", allowed="0 to train.epochs"
    )
    weight_decay: float = key(0.0, "Weight decay: the factor of an L2 term in the gradient.", within=(0, 1))
    precision: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = key(
        "float32",
        "Keras dtype policy; 'auto' is mixed_bfloat16 where the processor or GPU has bfloat16 instructions, else "
        "float32 (on a processor also for efficientnet_lite0, whose convolutions bfloat16 slows down).",
    )
    seed: int = key(
        0, "Seed of the initial weights, the order of the slices and the augmentation.", within=(0, 2**31 - 1)
    )
    deterministic: bool = key(
        False, "Use only operations that give the same bits in every run; slower on some machines."
    )

    def __post_init__(self):
        check_values(self, "train")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise InputError(f"train.warmup_epochs is {self.warmup_epochs}; allowed is 0 to {self.epochs}")
