"""The dataclasses of the configuration, one a stage; each refuses values out of range."""

import dataclasses
import re
from typing import Literal

from kmura.errors import InputError


def _at_least(key: str, value: float | None, low: float) -> None:
    if value is not None and value < low:
        raise InputError(f"{key} is {value}; {low} or more is needed")


def _within(key: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:  # also refuses NaN
        raise InputError(f"{key} is {value}; allowed is {low} to {high}")


def _between(key: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low < value < high:
        raise InputError(f"{key} is {value}; allowed is above {low} and below {high}")


@dataclasses.dataclass(frozen=True)
class RecordsConfig:
    """From image files to shards; `manifest.json` keeps it as `options`.

    Attributes:
        encoding: `png` (lossless) or `jpeg` (smaller, several times faster to decode).
        quality: of JPEG, 1 to 100.
        max_side: longer images are reduced to this many pixels on the longest side.
        channels: 1 (gray) or 3 (RGB).
        tune_fraction: share of the training patients that become the `tune` split.
        valid_fraction: share of the patients that become `valid` where the source has no such split.
        seed: of the splits and of the order of the records.
        records_per_shard: images of one shard, the unit of parallel work.
    """

    encoding: Literal["png", "jpeg"] = "png"
    quality: int = 95
    max_side: int = 512
    channels: Literal[1, 3] = 1
    tune_fraction: float = 0.1
    valid_fraction: float = 0.2
    seed: int = 0
    records_per_shard: int = 256

    def __post_init__(self):
        _within("quality", self.quality, 1, 100)
        _at_least("max_side", self.max_side, 16)
        _within("tune_fraction", self.tune_fraction, 0, 0.9)
        _within("valid_fraction", self.valid_fraction, 0, 0.9)
        _within("seed", self.seed, 0, 2**31 - 1)
        _at_least("records_per_shard", self.records_per_shard, 1)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """From shards to images.

    Attributes:
        image_size: rows and columns of the model's input, pixels.
        resize: `squash` (both sides to image_size) or `pad` (keep the aspect, black borders).
        cache: where decoded images wait: `memory`, `disk`, `off`, or `auto` (memory where they fit).
        task: what the model tells: `binary`, `multiclass`, `multilabel`, or `auto`, as the records; see
            `kmura.data.labels.labelling`.
    """

    image_size: int = 224
    resize: Literal["squash", "pad"] = "squash"
    cache: Literal["auto", "memory", "disk", "off"] = "auto"
    task: Literal["auto", "binary", "multiclass", "multilabel"] = "auto"

    def __post_init__(self):
        _at_least("data.image_size", self.image_size, 16)


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training images; the defaults are the published ones (facts of MURA).

    Attributes:
        rotation: largest rotation to either side, degrees.
        area_scale: smallest and largest share of the image's area that a crop shows (above 1: zooms out).
        shift: largest shift, as a fraction of the side.
        shear: largest shear, degrees.
        flip: probability of a horizontal flip.
        brightness: largest change of brightness, as a fraction of itself (factor 1 - b to 1 + b).
        contrast: largest change of contrast about the image's mean (factor 1 - c to 1 + c).
    """

    rotation: float = 15.0
    area_scale: tuple[float, float] = (0.9, 1.1)
    shift: float = 0.0
    shear: float = 0.0
    flip: float = 0.5
    brightness: float = 0.1
    contrast: float = 0.1

    def __post_init__(self):
        _within("augment.rotation", self.rotation, 0, 180)
        _within("augment.shift", self.shift, 0, 1)
        _within("augment.shear", self.shear, 0, 60)
        _within("augment.flip", self.flip, 0, 1)
        _within("augment.brightness", self.brightness, 0, 1)
        _within("augment.contrast", self.contrast, 0, 1)
        low, high = self.area_scale
        if not 0 < low <= high <= 4:
            raise InputError(f"augment.area_scale is [{low}, {high}]; give 0 < low <= high <= 4")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network.

    Attributes:
        architecture: `classifier` (one backbone), or `hybrid` (a convolutional backbone and a Swin transformer).
        backbone: a name of `kmura.models.backbones`.
        weights: `imagenet`, `none`, a keras-hub preset handle, or the path of a preset folder or a weights file.
        swin: of the hybrid, a name of `kmura.models.swin`.
        swin_weights: of the hybrid's transformer, as `weights`.
        fusion: of the hybrid, a name of `kmura.models.fusion`.
        multi_scale: the hybrid fuses two levels of maps instead of the last alone.
        fusion_width: channels of the hybrid's fusion, where it has some of its own (`gated`, `attention`).
        head: of the classifier, a name of `kmura.models.heads`.
        head_widths: units of its hidden layers, first to last.
        head_dropout: shares of their outputs dropped in training, one a layer, or none.
        head_l1, head_l2: penalties of their kernels.
        head_batch_norm: normalise in them.
        map_dropout: share of the last feature map dropped in training before it is pooled.
        attention_maps: of the heads `attention` and `se_attention`, how many.
        dropout: share of pooled features dropped in training.
        batch_norm_momentum: share of the old moving statistics kept at each step (Keras' sense; torch's 0.1 is 0.9).
        fused_batch_norm: use TensorFlow's fused kernel.
        torch_padding: the backbone pads as torch does, which weights ported from there need.
    """

    architecture: Literal["classifier", "hybrid"] = "classifier"
    backbone: str = "densenet121"
    weights: str = "imagenet"
    swin: str = "swin_base"
    swin_weights: str = "imagenet"
    fusion: str = "concat"
    multi_scale: bool = False
    fusion_width: int = 256
    head: str = "linear"
    head_widths: tuple[int, ...] = ()
    head_dropout: tuple[float, ...] = ()
    head_l1: float = 0.0
    head_l2: float = 0.0
    head_batch_norm: bool = False
    map_dropout: float = 0.0
    attention_maps: int = 3
    dropout: float = 0.0
    batch_norm_momentum: float = 0.9
    fused_batch_norm: bool = True
    torch_padding: bool = False

    def __post_init__(self):
        _within("model.dropout", self.dropout, 0, 0.99)
        _within("model.map_dropout", self.map_dropout, 0, 0.99)
        _within("model.head_l1", self.head_l1, 0, 1)
        _within("model.head_l2", self.head_l2, 0, 1)
        _at_least("model.attention_maps", self.attention_maps, 1)
        for width in self.head_widths:
            _at_least("model.head_widths", width, 1)
        for share in self.head_dropout:
            _within("model.head_dropout", share, 0, 0.99)
        _within("model.batch_norm_momentum", self.batch_norm_momentum, 0, 0.9999)

    @property
    def words(self) -> str:
        """The network and the weights that it starts from, for people."""
        text = f"{self.backbone}, weights {self.weights}"
        if self.architecture == "hybrid":
            text += f", beside {self.swin}, weights {self.swin_weights}, fusion {self.fusion}"
            text += f" of {self.fusion_width} channels" if self.fusion_width != ModelConfig.fusion_width else ""
            text += " on two levels" if self.multi_scale else ""
        return text


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
        _within("mix.mixup_alpha", self.mixup_alpha, 0, 100)
        _within("mix.cutmix_alpha", self.cutmix_alpha, 0, 100)
        _within("mix.aug_p", self.aug_p, 0, 1)
        _at_least("mix.until_epoch", self.until_epoch, 0)


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
        _at_least("cam.from_epoch", self.from_epoch, 1)
        _within("cam.alpha_cam", self.alpha_cam, 0, 1)
        _between("cam.erase_q", self.erase_q, 0, 1)
        _at_least("cam.erase_every", self.erase_every, 1)


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
            negatives / positives, of several classes each by images / (classes x its images).
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
        select_on: the split whose scores choose the best epoch (`tune`; `valid` is the literature's optimistic way).
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
    select_on: Literal["tune", "valid"] = "tune"
    monitor: Literal["val_auc_img", "val_auc_study", "val_acc_img", "val_acc_study", "val_f1_study", "val_loss_img"] = (
        "val_auc_study"
    )
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    seed: int = 0
    deterministic: bool = False

    def __post_init__(self):
        _at_least("train.epochs", self.epochs, 1)
        _at_least("train.batch_size", self.batch_size, 1)
        _within("train.learning_rate", self.learning_rate, 1e-12, 100)
        _at_least("train.slow_from_epoch", self.slow_from_epoch, 1)
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
        _at_least("train.frozen_until_epoch", self.frozen_until_epoch, 1)
        if self.frozen_until_epoch is not None and self.unfreeze == "none":
            raise InputError("train.frozen_until_epoch has no meaning where train.unfreeze is none; leave it out")
        _within("train.warmup_epochs", self.warmup_epochs, 0, self.epochs)
        _within("train.weight_decay", self.weight_decay, 0, 1)
        _within("train.label_smoothing", self.label_smoothing, 0, 0.9)
        _within("train.focal_gamma", self.focal_gamma, 0, 20)
        _within("train.focal_factor", self.focal_factor, 1e-6, 1e6)
        _within("train.focal_alpha", 0 if self.focal_alpha is None else self.focal_alpha, 0, 1)
        if self.focal_alpha is not None and self.loss != "focal":
            raise InputError("train.focal_alpha goes with train.loss=focal; leave it out")
        for name in ("plateau_patience", "stop_patience"):
            _at_least(f"train.{name}", 1 if getattr(self, name) is None else getattr(self, name), 1)
        if not 0 < self.plateau_factor < 1:
            raise InputError(f"train.plateau_factor is {self.plateau_factor}; allowed is above 0 and below 1")
        _within("train.plateau_min_rate", self.plateau_min_rate, 0, 100)
        if self.plateau_patience and (
            self.schedule != "constant" or self.warmup_epochs or self.slow_from_epoch is not None
        ):
            raise InputError(
                "train.plateau_patience goes with schedule constant, without warmup_epochs and slow_from_epoch; "
                "change one of them"
            )
        _within("train.seed", self.seed, 0, 2**31 - 1)


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
        _at_least("tune.trials", self.trials, 1)
        _at_least("tune.startup_trials", self.startup_trials, 1)
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


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides the outcome of one run, besides the records."""

    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    mix: MixConfig = MixConfig()
    cam: CamConfig = CamConfig()
    train: TrainConfig = TrainConfig()
    tune: TuneConfig = TuneConfig()

    def __post_init__(self):
        hybrid = self.model.architecture == "hybrid"
        if self.cam.tap == "S4" and not hybrid:
            raise InputError("cam.tap S4 is of a hybrid; choose P5, P4 or P3, or model.architecture=hybrid")
        heads = ("head", "head_widths", "head_dropout", "head_l1", "head_l2", "head_batch_norm", "map_dropout")
        of_hybrid = ("swin", "swin_weights", "fusion", "multi_scale", "fusion_width")
        others = (*heads, "attention_maps") if hybrid else of_hybrid
        for name in others:
            if getattr(self.model, name) != getattr(ModelConfig, name):
                raise InputError(
                    f"model.{name} goes with model.architecture={'classifier' if hybrid else 'hybrid'}; leave it out"
                )
        if hybrid and self.model.fusion == "concat" and self.model.fusion_width != ModelConfig.fusion_width:
            raise InputError("model.fusion_width goes with fusion gated or attention; leave it out")
