"""The error class for invalid input, and functions for error messages."""

from collections.abc import Iterable


class InputError(ValueError):
    """Invalid input. The message is one line that says what failed, why, and how to fix it.

    The command line prints the message and exits with code 2; library users catch it as a ValueError.
    """


def check_choice(what: str, value: str, choices: Iterable[str]) -> None:
    """Checks that a value is one of the choices.

    Args:
        what: name of the value in the message ("layout").
        value: the value to check.
        choices: the allowed values.

    Raises:
        InputError: the value is not allowed; lists the choices.
    """
    choices = tuple(choices)
    if value not in choices:
        raise InputError(f"{what} {value!r} is unknown; choose one of {', '.join(choices)}")


def in_brief(error: Exception) -> str:
    """Returns the message of an error of another library on one line, at most 200 characters."""
    return " ".join(str(error).split())[:200]


def reason(error: OSError) -> str:
    """Returns the operating system's message of an error, without number and path ("No space left on device")."""
    return error.strerror or str(error)
