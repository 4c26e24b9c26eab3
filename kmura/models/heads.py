"""The registry of heads: from a feature map to logits. To add a head, write a function and add it to `HEADS`."""

import dataclasses
from collections.abc import Callable

import keras

LOGITS = "logits"  # name of the Dense layer that ends every head
ATTENTION = "attention"  # name of the layer that gives the attention maps
SQUEEZE = 16  # reduction ratio of squeeze-and-excitation (Hu et al. 2018, table 10)


@dataclasses.dataclass(frozen=True)
class HeadOptions:
    """The options of all heads; a head uses those that apply to it.

    Attributes:
        dropout: fraction of the pooled features dropped during training.
        map_dropout: fraction of the values of the feature map dropped during training, before pooling.
        widths: units of the hidden layers (ReLU), first to last.
        hidden_dropout: fractions dropped after the hidden layers, one per layer; empty disables it.
        l1, l2: penalties of the hidden layers' kernels.
        batch_norm: use batch normalisation in the hidden layers, before the ReLU.
        attention_maps: number of attention maps.
    """

    dropout: float = 0.0
    map_dropout: float = 0.0
    widths: tuple[int, ...] = ()
    hidden_dropout: tuple[float, ...] = ()
    l1: float = 0.0
    l2: float = 0.0
    batch_norm: bool = False
    attention_maps: int = 3

    def __post_init__(self):
        for name in ("widths", "hidden_dropout"):  # lists, if they come from a file
            object.__setattr__(self, name, tuple(getattr(self, name)))


def logits_of(features: keras.KerasTensor, num_classes: int, dropout: float) -> keras.KerasTensor:
    """Returns logits [B, num_classes] float32: dropout and a dense layer on `features` [B, channels]."""
    if dropout:
        features = keras.layers.Dropout(dropout, dtype="float32", name="dropout")(features)
    return keras.layers.Dense(num_classes, dtype="float32", name=LOGITS)(features)


def linear(features: keras.KerasTensor, num_classes: int, options: HeadOptions) -> keras.KerasTensor:
    """Returns logits [B, num_classes] float32: a dense layer on the spatial mean of `features` [B, h, w, channels]."""
    return logits_of(_pooled(features, options), num_classes, options.dropout)


def dense(features: keras.KerasTensor, num_classes: int, options: HeadOptions) -> keras.KerasTensor:
    """Returns logits as `linear` does, with hidden layers between the spatial mean and the logits."""
    hidden = _dropped(_pooled(features, options), options.dropout, "dropout")
    return logits_of(_hidden_layers(hidden, options), num_classes, 0.0)


def attention(features: keras.KerasTensor, num_classes: int, options: HeadOptions) -> keras.KerasTensor:
    """Returns logits as `dense` does, from features weighted by attention maps.

    Each of n maps [B, h, w], the output of a 1x1 convolution with sigmoid activation, is multiplied with all features;
    the n products are concatenated to n x channels.
    """
    return dense(_attended(features, options), num_classes, options)


def se_attention(features: keras.KerasTensor, num_classes: int, options: HeadOptions) -> keras.KerasTensor:
    """Returns logits as `attention` does, with squeeze-and-excitation and a residual hidden layer.

    Squeeze-and-excitation (Hu et al. 2018) reweights the channels of the features before the attention maps. A second
    hidden layer of the same width follows the first one, and their outputs are added; both use batch normalisation.
    """
    pair = dataclasses.replace(options, batch_norm=True, hidden_dropout=())
    first = _hidden(_excited_and_attended(features, options), options.widths[0], pair, "hidden_1")
    second = _hidden(first, options.widths[0], pair, "hidden_1b")
    hidden = keras.layers.Add(dtype="float32", name="residual")([first, second])
    if options.hidden_dropout:
        hidden = _dropped(hidden, options.hidden_dropout[0], "hidden_1_dropout")
    return logits_of(_hidden_layers(hidden, options, done=1), num_classes, 0.0)


