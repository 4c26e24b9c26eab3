"""The rows of label tables that belong to images, read in blocks and reduced to the different rows of each image."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kmura.errors import InputError
from kmura.records.image_files import Tally
from kmura.records.image_lookup import ImageLookup
from kmura.records.label_table import BLOCK, LabelTable
from kmura.records.row_filter import RowFilter

IMAGE, TABLE, ROW, TIMES = "\0image", "\0table", "\0row", "\0times"  # no column of a file has these names
MISSING, SEVERAL = "rows whose image is missing", "rows whose image name fits several files"
_DIFFERENT = 100  # different rows per image, on average, that a table may have


@dataclasses.dataclass(frozen=True)
class LabelRows:
    """The different rows of the images of a source.

    Attributes:
        frame: one row per image and different content: the columns that were read, IMAGE (position in the list of
            files), TABLE (position of the table), ROW (number of its first row) and TIMES (rows with this content).
        rows: number of rows in the tables.
        filtered: images whose rows the filter leaves out.
        unclear: images that a name may mean that fits several.
    """

    frame: pd.DataFrame
    rows: int
    filtered: frozenset[int]
    unclear: frozenset[int]


def read_rows(
    tables: Sequence[LabelTable],
    columns: Sequence[dict[str, str]],
    image: str,
    lookup: ImageLookup,
    where: RowFilter | None,
    tally: Tally,
) -> LabelRows:
    """The rows of the tables whose image exists and that the filter takes.

    Args:
        tables: of the labels.
        columns: for each table, name in the result -> name in the table.
        image: the column of the name of the image.
        lookup: finds the images.
        where: which rows are taken; None takes all.
        tally: counts rows whose image is missing or not unique.

    Raises:
        InputError: see `LabelTable.blocks`, `RowFilter.mask` and `ImageLookup.files`; a table has a hundred different
            rows per image, for which memory would not suffice.
    """
    parts: list[pd.DataFrame] = []
    filtered: set[int] = set()
    unclear: set[int] = set()
    images: set[int] = set()
    rows = waiting = 0
    for number, (table, names) in enumerate(zip(tables, columns, strict=True)):
        wanted = dict.fromkeys([image, *names.values(), *(where.columns if where else ())])
        for block in table.blocks(wanted):
            rows += len(block)
            taken = where.mask(block).to_numpy() if where else np.ones(len(block), bool)
            places = np.full(len(block), -1)
            for position, name in enumerate(block[image]):
                files = _files(lookup, name, table.path, block.index[position])
                if len(files) == 1 and taken[position]:
                    places[position] = files[0]
                elif len(files) == 1:
                    filtered.add(files[0])
                elif taken[position]:
                    tally.add(SEVERAL if files else MISSING, f"{table.path.name} row {block.index[position]}: {name}")
                    unclear.update(files)
            rows_of_images = block[places >= 0]
            part = pd.DataFrame({name: rows_of_images[column] for name, column in names.items()})
            part[IMAGE], part[TABLE], part[TIMES] = places[places >= 0], number, 1
            part[ROW] = part.index
            images.update(part[IMAGE].tolist())
            parts.append(part)
            waiting += len(part)
            if waiting > 4 * BLOCK:
                parts = [_different(parts)]
                waiting = len(parts[0]) // 2  # at least half of what is read until the next time is new
                if len(parts[0]) > _DIFFERENT * len(images) + 4 * BLOCK:
                    raise InputError(
                        f"{table.path} has more than {_DIFFERENT} different rows per image; give a table of one row "
                        "per image, or leave out --keep-columns"
                    )
    return LabelRows(_different(parts), rows, frozenset(filtered), frozenset(unclear))


def _files(lookup: ImageLookup, name: str, path: Path, row: int) -> list[int]:
    try:
        return lookup.files(name)
    except InputError as error:
        raise InputError(f"{path}, row {row}: {error}") from error


def _different(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The rows with different content, in the order of their first occurrence."""
    frame = pd.concat(parts, ignore_index=True)
    content = [column for column in frame if column not in (ROW, TIMES)]
    repeated = frame.duplicated(content, keep=False)
    if not repeated.any():
        return frame
    several = frame[repeated]
    numbers = several.groupby(content, sort=False).ngroup()
    times = several[TIMES].groupby(numbers.to_numpy()).sum()
    firsts = several.drop_duplicates(content)
    frame = pd.concat([frame[~repeated], firsts.assign(**{TIMES: times.to_numpy()})])
    return frame.sort_index(ignore_index=False).reset_index(drop=True)
