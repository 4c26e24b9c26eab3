"""The registry of fusions: from the feature maps of two branches to the features of the head.

To add a fusion, write a function of levels and add it to `FUSIONS`. A level is a pair of maps, one per branch.
"""

from collections.abc import Callable, Sequence

import keras

Level = tuple[keras.KerasTensor, keras.KerasTensor]  # one map [B, h, w, channels] per entry of BRANCHES
BRANCHES = ("cnn", "swin")  # the order of the maps of a level
ATTENTION_HEADS = 4


def concat(levels: Sequence[Level], width: int) -> keras.KerasTensor:
    """Returns the concatenated spatial means of all maps, [B, sum of channels] float32. `width` is not used."""
    return _side_by_side([_pooled(maps, f"{number}_{branch}") for number, maps, branch in _each(levels)])


def gated(levels: Sequence[Level], width: int) -> keras.KerasTensor:
    """Returns the output of one gated multimodal unit per level, concatenated: [B, levels * width] float32.

    A unit computes z * tanh(W x) + (1 - z) * tanh(V y) with z = sigmoid(U [x, y]), where x and y are the spatial means
    of the two maps of the level (Arevalo et al. 2017, eq. 5).
    """
    units = []
    for number, level in enumerate(levels):
        x, y = (_pooled(maps, f"{number}_{branch}") for maps, branch in zip(level, BRANCHES, strict=True))
        gate = _dense(width, "sigmoid", f"gate_{number}")(_side_by_side([x, y]))
        ours, theirs = (
            _dense(width, "tanh", f"gated_{number}_{branch}")(features)
            for features, branch in zip((x, y), BRANCHES, strict=True)
        )
        units.append(gate * ours + (1 - gate) * theirs)
    return _side_by_side(units)


def attention(levels: Sequence[Level], width: int) -> keras.KerasTensor:
    """Returns features from attention over the positions of all maps, [B, width] float32.

    The maps are projected to `width` channels. The query is computed from their spatial means; keys and values are all
    positions of all maps (multi-head attention, Vaswani et al. 2017), so the weights of branches and positions depend
    on the image.
    """
    tokens = [
        keras.layers.Reshape((-1, width), name=f"tokens_{number}_{branch}")(
            _dense(width, None, f"token_{number}_{branch}")(maps)
        )
        for number, maps, branch in _each(levels)
    ]
    tokens = keras.layers.Concatenate(axis=1, dtype="float32", name="tokens")(tokens)
    tokens = keras.layers.LayerNormalization(epsilon=1e-5, dtype="float32", name="tokens_norm")(tokens)
    means = _side_by_side([_pooled(maps, f"{number}_{branch}") for number, maps, branch in _each(levels)])
    query = keras.layers.Reshape((1, width), name="query_token")(_dense(width, None, "query")(means))
    attended = keras.layers.MultiHeadAttention(
        ATTENTION_HEADS, width // ATTENTION_HEADS, dtype="float32", name="attention"
    )
    return keras.layers.Reshape((width,), name="attended")(query + attended(query, tokens))


FUSIONS: dict[str, Callable[[Sequence[Level], int], keras.KerasTensor]] = {
    "concat": concat,
    "gated": gated,
    "attention": attention,
}


def _each(levels: Sequence[Level]):
    """Yields (number of the level, map, name of the branch) for all maps."""
    for number, level in enumerate(levels):
        for maps, branch in zip(level, BRANCHES, strict=True):
            yield number, maps, branch


def _pooled(maps, name: str):
    return keras.layers.GlobalAveragePooling2D(dtype="float32", name=f"pool_{name}")(maps)


def _dense(width: int, activation: str | None, name: str):
    return keras.layers.Dense(width, activation=activation, dtype="float32", name=name)


def _side_by_side(features):
    return features[0] if len(features) == 1 else keras.layers.Concatenate(dtype="float32")(features)
