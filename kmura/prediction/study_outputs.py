"""The outputs of the signature `study` of an export, computed from the outputs of its images."""

from collections.abc import Sequence

import numpy as np

from kmura.metrics import pool_studies
from kmura.serving.contract import Contract


def study_outputs(contract: Contract, images: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns the outputs of `study` for the images of one study.

    Args:
        contract: of the model.
        images: outputs of the signature `tensor` for each image: logit and probability, [] or, for several classes,
            [L].

    Returns:
        `probability` and `decision`, and what else the signature gives, with a first dimension of 1; `image_logit` and
        `image_probability` with a first dimension of N.
    """
    logit, probability = (np.stack([image[name] for image in images]) for name in ("logit", "probability"))
    pooled = contract.study_probabilities(np.zeros(len(images), int), logit).value
    outputs = {
        "probability": pooled.astype(np.float32),
        "decision": np.array(contract.decision(pooled), object),
        "calibration": np.array([contract.calibration], object),
    }
    if contract.is_binary:
        outputs["threshold"] = np.array([contract.threshold], np.float32)
    else:
        outputs["class_names"] = np.array([contract.classes], object)
    if contract.abnormal:  # pooled separately, as in the evaluation
        abnormal = contract.abnormal_probability(probability)
        value = pool_studies(np.zeros(len(images), int), abnormal, contract.pooling, k=contract.top_k).value
        outputs["abnormal_probability"] = value.astype(np.float32)
    return outputs | {"image_logit": logit, "image_probability": probability}
