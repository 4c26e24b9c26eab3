"""The layout of DICOM folders: `ROOT/**/file`; patients, studies and views from the tags, labels from a CSV.

Nothing that identifies a patient leaves this module: paths, patients and studies are pseudonyms, also in messages.
"""

import collections
import dataclasses
import hashlib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from kmura.errors import InputError, reason
from kmura.records import dicom
from kmura.records.decode import decoded
from kmura.records.dicom_names import Names, file_name, names_of
from kmura.records.dicom_tags import Tags, read_tags, words
from kmura.records.image_files import PassedOver, Tally, find_images
from kmura.records.images import UnreadableImage
from kmura.records.keyed_labels import KeyedLabels, LabelColumns, read_keyed_labels
from kmura.records.layouts.base import AREAS, NAME, Layout, Listing, Option, Source, area_name, size_and_change
from kmura.records.layouts.dicom_join import FILE, JOINS, distinct_keys, join_of, keys_of
from kmura.records.layouts.unlabelled import CLASSES as NO_CLASSES
from kmura.records.manifest import Skipped
from kmura.records.pseudonyms import Pseudonyms, check_outside, read_pseudonyms, write_links
from kmura.tasks import Binary

log = logging.getLogger(__name__)
PATIENT_TAGS = ("PatientID", "StudyInstanceUID")
_FRAMES = ("refuse", "first", "middle", "last")


@dataclasses.dataclass(frozen=True)
class DicomSource(Source):
    """One DICOM image, whose `path` is a pseudonym.

    Attributes:
        file: its path relative to the root; it may identify the patient.
        frame: which frame is the image, from 0.
    """

    file: str = ""
    frame: int = 0

    def identity(self) -> tuple:
        """Without the file: records do not change if it moves, and their fingerprint is no hash of its name."""
        return Source.identity(dataclasses.replace(self, file=""))


@dataclasses.dataclass(frozen=True)
class _Pictured:
    """A file with an image, and what its tags say."""

    file: str
    names: Names
    area: str
    frame: int
    tags: Tags

    @property
    def path(self) -> str:
        """The pseudonym of the image."""
        several = self.tags.frames and self.tags.frames > 1
        return f"{self.names.image}_frame{self.frame + 1}" if several else self.names.image


class Dicom(Layout):
    """DICOM files below a folder, recognised by their content."""

    name = "dicom"
    help = "ROOT/**/file of DICOM, with or without suffix or DICOMDIR; labels from --csv"
    options = (
        dataclasses.replace(NAME, help="name of the area; default: one area per BodyPartExamined."),
        AREAS,
        Option("csv", "CSV of labels; without it, labels are unknown.", tuple, metavar="FILE"),
        Option(
            "join_by",
            "what the rows of the CSV identify; default: the tag that one of its columns is named after.",
            choices=JOINS,
        ),
        Option("join_column", "column of the CSV with these values; default: of the same name.", metavar="NAME"),
        Option("label_column", "column of a label: 0, 1 and -1 or blank (unknown), or class names.", metavar="NAME"),
        Option("label_columns", "columns of labels 0, 1 and -1 or blank (unknown), one per class.", tuple),
        Option("positive_class", "which of two class names in the column is positive.", metavar="NAME"),
        Option("classes", "class names in the column in the order of their ids.", tuple, metavar="A,B,C"),
        Option("modalities", "build only these modalities, such as CR,DX.", tuple),
        Option(
            "frame", "image of a file of several frames: refuse, first, middle, last, or its number.", str, "refuse"
        ),
        Option("burned_in", "also build images whose tags say that names may be burned into the pixels.", bool),
        Option("patient_by", "tag that tells patients apart.", str, "PatientID", PATIENT_TAGS),
        Option("key_file", "key of the pseudonyms; default: that of the user, made if missing.", metavar="FILE"),
        Option("link_file", "write a CSV of pseudonyms and files; keep it like the key.", metavar="FILE"),
    )

    def listing(self, root: Path, **options) -> Listing:
        """The images of a folder of DICOM files; the tags of every file are read, its pixels are not.

        Args:
            root: the folder.
            **options: see `options` and docs/dicom.md.

        Raises:
            InputError: no DICOM images, no area, contradicting options, one patient for all studies, or as
                `read_keyed_labels`, `read_pseudonyms` and `write_links`.
        """
        _check_options(options)
        pseudonyms = read_pseudonyms(options["key_file"])
        tally = Tally()
        pictured, skipped, links = _read(root, _files(root, tally), tally, pseudonyms, options)
        if not pictured:
            raise InputError(_nothing(root, skipped, tally))
        pictured = _of_areas(pictured, options["areas"])
        _check_patients(pictured, options["patient_by"])
        passed_over = _without_names(tally.passed_over())
        classes, task, labels = NO_CLASSES, Binary.name, {item.path: (-1,) for item in pictured}
        if options["csv"]:
            table, labels, unlabelled = _labelled(pictured, options)
            classes, task, skipped = table.classes, table.task, skipped + unlabelled
            passed_over += _strays(table)
        sources = [_source(root, item, labels[item.path]) for item in pictured if item.path in labels]
        has_patients = options["patient_by"] != "PatientID" or all(item.tags.patient for item in pictured)
        if options["link_file"]:
            write_links(options["link_file"], links)
        splits = () if options["csv"] else ("test",)  # without labels, there is nothing to score
        return Listing(classes, task, tuple(sources), splits, has_patients, tuple(skipped), passed_over)

    def check_out(self, root: Path, out: Path) -> None:
        """Checks that `out` does not lie in `root`.

        Raises:
            InputError: it does.
        """
        if out.resolve().is_relative_to(root.resolve()):
            raise InputError(f"{out} lies in the folder of the DICOM files; choose an --out outside of it")

    def check_options(self, out: Path, options: Mapping[str, Any]) -> None:
        """Checks that the key and the links do not lie in `out`.

        Raises:
            InputError: one does.
        """
        for name in ("key_file", "link_file"):
            check_outside(options.get(name), out, f"--{name.replace('_', '-')}")

    def read(self, root: Path, source: DicomSource, channels: int) -> tuple[Image.Image, str]:
        """The image, and the SHA-256 of its file; see `Layout.read`."""
        try:
            data = (root / source.file).read_bytes()
        except OSError as error:
            raise UnreadableImage(reason(error)) from None  # the error itself has the path
        return decoded(data, channels, "image.dcm", source.frame), hashlib.sha256(data).hexdigest()


