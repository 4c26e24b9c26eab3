"""Which part of a classifier's convolutional backbone learns."""

import keras

from kmura.errors import InputError
from kmura.models.backbones import BACKBONES


def set_trainable(classifier: keras.Model, part: str) -> None:
    """Lets a part of a classifier's backbone learn and freezes the rest of that; frozen batch normalisation keeps its
    statistics.

    Args:
        classifier: an ImageClassifier.
        part: see `unfreeze` of TrainConfig. `last_block` is what `BackboneEntry.last_block` names. `last_N_conv` counts
            in the order of `backbone.layers`, which is Keras': by depth, so that the convolution of a shortcut stands
            just before the last one of the block that it bridges. The last N convolutions learn, and with them every
            layer that comes after the first of them in that order, the normalisation of a frozen shortcut too.

    Raises:
        InputError: more convolutions than there are.
    """
    body = classifier.backbone
    last_block = BACKBONES[classifier.get_config()["backbone"]].last_block
    names = [layer.name for layer in body.layers]
    if part == "last_block":
        chosen = {name for name in names if name.startswith(last_block)}
    elif part.endswith("_conv"):
        number = int(part.split("_")[1])
        convolutions = [at for at, layer in enumerate(body.layers) if isinstance(layer, keras.layers.Conv2D)]
        if number > len(convolutions):
            raise InputError(f"train.unfreeze is {part}, but the backbone has {len(convolutions)} convolutions")
        chosen = set(names[convolutions[-number] :])
    else:
        chosen = set(names if part == "all" else ())
    for layer in body.layers:
        layer.trainable = layer.name in chosen
