"""Ranges of values: a value outside is refused with the range, None is always allowed."""

from kmura.errors import InputError


def at_least(key: str, value: float | None, low: float) -> None:
    if value is not None and value < low:
        raise InputError(f"{key} is {value}; {low} or more is needed")


def within(key: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:  # also refuses NaN
        raise InputError(f"{key} is {value}; allowed is {low} to {high}")


def between(key: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low < value < high:
        raise InputError(f"{key} is {value}; allowed is above {low} and below {high}")
