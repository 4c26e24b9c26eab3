"""Whether an export answers as the model it was made from: asked in a fresh process, of what lies on the disk."""

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
LIMIT = 1e-5  # of `tensor`, against Keras
BYTES_LIMIT = 1e-3  # of `serving_default`, against the same files through Pillow


@dataclasses.dataclass(frozen=True)
class Parity:
    """Largest differences between an export and its model.

    Attributes:
        logit: of `tensor`, by the larger of 1 and the logit's size.
        probability: of `tensor`.
        image_bytes: of the probabilities of encoded images, from those of `kmura predict`, which reads with Pillow.
        study: of the probability of a study, likewise.
        golden: of all signatures from `golden.npz`, see `golden.difference`.
        warmup: warm-up requests that were read back and answered.
    """

    logit: float
    probability: float
    image_bytes: float
    study: float
    golden: float
    warmup: int


def parity_in_fresh_process(folder: Path, model: Path) -> Parity:
    """The parity of a version's folder with a `.keras` file, both loaded by a new Python.

    Raises:
        InputError: a difference above its limit, or something cannot be read back.
    """
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = os.environ | {"PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "3"}
    with tempfile.TemporaryDirectory() as aside:
        answer = Path(aside, "parity.json")
        command = [sys.executable, "-m", "kmura.export.parity", str(folder), str(model), str(answer)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        text = answer.read_text(encoding="utf-8") if answer.exists() else ""
    try:
        found = json.loads(text)
    except ValueError as error:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise InputError(f"the export cannot be read back ({last[:300]}); nothing was exported") from error
    if "error" in found:
        raise InputError(f"the export cannot be read back ({found['error']}); nothing was exported")
    return refused_unless_equal(Parity(**found), model)


def refused_unless_equal(found: Parity, model: Path) -> Parity:
    """The parity itself, if it is within the limits.

    Raises:
        InputError: it is not.
    """
    limits = {"logit": LIMIT, "probability": LIMIT, "image_bytes": BYTES_LIMIT, "study": BYTES_LIMIT}
    for name, limit in limits.items():
        if not getattr(found, name) <= limit:
            raise InputError(
                f"the export answers otherwise than {model}: {name} differs by {getattr(found, name):.2g}, allowed is "
                f"{limit:g}; nothing was exported"
            )
    return found


def parity(folder: Path, model: Path) -> Parity:
    """See `parity_in_fresh_process`; in this process."""
    import tensorflow as tf

    from kmura.export.golden import answer_differences, load_signatures, read_golden
    from kmura.runs.run import load_model
    from kmura.serving.contract import read_signature
    from kmura.serving.prepare import prepared
    from kmura.serving.signatures import SIGNATURES, WARMUP, read_warmup

    contract = read_signature(folder).contract
    signatures, network = load_signatures(folder), load_model(model)
    compiled = tf.function(lambda image: network(image, training=False), autograph=False)

    def logits(images):
        found = compiled(tf.constant(images, tf.float32)).numpy().astype(float)
        return found[:, 0] if contract.is_binary else found

    size = (contract.image_size, contract.image_size, contract.channels)
    rng = np.random.default_rng(0)
    worst = {"logit": 0.0, "probability": 0.0}
    for batch in BATCHES:
        images = rng.uniform(0, 255, (batch, *size)).astype(np.float32)
        right = logits(images)
        answers = signatures["tensor"](image=tf.constant(images))
        found = {
            "logit": np.abs(answers["logit"].numpy() - right) / np.maximum(1, np.abs(right)),
            "probability": np.abs(answers["probability"].numpy() - _alone(contract, right)),
        }
        worst = {name: max(worst[name], float(found[name].max())) for name in worst}
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
            raise InputError(f"signature {name} answers {largest:.2g} away from what it did, allowed is {limit:g}")
    return Parity(
        **worst,
        image_bytes=float(np.abs(of_bytes - _alone(contract, ready)).max()),
        study=float(np.abs(of_study - study).max()),
        golden=max(largest for largest, _ in differences.values()),
        warmup=len(warmup),
    )


def _alone(contract, logit) -> np.ndarray:
    """The probabilities, [N] or [N, L], of images, each a study of its own."""
    return contract.study_probabilities(np.arange(len(logit)), logit).value


if __name__ == "__main__":
    exported, original, answer = map(Path, sys.argv[1:])
    try:
        found = dataclasses.asdict(parity(exported, original))
    except InputError as error:
        found = {"error": str(error)}
    write_json(answer, found)
