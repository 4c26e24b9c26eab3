"""The one error that a user can cause and mend, and words that such errors share."""

from collections.abc import Iterable


class InputError(ValueError):
    """Input that kmura cannot use: one line that names the thing, the reason and the mend.

    The command line prints the line and exits with code 2; library users catch it as a ValueError.
    """


def check_choice(what: str, value: str, choices: Iterable[str]) -> None:
    """Refuses a value that is not among the choices; `what` is what it was given for ("layout").

    Raises:
        InputError: names the value and the choices.
    """
    choices = tuple(choices)
    if value not in choices:
        raise InputError(f"{what} {value!r} is unknown; choose one of {', '.join(choices)}")


def in_brief(error: Exception) -> str:
    """The words of somebody else's error, on one line of 200 characters at most."""
    return " ".join(str(error).split())[:200]


def reason(error: OSError) -> str:
    """The operating system's own words for an error, without number and path ("No space left on device")."""
    return error.strerror or str(error)
