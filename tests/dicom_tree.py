"""A folder of DICOM files of made-up patients whose identifiers are known, and the texts that must not leave it."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from dicom_files import dicom, other_object


@dataclasses.dataclass
class DicomTree:
    """A folder and what is in it.

    Attributes:
        root: the folder; files lie in NAME/STUDY_UID/FILE.
        images: one dictionary per image: file, patient, study, sop, accession, label.
        identifiers: every id, name, date and UID in tags, file names and folder names.
    """

    root: Path
    images: list
    identifiers: set

    def csv(self, path: Path, key: str, values: dict, column="finding", separator=",") -> Path:
        """Writes a CSV of one key column and one label column."""
        lines = [f"{key}{separator}{column}", *(f"{name}{separator}{value}" for name, value in values.items())]
        path.write_text("\n".join(lines) + "\n")
        return path

    def labels(self, tag: str) -> dict:
        """The value of a tag (`study`, `patient`, `accession`, `sop`) of each image -> its label."""
        return {image[tag]: image["label"] for image in self.images}


def make_dicom_tree(root: Path, patients=12, studies=2, views=2, side=40, **tags) -> DicomTree:
    """Writes the files; the label of a patient alternates, every other patient is MONOCHROME1, some have a suffix."""
    uid = pytest.importorskip("pydicom").uid
    images, identifiers, seed = [], {"General Hospital of Smallville", "Referrer"}, 0
    for patient in range(patients):
        family, given, born = (
            f"Featherstone{patient:02}",
            f"Wilhelmina{patient:02}",
            f"19{40 + patient}0{1 + patient % 9}17",
        )
        number = f"MRN-77{patient:03}"
        identifiers |= {family, given, born, number}
        for study in range(studies):
            study_uid, accession, date = uid.generate_uid(), f"ACC55{patient:02}{study}", f"201{study}0{1 + study}23"
            identifiers |= {study_uid, accession, date}
            for view in range(views):
                seed += 1
                sop, series = uid.generate_uid(), uid.generate_uid()
                identifiers |= {sop, series}
                pixels = np.random.default_rng(seed).integers(0, 4096, (side, side - 8)).astype(np.uint16)
                values = {
                    "PatientName": f"{family}^{given}", "PatientID": number, "PatientBirthDate": born,
                    "PatientSex": "FM"[patient % 2], "StudyInstanceUID": study_uid, "SeriesInstanceUID": series,
                    "SOPInstanceUID": sop, "AccessionNumber": accession, "StudyDate": date, "Modality": "DX",
                    "BodyPartExamined": "HAND", "ViewPosition": ("PA", "LL")[view % 2], "ImageLaterality": "R",
                    "InstitutionName": "General Hospital of Smallville", "ReferringPhysicianName": "Referrer^R",
                }  # fmt: skip
                data = dicom(pixels, f"MONOCHROME{2 - patient % 2}", **values | tags)
                folder = root / f"{given}_{family}" / study_uid
                folder.mkdir(parents=True, exist_ok=True)
                file = folder / (f"{sop}.dcm" if view else sop)
                file.write_bytes(data)
                images.append({"file": file.relative_to(root).as_posix(), "patient": number, "study": study_uid,
                               "sop": sop, "accession": accession, "label": patient % 2})  # fmt: skip
    (root / "Featherstone00 referral.pdf").write_text("a letter")
    (root / "DICOMDIR").write_bytes(other_object("1.2.840.10008.1.3.10"))
    return DicomTree(root, images, identifiers)


def leaks(identifiers, *places) -> list[str]:
    """The identifiers that occur in texts, file names or files (in the bytes of all files below folders), if any."""
    contents = []
    for place in places:
        if isinstance(place, Path):
            files = [path for path in (place.rglob("*") if place.is_dir() else [place])]
            contents += [(str(path), str(path.relative_to(place)).encode()) for path in files]
            contents += [(str(path), path.read_bytes()) for path in files if path.is_file()]
        else:
            contents.append(("a text", place.encode()))
    forms = {form for text in identifiers for form in (text.encode(), text.encode("utf-16-le"), text.lower().encode())}
    return [f"{form!r} in {name}" for name, data in contents for form in forms if form in data or form in data.lower()]
