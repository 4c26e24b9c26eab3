"""Which image file a name in a table means."""

import collections
import posixpath
import re
from collections.abc import Iterable

from kmura.errors import InputError
from kmura.records.image_files import normalised

_DRIVE = re.compile(r"^[A-Za-z]:")
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,5}$")


class ImageLookup:
    """Finds the file of a name, which may be a file name with or without its suffix, or a path.

    A path fits a file if one of the two ends with the other: `images/a.png` fits `part1/images/a.png`, and
    `CheXpert-v1.0-small/train/p/a.jpg` fits `train/p/a.jpg`. Of the folders of an absolute path, which was valid on
    another machine (`C:\\data\\xray\\a.png`), as many have to agree as are needed to find one file.

    Attributes:
        other_suffix: name -> file, for names whose file has another suffix (`a.png` that was converted to `a.jpg`).
    """

    def __init__(self, files: Iterable[str]):
        """
        Args:
            files: posix paths relative to the root.
        """
        self.other_suffix: dict[str, str] = {}
        self._files = list(files)
        self._exact = {normalised(file): number for number, file in enumerate(self._files)}
        self._by_name: dict[str, list[int]] = collections.defaultdict(list)
        self._by_stem: dict[str, list[int]] = collections.defaultdict(list)
        for file, number in self._exact.items():
            name = posixpath.basename(file)
            self._by_name[name].append(number)
            self._by_stem[_SUFFIX.sub("", name)].append(number)

    def files(self, name: str) -> list[int]:
        """The files that a name can mean, as positions in the list of files: none, one, or several.

        Raises:
            InputError: the path leads out of the root.
        """
        given = normalised(name.strip())
        number = self._exact.get(given)
        if number is not None:
            return [number]
        path = _DRIVE.sub("", given.replace("\\", "/"))
        is_absolute = path.startswith("/")
        path = posixpath.normpath(path.lstrip("/")) if path.strip("/") else ""
        if path == ".." or path.startswith("../"):
            raise InputError(f"image {name!r} lies outside of ROOT; give paths of images below ROOT")
        if not path or path == ".":
            return []
        last = posixpath.basename(path)
        for candidates, of_stem in (
            (self._by_name.get(last), False),
            (self._by_stem.get(last), True),
            (self._by_stem.get(_SUFFIX.sub("", last)), True),
        ):
            fitting = self._fitting(path, candidates or [], is_absolute, of_stem)
            if fitting:
                if of_stem and _SUFFIX.search(last) and len(fitting) == 1:
                    self.other_suffix.setdefault(given, self._files[fitting[0]])
                return fitting
        return []

    def _fitting(self, path: str, candidates: list[int], is_absolute: bool, of_stem: bool) -> list[int]:
        """The candidates, which agree in the last part of the path, whose folders fit, too."""
        folders = path.split("/")[:-1]
        fitting, most = [], -1
        for number in candidates:
            others = normalised(self._files[number]).split("/")[:-1]
            common = 0
            while common < min(len(folders), len(others)) and folders[-1 - common] == others[-1 - common]:
                common += 1
            if common < min(len(folders), len(others)) and not is_absolute:
                continue
            if common > most:
                fitting, most = [], common
            if common == most:
                fitting.append(number)
        if len(fitting) > 1 and not of_stem and not folders:
            at_root = [number for number in fitting if "/" not in self._files[number]]
            fitting = at_root or fitting
        return fitting
