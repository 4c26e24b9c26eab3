"""The classifier of radiographs with one convolutional backbone."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras

from kmura.errors import InputError
from kmura.models.base import ImageClassifier
from kmura.models.heads import ATTENTION, HEADS, HeadOptions
from kmura.models.lookup import entry


@keras.saving.register_keras_serializable("kmura")
class RadiographClassifier(ImageClassifier):
    """An ImageClassifier with one branch: a convolutional backbone and a head on P5.

    Attributes:
        attention_maps: KerasTensor [B, h, w, n] in 0..1, connected to `input`; None if the head has no attention maps.
    """

    head_sees = ("P5",)
    branches = {"cnn": "P5"}

    def __init__(
        self,
        backbone: str = "densenet121",
        image_size: int | tuple[int, int] = 224,
        head: str = "linear",
        head_options: Mapping[str, Any] | None = None,
        **common,
    ):
        """
        Args:
            head: a name of `kmura.models.heads.HEADS`.
            head_options: see `kmura.models.heads.HeadOptions`; its `dropout` is a separate argument of this class.
            backbone, image_size, **common: see ImageClassifier.
        """
        options = dataclasses.asdict(HeadOptions(**head_options or {}))
        super().__init__(backbone=backbone, image_size=image_size, head=head, head_options=options, **common)
        self.attention_maps = self.get_layer(ATTENTION).output if "attention" in head else None

    @classmethod
    def check(cls, *, head: str, head_options: Mapping[str, Any], **common):
        entry(HEADS, head, "head")
        options = HeadOptions(**head_options)
        if options.hidden_dropout and len(options.hidden_dropout) != len(options.widths):
            raise InputError(
                f"head_dropout has {len(options.hidden_dropout)} numbers for {len(options.widths)} hidden layers "
                "(head_widths); give one per layer, or none"
            )
        if not options.widths and head not in ("linear", "attention"):
            raise InputError(f"the head {head} needs hidden layers; set model.head_widths, for example [512, 256]")
        of_hidden = (options.hidden_dropout, options.l1, options.l2, options.batch_norm)
        if not options.widths and any(of_hidden):
            raise InputError(
                "head_dropout, head_l1, head_l2 and head_batch_norm need hidden layers; set model.head_widths"
            )
        if "attention" not in head and options.attention_maps != HeadOptions.attention_maps:
            raise InputError(f"the head {head} has no attention maps; remove model.attention_maps")
        if options.widths and head == "linear":
            raise InputError("the head linear has no hidden layers; remove model.head_widths, or set model.head=dense")
        return super().check(**common)

    @staticmethod
    def _finished(images, normalized, maps, config):
        options = HeadOptions(**config["head_options"] | {"dropout": config["dropout"]})
        return maps, HEADS[config["head"]](maps["P5"], config["num_classes"], options)
