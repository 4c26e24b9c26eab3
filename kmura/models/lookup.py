"""Entries of the registries (dicts from name to entry) by name."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from kmura.errors import InputError

Entry = TypeVar("Entry")


def nearest_first(name: str, names: Iterable[str]) -> list[str]:
    """`names` in order of likeness to `name`."""
    return sorted(names, key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio())


def entry(table: Mapping[str, Entry], name: str, kind: str) -> Entry:
    """The entry of `table` called `name`.

    Args:
        kind: what the table holds ("backbone"), for the error.

    Raises:
        InputError: no such name; lists the names there are, nearest first.
    """
    if name not in table:
        raise InputError(f"there is no {kind} {name!r}; choose one of {', '.join(nearest_first(str(name), table))}")
    return table[name]
