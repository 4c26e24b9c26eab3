"""Configuration of images: how they are read and augmented."""

import dataclasses
from typing import Literal

from kmura.config.keys import Range, check_values, key
from kmura.errors import InputError


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """From shards to images and labels."""

    image_size: int = key(224, "Rows and columns of the model's input, pixels.", at_least=16)
    resize: Literal["squash", "pad"] = key(
        "squash",
        "How images are brought to image_size: 'squash' scales both sides to it, 'pad' keeps the aspect ratio and adds "
        "black borders.",
    )
    cache: Literal["auto", "memory", "disk", "off"] = key(
        "auto",
        "Where decoded images are kept: 'memory', 'disk' (in the records folder, also for later runs), 'off' "
        "(each image is decoded whenever it is drawn), or 'auto' (memory if they fit into half of the available "
        "memory, else off).",
    )
    task: Literal["auto", "binary", "multiclass", "multilabel"] = key(
        "auto",
        "What the model predicts: 'binary' (one logit, for the positive class), 'multiclass' (softmax over the "
        "classes), 'multilabel' (one sigmoid per label), or 'auto' (the task of the records).",
    )
    folds: int = key(
        0,
        "Folds of a cross-validation over the patients of train and val, which replace these splits; those of the "
        "records if they have folds. The test images of the records are not used. 0 uses the splits.",
        allowed="0, or 3 or more",
    )
    fold: int = key(0, "Fold whose images are held out as `test`, counted from 0; the next fold is `val`.", at_least=0)

    def __post_init__(self):
        check_values(self, "data")
        if self.folds < 0 or self.folds in (1, 2):
            raise InputError(
                f"data.folds is {self.folds}; give 0 or 3 and more, since one fold is test and another one is val"
            )
        if self.fold and self.fold >= self.folds:
            raise InputError(f"data.fold is {self.fold}; allowed is 0 to {max(0, self.folds - 1)} (data.folds - 1)")


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random augmentation of training images. The defaults are the published settings for MURA."""

    crop: Literal["resized", "zoom"] = key(
        "resized",
        "Random crop: 'resized' draws area and aspect ratio and stays inside the image (as torchvision's "
        "RandomResizedCrop), 'zoom' keeps the aspect ratio and may zoom out.",
    )
    aspect: tuple[float, float] = key(
        (3 / 4, 4 / 3),
        "Smallest and largest aspect ratio of a 'resized' crop, relative to that of the image.",
        pair=Range(0, 10, above=True),
    )

    rotation: float = key(15.0, "Largest rotation in either direction, degrees.", within=(0, 180))
    area_scale: tuple[float, float] = key(
        (0.9, 1.1),
        "Smallest and largest share of the image's area that a random crop shows. Values above 1 zoom out if crop is "
        "'zoom'; a 'resized' crop above 1 is drawn again.",
        pair=Range(0, 4, above=True),
    )
    shift: float = key(0.0, "Largest shift along each axis, as a fraction of the image side.", within=(0, 1))
    shear: float = key(0.0, "Largest shear angle in either direction, degrees.", within=(0, 60))
    flip: float = key(0.5, "Probability of a horizontal flip.", within=(0, 1))
    brightness: float = key(
        0.1, "Largest relative change b of brightness; the factor is drawn from 1 - b to 1 + b.", within=(0, 1)
    )
    contrast: float = key(
        0.1,
        "Largest relative change c of contrast about the image's mean; the factor is drawn from 1 - c to 1 + c.",
        within=(0, 1),
    )

    def __post_init__(self):
        check_values(self, "augment")
