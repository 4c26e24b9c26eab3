"""Patients and studies from the paths of images: the patterns of `--patient-pattern` and `--study-pattern`."""

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from kmura.errors import InputError
from kmura.records.image_files import Tally

UNMATCHED = "images whose path does not match"  # the pattern
# the name that annotation tools give to copies of one image: NAME_png.rf.HASH.jpg
_COPY = re.compile(r"^(?P<original>.+)\.rf\.[0-9a-zA-Z]{16,}\.\w+$")


@dataclasses.dataclass(frozen=True)
class GroupPattern:
    """A regular expression whose only group, or whose group of the name given, is the id in a path.

    Attributes:
        flag: the option, for messages.
        expression: compiled.
        group: number or name of the group.
    """

    flag: str
    expression: re.Pattern
    group: int | str

    def ids(self, paths: Sequence[str], tally: Tally) -> list[str | None]:
        """The id in each path, None where the path does not match.

        Args:
            paths: posix, relative to the root.
            tally: counts the paths without an id.

        Raises:
            InputError: no path has an id.
        """
        matches = [self.expression.search(path) for path in paths]
        ids = [(match[self.group] or None) if match else None for match in matches]
        if paths and not any(ids):
            raise InputError(
                f"{self.flag} {self.expression.pattern!r} matches no path, such as {paths[0]}; correct the pattern"
            )
        for path, identity in zip(paths, ids, strict=True):
            if identity is None:
                tally.add(f"{UNMATCHED} {self.flag}", path)
        return ids


def group_pattern(name: str, text: str | None) -> GroupPattern | None:
    """The pattern of an option; None if it is not given.

    Args:
        name: `patient` or `study`.
        text: a regular expression with one group, or with a group `(?P<patient>...)`.

    Raises:
        InputError: the text is no regular expression, or has no group, or several and none of the name.
    """
    if not text:
        return None
    flag = f"--{name}-pattern"
    try:
        expression = re.compile(text)
    except re.error as error:
        raise InputError(f"{flag} {text!r} is no regular expression ({error}); correct it") from error
    if name in expression.groupindex:
        return GroupPattern(flag, expression, name)
    if expression.groups != 1:
        raise InputError(
            f"{flag} {text!r} has {expression.groups} groups; put the part of the path that is the {name} into "
            f"parentheses, for example '^([0-9]+)_', or name its group (?P<{name}>...)"
        )
    return GroupPattern(flag, expression, 1)


def copies_note(paths: Iterable[str]) -> str:
    """A note on files that annotation tools wrote as copies of one image; "" if there are none.

    Without a pattern, copies of one image count as different patients and can get into two splits.
    """
    originals: dict[str, list[str]] = collections.defaultdict(list)
    for path in paths:
        if match := _COPY.match(path.rpartition("/")[2]):
            originals[match["original"]].append(path)
    several = {original: group for original, group in originals.items() if len(group) > 1}
    if not several:
        return ""
    number, first = sum(map(len, several.values())), next(iter(several.values()))
    return (
        f"{number} files look like copies of {len(several)} images by an annotation tool (such as {first[0]} and "
        f"{first[1]}); --patient-pattern '([^/]+)\\.rf\\.' keeps copies of an image in one split"
    )


def patients_and_studies(
    paths: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    patterns: Mapping[str, GroupPattern | None],
    tally: Tally,
) -> tuple[list[str], list[str]]:
    """The patient and study of each image; an image without one is its own.

    Args:
        paths: of the images, posix, relative to the root.
        columns: `patient`, `study` -> cells of a table; may lack both.
        patterns: likewise, instead of the cells.
        tally: counts images without a patient or study.

    Raises:
        InputError: a pattern matches no path.
    """
    ids: dict[str, list[str]] = {}
    for name, pattern in patterns.items():
        values: list[str | None] = pattern.ids(paths, tally) if pattern else [None] * len(paths)
        if name in columns and not pattern:
            values = [text.strip() or None for text in columns[name]]
            for path in [path for path, value in zip(paths, values, strict=True) if value is None]:
                tally.add(f"images without a {name}, each of which counts as its own", path)
        ids[name] = values
    knows_patients = any(ids["patient"])
    patients, studies = [], []
    for path, patient, study in zip(paths, ids["patient"], ids["study"], strict=True):
        patients.append(patient or study or path)
        studies.append(f"{patient or path}/{study}" if study and knows_patients else study or path)
    return patients, studies
