"""From recipes, settings and `run.json` to a configuration bundle and back."""

import dataclasses
import importlib.resources
import json
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from kmura.config.bundles import ClassificationConfig, PretrainingConfig, SegmentationConfig
from kmura.config.keys import hints, words_of
from kmura.config.suggestions import FORMER_SPLITS, did_you_mean, near_keys, nearest
from kmura.errors import InputError, reason

Bundle = TypeVar("Bundle")

NO_VALUE = "none"  # stands for None in recipes and settings, since TOML has no null
RECIPES = importlib.resources.files("kmura") / "recipes"


# of the recipes of a bundle; RECIPES for the others
_FOLDERS = {PretrainingConfig: RECIPES / "pretraining", SegmentationConfig: RECIPES / "segmentation"}


def recipe_names(bundle: type = ClassificationConfig) -> list[str]:
    """The names of the recipes of a bundle that ship with kmura."""
    folder = _FOLDERS.get(bundle, RECIPES)
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def recipe_text(recipe: str, bundle: type = ClassificationConfig) -> str:
    """The content of a shipped recipe."""
    return (_FOLDERS.get(bundle, RECIPES) / f"{recipe}.toml").read_text(encoding="utf-8")


def recipe_summary(recipe: str, bundle: type = ClassificationConfig) -> str:
    """What a shipped recipe is for, in one sentence: the first line of its comment."""
    return recipe_text(recipe, bundle).partition("\n")[0].removeprefix("# ")


def load_config(
    recipe: str | None = None,
    settings: Mapping[str, Any] | Iterable[str] = (),
    bundle: type[Bundle] = ClassificationConfig,
) -> Bundle:
    """The configuration of a recipe with settings on top.

    Args:
        recipe: a shipped name, the path of a TOML file, or None for the defaults.
        settings: a mapping `stage.key -> value`, or texts `stage.key=value` with the value in TOML's notation
            (a bare word is a text). Later settings win.
        bundle: the dataclass of stages that is returned.

    Raises:
        InputError: no such recipe, bad TOML, an unknown key (suggests the nearest) or a value of the wrong type.
    """
    tables = _read_recipe(recipe, bundle) if recipe else {}
    config_from_tables(tables, f"recipe {recipe}", bundle)
    for key, value in load_settings(settings).items():
        stage, name = _split(key, bundle)
        tables.setdefault(stage, {})[name] = value
    return config_from_tables(tables, "settings", bundle)


def load_settings(settings: Mapping[str, Any] | Iterable[str]) -> dict[str, Any]:
    """Settings as a mapping `stage.key -> value`, from such a mapping or from texts `stage.key=value`."""
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


def config_from_tables(
    tables: Mapping[str, Mapping[str, Any]], source: str = "config", bundle: type[Bundle] = ClassificationConfig
) -> Bundle:
    """The configuration that nested tables describe, as `config_json` or TOML give them.

    Args:
        tables: stage -> key -> value; what is missing has its default.
        source: where the tables come from, for errors.
        bundle: the dataclass of stages that is returned.

    Raises:
        InputError: unknown stage or key, or a value of the wrong type; states `source`.
    """
    if not isinstance(tables, Mapping):
        raise InputError(f"{source} is {tables!r}; a table of stages is needed")
    stages = hints(bundle)
    values = {}
    for stage, table in tables.items():
        if stage not in stages:
            raise InputError(_unknown_stage(stage, table, source, bundle))
        if not isinstance(table, Mapping):
            raise InputError(f"{stage} in {source} is {table!r}; a table of keys is needed")
        types_of_keys = hints(stages[stage])
        for key in table:
            if key not in types_of_keys:
                suggestion = did_you_mean(near_keys(key, stage, _keys(bundle)))
                known = ", ".join(f"{stage}.{name}" for name in types_of_keys)
                raise InputError(f"unknown key {stage}.{key} in {source}{suggestion or f'; known: {known}'}")
        typed = {key: _typed(f"{stage}.{key}", value, types_of_keys[key]) for key, value in table.items()}
        values[stage] = stages[stage](**typed)
    return bundle(**values)


