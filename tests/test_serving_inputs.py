"""Serving prepares images as training did, and refuses inputs of another shape."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from kmura.errors import InputError
from kmura.serving.contract import contract_of_run
from kmura.serving.signatures import ServedModel


@pytest.fixture
def moved_run(evaluated_run, tmp_path):
    """A copy of the evaluated run whose records do not exist."""
    run = tmp_path / "run"
    shutil.copytree(evaluated_run[1], run)
    description = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(description | {"records": str(tmp_path / "gone")}))
    return run


def edited(run, **changes):
    description = json.loads((run / "run.json").read_text()) | changes
    (run / "run.json").write_text(json.dumps({key: value for key, value in description.items() if value is not None}))


def test_a_run_stores_how_its_images_were_prepared(evaluated_run, moved_run, caplog):
    stored = json.loads((evaluated_run[1] / "run.json").read_text())["preparation"]
    assert stored == {"max_side": 56, "encoding": "png", "quality": 95}
    contract = contract_of_run(evaluated_run[1])
    assert contract.max_side == 56 and contract.jpeg_quality is None
    assert contract_of_run(moved_run) == contract and not caplog.records
    with pytest.raises(InputError, match="no records folder"):
        contract_of_run(moved_run, records=moved_run / "nowhere")
    edited(moved_run, preparation={"max_side": 40, "encoding": "jpeg", "quality": 80})
    assert (contract_of_run(moved_run).max_side, contract_of_run(moved_run).jpeg_quality) == (40, 80)


def test_a_run_of_an_earlier_version_takes_the_preparation_from_its_records(evaluated_run, moved_run, caplog):
    edited(moved_run, preparation=None)
    assert contract_of_run(moved_run).max_side == 512 and "are missing: images are reduced to 512" in caplog.text
    records = evaluated_run[0] / "records"
    assert contract_of_run(moved_run, records=records) == contract_of_run(evaluated_run[1])
    edited(moved_run, records=str(records))
    assert contract_of_run(moved_run).max_side == 56


class Sum(tf.Module):
    """The input checks of an export around a sum."""

    contract = type("Contract", (), {"image_size": 8, "channels": 1})
    image = tf.TensorSpec([None, 8, 8, 1], tf.float32, name="image")
    encoded = tf.TensorSpec([None], tf.string, name="image_bytes")

    @tf.function(input_signature=[image], autograph=False)
    def pixels(self, image):
        return {"sum": tf.reduce_sum(ServedModel._sized(self, image))}

    @tf.function(input_signature=[encoded], autograph=False)
    def files(self, image_bytes):
        from kmura.serving.signatures import _listed

        return {"length": tf.reduce_sum(tf.strings.length(_listed(image_bytes)))}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("sum"))
    module = Sum()
    functions = {"pixels": module.pixels, "files": module.files}
    tf.saved_model.save(
        module, folder, signatures={name: each.get_concrete_function() for name, each in functions.items()}
    )
    loaded = tf.saved_model.load(folder)
    yield loaded.signatures
    del loaded


@pytest.mark.parametrize("shape", [(1, 9, 9, 1), (1, 8, 4, 1), (1, 4, 8, 1), (2, 8, 8, 3), (8, 8, 1), (1, 1, 8, 8, 1)])
def test_pixels_of_another_shape_are_refused_with_the_expected_shape(saved, shape):
    assert saved["pixels"](image=tf.ones((3, 8, 8, 1)))["sum"] == 192
    message = r"expected the shape \[B, 8, 8, 1\], received\] \[" + " ".join(map(str, shape)) + r"\]"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        saved["pixels"](image=tf.ones(shape))


def test_files_that_are_no_list_are_refused(saved):
    assert saved["files"](image_bytes=tf.constant(["ab", "c"]))["length"] == 3
    for wrong in (np.array("ab"), np.array([["ab"], ["c"]])):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"image_bytes: expected the shape \[B\]"):
            saved["files"](image_bytes=tf.constant(wrong))
