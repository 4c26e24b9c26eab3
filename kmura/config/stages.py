"""The dataclasses of the configuration of data and network, and of all; each refuses values out of range."""

import dataclasses
from typing import Literal

from kmura.config.ranges import at_least, within
from kmura.config.training import CamConfig, MixConfig, TrainConfig, TuneConfig
from kmura.errors import InputError


@dataclasses.dataclass(frozen=True)
class RecordsConfig:
    """From image files to shards; `manifest.json` keeps it as `options`.

    Attributes:
        encoding: `png` (lossless) or `jpeg` (smaller, several times faster to decode).
        quality: of JPEG, 1 to 100.
        max_side: longer images are reduced to this many pixels on the longest side.
        channels: 1 (gray) or 3 (RGB).
        val_fraction: share of the training patients that become the `val` split.
        test_fraction: share of the patients that become `test` where the source has no such split.
        seed: of the splits and of the order of the records.
        records_per_shard: images of one shard, the unit of parallel work.
    """

    encoding: Literal["png", "jpeg"] = "png"
    quality: int = 95
    max_side: int = 512
    channels: Literal[1, 3] = 1
    val_fraction: float = 0.1
    test_fraction: float = 0.2
    seed: int = 0
    records_per_shard: int = 256

    def __post_init__(self):
        within("quality", self.quality, 1, 100)
        at_least("max_side", self.max_side, 16)
        within("val_fraction", self.val_fraction, 0, 0.9)
        within("test_fraction", self.test_fraction, 0, 0.9)
        within("seed", self.seed, 0, 2**31 - 1)
        at_least("records_per_shard", self.records_per_shard, 1)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """From shards to images.

    Attributes:
        image_size: rows and columns of the model's input, pixels.
        resize: `squash` (both sides to image_size) or `pad` (keep the aspect, black borders).
        cache: where decoded images wait: `memory`, `disk`, `off`, or `auto` (memory where they fit).
        task: what the model tells: `binary`, `multiclass`, `multilabel`, or `auto`, as the records; see
            `kmura.tasks.model_task`.
    """

    image_size: int = 224
    resize: Literal["squash", "pad"] = "squash"
    cache: Literal["auto", "memory", "disk", "off"] = "auto"
    task: Literal["auto", "binary", "multiclass", "multilabel"] = "auto"

    def __post_init__(self):
        at_least("data.image_size", self.image_size, 16)


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
        within("augment.rotation", self.rotation, 0, 180)
        within("augment.shift", self.shift, 0, 1)
        within("augment.shear", self.shear, 0, 60)
        within("augment.flip", self.flip, 0, 1)
        within("augment.brightness", self.brightness, 0, 1)
        within("augment.contrast", self.contrast, 0, 1)
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
        within("model.dropout", self.dropout, 0, 0.99)
        within("model.map_dropout", self.map_dropout, 0, 0.99)
        within("model.head_l1", self.head_l1, 0, 1)
        within("model.head_l2", self.head_l2, 0, 1)
        at_least("model.attention_maps", self.attention_maps, 1)
        for width in self.head_widths:
            at_least("model.head_widths", width, 1)
        for share in self.head_dropout:
            within("model.head_dropout", share, 0, 0.99)
        within("model.batch_norm_momentum", self.batch_norm_momentum, 0, 0.9999)

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