def _check_options(options: Mapping[str, Any]) -> None:
    frame = options["frame"]
    if frame not in _FRAMES and not (frame.isdecimal() and int(frame) > 0):
        raise InputError(f"--frame {frame!r} is unknown; give one of {', '.join(_FRAMES)}, or a number from 1")
    if len(options["csv"]) > 1:
        raise InputError(f"--csv names {len(options['csv'])} files; the layout dicom takes one")
    if not options["csv"]:
        for name in ("join_by", "join_column", "label_column", "label_columns", "positive_class", "classes"):
            if options[name]:
                raise InputError(f"--{name.replace('_', '-')} needs the CSV of the labels; give it with --csv FILE")


def _files(root: Path, tally: Tally) -> list[Path]:
    """The images and damaged files below the root; its sub-folders may be names of patients, which no error shows."""
    try:
        return find_images(root, tally)
    except InputError as error:
        cause = reason(error.__cause__) if isinstance(error.__cause__, OSError) else "unknown"
    raise InputError(
        f"a folder below {root} cannot be listed: {cause}; fix its permissions or exclude it (find {root} -type d "
        "! -readable shows it)"
    )


def _read(
    root: Path, files: Iterable[Path], tally: Tally, pseudonyms: Pseudonyms, options: Mapping[str, Any]
) -> tuple[list[_Pictured], list[Skipped], dict[str, str]]:
    """The images, the files that are left out, and pseudonym -> file of both."""
    pictured, skipped, links = [], [], {}
    for path in files:
        file = path.relative_to(root).as_posix()
        name = file_name(file, pseudonyms)
        try:
            if not _is_dicom(path):
                tally.add("images that are not DICOM", file)
                continue
            item = _pictured(path, file, pseudonyms, options)
            if item is None:
                tally.add("images of other modalities", file)
                continue
            if item.path in links:
                raise UnreadableImage(f"has the same SOPInstanceUID as {item.path}; only that one is built")
            name = item.path
            pictured.append(item)
        except UnreadableImage as error:
            skipped.append(Skipped(name, str(error)))
        links[name] = file
    return pictured, skipped, links


