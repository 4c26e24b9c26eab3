"""The image files below a folder, recognised by their content, and what is passed over, counted by kind."""

import collections
import dataclasses
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from kmura.errors import InputError, reason
from kmura.records import dicom, images

_SHOWN = 3  # examples of each kind
_SUFFIX = re.compile(r"\.[a-z][a-z0-9]{0,9}")  # the last part of a DICOM UID is no suffix
_ARCHIVE = "__MACOSX"  # folder of copies without pixels that macOS adds to archives
CIRCLES = "links in circles"
TWICE = "files and folders that are listed already (links)"
BROKEN = "broken links"
HIDDEN = "hidden files"


@dataclasses.dataclass(frozen=True)
class PassedOver:
    """Files of one kind that a listing passes over.

    Attributes:
        kind: what they are, in words.
        number: how many.
        examples: the first of them, relative to the root.
    """

    kind: str
    number: int
    examples: tuple[str, ...] = ()


class Tally:
    """Counts what a listing passes over.

    Attributes:
        repeated: links to files that are listed already, each with the path under which the file is listed.
    """

    def __init__(self, most: int = _SHOWN):
        """
        Args:
            most: examples of each kind that are kept.
        """
        self.most = most
        self.repeated: list[tuple[Path, Path]] = []
        self._numbers: collections.Counter[str] = collections.Counter()
        self._examples: dict[str, list[str]] = {}

    def add(self, kind: str, name: str, number: int = 1) -> None:
        """Counts `number` files of a kind; `name` is an example."""
        self._numbers[kind] += number
        examples = self._examples.setdefault(kind, [])
        if len(examples) < self.most:
            examples.append(name.encode(errors="backslashreplace").decode())

    def drop_examples(self, unwanted: Callable[[str], bool]) -> None:
        """Drops the unwanted names among the examples; the counts stay."""
        for kind, names in self._examples.items():
            self._examples[kind] = [name for name in names if not unwanted(name)]

    def passed_over(self) -> tuple[PassedOver, ...]:
        """The kinds in alphabetical order."""
        return tuple(
            PassedOver(kind, self._numbers[kind], tuple(self._examples[kind])) for kind in sorted(self._numbers)
        )


def passed_over_note(passed_over: Iterable[PassedOver]) -> str:
    """One line that counts the kinds and names examples; empty if nothing was passed over."""
    parts = []
    for item in passed_over:
        shown = item.examples[:_SHOWN]
        more = ", ..." if item.number > len(shown) else ""
        examples = f" ({', '.join(shown)}{more})" if shown else ""
        parts.append(f"{item.number} {item.kind}{examples}")
    return f"passed over: {'; '.join(parts)}" if parts else ""


def find_images(root: Path, tally: Tally, folders: Sequence[str] | None = None) -> list[Path]:
    """The image and DICOM files below a folder, each once; those of a folder by name, before those of its subfolders.

    Files with a usual suffix are taken without opening them; all others are recognised by their content. Links are
    followed after all else, unless they lead to a folder or file that is listed already. Hidden files and folders,
    devices and pipes are passed over.

    Args:
        root: the folder.
        tally: counts what is passed over; examples are relative to `root`.
        folders: search only these subfolders; None searches all of `root`.

    Raises:
        InputError: a folder cannot be listed.
    """
    search = _Search(root, tally)
    for folder in [root] if folders is None else [root / name for name in folders]:
        search.walk(folder)
    search.follow_links()
    return sorted(search.files, key=_files_first)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden by its name, or the folder of copies in archives of macOS."""
    return name.startswith(".") or name == _ARCHIVE


def normalised(name: str) -> str:
    """The name in Unicode's form NFC, in which names that look the same are equal."""
    return unicodedata.normalize("NFC", name)


def check_distinct(names: Iterable[str], what: str) -> None:
    """Checks that no two names differ only in case or Unicode form.

    Args:
        names: the names.
        what: what they name, for the message ("class folders").

    Raises:
        InputError: two names do.
    """
    first: dict[str, str] = {}
    for name in sorted(set(names)):
        other = first.setdefault(normalised(name).casefold(), name)
        if other != name:
            raise InputError(f"the {what} {other!a} and {name!a} differ only in case or Unicode form; rename one")


class _Search:
    """A walk through folders that visits each once."""

    def __init__(self, root: Path, tally: Tally):
        self.root, self.tally = root, tally
        self.files: list[Path] = []
        self._links: collections.deque[Path] = collections.deque()
        self._folders: set[str] = set()  # real paths
        self._listed: dict[str, Path] = {}  # real path of each file -> its path

    def walk(self, folder: Path) -> None:
        """Collects the files below a folder; links wait for `follow_links`."""
        waiting = [(folder, os.path.realpath(folder))]
        while waiting:
            folder, real = waiting.pop()
            if real in self._folders:
                self.tally.add(TWICE, self._name(folder))
                continue
            self._folders.add(real)
            for entry in _entries(folder):
                path = folder / entry.name
                if is_hidden(entry.name):
                    self.tally.add("hidden folders" if entry.is_dir() else HIDDEN, self._name(path))
                elif entry.is_symlink():
                    self._links.append(path)
                elif entry.is_dir():
                    waiting.append((path, os.path.join(real, entry.name)))
                else:
                    self._take(path, os.path.join(real, entry.name), entry.is_file())

    def follow_links(self) -> None:
        """Collects what the links lead to, unless it is listed already."""
        links, self._links = sorted(self._links), collections.deque()
        while links:
            for link in links:
                self._follow(link)
            links, self._links = sorted(self._links), collections.deque()

    def _follow(self, link: Path) -> None:
        real = os.path.realpath(link)
        if not os.path.exists(real):
            self.tally.add(BROKEN, self._name(link))
        elif not os.path.isdir(real):
            self._take(link, real, os.path.isfile(real))
        elif any(Path(os.path.realpath(folder)).is_relative_to(real) for folder in (link.parent, self.root)):
            self.tally.add(CIRCLES, self._name(link))
        elif real in self._folders:
            self.tally.add(TWICE, self._name(link))
        else:
            self.walk(link)

    def _take(self, path: Path, real: str, is_file: bool) -> None:
        if not is_file:
            self.tally.add("devices, pipes or sockets", self._name(path))
            return
        if real in self._listed:
            self.tally.add(TWICE, self._name(path))
            self.tally.repeated.append((path, self._listed[real]))
            return
        self._listed[real] = path
        if kind := _other_kind(path):
            self.tally.add(kind, self._name(path))
        else:
            self.files.append(path)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _files_first(path: Path) -> tuple:
    return *((1, part) for part in path.parts[:-1]), (0, path.name)


def _entries(folder: Path) -> Iterator[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return iter(sorted(entries, key=lambda entry: entry.name))
    except OSError as error:
        text = f"{folder} cannot be listed: {reason(error)}; fix its permissions or exclude it"
        raise InputError(text) from error


def _other_kind(path: Path) -> str:
    """The kind of a file that is no picture, in words; empty for pictures and for files that cannot be read."""
    suffix = path.suffix.lower()
    try:
        if suffix in images.SUFFIXES:
            return ""
        with open(path, "rb") as file:
            start = file.read(dicom.PREAMBLE)
            if not dicom.may_be_dicom(start) and suffix not in dicom.SUFFIXES:
                file.seek(0)
                if start and images.is_image(file):
                    return ""
                return f"{suffix} files" if _SUFFIX.fullmatch(suffix) else "files without a suffix that are no images"
        return dicom.kind_without_pixels(path)
    except OSError:
        return ""  # decoding reports the reason
