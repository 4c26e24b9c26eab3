"""The splits of a table that another tool made: what they are for, and what leaks between them."""

from collections.abc import Sequence

import pandas as pd

from kmura.config.suggestions import did_you_mean, nearest
from kmura.errors import InputError
from kmura.evaluation.given_columns import Columns
from kmura.evaluation.table_file import TableFile

# names of splits in lower case, by what they are for
TRAINING = ("train", "training")
FITTING = ("val", "valid", "validation", "dev", "development", "tune", "calibration")


def find_leaks(table: pd.DataFrame, has_patients: bool, has_images: bool) -> list[str]:
    """Returns a sentence for each group of splits that share patients or images.

    Args:
        table: with the columns split, patient and image; all splits of a file.
        has_patients, has_images: whether the file identifies them.
    """
    leaks = []
    for name, is_known in (("patient", has_patients), ("image", has_images)):
        pairs = table.loc[table[name] != "", [name, "split"]].drop_duplicates() if is_known else table.iloc[:0]
        shared = pairs[pairs.duplicated(name, keep=False)]
        if shared.empty:
            continue
        splits = shared.groupby(name, sort=False)["split"].agg(lambda names: " and ".join(sorted(names)))
        for where, members in splits.groupby(splits):
            number = len(members)
            leaks.append(
                f"{number} {name}{' is' if number == 1 else 's are'} in the splits {where} (such as "
                f"{members.index[0]}): scores on a split that shares {name}s with one that was trained or fitted on "
                "are optimistic; move all rows of each to one split"
            )
    return leaks


def splits_of(
    file: TableFile, present: Sequence[str], columns: Columns, fit_on: str | None, held_out: Sequence[str]
) -> tuple[str, list[str], list[str]]:
    """Returns the split to fit on ("" for none), all splits that are scored, and remarks."""
    for name, option in [(fit_on, "--fit-on"), *((name, "--held-out") for name in held_out)]:
        if name is not None and name not in present:
            column = f"in column {columns.split[0]}" if columns.split else "since there is no split column"
            raise InputError(
                f"{file.path}: there is no split {name!r} ({option}) {column}{did_you_mean(nearest(name, present))} "
                f"(splits: {', '.join(map(str, present[:10]))})"
            )
    if fit_on is not None and fit_on in held_out:
        raise InputError(f"the split {fit_on} cannot be both fitted on (--fit-on) and held out (--held-out)")
    remarks = []
    if fit_on is None:
        fitting = [name for name in present if name.lower() in FITTING and name not in held_out]
        fit_on = fitting[0] if len(fitting) == 1 else ""
        if fit_on:
            remarks.append(f"calibration and thresholds are fitted on the split {fit_on} (guessed from its name)")
        elif len(present) == 1:
            remarks.append(
                "not calibrated, and no thresholds chosen: there is one split, and both need another one than is "
                "scored; name the column of splits with --split-column"
            )
        else:
            remarks.append(
                "not calibrated, and no thresholds chosen: name the split that they are fitted on with --fit-on "
                f"(splits: {', '.join(present[:10])})"
            )
    left_out = [name for name in present if name != fit_on and name not in held_out] if held_out else []
    if not held_out:
        left_out = [name for name in present if name.lower() in TRAINING and name != fit_on and len(present) > 1]
    if left_out:
        remarks.append(f"not scored: the {'split' if len(left_out) == 1 else 'splits'} {', '.join(left_out)}")
    return fit_on, [name for name in present if name not in left_out], remarks
