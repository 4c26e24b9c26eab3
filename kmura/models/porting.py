"""Loads weights of torch models into a backbone, with tables that map every array.

A table is a list of entries (source keys, Keras variable, conversion of the arrays). Every source key and every
variable must be mapped, except those that `IGNORED` matches: heads, counters, and buffers that torch computes.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import keras
import numpy as np

from kmura.errors import InputError, unreadable
from kmura.models.torch_padding import has_same_padding
from kmura.models.torch_pickle import read_tensors

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
# keys of a source that a backbone does not have: heads, counters, buffers that follow from the architecture
IGNORED = re.compile(
    r"(classifier|head|head_dist|_?fc)\.|.*\.num_batches_tracked$|.*relative_position_index$|.*attn_mask$|pooler\."
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One variable of the backbone and the source of its values.

    Attributes:
        keys: keys of the source.
        variable: the variable of the backbone.
        convert: the arrays of `keys`, in order -> the value of the variable.
        reshape: how a different shape is adapted: `stem` from gray images, `positions` from another window size; ""
            does not allow a different shape.
    """

    keys: tuple[str, ...]
    variable: keras.Variable
    convert: Callable[..., np.ndarray]
    reshape: Literal["", "stem", "positions"] = ""


@dataclasses.dataclass(frozen=True)
class Ported:
    """The result of `port`.

    Attributes:
        matched: number of arrays of the backbone that were set.
        reshaped: paths of the variables whose arrays were reshaped.
        ignored: keys of the source that were not used (heads and counters).
        other_padding: the weights were trained with torch's padding and the backbone pads as TensorFlow does; see
            `kmura.models.torch_padding`.
    """

    matched: int
    reshaped: tuple[str, ...]
    ignored: tuple[str, ...]
    other_padding: bool


def read_state(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a torch state dict by key, float32.

    Args:
        path: a safetensors file, or a file of `torch.save`, which is read without executing its code.

    Raises:
        InputError: the file is damaged or of another type, or it holds more than plain tensors.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            arrays = load_file(path)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, OSError) and error.errno:
                raise unreadable(path, error) from error
            raise InputError(
                f"weights {path} are damaged or not a safetensors file of numpy types ({error}); save float32 arrays"
            ) from error
    else:
        arrays = read_tensors(path)
    return {key: np.asarray(value, np.float32) for key, value in arrays.items()}


def port(state: Mapping[str, np.ndarray], body: keras.Model, source: str | Path, name: str = "") -> Ported:
    """Loads a state dict of torch into a DenseNet, Swin or EfficientNet-Lite backbone.

    Args:
        state: key -> array, with the keys of torchvision, timm, Hugging Face or efficientnet-lite-pytorch.
        body: DenseNetBackbone or SwinTransformerBackbone of keras-hub, or EfficientNetLite.
        source, name: origin of the state dict and name of the backbone, for error messages.

    Returns:
        The numbers and names of matched, reshaped and ignored arrays.

    Raises:
        InputError: the state dict is of another architecture: a key or a variable is not in the table, or a shape does
            not fit. The backbone is unchanged in this case.
    """
    state = {_bare(key): value for key, value in state.items()}
    name = name or body.name
    kind = type(body).__name__
    if kind not in TABLES:
        raise InputError(f"weights {source} cannot be ported to {name}; choose another backbone")
    table = TABLES[kind](body, state)
    known = {key for entry in table for key in entry.keys}
    missing = sorted(known - state.keys())
    unexpected = sorted(key for key in state.keys() - known if not IGNORED.match(key))
    unset = {variable.path for variable in _ported(body)} - {entry.variable.path for entry in table}
    if missing or unexpected or unset:
        parts = [f"{len(known) - len(missing)} of {len(known)} arrays matched"]
        parts += [f"missing {_some(missing)}"] if missing else []
        parts += [f"unknown {_some(unexpected)}"] if unexpected else []
        parts += [f"without a source {_some(sorted(unset))}"] if unset else []
        if any(key.endswith(".logit_scale") for key in unexpected):
            parts.append("they belong to a Swin Transformer V2; give weights of the first version")
        raise InputError(f"weights {source} do not belong to {name}: {'; '.join(parts)}")
    values, reshaped = [], []
    for entry in table:
        shape, given = tuple(entry.variable.shape), tuple(state[key].shape for key in entry.keys)
        try:
            array = entry.convert(*(state[key] for key in entry.keys))
            fitted = array if array.shape == shape else _fitted(array, shape, entry)
        except ValueError:  # another rank
            fitted = None
        if fitted is None:
            raise InputError(
                f"weights {source} do not fit {name}: {entry.keys[0]} of shape {given[0]} cannot be converted to "
                f"{entry.variable.path} of shape {shape}"
            )
        if fitted is not array:
            array = fitted
            reshaped.append(entry.variable.path)
        values.append(array)
    for entry, array in zip(table, values, strict=True):
        entry.variable.assign(array)
    other_padding = kind not in TRAINED_IN_TENSORFLOW and has_same_padding(body)
    return Ported(len(table), tuple(reshaped), tuple(sorted(state.keys() - known)), other_padding)


