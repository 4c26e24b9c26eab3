"""Files that appear whole or not at all: written aside, flushed to disk, renamed."""

import contextlib
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from kmura.errors import InputError, reason


@contextlib.contextmanager
def replacing(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
    """An open file that takes the place of `path` when the block ends without an error.

    Readers see the old content or the new, never a part; after an error or a kill the old file stands.

    Raises:
        InputError: the folder cannot be written or the disk is full.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, mode, **({} if "b" in mode else {"encoding": "utf-8", "newline": ""})) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {reason(error)}; free space or choose another folder") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()


@contextlib.contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """A block that holds the lock file `path`; it goes with the process, however that ends.

    Raises:
        InputError: another process holds it (says `busy`), or its folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path, "w")
    except OSError as error:
        raise InputError(f"cannot write to {path.parent}: {reason(error)}; choose another folder") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(busy) from error
        yield


def write_json(path: str | os.PathLike, value: Any) -> None:
    """`value` as indented JSON at `path`, whole or not at all. NaN is written as null (JSON has none)."""
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    with replacing(path) as file:
        file.write(text + "\n")


@contextlib.contextmanager
def reading_json(path: Path, *, mend: str, missing: str = "") -> Iterator[Any]:
    """What a JSON file says, for a block that takes it apart.

    Args:
        path: of the file.
        mend: what to do about a damaged file, the end of the error's line.
        missing: the whole line where there is no file; "" calls that damaged, too.

    Raises:
        InputError: no file, one that cannot be read, or what the block looks for is not in it.
    """
    try:
        yield json.loads(path.read_text(encoding="utf-8"))
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if missing and isinstance(error, FileNotFoundError):
            raise InputError(missing) from error
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}); {mend}") from error


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and (not math.isfinite(value)):
        return None
    return value


def sha256_of(path: str | os.PathLike) -> str:
    """The SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
