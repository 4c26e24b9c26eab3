"""Configuration: one frozen dataclass a stage, read from TOML recipes and `stage.key=value` settings.

A key is named the same everywhere: `train.epochs` in a recipe's `[train]` table, in `--set train.epochs=3` and in the
`config` of a run's `run.json`. Unknown keys and wrong types raise with the nearest valid name.
"""

# ruff: noqa: F401 (the names that others use)

from kmura.config.reading import (
    RECIPES,
    config_from_tables,
    config_json,
    differences,
    load_config,
    load_settings,
    parse_setting,
    recipe_names,
)
from kmura.config.stages import AugmentConfig, Config, DataConfig, ModelConfig, RecordsConfig
from kmura.config.training import CamConfig, MixConfig, TrainConfig, TuneConfig

ClassificationConfig = Config