def _bare(key: str) -> str:
    """Returns a key without the prefixes of wrappers, with keys of early torchvision DenseNets in current spelling."""
    key = re.sub(r"^(module\.|model\.|swin\.)+", "", key)
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.", r"\1\2.", key)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _fitted(array: np.ndarray, shape: tuple[int, ...], entry: Entry) -> np.ndarray | None:
    """Returns the array adapted to another shape if its entry allows this; otherwise None.

    The kernel of a stem for gray images is divided equally among the channels; relative positions are interpolated
    (bicubic).
    """
    if entry.reshape == "stem" and array.shape[2] == 1 and array.shape[:2] + array.shape[3:] == shape[:2] + shape[3:]:
        return np.repeat(array / shape[2], shape[2], axis=2)
    sides = [round(rows**0.5) for rows in (array.shape[0], shape[0])]
    if entry.reshape == "positions" and array.shape[1:] == shape[1:] and sides[0] ** 2 == array.shape[0]:
        grid = array.reshape(1, sides[0], sides[0], -1)
        resized = keras.ops.image.resize(grid, (sides[1], sides[1]), "bicubic", data_format="channels_last")
        return np.asarray(resized).reshape(shape)
    return None


def _ported(body: keras.Model) -> list[keras.Variable]:
    """Returns the variables that a port must set: all except the random states of dropout."""
    return [variable for variable in body.weights if variable.dtype.startswith(("float", "bfloat"))]


def _same(array):
    return array


def _kernel(array):
    """Converts the kernel of a convolution from [out, in, rows, columns] to [rows, columns, in, out]."""
    return array.transpose(2, 3, 1, 0)


def _depthwise_kernel(array):
    """Converts a depthwise kernel from [channels, 1, rows, columns] to [rows, columns, channels, 1]."""
    return array.transpose(2, 3, 0, 1)


def _dense(array):
    """Converts the kernel of a linear layer from [out, in] to [in, out]."""
    return array.T


def _joined_dense(*arrays):
    """Concatenates the kernels of query, key and value, each [out, in], to [in, 3 out]."""
    return np.concatenate(arrays).T


def _joined(*arrays):
    return np.concatenate(arrays)


def densenet_table(body: keras.Model, state: Mapping[str, np.ndarray]) -> list[Entry]:
    """Returns the table of a DenseNet for the keys of torchvision and timm, which are the same."""

    def conv(ours: str, theirs: str):
        yield Entry((f"{theirs}.weight",), body.get_layer(ours).kernel, _kernel)

    def norm(ours: str, theirs: str):
        return _batch_norm(body.get_layer(ours), theirs)

    stem = Entry(("features.conv0.weight",), body.get_layer("conv1_conv").kernel, _kernel, "stem")
    table = [stem, *norm("conv1_bn", "features.norm0")]
    for stack, repeats in enumerate(body.stackwise_num_repeats, start=1):
        for block in range(1, repeats + 1):
            ours, theirs = f"stack{stack}_block{block}", f"features.denseblock{stack}.denselayer{block}"
            for number in (1, 2):
                table += norm(f"{ours}_{number}_bn", f"{theirs}.norm{number}")
                table += conv(f"{ours}_{number}_conv", f"{theirs}.conv{number}")
        if stack < len(body.stackwise_num_repeats):
            table += norm(f"transition{stack}_bn", f"features.transition{stack}.norm")
            table += conv(f"transition{stack}_conv", f"features.transition{stack}.conv")
    return table + [*norm("bn", "features.norm5")]


