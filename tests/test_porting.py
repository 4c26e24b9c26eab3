"""Porting of torch weights: every array is mapped to a variable, or the load is rejected."""

import json
import logging

import numpy as np
import pytest
from safetensors.numpy import save_file

from kmura.errors import InputError
from kmura.models.backbones import BACKBONES
from kmura.models.build import build_model
from kmura.models.porting import port, read_state
from kmura.models.swin import build_swin
from kmura.models.torch_padding import set_torch_padding
from kmura.models.weights import port_preset


def filled(body, seed=0):
    """Returns the backbone with random values in all variables."""
    rng = np.random.default_rng(seed)
    for variable in body.weights:
        if variable.dtype == "float32":
            values = rng.normal(0, 0.1, variable.shape)
            variable.assign(np.abs(values) + 0.5 if "variance" in variable.path else values)
    return body


def torchvision_densenet(body) -> dict[str, np.ndarray]:
    """Returns the state dict that torchvision would save for this DenseNet."""
    state = {}

    def conv(name, layer):
        state[f"{name}.weight"] = np.moveaxis(layer.kernel.numpy(), (2, 3), (1, 0))

    def norm(name, layer):
        for key, variable in (("weight", layer.gamma), ("bias", layer.beta), ("running_mean", layer.moving_mean),
                              ("running_var", layer.moving_variance)):  # fmt: skip
            state[f"{name}.{key}"] = variable.numpy()
        state[f"{name}.num_batches_tracked"] = np.array(7)

    layer = body.get_layer
    conv("features.conv0", layer("conv1_conv"))
    norm("features.norm0", layer("conv1_bn"))
    for stack in (1, 2, 3, 4):
        for block in (1, 2):
            for number in (1, 2):
                theirs = f"features.denseblock{stack}.denselayer{block}"
                norm(f"{theirs}.norm{number}", layer(f"stack{stack}_block{block}_{number}_bn"))
                conv(f"{theirs}.conv{number}", layer(f"stack{stack}_block{block}_{number}_conv"))
        if stack < 4:
            norm(f"features.transition{stack}.norm", layer(f"transition{stack}_bn"))
            conv(f"features.transition{stack}.conv", layer(f"transition{stack}_conv"))
    norm("features.norm5", layer("bn"))
    return state | {"classifier.weight": np.zeros((1000, 4)), "classifier.bias": np.zeros(1000)}


def swin_state(body, layout: str) -> dict[str, np.ndarray]:
    """Returns the state dict that the given library would save for this Swin transformer."""
    state = {}

    def linear(name, layer):
        state[f"{name}.weight"] = layer.kernel.numpy().T
        if layer.bias is not None:
            state[f"{name}.bias"] = layer.bias.numpy()

    def norm(name, layer):
        state[f"{name}.weight"], state[f"{name}.bias"] = layer.gamma.numpy(), layer.beta.numpy()

    hf, tv = layout == "hugging face", layout == "torchvision"
    stem = "swin.embeddings.patch_embeddings.projection" if hf else "features.0.0" if tv else "patch_embed.proj"
    state[f"{stem}.weight"] = np.moveaxis(body.patch_embedding.proj.kernel.numpy(), (2, 3), (1, 0))
    state[f"{stem}.bias"] = body.patch_embedding.proj.bias.numpy()
    norm("swin.embeddings.norm" if hf else "features.0.2" if tv else "patch_embed.norm", body.patch_embedding.norm)
    for s, stage in enumerate(body.stages):
        for b, block in enumerate(stage.blocks):
            where = f"swin.encoder.layers.{s}.blocks.{b}" if hf else f"features.{2 * s + 1}.{b}" if tv else (
                f"layers.{s}.blocks.{b}")  # fmt: skip
            norm(f"{where}.{'layernorm_before' if hf else 'norm1'}", block.norm1)
            norm(f"{where}.{'layernorm_after' if hf else 'norm2'}", block.norm2)
            table = block.attn.relative_position_bias_table.numpy()
            state[f"{where}.{'attention.self' if hf else 'attn'}.relative_position_bias_table"] = table
            state[f"{where}.{'attention.self' if hf else 'attn'}.relative_position_index"] = np.zeros(4)
            if hf:
                parts = [
                    np.split(values.numpy(), 3, axis=-1) for values in (block.attn.qkv.kernel, block.attn.qkv.bias)
                ]
                for number, name in enumerate(("query", "key", "value")):
                    state[f"{where}.attention.self.{name}.weight"] = parts[0][number].T
                    state[f"{where}.attention.self.{name}.bias"] = parts[1][number]
            else:
                linear(f"{where}.attn.qkv", block.attn.qkv)
            linear(f"{where}.{'attention.output.dense' if hf else 'attn.proj'}", block.attn.proj)
            linear(f"{where}.{'intermediate.dense' if hf else 'mlp.0' if tv else 'mlp.fc1'}", block.mlp.fc1)
            linear(f"{where}.{'output.dense' if hf else 'mlp.3' if tv else 'mlp.fc2'}", block.mlp.fc2)
        if stage.downsample is not None:
            number = s + 1 if layout == "timm" else s
            where = f"swin.encoder.layers.{s}.downsample" if hf else f"features.{2 * s + 2}" if tv else (
                f"layers.{number}.downsample")  # fmt: skip
            norm(f"{where}.norm", stage.downsample.norm)
            linear(f"{where}.reduction", stage.downsample.reduction)
    norm("swin.layernorm" if hf else "norm", body.norm)
    return state | {("classifier" if hf else "head") + ".weight": np.zeros((10, 4))}


