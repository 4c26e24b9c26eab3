"""Suggestions for mistyped, abbreviated and renamed names."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

MOST = 3  # suggestions in one message
FORMER_SPLITS = {"tune": "val", "valid": "test"}  # name in kmura 0.1.0 -> name today


def nearest(name: str, names: Iterable[Any]) -> list[str]:
    """The name among `names` that is spelled most like `name`; empty if none is near."""
    return difflib.get_close_matches(name, [str(item) for item in names], n=1)


def near_keys(name: str, stage: str, keys: Mapping[str, Iterable[str]]) -> list[str]:
    """The keys `stage.key` that a person probably meant by `name`, at most MOST, the likeliest first.

    In this order: a key of this name in another stage (`model.epochs`: `train.epochs`); then, within the stage and only
    if that has none within the others, abbreviations (initials `lr`, beginnings `learn_rate`, parts `smoothing` of the
    words of a key) and names of similar spelling.

    Args:
        name: what was given, without its stage.
        stage: the stage that it was given in; a name that `keys` lacks, as "", if it is unknown.
        keys: stage -> names of its keys.
    """
    others = {other: tuple(names) for other, names in keys.items() if other != stage}
    own = {stage: tuple(keys[stage])} if stage in keys else {}
    tries = [(others, _same)]
    tries += [(stages, rule) for stages in (own, others) for rule in (_initials, _beginnings, _parts, nearest)]
    for stages, rule in tries:
        matches = [f"{where}.{match}" for where, names in stages.items() for match in rule(name, names)]
        if matches:
            return matches[:MOST]
    return []


def did_you_mean(names: Iterable[str]) -> str:
    """`; did you mean A, B or C?`, or "" without names."""
    *first, last = [*names] or [""]
    return f"; did you mean {', '.join(first)}{' or ' if first else ''}{last}?" if last else ""


def _same(name: str, names: Iterable[str]) -> list[str]:
    return [other for other in names if other == name]


def _initials(name: str, names: Iterable[str]) -> list[str]:
    return [other for other in names if "_" in other and name == "".join(word[0] for word in other.split("_"))]


def _beginnings(name: str, names: Iterable[str]) -> list[str]:
    """Keys whose first words begin with the words of `name`, in order: `warmup`, `learn_rate`, `batchsize`."""
    words = name.split("_")
    return [
        other
        for other in names
        if other.replace("_", "") == name
        or len(name) > 1
        and len(words) <= len(other.split("_"))
        and all(full.startswith(word) for word, full in zip(words, other.split("_"), strict=False))
    ]


def _parts(name: str, names: Iterable[str]) -> list[str]:
    """Keys that have `name` among their words (also in its plural): `decay`, `patience`, `width`."""
    return [other for other in names if {name, f"{name}s"} & set(other.split("_"))]
