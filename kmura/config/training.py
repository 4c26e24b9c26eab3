"""Configuration of training: the loop, mixing and CAM-erasing."""

import dataclasses
import re
from typing import Literal

from kmura.config.keys import check_values, key
from kmura.errors import InputError


@dataclasses.dataclass(frozen=True)
class MixConfig:
    """MixUp and CutMix of training batches."""

    mixup_alpha: float = key(0.2, "Parameter a of lambda ~ Beta(a, a) of MixUp; 0 disables MixUp.", within=(0, 100))
    cutmix_alpha: float = key(0.5, "Parameter a of lambda ~ Beta(a, a) of CutMix; 0 disables CutMix.", within=(0, 100))
    aug_p: float = key(0.5, "Probability that a batch is mixed.", within=(0, 1))
    mode: Literal["auto", "mixup", "cutmix"] = key(
        "auto", "Method that mixes a batch: 'auto' draws one of the two for every batch with equal chances."
    )
    per: Literal["image", "batch"] = key(
        "image", "Whether lambda and the box of CutMix are drawn for each image, or once per batch."
    )
    if_zero: Literal["other", "unmixed"] = key(
        "other",
        "What mode 'auto' does where the alpha of one method is 0: it always takes the 'other' method, or leaves the "
        "batches 'unmixed' for which it draws that method.",
    )
    until_epoch: int = key(0, "Last epoch with mixing, counted from 1; 0 disables mixing.", at_least=0)

    def __post_init__(self):
        check_values(self, "mix")


