"""TensorFlow Serving's REST interface: status, metadata and prediction of models.

Image files are decoded as by `kmura predict`, so DICOM and TIFF are accepted too, and images of concurrent requests
share the steps of the model.
"""

import re
from typing import Any

import numpy as np

from kmura.errors import InputError
from kmura.prediction.study_outputs import study_outputs
from kmura.records.images import UnreadableImage
from kmura.server import tensor_json
from kmura.server.engine import Engine
from kmura.server.served_versions import Loaded
from kmura.server.tensor_json import FLOAT, STRING, RequestError
from kmura.serving.signatures import SIGNATURES

_PREDICTION = re.compile(
    r"/v1/models/([^/:]+)(?:(?:/versions/(\d+))|(?:/labels/([^/:]+)))?:(classify|regress|predict)", re.IGNORECASE
)
_STATUS = re.compile(
    r"/v1/models(?:/([^/:]+))?(?:(?:/versions/(\d+))|(?:/labels/([^/:]+)))?(?:/(metadata))?", re.IGNORECASE
)
_METHOD_NAMES = {"classify": "classification", "regress": "regression"}
_VALUES_ASIDE = 10_000  # JSON values of a request apart from those of its images


async def answer(engine: Engine, method: str, path: str, body: bytes) -> dict[str, Any]:
    """Returns the answer to a request below `/v1`.

    Args:
        engine: the models.
        method, path, body: of the request.

    Raises:
        RequestError: The request is refused, with the status and the words of TensorFlow Serving.
        Overloaded: The queue is full.
    """
    if method == "POST" and (match := _PREDICTION.fullmatch(path)):
        name, version, label, verb = match.groups()
        verb = verb.lower()
        number = _number(version)
        if verb == "predict":
            return await _predicted(engine, name, number, label, body)
        return await _classified(engine, name, number, label, verb, body)
    if method == "GET" and (match := _STATUS.fullmatch(path)):
        name, version, label, part = match.groups()
        number = _number(version)
        if not name:
            raise RequestError("Missing model name in request.")
        return _metadata(loaded(engine, name, number, label)) if part else _status(engine, name, number, label)
    raise RequestError(f"Malformed request: {method} {path[:200]}")


def loaded(engine: Engine, name: str, number: int | None = None, label: str | None = None) -> Loaded:
    """Returns a version of a model.

    Raises:
        RequestError: It is not loaded.
    """
    if label is not None:
        raise RequestError(f"Unrecognized servable version label: {label[:200]}")
    versions = engine.models.get(name)
    model = versions.current if versions else None
    if model is None or number not in (None, model.version):
        wanted = f"Latest({name[:200]})" if number is None else f"Specific({name[:200]}, {number})"
        raise RequestError(f"Servable not found for request: {wanted}", 404)
    return model


def _number(version: str | None) -> int | None:
    if version is None:
        return None
    if len(version) > 19 or int(version) >= 2**63:
        raise RequestError(f"Failed to convert version: {version[:200]} to numeric.")
    return int(version)


def _status(engine: Engine, name: str, number: int | None, label: str | None) -> dict[str, Any]:
    if label is not None:
        raise RequestError(f"Unrecognized servable version label: {label[:200]}")
    versions = engine.models.get(name)
    states = {}
    if versions:
        states = {place: ("END", "FAILED_PRECONDITION", text) for place, text in versions.refused.items()}
        if versions.current:
            states[versions.current.version] = ("AVAILABLE", "OK", "")
    if not states:
        raise RequestError(f"Could not find any versions of model {name[:200]}", 404)
    if number is not None and number not in states:
        raise RequestError(f"Could not find version {number} of model {name[:200]}", 404)
    return {
        "model_version_status": [
            {"version": str(place), "state": state, "status": {"error_code": code, "error_message": text}}
            for place, (state, code, text) in sorted(states.items(), reverse=True)
            if number in (None, place)
        ]
    }


