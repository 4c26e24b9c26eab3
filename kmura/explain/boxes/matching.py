"""Which record a name in another file means: by path, by the end of a path, by file name or by its stem."""

import collections
import unicodedata
from collections.abc import Hashable, Mapping
from pathlib import PurePosixPath
from typing import Generic, TypeVar

from kmura.errors import InputError
from kmura.records import dicom, images

Value = TypeVar("Value", bound=Hashable)
_SUFFIXES = images.SUFFIXES | dicom.SUFFIXES | {".npy", ".npz"}
_SHOWN = 3  # of ambiguous names


class Names(Generic[Value]):
    """A table of values by path that also answers for other spellings of a path.

    A name fits a path if they are equal, or if one is the end of the other (`study1/image1.png` and
    `train/patient1/study1/image1.png`), with or without the suffix of an image. If only folders differ
    (`images/a.png` and `covid/a.png`), the file name decides, provided that most file names of the table occur once:
    in a data set of `image1.png` in many folders it means nothing.
    """

    def __init__(self, values: Mapping[str, Value], what: str):
        """
        Args:
            values: path -> value.
            what: what the paths are ("records"), for messages.
        """
        self.values = {normal(path): value for path, value in values.items()}
        self.what = what
        self._by_name: dict[str, list[str]] = collections.defaultdict(list)
        self._by_stem: dict[str, list[str]] = collections.defaultdict(list)
        for path in self.values:
            name = PurePosixPath(path).name
            self._by_name[name].append(path)
            self._by_stem[stem(name)].append(path)
        once = sum(len(paths) == 1 for paths in self._by_stem.values())
        self._names_identify = 2 * once > len(self.values)

    def get(self, name: str) -> Value | None:
        """Returns the value of the path that a name means; None if it means none.

        Raises:
            InputError: the name fits several paths with different values.
        """
        name = normal(name)
        if name in self.values:
            return self.values[name]
        parts = PurePosixPath(name).parts
        last = parts[-1] if parts else ""
        for candidates, key in ((self._by_name.get(last), last), (self._by_stem.get(stem(last)), stem(last))):
            if not candidates:
                continue
            whole = (*parts[:-1], key)
            ends = [path for path in candidates if _is_end(whole, (*PurePosixPath(path).parts[:-1], key))]
            pool = ends or (candidates if self._names_identify else [])
            if len({self.values[path] for path in pool}) > 1:
                more = ", ..." if len(pool) > _SHOWN else ""
                raise InputError(
                    f"image {name} fits {len(pool)} {self.what} ({', '.join(sorted(pool)[:_SHOWN])}{more}); give the "
                    "name with its folders"
                )
            if pool:
                return self.values[pool[0]]
        return None


def normal(name: str) -> str:
    """Returns a path with slashes, without `./` and a drive or root at its beginning, in Unicode's form NFC."""
    text = unicodedata.normalize("NFC", name.strip()).replace("\\", "/")
    if text[1:3] == ":/":
        text = text[2:]
    return "/".join(part for part in text.split("/") if part not in ("", "."))


def stem(name: str) -> str:
    """Returns a file name without the suffix of an image; the last part of a DICOM UID is no suffix."""
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in _SUFFIXES else name


def _is_end(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    length = min(len(one), len(other))
    return one[-length:] == other[-length:]
