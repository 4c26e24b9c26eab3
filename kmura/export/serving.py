"""The signatures of an exported model, as TensorFlow graphs that hold all of its contract; requests to warm it up."""

from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from kmura import cam
from kmura.errors import InputError
from kmura.evaluation.calibration import TINY, Calibrator
from kmura.export.contract import Contract
from kmura.export.pixels import model_pixels
from kmura.records.tfrecord import CorruptShard, frame, read_frames

WARMUP = Path("assets.extra", "tf_serving_warmup_requests")  # where TensorFlow Serving looks
ANSWERS = ("logit", "probability", "threshold", "decision", "calibration")

# signature -> its input and what comes out beside ANSWERS; signature.json shows it
SIGNATURES: Mapping[str, tuple[str, str]] = {
    "serving_default": ("image_bytes", "an answer for each image: logit, probability, threshold, decision, [B] each"),
    "tensor": ("image", "the same from pixels as the model takes them, float32 in 0..255"),
    "explain": (
        "image_bytes",
        "the same, and cam [B, H, W]: Grad-CAM++ of what speaks for the decision, 0 or more, not scaled",
    ),
    "explain_tensor": ("image", "the same from pixels"),
    "study": (
        "image_bytes",
        "of the images of ONE study: probability, threshold, decision [1]; image_logit, image_probability [N]",
    ),
}


class ServedModel:
    """A classifier with its contract.

    Attributes:
        signatures: name of SIGNATURES -> a `tf.function` of its one input, which gives a dictionary of tensors.
    """

    def __init__(self, model: keras.Model, contract: Contract):
        """
        Args:
            model: gives logits [B, 1] for images [B, S, S, C] in 0..255; `feature_maps` as RadiographClassifier.
            contract: what stands around it.
        """
        size = contract.image_size
        self.model, self.contract = model, contract
        self._engine = cam.CamEngine(model, tap=contract.tap, fallback=cam.FALLBACKS[contract.tap])
        pixels = tf.TensorSpec([None, size, size, contract.channels], tf.float32, name="image")
        encoded = tf.TensorSpec([None], tf.string, name="image_bytes")
        # graphs that the signatures share
        self._logit = _graph(lambda image: tf.cast(model(image, training=False), tf.float32)[:, 0], pixels)
        self._maps = _graph(lambda image: self._engine(image, self._towards_decision), pixels)
        how = {"how": contract.resize, "max_side": contract.max_side, "channels": contract.channels}
        self._pixels = _graph(lambda image_bytes: model_pixels(image_bytes, size=size, **how), encoded)
        functions = {
            "serving_default": lambda image_bytes: self._answered(self._pixels(image_bytes)),
            "tensor": lambda image: self._answered(image),
            "explain": lambda image_bytes: self._explained(self._pixels(image_bytes)),
            "explain_tensor": lambda image: self._explained(image),
            "study": lambda image_bytes: self._pooled(self._pixels(image_bytes)),
        }
        specs = {"image_bytes": encoded, "image": pixels}
        self.signatures = {name: _graph(function, specs[SIGNATURES[name][0]]) for name, function in functions.items()}

    def save(self, folder: str | Path) -> None:
        """Writes a SavedModel with all signatures."""
        module = tf.Module()
        module.weights = [variable.value for variable in self.model.variables]
        module.functions = list(self.signatures.values())
        signatures = {name: function.get_concrete_function() for name, function in self.signatures.items()}
        tf.saved_model.save(module, str(folder), signatures=signatures)

    def _answered(self, image):
        return self._answers(self._logit(_checked(image)))

    def _explained(self, image):
        maps, logits = self._maps(_checked(image))
        return self._answers(logits[:, 0]) | {"cam": maps}

    def _towards_decision(self, logits):
        return tf.where(self._positive(self._probability(logits[:, 0]))[:, None], 1.0, -1.0)

    def _pooled(self, image):
        some = tf.debugging.Assert(tf.shape(image)[0] > 0, ["a study has one image or more; the request has none"])
        with tf.control_dependencies([some]):
            logit = _finite(self._logit(_checked(image)))
        contract = self.contract
        at_image = contract.calibrator if contract.calibrated_at == "image" else None
        probability = pooled(_calibrated(at_image, _wide(logit)), contract.pooling, contract.top_k)
        if contract.calibrator is not None and contract.calibrated_at == "study":
            probability = _calibrated(contract.calibrator, _logits_of(probability))
        return self._verdict(probability[None]) | {
            "image_logit": logit,
            "image_probability": tf.cast(self._probability(logit), tf.float32),
        }

    def _answers(self, logit):
        logit = _finite(logit)
        return {"logit": logit} | self._verdict(self._probability(logit))

    def _probability(self, logit):
        """Of an image, as a study of this one view: float64 [B]."""
        contract, wide = self.contract, _wide(logit)
        if contract.calibrator is not None and contract.calibrated_at == "study":
            wide = _logits_of(tf.sigmoid(wide))
        return _calibrated(contract.calibrator, wide)

    def _positive(self, probability):
        return probability >= tf.constant(self.contract.threshold, tf.float64)

    def _verdict(self, probability):
        def repeated(value):
            return tf.fill(tf.shape(probability), value)

        contract = self.contract
        decision = tf.gather(tf.constant(contract.classes), tf.cast(self._positive(probability), tf.int32))
        return {
            "probability": tf.cast(probability, tf.float32),
            "threshold": repeated(tf.constant(contract.threshold, tf.float32)),
            "decision": decision,
            "calibration": repeated(tf.constant(contract.calibration)),
        }


