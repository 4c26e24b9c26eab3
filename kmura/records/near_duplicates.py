"""Near-duplicate images: pairs whose difference hashes and thumbnails are alike."""

import io

import numpy as np
from PIL import Image

SIDE = 64  # side of the thumbnails, pixels
ALIKE = 0.995  # smallest correlation of the thumbnails of near-duplicates
HASH_BITS = 6  # largest number of bits, of 64, that differ between candidates


def thumbnail(encoded: bytes, channels: int) -> np.ndarray:
    """The gray thumbnail of an encoded image: float32 [SIDE, SIDE] in 0..255.

    Both sides are resized with the triangle filter of the input pipeline (Pillow's BILINEAR), from which the values
    differ by rounding only. Colours are averaged.

    Args:
        encoded: a PNG or JPEG.
        channels: 1 or 3.

    Raises:
        OSError, SyntaxError, ValueError: it cannot be decoded (Pillow reports damaged PNG files as SyntaxError).
    """
    with Image.open(io.BytesIO(encoded)) as image:
        gray = image.convert("L" if channels == 1 else "RGB")
    small = np.asarray(gray.resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float32)
    return small if small.ndim == 2 else small.mean(-1)


def alike_pairs(thumbnails: np.ndarray, groups: np.ndarray | None = None) -> list[tuple[int, int, float]]:
    """Pairs (first, second, correlation) of near-duplicates, most similar first.

    Candidates differ in at most HASH_BITS bits of the difference hash (a bit is set if a pixel of the 8 x 9 image is
    darker than its right neighbour). Of these, pairs are kept whose thumbnails have a Pearson correlation of ALIKE or
    more.

    Args:
        thumbnails: [n, SIDE, SIDE] in 0..255, any type.
        groups: numbers [n]; only pairs of different groups are looked for. None compares all.
    """
    n = len(thumbnails)
    hashes = _difference_hashes(thumbnails)
    pairs = []
    for first in range(n - 1):
        close = np.bitwise_count(hashes[first] ^ hashes[first + 1 :]) <= HASH_BITS
        if groups is not None:
            close &= groups[first + 1 :] != groups[first]
        others = first + 1 + np.flatnonzero(close)
        if len(others):
            correlations = _correlations(thumbnails[first], thumbnails[others])
            pairs += [(first, int(n), float(r)) for n, r in zip(others, correlations, strict=True) if r >= ALIKE]
    return sorted(pairs, key=lambda pair: -pair[2])


def _difference_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """The difference hashes of thumbnails, uint64 [n]; in blocks, since sums need four times the bytes."""
    hashes = np.empty(len(thumbnails), np.uint64)
    for start in range(0, len(thumbnails), 1024):
        block = thumbnails[start : start + 1024].astype(np.float32)
        rows = block.reshape(len(block), 8, SIDE // 8, SIDE).mean(2)
        columns = np.stack([part.mean(-1) for part in np.array_split(rows, 9, axis=-1)], axis=-1)  # [n, 8, 9]
        bits = (columns[..., :-1] < columns[..., 1:]).reshape(len(block), 64)
        hashes[start : start + 1024] = np.packbits(bits, axis=1).view(np.uint64)[:, 0]
    return hashes


def _correlations(image: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Pearson correlations of an image [SIDE, SIDE] with others [n, SIDE, SIDE]; NaN for images of one value."""
    one = image.astype(np.float32).ravel() - image.mean(dtype=np.float32)
    rest = others.reshape(len(others), -1).astype(np.float32)
    rest -= rest.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return rest @ one / (np.linalg.norm(rest, axis=1) * np.linalg.norm(one))
