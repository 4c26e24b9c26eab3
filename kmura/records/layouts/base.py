"""What a source layout is: its options, the listing of its images with their labels, and how one image is read."""

import abc
import dataclasses
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from kmura.errors import InputError, reason
from kmura.records.decode import decoded
from kmura.records.image_files import PassedOver, normalised
from kmura.records.images import UnreadableImage
from kmura.records.manifest import Skipped, VolumeFacts


@dataclasses.dataclass(frozen=True)
class Source:
    """One image of a source: its path and everything that the layout knows about it.

    Attributes:
        path: relative to the root, posix; `key/index` for arrays.
        area: anatomical area; one subfolder of the records per area.
        patient: unique within the source; the path where patients are not known.
        study: unique within the source; the path where studies are not known.
        label: one class id (binary, multiclass) or a 0/1 vector (multilabel); -1 is unknown.
        split: `train`, `val` or `test`.
        bytes: size of the file (of the array row), part of the fingerprint of a build; None if the file is missing.
        changed: time of the last change of the file, nanoseconds, part of the fingerprint; None for arrays and missing
            files.
        fold: number of the fold of a cross-validation, from 0; None if there are no folds.
        columns: (name, text) of the metadata that the records keep.
    """

    path: str
    area: str
    patient: str
    study: str
    label: tuple[int, ...]
    split: str
    bytes: int | None
    changed: int | None = None
    fold: int | None = None
    columns: tuple[tuple[str, str], ...] = ()

    def identity(self) -> tuple:
        """All values, for the fingerprint of a build; without fold and columns where there are none."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.fold is None and not self.columns:
            del values["fold"], values["columns"]
        return tuple(values.values())


@dataclasses.dataclass(frozen=True)
class Listing:
    """All images of a source.

    Attributes:
        classes: class names in the order of their ids.
        task: `binary`, `multiclass` or `multilabel`.
        sources: the images.
        splits_given: the splits that the source itself defines; `val` and `test` are carved where they are absent.
        has_patients: whether the source knows patients; otherwise every image is its own study and patient.
        skipped: files that are left out, with the reason.
        passed_over: what else lies in the source and is no image of the layout, counted by kind.
        irregular: what is wrong in the source and left out, counted by kind; a strict build fails.
        notes: what the layout decided or guessed, one sentence each; the build shows them.
        volumes: name -> geometry of each volume, where the images are slices of volumes; `split` is set by the build.
    """

    classes: tuple[str, ...]
    task: str
    sources: tuple[Source, ...]
    splits_given: tuple[str, ...]
    has_patients: bool
    skipped: tuple[Skipped, ...] = ()
    passed_over: tuple[PassedOver, ...] = ()
    irregular: tuple[PassedOver, ...] = ()
    notes: tuple[str, ...] = ()
    volumes: Mapping[str, VolumeFacts] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a layout, declared once for `build_records` and for the command line.

    Attributes:
        name: the keyword argument of `build_records`.
        help: one sentence for `kmura build-tfrecords --help`, without the name of the layout.
        type: `str`, `int`, `float`, `bool` (a flag that is False unless given) or `tuple` (names; separated by commas
            on the command line).
        default: the value where the option is not given; flags and names are False and () then.
        choices: the allowed values of a `str` option; () allows all.
        metavar: placeholder of the value in the help text.
    """

    name: str
    help: str
    type: type = str
    default: str | int | float | None = None
    choices: tuple[str, ...] = ()
    metavar: str | None = None

    @property
    def flag(self) -> str:
        """The option on the command line."""
        return f"--{self.name.replace('_', '-')}"

    def value(self, given: Any) -> Any:
        """The value that the layout receives; None, False, "" and empty sequences count as not given.

        Files may be given as one path instead of a list.

        Raises:
            InputError: a value of another type or outside the choices.
        """
        if given is None or given is False or (isinstance(given, str | tuple | list) and not given):
            return self.type() if self.type in (bool, tuple) else self.default
        if self.type is tuple:
            if (self.metavar or "").startswith("FILE"):
                given = [given] if isinstance(given, str | os.PathLike) else given
                given = [os.fspath(item) for item in given]
            if isinstance(given, str) or not all(isinstance(item, str) for item in given):
                raise InputError(f"{self.name} is {given!r}; give a list of names")
            return tuple(given)
        if self.type is str and isinstance(given, os.PathLike):
            given = os.fspath(given)
        if not isinstance(given, self.type) and not (self.type is float and isinstance(given, int)):
            raise InputError(f"{self.name} is {given!r}; give a value of type {self.type.__name__}")
        if self.choices and given not in self.choices:
            raise InputError(f"{self.flag} {given!r} is unknown; choose one of {', '.join(self.choices)}")
        return given