@dataclasses.dataclass(frozen=True)
class _LiteNames:
    """The keys of the parts of an EfficientNet-Lite in a source.

    Attributes:
        stem, top: convolution and normalisation before and after the blocks.
        block: of (stack, block in the stack, block of all), each counted from 0.
        expand, depthwise, project: convolution and normalisation of a block, after a dot.
        unexpanded: `depthwise` and `project` of a block without expansion.
    """

    stem: tuple[str, str]
    top: tuple[str, str]
    block: Callable[[int, int, int], str]
    expand: tuple[str, str]
    depthwise: tuple[str, str]
    project: tuple[str, str]
    unexpanded: tuple[tuple[str, str], tuple[str, str]]


_LITE_PYTORCH = _LiteNames(
    stem=("_conv_stem", "_bn0"),
    top=("_conv_head", "_bn1"),
    block=lambda stack, inner, number: f"_blocks.{number}",
    expand=("_expand_conv", "_bn0"),
    depthwise=("_depthwise_conv", "_bn1"),
    project=("_project_conv", "_bn2"),
    unexpanded=(("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")),
)
_LITE_TIMM = _LiteNames(
    stem=("conv_stem", "bn1"),
    top=("conv_head", "bn2"),
    block=lambda stack, inner, number: f"blocks.{stack}.{inner}",
    expand=("conv_pw", "bn1"),
    depthwise=("conv_dw", "bn2"),
    project=("conv_pwl", "bn3"),
    unexpanded=(("conv_dw", "bn1"), ("conv_pw", "bn2")),
)


def efficientnet_lite_table(body: keras.Model, state: Mapping[str, np.ndarray]) -> list[Entry]:
    """Returns the table of an EfficientNet-Lite for the keys of efficientnet-lite-pytorch or timm (`tf_`)."""
    names = _LITE_TIMM if "conv_stem.weight" in state else _LITE_PYTORCH

    def pair(ours: tuple[str, str], theirs: tuple[str, str], where: str = ""):
        layer = body.get_layer(ours[0])
        depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        key = f"{where}{theirs[0]}.weight"
        yield Entry((key,), layer.kernel, _depthwise_kernel if depthwise else _kernel, "stem" if not where else "")
        yield from _batch_norm(body.get_layer(ours[1]), where + theirs[1])

    table, number = [*pair(("stem_conv", "stem_bn"), names.stem)], 0
    for stack, repeats in enumerate(body.stackwise_num_repeats):
        for inner in range(repeats):
            ours, where = f"block{stack + 1}{chr(ord('a') + inner)}_", f"{names.block(stack, inner, number)}."
            depthwise, project = names.depthwise, names.project
            if body.stackwise_expansion_ratios[stack] == 1:
                depthwise, project = names.unexpanded
            else:
                table += pair((ours + "expand_conv", ours + "expand_bn"), names.expand, where)
            table += pair((ours + "dwconv", ours + "dwconv_bn"), depthwise, where)
            table += pair((ours + "project", ours + "project_bn"), project, where)
            number += 1
    return table + [*pair(("top_conv", "top_bn"), names.top)]


def _batch_norm(layer: keras.layers.BatchNormalization, theirs: str) -> Iterator[Entry]:
    for name, variable in (
        ("weight", layer.gamma),
        ("bias", layer.beta),
        ("running_mean", layer.moving_mean),
        ("running_var", layer.moving_variance),
    ):
        yield Entry((f"{theirs}.{name}",), variable, _same)


@dataclasses.dataclass(frozen=True)
class _Names:
    """The keys of the parts of a Swin transformer in a source; {s} is a stage, {b} a block, counted from 0."""

    embedding: str
    embedding_norm: str
    block: str
    norms: tuple[str, str]
    qkv: tuple[str, ...]
    position: str
    projection: str
    mlp: tuple[str, str]
    merging: Callable[[int], str]
    norm: str


