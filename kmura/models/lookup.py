"""Lookup of entries in the registries (dicts from name to entry)."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from kmura.errors import InputError

Entry = TypeVar("Entry")


def nearest_first(name: str, names: Iterable[str]) -> list[str]:
    """Returns `names` sorted by similarity to `name`, most similar first."""
    return sorted(names, key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio())


def entry(table: Mapping[str, Entry], name: str, kind: str) -> Entry:
    """Returns the entry `name` of `table`.

    Args:
        table: name -> entry.
        name: the name to look up.
        kind: what an entry is ("backbone"), for the error message.

    Raises:
        InputError: the name does not exist; lists the known names, most similar first.
    """
    if name not in table:
        raise InputError(f"there is no {kind} {name!r}; choose one of {', '.join(nearest_first(str(name), table))}")
    return table[name]
