"""Probabilities and decisions from logits as TensorFlow graphs, equal to those that `Contract` computes from arrays."""

from collections.abc import Callable, Mapping

import tensorflow as tf

from kmura import cam
from kmura.evaluation.calibrators import Calibrator
from kmura.metrics import TINY
from kmura.serving.contract import Contract
from kmura.tasks import NO_LABEL, Binary, Multiclass, Multilabel, Task


class BinaryAnswers:
    """Answers of a model with one logit: calibrated probability and decision at a threshold.

    Attributes:
        described: name of an output for images -> its description in `signature.json`.
        each, study: names and shapes of the outputs for images and for a study, in words.
        explained: what a map explains, in words.
    """

    explained = "the decision"
    each = "logit, probability, threshold, decision, [B] each"
    study = "probability, threshold, decision [1]; image_logit, image_probability [N]"

    def __init__(self, contract: Contract):
        self.contract = contract
        self.described = {
            "logit": "float32, the network's output",
            "probability": "float32, calibrated; of an image: as a study of this one view",
            "threshold": "float32, of the probability of studies",
            "decision": f"string, {contract.classes[1]} where probability >= threshold, else {contract.classes[0]}",
            "calibration": "string, which calibration the probability has gone through",
        }

    def of_images(self, logits) -> dict[str, tf.Tensor]:
        """Returns the outputs for images, from logits [B, 1]."""
        return {"logit": logits[:, 0]} | self.verdict(self.probability(logits))

    def of_study(self, logits) -> dict[str, tf.Tensor]:
        """Returns the outputs for one study, from the logits [N, 1] of its images."""
        outputs = self.study_verdict(self.study_probability(logits), self.probability(logits))
        return outputs | {"image_logit": logits[:, 0]}

    def target(self, logits):
        """Returns the target of the maps [B, 1], see `cam.CamEngine`: 1 or -1, the sign of the decision."""
        return self.target_of(self.probability(logits))

    def target_of(self, probability):
        """Returns the target of the maps [B, 1] from probabilities [B]."""
        return tf.where(self._positive(probability)[:, None], 1.0, -1.0)

    def study_probability(self, logits):
        """Returns the probability of one study, float64 [1], from the logits [N, 1] of its images."""
        contract = self.contract
        at_image = contract.calibrator if contract.calibrated_at == "image" else None
        probability = pooled(calibrated(at_image, _wide(logits[:, 0])), contract.pooling, contract.top_k)
        if contract.calibrator is not None and contract.calibrated_at == "study":
            probability = calibrated(contract.calibrator, _logits_of(probability))
        return probability[None]

    def probability(self, logits):
        """Returns the probability of each image as a study of one view, float64 [B], from logits [B, 1]."""
        contract, wide = self.contract, _wide(logits[:, 0])
        if contract.calibrator is not None and contract.calibrated_at == "study":
            wide = _logits_of(tf.sigmoid(wide))
        return calibrated(contract.calibrator, wide)

    def study_verdict(self, probability, image_probability):
        """Returns the outputs for one study from its probability [1] and those of its images [N]."""
        return self.verdict(probability) | {"image_probability": tf.cast(image_probability, tf.float32)}

    def logit_of(self, probability):
        """Returns the log-odds of probabilities [B], float64."""
        return _logits_of(probability)

    def _positive(self, probability):
        return probability >= tf.constant(self.contract.threshold, tf.float64)

    def verdict(self, probability):
        """Returns the outputs that follow from probabilities, float64 [B]."""

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


