"""The order of the classes of a source, which determines their ids."""

import difflib
from collections.abc import Sequence

from kmura.errors import InputError
from kmura.records.image_files import normalised


def class_order(
    source: str, known: Sequence[str], positive: str | None, classes: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The classes in the order of their ids, and notes on what was decided.

    Of two classes, the positive one is never guessed; three or more are in the order of `known` unless `classes` says
    otherwise.

    Args:
        source: what has the classes, for messages.
        known: the classes of the source, in alphabetical order.
        positive: the class that counts as positive (class 1) of two.
        classes: all classes in the order of their ids, instead of `positive`; others are left out.

    Raises:
        InputError: an unknown class, contradicting options, one class, or two without `positive` or `classes`.
    """
    classes, positive = tuple(map(normalised, classes)), normalised(positive) if positive else positive
    for wanted in (*classes, *([positive] if positive else [])):
        if wanted not in known:
            near = difflib.get_close_matches(wanted, known, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise InputError(f"class {wanted} is not in {source}; there are: {', '.join(known)}{hint}")
    if classes:
        if len(classes) < 2 or len(set(classes)) < len(classes):
            raise InputError(f"--classes {','.join(classes)} must name two or more different classes")
        if positive and (len(classes) != 2 or positive != classes[1]):
            raise InputError(f"--positive-class {positive} contradicts --classes {','.join(classes)}; give one of them")
        return tuple(classes), ()
    if len(known) < 2:
        raise InputError(f"{source} has one class only ({', '.join(known)}); a classifier needs two or more")
    if positive and len(known) != 2:
        raise InputError(
            f"{source} has {len(known)} classes ({', '.join(known)}), not two; give --classes a,b,c instead"
        )
    if positive:
        return (next(other for other in known if other != positive), positive), ()
    if len(known) == 2:
        raise InputError(
            f"{source} has the classes {', '.join(known)}: the order of labels is never guessed; "
            "give --positive-class NAME (two classes) or --classes a,b,c"
        )
    return tuple(known), (f"{source}: {len(known)} classes in alphabetical order ({', '.join(known)})",)


def alphabetical(name: str) -> tuple:
    """A key that sorts `2` before `10`, and words regardless of case."""
    return (0, int(name), "") if name.isdecimal() else (1, 0, name.casefold(), name)
