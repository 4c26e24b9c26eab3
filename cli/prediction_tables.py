"""Tables of exports and predictions for people, and rows for programs."""

import os
import sys

from rich.table import Table

from kmura.cli.display import console, one_line


def show_export(exported) -> None:
    """Prints what an `Export` contains and how close it is to the model."""
    out = console()
    if facts := getattr(exported, "facts", None):
        for name, text in facts.items():
            out.print(f"{name}: {text}")
        return
    contract = exported.contract
    out.print(f"{exported.folder}: version {exported.version}, written and read back")
    if contract.is_binary:
        out.print(f"calibration: {contract.calibration}; threshold {contract.threshold:.4g} (rule {contract.rule})")
    else:
        kind = "labels" if contract.labels.by_label else "classes"
        out.print(f"calibration: {contract.calibration}; {len(contract.classes)} {kind}: {', '.join(contract.classes)}")
    if exported.parity:
        parity = exported.parity
        out.print(
            f"against the model, in a fresh process: logit {parity.logit:.1g}, probability {parity.probability:.1g}; "
            f"encoded images {parity.image_bytes:.1g}, study {parity.study:.1g}; {parity.warmup} warm-up requests"
        )
    for note in exported.notes:
        out.print(note)


def show_check(check) -> None:
    """Prints the result of a `Check` of an export."""
    out = console()
    for name, largest in check.differences.items():
        out.print(f"{name}: {'equal' if largest == 0 else f'within {largest:.1g}'}")
    if not check.problems:
        answers = (
            "all answers are as they were" if check.differences else "no answers were compared: there is no SavedModel"
        )
        out.print(f"{check.folder}: all files are as exported, {answers}")


def show_predictions(predictions) -> None:
    """Prints `Predictions`: images, and studies where there are any."""
    out, contract = console(), predictions.contract
    table = Table(title=_heading(contract), title_justify="left")
    folders = [os.path.dirname(name) for name in predictions.images["image"]] or [""]
    mixed = len({os.path.isabs(folder) for folder in folders}) > 1
    above = "" if mixed else os.path.commonpath(folders)
    if above not in ("", os.sep):
        table.caption, table.caption_justify = f"images in {one_line(above)}", "left"
    columns = {
        "image": [one_line(os.path.relpath(name, above) if above else name) for name in predictions.images["image"]]
    }
    if not predictions.studies.empty:
        columns["study"] = [one_line(name) for name in predictions.images["study"]]
    out.print(_filled(table, columns | _answers(contract, predictions.images)))
    if not predictions.studies.empty:
        k = f" of the {contract.top_k} largest" if contract.pooling == "top-k" else ""
        columns = {
            "study": [one_line(name) for name in predictions.studies["study"]],
            "images": [str(number) for number in predictions.studies["images"]],
            "skipped": [str(number) if number else "" for number in predictions.studies["skipped"]],
        }
        table = Table(title=f"studies: {contract.pooling}{k}", title_justify="left")
        out.print(_filled(table, columns | _answers(contract, predictions.studies)))


def _heading(contract) -> str:
    if contract.labels.softmax:
        return f"the most probable of {len(contract.classes)} classes and its probability"
    if contract.labels.by_label:
        return (
            f"labels (of {len(contract.classes)}) with a probability of 0.5 or more; if there is none, the largest "
            "probability"
        )
    calibrated = "" if contract.calibrator is None else "calibrated "
    return f"{calibrated}probability of {contract.classes[1]}; threshold {contract.threshold:.4g} ({contract.rule})"


def _answers(contract, table) -> dict[str, list[str]]:
    """Column -> its cells, for the answers in a table of `Predictions`.

    Of several classes only the probabilities of the decision are shown, since all would be too many.
    """
    decision = {"decision": [one_line(name) for name in table["decision"]]}
    if contract.is_binary:
        logit = {"logit": [f"{value:+.3f}" for value in table["logit"]]} if "logit" in table else {}
        return logit | {"probability": [f"{value:.3f}" for value in table["probability"]]} | decision
    decided = []
    for row in table[[f"probability_{name}" for name in contract.classes]].to_numpy():
        positive = row[row >= contract.threshold] if contract.labels.by_label else ()
        decided.append(", ".join(f"{value:.3f}" for value in (positive if len(positive) else [row.max()])))
    columns = decision | {"probability": decided}
    if contract.abnormal:
        columns["abnormal"] = [f"{value:.3f}" for value in table["abnormal_probability"]]
    return columns


def _filled(table: Table, columns: dict[str, list[str]]) -> Table:
    """The table with these columns; names are left-aligned, numbers right-aligned."""
    for name in columns:
        left = name in ("image", "study", "decision")
        table.add_column(name, justify="left" if left else "right", overflow="fold")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table


def skipped_lines(predictions) -> list[str]:
    """One line per file that was skipped."""
    return [f"skipped {one_line(item.file)}: {item.reason}" for item in predictions.skipped]


def write_rows(predictions, format: str, out=None) -> None:
    """Writes the rows of `Predictions` as `csv` or `jsonl` to the file `out`, or prints them."""
    from kmura.files import replacing

    table = predictions.table()
    if format == "csv":
        text = table.to_csv(index=False, float_format="%.7g")
    else:
        text = table.to_json(orient="records", lines=True, force_ascii=False, double_precision=10)
    if out is None:
        sys.stdout.write(text)
        return
    with replacing(out) as file:
        file.write(text)
