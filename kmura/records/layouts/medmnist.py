"""The layout of MedMNIST: one `.npz` with `{train,val,test}_{images,labels}`, without patients."""

import functools
import zipfile
from pathlib import Path

import numpy as np

from kmura.errors import InputError, reason
from kmura.records.layouts.base import Listing, Source

SPLITS = ("train", "val", "test")


def list_medmnist(
    path: Path, *, name: str, positive_class: str | None = None, classes: tuple[str, ...] = ()
) -> Listing:
    """The images of a MedMNIST file, in the splits that it has.

    Labels [N, 1] with two values are binary, with more multiclass; labels [N, L], L > 1, of 0 and 1 are multilabel.
    MedMNIST files carry no class names: `classes` gives them (default: the class ids as texts).

    Raises:
        InputError: not a MedMNIST file, arrays that do not fit together, or a number of names that does not fit.
    """
    labels = {}
    sources = []
    for key in SPLITS:
        images, labels[key] = _array(path, f"{key}_images"), _array(path, f"{key}_labels")
        if images.ndim not in (3, 4) or labels[key].ndim not in (1, 2) or len(images) != len(labels[key]):
            raise InputError(
                f"{path} holds {key}_images {images.shape} and {key}_labels {labels[key].shape}; "
                "[N, H, W] or [N, H, W, 3] and [N] or [N, L] are needed"
            )
        if len(images) == 0:
            raise InputError(f"{path} has no {key} images; MedMNIST files hold all of train, val and test")
        if images.dtype != np.uint8 or labels[key].dtype.kind not in "iub":
            raise InputError(
                f"{path} holds {key}_images of type {images.dtype} and {key}_labels of type {labels[key].dtype}; "
                "8-bit images and whole-number labels are needed"
            )
        labels[key] = labels[key].reshape(len(images), -1).astype(np.int64)
        size = images[0].nbytes
        for index, label in enumerate(labels[key].tolist()):
            where = f"{key}/{index:06d}"
            sources.append(Source(where, name, where, where, tuple(label), key, size))
    widths = {key: array.shape[1] for key, array in labels.items()}
    if len(set(widths.values())) > 1 or 0 in widths.values():
        raise InputError(f"{path} has {widths} labels an image; the same number, 1 or more, is needed in all three")
    every = np.concatenate(list(labels.values()))
    if every.min() < 0:
        raise InputError(f"{path} has the label {every.min()}; labels count from 0")
    if every.shape[1] > 1:
        if every.max() > 1:
            raise InputError(
                f"{path} has {every.shape[1]} labels an image with values up to {every.max()}; 0 and 1 are needed"
            )
        task, number = "multilabel", every.shape[1]
    else:
        number = max(2, int(every.max()) + 1)
        task = "binary" if number == 2 else "multiclass"
    names = tuple(classes) or tuple(map(str, range(number)))
    if len(names) != number:
        raise InputError(f"{path} has {number} classes; --classes gives {len(names)} names")
    if positive_class and (task != "binary" or positive_class != names[1]):
        raise InputError(
            f"--positive-class {positive_class} does not fit {path}: class 1 is {names[1]}; give --classes"
        )
    return Listing("medmnist", names, task, tuple(sources), SPLITS, has_patients=False)


def medmnist_pixels(path: Path, where: str) -> np.ndarray:
    """The pixels [H, W] or [H, W, 3] of the image that a `Source.path` such as `train/000012` names."""
    key, _, index = where.partition("/")
    return _array(path, f"{key}_images")[int(index)]


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
        text = f" ({reason(error)})" if isinstance(error, OSError) and error.errno else ""
        raise InputError(f"{path} is not a readable .npz file{text}; fetch it again from MedMNIST") from error
