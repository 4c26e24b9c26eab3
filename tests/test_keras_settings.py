"""Settings of Keras from outside (environment, `keras.json`) do not change what kmura does."""

import json
import os
import subprocess
import sys

import pytest

from kmura.errors import InputError
from kmura.registration import _register, use_tensorflow

PROGRAM = """
import {first}
import {second}
import numpy as np

assert keras.config.backend() == "tensorflow"
assert keras.config.image_data_format() == "channels_last"
{float_type}
model = kmura.build_model(backbone="densenet_mini", weights="none", image_size=32)
assert model.feature_maps["P5"].shape[1:] == (1, 1, 68), model.feature_maps["P5"].shape
assert model.dtype_policy.name == "float32"
assert np.asarray(model(np.zeros((1, 32, 32, 1)))).shape == (1, 1)
import tensorflow as tf
assert tf.keras.layers.Dense is keras.layers.Dense
"""


def program(first, second, float_type, folder, **settings):
    (folder / "keras.json").write_text(json.dumps(settings))
    environment = os.environ | {"KERAS_HOME": str(folder), "TF_USE_LEGACY_KERAS": "1"}
    code = PROGRAM.format(first=first, second=second, float_type=float_type)
    return [sys.executable, "-c", code], environment


@pytest.mark.slow
def test_another_backend_data_format_float_type_and_legacy_keras_are_overridden(tmp_path):
    float_type = 'assert keras.config.floatx() == "float32"'
    settings = {"backend": "jax", "image_data_format": "channels_first", "floatx": "float16", "epsilon": 1e-7}
    command, environment = program("kmura", "keras", float_type, tmp_path, **settings)
    done = subprocess.run(command, env=environment | {"KERAS_BACKEND": "torch"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_data_format_is_also_set_if_keras_was_imported_before(tmp_path):
    command, environment = program("keras", "kmura", "", tmp_path, image_data_format="channels_first")
    environment |= {"KERAS_BACKEND": "tensorflow", "TF_USE_LEGACY_KERAS": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_environment_selects_tensorflow_and_keras_3(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
    use_tensorflow()
    assert (os.environ["KERAS_BACKEND"], os.environ["TF_USE_LEGACY_KERAS"]) == ("tensorflow", "0")


def test_keras_with_another_backend_is_refused_in_one_line(monkeypatch):
    import keras

    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(InputError, match="backend jax before kmura, .* set KERAS_BACKEND=tensorflow, or import kmura"):
        _register()
