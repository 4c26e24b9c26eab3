"""Predictions of any tool as the table that kmura scores, with everything that was assumed about them."""

import dataclasses
import os
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from kmura.config.suggestions import did_you_mean, nearest
from kmura.errors import InputError, check_choice
from kmura.evaluation.calibrators import logits_of
from kmura.evaluation.given_columns import Columns, class_names, columns_of, is_general, option_of
from kmura.evaluation.given_splits import find_leaks, splits_of
from kmura.evaluation.scoring import MIXED_STUDIES
from kmura.evaluation.subgroup_rules import columns_of_rules
from kmura.evaluation.table_file import MOST_ROWS, TableFile
from kmura.runs.predictions import study_keys_of
from kmura.tasks import Binary, Multiclass, Multilabel, Task

ONLY_SPLIT = "all"  # the name of the only split of a table without a split column
_NEGATIVE = {"0", "0.0", "false", "no", "negative", "neg"}
_POSITIVE = {"1", "1.0", "true", "yes", "positive", "pos"}
_UNKNOWN = {"", "-1", "-1.0", "nan", "none", "null", "na", "n/a"}
_RESERVED = {"split", "patient", "study", "image", "label", "logit", "probability"}  # columns of the table
_ROUNDED = 1e-3  # a probability may differ from that of its logit by rounding to three digits


@dataclasses.dataclass(frozen=True)
class GivenPredictions:
    """A table of predictions that another tool made.

    Attributes:
        table: with the columns that `kmura.runs.predictions.read_predictions` returns, and those of the subgroups; the
            rows of the splits that are scored, under their names in the file.
        task: of the predictions.
        area: what is predicted: the name of the label column.
        columns: of the file, by role.
        fit_on: the split that calibration and thresholds are fitted on; "" if there is none.
        remarks: what was assumed or left out, sentences.
        leaks: patients or images in several splits, one sentence for each kind and group of splits.
        has_patients: whether the file identifies patients.
        positive_class: the label of positive images, if labels are two texts; else None.
    """

    table: pd.DataFrame
    task: Task
    area: str
    columns: Columns
    fit_on: str
    remarks: tuple[str, ...]
    leaks: tuple[str, ...]
    has_patients: bool
    positive_class: str | None = None


def read_given(
    path: str | os.PathLike,
    named: Mapping[str, Sequence[str]] | None = None,
    *,
    positive_class: str | None = None,
    fit_on: str | None = None,
    held_out: Sequence[str] = (),
    mixed_studies: str = "refuse",
    by: Sequence[str] = (),
    most_rows: int = MOST_ROWS,
) -> GivenPredictions:
    """Reads a table of predictions of any tool.

    Labels are 0 and 1, true and false, yes and no, negative and positive, or two texts of which `positive_class` is the
    positive one; blank, -1 and nan are unknown. With several columns of probabilities (or logits) and one label column,
    the label is the name of a class or its number; with several label columns, each is a label of its own.

    Args:
        path: of the CSV file, which may be gzipped.
        named: role (`image`, `label`, `probability`, `logit`, `patient`, `study`, `split`) -> its columns. Roles that
            are not named are guessed from the names of columns if these leave no doubt.
        positive_class: the label of positive images, if labels are two other texts.
        fit_on: the split to fit calibration and thresholds on; None takes the split whose name says that, see
            `kmura.evaluation.given_splits.FITTING`.
        held_out: the other splits to score; empty scores all except the training split.
        mixed_studies: what happens to studies with images of both labels: `refuse`; `any-positive`, they count as
            positive; `drop`, they are left out with all their images.
        by: columns or conditions of subgroups, whose columns are kept.
        most_rows: number of rows that are allowed.

    Raises:
        InputError: the file cannot be read, a column is missing, an entry is impossible (says in which line), an image
            occurs twice in a split, or a study is mixed.
    """
    check_choice("mixed_studies", mixed_studies, MIXED_STUDIES)
    file = TableFile(path)
    columns = columns_of(file, named or {})
    kept = columns_of_rules(by, file.columns, str(file.path))
    for name in kept:
        if name in _RESERVED and name not in columns.used:
            raise InputError(
                f"--by {name}: kmura gives the name {name} another meaning; rename the column of {file.path}"
            )
    raw = file.read([name for name in file.columns if name in {*columns.used, *kept}], most_rows)
    image = _image(raw, columns)
    task = _task(file, raw, columns, positive_class)
    labels = _labels(file, raw, image, columns, task, positive_class)
    scores = _scores(file, raw, image, columns, task)
    split = raw[columns.split[0]] if columns.split else pd.Series(ONLY_SPLIT, raw.index)
    _refuse(file, image, {"no split": split == ""})
    study = image
    if columns.study:
        study = raw[list(columns.study)].agg(" ".join, axis=1) if len(columns.study) > 1 else raw[columns.study[0]]
        study = study.where(study.str.strip() != "", image)  # an image without a study is one of its own
    area = columns.label[0] if len(columns.label) == 1 else "labels"
    keys = {
        "split": split,
        "area": raw["area"] if "area" in kept else area,
        "patient": raw[columns.patient[0]] if columns.patient else "",
        "study": study,
        "image": image,
    }
    extra = raw[[name for name in kept if name not in {*keys, *labels, *scores}]]
    table = pd.concat([pd.DataFrame(keys, raw.index), labels, scores, extra], axis=1)
    twice = "an image of an earlier row of its split; one row per image is needed"
    _refuse(file, image, {twice: table.duplicated(["split", "image"])})
    leaks = find_leaks(table, bool(columns.patient), bool(columns.image))
    fitting, scored, remarks = splits_of(file, list(dict.fromkeys(split)), columns, fit_on, held_out)
    remarks = [*file.remarks, *remarks]
    if len(scored) < table["split"].nunique():
        table = table[table["split"].isin(scored)].reset_index(drop=True)
    table = _without_mixed(file, table, task, mixed_studies, remarks)
    unknown = int((table[task.label_columns] < 0).all(axis=1).sum())
    if unknown:
        remarks.append(f"{unknown} of {len(table)} images have no known label and are not scored")
    return GivenPredictions(
        table, task, area, columns, fitting, tuple(remarks), tuple(leaks), bool(columns.patient), positive_class
    )


