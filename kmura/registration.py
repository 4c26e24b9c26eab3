"""Makes `keras.saving.load_model` find kmura's classes after a mere `import kmura`.

Keras looks a saved class up among the classes registered so far; it imports the module named in the file only
for packages of its own (`keras`, `keras_hub`). `import kmura` must not import TensorFlow, so the classes are
registered when Keras has been imported, whichever of the two comes first.
"""

import importlib
import importlib.abc
import sys

MODULES = (
    "kmura.models.classifier",
    "kmura.models.hybrid",
)  # these register everything that a saved classifier is made of


def register_with_keras() -> None:
    """Registers the saved classes with Keras: now if it is there, else as soon as it is imported."""
    if "keras" in sys.modules:
        _register()
    elif not any(isinstance(finder, _KerasFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _KerasFinder())


def _register() -> None:
    for name in MODULES:
        importlib.import_module(name)


class _KerasFinder(importlib.abc.MetaPathFinder):
    """Lets `import keras` take its usual way, and registers kmura's classes at the end of it."""

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
            if self in sys.meta_path:  # once is enough
                sys.meta_path.remove(self)
                _register()

        spec.loader.exec_module = execute_and_register
        return spec
