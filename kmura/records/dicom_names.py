"""Names of DICOM images that do not identify patients: the same in records and in predictions."""

import dataclasses

from kmura.records.dicom_tags import Tags
from kmura.records.pseudonyms import Pseudonyms


@dataclasses.dataclass(frozen=True)
class Names:
    """The pseudonyms of an image.

    Attributes:
        patient: `patient_...`; that of the study where the patient is not known.
        study: `patient_.../study_...`.
        series: `series_...`; empty if it is not known.
        image: `patient_.../study_.../image_...`.
    """

    patient: str
    study: str
    series: str
    image: str


def names_of(tags: Tags, file: str, pseudonyms: Pseudonyms, patient_by: str = "PatientID") -> Names:
    """The pseudonyms of an image.

    Args:
        tags: of its file.
        file: path of the file, which stands for UIDs that are absent.
        pseudonyms: of a key.
        patient_by: `PatientID` or `StudyInstanceUID`, the tag that tells patients apart.
    """
    study = tags.study or tags.accession or tags.series or tags.sop or file
    identity = tags.patient if patient_by == "PatientID" else ""
    patient = pseudonyms.of("patient", *((identity,) if identity else ("of study", study)))
    study = f"{patient}/{pseudonyms.of('study', study)}"
    series = pseudonyms.of("series", tags.series) if tags.series else ""
    image = pseudonyms.of("image", tags.sop) if tags.sop else file_name(file, pseudonyms)
    return Names(patient, study, series, f"{study}/{image}")


def file_name(file: str, pseudonyms: Pseudonyms) -> str:
    """The pseudonym of a file whose tags are not known."""
    return pseudonyms.of("file", file)
