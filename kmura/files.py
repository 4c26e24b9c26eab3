"""Atomic file writes (temporary name, flush, rename), locks, and reading of JSON files."""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import filelock

from kmura.errors import InputError, reason


@contextlib.contextmanager
def replacing(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
    """A context manager with an open file that replaces `path` when the block ends without an error.

    Readers see either the old or the new content, never a part of it. After an error or a kill the old file remains.

    Args:
        path: the file to replace.
        mode: the mode of `open`, `w` or `wb`.

    Raises:
        InputError: the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, mode, **({} if "b" in mode else {"encoding": "utf-8", "newline": ""})) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {reason(error)}; free space or choose another folder") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """A context manager that holds a lock file. The operating system releases it when the process ends or is killed.

    Args:
        path: the lock file.
        busy: the whole error message if another process holds the lock.

    Raises:
        InputError: another process holds the lock, or the folder of the lock file cannot be written.
    """
    lock = filelock.FileLock(path, timeout=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout as error:  # a subclass of OSError
        raise InputError(busy) from error
    except OSError as error:
        raise InputError(f"cannot write to {path.parent}: {reason(error)}; choose another folder") from error
    try:
        yield
    finally:
        lock.release()


def flush_to_disk(path: str | os.PathLike) -> None:
    """Flushes a file, or the entries of a folder, to disk. On Windows, folders cannot be opened and are skipped."""
    windows = os.name == "nt"
    if windows and os.path.isdir(path):
        return
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)  # Windows flushes only files open for writing
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON to `path`, atomically. NaN is written as null, because JSON has no NaN."""
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    with replacing(path) as file:
        file.write(text + "\n")


@contextlib.contextmanager
def reading_json(path: Path, *, fix: str, missing: str = "") -> Iterator[Any]:
    """A context manager with the parsed content of a JSON file, for a block that reads values from it.

    Args:
        path: the file.
        fix: how to fix a damaged file; the last part of the error message.
        missing: the whole error message if the file does not exist; "" reports a missing file as damaged.

    Raises:
        InputError: the file does not exist, cannot be read, or does not contain what the block looks up.
    """
    try:
        yield json.loads(path.read_text(encoding="utf-8"))
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if missing and isinstance(error, FileNotFoundError):
            raise InputError(missing) from error
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}); {fix}") from error


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and (not math.isfinite(value)):
        return None
    return value


def sha256_of(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of the contents of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