def _timm(merging: Callable[[int], str]) -> _Names:
    return _Names(
        embedding="patch_embed.proj",
        embedding_norm="patch_embed.norm",
        block="layers.{s}.blocks.{b}",
        norms=("norm1", "norm2"),
        qkv=("attn.qkv",),
        position="attn.relative_position_bias_table",
        projection="attn.proj",
        mlp=("mlp.fc1", "mlp.fc2"),
        merging=merging,
        norm="norm",
    )


_HUGGING_FACE = _Names(
    embedding="embeddings.patch_embeddings.projection",
    embedding_norm="embeddings.norm",
    block="encoder.layers.{s}.blocks.{b}",
    norms=("layernorm_before", "layernorm_after"),
    qkv=tuple(f"attention.self.{name}" for name in ("query", "key", "value")),
    position="attention.self.relative_position_bias_table",
    projection="attention.output.dense",
    mlp=("intermediate.dense", "output.dense"),
    merging=lambda stage: f"encoder.layers.{stage}.downsample",
    norm="layernorm",
)
_TORCHVISION = dataclasses.replace(
    _timm(lambda stage: f"features.{2 * stage + 2}"),
    embedding="features.0.0",
    embedding_norm="features.0.2",
    mlp=("mlp.0", "mlp.3"),
)


def _layout(state: Mapping[str, np.ndarray]) -> _Names:
    """Returns the names that match the keys of `state`.

    timm merges patches at the beginning of a stage since version 0.9, and at the end of a stage before.
    """
    if "embeddings.patch_embeddings.projection.weight" in state:
        return _HUGGING_FACE
    if "features.0.0.weight" in state:
        return _TORCHVISION
    late = "layers.3.downsample.reduction.weight" in state
    return _timm(lambda stage: f"layers.{stage + late}.downsample")


def swin_table(body: keras.Model, state: Mapping[str, np.ndarray]) -> list[Entry]:
    """Returns the table of a Swin transformer for the keys of `state`: Hugging Face, timm or torchvision."""
    names = _layout(state)

    def affine(theirs: str, scale, shift, convert):
        return [Entry((f"{theirs}.weight",), scale, convert), Entry((f"{theirs}.bias",), shift, _same)]

    embedding = body.patch_embedding
    table = [
        Entry((f"{names.embedding}.weight",), embedding.proj.kernel, _kernel, "stem"),
        Entry((f"{names.embedding}.bias",), embedding.proj.bias, _same),
    ]
    table += affine(names.embedding_norm, embedding.norm.gamma, embedding.norm.beta, _same)
    for s, stage in enumerate(body.stages):
        for b, block in enumerate(stage.blocks):
            where = names.block.format(s=s, b=b) if names is not _TORCHVISION else f"features.{2 * s + 1}.{b}"
            attention = block.attn
            for norm, theirs in zip((block.norm1, block.norm2), names.norms, strict=True):
                table += affine(f"{where}.{theirs}", norm.gamma, norm.beta, _same)
            keys = [f"{where}.{name}" for name in names.qkv]
            table.append(Entry(tuple(f"{key}.weight" for key in keys), attention.qkv.kernel, _joined_dense))
            table.append(Entry(tuple(f"{key}.bias" for key in keys), attention.qkv.bias, _joined))
            table.append(
                Entry((f"{where}.{names.position}",), attention.relative_position_bias_table, _same, "positions")
            )
            table += affine(f"{where}.{names.projection}", attention.proj.kernel, attention.proj.bias, _dense)
            for layer, theirs in zip((block.mlp.fc1, block.mlp.fc2), names.mlp, strict=True):
                table += affine(f"{where}.{theirs}", layer.kernel, layer.bias, _dense)
        if stage.downsample is not None:
            where, merging = names.merging(s), stage.downsample
            table.append(Entry((f"{where}.reduction.weight",), merging.reduction.kernel, _dense))
            table += affine(f"{where}.norm", merging.norm.gamma, merging.norm.beta, _same)
    return table + affine(names.norm, body.norm.gamma, body.norm.beta, _same)


# class of a backbone -> the function that returns its table
TABLES: dict[str, Callable[[keras.Model, Mapping[str, np.ndarray]], list[Entry]]] = {
    "DenseNetBackbone": densenet_table,
    "SwinTransformerBackbone": swin_table,
    "EfficientNetLite": efficientnet_lite_table,
}
TRAINED_IN_TENSORFLOW = ("EfficientNetLite",)  # the weights of the table need no other padding
