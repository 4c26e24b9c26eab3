"""Weights of torch's models for a backbone, by tables that name every array on both sides.

A table is a list of entries (source keys, Keras variable, how the arrays become the variable's). Nothing may be left
over on either side but what is named here: heads, counters and what torch computes itself.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import keras
import numpy as np

from kmura.errors import InputError
from kmura.models.torch_padding import has_same_padding

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
# of a source, not of a backbone: heads, counters, buffers that follow from the architecture
IGNORED = re.compile(
    r"(classifier|head|head_dist|fc)\.|.*\.num_batches_tracked$|.*relative_position_index$|.*attn_mask$|pooler\."
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One variable of the backbone and where its values come from.

    Attributes:
        keys: of the source.
        convert: takes their arrays in order.
        reshape: how another shape may be met: `stem` for gray images, `positions` of windows of another size.
    """

    keys: tuple[str, ...]
    variable: keras.Variable
    convert: Callable[..., np.ndarray]
    reshape: Literal["", "stem", "positions"] = ""


@dataclasses.dataclass(frozen=True)
class Ported:
    """What a port did.

    Attributes:
        matched: arrays of the backbone that were set.
        reshaped: those of them that were brought to another shape.
        ignored: keys of heads and counters, left out.
        other_padding: the backbone pads otherwise than torch, where the weights were trained; see
            `kmura.models.torch_padding`.
    """

    matched: int
    reshaped: tuple[str, ...]
    ignored: tuple[str, ...]
    other_padding: bool


def read_state(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a torch state dict by key, float32, from a safetensors file or a pickle read without code.

    Raises:
        InputError: damaged, another kind of file, or a pickle where torch is not installed.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            found = load_file(path)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"weights {path}: no safetensors file of numpy's types, or damaged ({error}); save float32 arrays"
            ) from error
    else:
        try:
            import torch
        except ImportError as error:
            raise InputError(
                f"weights {path}: reading {path.suffix} needs torch, which is not installed; save the arrays as "
                "safetensors where it is, or install torch here"
            ) from error
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
            loaded = loaded.get("state_dict", loaded.get("model", loaded))
            found = {key: value.float().numpy() for key, value in loaded.items()}
        except Exception as error:  # torch's own, pickle's, and those of what else a pickle may hold
            raise InputError(
                f"weights {path}: no state dict that can be read without running code ({error})"
            ) from error
    return {key: np.asarray(value, np.float32) for key, value in found.items()}


def port(state: Mapping[str, np.ndarray], body: keras.Model, source: str | Path, name: str = "") -> Ported:
    """Puts a state dict of torchvision, timm or Hugging Face into a DenseNet or Swin backbone.

    Args:
        state: key -> array.
        body: DenseNetBackbone or SwinTransformerBackbone of keras-hub.
        source, name: where the state is from and what the backbone is called, for errors.

    Raises:
        InputError: another architecture: a key or a variable that the table does not know, or a shape that does not
            fit. The backbone keeps what it had.
    """
    state = {_bare(key): value for key, value in state.items()}
    name = name or body.name
    kind = type(body).__name__
    if kind not in TABLES:
        raise InputError(f"weights {source}: no table ports torch's weights to {name}; there are DenseNet and Swin")
    table = TABLES[kind](body, state)
    known = {key for entry in table for key in entry.keys}
    missing = sorted(known - state.keys())
    strange = sorted(key for key in state.keys() - known if not IGNORED.match(key))
    unset = {variable.path for variable in _ported(body)} - {entry.variable.path for entry in table}
    if missing or strange or unset:
        parts = [f"{len(known) - len(missing)} of {len(known)} arrays matched"]
        parts += [f"missing {_some(missing)}"] if missing else []
        parts += [f"not known {_some(strange)}"] if strange else []
        parts += [f"without a source {_some(sorted(unset))}"] if unset else []
        if any(key.endswith(".logit_scale") for key in strange):
            parts.append("they are of a Swin Transformer V2; give those of the first version")
        raise InputError(f"weights {source} are not of {name}: {'; '.join(parts)}")
    values, reshaped = [], []
    for entry in table:
        shape, given = tuple(entry.variable.shape), tuple(state[key].shape for key in entry.keys)
        try:
            array = entry.convert(*(state[key] for key in entry.keys))
            fitted = array if array.shape == shape else _fitted(array, shape, entry)
        except ValueError:  # of another rank
            fitted = None
        if fitted is None:
            raise InputError(
                f"weights {source} do not fit {name}: {entry.keys[0]} is {given[0]}, which does not become "
                f"{entry.variable.path} {shape}"
            )
        if fitted is not array:
            array = fitted
            reshaped.append(entry.variable.path)
        values.append(array)
    for entry, array in zip(table, values, strict=True):
        entry.variable.assign(array)
    return Ported(len(table), tuple(reshaped), tuple(sorted(state.keys() - known)), has_same_padding(body))


def _bare(key: str) -> str:
    """A key without the prefixes of wrappers, in the present spelling of torchvision's first DenseNets."""
    key = re.sub(r"^(module\.|model\.|swin\.)+", "", key)
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.", r"\1\2.", key)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _fitted(array: np.ndarray, shape: tuple[int, ...], entry: Entry) -> np.ndarray | None:
    """An array brought to another shape where its entry allows that; else None.

    A stem for gray images gives each channel a third; relative positions are interpolated (bicubic).
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
    """The variables that a port must set: all but the random states of dropout."""
    return [variable for variable in body.weights if variable.dtype.startswith(("float", "bfloat"))]


def _same(array):
    return array


def _kernel(array):
    """Of a convolution: torch's [out, in, rows, columns] as [rows, columns, in, out]."""
    return array.transpose(2, 3, 1, 0)


def _dense(array):
    """Of a linear layer: torch's [out, in] as [in, out]."""
    return array.T


def _joined_dense(*arrays):
    """Of query, key and value: three [out, in] as one [in, 3 out]."""
    return np.concatenate(arrays).T


def _joined(*arrays):
    return np.concatenate(arrays)


def densenet_table(body: keras.Model, state: Mapping[str, np.ndarray]) -> list[Entry]:
    """The table of a DenseNet in the keys of torchvision and timm, which are the same."""

    def conv(ours: str, theirs: str):
        yield Entry((f"{theirs}.weight",), body.get_layer(ours).kernel, _kernel)

    def norm(ours: str, theirs: str):
        layer = body.get_layer(ours)
        for name, variable in (
            ("weight", layer.gamma),
            ("bias", layer.beta),
            ("running_mean", layer.moving_mean),
            ("running_var", layer.moving_variance),
        ):
            yield Entry((f"{theirs}.{name}",), variable, _same)

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
class _Names:
    """What a source calls the parts of a Swin transformer; {s} is a stage, {b} a block, counted from 0."""

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
    """Whose keys these are; timm's since 0.9 merge patches at the begin of a stage, before at the end."""
    if "embeddings.patch_embeddings.projection.weight" in state:
        return _HUGGING_FACE
    if "features.0.0.weight" in state:
        return _TORCHVISION
    late = "layers.3.downsample.reduction.weight" in state
    return _timm(lambda stage: f"layers.{stage + late}.downsample")


def swin_table(body: keras.Model, state: Mapping[str, np.ndarray]) -> list[Entry]:
    """The table of a Swin transformer in the keys of Hugging Face, timm or torchvision, whichever `state` has."""
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


# class of a backbone -> its table
TABLES: dict[str, Callable[[keras.Model, Mapping[str, np.ndarray]], list[Entry]]] = {
    "DenseNetBackbone": densenet_table,
    "SwinTransformerBackbone": swin_table,
}
