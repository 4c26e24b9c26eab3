"""The registry of source layouts. To add a layout, write one file beside this one and add one line to `_LAYOUTS`."""

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kmura.errors import InputError, check_choice
from kmura.records.layouts.base import Layout, Listing, Option
from kmura.records.layouts.csv import Csv
from kmura.records.layouts.dicom_folder import Dicom
from kmura.records.layouts.folders import Folders
from kmura.records.layouts.medmnist import MedMNIST
from kmura.records.layouts.mura import Mura
from kmura.records.layouts.unlabelled import Unlabelled
from kmura.records.manifest import Skipped

_LAYOUTS = (
    Mura(),
    Folders(),
    MedMNIST(),
    Csv(),
    Dicom(),
    Unlabelled(),
)
LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in _LAYOUTS}


def layout_named(name: str) -> Layout:
    """A layout of the registry.

    Raises:
        InputError: an unknown name; lists the registered layouts.
    """
    check_choice("layout", name, LAYOUTS)
    return LAYOUTS[name]


def listing_of(layout: Layout, root: Path, options: Mapping[str, Any]) -> Listing:
    """The images of a source, after checking that the root and the options fit the layout.

    Args:
        layout: how the source is stored.
        root: a folder, or a file for layouts with a suffix.
        options: option name -> value; None, False and empty values count as not given.

    Raises:
        InputError: the root or an option does not fit the layout, or as `Layout.listing`.
    """
    if not root.exists():
        raise InputError(f"{root} does not exist; give a folder of images, or the file that the --layout needs")
    if root.is_dir() == (layout.suffix is not None):
        kind = f"a file ({layout.suffix})" if layout.suffix else "a folder"
        raise InputError(
            f"{root} is not {kind}, which --layout {layout.name} needs; give one or choose another --layout"
        )
    return _with_utf8_names(layout.listing(root, **_values(layout, options)))


def layouts_of_options() -> dict[str, dict[str, Option]]:
    """Option name -> layout name -> the option as that layout declares it, in the order of the registry."""
    table: dict[str, dict[str, Option]] = {}
    for layout in LAYOUTS.values():
        for option in layout.options:
            table.setdefault(option.name, {})[layout.name] = option
    return table


def _with_utf8_names(listing: Listing) -> Listing:
    """The listing without the sources whose names are not UTF-8, which a record cannot hold; they count as skipped."""
    sources, skipped = [], list(listing.skipped)
    for source in listing.sources:
        try:
            "".join((source.path, source.area, source.patient, source.study)).encode()
            sources.append(source)
        except UnicodeEncodeError:
            skipped.append(Skipped(source.path.encode(errors="backslashreplace").decode(), "name is not UTF-8"))
    return dataclasses.replace(listing, sources=tuple(sources), skipped=tuple(skipped))


def _values(layout: Layout, options: Mapping[str, Any]) -> dict[str, Any]:
    """The value of every option of a layout.

    Raises:
        InputError: an option that no layout has, or that only other layouts take.
    """
    declared = {option.name: option for option in layout.options}
    takes = ", ".join(option.flag for option in layout.options) or "no options"
    known = layouts_of_options()
    for name, given in options.items():
        if name in declared:
            continue
        if name not in known:
            nearest = difflib.get_close_matches(name, [*declared, *known], 1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"layout {layout.name} takes {', '.join(declared)}"
            raise InputError(f"option {name} of build_records is unknown; {hint}")
        option = next(iter(known[name].values()))
        if option.value(given) != option.value(None):
            raise InputError(
                f"{option.flag} does not go with --layout {layout.name}, which takes {takes}; leave it out"
            )
    return {name: option.value(options.get(name)) for name, option in declared.items()}
