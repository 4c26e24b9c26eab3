"""The layout of folders of classes: `ROOT/[SPLIT/]CLASS/**/image` or `ROOT/CLASS/SPLIT/**/image`."""

import collections
from collections.abc import Iterable
from pathlib import Path

from kmura.errors import InputError
from kmura.records.class_order import alphabetical, class_order
from kmura.records.groups import copies_note, group_pattern, patients_and_studies
from kmura.records.image_files import Tally, check_distinct, find_images, is_hidden, normalised
from kmura.records.layouts.base import (
    CLASSES,
    NAME,
    PATIENT_PATTERN,
    POSITIVE_CLASS,
    STUDY_PATTERN,
    Layout,
    Listing,
    Source,
    area_name,
    size_and_change,
    split_of,
)
from kmura.records.schema import SPLITS
from kmura.tasks import Binary, Multiclass


class Folders(Layout):
    """Folders of classes; without a pattern for patients, each image is its own study and patient."""

    name = "folders"
    help = "ROOT/[train|val|test/]CLASS/**/image.png or ROOT/CLASS/train|val|test/**/image.png"
    options = (NAME, POSITIVE_CLASS, CLASSES, PATIENT_PATTERN, STUDY_PATTERN)

    def listing(
        self,
        root: Path,
        *,
        name: str | None,
        positive_class: str | None,
        classes: tuple[str, ...],
        patient_pattern: str | None,
        study_pattern: str | None,
    ) -> Listing:
        """The images of a folder of classes.

        Names are compared in the Unicode form NFC; splits also regardless of case.

        Args:
            root: the folder above the class folders, or above `train` and other splits.
            name: name of the area; None: that of the folder.
            positive_class: the class that counts as positive (class 1) of two; the other is class 0.
            classes: all classes in the order of their ids, instead of `positive_class`; three or more are in
                alphabetical order without it.
            patient_pattern, study_pattern: regular expressions whose group is the patient and the study in a path.

        Raises:
            InputError: no class folders, no positive class of two or unknown classes given, a class or split without
                images, folders whose split or class is ambiguous, a pattern without a group or without a match.
        """
        notes: list[str] = []
        area = area_name(name, root.resolve().name, notes)
        patterns = {
            "patient": group_pattern("patient", patient_pattern),
            "study": group_pattern("study", study_pattern),
        }
        tally = Tally()
        files = [file.relative_to(root) for file in find_images(root, tally)]
        splits = _split_folders(root, files)
        if splits:
            images, known = _below_splits(root, files, splits, tally)
        else:
            images, known = _below_classes(root, files, tally)
        if not known:
            raise InputError(f"{root} has no class folders (ROOT/[train/]CLASS/image.png); give the folder above them")
        check_distinct(known, f"class folders of {root}")
        _check_links(root, tally, depth=1 if splits else 0)
        order, more = class_order(str(root), sorted(known, key=alphabetical), positive_class, classes)
        notes += more
        for other in sorted(known - set(order)):
            for file in (file for (_, class_name), group in images.items() if class_name == other for file in group):
                tally.add("images of classes that are left out", file.as_posix())
        chosen: list[tuple[Path, int, str]] = []
        given = [split for split in SPLITS if any(split == known_split for known_split, _ in images)]
        for split in given:
            for label, class_name in enumerate(order):
                if (split, class_name) not in images:
                    where = root / splits[split] if splits else f"the {split} split of {root}"
                    raise InputError(f"class {class_name} has no images in {where}; add them or leave out the class")
                chosen += [(file, label, split) for file in images[split, class_name]]
        paths = [file.as_posix() for file, _, _ in chosen]
        notes += _split_notes(splits, images)
        if not patient_pattern and (copies := copies_note(paths)):
            notes.append(copies)
        patients, studies = patients_and_studies(paths, {}, patterns, tally)
        _check_studies(studies, [label for _, label, _ in chosen], order)
        sources = tuple(
            Source(file.as_posix(), area, patient, study, (label,), split, *size_and_change(root / file))
            for (file, label, split), patient, study in zip(chosen, patients, studies, strict=True)
        )
        return Listing(
            order,
            Binary.name if len(order) == 2 else Multiclass.name,
            sources,
            tuple(given),
            has_patients=bool(patient_pattern),
            passed_over=tally.passed_over(),
            notes=tuple(notes),
        )

    def check_out(self, root: Path, out: Path) -> None:
        """Checks that `out` does not lie in `root`, where its folders would count as classes.

        Raises:
            InputError: it does.
        """
        if out.resolve().is_relative_to(root.resolve()):
            raise InputError(f"{out} lies in {root}, whose folders are read as classes; choose an --out outside of it")


# (split, class) -> files below the root
_Images = dict[tuple[str, str], list[Path]]


