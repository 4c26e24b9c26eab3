"""Parity of an export with its original model, computed in a fresh process from the files on disk."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from kmura.errors import InputError
from kmura.files import write_json

BATCHES = (1, 7)
LIMIT = 1e-5  # of `tensor`, compared with Keras
BYTES_LIMIT = 1e-3  # of `serving_default`, compared with the same files decoded by Pillow


@dataclasses.dataclass(frozen=True)
class Parity:
    """Largest differences between an export and its model.

    Attributes:
        logit: difference of the logits of `tensor`, relative to max(1, |logit|).
        probability: absolute difference of the probabilities of `tensor`.
        image_bytes: absolute difference of the probabilities of encoded images from those of `kmura predict`, which
            decodes with Pillow.
        study: absolute difference of the probability of a study, likewise.
        golden: difference of the outputs of all signatures from `golden.npz`, see `golden.difference`.
        warmup: number of warm-up requests that were read back and executed.
    """

    logit: float
    probability: float
    image_bytes: float
    study: float
    golden: float
    warmup: int


def parity_in_fresh_process(folder: Path, *models: Path) -> Parity:
    """Returns the parity of the folder of a version with its `.keras` files, all loaded in a new Python process.

    Raises:
        InputError: A difference exceeds its limit, or the export cannot be read back.
    """
    paths = os.pathsep.join(path for path in sys.path if path)  # -P: the current folder is not one of them
    environment = os.environ | {"PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "3"}
    with tempfile.TemporaryDirectory() as aside:
        answer = Path(aside, "parity.json")
        command = [sys.executable, "-P", "-m", "kmura.export.parity", str(folder), str(answer), *map(str, models)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        text = answer.read_text(encoding="utf-8") if answer.exists() else ""
    try:
        result = json.loads(text)
    except ValueError as error:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise InputError(f"the export cannot be read back ({last[:300]}); nothing was exported") from error
    if "error" in result:
        raise InputError(f"the export cannot be read back ({result['error']}); nothing was exported")
    return refused_unless_equal(Parity(**result), *models)


def refused_unless_equal(found: Parity, *models: Path) -> Parity:
    """Returns the parity unchanged if it is within the limits.

    Raises:
        InputError: A difference exceeds its limit.
    """
    limits = {"logit": LIMIT, "probability": LIMIT, "image_bytes": BYTES_LIMIT, "study": BYTES_LIMIT}
    for name, limit in limits.items():
        if not getattr(found, name) <= limit:
            of = ", ".join(map(str, models))
            raise InputError(
                f"the export differs from {of}: {name} differs by {getattr(found, name):.2g}, allowed is {limit:g}; "
                "nothing was exported"
            )
    return found


def parity(folder: Path, *models: Path) -> Parity:
    """Returns the parity, computed in this process; see `parity_in_fresh_process`."""
    import tensorflow as tf

    from kmura.export.golden import answer_differences, load_signatures, read_golden
    from kmura.runs.run import load_model
    from kmura.serving.contract import read_signature
    from kmura.serving.prepare import prepared
    from kmura.serving.signatures import SIGNATURES, WARMUP, read_warmup

    contract = read_signature(folder).contract
    signatures, networks = load_signatures(folder), [load_model(model) for model in models]
    compiled = tf.function(lambda image: [network(image, training=False) for network in networks], autograph=False)

    def logits(images):
        values = [value.numpy().astype(float) for value in compiled(tf.constant(images, tf.float32))]
        values = [value[:, 0] if contract.is_binary else value for value in values]
        return np.stack(values, axis=1) if contract.members else values[0]

    size = (contract.image_size, contract.image_size, contract.channels)
    rng = np.random.default_rng(0)
    worst = {"logit": 0.0, "probability": 0.0}
    for batch in BATCHES:
        images = rng.uniform(0, 255, (batch, *size)).astype(np.float32)
        right = logits(images)
        answers = signatures["tensor"](image=tf.constant(images))
        deviation = {
            "logit": np.abs(answers[contract.raw_output].numpy() - right) / np.maximum(1, np.abs(right)),
            "probability": np.abs(answers["probability"].numpy() - _alone(contract, right)),
        }
        worst = {name: max(worst[name], float(deviation[name].max())) for name in worst}
    requests, _ = read_golden(folder)
    files = requests["serving_default"].numpy()
    ready = logits(np.stack([prepared(data, contract) for data in files]))
    of_bytes = signatures["serving_default"](image_bytes=requests["serving_default"])["probability"].numpy()
    count = len(requests["study"])
    of_study = signatures["study"](image_bytes=requests["study"])["probability"].numpy()
    study = contract.study_probabilities(["one"] * count, ready[:count]).value
    warmup = read_warmup(folder) if (folder / WARMUP).exists() else {}
    for name, value in warmup.items():
        signatures[name](**{SIGNATURES[name][0]: value})
    differences = answer_differences(folder, signatures, contract)
    for name, (largest, limit) in differences.items():
        if not largest <= limit:
            raise InputError(f"signature {name} differs by {largest:.2g} from its golden outputs, allowed is {limit:g}")
    return Parity(
        **worst,
        image_bytes=float(np.abs(of_bytes - _alone(contract, ready)).max()),
        study=float(np.abs(of_study - study).max()),
        golden=max(largest for largest, _ in differences.values()),
        warmup=len(warmup),
    )


def _alone(contract, logit) -> np.ndarray:
    """Returns the probabilities [N] or [N, L] of images, each as a study of one view."""
    return contract.study_probabilities(np.arange(len(logit)), logit).value


if __name__ == "__main__":
    exported, answer, *originals = map(Path, sys.argv[1:])
    try:
        result = dataclasses.asdict(parity(exported, *originals))
    except InputError as error:
        result = {"error": str(error)}
    write_json(answer, result)
