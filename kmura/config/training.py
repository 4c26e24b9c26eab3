"""The dataclasses of the configuration of training; each refuses values out of range."""

import dataclasses
import re
from typing import Literal

from kmura.config.ranges import at_least, between, within
from kmura.errors import InputError


@dataclasses.dataclass(frozen=True)
class MixConfig:
    """MixUp and CutMix of training batches.

    Attributes:
        mixup_alpha: a of lambda ~ Beta(a, a) for MixUp; 0 leaves it out.
        cutmix_alpha: the same for CutMix.
        aug_p: probability that a batch is mixed, by one of the two.
        until_epoch: the last epoch that mixes, counted from 1; 0 for none.
    """

    mixup_alpha: float = 0.2
    cutmix_alpha: float = 0.5
    aug_p: float = 0.5
    until_epoch: int = 0

    def __post_init__(self):
        within("mix.mixup_alpha", self.mixup_alpha, 0, 100)
        within("mix.cutmix_alpha", self.cutmix_alpha, 0, 100)
        within("mix.aug_p", self.aug_p, 0, 1)
        at_least("mix.until_epoch", self.until_epoch, 0)


@dataclasses.dataclass(frozen=True)
class CamConfig:
    """CAM-erasing.

    Attributes:
        from_epoch: the first epoch that erases, counted from 1; None never does.
        alpha_cam: share of the erased batch in the loss, 0 to 1.
        erase_q: of each image's positive map the top 1 - q is erased; above 0 and below 1.
        erase_every: steps from one erasing step to the next, 1 or more.
        tap: the feature map whose Grad-CAM++ is erased and explained: `P5` (last block, coarsest), `P4` or `P3`; where
            it is empty, the one before stands in. Of a hybrid also `S4`, the transformer's last.
        erase: of which images: `all`, or of two classes the `positive` or `negative` ones alone.
    """

    from_epoch: int | None = None
    alpha_cam: float = 0.5
    erase_q: float = 0.8
    erase_every: int = 8
    tap: Literal["P5", "P4", "P3", "S4"] = "P5"
    erase: Literal["all", "positive", "negative"] = "all"

    def __post_init__(self):
        at_least("cam.from_epoch", self.from_epoch, 1)
        within("cam.alpha_cam", self.alpha_cam, 0, 1)
        between("cam.erase_q", self.erase_q, 0, 1)
        at_least("cam.erase_every", self.erase_every, 1)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Training.

    Attributes:
        epochs: passes over the training split.
        batch_size: images a step; the last, smaller batch of an epoch is trained on too.
        learning_rate: of Adam; with `schedule = "cosine"` where the decay starts.
        schedule: `constant`, or `cosine` (to zero at the last step).
        slow_from_epoch: the epoch, counted from 1, from which the learning rate is `slow_factor` of what it was; None
            for never.
        slow_factor: above 0, at most 1.
        unfreeze: the part of the convolutional backbone that learns: `all`, `none`, `last_block` or `last_N_conv`
            (the last N convolutions and what follows).
        frozen_until_epoch: through this epoch, counted from 1, nothing of that backbone learns; None for never.
        warmup_epochs: epochs over which the learning rate first rises from zero in a straight line.
        weight_decay: L2 penalty, added to the gradient as in torch's Adam (not decoupled).
        balance: weigh the classes of the loss by how rare they are in the training split: the positive one by
            negatives / positives, of several classes each by images / (classes x its images). Balanced sampling takes
            its place.
        sampling: `natural` draws every image once an epoch, `balanced` the classes equally often.
        loss: `cross_entropy` or `focal` (Lin et al. 2017).
        focal_gamma: how much less well-classified images count; 0 is cross-entropy.
        focal_factor: plain factor of the whole focal loss.
        focal_alpha: share of the positive class in the weights of the focal loss, 0 to 1 (the negative one has the
            rest), instead of what `balance` gives; None leaves it to that. Not of `multiclass`.
        label_smoothing: 0 leaves the labels at 0 and 1.
        plateau_patience: epochs without a smaller `val_loss_img` after which the learning rate is multiplied by
            `plateau_factor`, though not below `plateau_min_rate` (Keras' ReduceLROnPlateau); None for never.
        stop_patience: epochs without a smaller `val_loss_img` after which training ends (Keras' EarlyStopping); None
            for never.
        select_on: the split whose scores choose the best epoch (`val`; `test` is the literature's optimistic way).
        monitor: the score that chooses it, a column of `history.csv`; larger is better, but for `val_loss_img`. Of
            several classes AUC is the mean over the classes against the rest, F1 weighted by their sizes.
        precision: Keras dtype policy.
        seed: of weights, order and augmentation.
        deterministic: only operations that give the same bits every time (slower on some machines).
    """

    epochs: int = 5
    batch_size: int = 16
    learning_rate: float = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    slow_from_epoch: int | None = None
    slow_factor: float = 0.1
    unfreeze: str = "all"
    frozen_until_epoch: int | None = None
    warmup_epochs: float = 0.0
    weight_decay: float = 0.0
    balance: bool = True
    sampling: Literal["natural", "balanced"] = "natural"
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    focal_gamma: float = 2.0
    focal_factor: float = 1.0
    focal_alpha: float | None = None
    label_smoothing: float = 0.0
    plateau_patience: int | None = None
    plateau_factor: float = 0.2
    plateau_min_rate: float = 1e-6
    stop_patience: int | None = None
    select_on: Literal["val", "test"] = "val"
    monitor: Literal["val_auc_img", "val_auc_study", "val_acc_img", "val_acc_study", "val_f1_study", "val_loss_img"] = (
        "val_auc_study"
    )
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    seed: int = 0
    deterministic: bool = False

    def __post_init__(self):
        at_least("train.epochs", self.epochs, 1)
        at_least("train.batch_size", self.batch_size, 1)
        within("train.learning_rate", self.learning_rate, 1e-12, 100)
        at_least("train.slow_from_epoch", self.slow_from_epoch, 1)
        if self.slow_from_epoch is not None and (self.schedule != "constant" or self.warmup_epochs):
            raise InputError(
                "train.slow_from_epoch goes with schedule constant and warmup_epochs 0; change one of them"
            )
        if not 0 < self.slow_factor <= 1:
            raise InputError(f"train.slow_factor is {self.slow_factor}; allowed is above 0, at most 1")
        if self.unfreeze not in ("all", "none", "last_block") and not re.fullmatch(
            r"last_[1-9]\d*_conv", self.unfreeze
        ):
            raise InputError(
                f"train.unfreeze is {self.unfreeze!r}; choose all, none, last_block or last_N_conv (as last_5_conv)"
            )
        at_least("train.frozen_until_epoch", self.frozen_until_epoch, 1)
        if self.frozen_until_epoch is not None and self.unfreeze == "none":
            raise InputError("train.frozen_until_epoch has no meaning where train.unfreeze is none; leave it out")
        within("train.warmup_epochs", self.warmup_epochs, 0, self.epochs)
        within("train.weight_decay", self.weight_decay, 0, 1)
        within("train.label_smoothing", self.label_smoothing, 0, 0.9)
        within("train.focal_gamma", self.focal_gamma, 0, 20)
        within("train.focal_factor", self.focal_factor, 1e-6, 1e6)
        within("train.focal_alpha", 0 if self.focal_alpha is None else self.focal_alpha, 0, 1)
        if self.stop_patience is not None and self.frozen_until_epoch is not None:
            raise InputError("train.stop_patience could end training before train.frozen_until_epoch; set one of them")
        if self.plateau_patience is not None and self.frozen_until_epoch is not None:
            raise InputError("train.plateau_patience goes without train.frozen_until_epoch; set one of them")
        if self.focal_alpha is not None and self.loss != "focal":
            raise InputError("train.focal_alpha goes with train.loss=focal; leave it out")
        for name in ("plateau_patience", "stop_patience"):
            at_least(f"train.{name}", 1 if getattr(self, name) is None else getattr(self, name), 1)
        if not 0 < self.plateau_factor < 1:
            raise InputError(f"train.plateau_factor is {self.plateau_factor}; allowed is above 0 and below 1")
        within("train.plateau_min_rate", self.plateau_min_rate, 0, 100)
        if self.plateau_patience and (
            self.schedule != "constant" or self.warmup_epochs or self.slow_from_epoch is not None
        ):
            raise InputError(
                "train.plateau_patience goes with schedule constant, without warmup_epochs and slow_from_epoch; "
                "change one of them"
            )
        within("train.seed", self.seed, 0, 2**31 - 1)


@dataclasses.dataclass(frozen=True)
class TuneConfig:
    """The search of the phase `tune`: how, and between which smallest and largest values.

    A range whose ends are equal fixes the value.

    Attributes:
        tuner: `bayesian` (Gaussian process), `random` or `hyperband` (it decides itself how many trials and epochs,
            at most train.epochs each).
        trials: settings to try.
        startup_trials: trials before the Gaussian process chooses and before trials are pruned.
        prune: stop a trial after an epoch that is worse than the median of the finished trials' at that epoch.
        learning_rate, weight_decay: of train; searched on a logarithmic scale.
        mixup_alpha, cutmix_alpha, aug_p: of mix.
        erase_q, alpha_cam, erase_every: of cam.
        slow_factor: of train, by powers of ten; searched for a hybrid, which is searched for no value of mix and cam.
    """

    tuner: Literal["bayesian", "random", "hyperband"] = "bayesian"
    trials: int = 25
    startup_trials: int = 8
    prune: bool = True
    learning_rate: tuple[float, float] = (1e-5, 3e-4)
    weight_decay: tuple[float, float] = (1e-7, 1e-3)
    mixup_alpha: tuple[float, float] = (0.0, 0.6)
    cutmix_alpha: tuple[float, float] = (0.0, 1.5)
    aug_p: tuple[float, float] = (0.3, 0.8)
    erase_q: tuple[float, float] = (0.7, 0.9)
    alpha_cam: tuple[float, float] = (0.3, 0.7)
    erase_every: tuple[int, int] = (6, 12)
    slow_factor: tuple[float, float] = (0.01, 1.0)

    def __post_init__(self):
        at_least("tune.trials", self.trials, 1)
        at_least("tune.startup_trials", self.startup_trials, 1)
        if self.tuner == "hyperband" and self.trials != TuneConfig.trials:
            raise InputError("tune.trials goes with tuner bayesian or random; hyperband decides itself how many")
        lowest = {"learning_rate": 1e-12, "erase_q": 0.01, "erase_every": 1, "slow_factor": 1e-6}
        highest = {"mixup_alpha": 100, "cutmix_alpha": 100, "erase_q": 0.99, "erase_every": 10**6}
        for field in dataclasses.fields(self)[4:]:
            low, high = getattr(self, field.name)
            least, most = lowest.get(field.name, 0), highest.get(field.name, 1)
            if not least <= low <= high <= most:
                raise InputError(f"tune.{field.name} is [{low}, {high}]; give {least} <= low <= high <= {most}")
        if self.weight_decay[0] <= 0 < self.weight_decay[1]:
            raise InputError("tune.weight_decay begins at 0 but is searched by powers of ten; give 0 < low, as 1e-7")
