"""Sets Keras up for kmura: backend, data format, and kmura's classes, which `keras.saving.load_model` then finds.

Keras looks up saved classes among the registered classes; it imports the module named in the file only for its own
packages (`keras`, `keras_hub`). `import kmura` must not import TensorFlow, so the classes are registered when Keras is
imported, before or after kmura.
"""

import importlib
import importlib.abc
import os
import sys

from kmura.errors import InputError

MODULES = (
    "kmura.models.classifier",
    "kmura.models.hybrid",
    "kmura.models.projection",
    "kmura.models.unet",
)  # importing them registers all classes of saved models


def use_tensorflow() -> None:
    """Selects Keras 3 with TensorFlow, whatever the environment and `keras.json` say: kmura has no other backend.

    Keras and TensorFlow read the variables when they are imported.
    """
    os.environ["KERAS_BACKEND"] = "tensorflow"
    if os.environ.get("TF_USE_LEGACY_KERAS"):
        os.environ["TF_USE_LEGACY_KERAS"] = "0"


def register_with_keras() -> None:
    """Registers the classes with Keras: immediately if Keras is imported, otherwise when it is imported.

    Keras' default data format becomes `channels_last`, which kmura's layers require, and where kmura is imported before
    Keras, its default float type `float32`; `keras.json` may have others.

    Raises:
        InputError: Keras was imported with another backend.
    """
    if "keras" in sys.modules:
        _register()
    elif not any(isinstance(finder, _KerasFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _KerasFinder())


def _register() -> None:
    import keras

    if keras.config.backend() != "tensorflow":
        raise InputError(
            f"Keras was imported with the backend {keras.config.backend()} before kmura, which needs TensorFlow; set "
            "KERAS_BACKEND=tensorflow, or import kmura first"
        )
    keras.config.set_image_data_format("channels_last")
    for name in MODULES:
        importlib.import_module(name)


class _KerasFinder(importlib.abc.MetaPathFinder):
    """An import hook that registers kmura's classes at the end of the first import of Keras."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "keras":
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module):
            execute(module)
            if self in sys.meta_path:  # register only once
                sys.meta_path.remove(self)
                module.config.set_floatx("float32")
                _register()

        spec.loader.exec_module = execute_and_register
        return spec
