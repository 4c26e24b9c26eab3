"""What the records hold before anything is trained: intensity, sizes, outliers, near doubles, principal components."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from sklearn.decomposition import PCA, IncrementalPCA

from kmura.config import DataConfig
from kmura.data.dataset import Dataset
from kmura.evaluation.exploration import AreaData, Eda, Intensity, NearDouble, Outlier, PrincipalParts
from kmura.files import write_json
from kmura.records.manifest import EDA
from kmura.tasks import ALL

SIDE = 64  # pixels of the thumbnails that everything but sizes is computed from
OUTLYING = 3.5  # modified z-score, Iglewicz & Hoaglin (1993)
ALIKE = 0.995  # correlation of the thumbnails of near doubles
_HASH_BITS = 6  # of 64 that may differ between candidates for near doubles
_MOST = 2000  # images that the principal parts are computed from
MOST_COMPONENTS = 200
SHARES = (0.9, 0.95, 0.99)


def explore(
    records: str | os.PathLike, *, area: str = "all", out: str | os.PathLike | None = None, seed: int = 0
) -> Eda:
    """A description of the images of some or all areas, all splits together; also written as JSON.

    Args:
        records: folder of shards and manifest.
        area: one area, or all.
        out: the JSON file; default `eda.json` among the records, where the report finds it.
        seed: of the sample that the principal parts are computed from.

    Raises:
        InputError: no such records or area, damage, `out` not writable.
    """
    dataset = Dataset(records, area, DataConfig(image_size=SIDE, resize="squash"))
    names = list(dataset.manifest.areas) if area == ALL else [area]
    found = Eda(str(records), dataset.manifest.inputs, {name: _area(dataset.of_area(name), seed) for name in names})
    write_json(out or Path(records) / EDA, dataclasses.asdict(found))
    return found


def _area(dataset: Dataset, seed: int) -> AreaData:
    parts = [(split, dataset.index(split)) for split in dataset.splits]
    splits = np.repeat([split for split, _ in parts], [len(index) for _, index in parts])
    images = np.concatenate([index.keys["image"].to_numpy() for _, index in parts])
    sides = np.concatenate([index.sides for _, index in parts])
    thumbnails = np.concatenate([_thumbnails(dataset, split) for split in dataset.splits])
    means = thumbnails.mean((1, 2))
    return AreaData(
        classes=dict(_by_class(parts, dataset, thumbnails)),
        height=_spread(sides[:, 0]),
        width=_spread(sides[:, 1]),
        outliers=outliers(images, splits, means),
        near_doubles=near_doubles(images, splits, thumbnails),
        principal=principal_parts(thumbnails, seed),
    )


def _thumbnails(dataset: Dataset, split: str) -> np.ndarray:
    """Gray thumbnails [n, SIDE, SIDE] float32 in 0..255."""
    return dataset.images(split, np.arange(len(dataset.index(split)))).mean(-1)


def _by_class(parts, dataset: Dataset, thumbnails) -> Iterator[tuple[str, Intensity]]:
    labels = np.concatenate([index.labels for _, index in parts])
    studies = np.concatenate([index.keys["study"].to_numpy() for _, index in parts])
    task = dataset.records_task
    for number, name in enumerate(task.classes):
        chosen = labels[:, number] == 1 if task.by_label else labels[:, 0] == number
        pixels = thumbnails[chosen]
        if len(pixels):
            means = pixels.mean((1, 2))
            yield (
                name,
                Intensity(
                    images=len(pixels),
                    studies=len(set(studies[chosen])),
                    mean=float(means.mean()),
                    deviation=float(pixels.std((1, 2)).mean()),
                    between=float(means.std()),
                    black=float((pixels <= 5).mean()),
                    white=float((pixels >= 250).mean()),
                ),
            )


def outliers(images, splits, means: np.ndarray) -> list[Outlier]:
    """The images whose mean [n] is far from the others', farthest first."""
    away = means - np.median(means)
    typical = np.median(np.abs(away))
    z = 0.6745 * away / typical if typical > 0 else np.zeros_like(means)
    order = np.argsort(-np.abs(z), kind="stable")
    return [
        Outlier(str(images[n]), str(splits[n]), float(means[n]), float(z[n])) for n in order if abs(z[n]) > OUTLYING
    ]


def near_doubles(images, splits, thumbnails: np.ndarray) -> list[NearDouble]:
    """Pairs of images that look alike, most alike first.

    Candidates differ in few bits of the difference hash (is a pixel of the 8 x 9 image darker than its right
    neighbour); of these, pairs whose thumbnails [n, SIDE, SIDE] correlate at ALIKE or more are kept.
    """
    n = len(thumbnails)
    rows = thumbnails.reshape(n, 8, SIDE // 8, SIDE).mean(2)
    columns = np.stack([block.mean(-1) for block in np.array_split(rows, 9, axis=-1)], axis=-1)  # [n, 8, 9]
    bits = (columns[..., :-1] < columns[..., 1:]).reshape(n, 64)
    hashes = np.packbits(bits, axis=1).view(np.uint64)[:, 0]
    flat = thumbnails.reshape(n, -1) - thumbnails.mean((1, 2))[:, None]
    norm = np.linalg.norm(flat, axis=1)
    found = []
    for one in range(n - 1):
        others = one + 1 + np.flatnonzero(np.bitwise_count(hashes[one] ^ hashes[one + 1 :]) <= _HASH_BITS)
        with np.errstate(invalid="ignore", divide="ignore"):
            alike = flat[others] @ flat[one] / (norm[others] * norm[one])
        found += [(one, int(other), float(r)) for other, r in zip(others, alike, strict=True) if r >= ALIKE]
    return [
        NearDouble(
            str(images[one]),
            str(images[other]),
            (str(splits[one]), str(splits[other])),
            correlation,
            bool(splits[one] != splits[other]),
        )
        for one, other, correlation in sorted(found, key=lambda pair: -pair[2])
    ]


def principal_parts(thumbnails: np.ndarray, seed: int = 0) -> PrincipalParts:
    """How many principal components the thumbnails [n, SIDE, SIDE] need, by PCA and by IncrementalPCA in batches."""
    chosen = np.random.default_rng(seed).permutation(len(thumbnails))[:_MOST]
    pixels = thumbnails[chosen].reshape(len(chosen), -1) / 255
    if len(pixels) < 2:
        return PrincipalParts(len(pixels), {}, {}, [])
    most = min(MOST_COMPONENTS, len(pixels))
    whole = PCA(n_components=most, svd_solver="full").fit(pixels)
    batch = IncrementalPCA(n_components=most, batch_size=max(most, 400)).fit(pixels)
    sums = [np.cumsum(each.explained_variance_ratio_) for each in (whole, batch)]
    needed = [
        {str(share): int(np.argmax(total >= share)) + 1 if total[-1] >= share else None for share in SHARES}
        for total in sums
    ]
    return PrincipalParts(len(pixels), *needed, [float(value) for value in sums[0][:50]])


def _spread(values: np.ndarray) -> tuple[int, int, int]:
    """Smallest, median and largest."""
    return int(values.min()), int(np.median(values)), int(values.max())
