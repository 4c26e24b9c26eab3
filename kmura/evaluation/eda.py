"""Exploratory data analysis of records: intensity, sizes, outliers, near-duplicates, principal components.

Does not import TensorFlow: its import alone takes longer than reading the thumbnails of a thousand images with Pillow.
"""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from sklearn.decomposition import IncrementalPCA

from kmura.data.dataset import Dataset
from kmura.data.index import Index, how_to_fix, read_shard
from kmura.errors import InputError
from kmura.evaluation.exploration import BINS, AreaData, Eda, Intensity, NearDouble, Outlier, PrincipalParts
from kmura.files import write_json
from kmura.records.manifest import EDA
from kmura.records.near_duplicates import SIDE, alike_pairs, thumbnail
from kmura.tasks import ALL

OUTLYING = 3.5  # threshold of the modified z-score, Iglewicz & Hoaglin (1993)
_MOST = 2000  # largest number of images for the principal components
MOST_COMPONENTS = 200
SHARES = (0.9, 0.95, 0.99)


def explore(
    records: str | os.PathLike, *, area: str = "all", out: str | os.PathLike | None = None, seed: int = 0
) -> Eda:
    """Describes the images of one or all areas, over all splits; also writes the description as JSON.

    Args:
        records: folder of shards and manifest.
        area: one area, or all.
        out: the JSON file; None is `eda.json` in the folder of the records, where the report looks for it.
        seed: seed of the sample of images for the principal components.

    Raises:
        InputError: the records or the area do not exist, the records are damaged, or `out` cannot be written.
    """
    dataset = Dataset(records, area)
    names = list(dataset.manifest.areas) if area == ALL else [area]
    eda = Eda(str(records), dataset.manifest.inputs, {name: _area(dataset.of_area(name), seed) for name in names})
    write_json(out or Path(records) / EDA, dataclasses.asdict(eda))
    return eda


def _area(dataset: Dataset, seed: int) -> AreaData:
    parts = [(split, dataset.index(split)) for split in dataset.splits]
    splits = np.repeat([split for split, _ in parts], [len(index) for _, index in parts])
    images = np.concatenate([index.keys["image"].to_numpy() for _, index in parts])
    sides = np.concatenate([index.sides for _, index in parts])
    thumbnails = np.concatenate([thumbnails_of(index) for _, index in parts])
    means = thumbnails.mean((1, 2))
    return AreaData(
        classes=dict(_by_class(parts, dataset, thumbnails)),
        height=_spread(sides[:, 0]),
        width=_spread(sides[:, 1]),
        outliers=outliers(images, splits, means),
        near_doubles=near_doubles(images, splits, thumbnails),
        principal=principal_parts(thumbnails, seed),
        splits={split: _class_counts(index, dataset) for split, index in parts},
    )


def thumbnails_of(index: Index) -> np.ndarray:
    """Returns gray thumbnails of the images of a split in the order of the index: [n, SIDE, SIDE], float32 in 0..255.

    Both sides are resized to SIDE with the triangle filter of the input pipeline (Pillow's BILINEAR), from which the
    values differ by rounding only. Colours are averaged.

    Raises:
        InputError: a shard or an image in it is damaged, or the shards are not those that were indexed.
    """
    thumbnails = np.empty((len(index), SIDE, SIDE), np.float32)
    paths, row = index.keys["image"], 0
    for path in index.shards:
        for number, (_, record) in enumerate(read_shard(index.records, path)):
            if row >= len(index) or paths[row] != record.path:
                raise InputError(
                    f"shard {path}: record {number} ({record.path}) differs from the index of the shard; "
                    f"{how_to_fix(index.records)}"
                )
            try:
                thumbnails[row] = thumbnail(record.image, index.manifest.channels)
            except (OSError, SyntaxError, ValueError) as error:  # Pillow reports damaged PNG files as SyntaxError
                raise InputError(
                    f"shard {path}: the image of record {number} ({record.path}) cannot be decoded; "
                    f"{how_to_fix(index.records)}"
                ) from error
            row += 1
    return thumbnails


def _class_counts(index: Index, dataset: Dataset) -> dict[str, int]:
    """Returns the number of images of each class in a split; `unknown` only if there are such images."""
    task, labels = dataset.records_task, index.labels
    counts = {
        name: int((labels[:, number] == 1 if task.by_label else labels[:, 0] == number).sum())
        for number, name in enumerate(task.classes)
    }
    unknown = int((labels < 0).any(axis=1).sum())
    return counts | ({"unknown": unknown} if unknown else {})


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
                    histogram=[float(share) for share in np.histogram(pixels, BINS, (0, 256))[0] / pixels.size],
                ),
            )


def outliers(images, splits, means: np.ndarray) -> list[Outlier]:
    """Returns the images whose mean gray value (`means` [n], 0..255) is an outlier, farthest from the median first."""
    away = means - np.median(means)
    typical = np.median(np.abs(away))
    z = 0.6745 * away / typical if typical > 0 else np.zeros_like(means)
    order = np.argsort(-np.abs(z), kind="stable")
    return [
        Outlier(str(images[n]), str(splits[n]), float(means[n]), float(z[n])) for n in order if abs(z[n]) > OUTLYING
    ]


def near_doubles(images, splits, thumbnails: np.ndarray) -> list[NearDouble]:
    """Returns pairs of near-duplicate images, most similar first; see `alike_pairs`."""
    return [
        NearDouble(
            str(images[first]),
            str(images[second]),
            (str(splits[first]), str(splits[second])),
            correlation,
            bool(splits[first] != splits[second]),
        )
        for first, second, correlation in alike_pairs(thumbnails)
    ]


def principal_parts(thumbnails: np.ndarray, seed: int = 0) -> PrincipalParts:
    """Returns the numbers of principal components that thumbnails [n, SIDE, SIDE] need, by PCA and IncrementalPCA.

    The variances of the components are the eigenvalues of the Gram matrix [n, n] of the centred images, of which there
    are fewer than pixels. The incremental PCA gets the rows of its Cholesky factor, which are the images in another
    orthonormal basis: a rotation changes no variance, and the vectors become shorter.
    """
    chosen = np.random.default_rng(seed).permutation(len(thumbnails))[:_MOST]
    pixels = thumbnails[chosen].reshape(len(chosen), -1) / 255
    if len(pixels) < 2:
        return PrincipalParts(len(pixels), {}, {}, [])
    most = min(MOST_COMPONENTS, len(pixels))
    centred = (pixels - pixels.mean(0)).astype(np.float64)
    gram = centred @ centred.T
    variances = np.maximum(np.linalg.eigvalsh(gram), 0)
    singular = np.finfo(float).tiny + 1e-9 * np.trace(gram) / len(gram)  # centred images are linearly dependent
    rotated = np.linalg.cholesky(gram + singular * np.eye(len(gram))).astype(np.float32)
    batch = IncrementalPCA(n_components=most, batch_size=max(most, 400)).fit(rotated)
    with np.errstate(invalid="ignore"):  # equal images have no variance
        whole = variances[::-1][:most] / variances.sum()
    sums = [np.cumsum(shares) for shares in (whole, batch.explained_variance_ratio_)]
    needed = [
        {str(share): int(np.argmax(total >= share)) + 1 if total[-1] >= share else None for share in SHARES}
        for total in sums
    ]
    return PrincipalParts(len(pixels), *needed, [float(value) for value in sums[0][:50]])


def _spread(values: np.ndarray) -> tuple[int, int, int]:
    """Returns the smallest, the median and the largest value."""
    return int(values.min()), int(np.median(values)), int(values.max())
