"""A configuration to a network: `build_model`, and the check that needs no weights."""

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
    """A classifier ready to be trained: its backbones with their weights, all else with random ones.

    Args:
        image_size, channels, num_classes: see ImageClassifier.
        initial_bias: of the logits, one for all or one for each class; log(p / (1 - p)) of the share p of
            positives spares the first epoch finding it. None keeps zeros (or what `weights` brought).
        seed: the same number gives the same random weights, whatever was drawn before; the global random
            state stays as it was. None draws from that state.
        **options: of `kmura.config.ModelConfig`, whose defaults hold: `architecture` (`classifier` gives a
            RadiographClassifier, `hybrid` a HybridClassifier), `backbone`, `weights` (see
            `kmura.models.weights.load_weights`), `head`, ...

    Raises:
        InputError: an argument that cannot be, or weights that cannot be had or do not fit.
    """
    wanted = ModelConfig(**options)
    kind, arguments = _kind(wanted)
    common = ("dropout", "batch_norm_momentum", "fused_batch_norm", "torch_padding")
    arguments |= {name: getattr(wanted, name) for name in common}
    with _seeded(seed):
        model = kind(image_size=image_size, channels=channels, num_classes=num_classes, **arguments)
    load_weights(model, wanted.weights, wanted.swin_weights)
    if initial_bias is not None:
        logits, bias = model.get_layer(LOGITS), np.asarray(initial_bias, np.float32)
        if bias.shape not in ((), (logits.units,)):
            raise InputError(f"initial_bias has {bias.size} numbers; give one or {logits.units}, the number of classes")
        logits.bias.assign(np.broadcast_to(bias, (logits.units,)))
    return model


def check_model(model: ModelConfig, image_size: int, channels: int) -> None:
    """Refuses names and sizes of which `build_model` could make no classifier; builds nothing, reads no weights.

    Raises:
        InputError: a name that does not exist, or a number out of its range.
    """
    kind, arguments = _kind(model)
    kind.check(image_size=image_size, channels=channels, num_classes=1, **arguments)


def _kind(model: ModelConfig) -> tuple[type[ImageClassifier], dict]:
    """The class of a configuration, and those of its arguments that its `check` takes."""
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
def _seeded(seed: int | None):
    """Python's random numbers, of which Keras makes the seeds of its initializers, start at `seed` inside."""
    if seed is None:
        yield
        return
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)
