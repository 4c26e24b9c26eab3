"""What the tags of a DICOM file say of its image: patient, study, view and so on; and which tags identify a patient."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from kmura.errors import reason
from kmura.records.images import UnreadableImage
from kmura.records.pydicom_messages import silenced

# tags that identify a patient or a visit
_IDS = ("PatientID", "AccessionNumber")
_LONGER = ("OtherPatientIDs", "PatientAddress", "PatientTelephoneNumbers", "StudyID", "AdmissionID", "InstitutionName")
_NAMES = (
    "PatientName",
    "OtherPatientNames",
    "PatientBirthName",
    "PatientMotherBirthName",
    "ReferringPhysicianName",
    "PerformingPhysicianName",
    "OperatorsName",
    "NameOfPhysiciansReadingStudy",
    "PhysiciansOfRecord",
    "RequestingPhysician",
)
_DATES = (
    "PatientBirthDate",
    "StudyDate",
    "SeriesDate",
    "AcquisitionDate",
    "ContentDate",
    "InstanceCreationDate",
    "AcquisitionDateTime",
)
_UIDS = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
_FACTS = (
    "SOPClassUID",
    "Modality",
    "ViewPosition",
    "ImageLaterality",
    "Laterality",
    "BodyPartExamined",
    "PatientSex",
    "PatientAge",
    "NumberOfFrames",
    "BurnedInAnnotation",
)
_TAGS = [*_IDS, *_LONGER, *_NAMES, *_DATES, *_UIDS, *_FACTS]
_CODE = re.compile(r"[A-Z0-9_ ]{1,16}")  # value representation CS (PS3.5, section 6.2)
_AGE = re.compile(r"(\d{1,3})([DWMY])")
_YEARS = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1}
OLDEST = 90  # years; higher ages are stored as this one, since they identify people
_SHORTEST = 3  # characters of an identifier that is looked for inside of words


@dataclasses.dataclass(frozen=True)
class Tags:
    """The tags of one file; an empty text is a tag that is absent or has no valid value.

    Attributes:
        sop, study, series: the UIDs of instance, study and series.
        accession, patient: AccessionNumber and PatientID.
        modality, view, body_part: Modality, ViewPosition, BodyPartExamined; codes in upper case.
        laterality: `L`, `R`, `B` or `U`, of the image, else of the series.
        sex: `F`, `M` or `O`.
        age: years, from PatientAge, else from birth date and study date; at most OLDEST.
        frames: NumberOfFrames; None if it is not a number.
        burned_in: whether BurnedInAnnotation is YES.
        identifiers: values that identify the patient or the visit: ids, names and their parts, dates, UIDs.
    """

    sop: str
    study: str
    series: str
    accession: str
    patient: str
    modality: str
    view: str
    laterality: str
    body_part: str
    sex: str
    age: str
    frames: int | None
    burned_in: bool
    identifiers: tuple[str, ...]


def read_tags(path: Path) -> Tags:
    """The tags of a DICOM file; pixels are not read.

    Raises:
        UnreadableImage: pydicom is missing, or the file cannot be read as DICOM.
    """
    try:
        import pydicom
    except ImportError as error:
        raise UnreadableImage("DICOM, which needs pydicom; run pip install '.[dicom]' in a clone of kmura") from error
    try:
        with silenced():
            dataset = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=_TAGS)
            if len(dataset) == 0:
                raise UnreadableImage("DICOM without the tags of an image, or damaged")
            return _tags(dataset)
    except UnreadableImage:
        raise
    except OSError as error:
        raise UnreadableImage(reason(error)) from error
    except Exception as error:  # pydicom raises many kinds of errors for damaged files
        raise UnreadableImage(f"DICOM whose tags cannot be read ({type(error).__name__})") from error


def without_identifiers(text: str, dataset) -> str:
    """The text, in which identifiers of a pydicom data set are replaced by `...`."""
    for identifier in sorted(_identifiers(dataset), key=len, reverse=True):
        if len(identifier) >= _SHORTEST:
            text = text.replace(identifier, "...")
    return text


def identifies(text: str, identifiers: tuple[str, ...]) -> bool:
    """Whether a text, such as a path, contains an identifier: in any case, with other separators and orders of a date.

    Identifiers of fewer than 3 characters only count as a whole part of the text.
    """
    plain, digits = _letters(text), re.sub(r"\D", "", text)
    parts = set(re.split(r"[^0-9a-z]+", text.casefold()))
    return any(_occurs(_letters(identifier), plain, digits, parts) for identifier in identifiers)


def words(text: str) -> set[str]:
    """The parts of a text of 3 or more letters and digits, in lower case."""
    return {part for part in re.split(r"[^\w.]+|_+", text.casefold()) if len(part) >= _SHORTEST}


def _occurs(identifier: str, plain: str, digits: str, parts: set[str]) -> bool:
    if not identifier:
        return False
    if len(identifier) < _SHORTEST:
        return identifier in parts
    if len(identifier) == 8 and identifier.isdigit():  # a date, which paths write in several orders
        year, month, day = identifier[:4], identifier[4:6], identifier[6:]
        return any(date in digits for date in (identifier, day + month + year, month + day + year))
    return identifier in plain


def _letters(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter.isalnum())


def _tags(dataset) -> Tags:
    return Tags(
        sop=_text(dataset, "SOPInstanceUID"),
        study=_text(dataset, "StudyInstanceUID"),
        series=_text(dataset, "SeriesInstanceUID"),
        accession=_text(dataset, "AccessionNumber"),
        patient=_text(dataset, "PatientID"),
        modality=_code(dataset, "Modality"),
        view=_code(dataset, "ViewPosition"),
        laterality=_one_of("LRBU", _code(dataset, "ImageLaterality")) or _one_of("LRBU", _code(dataset, "Laterality")),
        body_part=_code(dataset, "BodyPartExamined"),
        sex=_one_of("FMO", _code(dataset, "PatientSex")),
        age=_age(dataset),
        frames=_frames(dataset),
        burned_in=_code(dataset, "BurnedInAnnotation") == "YES",
        identifiers=tuple(sorted(_identifiers(dataset))),
    )


def _text(dataset, name: str) -> str:
    """The value of a tag as text, the first of several; empty if it is absent or damaged."""
    try:
        value = dataset.get(name)
        if value is None:
            return ""
        if not isinstance(value, str) and hasattr(value, "__iter__"):
            value = next(iter(value), "")
        return str(value).strip(" \0")
    except Exception:  # values of a wrong form raise many kinds of errors
        return ""


def _code(dataset, name: str) -> str:
    value = _text(dataset, name).upper()
    return value if _CODE.fullmatch(value) else ""


def _one_of(allowed: str, value: str) -> str:
    return value if len(value) == 1 and value in allowed else ""


def _frames(dataset) -> int | None:
    try:
        return int(_text(dataset, "NumberOfFrames") or 1)
    except ValueError:
        return None


def _age(dataset) -> str:
    match = _AGE.fullmatch(_text(dataset, "PatientAge").upper())
    if match:
        years = int(match[1]) * _YEARS[match[2]]
    else:
        born, visit = (_text(dataset, name)[:8] for name in ("PatientBirthDate", "StudyDate"))
        if not (len(born) == len(visit) == 8 and (born + visit).isdigit() and born <= visit):
            return ""
        years = int(visit[:4]) - int(born[:4]) - (visit[4:] < born[4:])
    return f"{min(OLDEST, years if years < 1 else int(years)):.3g}"


def _identifiers(dataset) -> set[str]:
    """Values that identify the patient or the visit; those of names also in parts."""
    identifiers = {value for name in (*_IDS, *_UIDS) for value in _values(dataset, name)}
    identifiers |= {value for name in _LONGER for value in _values(dataset, name) if len(value) > _SHORTEST}
    for name in _NAMES:
        for value in _values(dataset, name):
            identifiers |= {value, *(part for part in re.split(r"[\^=\s,]+", value) if len(part) >= _SHORTEST)}
    for name in _DATES:
        identifiers |= {value[:8] for value in _values(dataset, name) if len(value) >= 8}
    return {identifier for identifier in identifiers if identifier}


def _values(dataset, name: str) -> Iterator[str]:
    try:
        value = dataset.get(name)
        values = [value] if value is None or isinstance(value, str) or not _is_list(value) else list(value)
    except Exception:  # values of a wrong form raise many kinds of errors
        return
    for item in values:
        if text := str(item or "").strip(" \0"):
            yield text


def _is_list(value) -> bool:
    return isinstance(value, list | tuple) or type(value).__name__ == "MultiValue"
