"""Freezes parts of a classifier's convolutional backbone."""

import keras

from kmura.errors import InputError
from kmura.models.backbones import BACKBONES


def set_trainable(classifier: keras.Model, part: str) -> None:
    """Makes a part of a classifier's convolutional backbone trainable and freezes the rest of the backbone.

    Frozen batch normalisation layers do not update their statistics.

    Args:
        classifier: an ImageClassifier.
        part: see `unfreeze` of TrainConfig. `last_block` means the layers of `BackboneEntry.last_block`. `last_N_conv`
            counts in the order of `backbone.layers`, which Keras sorts by depth: the convolution of a shortcut comes
            directly before the last convolution of the block that it bridges. Trainable are the last N convolutions and
            every layer after the first of them in that order, including the normalisation of a frozen shortcut.
            `last_N_conv_only` means these convolutions without any other layer.

    Raises:
        InputError: the backbone has fewer convolutions than requested.
    """
    body = classifier.backbone
    last_block = BACKBONES[classifier.get_config()["backbone"]].last_block
    names = [layer.name for layer in body.layers]
    if part == "last_block":
        chosen = {name for name in names if name.startswith(last_block)}
    elif part.startswith("last_"):
        number = int(part.split("_")[1])
        convolutions = [place for place, layer in enumerate(body.layers) if isinstance(layer, keras.layers.Conv2D)]
        if number > len(convolutions):
            raise InputError(
                f"train.unfreeze is {part}, but the backbone has {len(convolutions)} convolutions; "
                "choose a smaller number"
            )
        last = convolutions[-number:]
        chosen = {names[place] for place in last} if part.endswith("_only") else set(names[last[0] :])
    else:
        chosen = set(names if part == "all" else ())
    for layer in body.layers:
        layer.trainable = layer.name in chosen
