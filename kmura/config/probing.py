"""Configuration of probes without a Keras model: nearest neighbours, and the regression on raw pixels."""

import dataclasses
from typing import Literal

from kmura.config.data import DataConfig
from kmura.config.keys import check_values, key
from kmura.config.training import TrainConfig


@dataclasses.dataclass(frozen=True)
class ProbeStage:
    """What was probed, and how."""

    method: Literal["knn", "pixels"] = key("knn", "'knn' of an encoder's features, or 'pixels', the floor.")
    source: str = key("", "The run or weights of the encoder; empty for pixels.", allowed="a text")
    backbone: str = key("", "The encoder's architecture; empty for pixels.", allowed="a text")
    labels: float = key(1.0, "Share of the training labels that is used.", above=(0, 1))

    def __post_init__(self):
        check_values(self, "probe")

    @property
    def words(self) -> str:
        """The method and the source, for people."""
        if self.method == "pixels":
            return "logistic regression on raw pixels"
        return f"nearest neighbours of the features of {self.backbone}, weights {self.source}"


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """The configuration of a run of the kind `probe`."""

    data: DataConfig = DataConfig()
    probe: ProbeStage = ProbeStage()
    train: TrainConfig = TrainConfig()
