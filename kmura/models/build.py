"""Builds the model of a configuration, and checks a configuration without building."""

import contextlib
import random
from collections.abc import Sequence

import numpy as np

from kmura.config import ModelConfig
from kmura.errors import InputError
from kmura.models.base import ImageClassifier
from kmura.models.classifier import RadiographClassifier
from kmura.models.heads import LOGITS
from kmura.models.hybrid import HybridClassifier
from kmura.models.lookup import entry
from kmura.models.weights import load_weights


def build_model(
    *,
    image_size: int | tuple[int, int] = 224,
    channels: int = 1,
    num_classes: int = 1,
    initial_bias: float | Sequence[float] | None = None,
    seed: int | None = None,
    **options,
) -> ImageClassifier:
    """Returns a classifier for training: pretrained weights in its backbones, random weights elsewhere.

    Args:
        image_size, channels, num_classes: see ImageClassifier.
        initial_bias: initial bias of the logits, one number for all or one per class; log(p / (1 - p)) for the
            fraction p of positives speeds up the first epoch. None keeps zeros (or the loaded bias).
        seed: makes the random weights reproducible and leaves the global random state unchanged; None draws from that
            state.
        **options: fields of `kmura.config.ModelConfig`, which defines the defaults: `architecture` (`classifier` gives
            a RadiographClassifier, `hybrid` a HybridClassifier), `backbone`, `weights` (see
            `kmura.models.weights.load_weights`), `head`, ...

    Raises:
        InputError: an argument is not valid, or the weights cannot be loaded or do not fit.
    """
    wanted = ModelConfig(**options)
    kind, arguments = _kind(wanted)
    common = ("dropout", "batch_norm_momentum", "fused_batch_norm", "torch_padding")
    arguments |= {name: getattr(wanted, name) for name in common}
    with seeded(seed):
        model = kind(image_size=image_size, channels=channels, num_classes=num_classes, **arguments)
    load_weights(model, wanted.weights, wanted.swin_weights)
    if initial_bias is not None:
        logits, bias = model.get_layer(LOGITS), np.asarray(initial_bias, np.float32)
        if bias.shape not in ((), (logits.units,)):
            raise InputError(f"initial_bias has {bias.size} numbers; give one or {logits.units}, the number of classes")
        logits.bias.assign(np.broadcast_to(bias, (logits.units,)))
    return model


def check_model(model: ModelConfig, image_size: int, channels: int) -> None:
    """Checks names and sizes as `build_model` does, without building a model or reading weights.

    Raises:
        InputError: a name does not exist, or a number is out of range.
    """
    kind, arguments = _kind(model)
    kind.check(image_size=image_size, channels=channels, num_classes=1, **arguments)


def _kind(model: ModelConfig) -> tuple[type[ImageClassifier], dict]:
    """Returns the class of a configuration and the arguments of its `check`."""
    of_head = {
        "map_dropout": model.map_dropout,
        "widths": model.head_widths,
        "hidden_dropout": model.head_dropout,
        "l1": model.head_l1,
        "l2": model.head_l2,
        "batch_norm": model.head_batch_norm,
        "attention_maps": model.attention_maps,
    }
    of_hybrid = {"fusion": model.fusion, "multi_scale": model.multi_scale, "width": model.fusion_width}
    kinds = {
        "classifier": (RadiographClassifier, {"head": model.head, "head_options": of_head}),
        "hybrid": (HybridClassifier, {"swin": model.swin, **of_hybrid}),
    }
    kind, own = entry(kinds, model.architecture, "architecture")
    return kind, {"backbone": model.backbone, **own}


@contextlib.contextmanager
def seeded(seed: int | None):
    """Seeds Python's random numbers inside the block; Keras draws the seeds of its initializers from them."""
    if seed is None:
        yield
        return
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)
