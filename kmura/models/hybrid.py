"""The hybrid classifier: a fusion combines the feature maps of a convolutional backbone and a Swin transformer."""

import keras

from kmura.errors import InputError
from kmura.models.backbones import BACKBONES
from kmura.models.base import ImageClassifier, NormalizedChannels
from kmura.models.fusion import ATTENTION_HEADS, BRANCHES, FUSIONS
from kmura.models.heads import logits_of
from kmura.models.lookup import entry
from kmura.models.swin import SWINS, SwinMaps, check_side

LEVELS = (("P4", "S3"), ("P5", "S4"))  # maps of the convolutional backbone and of the transformer


@keras.saving.register_keras_serializable("kmura")
class HybridClassifier(ImageClassifier):
    """An ImageClassifier with two branches and square images.

    Attributes:
        swin: the SwinTransformerBackbone of the second branch.
        feature_maps: includes `S4` (and `S3`, if multi-scale) of the transformer, which have both signs.
        head_sees: names of the maps that the fusion combines.
    """

    branches = dict(zip(BRANCHES, LEVELS[-1], strict=True))

    def __init__(
        self,
        backbone: str = "densenet121",
        swin: str = "swin_base",
        fusion: str = "concat",
        multi_scale: bool = False,
        width: int = 256,
        **common,
    ):
        """
        Args:
            swin: a name of `kmura.models.swin.SWINS`; it restricts the image size, see `kmura.models.swin.check_side`.
            fusion: a name of `kmura.models.fusion.FUSIONS`.
            multi_scale: fuse P4 with S3 and P5 with S4; otherwise only P5 with S4.
            width: channels of the fusions `gated` and `attention`, a multiple of 4.
            backbone, **common: see ImageClassifier.
        """
        super().__init__(backbone=backbone, swin=swin, fusion=fusion, multi_scale=multi_scale, width=width, **common)
        self.swin = self.get_layer("swin_maps").backbone
        self.head_sees = tuple(name for level in _levels(multi_scale) for name in level)

    @classmethod
    def check(cls, *, swin: str, fusion: str, multi_scale: bool, width: int, **common):
        height, side = super().check(**common)
        if height != side:
            raise InputError(f"image_size {height} x {side} is not square, which the hybrid needs; give one number")
        check_side(swin, side)
        entry(FUSIONS, fusion, "fusion")
        if width < ATTENTION_HEADS or width % ATTENTION_HEADS:
            raise InputError(f"fusion width is {width}; a multiple of {ATTENTION_HEADS} is needed")
        return height, side

    @staticmethod
    def _finished(images, normalized, maps, config):
        ours, theirs = BACKBONES[config["backbone"]], SWINS[config["swin"]]
        if (ours.mean, ours.std) != (theirs.mean, theirs.std):
            normalized = NormalizedChannels(theirs.mean, theirs.std, name="normalized_swin")(images)
        side, multi_scale = config["image_size"][0], config["multi_scale"]
        maps = maps | SwinMaps(config["swin"], side, third_stage=multi_scale, name="swin_maps")(normalized)
        levels = [(maps[cnn_map], maps[swin_map]) for cnn_map, swin_map in _levels(multi_scale)]
        features = FUSIONS[config["fusion"]](levels, config["width"])
        return maps, logits_of(features, config["num_classes"], config["dropout"])


def _levels(multi_scale: bool) -> tuple[tuple[str, str], ...]:
    """Returns the names of the feature maps that are fused."""
    return LEVELS if multi_scale else LEVELS[-1:]
