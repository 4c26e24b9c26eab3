"""The outputs of a study from those of its images, for every task, and how the server shows them."""

import types

import numpy as np
import pytest
import tensorflow as tf

from kmura.data.resize import axis_weights, covered
from kmura.evaluation.calibrators import Calibrator
from kmura.prediction.study_outputs import study_outputs
from kmura.serving.answers import answers_of
from kmura.serving.contract import Contract

PLATT = Calibrator(method="platt", temperature=2.0, bias=0.3)
CONTRACTS = {
    "binary": {"classes": ("normal", "abnormal"), "calibrator": PLATT, "threshold": 0.4},
    "binary by image": {"classes": ("normal", "abnormal"), "calibrator": PLATT, "calibrated_at": "image"},
    "not calibrated": {"classes": ("normal", "abnormal"), "pooling": "noisy-or"},
    "multiclass": {"classes": ("a", "b", "c"), "task": "multiclass", "pooling": "max"},
    "all areas": {"classes": ("a", "b", "c", "d"), "task": "multiclass", "abnormal": 2, "pooling": "top-k"},
    "multilabel": {"classes": ("one", "two"), "task": "multilabel"},
}


def contract_of(name: str) -> Contract:
    return Contract(image_size=8, resize="squash", channels=1, max_side=16, **CONTRACTS[name])


def images_of(contract: Contract, logits) -> list[dict[str, np.ndarray]]:
    outputs = {name: value.numpy() for name, value in answers_of(contract).of_images(tf.constant(logits)).items()}
    return [{name: value[place] for name, value in outputs.items()} for place in range(len(logits))]


@pytest.fixture(params=CONTRACTS)
def study(request):
    """(contract, logits [5, L], outputs of each image)."""
    contract = contract_of(request.param)
    width = 1 if contract.is_binary else len(contract.classes)
    logits = np.random.default_rng(3).normal(0, 2, (5, width)).astype(np.float32)
    return contract, logits, images_of(contract, logits)


def test_outputs_of_a_study_equal_those_of_the_signature(study):
    contract, logits, images = study
    expected = {name: value.numpy() for name, value in answers_of(contract).of_study(tf.constant(logits)).items()}
    outputs = study_outputs(contract, images)
    assert outputs.keys() == expected.keys()
    for name, value in expected.items():
        assert outputs[name].shape == value.shape, name
        if value.dtype == object:
            assert (outputs[name] == np.strings.decode(value.astype(bytes), "utf-8")).all(), name
        else:
            assert outputs[name] == pytest.approx(value, abs=1e-6), name


def test_the_server_shows_one_probability_or_one_per_class(study):
    pytest.importorskip("fastapi")
    from kmura.server import studies
    from kmura.server.decoders import Picture

    contract, logits, images = study
    pixels = np.zeros((16, 8, 1), np.uint8)
    decoded = [Picture(pixels, pixels[:8], 8, 16, ())] * 5
    model = types.SimpleNamespace(name="m", version=3, contract=contract)
    answer = studies._answer(model, decoded, dict(enumerate(images)), contract, False, True)
    pooled = study_outputs(contract, images)
    assert answer["study"]["decision"] == pooled["decision"][0] and answer["study"]["images"] == 5
    assert [image["decision"] for image in answer["images"]] == [image["decision"].decode() for image in images]
    one = answer["images"][2], images[2]["probability"]
    for shown, probability in ((answer["study"], pooled["probability"][0]), one):
        if contract.is_binary:
            assert shown["probability"] == pytest.approx(float(probability), abs=1e-6)
        else:
            assert list(shown["probabilities"]) == list(contract.classes)
            assert list(shown["probabilities"].values()) == pytest.approx(probability.tolist(), abs=1e-6)
        assert ("abnormal_probability" in shown) == bool(contract.abnormal)
    assert ("threshold" in answer["study"]) == contract.is_binary


@pytest.mark.parametrize("sides", [(10, 10), (7, 20), (20, 7), (1, 300), (33, 32)])
def test_the_part_that_a_padded_image_covers_is_where_its_weights_are(sides):
    _, weights = axis_weights(tf.constant([sides], tf.int64), 16, "pad")
    used = weights.numpy()[0].sum(axis=1) > 0.5  # [2, S]
    assert covered(sides, 16, "squash") == (slice(0, 16), slice(0, 16))
    for axis, part in enumerate(covered(sides, 16, "pad")):
        assert used[axis].nonzero()[0].tolist() == list(range(part.start, part.stop))