def read_second(
    path: str | os.PathLike,
    first: GivenPredictions,
    named: Mapping[str, Sequence[str]] | None = None,
    named_second: Mapping[str, Sequence[str]] | None = None,
    *,
    most_rows: int = MOST_ROWS,
) -> GivenPredictions:
    """Reads another tool's predictions for the images of a first table, matched by the name of the image.

    Labels, patients, studies, splits and columns of subgroups are those of the first table; if the file has a label
    column, its labels must be the same.

    Args:
        path: of the CSV file, which may be gzipped.
        first: the first table.
        named: see `read_given`; columns that this file lacks are guessed.
        named_second: role `probability` or `logit` -> its columns in this file, which must exist.
        most_rows: number of rows that are allowed.

    Raises:
        InputError: see `read_given`; the file lacks an image of the first table, or has another label for it.
    """
    file = TableFile(path)
    if not first.columns.image:
        raise InputError(f"{path} cannot be paired without the names of images; name their column with --image-column")
    own = {role: names for role, names in (named or {}).items() if role in ("image", "label", "probability", "logit")}
    own = {role: names for role, names in own.items() if not names or set(names) <= set(file.columns)}
    if named_second:  # then this file's other kind of prediction is not that of the first file
        own = {role: names for role, names in own.items() if role not in ("probability", "logit")} | dict(named_second)
    columns = columns_of(file, own, optional=("label",))
    if not columns.image:
        raise InputError(f"{path}: which column is the image? name it with --image-column")
    raw = file.read([name for name in file.columns if name in columns.used], most_rows)
    image = _image(raw, columns)
    place = pd.Index(image).get_indexer(first.table["image"]) if image.is_unique else None
    if place is None or not first.table["image"].is_unique:
        twice = image[image.duplicated()] if place is None else first.table["image"][first.table["image"].duplicated()]
        raise InputError(f"{path} cannot be paired: the image {twice.iloc[0]} occurs twice; rename or remove one row")
    if (place < 0).any():
        lost = first.table["image"][place < 0]
        raise InputError(
            f"{path} lacks {len(lost)} of the {len(first.table)} images of the first file (such as {lost.iloc[0]}); "
            "both files need predictions for the same images"
        )
    remarks = list(file.remarks)
    if len(raw) > len(place):
        remarks.append(f"{len(raw) - len(place)} rows are of images that the first file does not score; left out")
    raw, image = raw.iloc[place].reset_index(drop=True), image.iloc[place].reset_index(drop=True)
    task = first.task
    labels = first.table[task.label_columns]
    if len(columns.label) == len(task.label_columns):
        theirs = _labels(file, raw, image, columns, task, first.positive_class)
        differ = (theirs.to_numpy() != labels.to_numpy()).any(axis=1)
        if differ.any():
            raise InputError(
                f"{path} has other labels for {differ.sum()} images (such as {image[np.argmax(differ)]}) than the "
                "first file; correct one of the files"
            )
    scores = _scores(file, raw, image, columns, task)
    return dataclasses.replace(
        first,
        table=first.table.assign(**{name: scores[name].to_numpy() for name in scores}),
        columns=columns,
        remarks=tuple(remarks),
    )


