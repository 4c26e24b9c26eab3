"""Declaration of configuration keys: default, meaning and allowed values in one place, for checks and reference.

A stage is a frozen dataclass whose fields are declared with `key`. Its `__post_init__` calls `check_values`; the
reference (`kmura.config.reference`) reads the same declarations through `stage_keys` and `bundle_keys`.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

from kmura.config.suggestions import FORMER_SPLITS, did_you_mean, nearest
from kmura.errors import InputError

_DECLARED = "key"  # the entry of a field's metadata that holds its _Declaration


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`.

    Attributes:
        low, high: the ends; None is no bound.
        above, below: whether the low end (above) or the high end (below) is excluded.
    """

    low: float | None = None
    high: float | None = None
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:  # False for NaN
        fits_low = self.low is None or (value > self.low if self.above else value >= self.low)
        fits_high = self.high is None or (value < self.high if self.below else value <= self.high)
        return fits_low and fits_high

    @property
    def text(self) -> str:
        """The range in words, for people: `1 or more`, `0 to 1`, `above 0 and below 1`."""
        if self.high is None:
            return f"above {self.low}" if self.above else f"{self.low} or more"
        if not self.above and not self.below:
            return f"{self.low} to {self.high}"
        low = f"above {self.low}" if self.above else f"at least {self.low}"
        return f"{low} and below {self.high}" if self.below else f"{low}, at most {self.high}"

    @property
    def pair_text(self) -> str:
        """The condition on an ascending pair within the range: `0 < low <= high <= 4`."""
        return f"{self.low} {'<' if self.above else '<='} low <= high {'<' if self.below else '<='} {self.high}"

    def check(self, key: str, value: float) -> None:
        """Raises an InputError that states the key, the value and the range if the value is outside."""
        if value not in self:
            allowed = f"{self.text} is needed" if self.high is None else f"allowed is {self.text}"
            raise InputError(f"{key} is {value}; {allowed}")

    def check_pair(self, key: str, pair: Sequence[float]) -> None:
        """Raises an InputError if the pair is not ascending or one of its ends is outside."""
        low, high = pair
        if low not in self or high not in self or not low <= high:
            raise InputError(f"{key} is [{low}, {high}]; give {self.pair_text}")


@dataclasses.dataclass(frozen=True)
class _Declaration:
    """What `key` states about a field besides its default."""

    meaning: str
    range: Range | None
    pair: Range | None
    allowed: str


@dataclasses.dataclass(frozen=True)
class Key:
    """One configuration key as a person reads it.

    Attributes:
        stage, name: `train`, `epochs`.
        type: of its values, in words (`int`, `float or none`, `[float, float]`).
        default: its value in a configuration without a recipe.
        allowed: its allowed values in words; empty if the type is sufficient.
        meaning: one or two sentences, with units.
    """

    stage: str
    name: str
    type: str
    default: Any
    allowed: str
    meaning: str

    @property
    def full_name(self) -> str:
        """`stage.name`, as settings and recipes spell it."""
        return f"{self.stage}.{self.name}"


def key(
    default: Any,
    meaning: str,
    *,
    at_least: float | None = None,
    within: tuple[float, float] | None = None,
    between: tuple[float, float] | None = None,
    above: tuple[float, float] | None = None,
    pair: Range | None = None,
    names: Sequence[str] = (),
    allowed: str = "",
) -> Any:
    """A dataclass field that declares a configuration key. Give at most one of the keywords.

    None is always inside a range; the items of a list are checked one by one. Choices of a `Literal` annotation need
    no keyword.

    Args:
        default: the value in a configuration without a recipe.
        meaning: one or two sentences, with units.
        at_least: the smallest allowed number.
        within: the smallest and the largest allowed number.
        between: bounds that are themselves not allowed.
        above: a bound that is not allowed, and the largest allowed number.
        pair: the range of an ascending pair of numbers.
        names: entries of a model registry. The models check them, since registries can be extended.
        allowed: the allowed values in words, where the stage or the models check them.
    """
    bounds = None
    if at_least is not None:
        bounds = Range(at_least)
    elif within is not None:
        bounds = Range(*within)
    elif between is not None:
        bounds = Range(*between, above=True, below=True)
    elif above is not None:
        bounds = Range(*above, above=True)
    declaration = _Declaration(meaning, bounds, pair, allowed or ", ".join(names))
    return dataclasses.field(default=default, metadata={_DECLARED: declaration})


