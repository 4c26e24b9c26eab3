"""Bundles: the configuration of a run, one per kind of learning. Each is a dataclass of the stages' dataclasses."""

import dataclasses

from kmura.config.data import AugmentConfig, DataConfig
from kmura.config.model import ModelConfig
from kmura.config.pretraining import EncoderConfig, MethodConfig, PretrainLoopConfig, ViewsConfig
from kmura.config.search_space import TuneConfig
from kmura.config.segmentation import (
    FusionStage,
    SegmentationLoopConfig,
    SegmentationLossConfig,
    SlicesConfig,
    UNetConfig,
    VolumeAugmentConfig,
)
from kmura.config.training import CamConfig, MixConfig, TrainConfig
from kmura.errors import InputError

# keys of ModelConfig that one architecture uses and the other does not
_HYBRID_ONLY = ("swin", "swin_weights", "fusion", "multi_scale", "fusion_width")
_CLASSIFIER_ONLY = (
    "head",
    "head_widths",
    "head_dropout",
    "head_l1",
    "head_l2",
    "head_batch_norm",
    "map_dropout",
    "attention_maps",
)


@dataclasses.dataclass(frozen=True)
class ClassificationConfig:
    """The configuration of a run of the kind `classification`: all that determines its result, except the records."""

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
            raise InputError("cam.tap S4 requires a hybrid; choose P5, P4 or P3, or set model.architecture=hybrid")
        for name in _CLASSIFIER_ONLY if hybrid else _HYBRID_ONLY:
            if getattr(self.model, name) != getattr(ModelConfig, name):
                raise InputError(
                    f"model.{name} requires model.architecture={'classifier' if hybrid else 'hybrid'}; leave it out"
                )
        if hybrid and self.model.fusion == "concat" and self.model.fusion_width != ModelConfig.fusion_width:
            raise InputError("model.fusion_width requires fusion gated or attention; leave it out")


@dataclasses.dataclass(frozen=True)
class PretrainingConfig:
    """The configuration of a run of the kind `pretraining`: all that determines its result, except the records."""

    data: DataConfig = DataConfig()
    views: ViewsConfig = ViewsConfig()
    encoder: EncoderConfig = EncoderConfig()
    method: MethodConfig = MethodConfig()
    train: PretrainLoopConfig = PretrainLoopConfig()


@dataclasses.dataclass(frozen=True)
class SegmentationConfig:
    """The configuration of a run of the kind `segmentation`: all that determines its result, except the records."""

    data: SlicesConfig = SlicesConfig()
    augment: VolumeAugmentConfig = VolumeAugmentConfig()
    model: UNetConfig = UNetConfig()
    loss: SegmentationLossConfig = SegmentationLossConfig()
    train: SegmentationLoopConfig = SegmentationLoopConfig()


@dataclasses.dataclass(frozen=True)
class FusionConfig:
    """The configuration of a run of the kind `fusion`, which is not trained."""

    data: SlicesConfig = SlicesConfig()
    fusion: FusionStage = FusionStage()
    train: SegmentationLoopConfig = SegmentationLoopConfig()
