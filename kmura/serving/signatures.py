"""The signatures of an exported model as TensorFlow graphs that include its contract; warm-up requests."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from kmura import cam
from kmura.errors import InputError
from kmura.records.tfrecord import CorruptShard, frame, read_frames
from kmura.serving.answers import answers_of
from kmura.serving.contract import Contract
from kmura.serving.pixels import model_pixels

WARMUP = Path("assets.extra", "tf_serving_warmup_requests")  # path that TensorFlow Serving requires

# signature -> its input and a description of its outputs for signature.json, filled in from the answers of a contract
SIGNATURES: Mapping[str, tuple[str, str]] = {
    "serving_default": ("image_bytes", "an answer for each image: {each}"),
    "tensor": ("image", "the same from pixels as the model takes them, float32 in 0..255"),
    "explain": (
        "image_bytes",
        "the same, and cam [B, H, W]: Grad-CAM++ of what speaks for {explained}, 0 or more, not scaled",
    ),
    "explain_tensor": ("image", "the same from pixels"),
    "study": ("image_bytes", "of the images of ONE study: {study}"),
}


class ServedModel:
    """A classifier with its contract.

    Attributes:
        signatures: name in SIGNATURES -> a `tf.function` of its single input that returns a dictionary of tensors.
    """

    def __init__(self, model: keras.Model | Sequence[keras.Model], contract: Contract):
        """
        Args:
            model: returns logits [B, L] (binary: L = 1) for images [B, S, S, C] in 0..255; has `feature_maps` like
                RadiographClassifier. Of an ensemble, one model for each member of the contract.
            contract: its preprocessing and postprocessing.
        """
        size = contract.image_size
        self.models, self.contract = [model] if isinstance(model, keras.Model) else list(model), contract
        self._answers = answers_of(contract)
        self._engines = [
            cam.CamEngine(each, tap=one.tap, fallback=cam.FALLBACKS[one.tap])
            for each, one in zip(self.models, contract.of_members(), strict=True)
        ]
        pixels = tf.TensorSpec([None, size, size, contract.channels], tf.float32, name="image")
        encoded = tf.TensorSpec([None], tf.string, name="image_bytes")
        # graphs that the signatures share
        self._logits = _graph(self._network, pixels)
        self._maps = _graph(self._mean_maps if contract.members else self._maps_of_one, pixels)
        how = {"how": contract.resize, "max_side": contract.max_side, "channels": contract.channels}
        self._pixels = _graph(lambda image_bytes: model_pixels(image_bytes, size=size, **how), encoded)
        functions = {
            "serving_default": lambda image_bytes: self._answered(self._pixels(_listed(image_bytes))),
            "tensor": lambda image: self._answered(self._sized(image)),
            "explain": lambda image_bytes: self._explained(self._pixels(_listed(image_bytes))),
            "explain_tensor": lambda image: self._explained(self._sized(image)),
            "study": lambda image_bytes: self._pooled(self._pixels(_listed(image_bytes))),
        }
        specs = {"image_bytes": encoded, "image": pixels}
        self.signatures = {name: _graph(function, specs[SIGNATURES[name][0]]) for name, function in functions.items()}

    def save(self, folder: str | Path) -> None:
        """Writes a SavedModel with all signatures."""
        module = tf.Module()
        module.weights = [variable.value for model in self.models for variable in model.variables]
        module.functions = list(self.signatures.values())
        signatures = {name: function.get_concrete_function() for name, function in self.signatures.items()}
        tf.saved_model.save(module, str(folder), signatures=signatures)

    def _network(self, image):
        """Returns the logits [B, L]; of an ensemble [B, M, L]."""
        logits = [tf.cast(model(image, training=False), tf.float32) for model in self.models]
        return tf.stack(logits, axis=1) if self.contract.members else logits[0]

    def _maps_of_one(self, image):
        return self._engines[0](image, self._answers.target)

    def _mean_maps(self, image):
        """Returns the mean of the maps of all members for the decision of the ensemble, and their logits [B, M, L]."""
        logits = self._logits(image)
        target = self._answers.target_of(self._answers.probability(logits))
        maps = [engine(image, lambda _: target)[0] for engine in self._engines]
        return tf.reduce_mean(maps, axis=0), logits

    def _sized(self, image):
        """Returns the pixels after asserting that their shape is that of the model's input."""
        size, channels = self.contract.image_size, self.contract.channels
        text = f"image: expected the shape [B, {size}, {size}, {channels}], received"
        return _of_shape(image, [size, size, channels], text)

    def _answered(self, image):
        return self._answers.of_images(_finite(self._logits(_checked(image))))

    def _explained(self, image):
        maps, logits = self._maps(_checked(image))
        return self._answers.of_images(_finite(logits)) | {"cam": maps}

    def _pooled(self, image):
        some = tf.debugging.Assert(tf.shape(image)[0] > 0, ["a study has at least one image; the request has none"])
        with tf.control_dependencies([some]):
            return self._answers.of_study(_finite(self._logits(_checked(image))))


