"""The layout of MedMNIST: one `.npz` file with `{train,val,test}_{images,labels}`, without patients."""

import functools
import hashlib
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from kmura.errors import InputError, unreadable
from kmura.records.image_files import Tally
from kmura.records.images import image_from_array
from kmura.records.layouts.base import CLASSES, NAME, POSITIVE_CLASS, Layout, Listing, Source, area_name
from kmura.records.schema import SPLITS
from kmura.tasks import Binary, Multiclass, Multilabel


class MedMNIST(Layout):
    """A MedMNIST file; patients are not known, so each image is its own study and patient."""

    name = "medmnist"
    help = "a .npz file with {train,val,test}_{images,labels}"
    options = (NAME, POSITIVE_CLASS, CLASSES)
    suffix = ".npz"

    def listing(self, root: Path, *, name: str | None, positive_class: str | None, classes: tuple[str, ...]) -> Listing:
        """The images of a MedMNIST file, in the splits that it has.

        Labels [N, 1] with two values are binary, with more values multiclass; labels [N, L], L > 1, of 0 and 1 are
        multilabel. MedMNIST files hold no class names.

        Args:
            root: the file.
            name: name of the area; None: that of the file.
            positive_class: the name of class 1 of a binary file, only checked.
            classes: class names in the order of their ids; () numbers them.

        Raises:
            InputError: not a MedMNIST file, arrays that do not fit together, or a number of names that does not fit.
        """
        notes: list[str] = []
        area = area_name(name, root.stem, notes)
        labels = {}
        sources = []
        for split in SPLITS:
            labels[split] = _checked_labels(root, split)
            size = _array(root, f"{split}_images")[0].nbytes
            for number, label in enumerate(labels[split].tolist()):
                path = f"{split}/{number:06d}"
                sources.append(Source(path, area, path, path, tuple(label), split, size))
        task, number = _task(root, labels)
        names = tuple(classes) or tuple(map(str, range(number)))
        if len(names) != number:
            raise InputError(f"{root} has {number} classes; --classes gives {len(names)} names")
        if positive_class and (task != Binary.name or positive_class != names[1]):
            raise InputError(
                f"--positive-class {positive_class} does not fit {root}: class 1 is {names[1]}; give --classes"
            )
        tally = Tally()
        for key in sorted(_keys(root)):
            if key not in {f"{split}_{part}" for split in SPLITS for part in ("images", "labels")}:
                tally.add("arrays of other names", key)
        passed_over = tally.passed_over()
        return Listing(names, task, tuple(sources), SPLITS, False, passed_over=passed_over, notes=tuple(notes))

    def read(self, root: Path, source: Source, channels: int) -> tuple[Image.Image, str]:
        """One image, mode L or RGB, and the SHA-256 of its pixels; `source.path` is for example `train/000012`.

        Raises:
            UnreadableImage: the array row is no image.
        """
        split, _, number = source.path.partition("/")
        pixels = _array(root, f"{split}_images")[int(number)]
        return image_from_array(pixels, channels), hashlib.sha256(pixels.tobytes()).hexdigest()


def _checked_labels(path: Path, split: str) -> np.ndarray:
    """The labels of a split, int64 [N, L]."""
    images, labels = _array(path, f"{split}_images"), _array(path, f"{split}_labels")
    if images.ndim not in (3, 4) or labels.ndim not in (1, 2) or len(images) != len(labels):
        raise InputError(
            f"{path} holds {split}_images {images.shape} and {split}_labels {labels.shape}; "
            "[N, H, W] or [N, H, W, 3] and [N] or [N, L] are needed"
        )
    if len(images) == 0:
        raise InputError(f"{path} has no {split} images; MedMNIST files hold all of train, val and test")
    if images.dtype != np.uint8 or labels.dtype.kind not in "iub":
        raise InputError(
            f"{path} holds {split}_images of type {images.dtype} and {split}_labels of type {labels.dtype}; "
            "8-bit images and whole-number labels are needed"
        )
    return labels.reshape(len(images), -1).astype(np.int64)


def _task(path: Path, labels: dict[str, np.ndarray]) -> tuple[str, int]:
    """The task of a file and its number of classes."""
    widths = {split: array.shape[1] for split, array in labels.items()}
    if len(set(widths.values())) > 1 or 0 in widths.values():
        raise InputError(f"{path} has {widths} labels per image; the same number, 1 or more, is needed in all three")
    values = np.concatenate(list(labels.values()))
    if values.min() < 0:
        raise InputError(f"{path} has the label {values.min()}; labels count from 0")
    if values.shape[1] == 1:
        number = max(2, int(values.max()) + 1)
        return (Binary.name if number == 2 else Multiclass.name), number
    if values.max() > 1:
        raise InputError(
            f"{path} has {values.shape[1]} labels per image with values up to {values.max()}; 0 and 1 are needed"
        )
    return Multilabel.name, values.shape[1]


def _keys(path: Path) -> list[str]:
    with np.load(path, allow_pickle=False) as file:
        return list(file.files)


@functools.lru_cache(maxsize=6)
def _array(path: Path, key: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as file:
            if key not in file.files:
                raise InputError(
                    f"{path} has no array {key}; a MedMNIST file holds {{train,val,test}}_{{images,labels}}"
                )
            return file[key]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        if isinstance(error, OSError) and error.errno:
            raise unreadable(path, error) from error
        raise InputError(f"{path} is not a readable .npz file; download it again from MedMNIST") from error
