"""TensorFlow Serving's JSON: requests to tensors, tensors to answers, with its rules and messages.

Source: https://www.tensorflow.org/tfx/serving/api_rest and the messages of tensorflow_serving/util/json_tensor.cc.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

FLOAT, STRING = "float", "string"
_SHOWN = 200  # characters of a value in a message
_OF_VALUES = b",[{"


class RequestError(Exception):
    """A request that is refused.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status = status


def parsed(body: bytes, most_values: int) -> dict[str, Any]:
    """Returns the JSON object in the body of a request.

    Args:
        body: bytes.
        most_values: more values are refused before they are parsed, because Python needs much memory for each.

    Raises:
        RequestError: It is not an object.
    """
    if not body:
        raise RequestError("JSON Parse error: The document is empty")
    if sum(body.count(sign) for sign in _OF_VALUES) > most_values:
        raise RequestError(f"the request has more than {most_values} JSON values", 413)
    try:
        value = json.loads(body)
    except json.JSONDecodeError as error:
        raise RequestError(f"JSON Parse error: Invalid value. at offset: {error.pos}") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"JSON Parse error: Invalid encoding in string. at offset: {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise RequestError("JSON Parse error: Terminate parsing due to Handler error. at offset: 0") from error
    if not isinstance(value, dict):
        raise RequestError(f"JSON Value: {_shown(value)} Is not object")
    if not isinstance(value.get("signature_name", ""), str):
        raise RequestError(
            f"JSON Value: {_shown(value)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return value


def inputs(request: Mapping[str, Any], name: str, kind: str) -> tuple[np.ndarray, bool]:
    """Returns the tensor of a request for a signature with one input, and whether the request lists rows.

    Args:
        request: with `instances` (rows) or `inputs` (columns).
        name: of the input.
        kind: FLOAT or STRING; strings become an array of bytes objects.

    Raises:
        RequestError: The request has another form.
    """
    rows, columns = "instances" in request, "inputs" in request
    if rows and columns:
        raise RequestError(
            f"JSON Value: {_shown(request)} Not formatted correctly expecting only one of 'inputs' or 'instances' keys "
            "to exist "
        )
    if rows:
        return _of_rows(request, request["instances"], name, kind), True
    if columns:
        value = request["inputs"]
        if isinstance(value, dict) and not _is_base64(value):
            if name not in value:
                raise RequestError(f"Missing named input: {name} in 'inputs' object.")
            value = value[name]
        return _tensor(value, kind), False
    raise RequestError("Missing 'inputs' or 'instances' key")


def rows(outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the answer to a request with `instances`.

    Raises:
        RequestError: The outputs are not of one batch size.
    """
    size = None
    for name, value in outputs.items():
        if size not in (None, len(value)):
            raise RequestError(f"Tensor name: {name} has inconsistent batch size: {len(value)} expecting: {size}")
        size = len(value)
    if len(outputs) == 1:
        return {"predictions": plain(next(iter(outputs.values())))}
    columns = {name: plain(value) for name, value in outputs.items()}
    return {"predictions": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]}


def columns(outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the answer to a request with `inputs`."""
    values = {name: plain(value) for name, value in outputs.items()}
    return {"outputs": values if len(values) > 1 else next(iter(values.values()))}


def plain(value: np.ndarray) -> Any:
    """Returns an array as nested lists; float32 with the fewest digits that determine it, texts as str."""
    value = np.asarray(value)
    if value.dtype == np.float32:
        return value.astype(str).astype(float).tolist()
    return _texts(value.tolist())


def _texts(value: Any) -> Any:
    if isinstance(value, list):
        return [_texts(item) for item in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _of_rows(request, instances: Any, name: str, kind: str) -> np.ndarray:
    if not isinstance(instances, list):
        raise RequestError(f"JSON Value: {_shown(request)} Excepting 'instances' to be an list/array")
    if not instances:
        raise RequestError(f"JSON Value: {_shown(request)} No values in 'instances' array")
    are_objects = _is_object(instances[0])
    tensors = []
    for place, item in enumerate(instances):
        prefix = f"Failed to process element: {place}"
        if are_objects and not _is_object(item):
            raise RequestError(f"Expecting object but got list at item {place} of input list")
        if not are_objects and _is_object(item):
            raise RequestError(f"Expecting value/list but got object at item {place} of input list")
        if are_objects:
            for key in item:
                if key != name:
                    raise RequestError(
                        f"{prefix} key: {key[:_SHOWN]} of 'instances' list. Error: INVALID_ARGUMENT: JSON object: does "
                        f"not have named input: {key[:_SHOWN]}"
                    )
            if name not in item:
                raise RequestError(
                    f"{prefix} of 'instances' list. JSON object: {_shown(item)} keys must be equal to: {name}"
                )
            item, prefix = item[name], f"{prefix} key: {name}"
        try:
            tensor = _tensor(item, kind)
        except RequestError as error:
            raise RequestError(f"{prefix} of 'instances' list. Error: INVALID_ARGUMENT: {error}") from error
        if tensors and tensor.shape != tensors[0].shape:
            text = (
                f"Expecting tensor size: {tensors[0].size} but got: {tensor.size}"
                if tensor.size != tensors[0].size
                else f"Expecting shape {_shape(tensors[0])} but got: {_shape(tensor)}"
            )
            raise RequestError(f"{prefix} of 'instances' list. Error: INVALID_ARGUMENT: {text}")
        tensors.append(tensor)
    return np.stack(tensors)


def _tensor(value: Any, kind: str) -> np.ndarray:
    """Returns a JSON value as an array of float32 or bytes objects."""
    if kind == FLOAT:
        try:
            array = np.asarray(value)
        except (ValueError, OverflowError, RecursionError):  # lists of different lengths
            array = np.array(None)
        if array.dtype.kind in "fiu" and array.ndim <= 8:
            with np.errstate(over="ignore"):
                result = array.astype(np.float32)
            if np.isinf(result).any() and not np.isinf(np.asarray(array, float)).any():
                raise RequestError("Cannot convert JSON value to float without loss of precision.")
            return result
    shape = _dense_shape(value)
    leaves: list[Any] = []
    _collect(value, 0, shape, kind, leaves)
    array = np.empty(len(leaves), object if kind == STRING else np.float32)
    array[:] = leaves
    return array.reshape(shape)


def _dense_shape(value: Any) -> tuple[int, ...]:
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value or len(shape) > 8:
            break
        value = value[0]
    return tuple(shape)


def _collect(value: Any, level: int, shape: tuple[int, ...], kind: str, leaves: list[Any]) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise RequestError(
                f"JSON Value: {_shown(value)} found at incorrect level: {level + 1} in the JSON DOM. Expected at "
                f"level: {len(shape)}"
            )
        leaves.append(_leaf(value, kind))
        return
    if level >= len(shape):
        raise RequestError(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise RequestError(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
        )
    for item in value:
        _collect(item, level + 1, shape, kind, leaves)


def _leaf(value: Any, kind: str) -> Any:
    if kind == STRING and isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if kind == STRING and isinstance(value, dict):
        if not _is_base64(value):
            raise RequestError(f"JSON Value: {_shown(value)} not formatted correctly for base64 data")
        try:
            return base64.b64decode(value["b64"], validate=True)
        except (binascii.Error, ValueError) as error:
            raise RequestError("Unable to base64 decode") from error
    if kind == FLOAT and isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise RequestError(f"JSON Value: {_shown(value)} Type: {_kind(value)} is not of expected type: {kind}")


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _kind(value: Any) -> str:
    names = {bool: str(value), dict: "Object", list: "Array", str: "String", type(None): "Null"}
    return names.get(type(value), "Number")


def _shape(array: np.ndarray) -> str:
    return f"[{','.join(map(str, array.shape))}]"


def _shown(value: Any) -> str:
    """Returns a value in JSON for a message, cut to a length at which no image is repeated in it."""
    if isinstance(value, str | list | dict) and len(value) > _SHOWN:
        return f"({_kind(value)} of {len(value)})"
    if isinstance(value, dict):
        inner = ", ".join(f"{json.dumps(key[:_SHOWN])}: {_kind_or_value(item)}" for key, item in value.items())
        return f"{{{inner}}}"[:_SHOWN]
    if isinstance(value, list):
        return f"[{', '.join(map(_kind_or_value, value))}]"[:_SHOWN]
    return json.dumps(value)[:_SHOWN]


def _kind_or_value(value: Any) -> str:
    return _kind(value) if isinstance(value, str | list | dict) else json.dumps(value)
