"""The commands that use a trained model elsewhere: export, predict."""

import sys

import click

from kmura.cli.options import RECORDS_OF_RUN, Choice, examples

_THRESHOLD = click.option(
    "--threshold",
    metavar="RULE",
    show_default="0.5 if it is one of them, else the first",
    help="Threshold of a binary model: one of the rules that its run was evaluated with.",
)


@click.command(
    short_help="Export a model for TensorFlow Serving, ONNX or LiteRT.",
    epilog=examples(
        "kmura export runs/XR_WRIST/baseline --out models/wrist",
        "kmura export runs/XR_WRIST/baseline --out models/wrist --format onnx",
        "kmura export runs/fold*/XR_WRIST/baseline --out models/wrist",
    ),
)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path())
@click.option("--out", required=True, type=click.Path(), help="Folder of the versions: OUT/1, OUT/2, ...")
@RECORDS_OF_RUN
@_THRESHOLD
@click.option(
    "--format",
    type=Choice(["savedmodel", "onnx", "litert"]),
    default="savedmodel",
    help="Format; onnx requires the extra onnx.",
)
@click.option(
    "--warmup/--no-warmup",
    default=True,
    help="Write warm-up requests for TensorFlow Serving (requires the extra serving).",
)
def export(runs, out, **options):
    """Export the best model of an evaluated RUN (runs/AREA/PHASE) for serving.

    Several runs, such as those of all folds, become one ensemble: the mean of their calibrated probabilities.

    An export contains the network with preprocessing, calibration, threshold and pooling, a model card, and reference
    predictions, which `kmura predict --check` compares. Each call adds a version.
    """
    from kmura.cli.prediction_tables import show_export
    from kmura.export.bundle import export

    show_export(export(runs, out, **options))


@click.command(
    short_help="Predict images with runs, .keras files or an export.",
    epilog=examples(
        "kmura predict runs/XR_WRIST/baseline patient1/ patient2/ --out rows.csv",
        "kmura predict models/wrist image.dcm --cam maps/",
        "kmura predict models/wrist --check",
        "kmura predict runs/fold*/XR_WRIST/baseline scans/ --tta flip",
    ),
)
@click.argument("paths", nargs=-1, required=True, metavar="MODEL... IMAGES...", type=click.Path())
@click.option(
    "--group",
    type=Choice(["auto", "folder", "none"]),
    default="auto",
    help="Which images form a study. auto: by the column study of a CSV, and by MURA's patient and study folders; "
    "folder: each folder is a study; none: no studies.",
)
@_THRESHOLD
@click.option(
    "--format",
    type=Choice(["table", "csv", "jsonl"]),
    show_default="table; with --out: csv, or jsonl if OUT ends in .jsonl",
    help="Format of the predictions.",
)
@click.option("--out", type=click.Path(), help="Write the predictions to this file.")
@click.option(
    "--cam", type=click.Path(), metavar="DIR", help="Write one PNG per image with the model's map to this folder."
)
@click.option(
    "--tta",
    type=Choice(["none", "flip"]),
    default="none",
    help="Test-time augmentation. flip: the mean of the logits of an image and its mirror image, before calibration.",
)
@RECORDS_OF_RUN
@click.option("--batch-size", type=click.IntRange(1), default=16, help="Images per step.")
@click.option("--workers", type=click.IntRange(1), show_default="one per core", help="Threads that decode images.")
@click.option(
    "--key-file",
    type=click.Path(),
    metavar="FILE",
    help="Name all DICOM images by pseudonyms of this key, as build-tfrecords does; made if missing. By default only "
    "those whose paths contain an id, name, date or UID of their tags, by the key of the user.",
)
@click.option(
    "--link-file",
    type=click.Path(),
    metavar="FILE",
    help="Write a CSV of the pseudonyms and the files that they stand for; keep it like the key.",
)
@click.option(
    "--check",
    is_flag=True,
    help="Without IMAGES; MODEL is an export: compare its predictions with its reference predictions.",
)
def predict(paths, check, format, out, **options):
    """Predict IMAGES with MODEL, a run, a .keras file or an export.

    Several models before the images, or a folder of folds, form an ensemble: the mean of their calibrated
    probabilities.

    IMAGES are files, folders, or CSV files with a column `image`. PNG, JPEG, TIFF, BMP, GIF, WebP, PGM, PPM and DICOM
    (requires the extra dicom) are read, recognised by their content. An image that cannot be read is reported on stderr
    and skipped; other files in folders are passed over and counted. Exit code: 0 if all images were read, 1 if some
    were skipped, 2 if none could be read or the call is wrong.
    """
    if check:
        if len(paths) > 1:
            raise click.UsageError("--check takes one export and no images; it uses the golden images of the export")
        _check(paths[0])
        return

    from kmura.prediction.arguments import models_and_images

    models, images = models_and_images(paths)
    if not images:
        raise click.UsageError("no images are given; give files, a folder or a CSV file")
    if out and format == "table":
        raise click.UsageError("--out needs --format csv or jsonl, not table")

    from kmura.cli.display import notes
    from kmura.cli.prediction_tables import show_predictions, skipped_lines, write_rows
    from kmura.cli.progress import counting
    from kmura.errors import InputError
    from kmura.prediction.predict import predict

    with counting("images") as progress:
        predictions = predict(models, images, progress=progress if sys.stderr.isatty() else None, **options)
    for line in skipped_lines(predictions):
        click.echo(line, err=True)
    for note in notes(predictions.passed_over, predictions.remarks, len(predictions.images)):
        click.echo(f"note: {note}", err=True)
    if predictions.images.empty:
        raise InputError(f"none of the {len(predictions.skipped)} files can be read; nothing was predicted")
    format = format or ("jsonl" if str(out).endswith(".jsonl") else "csv" if out else "table")
    if format == "table":
        show_predictions(predictions)
    else:
        write_rows(predictions, format, out)
    if predictions.skipped:
        raise click.exceptions.Exit(1)


def _check(model) -> None:
    from kmura.cli.prediction_tables import show_check
    from kmura.errors import InputError
    from kmura.export.golden import check_export

    result = check_export(model)
    show_check(result)
    if result.problems:
        raise InputError("; ".join(result.problems))


COMMANDS = (export, predict)
