"""Configuration: one frozen dataclass per stage, read from TOML recipes and `stage.key=value` settings.

A key has the same name everywhere: `train.epochs` in a recipe's `[train]` table, in `--set train.epochs=3` and in the
`config` of a run's `run.json`. Unknown keys and wrong values raise an InputError that suggests the nearest valid name.
To add a key, declare it in its stage with `kmura.config.keys.key`: checks, `kmura config` and `docs/configuration.md`
follow from the declaration.
"""

# ruff: noqa: F401 (the names that others use)

from kmura.config.bundles import ClassificationConfig, FusionConfig, PretrainingConfig, SegmentationConfig
from kmura.config.data import AugmentConfig, DataConfig
from kmura.config.loading import (
    RECIPES,
    config_from_tables,
    config_json,
    differences,
    filled_as_before,
    from_run_version_1,
    load_config,
    load_settings,
    parse_setting,
    recipe_names,
    recipe_summary,
    recipe_text,
)
from kmura.config.model import ModelConfig
from kmura.config.pretraining import EncoderConfig, MethodConfig, PretrainLoopConfig, ViewsConfig
from kmura.config.records import RecordsConfig
from kmura.config.search_space import TuneConfig
from kmura.config.segmentation import FusionStage, SegmentationLossConfig, SlicesConfig, UNetConfig, VolumeAugmentConfig
from kmura.config.training import CamConfig, MixConfig, TrainConfig