class ClassAnswers:
    """Answers of a model with several logits, for classes (softmax) or labels (sigmoid of each); not calibrated.

    Attributes:
        described, each, study, explained: see `BinaryAnswers`.
    """

    def __init__(self, contract: Contract):
        self.contract = contract
        softmax = contract.labels.softmax
        self.explained = "the decision" if softmax else "the most probable label"
        self.described = {
            "logit": "float32 [B, L], the network's output",
            "probability": f"float32 [B, L], {'the softmax' if softmax else 'the logistic function'} of logit",
            "class_names": "string [B, L], what the columns of logit and probability are of",
            "decision": "string [B], the most probable class"
            if softmax
            else f"string [B], the labels of probability >= 0.5, as one, other; {NO_LABEL} without any",
            "calibration": "string [B], which calibration the probability has gone through",
        }
        if contract.abnormal:
            names = ", ".join(contract.classes[: contract.abnormal])
            self.described["abnormal_probability"] = f"float32 [B], the sum of the probabilities of {names}"
        more = [name for name in self.described if name not in ("logit", "probability", "class_names")]
        self.each = f"logit, probability, class_names, [B, L] each, {', '.join(more)}, [B] each"
        self.study = f"probability, class_names [1, L]; {', '.join(more)} [1]; image_logit, image_probability [N, L]"

    def of_images(self, logits) -> dict[str, tf.Tensor]:
        """Returns the outputs for images, from logits [B, L]."""
        return {"logit": logits} | self.verdict(self.probability(logits))

    def of_study(self, logits) -> dict[str, tf.Tensor]:
        """Returns the outputs for one study, from the logits [N, L] of its images."""
        outputs = self.study_verdict(self.study_probability(logits), self.probability(logits))
        return outputs | {"image_logit": logits}

    def target(self, logits):
        """Returns the target of the maps, see `cam.CamEngine`: the most probable class or label."""
        return cam.predicted_sign(logits)

    def target_of(self, probability):
        """Returns the target of the maps from probabilities [B, L]: the most probable class or label."""
        return cam.predicted_sign(tf.cast(self.logit_of(probability), tf.float32))

    def study_probability(self, logits):
        """Returns the probabilities of one study, float64 [1, L], from the logits [N, L] of its images."""
        probability = pooled(self.probability(logits), self.contract.pooling, self.contract.top_k)[None]
        if self.contract.labels.softmax:
            total = tf.reduce_sum(probability, axis=1, keepdims=True)
            probability = tf.where(total > 0, probability / total, 1 / len(self.contract.classes))
        return probability

    def study_verdict(self, probability, image_probability):
        """Returns the outputs for one study from its probabilities [1, L] and those of its images [N, L]."""
        outputs = self.verdict(probability)
        if self.contract.abnormal:  # pooled separately, as in the evaluation
            abnormal = tf.reduce_sum(image_probability[:, : self.contract.abnormal], axis=1)
            abnormal = pooled(abnormal, self.contract.pooling, self.contract.top_k)[None]
            outputs["abnormal_probability"] = tf.cast(abnormal, tf.float32)
        return outputs | {"image_probability": tf.cast(image_probability, tf.float32)}

    def logit_of(self, probability):
        """Returns logits that stand for probabilities [B, L], float64."""
        if self.contract.labels.softmax:
            return tf.math.log(tf.maximum(probability, TINY))
        return _logits_of(probability)

    def probability(self, logits):
        """Returns probabilities, float64 [B, L]."""
        if self.contract.labels.softmax:
            return tf.nn.softmax(tf.cast(logits, tf.float64))
        return tf.sigmoid(_wide(logits))

    def verdict(self, probability):
        """Returns the outputs that follow from probabilities, float64 [B, L]."""
        contract, count = self.contract, tf.shape(probability)[0]
        outputs = {
            "probability": tf.cast(probability, tf.float32),
            "class_names": tf.tile(tf.constant([contract.classes]), [count, 1]),
            "decision": self._decision(probability),
            "calibration": tf.fill([count], contract.calibration),
        }
        if contract.abnormal:
            abnormal = tf.reduce_sum(probability[:, : contract.abnormal], axis=1)
            outputs["abnormal_probability"] = tf.cast(abnormal, tf.float32)
        return outputs

    def _decision(self, probability):
        contract = self.contract
        if contract.labels.softmax:
            return tf.gather(tf.constant(contract.classes), tf.argmax(probability, axis=1))
        above = probability >= tf.constant(contract.threshold, tf.float64)
        parts = tf.where(above, tf.constant([f", {name}" for name in contract.classes]), "")
        text = tf.strings.regex_replace(tf.strings.reduce_join(parts, axis=1), "^, ", "")
        return tf.where(tf.reduce_any(above, axis=1), text, NO_LABEL)