def _image(raw: pd.DataFrame, columns: Columns) -> pd.Series:
    if columns.image:
        return raw[columns.image[0]]
    return pd.Series("row " + (raw.index + 1).astype(str), raw.index)


def _refuse(file: TableFile, image: pd.Series, wrong: Mapping[str, pd.Series | np.ndarray], fix: str = "") -> None:
    """Raises the error of the first row that has a problem; wrong: problem -> which rows have it."""
    for problem, rows in wrong.items():
        rows = np.asarray(rows, bool)
        if rows.any():
            row, number = int(np.argmax(rows)), int(rows.sum())
            more = "" if number == 1 else f" (and {number - 1} more rows)"
            raise InputError(
                f"{file.path}, line {row + 2} ({image.iloc[row]}): {problem}{more}; {fix or 'correct the file'}"
            )


def _task(file: TableFile, raw: pd.DataFrame, columns: Columns, positive: str | None) -> Task:
    """The task of the predictions, from the number of their columns and the labels."""
    outputs, option = len(columns.probability or columns.logit), "--label-column and --probability-column"
    role = "probability" if columns.probability else "logit"
    if columns.probability and columns.logit and len(columns.probability) != len(columns.logit):
        raise InputError(
            f"{file.path}: there are {len(columns.probability)} columns of probabilities and {len(columns.logit)} of "
            "logits; name only one of them with --probability-column or --logit-column"
        )
    if len(columns.label) > 1:
        if len(columns.label) != outputs:
            raise InputError(
                f"{file.path}: there are {len(columns.label)} label columns and {outputs} of predictions; name them in "
                f"the same order with {option}"
            )
        return Multilabel(class_names(columns.label, "label"))
    if outputs > 1:
        return Multiclass(class_names(getattr(columns, role), role))
    values = [value for value in raw[columns.label[0]].unique() if value.lower() not in _UNKNOWN]
    what = columns.label[0]
    if positive is None:
        return Binary(("negative", "positive") if is_general(what) else (f"no {what}", what))
    if positive not in values:
        known = ", ".join(sorted(values)[:10])
        raise InputError(
            f"{file.path}: no label is {positive!r} (--positive-class){did_you_mean(nearest(positive, values))} "
            f"(labels: {known})"
        )
    others = [value for value in values if value != positive]
    if len(others) > 1:
        raise InputError(
            f"{file.path}: column {what} has {len(values)} classes ({', '.join(sorted(values)[:5])}), but there is one "
            "column of predictions; give one column per class, or make the label binary"
        )
    return Binary((others[0] if others else f"not {positive}", positive))


def _labels(
    file: TableFile, raw: pd.DataFrame, image: pd.Series, columns: Columns, task: Task, positive: str | None
) -> pd.DataFrame:
    """The labels of the task, int [N, L]; -1 is unknown."""
    result = {}
    for column, name in zip(columns.label, task.label_columns, strict=True):
        values = raw[column].str.lower()
        unknown = values.isin(_UNKNOWN)
        if isinstance(task, Multiclass):
            ids = {value.lower(): number for number, value in enumerate(task.classes)}
            numbers = {f"{number}{end}": number for number in range(len(ids)) for end in ("", ".0")}
            allowed = f"{', '.join(task.classes[:6])}, or 0 to {len(ids) - 1}"
            label = values.map(numbers | ids)
        elif positive is not None:
            label = values.map({task.classes[0].lower(): 0, task.classes[1].lower(): 1})
            allowed = f"{task.classes[0]} and {task.classes[1]}"
        else:
            label = values.map(dict.fromkeys(_NEGATIVE, 0) | dict.fromkeys(_POSITIVE, 1))
            allowed = "0 and 1 (blank or -1 is unknown)"
        wrong = label.isna() & ~unknown
        if wrong.any():
            value = raw[column][wrong].iloc[0]
            fix = "correct the file"
            if isinstance(task, Binary) and positive is None:
                fix = "name the label of positive images with --positive-class, or correct the file"
            _refuse(file, image, {f"the label {value!r} in column {column}; labels are {allowed}": wrong}, fix)
        result[name] = label.where(~unknown, -1).fillna(-1).astype(int)
    labels = pd.DataFrame(result, raw.index)
    if (labels < 0).all(axis=None):
        raise InputError(f"{file.path}: no label is known in column {columns.label[0]}; name another --label-column")
    return labels


