"""From recipes, settings and `run.json` to a `Config` and back."""

import dataclasses
import difflib
import importlib.resources
import json
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from kmura.config.stages import Config
from kmura.errors import InputError, reason

RECIPES = importlib.resources.files("kmura") / "recipes"


def recipe_names() -> list[str]:
    """The names of the recipes that ship with kmura."""
    return sorted(entry.name.removesuffix(".toml") for entry in RECIPES.iterdir() if entry.name.endswith(".toml"))


def load_config(recipe: str | None = None, settings: Mapping[str, Any] | Iterable[str] = ()) -> Config:
    """The configuration of a recipe with settings laid over it.

    Args:
        recipe: a shipped name, the path of a TOML file, or None for the defaults.
        settings: a mapping `stage.key -> value`, or texts `stage.key=value` with the value in TOML's notation
            (a bare word is a text). Later ones win.

    Raises:
        InputError: no such recipe, bad TOML, an unknown key (names the nearest) or a value of the wrong type.
    """
    tables = _read_recipe(recipe) if recipe else {}
    config_from_tables(tables, f"recipe {recipe}")
    for key, value in load_settings(settings).items():
        stage, _, name = key.partition(".")
        if not name:
            raise InputError(f"setting {key!r} names no stage; write stage.key=value, for example train.epochs=3")
        table = tables.setdefault(stage, {})
        table[name] = value
    return config_from_tables(tables, "settings")


def load_settings(settings: Mapping[str, Any] | Iterable[str]) -> dict[str, Any]:
    """Settings as a mapping `stage.key -> value`, from one or from texts `stage.key=value`."""
    return dict(settings.items() if isinstance(settings, Mapping) else map(parse_setting, settings))


def parse_setting(text: str) -> tuple[str, Any]:
    """`stage.key=value` as key and typed value.

    Raises:
        InputError: there is no `=`.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"setting {text!r} has no value; write stage.key=value, for example train.epochs=3")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def config_from_tables(tables: Mapping[str, Mapping[str, Any]], source: str = "config", bundle: type = Config) -> Any:
    """The configuration that nested tables describe, as `config_json` or TOML give them.

    Raises:
        InputError: unknown stage or key, or a value of the wrong type; names `source`.
    """
    return _build(bundle, tables, "", source)


def config_json(config: Config) -> dict:
    """The configuration as nested plain tables, for `run.json`."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def differences(one: Config, other: Config) -> list[str]:
    """The keys in which two configurations differ, as lines `key: a -> b`."""
    left, right = config_json(one), config_json(other)
    return [
        f"{stage}.{key}: {left[stage][key]} -> {right[stage][key]}"
        for stage in left
        for key in left[stage]
        if left[stage][key] != right[stage][key]
    ]


def _read_recipe(recipe: str) -> dict:
    shipped = RECIPES / f"{recipe}.toml"
    source = shipped if shipped.is_file() else Path(recipe)
    if not source.is_file():
        raise InputError(
            f"no recipe {recipe!r}: neither a file nor one of the shipped {', '.join(recipe_names())}"
            + _nearest(recipe, recipe_names())
        )
    try:
        return tomllib.loads(source.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {recipe} is not valid TOML: {error}") from error
    except OSError as error:
        raise InputError(f"recipe {recipe} cannot be read: {reason(error)}") from error


def _build(cls: type, table: Any, prefix: str, source: str):
    if not isinstance(table, Mapping):
        raise InputError(f"{prefix.rstrip('.') or source} in {source} is {table!r}; a table of keys is needed")
    hints = typing.get_type_hints(cls)
    unknown = [key for key in table if key not in hints]
    if unknown:
        names = [prefix + name for name in hints]
        raise InputError(
            f"unknown key {prefix}{unknown[0]} in {source}"
            + (_nearest(prefix + unknown[0], names) or f"; known: {', '.join(names)}")
        )
    values = {}
    for key, value in table.items():
        if dataclasses.is_dataclass(hints[key]):
            values[key] = _build(hints[key], value, f"{prefix}{key}.", source)
        else:
            values[key] = _typed(prefix + key, value, hints[key])
    return cls(**values)


def _typed(key: str, value: Any, hint: Any) -> Any:
    """`value` as the type that `hint` asks for; whole numbers serve as floats, lists as tuples."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in arguments:
            raise InputError(
                f"{key} is {value!r}; allowed: {', '.join(map(str, arguments))}{_nearest(str(value), arguments)}"
            )
        return value
    if origin in (typing.Union, types.UnionType):
        if value in (None, "none") and type(None) in arguments:  # TOML has no null
            return None
        return _typed(key, value, next(argument for argument in arguments if argument is not type(None)))
    if origin is tuple:
        if not isinstance(value, list | tuple) or (arguments[-1] is not Ellipsis and len(value) != len(arguments)):
            raise InputError(f"{key} is {value!r}; a list of {len(arguments)} values is needed")
        inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_typed(key, item, kind) for item, kind in zip(value, inner, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is str and not isinstance(value, str):
        return str(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise InputError(f"{key} is {value!r}; a value of type {hint.__name__} is needed")
    return value


def _nearest(name: str, names: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, [str(item) for item in names], n=1)
    return f"; did you mean {matches[0]}?" if matches else ""