def lite_state(body, layout: str) -> dict[str, np.ndarray]:
    """Returns the state dict that efficientnet-lite-pytorch or timm would save for this EfficientNet-Lite0."""
    state, timm = {}, layout == "timm"

    def pair(ours, conv, norm):
        layer, normal = body.get_layer(ours[0]), body.get_layer(ours[1])
        kernel = layer.kernel.numpy()
        axes = (2, 3, 0, 1) if ours[0].endswith("dwconv") else (3, 2, 0, 1)  # [channels, 1, h, w] or [out, in, h, w]
        state[f"{conv}.weight"] = kernel.transpose(axes)
        for key, variable in (("weight", normal.gamma), ("bias", normal.beta), ("running_mean", normal.moving_mean),
                              ("running_var", normal.moving_variance)):  # fmt: skip
            state[f"{norm}.{key}"] = variable.numpy()
        state[f"{norm}.num_batches_tracked"] = np.array(7)

    pair(("stem_conv", "stem_bn"), *(("conv_stem", "bn1") if timm else ("_conv_stem", "_bn0")))
    number = 0
    for stack, repeats in enumerate((1, 2, 2, 3, 3, 4, 1)):
        for inner in range(repeats):
            ours = f"block{stack + 1}{'abcd'[inner]}_"
            where = f"blocks.{stack}.{inner}." if timm else f"_blocks.{number}."
            names = [("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")] if timm else [
                ("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]  # fmt: skip
            if stack == 0:
                names = [None, ("conv_dw", "bn1"), ("conv_pw", "bn2")] if timm else [None, *names[1:]]
            for part, name in zip(
                ("expand_conv expand_bn", "dwconv dwconv_bn", "project project_bn"), names, strict=True
            ):
                if name:
                    pair([ours + layer for layer in part.split()], where + name[0], where + name[1])
            number += 1
    pair(("top_conv", "top_bn"), *(("conv_head", "bn2") if timm else ("_conv_head", "_bn1")))
    head = "classifier" if timm else "_fc"
    return state | {f"{head}.weight": np.zeros((1000, 1280)), f"{head}.bias": np.zeros(1000)}


def save(state, path):
    save_file({key: np.ascontiguousarray(value, np.float32) for key, value in state.items()}, path)


@pytest.fixture(scope="module")
def densenet():
    return filled(BACKBONES["densenet_mini"].build())


@pytest.fixture(scope="module")
def swin():
    return filled(build_swin("swin_mini", 64))


def assert_same_weights(one, other):
    for first, second in zip(one.weights, other.weights, strict=True):
        if first.dtype == "float32":
            assert (first.numpy() == second.numpy()).all(), first.path


def test_a_torchvision_densenet_is_ported_completely(densenet):
    body = filled(BACKBONES["densenet_mini"].build(), 1)
    done = port(torchvision_densenet(densenet), body, "x")
    assert_same_weights(body, densenet)
    assert done.matched == len(body.weights) and not done.reshaped
    assert {name for name in done.ignored if "num_batches" not in name} == {"classifier.weight", "classifier.bias"}


def test_a_swin_of_every_library_is_ported_completely(swin):
    body = build_swin("swin_mini", 64)
    for seed, layout in enumerate(("hugging face", "timm", "old timm", "torchvision"), start=1):
        port(swin_state(swin, layout), filled(body, seed), "x")
        assert_same_weights(body, swin)


@pytest.fixture(scope="module")
def lite():
    return filled(BACKBONES["efficientnet_lite0"].build())


@pytest.mark.parametrize("layout", ["efficientnet-lite-pytorch", "timm"])
def test_an_efficientnet_lite_of_both_libraries_is_ported_completely(lite, layout):
    body = filled(BACKBONES["efficientnet_lite0"].build(), 1)
    done = port(lite_state(lite, layout), body, "x")
    assert_same_weights(body, lite)
    assert done.matched == 245 and not done.reshaped and not done.other_padding
    with pytest.raises(InputError, match="do not belong to efficientnet_lite0: .* missing"):
        port({"conv_stem.weight": np.zeros(3)}, body, "x", "efficientnet_lite0")


def test_efficientnet_lite_pads_as_tensorflow_does(lite):
    """A depthwise convolution with stride 2 on an even side pads below and at the right only."""
    import keras

    pixels = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype("float32")
    names = ("block2a_expand_activation", "block2a_dwconv")
    before, found = (
        np.asarray(part) for part in keras.Model(lite.input, [lite.get_layer(n).output for n in names])(pixels)
    )
    kernel = lite.get_layer("block2a_dwconv").kernel.numpy()[..., 0]
    padded = np.pad(before, ((0, 0), (0, 1), (0, 1), (0, 0)))
    expected = [
        [(padded[0, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3] * kernel).sum((0, 1)) for x in range(16)] for y in range(16)
    ]
    assert found[0] == pytest.approx(np.array(expected), rel=1e-3, abs=1e-4)


def test_the_maps_of_efficientnet_lite_are_non_negative_and_halve_the_resolution(lite):
    import keras

    taps = BACKBONES["efficientnet_lite0"].taps
    pixels = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype("float32")
    maps = keras.Model(lite.input, {name: lite.get_layer(layer).output for name, layer in taps.items()})(pixels)
    assert {name: tuple(value.shape[1:]) for name, value in maps.items()} == {
        "P3": (8, 8, 240),
        "P4": (4, 4, 672),
        "P5": (2, 2, 1280),
    }
    assert all(np.asarray(value).min() >= 0 for value in maps.values())
    for name, layer in taps.items():  # no connection bypasses a tap
        if name != "P5":
            assert keras.Model(lite.get_layer(layer).output, lite.output)(maps[name]).shape == (1, 2, 2, 1280)


@pytest.mark.slow
def test_torch_padding_of_efficientnet_lite_is_symmetric(lite):
    import keras

    body = BACKBONES["efficientnet_lite0"].build()
    set_torch_padding(body)
    for variable, value in zip(body.weights, lite.weights, strict=True):
        variable.assign(value)
    pixels = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype("float32")
    names = ("block2a_expand_activation", "block2a_dwconv")
    before, found = (
        np.asarray(part) for part in keras.Model(body.input, [body.get_layer(n).output for n in names])(pixels)
    )
    kernel = body.get_layer("block2a_dwconv").kernel.numpy()[..., 0]
    padded = np.pad(before, ((0, 0), (1, 1), (1, 1), (0, 0)))
    corner = (padded[0, :3, :3] * kernel).sum((0, 1))
    assert found[0, 0, 0] == pytest.approx(corner, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("features.norm5.bias"), r"131 of 132 arrays matched; missing features.norm5.bias"),
        (
            lambda state: state.update({"features.conv0.weight": np.zeros((3, 3))}),
            r"features.conv0.weight of shape \(3, 3\) cannot",
        ),
        (lambda state: state.update({"features.more": np.zeros(3)}), "unknown features.more"),
        (
            lambda state: state.update({"features.norm5.bias": np.zeros(3)}),
            r"features.norm5.bias of shape \(3,\) cannot",
        ),
    ],
)
def test_arrays_that_do_not_match_are_rejected_without_changes(densenet, change, message):
    state = torchvision_densenet(densenet)
    change(state)
    body = filled(BACKBONES["densenet_mini"].build(), 1)
    with pytest.raises(InputError, match=message.replace("131 of 132", r"\d+ of \d+")):
        port(state, body, "x")
    assert_same_weights(body, filled(BACKBONES["densenet_mini"].build(), 1))


