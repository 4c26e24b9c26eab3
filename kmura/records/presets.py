"""Presets of the layout csv: recipes (TOML) of its options for public data sets, in `kmura/recipes/csv`."""

import tomllib
from collections.abc import Mapping
from typing import Any

from kmura.config.loading import RECIPES
from kmura.errors import check_choice

FOLDER = RECIPES / "csv"


def preset_names() -> tuple[str, ...]:
    """The names of the presets."""
    return tuple(sorted(file.name.removesuffix(".toml") for file in FOLDER.iterdir() if file.name.endswith(".toml")))


def preset(name: str) -> dict[str, Any]:
    """The options of a preset; lists are tuples.

    Raises:
        InputError: an unknown name.
    """
    check_choice("preset", name, preset_names())
    table = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    return {option: tuple(value) if isinstance(value, list) else value for option, value in table.items()}


def preset_summary(name: str) -> str:
    """What a preset is for: the first line of its comment."""
    return (FOLDER / f"{name}.toml").read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def with_preset(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with those of the preset where they are not given; a condition of both has to hold.

    Args:
        options: option -> value; None, "" and () count as not given.
    """
    given = {name: value for name, value in options.items() if value not in (None, "", ())}
    if not (name := given.get("preset")):
        return dict(options)
    values = preset(name)
    if "label_column" in given or "label_columns" in given:  # other labels: what the preset says of its own is void
        for option in ("label_column", "label_columns", "label_separator", "classes"):
            values.pop(option, None)
    if values.get("where") and given.get("where"):
        given["where"] = f"({values['where']}) and ({given['where']})"
    return {**options, **values, **given}
