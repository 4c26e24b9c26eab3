"""Silence of pydicom, whose warnings and log messages quote values of the file, such as UIDs and names."""

import contextlib
import contextvars
import logging
import warnings
from collections.abc import Iterator

_silent: contextvars.ContextVar[bool] = contextvars.ContextVar("silent", default=False)


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """A context manager in which pydicom neither warns nor logs in this thread; errors are still raised.

    The level of its logger would not do: pydicom sets it when it is imported.
    """
    logging.getLogger("pydicom").addFilter(_passes)  # the same filter is added once
    token = _silent.set(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        _silent.reset(token)


def _passes(record: logging.LogRecord) -> bool:
    return not _silent.get()
