"""Pseudonyms of patients, studies and images: keyed hashes (HMAC-SHA256) that only the holder of the key can repeat."""

import csv
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from kmura.errors import InputError, reason, remedy, unreadable
from kmura.files import replacing

log = logging.getLogger(__name__)
KEY_BYTES = 32
_DIGITS = 16  # hexadecimal digits of a pseudonym: two of a million values collide with a probability of 3e-8
_KEY = re.compile(r"[0-9a-f]{64}\s*")


class Pseudonyms:
    """Pseudonyms of one key; equal values have equal pseudonyms."""

    def __init__(self, key: bytes):
        self._key = key

    def of(self, kind: str, *values: str) -> str:
        """The pseudonym `KIND_0123456789abcdef` of values, such as `patient_...` of a PatientID."""
        message = json.dumps([kind, *values]).encode()  # unambiguous for all values
        return f"{kind}_{hmac.new(self._key, message, hashlib.sha256).hexdigest()[:_DIGITS]}"


def default_key_file() -> Path:
    """The key file of this user: `kmura/pseudonyms.key` in XDG_CONFIG_HOME, by default in `~/.config`."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "kmura" / "pseudonyms.key"


def read_pseudonyms(key_file: str | os.PathLike | None = None) -> Pseudonyms:
    """The pseudonyms of a key file, which is made with a random key where it is missing.

    Only the user may read a new key file. The log says that it was made, and warns of one that others can read.

    Args:
        key_file: a text file of 64 hexadecimal digits; None: `default_key_file`.

    Raises:
        InputError: the file is not a key, or cannot be read or made.
    """
    path = Path(key_file) if key_file else default_key_file()
    try:
        text = path.read_text(encoding="ascii")
    except FileNotFoundError:
        return Pseudonyms(bytes.fromhex(_made(path)))
    except UnicodeDecodeError:
        text = ""
    except OSError as error:
        raise unreadable(path, error) from error
    if not _KEY.fullmatch(text):
        raise InputError(
            f"{path} is not a key file (64 hexadecimal digits); give another --key-file, or a new name to make a key"
        )
    if os.name == "posix" and path.stat().st_mode & 0o077:
        log.warning("other users may read the key file %s; run: chmod 600 %s", path, path)
    return Pseudonyms(bytes.fromhex(text.strip()))


def check_outside(file: str | os.PathLike | None, folder: Path, flag: str) -> None:
    """Checks that a file which can undo pseudonyms does not lie in a folder that is passed on.

    Args:
        file: the file; None is accepted.
        folder: the folder of the records.
        flag: the option that names the file.

    Raises:
        InputError: it does.
    """
    if file and Path(file).resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"{flag} {file} lies in {folder}, the folder of the records; whoever receives them could undo the "
            "pseudonyms, so choose a file outside of it"
        )


def write_links(path: str | os.PathLike, links: Mapping[str, str]) -> None:
    """Writes a CSV of pseudonyms and the files that they stand for; only the user may read a new one.

    Args:
        path: the CSV.
        links: name in records or predictions -> path of the file.

    Raises:
        InputError: the file cannot be written.
    """
    path = Path(path)
    with replacing(path) as file:
        if os.name == "posix" and hasattr(file, "fileno") and not path.exists():
            os.fchmod(file.fileno(), 0o600)
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("image", "file"))
        rows.writerows(sorted(links.items()))


def _made(path: Path) -> str:
    """The digits of a new key, after writing them to `path`; those of another process that was faster."""
    digits = secrets.token_hex(KEY_BYTES)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "w", encoding="ascii") as file:
            file.write(digits + "\n")
    except FileExistsError:
        return path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise InputError(
            f"cannot make the key file {path}: {reason(error)}; {remedy(error, 'give another --key-file')}"
        ) from error
    log.info("made the key file %s; keep it: the same key gives the same pseudonyms, and only its holder can", path)
    return digits
