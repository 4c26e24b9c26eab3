"""Atomic file writes (temporary name, flush, rename), locks, and reading of JSON files."""

import codecs
import contextlib
import csv
import errno
import hashlib
import io
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import filelock

from kmura.errors import InputError, reason, remedy, unreadable


@contextlib.contextmanager
def replacing(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
    """A context manager with an open file that replaces `path` when the block ends without an error.

    Readers see either the old or the new content, never a part of it. After an error or a kill the old file remains.
    Only plain files are replaced: behind a symbolic link, its target is; a device or a FIFO is written to as it is.
    Characters that UTF-8 cannot encode (surrogates of file names in another encoding) are written as escapes.

    Args:
        path: the file to replace.
        mode: the mode of `open`, `w` or `wb`.

    Raises:
        InputError: the file is read-only or a folder, its folder cannot be written, or the disk is full.
    """
    path = Path(path)
    form = {} if "b" in mode else {"encoding": "utf-8", "newline": "", "errors": "backslashreplace"}
    temporary = None
    try:
        target = _plain_target(path)
        if target is None:
            with open(path, mode, **form) as file:
                yield file
            return
        temporary = aside_name(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, mode, **form) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
        os.replace(temporary, target)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def check_replaceable(path: Path) -> None:
    """Checks that `replacing` may replace a file, before other files are removed.

    Raises:
        InputError: it is read-only or a folder.
    """
    try:
        _plain_target(path)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> InputError:
    fix = remedy(error, "give another file" if error.errno == errno.EISDIR else "choose another folder")
    return InputError(f"cannot write {path}: {reason(error)}; {fix}")


def aside_name(path: Path) -> Path:
    """The hidden name `.NAME.PID.part` beside a file or folder, for content that is not complete yet.

    A long NAME is shortened, since file systems allow 255 bytes.
    """
    return path.with_name(name_within_limit(f".{path.name}", f".{os.getpid()}.part"))


def name_within_limit(stem: str, end: str) -> str:
    """A file name of a stem and an end such as `.png`; a stem too long for a file name is cut and gets a hash."""
    room = LONGEST_NAME - len(os.fsencode(end))
    encoded = os.fsencode(stem)
    if len(encoded) <= room:
        return stem + end
    short = f"-{hashlib.sha256(encoded).hexdigest()[:16]}"
    return encoded[: room - len(short)].decode("utf-8", "ignore") + short + end


LONGEST_NAME = 255  # bytes, in the file systems of Linux and macOS


def _plain_target(path: Path) -> Path | None:
    """The plain file that a path stands for, which need not exist; None for a device, a FIFO or an open file.

    Raises:
        OSError: it is a folder or read-only, or a link leads nowhere.
    """
    for _ in range(40):  # as many links as Linux follows
        if os.name == "posix" and os.path.abspath(path).startswith(("/dev/", "/proc/")):
            return None  # such as /dev/stdout, which may be a file that the shell has open
        if not path.is_symlink():
            break
        path = path.parent / os.readlink(path)
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return path
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not status.st_mode & 0o222 or not os.access(path, os.W_OK):  # the first also protects files from root
        raise PermissionError(errno.EACCES, "it is read-only", str(path))
    return path if stat.S_ISREG(status.st_mode) else None


@contextlib.contextmanager
def locked(path: Path, busy: str, *, drop: bool = False) -> Iterator[None]:
    """A context manager that holds a lock file. The operating system releases it when the process ends or is killed.

    Args:
        path: the lock file.
        drop: whether to remove the lock file at the end.
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
        raise InputError(f"cannot write to {path.parent}: {reason(error)}; {remedy(error)}") from error
    try:
        yield
    finally:
        if drop and os.name == "posix":  # while it is held: nobody can hold a file that has been removed
            path.unlink(missing_ok=True)
        lock.release()  # on Windows this also removes the file, which cannot be removed while it is open


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
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise unreadable(path, error) from error
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}); {fix}") from error


def csv_rows(path: str | os.PathLike, fix: str) -> list[list[str]]:
    """The rows of a CSV file, without those whose cells are all empty.

    The text is UTF-8, or UTF-16 with a byte order mark. Cells are separated by commas; by tabs where the first line has
    tabs and no comma, as spreadsheets write their "Unicode text"; by semicolons where the first line has semicolons and
    neither commas nor anything that occurs in paths, as spreadsheets write CSV where numbers have a decimal comma.

    Args:
        path: the file.
        fix: how to fix a file that is missing or not a CSV; the last part of the error message.

    Raises:
        InputError: the file is missing, cannot be read, is in another encoding, or is not a CSV.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; {fix}") from error
    except OSError as error:
        raise unreadable(path, error) from error
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
        if "\0" in text:
            raise ValueError("it contains zero bytes, as UTF-16 without a byte order mark does")
        first = text.partition("\n")[0]
        separator = "\t" if "\t" in first and "," not in first else ","
        if ";" in first and not any(character in first for character in ",\t./\\"):
            separator = ";"
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        return [row for row in rows if any(cell.strip() for cell in row)]
    except UnicodeDecodeError as error:
        what = f"byte {error.start} is not {'UTF-16' if wide else 'UTF-8'}"
        raise InputError(f"{path} cannot be read: {what}; save it as CSV in UTF-8, or {fix}") from error
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {error}; save it as CSV in UTF-8, or {fix}") from error


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
