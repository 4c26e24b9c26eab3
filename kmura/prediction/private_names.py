"""Names of DICOM images in the output of predictions that do not identify patients."""

import collections
import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from kmura.prediction.sources import Image
from kmura.records import dicom
from kmura.records.dicom_names import file_name, names_of
from kmura.records.dicom_tags import Tags, identifies, read_tags
from kmura.records.image_files import Tally
from kmura.records.images import UnreadableImage
from kmura.records.pseudonyms import read_pseudonyms, write_links

log = logging.getLogger(__name__)


def with_private_names(
    images: Sequence[Image],
    tally: Tally,
    key_file: str | os.PathLike | None = None,
    link_file: str | os.PathLike | None = None,
) -> list[Image]:
    """The images; DICOM files whose paths or studies identify a patient have pseudonyms instead, as in records.

    A path identifies a patient if it contains an id, a name, a date or a UID of the tags of its file (of any file, if
    its own tags have none), or if the tags cannot be read. Paths of images other than DICOM stay.

    Args:
        images: in the order of the call.
        tally: of the files that were passed over; its examples lose the names that identify a patient.
        key_file: key of the pseudonyms; with it, all DICOM files have pseudonyms. None: the key of the user, which is
            read, or made, only if it is needed.
        link_file: is written with the pseudonyms and the paths that they stand for; None writes nothing.

    Raises:
        InputError: as `read_pseudonyms` and `write_links`.
    """
    tags = {place: _tags(image.path) for place, image in enumerate(images) if _is_dicom(image.path)}
    known = tuple(sorted({text for found in tags.values() if found for text in found.identifiers}))
    unsafe = [
        place
        for place, found in tags.items()
        if key_file or found is None or _shows(images[place], found.identifiers or known)
    ]
    tally.drop_examples(lambda name: bool(key_file) or identifies(name, known))
    links: dict[str, str] = {}
    private = list(images)
    if unsafe:
        pseudonyms = read_pseudonyms(key_file)
        studies = {images[place].study for place in unsafe} - {""}
        uses = collections.Counter()
        for place in unsafe:
            image, found = images[place], tags[place]
            file = image.place.as_posix()
            name = names_of(found, file, pseudonyms).image if found else file_name(file, pseudonyms)
            uses[name] += 1
            name = name if uses[name] == 1 else f"{name}_{uses[name]}"  # the same image in two files
            links[name] = image.name
            private[place] = dataclasses.replace(image, name=name, place=Path(name))
        for place, image in enumerate(private):
            if image.study in studies:
                private[place] = dataclasses.replace(image, study=pseudonyms.of("study", image.study))
        hint = f"{link_file} lists" if link_file else "--link-file FILE lists"
        log.info("%d DICOM files are named by pseudonyms; %s which is which", len(unsafe), hint)
    if link_file:
        write_links(link_file, links)
    return private


def _is_dicom(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return dicom.may_be_dicom(file.read(dicom.PREAMBLE))
    except OSError:
        return False  # reading the image reports the reason


def _tags(path: Path) -> Tags | None:
    try:
        return read_tags(path)
    except UnreadableImage:
        return None


def _shows(image: Image, identifiers: tuple[str, ...]) -> bool:
    return any(identifies(text, identifiers) for text in (image.name, image.place.as_posix(), image.study))