def _split_folders(root: Path, files: list[Path]) -> dict[str, str]:
    """Split -> its folder, if the splits lie above the classes; else empty."""
    named = [name for name in _subfolders(root, files) if split_of(name)]
    if not named:
        return {}
    if "train" not in map(split_of, named):
        raise InputError(f"{root} has the splits {', '.join(named)} but no train folder; add one")
    splits: dict[str, str] = {}
    for name in named:
        other = splits.setdefault(split_of(name), name)
        if other != name:
            raise InputError(
                f"{root / other} and {root / name} both mean the split {split_of(name)}; remove or rename one"
            )
    return splits


def _below_splits(root: Path, files: list[Path], splits: dict[str, str], tally: Tally) -> tuple[_Images, set[str]]:
    """The images and classes of `ROOT/SPLIT/CLASS`; counts images that lie elsewhere."""
    folders = {folder: split for split, folder in splits.items()}
    images: _Images = collections.defaultdict(list)
    for file in files:
        split = folders.get(file.parts[0]) if len(file.parts) > 1 else None
        if split is None:
            tally.add("images beside the split folders", file.as_posix())
        elif len(file.parts) == 2:
            tally.add("images outside of class folders", file.as_posix())
        else:
            inner = split_of(file.parts[2]) if len(file.parts) > 3 else None
            if inner not in (None, split):
                folder = root.joinpath(*file.parts[:3])
                raise InputError(f"{folder} is named after two splits, {split} and {inner}; move its images to one")
            images[split, normalised(file.parts[1])].append(file)
    known = {normalised(name) for folder in folders for name in _subfolders(root / folder, _below(files, folder))}
    return images, known


def _below_classes(root: Path, files: list[Path], tally: Tally) -> tuple[_Images, set[str]]:
    """The images and classes of `ROOT/CLASS` or `ROOT/CLASS/SPLIT`; counts images that lie elsewhere."""
    images: _Images = collections.defaultdict(list)
    for file in files:
        if len(file.parts) == 1:
            tally.add("images outside of class folders", file.as_posix())
            continue
        split = split_of(file.parts[1]) if len(file.parts) > 2 else None
        images[split or "", normalised(file.parts[0])].append(file)
    if {split for split, _ in images} - {""}:
        for (split, class_name), group in images.items():
            if not split:
                raise InputError(
                    f"{root} has split folders inside its class folders, but {group[0].as_posix()} of class "
                    f"{class_name} lies outside of them; move it to a split, or move the splits above the classes"
                )
        if "train" not in {split for split, _ in images}:
            raise InputError(f"the class folders of {root} have splits but no train folder; add one")
    else:
        images = {("train", class_name): group for (_, class_name), group in images.items()}
    return images, {normalised(name) for name in _subfolders(root, files)}


def _check_studies(studies: list[str], labels: list[int], order: tuple[str, ...]) -> None:
    label_of: dict[str, int] = {}
    for study, label in zip(studies, labels, strict=True):
        if label_of.setdefault(study, label) != label:
            names = " and ".join(order[number] for number in sorted((label, label_of[study])))
            raise InputError(
                f"study {study} has images of the classes {names}, but a study has one label; correct --study-pattern"
            )


def _split_notes(splits: dict[str, str], images: _Images) -> list[str]:
    """Where the splits were found."""
    if splits:
        folders = ", ".join(
            f"{folder} is {split}" for folder, split in sorted((name, split) for split, name in splits.items())
        )
        return [f"split folders above the class folders (ROOT/SPLIT/CLASS): {folders}"]
    inner = {(file.parts[1], split) for (split, _), group in images.items() for file in group if len(file.parts) > 2}
    folders = sorted({(folder, split) for folder, split in inner if split_of(folder) == split})
    if not folders:
        return []
    shown = ", ".join(f"{folder} is {split}" for folder, split in folders)
    return [f"split folders inside the class folders (ROOT/CLASS/SPLIT): {shown}"]


def _check_links(root: Path, tally: Tally, depth: int) -> None:
    """Checks that no file is linked into two classes, whose names are parts number `depth` of the paths.

    Raises:
        InputError: a file is.
    """
    for link, file in tally.repeated:
        parts = [path.relative_to(root).parts for path in (link, file)]
        names = [normalised(part[depth]) for part in parts if len(part) > depth + 1]
        if len(set(names)) > 1:
            raise InputError(
                f"{link} is a link to {file}, so one image would have the classes {names[1]} and {names[0]}; "
                "remove one of them"
            )


def _below(files: Iterable[Path], folder: str) -> list[Path]:
    return [file.relative_to(folder) for file in files if file.parts[0] == folder]


def _subfolders(folder: Path, files: Iterable[Path]) -> list[str]:
    """Names of the folders in a folder, without hidden ones and links that the search passed over."""
    with_images = {file.parts[0] for file in files if len(file.parts) > 1}
    return sorted(
        entry.name
        for entry in (folder.iterdir() if folder.is_dir() else ())
        if entry.name in with_images or (entry.is_dir() and not entry.is_symlink() and not is_hidden(entry.name))
    )
