"""The layout of folders of classes: `ROOT/[SPLIT/]CLASS/**/image`, without patients."""

from pathlib import Path

from kmura.errors import InputError
from kmura.records.images import SUFFIXES
from kmura.records.layouts.base import (
    CLASSES,
    NAME,
    POSITIVE_CLASS,
    Layout,
    Listing,
    Source,
    area_name,
    size_and_change,
    visible_files,
)
from kmura.tasks import Binary, Multiclass

# folder name -> split; a split that the source lacks is carved from the training patients
_SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_SPLIT_NAMES |= dict.fromkeys(("val", "valid", "validation", "tune"), "val")


class Folders(Layout):
    """Folders of classes; patients are not known, so each image is its own study and patient."""

    name = "folders"
    help = "ROOT/[train|val|test/]CLASS/**/image.png"
    options = (NAME, POSITIVE_CLASS, CLASSES)

    def listing(self, root: Path, *, name: str | None, positive_class: str | None, classes: tuple[str, ...]) -> Listing:
        """The images of a folder of classes.

        Args:
            root: the folder above the class folders, or above `train` and other splits.
            name: name of the area; None: that of the folder.
            positive_class: the class that counts as positive (class 1) of two; the other is class 0.
            classes: all classes in the order of their ids, instead of `positive_class`.

        Raises:
            InputError: no class folders, no class or unknown classes given, a class or split without images.
        """
        area = area_name(name, root.resolve().name)
        folders = _split_folders(root)
        known = sorted({entry.name for folder in folders.values() for entry in _subfolders(folder)})
        if not known:
            raise InputError(f"{root} has no class folders (ROOT/[train/]CLASS/image.png); give the folder above them")
        order = _class_order(root, known, positive_class, classes)
        sources = []
        for split, folder in folders.items():
            for label, class_name in enumerate(order):
                files = [file for file in visible_files(folder / class_name) if file.suffix.lower() in SUFFIXES]
                if not files:
                    raise InputError(f"class {class_name} has no images in {folder}; add them or leave out the class")
                for file in files:
                    path = file.relative_to(root).as_posix()
                    sources.append(Source(path, area, path, path, (label,), split, *size_and_change(file)))
        task = Binary.name if len(order) == 2 else Multiclass.name
        return Listing(order, task, tuple(sources), tuple(folders), has_patients=False)

    def check_out(self, root: Path, out: Path) -> None:
        """Checks that `out` does not lie in `root`, where its folders would count as classes.

        Raises:
            InputError: it does.
        """
        if out.resolve().is_relative_to(root.resolve()):
            raise InputError(f"{out} lies in {root}, whose folders are read as classes; choose an --out outside of it")


def _split_folders(root: Path) -> dict[str, Path]:
    named = {entry.name.lower(): entry for entry in _subfolders(root) if entry.name.lower() in _SPLIT_NAMES}
    if not named:
        return {"train": root}
    if not {"train", "training"} & named.keys():
        raise InputError(f"{root} has the splits {', '.join(sorted(named))} but no train folder; add one")
    splits: dict[str, Path] = {}
    for folder_name, folder in sorted(named.items()):
        split = _SPLIT_NAMES[folder_name]
        if split in splits:
            raise InputError(f"{splits[split]} and {folder} both mean the split {split}; remove or rename one")
        splits[split] = folder
    return splits


def _class_order(root: Path, known: list[str], positive: str | None, classes: tuple[str, ...]) -> tuple[str, ...]:
    for wanted in (*classes, *([positive] if positive else [])):
        if wanted not in known:
            raise InputError(f"class {wanted} is not in {root}; there are: {', '.join(known)}")
    if classes:
        if len(classes) < 2 or len(set(classes)) < len(classes):
            raise InputError(f"--classes {','.join(classes)} must name two or more different classes")
        if positive and (len(classes) != 2 or positive != classes[1]):
            raise InputError(f"--positive-class {positive} contradicts --classes {','.join(classes)}; give one of them")
        return tuple(classes)
    if not positive:
        raise InputError(
            f"{root} has the classes {', '.join(known)}: the order of labels is never guessed; "
            "give --positive-class NAME (two classes) or --classes a,b,c"
        )
    if len(known) != 2:
        raise InputError(f"{root} has {len(known)} classes ({', '.join(known)}), not two; give --classes a,b,c instead")
    return (next(other for other in known if other != positive), positive)


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