def _metadata(model: Loaded) -> dict[str, Any]:
    return {
        "model_spec": {"name": model.name, "signature_name": "", "version": str(model.version)},
        "metadata": {"signature_def": {"signature_def": model.definitions}},
    }


async def _parsed(engine: Engine, model: Loaded | None, body: bytes) -> dict[str, Any]:
    pixels = model.contract.image_size**2 * model.contract.channels if model else 0
    # a value of a row of pixels is preceded by a comma or a bracket, and each row and column by a bracket
    most = _VALUES_ASIDE + 3 * engine.limits.files * pixels
    return await engine.parsed(tensor_json.parsed, body, most)


async def _classified(engine: Engine, name: str, number: int | None, label: str | None, verb: str, body: bytes):
    """Refuses a request, because exports have no signature for classification or regression of examples."""
    request = await _parsed(engine, None, body)
    if "examples" not in request:
        raise RequestError("JSON Value: {} When method is classify, key 'examples' is expected and was not found")
    model = loaded(engine, name, number, label)
    signature = request.get("signature_name") or "serving_default"
    if signature not in model.definitions:
        raise RequestError(f"No signature was found with the name: {signature[:200]}")
    was = model.definitions[signature]["method_name"]
    raise RequestError(
        f"Expected {_METHOD_NAMES[verb]} signature method_name to be tensorflow/serving/{verb}. Was: {was}"
    )


async def _predicted(engine: Engine, name: str, number: int | None, label: str | None, body: bytes) -> dict[str, Any]:
    model = engine.models[name].current if name in engine.models else None
    request = await _parsed(engine, model, body)
    model = loaded(engine, name, number, label)
    signature = request.get("signature_name") or "serving_default"
    if signature not in SIGNATURES:
        raise RequestError(f'Serving signature name: "{signature[:200]}" not found in signature def')
    given = SIGNATURES[signature][0]
    encoded = given == "image_bytes"
    value, by_rows = await engine.parsed(tensor_json.inputs, request, given, STRING if encoded else FLOAT)
    del request
    count = _checked(value, model, given)
    if count > engine.limits.files:
        raise RequestError(f"the request has {count} images, at most {engine.limits.files} are allowed", 413)
    if count == 0 and signature == "study":
        raise RequestError("a study has at least one image; the request has none")
    with engine.images(count):
        images = await _pixels(engine, model, value) if encoded else list(value)
        rows = await engine.outputs(model, images, explained=signature.startswith("explain"))
    for place, row in enumerate(rows):
        if isinstance(row, InputError):
            raise RequestError(f"{row}; index in the request: {place}")
    outputs = study_outputs(model.contract, rows) if signature == "study" else _stacked(rows, model, signature)
    return await engine.parsed(tensor_json.rows if by_rows else tensor_json.columns, outputs)


def _checked(value: np.ndarray, model: Loaded, given: str) -> int:
    """Returns the number of images in a tensor after checking its shape and range."""
    contract = model.contract
    if given == "image_bytes":
        if value.ndim != 1:
            raise RequestError(f"image_bytes: expected the shape [B], received {list(value.shape)}")
        return len(value)
    size, channels = contract.image_size, contract.channels
    if value.shape[1:] != (size, size, channels):
        raise RequestError(f"image: expected the shape [B, {size}, {size}, {channels}], received {list(value.shape)}")
    if not ((value >= 0) & (value <= 255)).all():  # False for NaN too
        raise RequestError("image: contains values outside 0 to 255")
    return len(value)


async def _pixels(engine: Engine, model: Loaded, files: np.ndarray) -> list[np.ndarray]:
    pictures = await engine.pictures(model, list(files))
    for place, picture in enumerate(pictures):
        if isinstance(picture, UnreadableImage):
            raise RequestError(f"image_bytes: {picture}; its index in the request, counted from 0, is {place}")
    return [picture.ready for picture in pictures]


def _stacked(rows, model: Loaded, signature: str) -> dict[str, np.ndarray]:
    if rows:
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return {name: np.zeros(0, np.float32) for name in model.definitions[signature]["outputs"]}