class EnsembleAnswers:
    """Answers of several models: the mean of their calibrated probabilities.

    Attributes:
        described, each, study, explained: see `BinaryAnswers`.
    """

    def __init__(self, contract: Contract):
        of_task = ANSWERS[type(contract.labels)]
        self.contract, self.whole = contract, of_task(contract)
        self.members = [of_task(one) for one in contract.of_members()]
        binary, number = contract.is_binary, len(self.members)
        shape = f"[B, {number}]" if binary else f"[B, {number}, L]"
        log = "logarithm" if contract.labels.softmax else "log-odds"
        self.explained = f"{self.whole.explained}, mean over the members"
        self.described = self.whole.described | {
            "logit": f"float32, the {log} of probability",
            "member_logit": f"float32 {shape}, the output of each member's network",
            "probability": f"float32, the mean of the{' calibrated' if binary else ''} probabilities of the members",
        }
        self.each = f"{self.whole.each}; member_logit {shape}"
        self.study = f"{self.whole.study}; image_member_logit {shape.replace('B', 'N')}"

    def of_images(self, logits) -> dict[str, tf.Tensor]:
        """Returns the outputs for images, from the logits [B, M, L] of M members."""
        probability = self.probability(logits)
        return self._logits(logits, probability) | self.whole.verdict(probability)

    def of_study(self, logits) -> dict[str, tf.Tensor]:
        """Returns the outputs for one study, from the logits [N, M, L] of its images."""
        parts = [one.study_probability(logits[:, place]) for place, one in enumerate(self.members)]
        probability = self.probability(logits)
        outputs = self.whole.study_verdict(tf.reduce_mean(parts, axis=0), probability)
        return outputs | {f"image_{name}": value for name, value in self._logits(logits, probability).items()}

    def target_of(self, probability):
        """Returns the target of the maps of all members, from the probabilities of the ensemble."""
        return self.whole.target_of(probability)

    def probability(self, logits):
        """Returns the mean probabilities of images, float64 [B] or [B, L], from logits [B, M, L]."""
        return tf.reduce_mean([one.probability(logits[:, place]) for place, one in enumerate(self.members)], axis=0)

    def _logits(self, logits, probability) -> dict[str, tf.Tensor]:
        members = logits[:, :, 0] if self.contract.is_binary else logits
        return {"logit": tf.cast(self.whole.logit_of(probability), tf.float32), "member_logit": members}


# task -> class of its answers
ANSWERS: Mapping[type[Task], Callable[[Contract], BinaryAnswers | ClassAnswers]] = {
    Binary: BinaryAnswers,
    Multiclass: ClassAnswers,
    Multilabel: ClassAnswers,
}


def answers_of(contract: Contract) -> BinaryAnswers | ClassAnswers | EnsembleAnswers:
    """Returns the answers for the task of a contract."""
    if contract.members:
        return EnsembleAnswers(contract)
    return ANSWERS[type(contract.labels)](contract)


def pooled(probability: tf.Tensor, how: str, k: int) -> tf.Tensor:
    """Returns the probability [] or [L] of a study from those of its images, [N] or [N, L]; see `pool_studies`."""
    if how == "max":
        return tf.reduce_max(probability, axis=0)
    if how == "noisy-or":
        return 1 - tf.reduce_prod(1 - probability, axis=0)
    if how == "top-k":
        probability = tf.sort(probability, axis=0, direction="DESCENDING")[:k]
    return tf.reduce_mean(probability, axis=0)


def calibrated(calibrator: Calibrator | None, logit):
    """Returns calibrated probabilities [...], in 0..1, of logits [...], float64."""
    if calibrator is None:
        return tf.sigmoid(logit)
    if calibrator.method != "isotonic":
        if calibrator.limits:
            logit = tf.clip_by_value(logit, *calibrator.limits)
        return tf.sigmoid(logit / calibrator.temperature + calibrator.bias)
    at, value = (tf.constant(column, tf.float64) for column in zip(*calibrator.knots, strict=True))
    if len(calibrator.knots) == 1:
        return tf.zeros_like(logit) + value[0]
    right = tf.searchsorted(at, tf.reshape(logit, [-1]), side="right")
    right = tf.reshape(tf.clip_by_value(right, 1, len(calibrator.knots) - 1), tf.shape(logit))
    (x0, x1), (y0, y1) = ((tf.gather(column, right - 1), tf.gather(column, right)) for column in (at, value))
    return y0 + (y1 - y0) * tf.clip_by_value((logit - x0) / (x1 - x0), 0, 1)


def _wide(logit):
    return tf.cast(logit, tf.float64)


def _logits_of(probability):
    probability = tf.clip_by_value(probability, TINY, 1 - TINY)
    return tf.math.log(probability) - tf.math.log1p(-probability)