def test_gray_stems_and_other_window_sizes_are_converted(densenet, swin):
    state = torchvision_densenet(densenet)
    state["features.conv0.weight"] = state["features.conv0.weight"].sum(1, keepdims=True)
    body = BACKBONES["densenet_mini"].build()
    done = port(state, body, "x")
    assert done.reshaped == ("conv1_conv/kernel",)
    gray = np.repeat(np.random.default_rng(0).normal(size=(1, 32, 32, 1)), 3, axis=-1).astype(np.float32)
    assert np.asarray(body(gray)) == pytest.approx(np.asarray(densenet(gray)), abs=1e-4)
    state = swin_state(swin, "timm")
    key = "layers.0.blocks.0.attn.relative_position_bias_table"
    state[key] = np.repeat(np.linspace(0, 1, 5), 5)[:, None] * np.ones((25, 1))  # for windows of size 3
    other = build_swin("swin_mini", 64)
    assert len(port(state, other, "x").reshaped) == 1
    table = other.stages[0].blocks[0].attn.relative_position_bias_table.numpy().reshape(3, 3)
    assert (np.diff(table, axis=0) > 0.2).all() and np.diff(table, axis=1) == pytest.approx(0, abs=1e-6)


def test_torch_padding_samples_the_same_positions_as_torch():
    body = BACKBONES["densenet_mini"].build()
    set_torch_padding(body)
    import keras

    stem = keras.Model(body.input, [body.get_layer("conv1_conv").output, body.get_layer("pool1").output])
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(1, 10, 10, 3)).astype(np.float32)
    conv, pool = (np.asarray(each) for each in stem(pixels))
    kernel = body.get_layer("conv1_conv").kernel.numpy()
    padded = np.pad(pixels[0], ((3, 3), (3, 3), (0, 0)))
    literal = [
        [np.tensordot(padded[2 * y : 2 * y + 7, 2 * x : 2 * x + 7], kernel, 3) for x in range(5)] for y in range(5)
    ]
    assert conv[0] == pytest.approx(np.array(literal), abs=1e-4)
    before = np.asarray(keras.Model(body.input, body.get_layer("conv1_relu").output)(pixels))[0]
    padded = np.pad(before, ((1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    literal = [[padded[2 * y : 2 * y + 3, 2 * x : 2 * x + 3].max((0, 1)) for x in range(3)] for y in range(3)]
    assert pool[0] == pytest.approx(np.array(literal), abs=1e-5)


@pytest.mark.slow
def test_a_state_dict_can_be_loaded_directly_or_from_a_preset(densenet, swin, tmp_path, caplog):
    save(torchvision_densenet(densenet), tmp_path / "densenet.safetensors")
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "swin"}))
    save(swin_state(swin, "hugging face"), folder / "model.safetensors")
    common = {"architecture": "hybrid", "backbone": "densenet_mini", "swin": "swin_mini", "image_size": 64}
    with caplog.at_level(logging.INFO, logger="kmura"):
        model = build_model(weights=str(tmp_path / "densenet.safetensors"), swin_weights=str(folder), **common)
    assert_same_weights(model.backbone, densenet)
    assert_same_weights(model.swin, swin)
    assert "arrays of backbone densenet_mini matched, 0 missing, 0 reshaped" in caplog.text
    assert "set model.torch_padding=true" in caplog.text
    done = port_preset(tmp_path / "densenet.safetensors", "densenet_mini", tmp_path / "preset")
    assert done.matched == len(densenet.weights)
    caplog.clear()
    options = {"backbone": "densenet_mini", "image_size": 64, "torch_padding": True}
    assert_same_weights(build_model(weights=str(tmp_path / "preset"), **options).backbone, densenet)
    assert "torch_padding" not in caplog.text
    of_torch = build_model(weights="none", **options)
    of_torch.save(tmp_path / "torch.keras")
    other = options | {"torch_padding": False}
    build_model(weights=str(tmp_path / "preset"), **other)
    assert "set model.torch_padding=true" in caplog.text
    with pytest.raises(InputError, match="trained with model.torch_padding=true, but the model has false; set"):
        build_model(weights=str(tmp_path / "torch.keras"), **other)
    with pytest.raises(InputError, match="exists; choose another"):
        port_preset(tmp_path / "densenet.safetensors", "densenet_mini", tmp_path / "preset")
    with pytest.raises(InputError, match="cannot be ported to resnet18_small; choose another backbone"):
        port_preset(tmp_path / "densenet.safetensors", "resnet18_small", tmp_path / "other")
    with pytest.raises(InputError, match="do not belong to swin_mini"):
        port_preset(tmp_path / "densenet.safetensors", "swin_mini", tmp_path / "other")
    with pytest.raises(
        InputError, match="image_size is an option of Swin transformers; remove it, weights of densenet_mini"
    ):
        port_preset(tmp_path / "densenet.safetensors", "densenet_mini", tmp_path / "other", image_size=64)
    assert done.other_padding and not port_preset(folder, "swin_mini", tmp_path / "swin", image_size=64).other_padding
    assert not list(tmp_path.glob(".*"))


