"""SimpleITK, an optional dependency that only volumes need."""

import contextlib
import re
from collections.abc import Iterator
from types import ModuleType

from kmura.errors import InputError


def simpleitk() -> ModuleType:
    """Returns the module SimpleITK.

    Raises:
        InputError: SimpleITK is not installed.
    """
    try:
        import SimpleITK
    except ImportError as error:
        raise InputError(
            "CT volumes need SimpleITK, which is not installed; run pip install '.[ct]' in a clone of kmura"
        ) from error
    return SimpleITK


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """A context manager that keeps ITK from printing warnings, which kmura reports as errors of its own."""
    process = simpleitk().ProcessObject
    shown = process.GetGlobalWarningDisplay()
    process.GlobalWarningDisplayOff()
    try:
        yield
    finally:
        process.SetGlobalWarningDisplay(shown)


def itk_reason(error: Exception) -> str:
    """Returns what an error of SimpleITK says, on one line, without source files and addresses of objects."""
    text = " ".join(str(error).split())
    for mark in ("sitk::ERROR:", "ITK ERROR:", "[nrrd]"):
        text = text.rpartition(mark)[2].strip()
    text = text.partition(" Tried to create one of")[0]
    return re.sub(r"^\w+ ?\(0x[0-9a-f]+\):\s*", "", text)[:160].rstrip(" .;:")
