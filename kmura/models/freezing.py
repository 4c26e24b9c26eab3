"""Which part of a classifier's convolutional backbone learns."""

import keras

from kmura.errors import InputError


def set_trainable(body: keras.Model, part: str, last_block: tuple[str, ...]) -> None:
    """Lets a part of a backbone learn and freezes the rest; frozen batch normalisation keeps its statistics.

    Args:
        body: the backbone, a functional model.
        part: see `unfreeze` of TrainConfig. `last_block` are the layers whose names begin with one of `last_block`,
            `last_N_conv` the last N convolutions and all that comes after the first of them.
        last_block: beginnings of names.

    Raises:
        InputError: more convolutions than there are.
    """
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