def test_swin_version_2_is_rejected_in_one_line(swin):
    for layout in ("torchvision", "timm", "hugging face"):
        state = swin_state(swin, layout)
        for key in [key for key in state if key.endswith("relative_position_bias_table")]:
            del state[key]
            attention = key.rpartition(".")[0]
            state[f"{attention}.logit_scale"] = np.ones((1, 1, 1))
            state[f"{attention}.cpb_mlp.0.weight"] = np.zeros((512, 2))
        with pytest.raises(
            InputError, match="do not belong to swin_mini: .* arrays matched; .* belong to a Swin Transformer V2"
        ) as error:
            port(state, swin, "x")
        assert "\n" not in str(error.value)


def write_safetensors(path, kind, numbers):
    """Writes a file with one array `x` whose header declares the type `kind`."""
    header = json.dumps({"x": {"dtype": kind, "shape": [numbers.size], "data_offsets": [0, numbers.nbytes]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + numbers.tobytes())


def test_all_half_precision_types_are_read_and_other_types_rejected(tmp_path):
    numbers = np.array([1.0, -0.375, 3e4], np.float32)
    write_safetensors(tmp_path / "f16.safetensors", "F16", numbers.astype(np.float16))
    write_safetensors(tmp_path / "bf16.safetensors", "BF16", (numbers.view(np.uint32) >> 16).astype(np.uint16))
    for name, expected in (("f16", numbers.astype(np.float16)), ("bf16", np.array([1.0, -0.375, 29952.0]))):
        found = read_state(tmp_path / f"{name}.safetensors")["x"]
        assert found.dtype == np.float32 and (found == expected).all()
    write_safetensors(tmp_path / "f8.safetensors", "F8_E4M3", numbers.astype(np.int8))
    with pytest.raises(InputError, match="not a safetensors file of numpy types.*; save float32 arrays"):
        read_state(tmp_path / "f8.safetensors")


def test_files_that_are_not_a_state_dict_are_rejected(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(InputError, match="damaged or not a safetensors file of numpy types"):
        read_state(tmp_path / "cut.safetensors")
    (tmp_path / "a.pth").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="damaged or not a file of torch.save"):
        read_state(tmp_path / "a.pth")
    with pytest.raises(InputError, match="is not a state dict of torch"):
        port_preset(tmp_path, "densenet_mini", tmp_path / "out")
