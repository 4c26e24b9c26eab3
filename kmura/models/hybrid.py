"""The hybrid: a convolutional backbone and a Swin transformer see the same image, a fusion joins what they find."""

import keras

from kmura.errors import InputError
from kmura.models.backbones import BACKBONES
from kmura.models.classifier import NormalizedChannels, checked_input, convolutional_maps, dtype_policy
from kmura.models.fusion import ATTENTION_HEADS, FUSIONS
from kmura.models.heads import LOGITS
from kmura.models.lookup import entry
from kmura.models.swin import SWINS, SwinMaps, check_side


@keras.saving.register_keras_serializable("kmura")
class HybridClassifier(keras.Model):
    """Logits [B, num_classes], float32, of radiographs [B, side, side, channels], float32 in 0..255.

    A functional model in a class, like RadiographClassifier: the constructor's arguments are its config.

    Attributes:
        backbone: normalised images -> P5 of the convolutional branch; a keras-hub backbone.
        swin: the SwinTransformerBackbone of the other branch.
        feature_maps: `P3`, `P4`, `P5` of the convolutions, `S4` (and `S3`, multi-scale) of the transformer ->
            KerasTensor [B, h, w, channels], connected to `input`. The transformer's are of both signs.
        head_sees: names of the maps that the fusion joins.
        branches: name of a branch -> its last feature map.
    """

    branches = {"cnn": "P5", "swin": "S4"}

    def __init__(
        self,
        backbone: str = "densenet121",
        swin: str = "swin_base",
        fusion: str = "concat",
        multi_scale: bool = False,
        width: int = 256,
        image_size: int | tuple[int, int] = 224,
        channels: int = 1,
        num_classes: int = 1,
        dropout: float = 0.0,
        batch_norm_momentum: float = 0.9,
        fused_batch_norm: bool = True,
        torch_padding: bool = False,
        dtype=None,
        **kwargs,
    ):
        """
        Args:
            backbone: a name of `kmura.models.backbones.BACKBONES`.
            swin: a name of `kmura.models.swin.SWINS`.
            fusion: a name of `kmura.models.fusion.FUSIONS`.
            multi_scale: fuse P4 with S3 and P5 with S4; else P5 with S4 alone.
            width: channels of the gated and the attention fusion, a multiple of 4.
            image_size: of the square images, pixels; see `kmura.models.swin.check_side`.
            channels, num_classes, dropout, batch_norm_momentum, fused_batch_norm, torch_padding, dtype, **kwargs: see
                RadiographClassifier.

        Raises:
            InputError: a name that does not exist, or a number out of its range.
        """
        parts = entry(BACKBONES, backbone, "backbone")
        height, side = checked_input(image_size, channels, num_classes, backbone, parts.min_size)
        if height != side:
            raise InputError(f"image_size {height} x {side}: the hybrid takes square images; give one number")
        check_side(swin, side)
        fuse = entry(FUSIONS, fusion, "fusion")
        if width < ATTENTION_HEADS or width % ATTENTION_HEADS:
            raise InputError(f"width is {width}; a multiple of {ATTENTION_HEADS} is needed")
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())

        with dtype_policy(policy):
            images = keras.Input((side, side, channels), dtype="float32", name="image")
            normalized = NormalizedChannels(parts.mean, parts.std, name="normalized")(images)
            body, maps = convolutional_maps(parts, normalized, batch_norm_momentum, fused_batch_norm, torch_padding)
            swin_maps = SwinMaps(swin, side, third_stage=multi_scale, name="swin_maps")
            of_swin = SWINS[swin]
            if (of_swin.mean, of_swin.std) != (parts.mean, parts.std):
                normalized = NormalizedChannels(of_swin.mean, of_swin.std, name="normalized_swin")(images)
            maps = maps | swin_maps(normalized)
            levels = [("P4", "S3"), ("P5", "S4")] if multi_scale else [("P5", "S4")]
            features = fuse([(maps[one], maps[other]) for one, other in levels], width)
            if dropout:
                features = keras.layers.Dropout(dropout, dtype="float32", name="dropout")(features)
            logits = keras.layers.Dense(num_classes, dtype="float32", name=LOGITS)(features)
            super().__init__(images, logits, **kwargs)
        self.backbone, self.swin = body, swin_maps.backbone
        self.feature_maps = maps
        self.head_sees = tuple(name for level in levels for name in level)
        self._config = {
            "backbone": backbone,
            "swin": swin,
            "fusion": fusion,
            "multi_scale": multi_scale,
            "width": width,
            "image_size": side,
            "channels": channels,
            "num_classes": num_classes,
            "dropout": dropout,
            "batch_norm_momentum": batch_norm_momentum,
            "fused_batch_norm": fused_batch_norm,
            "torch_padding": torch_padding,
            "dtype": policy.name,
        }

    def get_config(self):
        return {"name": self.name, "trainable": self.trainable, **self._config}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)
