"""The error class for invalid input, and functions for error messages."""

import errno
import os
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


def unreadable(path: str | os.PathLike, error: OSError) -> InputError:
    """Returns the error of a file that exists and cannot be read; its content may be whole, so nothing is made anew."""
    if error.errno in _FORBIDDEN:
        fix = "fix its permissions"
    elif error.errno in _FILES:
        fix = "raise the limit of open files (ulimit -n)"
    elif error.errno == errno.EISDIR:
        fix = "a file is needed there, not a folder"
    else:
        fix = "check the path and the disk"
    return InputError(f"{path} cannot be read: {reason(error)}; {fix}")


def remedy(error: OSError, otherwise: str = "choose another folder") -> str:
    """Returns how to fix an error of writing, by its cause: free space only where the disk is full.

    Args:
        error: the error.
        otherwise: the fix that remains where the cause cannot be removed, such as "choose another --out".
    """
    if error.errno in _FULL:
        return f"free space or {otherwise}"
    if error.errno in _FORBIDDEN:
        return f"fix the permissions or {otherwise}"
    if error.errno == errno.ENAMETOOLONG:
        return "choose a shorter name"
    if error.errno in _FILES:
        return "raise the limit of open files (ulimit -n)"
    if error.errno == errno.EIO:
        return f"check the disk or {otherwise}"
    return otherwise


_FULL = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name)}
_FORBIDDEN = {errno.EACCES, errno.EPERM}
_FILES = {errno.EMFILE, errno.ENFILE}
