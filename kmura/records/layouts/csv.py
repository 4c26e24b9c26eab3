"""The layout of a folder of images and CSV files of their labels, patients, studies and splits."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from kmura.errors import InputError
from kmura.records import kept_columns
from kmura.records.agreement import settled_studies
from kmura.records.cell_labels import CellLabels, LabelRules
from kmura.records.column_splits import folds_of, splits_of
from kmura.records.groups import copies_note, group_pattern, patients_and_studies
from kmura.records.image_files import Tally, find_images, normalised
from kmura.records.image_lookup import ImageLookup
from kmura.records.image_rows import labels_of_rows, one_row_per_image
from kmura.records.label_rows import IMAGE, ROW, LabelRows, read_rows
from kmura.records.label_table import LabelTable, open_table
from kmura.records.layouts.base import (
    CLASSES,
    NAME,
    PATIENT_PATTERN,
    POSITIVE_CLASS,
    STUDY_PATTERN,
    Layout,
    Listing,
    Option,
    Source,
    area_name,
    size_and_change,
)
from kmura.records.presets import preset_names, preset_summary, with_preset
from kmura.records.row_filter import RowFilter
from kmura.tasks import Binary, Multiclass, Multilabel

_EXAMPLES = 100  # of each kind of irregularity that the manifest lists


class Csv(Layout):
    """Images with labels in CSV files; patients are known if a column or pattern says so."""

    name = "csv"
    help = "ROOT/**/image.png and CSV files that name the images with --image-column"
    options = (
        Option("csv", "the files of labels, one row per image; relative paths are looked for in ROOT, too.", tuple,
               metavar="FILE,..."),
        Option("preset", "the options below for a public data set; options that are given go first.",
               choices=preset_names()),
        Option("image_column", "column of the image: a file name or path, with or without suffix.", metavar="COLUMN"),
        Option("label_column", "column of the label: 0 and 1, or a class.", metavar="COLUMN"),
        Option("label_columns", "columns of 0 and 1, one label each.", tuple, metavar="COLUMN,..."),
        Option("label_separator", "characters between several labels in the label column, such as '|'.",
               metavar="CHARACTERS"),
        Option("no_finding", "cells that mean none of the labels; default: No Finding.", tuple, metavar="VALUE,..."),
        Option("merge_labels", "labels (or columns) that count as another one.", tuple, metavar="OLD=NEW,..."),
        Option("drop_labels", "labels that do not become classes; of single labels, images that are left out.", tuple,
               metavar="LABEL,..."),
        Option("unknown_labels", "cells that mean that the label is unknown.", tuple, metavar="VALUE,..."),
        Option("uncertain", "what -1 in a column of 0 and 1 means; default: unknown.",
               choices=("unknown", "positive", "negative")),
        Option("blank", "what an empty label means; default: unknown.", choices=("unknown", "negative")),
        Option("repeated_rows", "label of an image with several rows: they must agree (default), any positive row, or "
               "most of them.", choices=("agree", "any", "majority")),
        Option("patient_column", "column of the patient.", metavar="COLUMN"),
        Option("study_column", "column of the study.", metavar="COLUMN"),
        PATIENT_PATTERN,
        STUDY_PATTERN,
        Option("mixed_studies", "studies whose images have different labels: refuse (default), give all the positive "
               "label, or make each image a study.", choices=("refuse", "any-positive", "separate")),
        Option("split_column", "column of the split.", metavar="COLUMN"),
        Option("split_values", "which split a value of the split column is.", tuple, metavar="VALUE=SPLIT,..."),
        Option("folds_column", "column of the fold of a cross-validation.", metavar="COLUMN"),
        Option("keep_columns", "metadata that records and predictions keep, such as sex and age.", tuple,
               metavar="COLUMN,..."),
        Option("where", "take only rows that fulfil a condition on columns, in pandas' query language.",
               metavar="CONDITION"),
        NAME,
        POSITIVE_CLASS,
        CLASSES,
    )  # fmt: skip

    def listing(self, root: Path, **options) -> Listing:
        """The images below a folder that have a row in the CSV files.

        The files are read in blocks, so memory depends on the number of images and not on the number of rows. Rows
        without an image, images without a row, and repeated and contradictory rows are counted and left out.

        Args:
            root: the folder of the images.
            **options: see `options`.

        Raises:
            InputError: contradicting options; a missing file or column; a cell that is no label; a path that leads out
                of the root; no image with a row.
        """
        given = options
        options = with_preset(options)
        notes = _preset_notes(given, options)
        area = area_name(options["name"], root.resolve().name, notes)
        _check_options(options)
        where = RowFilter(options["where"]) if options["where"] else None
        rules = _rules(options)
        patterns = {name: group_pattern(name, options[f"{name}_pattern"]) for name in ("patient", "study")}
        tables = [open_table(path, _named(options)) for path in _files(root, options["csv"])]
        notes += [note for table in tables for note in table.notes]
        columns = [_columns(table, options, rules) for table in tables]
        for table in tables:
            table.place(options["image_column"], "--image-column")
            if where:
                where.check_columns(table.columns, str(table.path))

        tally, irregular = Tally(), Tally(_EXAMPLES)
        paths = [file.relative_to(root).as_posix() for file in find_images(root, tally)]
        if not paths:
            raise InputError(f"{root} contains no images; give the folder of the images")
        lookup = ImageLookup(paths)
        rows = read_rows(tables, columns, options["image_column"], lookup, where, irregular)
        notes += _reading_notes(root, paths, lookup, rows, where, tables, options["image_column"])
        labels = labels_of_rows(rows, tables, options["label_column"], options["label_columns"], rules)
        rule = options["repeated_rows"] or "agree"
        images, labels = one_row_per_image(rows.frame, labels, tables, rule, tally, irregular)
        notes += [*labels.notes, *_unknown_note(labels)]
        _count_without_rows(paths, rows, irregular, tally)
        images["path"] = [paths[number] for number in images[IMAGE]]
        _check_identifiers(tables, images, root, options)
        mapped = _pairs("--split-values", options["split_values"])
        images["split"], given_splits, more = splits_of(images, tables, options["split_column"], mapped)
        notes += more
        cells = {name: images[name] for name in ("patient", "study") if name in images}
        patients, studies = patients_and_studies(images["path"].tolist(), cells, patterns, tally)
        rule = options["mixed_studies"] or "refuse"
        labels, studies, more = settled_studies(labels, studies, images["path"].tolist(), rule)
        notes += more
        if not (options["patient_column"] or options["patient_pattern"]):
            notes += [note for note in [copies_note(images["path"])] if note]
        folds, more = folds_of(images, options["folds_column"])
        notes += more
        sources = tuple(
            Source(
                path, area, patient, study, tuple(label), split, *size_and_change(root / path), fold,
                tuple(zip(options["keep_columns"], kept, strict=True)),
            )
            for path, patient, study, label, split, fold, *kept in zip(
                images["path"], patients, studies, labels.values.tolist(), images["split"], folds,
                *(images[f"keep {name}"].str.strip() for name in options["keep_columns"]), strict=True,
            )
        )  # fmt: skip
        return Listing(
            labels.classes, _task(labels), sources, given_splits,
            has_patients=bool(options["patient_column"] or options["patient_pattern"]),
            passed_over=tally.passed_over(), irregular=irregular.passed_over(), notes=tuple(notes),
        )  # fmt: skip

    def check_out(self, root: Path, out: Path) -> None:
        """Checks that `out` does not lie in `root`.

        Raises:
            InputError: it does.
        """
        if out.resolve().is_relative_to(root.resolve()):
            raise InputError(f"{out} lies in {root}, which is searched for images; choose an --out outside of it")


def _check_options(options: Mapping[str, Any]) -> None:
    if not options["csv"]:
        raise InputError("--layout csv needs --csv FILE, or --preset NAME")
    if not options["image_column"]:
        raise InputError("--layout csv needs --image-column COLUMN, the column that names the images")
    if bool(options["label_column"]) == bool(options["label_columns"]):
        raise InputError("--layout csv needs either --label-column COLUMN or --label-columns A,B,C")
    if options["label_columns"] and options["label_separator"]:
        raise InputError("--label-separator goes with --label-column, not with --label-columns; leave one of them out")
    for group in ("patient", "study"):
        if options[f"{group}_column"] and options[f"{group}_pattern"]:
            raise InputError(f"--{group}-column contradicts --{group}-pattern; give one of them")
    kept_columns.check_kept(options["keep_columns"])


def _preset_notes(given: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    if not given["preset"]:
        return []
    values = [
        f"--{name.replace('_', '-')} {','.join(value) if isinstance(value, tuple) else value}"
        for name, value in options.items()
        if value not in (None, "", ()) and value != given[name] and name != "label_columns"
    ]
    title = preset_summary(given["preset"]).partition(":")[0]
    return [f"preset {given['preset']} ({title}): {' '.join(values)}"]


def _rules(options: Mapping[str, Any]) -> LabelRules:
    return LabelRules(
        uncertain=options["uncertain"] or "unknown",
        blank=options["blank"] or "unknown",
        no_finding=options["no_finding"],
        merged=_pairs("--merge-labels", options["merge_labels"]),
        dropped=tuple(map(normalised, options["drop_labels"])),
        unknown=options["unknown_labels"],
        separators=options["label_separator"] or "",
        positive_class=options["positive_class"],
        classes=tuple(map(normalised, options["classes"])),
    )


def _pairs(flag: str, texts: Sequence[str]) -> dict[str, str]:
    """OLD=NEW as a dictionary."""
    pairs = {}
    for text in texts:
        old, equals, new = map(str.strip, text.rpartition("="))
        if not (old and new):
            raise InputError(f"{flag} {text!r} has to have the form OLD=NEW")
        pairs[normalised(old)] = normalised(new)
    return pairs


def _files(root: Path, names: Sequence[str]) -> list[Path]:
    """The CSV files, which may lie in the root; names with `*` stand for the files in the root that they match."""
    files = []
    for name in names:
        path = Path(name)
        inside = [] if path.is_absolute() or path.is_file() else sorted(root.glob(name))
        if len(inside) > 1:
            raise InputError(f"{root} has {len(inside)} files {name}; give one of them with --csv")
        files += [path] if path.is_file() else inside or [root / name if "*" in name else path]
    for file in files:
        if not file.is_file():
            there = sorted(entry.name for entry in root.glob("*.csv"))
            near = difflib.get_close_matches(file.name, there, 1) or there
            hint = f"did you mean {near[0]}?" if near else "give the file of labels with --csv"
            raise InputError(f"{file} does not exist, and neither does {root / file.name}; {hint}")
    return files


_SINGLE_COLUMNS = ("label_column", "patient_column", "study_column", "split_column", "folds_column")


def _named(options: Mapping[str, Any]) -> list[str]:
    """The columns that the options name."""
    names = [options[name] for name in ("image_column", *_SINGLE_COLUMNS) if options[name]]
    return [*names, *options["label_columns"], *options["keep_columns"]]


def _columns(table: LabelTable, options: Mapping[str, Any], rules: LabelRules) -> dict[str, str]:
    """Name in the frame of `read_rows` -> column of the table; labels that are merged may have another column."""
    columns = {}
    for name in _SINGLE_COLUMNS:
        if options[name]:
            table.place(options[name], f"--{name.replace('_', '-')}")
            columns[name.removesuffix("_column")] = options[name]
    for label in options["label_columns"]:
        others = [old for old, new in rules.merged.items() if new == normalised(label) and old in table.columns]
        column = others[0] if normalised(label) not in table.columns and others else label
        table.place(column, "--label-columns")
        columns[f"label {label}"] = column
    for name in options["keep_columns"]:
        table.place(name, "--keep-columns")
        columns[f"keep {name}"] = name
    for column in table.columns:
        if kept_columns.is_identifying(column):
            columns.setdefault(f"identifier {column}", column)
    return columns


def _reading_notes(root, paths, lookup, rows: LabelRows, where, tables, column: str) -> list[str]:
    if rows.frame.empty:
        if where and rows.filtered:
            raise InputError(f"--where {where.text!r} leaves no row with an image; correct the condition")
        example = next(iter(tables[0].blocks([column])), pd.DataFrame({column: ["nothing"]}))[column]
        raise InputError(
            f"none of the {rows.rows} rows of {', '.join(table.path.name for table in tables)} names an image in "
            f"{root}: column {column!r} has for example {next(iter(example), '')!r}, and the folder has {paths[0]!r}; "
            "correct ROOT or --image-column"
        )
    notes = [f"{rows.rows} rows in {', '.join(table.path.name for table in tables)}"]
    if where:
        notes[0] += f", taken where {where.text}"
    if lookup.other_suffix:
        name, file = next(iter(lookup.other_suffix.items()))
        notes.append(f"{len(lookup.other_suffix)} images have another suffix than in the CSV (such as {name}: {file})")
    return notes


def _unknown_note(labels: CellLabels) -> list[str]:
    """How many images each label is unknown of."""
    counts = (labels.values == -1).sum(axis=0)
    names = labels.classes if labels.kind == "several" else ("the label",)
    parts = [f"{name} of {count}" for name, count in zip(names, counts, strict=True) if count]
    return [f"unknown among {len(labels.values)} images: {', '.join(parts)}"] if parts else []


def _count_without_rows(paths: Sequence[str], rows: LabelRows, irregular: Tally, tally: Tally) -> None:
    with_rows = set(rows.frame[IMAGE].tolist())
    for number, path in enumerate(paths):
        if number in with_rows or number in rows.unclear:
            continue
        if number in rows.filtered:
            tally.add("images of rows that --where leaves out", path)
        else:
            irregular.add("images without a row", path)


def _check_identifiers(tables, images: pd.DataFrame, root: Path, options: Mapping[str, Any]) -> None:
    names = " and ".join(table.path.name for table in tables)
    for column in [column for column in images if column.startswith("identifier ")]:
        name = column.removeprefix("identifier ")
        if name not in (options["patient_column"], options["study_column"], options["image_column"]):
            kept_columns.check_paths(names, name, images[column].fillna(""), images["path"], images[ROW])


def _task(labels: CellLabels) -> str:
    if labels.kind == "several":
        return Multilabel.name
    return Binary.name if len(labels.classes) == 2 else Multiclass.name
