"""The commands that take a model out of the training machine: export, predict."""

import sys

import click

_THRESHOLD = "Of a binary run: a rule that it was evaluated at; default: 0.5, or the first of them."


@click.command()
@click.argument("run", type=click.Path())
@click.option("--out", required=True, type=click.Path(), help="Folder of the versions: OUT/1, OUT/2, ...")
@click.option("--records", type=click.Path(), help="Folder of the records, if they have moved since the run.")
@click.option("--threshold", metavar="RULE", help=_THRESHOLD)
@click.option("--format", type=click.Choice(["savedmodel", "onnx", "litert"]), default="savedmodel", show_default=True)
@click.option(
    "--warmup/--no-warmup", default=True, show_default=True, help="Write warm-up requests for TensorFlow Serving."
)
def export(run, out, **options):
    """Export the best model of an evaluated RUN (runs/AREA/PHASE) for TensorFlow Serving, with all it needs inside."""
    from kmura.cli.prediction_tables import show_export
    from kmura.export.bundle import export

    show_export(export(run, out, **options))


@click.command()
@click.argument("model", type=click.Path())
@click.argument("images", nargs=-1, type=click.Path())
@click.option(
    "--group",
    type=click.Choice(["auto", "folder", "none"]),
    default="auto",
    show_default=True,
    help="Which images are one study: a CSV's column study and MURA's patient/study, each folder, or none.",
)
@click.option("--threshold", metavar="RULE", help=_THRESHOLD)
@click.option("--format", type=click.Choice(["table", "csv", "jsonl"]), help="Default: table; csv with --out.")
@click.option("--out", type=click.Path(), help="Write the rows here; .jsonl makes them JSON lines.")
@click.option("--cam", type=click.Path(), metavar="DIR", help="Draw where the model looks, a PNG an image.")
@click.option("--records", type=click.Path(), help="Folder of a run's records, if they have moved since the run.")
@click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True)
@click.option("--workers", type=click.IntRange(1), help="Threads that decode; default: one a core.")
@click.option("--check", is_flag=True, help="MODEL is an export: compare its answers with those it was made with.")
def predict(model, images, check, format, out, **options):
    """Predict IMAGES (files, folders, CSVs with a column image) with MODEL: a run, a .keras file or an export.

    PNG, JPEG, TIFF, BMP and, with pydicom, DICOM are read. What cannot be read is named on stderr and skipped. Exit
    code: 0 if all were read, 1 if some were skipped, 2 if none could be read or the call is wrong.
    """
    if check:
        if images:
            raise click.UsageError("--check takes no images; it asks the export for its own golden ones")
        _check(model)
        return
    if not images:
        raise click.UsageError("no images are given; give files, a folder or a CSV")
    if out and format == "table":
        raise click.UsageError("--out takes rows, --format csv or jsonl")

    from kmura.cli.display import counting
    from kmura.cli.prediction_tables import show_predictions, skipped_lines, write_rows
    from kmura.errors import InputError
    from kmura.prediction.predict import predict

    with counting("images") as progress:
        found = predict(model, images, progress=progress if sys.stderr.isatty() else None, **options)
    for line in skipped_lines(found):
        click.echo(line, err=True)
    if found.images.empty:
        raise InputError(f"none of the {len(found.skipped)} files can be read; nothing was predicted")
    format = format or ("jsonl" if str(out).endswith(".jsonl") else "csv" if out else "table")
    if format == "table":
        show_predictions(found)
    else:
        write_rows(found, format, out)
    if found.skipped:
        raise click.exceptions.Exit(1)


def _check(model) -> None:
    from kmura.cli.prediction_tables import show_check
    from kmura.errors import InputError
    from kmura.export.golden import check_export

    found = check_export(model)
    show_check(found)
    if found.problems:
        raise InputError("; ".join(found.problems))


COMMANDS = (export, predict)