def _graph(function, spec: tf.TensorSpec) -> tf.types.experimental.PolymorphicFunction:
    return tf.function(function, input_signature=[spec], autograph=False)


def _listed(image_bytes):
    """Returns the encoded images after asserting that they are a list [B]."""
    return _of_shape(image_bytes, [], "image_bytes: expected the shape [B], received")


def _of_shape(value, expected: list[int], text: str):
    """Returns the value [B, *expected] after asserting its shape when the graph runs.

    Servers feed requests without comparing them with the declared shape, so the assertion must not use it.
    """
    actual = tf.raw_ops.PlaceholderWithDefault(input=value, shape=tf.TensorShape(None))  # hides the declared shape
    shape = tf.shape(actual)
    right = tf.cond(
        tf.size(shape) == 1 + len(expected),
        lambda: tf.reduce_all(shape[1:] == tf.constant(expected, tf.int32)),
        lambda: tf.constant(False),
    )
    with tf.control_dependencies([tf.debugging.Assert(right, [text, shape], summarize=8)]):
        return tf.ensure_shape(tf.identity(actual), [None, *expected])


def _checked(image):
    """Returns the pixels after asserting that they are in 0..255."""
    right = tf.reduce_all((image >= 0) & (image <= 255))  # False for NaN too
    with tf.control_dependencies([tf.debugging.Assert(right, ["image: contains values outside 0 to 255"])]):
        return tf.identity(image)


def _finite(logits):
    return tf.debugging.check_numerics(logits, "the model's output is not a number")


def check_warmup_possible() -> None:
    """Checks that the package with the protocol buffers of the warm-up file is installed.

    Raises:
        InputError: The package is missing.
    """
    try:
        import tensorflow_serving.apis.prediction_log_pb2  # noqa: F401
    except ImportError as error:
        raise InputError(
            "the warm-up requests for TensorFlow Serving need tensorflow-serving-api; run pip install '.[serving]' in "
            "a clone of kmura, or omit them with --no-warmup"
        ) from error


def write_warmup(folder: Path, requests: Mapping[str, np.ndarray]) -> None:
    """Writes the warm-up requests of an export, one per signature.

    Args:
        folder: folder of the version.
        requests: signature -> its input.
    """
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    path = folder / WARMUP
    path.parent.mkdir(exist_ok=True)
    with open(path, "wb") as file:
        for name, value in requests.items():
            request = predict_pb2.PredictRequest()
            request.model_spec.signature_name = name
            request.inputs[SIGNATURES[name][0]].CopyFrom(tf.make_tensor_proto(value))
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            file.write(frame(log.SerializeToString()))


def read_warmup(folder: Path) -> dict[str, tf.Tensor]:
    """Returns the warm-up requests of an export by signature.

    Raises:
        InputError: The file is damaged.
    """
    from tensorflow_serving.apis import prediction_log_pb2

    requests = {}
    try:
        for data in read_frames(folder / WARMUP):
            request = prediction_log_pb2.PredictionLog.FromString(data).predict_log.request
            name = request.model_spec.signature_name
            requests[name] = tf.constant(tf.make_ndarray(request.inputs[SIGNATURES[name][0]]))
    except (OSError, CorruptShard, DecodeError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{folder / WARMUP} is damaged ({error}); export the run again") from error
    return requests
