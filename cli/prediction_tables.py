"""Exports and predictions, as tables for people and as rows for programs."""

import os
import sys

from rich.table import Table

from kmura.cli.display import console


def show_export(found) -> None:
    """Prints an `Export` on stdout."""
    out, contract = console(), found.contract
    out.print(f"{found.folder}: version {found.version}, written and read back")
    if contract.is_binary:
        out.print(f"calibration: {contract.calibration}; threshold {contract.threshold:.4g} (rule {contract.rule})")
    else:
        kind = "labels" if contract.labels.by_label else "classes"
        out.print(f"calibration: {contract.calibration}; {len(contract.classes)} {kind}: {', '.join(contract.classes)}")
    if found.parity:
        parity = found.parity
        out.print(
            f"against the model, in a fresh process: logit {parity.logit:.1g}, probability {parity.probability:.1g}; "
            f"encoded images {parity.image_bytes:.1g}, study {parity.study:.1g}; {parity.warmup} warm-up requests"
        )
    for note in found.notes:
        out.print(note)


def show_check(found) -> None:
    """Prints the result of a `Check` of an export on stdout."""
    out = console()
    for name, largest in found.differences.items():
        out.print(f"{name}: {'equal' if largest == 0 else f'within {largest:.1g}'}")
    if not found.problems:
        answers = (
            "all answers are unchanged"
            if found.differences
            else "no answers were computed, since there is no SavedModel"
        )
        out.print(f"{found.folder}: all files are as exported, {answers}")


def show_predictions(found) -> None:
    """Prints `Predictions` on stdout: images, and studies if there are any."""
    out, contract = console(), found.contract
    table = Table(title=_heading(contract), title_justify="left")
    above = os.path.commonpath([os.path.dirname(name) for name in found.images["image"]] or [""])
    if above not in ("", os.sep):
        table.caption, table.caption_justify = f"images in {_one_line(above)}", "left"
    columns = {"image": [_one_line(os.path.relpath(name, above) if above else name) for name in found.images["image"]]}
    if not found.studies.empty:
        columns["study"] = [_one_line(name) for name in found.images["study"]]
    out.print(_filled(table, columns | _answers(contract, found.images)))
    if not found.studies.empty:
        k = f" of the {contract.top_k} largest" if contract.pooling == "top-k" else ""
        columns = {
            "study": [_one_line(name) for name in found.studies["study"]],
            "images": [str(number) for number in found.studies["images"]],
            "skipped": [str(number) if number else "" for number in found.studies["skipped"]],
        }
        table = Table(title=f"studies: {contract.pooling}{k}", title_justify="left")
        out.print(_filled(table, columns | _answers(contract, found.studies)))


def _heading(contract) -> str:
    if contract.labels.softmax:
        return f"the most probable of {len(contract.classes)} classes, and its probability"
    if contract.labels.by_label:
        return (
            f"of {len(contract.classes)} labels those of probability 0.5 or more; without any, the largest probability"
        )
    calibrated = "" if contract.calibrator is None else "calibrated "
    return f"{calibrated}probability of {contract.classes[1]}; threshold {contract.threshold:.4g} ({contract.rule})"


def _answers(contract, table) -> dict[str, list[str]]:
    """Returns the cells of the columns that show the answers of `Predictions`.

    For several classes they show only the probabilities of the decision, since those of all classes are too many.
    """
    decision = {"decision": [_one_line(name) for name in table["decision"]]}
    if contract.is_binary:
        logit = {"logit": [f"{value:+.3f}" for value in table["logit"]]} if "logit" in table else {}
        return logit | {"probability": [f"{value:.3f}" for value in table["probability"]]} | decision
    decided = []
    for row in table[[f"probability_{name}" for name in contract.classes]].to_numpy():
        there = row[row >= contract.threshold] if contract.labels.by_label else ()
        decided.append(", ".join(f"{value:.3f}" for value in (there if len(there) else [row.max()])))
    found = decision | {"probability": decided}
    if contract.abnormal:
        found["abnormal"] = [f"{value:.3f}" for value in table["abnormal_probability"]]
    return found


def _filled(table: Table, columns: dict[str, list[str]]) -> Table:
    """Adds columns to a table and returns it; names are left-aligned, numbers right-aligned."""
    for name in columns:
        left = name in ("image", "study", "decision")
        table.add_column(name, justify="left" if left else "right", overflow="fold")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table


def _one_line(name: str) -> str:
    """Returns a file name that a terminal can show: control characters become escapes."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)


def skipped_lines(found) -> list[str]:
    """Returns one line per skipped file of `Predictions`."""
    return [f"skipped {_one_line(item.file)}: {item.reason}" for item in found.skipped]


def write_rows(found, format: str, out=None) -> None:
    """Writes the rows of `Predictions` as `csv` or `jsonl` to the file `out`, or to stdout."""
    from kmura.files import replacing

    table = found.table()
    if format == "csv":
        text = table.to_csv(index=False, float_format="%.7g")
    else:
        text = table.to_json(orient="records", lines=True, force_ascii=False, double_precision=10)
    if out is None:
        sys.stdout.write(text)
        return
    with replacing(out) as file:
        file.write(text)