def from_run_version_1(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The configuration tables of a `run.json` of run version 1, with the names of splits that are used today.

    Version 1 called the splits `tune` and `valid`; today they are `val` and `test` (key `train.select_on`).
    """
    tables = {stage: dict(table) for stage, table in tables.items()}
    train = tables.get("train", {})
    if "select_on" in train:
        train["select_on"] = FORMER_SPLITS.get(train["select_on"], train["select_on"])
    return tables


def filled_as_before(
    tables: Mapping[str, Mapping[str, Any]], bundle: type = ClassificationConfig
) -> dict[str, dict[str, Any]]:
    """The configuration tables of a `run.json` with the values that keys of today had before they existed.

    Only keys are filled in whose default differs from the former behaviour.

    Args:
        tables: stage -> key -> value.
        bundle: the dataclass of the stages.
    """
    tables = {stage: dict(table) for stage, table in tables.items()}
    if bundle is ClassificationConfig and "augment" in tables:
        tables["augment"] = {"crop": "zoom"} | tables["augment"]
    return tables


def config_json(config: Any) -> dict[str, dict[str, Any]]:
    """A bundle as nested plain tables, for `run.json`."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def differences(config: Bundle, other: Bundle) -> list[str]:
    """The keys in which two configurations of one bundle differ, as lines `key: a -> b`."""
    left, right = config_json(config), config_json(other)
    return [
        f"{stage}.{key}: {left[stage][key]} -> {right[stage][key]}"
        for stage in left
        for key in left[stage]
        if left[stage][key] != right[stage][key]
    ]


def _read_recipe(recipe: str, bundle: type) -> dict:
    shipped = _FOLDERS.get(bundle, RECIPES) / f"{recipe}.toml"
    source = shipped if shipped.is_file() else Path(recipe)
    names = recipe_names(bundle)
    if not source.is_file():
        raise InputError(
            f"no recipe {recipe!r}: it is neither a file nor one of the shipped {', '.join(names)}"
            + did_you_mean(nearest(recipe, names))
        )
    try:
        return tomllib.loads(source.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {recipe} is not valid TOML: {error}") from error
    except OSError as error:
        raise InputError(f"recipe {recipe} cannot be read: {reason(error)}") from error


def _keys(bundle: type) -> dict[str, list[str]]:
    return {stage: list(hints(cls)) for stage, cls in hints(bundle).items()}


def _split(key: str, bundle: type) -> tuple[str, str]:
    """Stage and name of a setting's key.

    Raises:
        InputError: it has no stage, or only a stage.
    """
    stage, _, name = key.partition(".")
    if name:
        return stage, name
    if stage in hints(bundle):
        raise InputError(f"setting {key!r} has no key of the stage {stage}; write {stage}.key=value")
    suggestion = did_you_mean(near_keys(key, "", _keys(bundle))) or ", for example train.epochs=3"
    raise InputError(f"setting {key!r} has no stage; write stage.key=value{suggestion}")


def _unknown_stage(stage: str, table: Any, source: str, bundle: type) -> str:
    """The error for a table or value under a name that is no stage."""
    stages = hints(bundle)
    if not isinstance(table, Mapping):  # a key outside of all tables
        suggestion = did_you_mean(near_keys(stage, "", _keys(bundle)))
        return f"unknown key {stage} in {source}{suggestion}" if suggestion else _known(stage, source, stages)
    if near := nearest(stage, stages):
        return f"unknown key {stage} in {source}{did_you_mean(near)}"
    for name in table:
        if near := near_keys(name, "", _keys(bundle)):
            return f"unknown key {stage}.{name} in {source}{did_you_mean(near)}"
    return _known(stage, source, stages)


def _known(stage: str, source: str, stages: Iterable[str]) -> str:
    return f"unknown key {stage} in {source}; known: {', '.join(stages)}"


def _typed(key: str, value: Any, hint: Any) -> Any:
    """`value` as the type that `hint` asks for; integers are accepted as floats, lists as tuples."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value  # checked with the ranges, by the stage
    if origin in (typing.Union, types.UnionType):
        if value in (None, NO_VALUE) and type(None) in arguments:
            return None
        if value in words_of(hint):
            return value
        return _typed(key, value, next(argument for argument in arguments if argument is not type(None)))
    if origin is tuple:
        if not isinstance(value, list | tuple) or (arguments[-1] is not Ellipsis and len(value) != len(arguments)):
            count = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
            raise InputError(f"{key} is {value!r}; a list of {count}values is needed")
        inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_typed(key, item, kind) for item, kind in zip(value, inner, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is str and not isinstance(value, str):
        return str(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise InputError(f"{key} is {value!r}; a value of type {hint.__name__} is needed")
    return value