def _scores(file: TableFile, raw: pd.DataFrame, image: pd.Series, columns: Columns, task: Task) -> pd.DataFrame:
    """Logits and probabilities of the task; each is computed from the other if the file lacks it."""
    numbers = {
        role: _numbers(file, raw, names) for role in ("probability", "logit") if (names := getattr(columns, role))
    }
    given = numbers.get("probability", numbers.get("logit"))
    if given.shape[1] != task.outputs:
        raise InputError(
            f"{file.path} has {given.shape[1]} columns of predictions, but {task.outputs} are needed; name them with "
            "--probability-column or --logit-column"
        )
    fixes = {"probability": "if they are logits, name the column with --logit-column; else correct the file"}
    if (probability := numbers.get("probability")) is not None:
        which = ", ".join(columns.probability[:3])
        _refuse(file, image, {f"no number in column {which}": np.isnan(probability).any(axis=1)})
        outside = ((probability < 0) | (probability > 1)).any(axis=1)
        _refuse(file, image, {f"a probability outside 0 to 1 in column {which}": outside}, fixes["probability"])
    if (logit := numbers.get("logit")) is not None:
        which = ", ".join(columns.logit[:3])
        _refuse(file, image, {f"no finite number in column {which}": ~np.isfinite(logit).all(axis=1)})
    if probability is None:
        probability = task.probabilities(logit)
    elif task.softmax:
        sums = probability.sum(axis=1)
        wrong = np.abs(sums - 1) > 1e-2
        fix = f"give probabilities that sum to 1, or one label column per class with {option_of('label')}"
        _refuse(file, image, {"probabilities of all classes that do not sum to 1": wrong}, fix)
        probability = probability / sums[:, None]
    if logit is None:
        logit = np.log(np.clip(probability, 1e-300, 1)) if task.softmax else logits_of(probability)
    else:
        apart = np.abs(task.probabilities(logit) - probability).max(axis=1) > _ROUNDED
        fix = f"name only the right one, with {option_of('probability')} or {option_of('logit')}"
        _refuse(file, image, {"a probability that contradicts its logit": apart}, fix)
    return pd.concat(
        [
            pd.DataFrame(logit, raw.index, task.logit_columns),
            pd.DataFrame(probability, raw.index, task.probability_columns),
        ],
        axis=1,
    )


def _numbers(file: TableFile, raw: pd.DataFrame, names: Sequence[str]) -> np.ndarray:
    """Columns as numbers [N, L]; NaN where an entry is none. In files with semicolons, commas may be decimal."""
    columns = []
    for name in names:
        text = raw[name].str.replace(",", ".", regex=False) if file.separator == ";" else raw[name]
        columns.append(pd.to_numeric(text, errors="coerce").to_numpy(float))
    return np.stack(columns, axis=1)


def _without_mixed(file: TableFile, table: pd.DataFrame, task: Task, rule: str, remarks: list[str]) -> pd.DataFrame:
    """The table without studies of several labels, if they are dropped; a remark says how many there are.

    Raises:
        InputError: they are refused, or have no common label.
    """
    keys = pd.Series(study_keys_of(table), table.index).astype(str) + "\0" + table["split"]
    known = table[(table[task.label_columns] >= 0).all(axis=1)]
    mixed = pd.Series(False, known.index)
    for name in task.label_columns:
        values = known[name].groupby(keys[known.index])
        mixed |= values.transform("max") != values.transform("min")
    if not mixed.any():
        return table
    mixed_keys, first = set(keys[mixed[mixed].index]), known[mixed].iloc[0]
    of_patient = f" of patient {first['patient']}" if first["patient"] else ""
    what = f"{len(mixed_keys)} of {keys.nunique()} studies have images of several labels"
    if rule == "refuse" or (rule == "any-positive" and isinstance(task, Multiclass)):
        choices = "drop" if isinstance(task, Multiclass) else "any-positive or drop"
        raise InputError(
            f"{file.path}: {what} (such as {first['study']}{of_patient}); choose --mixed-studies {choices}, or name "
            "further columns that tell studies apart, such as the side, with --study-column"
        )
    if rule == "any-positive":
        remarks.append(f"{what}; these studies count as positive if any of their images is (any-positive)")
        return table
    dropped = keys.isin(mixed_keys)
    remarks.append(f"{what}; these studies were left out, with {int(dropped.sum())} images (drop)")
    return table[~dropped].reset_index(drop=True)
