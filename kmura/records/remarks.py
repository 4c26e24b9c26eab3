"""Remarks on decoded pictures: odd declarations in the file, and pictures that show next to nothing."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

_KEY = "kmura remarks"  # in Image.info, which decoders fill and `convert` keeps
_DARK, _BRIGHT = 16, 239  # gray levels
_SHARE = 0.995  # of the pixels
_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Remark:
    """What is odd about the picture in a file."""

    file: str
    text: str


def with_remarks(image: Image.Image, remarks: Sequence[str] = ()) -> Image.Image:
    """The image with the remarks of its decoder; other information from the file is dropped."""
    image.info = {_KEY: tuple(remarks)}
    return image


def remarks_on(image: Image.Image) -> tuple[str, ...]:
    """The remarks of the decoder, and whether a picture (mode L or RGB) is flat, two-level, nearly black or white."""
    look = _look(image)
    return (*image.info.get(_KEY, ()), *([look] if look else []))


def remarks_note(remarks: Iterable[Remark], pictures: int) -> str:
    """One line that counts and names the pictures with remarks; empty if there are none."""
    texts: dict[str, list[str]] = {}
    for remark in remarks:
        texts.setdefault(remark.file, []).append(remark.text)
    if not texts:
        return ""
    shown = "; ".join(f"{file} ({', '.join(parts)})" for file, parts in list(texts.items())[:_SHOWN])
    more = f"; and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return f"{len(texts)} of {pictures} pictures should be checked: {shown}{more}"


def _look(image: Image.Image) -> str:
    counts = np.array((image if image.mode == "L" else image.convert("L")).histogram())
    levels = np.count_nonzero(counts)
    if levels <= 2:
        return "flat: one gray level" if levels == 1 else "two gray levels"
    if counts[:_DARK].sum() >= _SHARE * counts.sum():
        return "nearly black"
    if counts[_BRIGHT + 1 :].sum() >= _SHARE * counts.sum():
        return "nearly white"
    return ""
