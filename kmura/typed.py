"""Frozen dataclasses from the JSON that `dataclasses.asdict` and `kmura.files.write_json` made of them.

The annotations of a dataclass are the schema of its file: no other code says which fields a file has.
"""

import dataclasses
import functools
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from kmura.errors import InputError, unreadable

T = TypeVar("T")
_SIMPLE = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}


class FieldError(ValueError):
    """A JSON value that does not fit its dataclass: `scores.splits.test.study is missing`.

    Attributes:
        path: of the field inside the file, names joined by dots and places in lists in brackets; "" is the whole file.
        problem: the rest of the sentence whose subject is the field.
    """

    def __init__(self, path: str, problem: str):
        super().__init__(f"{path or 'its content'} {problem}")
        self.path, self.problem = path, problem


def from_json(cls: type[T], value: Any, path: str = "") -> T:
    """Returns the object that a JSON value stands for; `from_json(cls, json of asdict(x))` equals x.

    A field that is missing takes the default of the dataclass, if there is one. Fields that the dataclass does not
    have are ignored, so that a file can be read that a later version has added to; a field whose meaning changes needs
    a new version number in its file. null is NaN where a float is expected (JSON has no NaN), and None where the type
    allows None.

    Args:
        cls: a dataclass. Its fields are str, bool, int, float, Literal, Any, dataclasses, Optional and other unions,
            list[X], tuple[X, ...], tuple[X, Y] and dict[str, X] of these. Of a union of dataclasses the value's class
            is the one whose Literal fields have the value's entries, then the one that has the most of its fields.
        value: as `json.loads` returns it.
        path: of the value inside the file, for messages.

    Raises:
        FieldError: a value that does not fit; says where and why.
        TypeError: a field of a type that is not listed above.
    """
    if not isinstance(value, dict):
        raise FieldError(path, f"is {_shown(value)}, not an object with the fields of {cls.__name__}")
    hints, values = _hints(cls), {}
    for field in dataclasses.fields(cls):
        place = _inside(path, field.name)
        if field.name in value:
            values[field.name] = _converted(hints[field.name], value[field.name], place)
        elif _is_required(field):
            raise FieldError(place, "is missing")
    return cls(**values)


def read_typed(cls: type[T], path: Path, command: str) -> T:
    """Returns the dataclass that a JSON file holds, see `from_json`.

    Args:
        cls: the dataclass.
        path: of the file.
        command: the command that makes the file, for messages.

    Raises:
        InputError: the file is missing, cannot be read, is not JSON, or does not fit the dataclass.
    """
    value = read_json(path, command)
    try:
        return from_json(cls, value)
    except FieldError as error:
        raise other_version(path, error, command) from error


def other_version(path: Path, error: FieldError, command: str) -> InputError:
    """The error of a file that lacks a field or holds a wrong one; arguments as of `read_typed`."""
    return InputError(f"{path}: {error}; it is damaged or of another version; make it again with: {command}")


def read_json(path: Path, command: str) -> Any:
    """Returns what a JSON file holds, as `json.loads` returns it; arguments as of `read_typed`.

    Raises:
        InputError: the file is missing, cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; make it with: {command}") from error
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); make it again with: {command}") from error


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _converted(hint: Any, value: Any, path: str) -> Any:
    """The value as the type that `hint` asks for."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return from_json(hint, value, path)
    if hint in _SIMPLE:
        return _simple(hint, value, path)
    if origin is typing.Literal:
        if value not in arguments:
            raise FieldError(path, f"is {_shown(value)}, not one of {', '.join(map(str, arguments))}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and types.NoneType in arguments:
            return None
        options = [option for option in arguments if option is not types.NoneType]
        return _converted(_member(options, value, path), value, path)
    if origin is dict and arguments[0] is str:
        _require(dict, value, path, "an object")
        return {name: _converted(arguments[1], item, _inside(path, name)) for name, item in value.items()}
    if origin in (list, tuple):
        _require(list, value, path, "a list")
        if origin is list or arguments[1:] == (...,):
            types_of_items = [arguments[0]] * len(value)
        elif len(value) == len(arguments):
            types_of_items = arguments
        else:
            raise FieldError(path, f"has {len(value)} entries, not {len(arguments)}")
        items = zip(types_of_items, value, strict=True)
        return origin(_converted(kind, item, f"{path}[{place}]") for place, (kind, item) in enumerate(items))
    raise TypeError(f"from_json does not read fields of type {hint} ({path})")


def _simple(hint: type, value: Any, path: str) -> Any:
    if hint is float and value is None:
        return float("nan")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise FieldError(path, f"is {_shown(value)}, not {_SIMPLE[hint]}")
    return value


def _member(options: list[Any], value: Any, path: str) -> Any:
    """The type of a union that a value is of."""
    fitting = [option for option in options if isinstance(value, _json_types(option))]
    if len(fitting) > 1 and isinstance(value, dict):
        fitting = [option for option in fitting if _literals_fit(option, value)]
        shared = [len(value.keys() & {field.name for field in dataclasses.fields(option)}) for option in fitting]
        fitting = [option for option, number in zip(fitting, shared, strict=True) if number == max(shared)]
    if len(fitting) != 1:
        names = " or ".join(getattr(option, "__name__", str(option)) for option in options)
        raise FieldError(path, f"is {_shown(value)}, of which it is not clear whether it is {names}")
    return fitting[0]


def _json_types(hint: Any) -> type | tuple[type, ...]:
    """The types that `json.loads` gives to values of a type."""
    if dataclasses.is_dataclass(hint):
        return dict
    origin = typing.get_origin(hint) or hint
    if origin is typing.Literal:
        return tuple({type(choice) for choice in typing.get_args(hint)})
    return {tuple: list, float: (int, float)}.get(origin, origin)


def _literals_fit(cls: type, value: dict) -> bool:
    return all(
        value.get(name) in typing.get_args(hint)
        for name, hint in _hints(cls).items()
        if typing.get_origin(hint) is typing.Literal
    )


def _require(cls: type, value: Any, path: str, noun: str) -> None:
    if not isinstance(value, cls):
        raise FieldError(path, f"is {_shown(value)}, not {noun}")


def _inside(path: str, name: str) -> str:
    """The path of a field; a name that would not be clear in a sentence stands in quotes."""
    if not name or not all(character.isalnum() or character in "_-" for character in name):
        return f"{path}[{name!r}]"
    return f"{path}.{name}" if path else name


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
