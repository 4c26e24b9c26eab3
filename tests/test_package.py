"""The installed package contains the library and its command line, and nothing else."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import kmura

ROOT = Path(__file__).parents[1]


def test_the_wheel_contains_the_command_line_and_the_recipes(tmp_path):
    source = tmp_path / "source"  # a build in place would leave its build folder, which later wheels pick up
    for name in ("kmura", "cli"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        tmp_path,
        source,
    ]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for file in ("cli/main.py", "recipes/baseline.toml", "py.typed"):
        assert f"kmura/{file}" in names
    tops = {name.split("/")[0] for name in names}
    assert tops == {"kmura", f"kmura-{kmura.__version__}.dist-info"}
    for path in (ROOT / "kmura").rglob("*.py"):
        assert path.relative_to(ROOT).as_posix() in names, "setup.cfg lists every package"


def requirements(extra: str = "") -> dict[str, str]:
    """name of a package -> the versions that setup.cfg allows, of an extra or of kmura itself."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.extras_require"][extra] if extra else setup["options"]["install_requires"]
    return dict(re.match(r"([\w-]+)(.*)", line).groups() for line in lines.split())


def test_packages_whose_private_methods_are_overridden_have_upper_bounds():
    assert requirements()["keras"] == ">=3.15,<3.16" and requirements()["keras-tuner"] == ">=1.4.8,<1.5"
    import keras
    import keras_tuner

    from kmura.classification.cam_erasing import CamErasingModel
    from kmura.training.optimizers import AdamL2

    for ours, theirs, name in (
        (AdamL2, keras.optimizers.Adam, "_distributed_tf_update_step"),
        (CamErasingModel, keras.Model, "_symbolic_build"),
    ):
        assert getattr(ours, name) is not getattr(theirs, name), "else the bound needs no such reason"
    assert hasattr(keras_tuner.Tuner, "_get_tuner_fname") and hasattr(keras_tuner.Oracle, "_save_trial")


def test_the_extra_all_holds_every_feature_that_installs_on_any_machine():
    assert requirements("gpu") == {"tensorflow": "[and-cuda]>=2.21"}
    assert requirements("all") == {"kmura": "[serving,serve,dicom,onnx,mlflow,pretrained,ct]"}
    assert list(requirements("mlflow")) == ["mlflow-skinny"]


def test_messages_advise_what_works_from_a_clone():
    for path in (*(ROOT / "kmura").rglob("*.py"), *(ROOT / "cli").rglob("*.py")):
        assert "kmura[" not in path.read_text(encoding="utf-8"), f"{path}: kmura is on no package index"


@pytest.mark.parametrize(("given", "used"), [(None, "1"), ("0", "0")])
def test_onednn_is_on_unless_the_user_says_otherwise(given, used):
    environment = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"}
    if given is not None:
        environment["TF_ENABLE_ONEDNN_OPTS"] = given
    code = "import os, kmura.cli.main; print(os.environ['TF_ENABLE_ONEDNN_OPTS'])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert done.stdout == f"{used}\n"


@pytest.mark.slow
def test_onednn_changes_the_results_by_rounding_alone(tmp_path):
    """One training step and one prediction, with and without oneDNN, on the same data."""
    code = (
        "import sys, numpy as np, keras, kmura, tensorflow as tf\n"
        "keras.utils.set_random_seed(0)\n"
        "model = kmura.build_model(backbone='densenet_mini', weights='none', image_size=32, seed=0)\n"
        "images = np.random.default_rng(0).uniform(0, 255, (16, 32, 32, 1)).astype('float32')\n"
        "labels = (np.arange(16) % 2).astype('float32')[:, None]\n"
        "loss = keras.losses.BinaryCrossentropy(from_logits=True)\n"
        "with tf.GradientTape() as tape:\n"
        "    value = loss(labels, model(images, training=True))\n"
        "gradients = tape.gradient(value, model.trainable_variables)\n"
        "flat = np.concatenate([tf.reshape(one, [-1]).numpy() for one in gradients])\n"
        "np.savez(sys.argv[1], logits=model(images, training=False).numpy(), loss=value.numpy(), gradients=flat)\n"
    )
    found = {}
    for switch in ("0", "1"):
        environment = os.environ | {"TF_ENABLE_ONEDNN_OPTS": switch}
        subprocess.run([sys.executable, "-c", code, tmp_path / f"{switch}.npz"], check=True, env=environment)
        found[switch] = np.load(tmp_path / f"{switch}.npz")
    for name in ("logits", "loss", "gradients"):
        scale = np.abs(found["0"][name]).max()
        np.testing.assert_allclose(found["1"][name], found["0"][name], atol=2e-5 * scale, rtol=0)


@pytest.mark.slow
def test_model_modules_can_be_imported_first_and_register_their_classes():
    code = (
        "import kmura.models.backbones, keras; assert keras.saving.get_registered_object('kmura>RadiographClassifier')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
