"""Registers kmura's classes with Keras, so that `keras.saving.load_model` finds them after `import kmura`.

Keras looks up saved classes among the registered classes; it imports the module named in the file only for its own
packages (`keras`, `keras_hub`). `import kmura` must not import TensorFlow, so the classes are registered when Keras is
imported, before or after kmura.
"""

import importlib
import importlib.abc
import sys

MODULES = (
    "kmura.models.classifier",
    "kmura.models.hybrid",
)  # importing them registers all classes of saved classifiers


def register_with_keras() -> None:
    """Registers the classes with Keras: immediately if Keras is imported, otherwise when it is imported."""
    if "keras" in sys.modules:
        _register()
    elif not any(isinstance(finder, _KerasFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _KerasFinder())


def _register() -> None:
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
                _register()

        spec.loader.exec_module = execute_and_register
        return spec