def _graph(function, spec: tf.TensorSpec) -> tf.types.experimental.PolymorphicFunction:
    return tf.function(function, input_signature=[spec], autograph=False)


def pooled(probability: tf.Tensor, how: str, k: int) -> tf.Tensor:
    """The probability [] of a study from those of its images [N], as `metrics.pool_studies`."""
    if how == "max":
        return tf.reduce_max(probability)
    if how == "noisy-or":
        return 1 - tf.reduce_prod(1 - probability)
    if how == "top-k":
        probability = tf.sort(probability, direction="DESCENDING")[:k]
    return tf.reduce_mean(probability)


def _checked(image):
    """The pixels, to be had only if they are on the scale of the model."""
    right = tf.reduce_all((image >= 0) & (image <= 255))  # also refuses what is no number
    with tf.control_dependencies([tf.debugging.Assert(right, ["image: holds values outside 0 to 255"])]):
        return tf.identity(image)


def _finite(logit):
    return tf.debugging.check_numerics(logit, "the model's output is not a number")


def _wide(logit):
    return tf.clip_by_value(tf.cast(logit, tf.float64), -60, 60)


def _logits_of(probability):
    probability = tf.clip_by_value(probability, TINY, 1 - TINY)
    return tf.math.log(probability) - tf.math.log1p(-probability)


def _calibrated(calibrator: Calibrator | None, logit):
    """Probabilities [...] of logits [...], float64."""
    if calibrator is None:
        return tf.sigmoid(logit)
    if calibrator.method != "isotonic":
        return tf.sigmoid(logit / calibrator.temperature + calibrator.bias)
    at, value = (tf.constant(column, tf.float64) for column in zip(*calibrator.knots, strict=True))
    if len(calibrator.knots) == 1:
        return tf.zeros_like(logit) + value[0]
    right = tf.searchsorted(at, tf.reshape(logit, [-1]), side="right")
    right = tf.reshape(tf.clip_by_value(right, 1, len(calibrator.knots) - 1), tf.shape(logit))
    (x0, x1), (y0, y1) = ((tf.gather(column, right - 1), tf.gather(column, right)) for column in (at, value))
    return y0 + (y1 - y0) * tf.clip_by_value((logit - x0) / (x1 - x0), 0, 1)


def check_warmup_possible() -> None:
    """Raises InputError if the package that knows the warm-up file's messages is missing."""
    try:
        import tensorflow_serving.apis.prediction_log_pb2  # noqa: F401
    except ImportError as error:
        raise InputError(
            "the warm-up requests for TensorFlow Serving need tensorflow-serving-api; pip install 'kmura[serving]', or "
            "leave them out with --no-warmup"
        ) from error


def write_warmup(folder: Path, requests: Mapping[str, np.ndarray]) -> None:
    """Writes the warm-up requests of an export: a request for each signature, its input by signature name."""
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
    """The warm-up requests of an export: signature -> its input.

    Raises:
        InputError: the file is damaged.
    """
    from tensorflow_serving.apis import prediction_log_pb2

    found = {}
    try:
        for data in read_frames(folder / WARMUP):
            request = prediction_log_pb2.PredictionLog.FromString(data).predict_log.request
            name = request.model_spec.signature_name
            found[name] = tf.constant(tf.make_ndarray(request.inputs[SIGNATURES[name][0]]))
    except (OSError, CorruptShard, DecodeError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{folder / WARMUP} is damaged ({error}); export the run again") from error
    return found
