"""Configuration of records."""

import dataclasses
from typing import Literal

from kmura.config.keys import check_values, key


@dataclasses.dataclass(frozen=True)
class RecordsConfig:
    """From image files to shards. `manifest.json` stores these values as `options`."""

    encoding: Literal["png", "jpeg"] = key(
        "png", "Encoding of the stored images: 'png' is lossless, 'jpeg' is smaller and several times faster to decode."
    )
    quality: int = key(95, "Quality of JPEG; ignored for PNG.", within=(1, 100))
    max_side: int = key(512, "Longest side, pixels; larger images are reduced to it.", at_least=16)
    channels: Literal[1, 3] = key(1, "Channels of the stored images: 1 (gray) or 3 (RGB).")
    val_fraction: float = key(
        0.1, "Share of the training patients that become the split 'val'; 0 leaves it out.", within=(0, 0.9)
    )
    test_fraction: float = key(
        0.2, "Share of the patients that become the split 'test', if the source has no such split.", within=(0, 0.9)
    )
    seed: int = key(0, "Seed of the splits and of the order of the records.", within=(0, 2**31 - 1))
    records_per_shard: int = key(256, "Images per shard; shards are built and read in parallel.", at_least=1)

    def __post_init__(self):
        check_values(self, "")