@dataclasses.dataclass(frozen=True)
class CamConfig:
    """CAM-erasing: a second loss on images without the region that a class activation map marks."""

    from_epoch: int | None = key(None, "First epoch with CAM-erasing, counted from 1; none disables it.", at_least=1)
    alpha_cam: float = key(0.5, "Share of the loss of the erased batch in the total loss.", within=(0, 1))
    erase_q: float = key(0.8, "Quantile q: the top 1 - q of each image's map is erased.", between=(0, 1))
    erase_of: Literal["positive", "all"] = key(
        "positive",
        "Pixels of the map that erase_q refers to: the 'positive' ones (by rank, an exact share), or 'all' (erases the "
        "pixels above the quantile).",
    )
    erase_fill: Literal["black", "mean"] = key(
        "black", "Content of the erased region: 'black', or the 'mean' color of the backbone's normalisation."
    )
    erase_images: int | Literal["all"] = key(
        "all",
        "Images of a batch that are erased: 'all', or the first so many of the shuffled batch.",
        at_least=1,
    )
    erase_every: int = key(8, "Steps from one erasing step to the next.", at_least=1)
    method: Literal["grad_cam", "grad_cam_pp", "grad_cam_pp_summed", "layer_cam", "cam"] = key(
        "grad_cam_pp",
        "Class activation map: Grad-CAM, Grad-CAM++, Grad-CAM++ with the third power summed over the map (as the older "
        "system had it), LayerCAM, or CAM.",
    )
    tap: Literal["P5", "P4", "P3", "S4"] = key(
        "P5",
        "Feature map whose class activation map is erased and explained: 'P5' (last block, coarsest), 'P4', 'P3', or "
        "'S4' (last map of a hybrid's transformer). If the map of P5 or P4 is empty, the next finer one is used.",
    )
    erase: Literal["all", "positive", "negative"] = key(
        "all", "Images that are erased: 'all', or only the 'positive' or the 'negative' ones of a binary task."
    )

    def __post_init__(self):
        check_values(self, "cam")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop: epochs, optimizer, loss, and the choice of the best epoch."""

    epochs: int = key(5, "Passes over the training split.", at_least=1)
    batch_size: int = key(16, "Images per step; the last batch of an epoch may be smaller.", at_least=1)
    learning_rate: float = key(
        1e-4, "Initial learning rate of Adam; the decay of schedule 'cosine' starts here.", within=(1e-12, 100)
    )
    schedule: Literal["constant", "cosine"] = key(
        "constant", "Schedule of the learning rate: 'constant', or 'cosine' (decays to zero at the last step)."
    )
    slow_from_epoch: int | None = key(
        None,
        "First epoch, counted from 1, whose learning rate is multiplied by slow_factor; none for no such epoch.",
        at_least=1,
    )
    slow_factor: float = key(0.1, "Factor of the learning rate from slow_from_epoch on.", above=(0, 1))
    unfreeze: str = key(
        "all",
        "Trainable part of the convolutional backbone; 'last_N_conv' is the last N convolutions and all layers after "
        "them, 'last_N_conv_only' these convolutions alone.",
        allowed="all, none, last_block, last_N_conv (such as last_5_conv), last_N_conv_only",
    )
    frozen_until_epoch: int | None = key(
        None,
        "Last epoch, counted from 1, in which the whole convolutional backbone is frozen; none for no such epoch.",
        at_least=1,
    )
    warmup_epochs: float = key(
        0.0, "Epochs over which the learning rate rises linearly from zero at the start.", allowed="0 to train.epochs"
    )
    weight_decay: float = key(
        0.0,
        "L2 penalty that is added to the gradient, as in torch's Adam (coupled, unlike AdamW).",
        within=(0, 1),
    )
    balance: bool = key(
        True,
        "Weight the classes of the loss by their rarity in the training split: the positive class by negatives / "
        "positives; of several classes, each by images / (classes x images of the class). Ignored if sampling is "
        "'balanced'.",
    )
    sampling: Literal["natural", "balanced"] = key(
        "natural",
        "How images are drawn: 'natural' draws each image once per epoch, 'balanced' draws all classes equally often.",
    )
    loss: Literal["cross_entropy", "focal"] = key(
        "cross_entropy", "Loss: cross-entropy, or focal loss (Lin et al. 2017)."
    )
    focal_gamma: float = key(
        2.0,
        "Exponent of the focal loss: larger values reduce the weight of well-classified images, 0 is cross-entropy.",
        within=(0, 20),
    )
    focal_factor: float = key(1.0, "Constant factor of the focal loss.", within=(1e-6, 1e6))
    focal_alpha: float | None = key(
        None,
        "Weight of the positive class in the focal loss (the negative class has 1 - focal_alpha); replaces the weights "
        "of balance, none keeps them. Not for multiclass models.",
        within=(0, 1),
    )
    label_smoothing: float = key(
        0.0, "Label smoothing e: labels y become y (1 - e) + e / number of classes.", within=(0, 0.9)
    )
    plateau_patience: int | None = key(
        None,
        "Epochs without a smaller val_loss_img after which the learning rate is multiplied by plateau_factor (Keras' "
        "ReduceLROnPlateau); none disables it.",
        at_least=1,
    )
    plateau_factor: float = key(0.2, "Factor of the learning rate on a plateau.", between=(0, 1))
    plateau_min_rate: float = key(1e-6, "Smallest learning rate that plateau_patience leads to.", within=(0, 100))
    stop_patience: int | None = key(
        None,
        "Epochs without a smaller val_loss_img after which training ends (Keras' EarlyStopping); none disables it.",
        at_least=1,
    )
    select_on: Literal["val", "test"] = key(
        "val",
        "Split whose scores select the best epoch. 'test' makes the scores on test optimistic; parts of the literature "
        "do so.",
    )
    monitor: Literal[
        "val_auc_img", "val_auc_study", "val_acc_img", "val_acc_study", "val_f1_img", "val_f1_study", "val_loss_img"
    ] = key(
        "val_auc_study",
        "Score that selects the best epoch, a column of history.csv; the largest is best, of val_loss_img the "
        "smallest. With several classes, AUC is the mean over the classes (each against the rest) and F1 is "
        "weighted by class size.",
    )
    precision: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = key(
        "float32",
        "Keras dtype policy; 'auto' is mixed_bfloat16 where the processor or GPU has bfloat16 instructions, else "
        "float32 (on a processor also for efficientnet_lite0, whose convolutions bfloat16 slows down).",
    )
    seed: int = key(
        0, "Seed of the initial weights, the order of the images and the augmentation.", within=(0, 2**31 - 1)
    )
    deterministic: bool = key(
        False, "Use only operations that give the same bits in every run; slower on some machines."
    )

    def __post_init__(self):
        check_values(self, "train")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise InputError(f"train.warmup_epochs is {self.warmup_epochs}; allowed is 0 to {self.epochs}")
        if self.unfreeze not in ("all", "none", "last_block") and not re.fullmatch(
            r"last_[1-9]\d*_conv(_only)?", self.unfreeze
        ):
            raise InputError(
                f"train.unfreeze is {self.unfreeze!r}; choose all, none, last_block, last_N_conv (as last_5_conv) or "
                "last_N_conv_only"
            )
        self._check_rates()
        if self.frozen_until_epoch is not None and self.unfreeze == "none":
            raise InputError("train.frozen_until_epoch has no effect if train.unfreeze is none; leave it out")
        if self.stop_patience is not None and self.frozen_until_epoch is not None:
            raise InputError("train.stop_patience could end training before train.frozen_until_epoch; set one of them")
        if self.focal_alpha is not None and self.loss != "focal":
            raise InputError("train.focal_alpha requires train.loss=focal; leave it out")

    def _check_rates(self) -> None:
        """Raises an InputError if more than one key would set the learning rate."""
        scheduled = self.schedule != "constant" or self.warmup_epochs
        if self.plateau_patience is not None and self.frozen_until_epoch is not None:
            raise InputError("train.plateau_patience cannot be combined with train.frozen_until_epoch; set one of them")
        if self.plateau_patience is not None and (scheduled or self.slow_from_epoch is not None):
            raise InputError(
                "train.plateau_patience requires schedule constant, without warmup_epochs and slow_from_epoch; "
                "change one of them"
            )