def check_values(config: Any, stage: str) -> None:
    """Checks that the values of a stage's dataclass are allowed by its keys.

    Args:
        config: an instance of a stage's dataclass.
        stage: its name, for the error; "" for options that belong to no stage.

    Raises:
        InputError: a value outside its range or choices.
    """
    for field in dataclasses.fields(config):
        name, value = f"{stage}.{field.name}" if stage else field.name, getattr(config, field.name)
        declared = field.metadata[_DECLARED]
        if value is None:
            continue
        if choices := _choices(type(config), field.name):
            for item in value if isinstance(value, tuple | list) else (value,):
                check_choice_of(name, item, choices)
        elif declared.pair:
            declared.pair.check_pair(name, value)
        elif declared.range and value not in words_of(hints(type(config))[field.name]):
            for number in value if isinstance(value, tuple | list) else (value,):
                declared.range.check(name, number)


def check_choice_of(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raises an InputError that lists the choices if the value is none of them."""
    if value not in choices:
        listed, renamed = ", ".join(map(str, choices)), FORMER_SPLITS.get(value)
        meant = [renamed] if renamed in choices else nearest(str(value), choices)
        raise InputError(f"{name} is {value!r}; allowed: {listed}{did_you_mean(meant)}")


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """The type of each field of a dataclass."""
    return {name: hint for name, hint in typing.get_type_hints(cls).items() if name in cls.__dataclass_fields__}


def stage_keys(stage: str, cls: type) -> list[Key]:
    """The keys of a stage's dataclass, in order."""
    return [
        Key(stage, field.name, _type_text(hints(cls)[field.name]), field.default, _allowed(cls, field), meaning)
        for field in dataclasses.fields(cls)
        for meaning in [field.metadata[_DECLARED].meaning]
    ]


def bundle_keys(bundle: type) -> list[Key]:
    """The keys of all stages of a bundle, in order."""
    return [key for stage, cls in hints(bundle).items() for key in stage_keys(stage, cls)]


def words_of(hint: Any) -> tuple[str, ...]:
    """The words that a union allows beside numbers: `int | Literal["all"]` allows `all`."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return ()
    return tuple(
        word for kind in typing.get_args(hint) if typing.get_origin(kind) is Literal for word in typing.get_args(kind)
    )


def _choices(cls: type, name: str) -> tuple:
    """The choices of a field, or of each of its items if it is a list; empty if its values are not enumerated."""
    hint = hints(cls)[name]
    if typing.get_origin(hint) is tuple:
        hint = typing.get_args(hint)[0]
    return typing.get_args(hint) if typing.get_origin(hint) is Literal else ()


def _allowed(cls: type, field: dataclasses.Field) -> str:
    declared = field.metadata[_DECLARED]
    if choices := _choices(cls, field.name):
        return ", ".join(map(str, choices))
    if hints(cls)[field.name] == tuple[bool, ...]:
        return "true, false"
    if declared.pair:
        return declared.pair.pair_text
    if declared.range:
        words = "".join(f"{word}, or " for word in words_of(hints(cls)[field.name]))
        return words + declared.range.text + (" each" if typing.get_origin(hints(cls)[field.name]) is tuple else "")
    return declared.allowed or ("true, false" if hints(cls)[field.name] is bool else "")


def _type_text(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return type(arguments[0]).__name__
    if origin in (typing.Union, types.UnionType):
        return " or ".join("none" if kind is type(None) else _type_text(kind) for kind in arguments)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"list of {_type_text(arguments[0])}"
        return f"[{', '.join(map(_type_text, arguments))}]"
    return hint.__name__
