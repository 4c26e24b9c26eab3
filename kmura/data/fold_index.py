"""Folds of a cross-validation as splits: which images of the records are train, val and test of a fold."""

import functools
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kmura.config import RecordsConfig
from kmura.data.index import Index, joined, read_index
from kmura.errors import InputError
from kmura.records.folds import dealt_folds
from kmura.records.manifest import Manifest, read_manifest
from kmura.records.schema import SPLITS
from kmura.tasks import ALL

_NEVER_TRAINED = "test"  # images of the records that are in no fold


class _Image(NamedTuple):
    area: str
    patient: str
    label: tuple[int, ...]


def fold_index(records: str | os.PathLike, manifest: Manifest, area: str, folds: int, fold: int, split: str) -> Index:
    """Returns the index of a split of a fold: fold `fold` is `test`, the next one is `val`, the others are `train`.

    The folds are over the images outside of the `test` split of the records, and consist of whole patients. They are
    those of the records; records without folds are divided as `kmura build-tfrecords --folds` does it, stratified by
    area and label, with the seed of the records. So they depend neither on the area nor on the seed of the training.

    Args:
        records: the records folder.
        manifest: of the records.
        area: an area, or `all`.
        folds: their number, 3 or more.
        fold: from 0.
        split: `train`, `val` or `test`.

    Raises:
        InputError: the records have another number of folds, or fewer patients; the fold has no images of the area; an
            index cannot be read.
    """
    if split not in SPLITS:
        raise InputError(f"a fold has no {split} split; there are: {', '.join(SPLITS)}")
    whole = _outside_test(Path(records), manifest, area)
    if manifest.folds:
        numbers = whole.folds
        check_number(records, manifest, folds)
        if (numbers < 0).any():
            image = whole.keys["image"][int(np.argmin(numbers))]
            raise InputError(f"{image} in {records} has no fold; build the records again with a fold for every image")
    else:
        fold_of = _dealt(Path(records).resolve(), manifest.inputs, folds)
        numbers = whole.keys["patient"].map(fold_of).to_numpy(np.int64)
    place = (numbers - fold) % folds
    wanted = {"test": place == 0, "val": place == 1, "train": place > 1}[split]
    if not wanted.any():
        where = {"test": f"fold {fold}", "val": f"fold {(fold + 1) % folds}", "train": "the other folds"}[split]
        raise InputError(f"area {area} of {records} has no images in {where} of {folds}; give fewer --folds")
    part = whole.part(np.flatnonzero(wanted), split)
    part.folds[:] = numbers[wanted]
    return part


def check_number(records: str | os.PathLike, manifest: Manifest, folds: int) -> None:
    """Checks that a number of folds is that of the records, if they have folds.

    Raises:
        InputError: it is another one.
    """
    if manifest.folds and manifest.folds != folds:
        raise InputError(
            f"data.folds is {folds}, but the images of {records} are in {manifest.folds} folds; give --folds "
            f"{manifest.folds}, or build records without folds"
        )


def _outside_test(records: Path, manifest: Manifest, area: str) -> Index:
    """The images of an area that folds are made of."""
    areas = manifest.areas.values() if area == ALL else [manifest.area(area, records)]
    present = {split for splits in areas for split in splits}
    return joined([read_index(records, area, split) for split in SPLITS if split in present - {_NEVER_TRAINED}])


@functools.lru_cache(maxsize=8)
def _dealt(records: Path, inputs: str, folds: int) -> dict[str, int]:
    """Patient -> fold; `inputs` is part of the cache key, so that other records are read again.

    Raises:
        InputError: there are fewer patients than folds.
    """
    manifest = read_manifest(records)
    index = _outside_test(records, manifest, ALL)
    labels = map(tuple, index.labels.tolist())
    images = map(_Image, index.keys["area"], index.keys["patient"], labels)
    try:
        return dealt_folds(images, folds, manifest.options.get("seed", RecordsConfig.seed))
    except InputError as error:
        raise InputError(f"{records}: {error}") from error
