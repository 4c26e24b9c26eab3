"""The classes that a network learns: the regions of the records, or the regions without their side."""

from collections.abc import Sequence

import numpy as np

from kmura.data.slices import SliceTargets
from kmura.errors import InputError

LEFT, RIGHT = "_left", "_right"


def pairs(names: Sequence[str]) -> list[tuple[int, int]]:
    """Returns the class numbers (left, right) of the regions that occur on both sides.

    Args:
        names: of the classes 1, 2, ...; `caudate_left` and `caudate_right` are a pair.
    """
    number = {name: place for place, name in enumerate(names, start=1)}
    return [
        (number[name], number[name.removesuffix(LEFT) + RIGHT])
        for name in names
        if name.endswith(LEFT) and name.removesuffix(LEFT) + RIGHT in number
    ]


def targets_of(names: Sequence[str], *, merged: bool) -> SliceTargets:
    """Returns the classes of the network.

    Args:
        names: of the classes 1, 2, ... of the records.
        merged: whether the two sides of a region are one class.

    Raises:
        InputError: the sides shall be merged, but no two classes are a pair.
    """
    both = pairs(names)
    numbers = np.arange(len(names) + 1, dtype=np.uint8)
    mirrored = numbers.copy()
    for left, right in both:
        mirrored[[left, right]] = right, left
    if not merged:
        return SliceTargets(numbers, mirrored, tuple(names))
    if not both:
        raise InputError(
            "data.sides is merged, but no two classes are the sides of one region (such as caudate_left and "
            "caudate_right); choose direct or coordinate"
        )
    left_of = {right: left for left, right in both}
    kept = [number for number in range(1, len(names) + 1) if number not in left_of]
    place = {number: new for new, number in enumerate(kept, start=1)}
    table = np.array([0] + [place[left_of.get(number, number)] for number in range(1, len(names) + 1)], np.uint8)
    plain = tuple(names[number - 1].removesuffix(LEFT) for number in kept)
    return SliceTargets(table, np.arange(len(kept) + 1, dtype=np.uint8), plain)


def with_sides(merged: np.ndarray, distance: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Returns the class numbers of the records for merged ones: the side of a voxel is that of the plane.

    Args:
        merged: class numbers of `targets_of(names, merged=True)`.
        distance: signed distance to the mid-sagittal plane, positive on the left; the same shape.
        names: of the classes of the records.
    """
    table = targets_of(names, merged=True).table
    right_of = dict(pairs(names))
    left, right = (np.zeros(table.max() + 1, np.uint8) for _ in range(2))
    for number, place in enumerate(table):
        if number not in right_of.values():
            left[place], right[place] = number, right_of.get(number, number)
    return np.where(distance >= 0, left[merged], right[merged])