def se_attention_projection(features: keras.KerasTensor, num_classes: int, options: HeadOptions) -> keras.KerasTensor:
    """Returns logits as `se_attention` does, with a projection shortcut (He et al. 2016, equation 2).

    The first hidden layer is ReLU(norm(W x) + norm(W2 drop(ReLU(norm(W1 x))))) of the pooled features x, where W, the
    shortcut, has no bias. This is the residual head of experiment 6 of the older system with 14 classes.
    """
    pooled, width = _excited_and_attended(features, options), options.widths[0]
    pair = dataclasses.replace(options, batch_norm=True)
    shortcut = _normed(_weighted(pooled, width, pair, "shortcut", bias=False), pair, "shortcut")
    hidden = _hidden(pooled, width, pair, "hidden_1")
    if options.hidden_dropout:
        hidden = _dropped(hidden, options.hidden_dropout[0], "hidden_1_dropout")
    hidden = _normed(_weighted(hidden, width, pair, "hidden_1b"), pair, "hidden_1b")
    hidden = keras.layers.Add(dtype="float32", name="residual")([shortcut, hidden])
    hidden = keras.layers.ReLU(dtype="float32", name="residual_relu")(hidden)
    return logits_of(_hidden_layers(hidden, options, done=1), num_classes, 0.0)


def _excited_and_attended(features: keras.KerasTensor, options: HeadOptions) -> keras.KerasTensor:
    """Returns squeezed, excited, attended and pooled features [B, n x channels] after dropout."""
    channels = features.shape[-1]
    squeezed = keras.layers.GlobalAveragePooling2D(dtype="float32", keepdims=True, name="squeeze")(features)
    squeezed = keras.layers.Dense(max(1, channels // SQUEEZE), "relu", dtype="float32", name="excite_1")(squeezed)
    weights = keras.layers.Dense(channels, "sigmoid", dtype="float32", name="excite_2")(squeezed)
    features = keras.layers.Multiply(name="excited")([features, weights])
    return _dropped(_pooled(_attended(features, options), options), options.dropout, "dropout")


def _attended(features: keras.KerasTensor, options: HeadOptions) -> keras.KerasTensor:
    """Returns the weighted features [B, h, w, n x channels]."""
    maps = keras.layers.Conv2D(options.attention_maps, 1, activation="sigmoid", name=ATTENTION)(features)
    parts = [features * maps[..., number : number + 1] for number in range(options.attention_maps)]
    return keras.layers.Concatenate(name="attended")(parts) if len(parts) > 1 else parts[0]


def _pooled(features: keras.KerasTensor, options: HeadOptions) -> keras.KerasTensor:
    if options.map_dropout:
        features = keras.layers.Dropout(options.map_dropout, name="map_dropout")(features)
    # float32, because a mean in bfloat16 would keep only 8 bits
    return keras.layers.GlobalAveragePooling2D(dtype="float32", name="pool")(features)


def _hidden_layers(features: keras.KerasTensor, options: HeadOptions, done: int = 0) -> keras.KerasTensor:
    """Applies all hidden layers except the first `done`."""
    for number, width in list(enumerate(options.widths))[done:]:
        features = _hidden(features, width, options, f"hidden_{number + 1}")
        if options.hidden_dropout:
            features = _dropped(features, options.hidden_dropout[number], f"hidden_{number + 1}_dropout")
    return features


def _hidden(features: keras.KerasTensor, width: int, options: HeadOptions, name: str) -> keras.KerasTensor:
    features = _normed(_weighted(features, width, options, name), options, name)
    return keras.layers.ReLU(dtype="float32", name=f"{name}_relu")(features)


def _weighted(
    features: keras.KerasTensor, width: int, options: HeadOptions, name: str, bias: bool = True
) -> keras.KerasTensor:
    penalty = keras.regularizers.L1L2(options.l1, options.l2) if options.l1 or options.l2 else None
    return keras.layers.Dense(width, use_bias=bias, kernel_regularizer=penalty, dtype="float32", name=name)(features)


def _normed(features: keras.KerasTensor, options: HeadOptions, name: str) -> keras.KerasTensor:
    if not options.batch_norm:
        return features
    return keras.layers.BatchNormalization(dtype="float32", name=f"{name}_norm")(features)


def _dropped(features: keras.KerasTensor, share: float, name: str) -> keras.KerasTensor:
    return keras.layers.Dropout(share, dtype="float32", name=name)(features) if share else features


HEADS: dict[str, Callable[[keras.KerasTensor, int, HeadOptions], keras.KerasTensor]] = {
    "linear": linear,
    "dense": dense,
    "attention": attention,
    "se_attention": se_attention,
    "se_attention_projection": se_attention_projection,
}
