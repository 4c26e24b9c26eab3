"""The bare network in other programs' formats, through Keras' own exporters: pixels in, logits out."""

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np

from kmura.errors import InputError, in_brief

# format -> file, the packages that it needs, the extra that brings them
_KINDS = {
    "onnx": ("model.onnx", ("tf2onnx", "onnx"), "onnx"),
    "litert": ("model.tflite", (), ""),
}
FORMATS = tuple(_KINDS)
_LIMIT = 1e-4  # of logits, by the larger of 1 and their size


def check_possible(format: str) -> None:
    """Raises InputError if a package that the format needs is missing; names it."""
    _, packages, extra = _KINDS[format]
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"format {format} needs {package}; run pip install '.[{extra}]' in a clone of kmura, "
                f"or choose savedmodel"
            )


def write(folder: Path, model: keras.Model, format: str) -> tuple[str, ...]:
    """Writes the network into `folder` and compares its answer with the model's; gives notes about it.

    Raises:
        InputError: the exporter fails on this model, or what it made answers otherwise.
    """
    path = folder / _KINDS[format][0]
    image = np.random.default_rng(0).uniform(0, 255, (1, *model.input_shape[1:])).astype(np.float32)
    right = np.asarray(model(image, training=False))  # Keras exports only a model that was called
    try:
        with _quiet():
            model.export(str(path), format=format, verbose=False)
            found = _CHECKS[format](path, image)
    except Exception as error:  # whatever the exporters meet, or the runtime in what they made
        what = f"{type(error).__name__}: {in_brief(error)}"
        raise InputError(f"format {format} does not work for this model here ({what}); take savedmodel") from error
    worst = float(np.max(np.abs(found - right) / np.maximum(1, np.abs(right))))
    if not worst <= _LIMIT:
        raise InputError(f"format {format}: logits differ by {worst:.2g}, allowed is {_LIMIT:g}; nothing was exported")
    return (
        "the network alone: prepare images, and make answers of logits, by the contract in signature.json",
        f"its logit is that of Keras within {max(worst, 1e-7):.0e}",
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A block in which the exporters say nothing; what goes wrong they raise."""
    logger = logging.getLogger("tf2onnx")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _onnx_logits(path: Path, image: np.ndarray) -> np.ndarray:
    """Logits by ONNX's own, slow, reference implementation, which needs no runtime."""
    from onnx.reference import ReferenceEvaluator

    network = ReferenceEvaluator(str(path))
    return network.run(None, {network.input_names[0]: image})[0]


def _litert_logits(path: Path, image: np.ndarray) -> np.ndarray:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        import tensorflow as tf

        Interpreter = tf.lite.Interpreter
    network = Interpreter(str(path))
    network.allocate_tensors()
    network.set_tensor(network.get_input_details()[0]["index"], image)
    network.invoke()
    return network.get_tensor(network.get_output_details()[0]["index"])


_CHECKS: dict[str, Callable[[Path, np.ndarray], np.ndarray]] = {"onnx": _onnx_logits, "litert": _litert_logits}