# options that several layouts take
AREAS = Option("areas", "build only these areas.", tuple)
NAME = Option("name", "name of the area; default: that of the folder or file.")
CLASSES = Option("classes", "class names in the order of their ids.", tuple, metavar="A,B,C")
POSITIVE_CLASS = Option("positive_class", "which of the two classes is positive (class 1).", metavar="NAME")
PATIENT_PATTERN = Option(
    "patient_pattern", "regular expression whose group is the patient in the path of an image.", metavar="REGEX"
)
STUDY_PATTERN = Option(
    "study_pattern", "regular expression whose group is the study in the path of an image.", metavar="REGEX"
)

# name of a folder or value of a column -> split
SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLIT_NAMES |= dict.fromkeys(("val", "valid", "validation", "tune"), "val")


def split_of(name: str) -> str | None:
    """The split that a folder or value is named after, regardless of case; None if it is no name of a split."""
    return SPLIT_NAMES.get(normalised(name.strip()).casefold())


class Layout(abc.ABC):
    """A way in which images and labels are stored. Subclasses have no state: writer processes receive a pickled copy.

    Attributes:
        name: the value of `layout` and `--layout`.
        help: what the layout looks like, one line.
        options: the options that the layout takes.
        suffix: suffix of the file that the root is (`.npz`); None if the root is a folder.
        has_slices: whether the images are slices of volumes. They stay in order, so that a writer process reads each
            volume once, and a slice that shows nothing, or equals another one, is no finding.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    options: ClassVar[tuple[Option, ...]] = ()
    suffix: ClassVar[str | None] = None
    has_slices: ClassVar[bool] = False

    @abc.abstractmethod
    def listing(self, root: Path, **options) -> Listing:
        """All images below `root` with their labels; no image is opened.

        Args:
            root: the folder, or the file with the suffix.
            **options: the value of every option in `options`, default values included.

        Raises:
            InputError: nothing usable in `root`, or contradicting options.
        """

    def check_out(self, root: Path, out: Path) -> None:  # noqa: B027 (most layouts accept every folder)
        """Checks that records may be written to `out`.

        Raises:
            InputError: records in `out` would become part of the source.
        """

    def check_options(self, out: Path, options: Mapping[str, Any]) -> None:  # noqa: B027 (most options fit every folder)
        """Checks that options fit the folder of the records.

        Args:
            out: the folder.
            options: the options as given, by name.

        Raises:
            InputError: files that an option names would become part of the records.
        """

    def read(self, root: Path, source: Source, channels: int) -> tuple[Image.Image, str]:
        """One image of 8 bits, mode L (1 channel) or RGB (3 channels), and the SHA-256 of its source, hexadecimal.

        Here: `source.path` is an image or DICOM file below `root`. Layouts of other images override this method.

        Raises:
            UnreadableImage: the image cannot become a record.
        """
        try:
            data = (root / source.path).read_bytes()
        except OSError as error:
            raise UnreadableImage(reason(error)) from error
        return decoded(data, channels, source.path), hashlib.sha256(data).hexdigest()

    def mask(self, root: Path, source: Source) -> Image.Image | None:
        """The class number of every pixel of `read`, mode L; None for layouts without masks."""
        return None


def area_name(given: str | None, default: str, notes: list[str] | None = None) -> str:
    """The name of the only area of a source, checked.

    Args:
        given: the name that the user chose; must be valid.
        default: name of the folder or file otherwise; what an area cannot contain, such as spaces, becomes `_`.
        notes: gets a sentence if the default was changed.

    Raises:
        InputError: a name that cannot be an area.
    """
    name = normalised(given or default)
    if not given:
        valid = re.sub(r"[^\w-]+", "_", name).strip("_")
        if valid and valid != name:
            if notes is not None:
                notes.append(f"the area of {name!r} is called {valid}; --name gives another name")
            name = valid
    if name.lower() == "all":
        raise InputError("the area name 'all' stands for every area elsewhere; give another --name")
    if not name.replace("_", "").replace("-", "").isalnum():
        raise InputError(f"area name {name!r} has characters other than letters, digits, - and _; give another --name")
    return name


def size_and_change(file: Path) -> tuple[int | None, int | None]:
    """Size in bytes and time of change in nanoseconds; None twice if the file cannot be read (the build says why)."""
    try:
        status = file.stat()
    except OSError:
        return None, None
    return status.st_size, status.st_mtime_ns
