"""Export of the network, from pixels to logits, to formats of other frameworks with the exporters of Keras."""

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

# format -> file, required packages, and the extra that installs them
_KINDS = {
    "onnx": ("model.onnx", ("tf2onnx", "onnx"), "onnx"),
    "litert": ("model.tflite", (), ""),
}
FORMATS = tuple(_KINDS)
_LIMIT = 1e-4  # of logits, relative to max(1, |logit|)


def check_possible(format: str) -> None:
    """Checks that the packages required by a format are installed.

    Raises:
        InputError: A package is missing; the message names it.
    """
    _, packages, extra = _KINDS[format]
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"format {format} needs {package}; run pip install '.[{extra}]' in a clone of kmura, "
                f"or choose savedmodel"
            )


def write(folder: Path, model: keras.Model, format: str) -> tuple[str, ...]:
    """Writes the network to `folder`, compares its logits with those of the model, and returns notes on the export.

    Raises:
        InputError: The exporter fails on this model, or the logits differ from those of the model.
    """
    path = folder / _KINDS[format][0]
    image = np.random.default_rng(0).uniform(0, 255, (1, *model.input_shape[1:])).astype(np.float32)
    right = np.asarray(model(image, training=False))  # Keras requires a call before an export
    try:
        with _quiet():
            model.export(str(path), format=format, verbose=False)
            logits = _CHECKS[format](path, image)
    except Exception as error:  # exporters and runtimes raise various types
        what = f"{type(error).__name__}: {in_brief(error)}"
        raise InputError(f"format {format} cannot be exported for this model ({what}); choose savedmodel") from error
    worst = float(np.max(np.abs(logits - right) / np.maximum(1, np.abs(right))))
    if not worst <= _LIMIT:
        raise InputError(f"format {format}: logits differ by {worst:.2g}, allowed is {_LIMIT:g}; choose savedmodel")
    return (
        "the network alone: prepare images, and make answers of logits, by the contract in signature.json",
        f"its logit is that of Keras within {max(worst, 1e-7):.0e}",
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the output of the exporters in the block; exceptions pass."""
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
    """Returns logits of the reference implementation of ONNX, which is slow but requires no runtime."""
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