def _is_dicom(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            start = file.read(dicom.PREAMBLE)
    except OSError as error:
        raise UnreadableImage(reason(error)) from None
    return dicom.may_be_dicom(start) or path.suffix.lower() in dicom.SUFFIXES


def _pictured(path: Path, file: str, pseudonyms: Pseudonyms, options: Mapping[str, Any]) -> _Pictured | None:
    """The image of a file; None if the options leave its modality out.

    Raises:
        UnreadableImage: why there is none.
    """
    tags = read_tags(path)
    if options["modalities"] and tags.modality not in [name.upper() for name in options["modalities"]]:
        return None
    if tags.burned_in and not options["burned_in"]:
        raise UnreadableImage("BurnedInAnnotation is YES: names may be in the pixels; --burned-in builds it anyway")
    frame = _frame(tags.frames, options["frame"])
    area = options["name"] or re.sub(r"[^A-Z0-9]+", "_", tags.body_part).strip("_")
    if not area:
        raise UnreadableImage("no BodyPartExamined, which names the area; give --name")
    return _Pictured(file, names_of(tags, file, pseudonyms, options["patient_by"]), area_name(area, area), frame, tags)


def _frame(frames: int | None, choice: str) -> int:
    """The position of the chosen frame, from 0."""
    if frames is None:
        raise UnreadableImage("DICOM whose number of frames is not a number")
    if frames == 1:
        return 0
    if choice == "refuse":
        raise UnreadableImage(f"DICOM of {frames} frames; choose one with --frame first, middle, last or its number")
    place = {"first": 0, "middle": frames // 2, "last": frames - 1}.get(choice)
    place = int(choice) - 1 if place is None else place
    if place >= frames:
        raise UnreadableImage(f"DICOM of {frames} frames, which has no frame {place + 1}")
    return place


def _of_areas(pictured: list[_Pictured], areas: tuple[str, ...]) -> list[_Pictured]:
    """The images of the given areas; of all areas if none is given."""
    known = sorted({item.area for item in pictured})
    for area in areas:
        if area not in known:
            raise InputError(f"area {area} is not in the DICOM files; there are: {', '.join(known)}")
    return [item for item in pictured if item.area in areas] if areas else pictured


def _check_patients(pictured: Sequence[_Pictured], patient_by: str) -> None:
    """Checks that PatientID tells patients apart; warns of values that more than one patient seems to have.

    Raises:
        InputError: all studies have the same patient.
    """
    studies = {item.names.study for item in pictured}
    if len({item.names.patient for item in pictured}) == 1 and len(studies) > 1:
        raise InputError(
            f"all {len(studies)} studies have the same PatientID, as anonymised files may have; give --patient-by "
            "StudyInstanceUID if each study is of another patient"
        )
    if patient_by == "PatientID" and (missing := sum(not item.tags.patient for item in pictured)):
        log.warning("%d of %d files have no PatientID; their studies count as patients", missing, len(pictured))
    sexes = collections.defaultdict(set)
    for item in pictured:
        sexes[item.names.patient].update({item.tags.sex} - {""})
    if several := sum(len(values) > 1 for values in sexes.values()):
        log.warning("%d patients have files of different sexes: is their PatientID a placeholder?", several)


def _labelled(
    pictured: Sequence[_Pictured], options: Mapping[str, Any]
) -> tuple[KeyedLabels, dict[str, tuple[int, ...]], list[Skipped]]:
    """The table of the CSV, the labels of the images by their paths, and the images without a label."""
    csv = Path(*options["csv"])
    join, column = join_of(csv, options["join_by"], options["join_column"])
    keys = {item.path: keys_of(join, item.file, item.tags) for item in pictured}
    if join == FILE:
        keys = distinct_keys(keys)
    columns = LabelColumns(
        options["label_column"], options["label_columns"], options["positive_class"], options["classes"]
    )
    identifiers = {word for item in pictured for text in item.tags.identifiers for word in words(text)}
    wanted = {key for candidates in keys.values() for key in candidates}
    table = read_keyed_labels(csv, column, columns, wanted, identifiers, paths=join == FILE)
    if not table.labels and not table.contradictions:
        raise InputError(
            f"no row of {csv} belongs to one of the {len(pictured)} images (column {column} is compared with {join}); "
            "check --join-by and --join-column, and whether a spreadsheet changed the numbers"
        )
    labels, skipped = {}, []
    for path, candidates in keys.items():
        key = next((key for key in candidates if key in table.labels or key in table.contradictions), None)
        if key in table.labels:
            labels[path] = table.labels[key]
        elif key is None:
            skipped.append(Skipped(path, f"no row in {csv.name}"))
        else:
            first, other = table.contradictions[key]
            skipped.append(Skipped(path, f"rows {first} and {other} of {csv.name} contradict each other"))
    return table, labels, skipped


def _strays(table: KeyedLabels) -> tuple[PassedOver, ...]:
    if not table.stray_count:
        return ()
    return (PassedOver("rows of the CSV without an image", table.stray_count, tuple(f"row {n}" for n in table.strays)),)


def _source(root: Path, item: _Pictured, label: tuple[int, ...]) -> DicomSource:
    tags, (size, changed) = item.tags, size_and_change(root / item.file)
    columns = {
        "series": item.names.series,
        "modality": tags.modality,
        "body_part": tags.body_part,
        "view": tags.view,
        "laterality": tags.laterality,
        "sex": tags.sex,
        "age": tags.age,
    }
    return DicomSource(
        path=item.path,
        area=item.area,
        patient=item.names.patient,
        study=item.names.study,
        label=label,
        split="train",
        bytes=size,
        changed=changed,
        columns=tuple(columns.items()),
        file=item.file,
        frame=item.frame,
    )


def _without_names(passed_over: Iterable[PassedOver]) -> tuple[PassedOver, ...]:
    """The counts without examples and suffixes, which may be names of patients."""
    numbers = collections.Counter()
    for item in passed_over:
        numbers["other files" if item.kind.startswith(".") else item.kind] += item.number
    return tuple(PassedOver(kind, number) for kind, number in sorted(numbers.items()))


def _nothing(root: Path, skipped: Sequence[Skipped], tally: Tally) -> str:
    """The message of a folder without DICOM images."""
    reasons = collections.Counter(item.reason for item in skipped)
    if reasons:
        text, number = reasons.most_common(1)[0]
        return f"{root} has no DICOM images that can be built: {number} of {len(skipped)} files: {text}"
    others = sum(item.number for item in tally.passed_over())
    return f"{root} contains no DICOM images ({others} other files); give the folder above them, or check --modalities"
