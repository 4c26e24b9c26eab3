"""The layout of folders of classes: `ROOT/[SPLIT/]CLASS/**/image` or `ROOT/CLASS/SPLIT/**/image`, without patients."""

import collections
from collections.abc import Iterable
from pathlib import Path

from kmura.errors import InputError
from kmura.records.image_files import Tally, check_distinct, find_images, is_hidden, normalised
from kmura.records.layouts.base import (
    CLASSES,
    NAME,
    POSITIVE_CLASS,
    Layout,
    Listing,
    Source,
    area_name,
    size_and_change,
)
from kmura.records.schema import SPLITS
from kmura.tasks import Binary, Multiclass

# folder name -> split; a split that the source lacks is carved from the training patients
_SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_SPLIT_NAMES |= dict.fromkeys(("val", "valid", "validation", "tune"), "val")


class Folders(Layout):
    """Folders of classes; patients are not known, so each image is its own study and patient."""

    name = "folders"
    help = "ROOT/[train|val|test/]CLASS/**/image.png or ROOT/CLASS/train|val|test/**/image.png"
    options = (NAME, POSITIVE_CLASS, CLASSES)

    def listing(self, root: Path, *, name: str | None, positive_class: str | None, classes: tuple[str, ...]) -> Listing:
        """The images of a folder of classes.

        Names are compared in the Unicode form NFC; splits also regardless of case.

        Args:
            root: the folder above the class folders, or above `train` and other splits.
            name: name of the area; None: that of the folder.
            positive_class: the class that counts as positive (class 1) of two; the other is class 0.
            classes: all classes in the order of their ids, instead of `positive_class`.

        Raises:
            InputError: no class folders, no class or unknown classes given, a class or split without images, folders
                whose split or class is ambiguous.
        """
        area = area_name(name, root.resolve().name)
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
        order = _class_order(root, sorted(known), positive_class, classes)
        for other in sorted(known - set(order)):
            for file in (file for (_, class_name), group in images.items() if class_name == other for file in group):
                tally.add("images of classes that are left out", file.as_posix())
        sources = []
        given = [split for split in SPLITS if any(split == known_split for known_split, _ in images)]
        for split in given:
            for label, class_name in enumerate(order):
                if (split, class_name) not in images:
                    where = root / splits[split] if splits else f"the {split} split of {root}"
                    raise InputError(f"class {class_name} has no images in {where}; add them or leave out the class")
                for file in images[split, class_name]:
                    path = file.as_posix()
                    sources.append(Source(path, area, path, path, (label,), split, *size_and_change(root / file)))
        task = Binary.name if len(order) == 2 else Multiclass.name
        return Listing(order, task, tuple(sources), tuple(given), has_patients=False, passed_over=tally.passed_over())

    def check_out(self, root: Path, out: Path) -> None:
        """Checks that `out` does not lie in `root`, where its folders would count as classes.

        Raises:
            InputError: it does.
        """
        if out.resolve().is_relative_to(root.resolve()):
            raise InputError(f"{out} lies in {root}, whose folders are read as classes; choose an --out outside of it")


# (split, class) -> files below the root
_Images = dict[tuple[str, str], list[Path]]


def _split_of(folder: str) -> str | None:
    return _SPLIT_NAMES.get(normalised(folder).casefold())


def _split_folders(root: Path, files: list[Path]) -> dict[str, str]:
    """Split -> its folder, if the splits lie above the classes; else empty."""
    named = [name for name in _subfolders(root, files) if _split_of(name)]
    if not named:
        return {}
    if "train" not in map(_split_of, named):
        raise InputError(f"{root} has the splits {', '.join(named)} but no train folder; add one")
    splits: dict[str, str] = {}
    for name in named:
        other = splits.setdefault(_split_of(name), name)
        if other != name:
            raise InputError(
                f"{root / other} and {root / name} both mean the split {_split_of(name)}; remove or rename one"
            )
    return splits


def _below_splits(root: Path, files: list[Path], splits: dict[str, str], tally: Tally) -> tuple[_Images, set[str]]:
    """The images and classes of `ROOT/SPLIT/CLASS`; counts images that lie elsewhere."""
    split_of = {folder: split for split, folder in splits.items()}
    images: _Images = collections.defaultdict(list)
    for file in files:
        split = split_of.get(file.parts[0]) if len(file.parts) > 1 else None
        if split is None:
            tally.add("images beside the split folders", file.as_posix())
        elif len(file.parts) == 2:
            tally.add("images outside of class folders", file.as_posix())
        else:
            inner = _split_of(file.parts[2]) if len(file.parts) > 3 else None
            if inner not in (None, split):
                folder = root.joinpath(*file.parts[:3])
                raise InputError(f"{folder} is named after two splits, {split} and {inner}; move its images to one")
            images[split, normalised(file.parts[1])].append(file)
    known = {normalised(name) for folder in split_of for name in _subfolders(root / folder, _below(files, folder))}
    return images, known


def _below_classes(root: Path, files: list[Path], tally: Tally) -> tuple[_Images, set[str]]:
    """The images and classes of `ROOT/CLASS` or `ROOT/CLASS/SPLIT`; counts images that lie elsewhere."""
    images: _Images = collections.defaultdict(list)
    for file in files:
        if len(file.parts) == 1:
            tally.add("images outside of class folders", file.as_posix())
            continue
        split = _split_of(file.parts[1]) if len(file.parts) > 2 else None
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


def _class_order(root: Path, known: list[str], positive: str | None, classes: tuple[str, ...]) -> tuple[str, ...]:
    classes, positive = tuple(map(normalised, classes)), normalised(positive) if positive else positive
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


def _subfolders(folder: Path, files: Iterable[Path]) -> list[str]:
    """Names of the folders in a folder, without hidden ones and links that the search passed over."""
    with_images = {file.parts[0] for file in files if len(file.parts) > 1}
    return sorted(
        entry.name
        for entry in (folder.iterdir() if folder.is_dir() else ())
        if entry.name in with_images or (entry.is_dir() and not entry.is_symlink() and not is_hidden(entry.name))
    )
