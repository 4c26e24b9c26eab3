"""The commands that make and check records: demo-data, build-tfrecords, inspect."""

import sys

import click

from kmura.cli.options import WORKERS, Choice, examples, literal_values, names_option, names_parameter, seed_option
from kmura.config import RecordsConfig


@click.command(
    "demo-data",
    short_help="Make a folder of synthetic radiographs, arranged like MURA.",
    epilog=examples("kmura demo-data images --areas XR_SHOULDER,XR_WRIST --side 256"),
)
@click.argument("out", type=click.Path())
@names_option("--areas", metavar="AREA,...", show_default="all seven of MURA", help="The areas to make.")
@click.option("--train-studies", default=200, metavar="N", help="Studies per area for training.")
@click.option("--test-studies", default=60, metavar="N", help="Studies per area for testing.")
@click.option("--side", default=512, metavar="PIXELS", help="Longest side of an image.")
@click.option(
    "--shortcut",
    default=0.0,
    metavar="P",
    help="Probability that an abnormal training image has a fixed marker, to measure shortcut learning.",
)
@seed_option("Seed of the images.")
@WORKERS
def demo_data(out, areas, train_studies, test_studies, side, shortcut, seed, workers):
    """Make synthetic radiographs in the folder OUT, arranged like MURA.

    Abnormal studies show drawn lesions, whose boxes are listed in OUT/lesions.csv. The same options give the same
    images.
    """
    from kmura.cli.progress import counting
    from kmura.phantoms.radiographs import AREAS, write_phantoms

    with counting("phantoms") as progress:
        made = write_phantoms(
            out,
            areas=areas or AREAS,
            train_studies=train_studies,
            test_studies=test_studies,
            side=side,
            shortcut=shortcut,
            seed=seed,
            workers=workers,
            progress=progress,
        )
    click.echo(f"{out}: {made.images} images, {made.studies} studies, {made.patients} patients")


class _BuildCommand(click.Command):
    """A command that takes the options of all source layouts, as the layouts declare them."""

    def get_params(self, ctx):
        from kmura.records.layouts import LAYOUTS, layouts_of_options

        choice = Choice(list(LAYOUTS))
        text = "How the images are stored; see Layouts below."
        layout = click.Option(["--layout"], default="mura", show_default=True, type=choice, help=text)
        options = [_layout_option(declared) for declared in layouts_of_options().values()]
        own, first = super().get_params(ctx), 2  # these options come after ROOT and --out
        return [*own[:first], layout, *options, *own[first:]]

    def format_epilog(self, ctx, formatter):
        from kmura.records.layouts import LAYOUTS

        with formatter.section("Layouts"):
            formatter.write_dl([(layout.name, layout.help) for layout in LAYOUTS.values()])
        super().format_epilog(ctx, formatter)


def _layout_option(declared) -> click.Option:
    """One option of the command for all layouts that declare it; `declared` is layout name -> option."""
    layouts_of: dict[str, list[str]] = {}
    for layout, option in declared.items():
        layouts_of.setdefault(option.help, []).append(layout)
    form = {"help": " ".join(f"{', '.join(layouts)}: {text}" for text, layouts in layouts_of.items())}
    if option.type is bool:
        form |= {"is_flag": True}
    elif option.type is tuple:
        form = names_parameter(help=form["help"], metavar=option.metavar)
    else:
        kind = Choice(option.choices) if option.choices else option.type
        default = str(option.default) if option.default is not None else None
        form |= {"type": kind, "metavar": option.metavar, "show_default": default}
    return click.Option([option.flag, option.name], **form)


def _show_counts(manifest) -> None:
    from kmura.cli.display import CLASSES_IN_TABLE, class_counts_table, console, records_table

    out = console()
    out.print(records_table(manifest))
    if len(manifest.classes) > CLASSES_IN_TABLE:
        out.print(class_counts_table(manifest))


@click.command(
    "build-tfrecords",
    cls=_BuildCommand,
    short_help="Turn a folder or file of images into TFRecords.",
    epilog=examples(
        "kmura build-tfrecords MURA-v1.1 --out tfrecords",
        "kmura build-tfrecords eyes --layout folders --positive-class disease",
    ),
)
@click.argument("root", type=click.Path())
@click.option("--out", default="tfrecords", type=click.Path(), help="Folder for the records.")
@click.option(
    "--encoding", default="png", type=Choice(literal_values(RecordsConfig, "encoding")), help="Encoding of the images."
)
@click.option("--quality", default=95, metavar="Q", help="Quality of JPEG, 1 to 100.")
@click.option("--max-side", default=512, metavar="PIXELS", help="Longest side; larger images are reduced to it.")
@click.option(
    "--channels", default="1", type=Choice(literal_values(RecordsConfig, "channels")), help="1 is gray, 3 is RGB."
)
@click.option("--val-fraction", default=0.1, metavar="F", help="Share of the training patients for val.")
@click.option(
    "--test-fraction", default=0.2, metavar="F", help="Share of the patients for test, if the source has no such split."
)
@seed_option("Seed of the splits and of the order of the records.")
@click.option(
    "--folds",
    type=click.IntRange(2),
    metavar="K",
    help="Assign the patients outside of test to K folds, stratified by area and label.",
)
@click.option("--strict", is_flag=True, help="Fail on an unreadable image instead of skipping and listing it.")
@click.option(
    "--overwrite", is_flag=True, help="Replace records that were built from other images or with other options."
)
@WORKERS
def build_tfrecords(
    root,
    out,
    layout,
    encoding,
    quality,
    max_side,
    channels,
    val_fraction,
    test_fraction,
    seed,
    folds,
    strict,
    overwrite,
    workers,
    **layout_options,
):
    """Turn the images of ROOT, a folder or a file, into TFRecords.

    All images of a patient go to one of the splits train, val and test. The layouts folders and medmnist state no
    patients; each image then counts as a patient of its own. The same command resumes an interrupted build.
    """
    from kmura.cli.display import notes, one_line
    from kmura.cli.progress import counting
    from kmura.records.writer import build_records

    options = RecordsConfig(
        encoding=encoding,
        quality=quality,
        max_side=max_side,
        channels=int(channels),
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        seed=seed,
    )
    with counting("images") as progress:
        manifest = build_records(
            root,
            out,
            layout=layout,
            options=options,
            folds=folds or 0,
            strict=strict,
            overwrite=overwrite,
            workers=workers,
            progress=progress,
            **layout_options,
        )
    _show_counts(manifest)
    for note in manifest.notes:
        print(one_line(note), file=sys.stderr)
    for leak in manifest.leaks or ():
        print(f"WARNING: {leak.area}: {leak.text}", file=sys.stderr)
    for skipped in manifest.skipped[:10]:
        print(f"skipped {skipped.file}: {skipped.reason}", file=sys.stderr)
    if len(manifest.skipped) > 10:
        print(f"skipped {len(manifest.skipped) - 10} more; {out}/manifest.json lists them", file=sys.stderr)
    images = sum(counts.images for splits in manifest.areas.values() for counts in splits.values())
    for note in notes(manifest.passed_over, manifest.remarks, images):
        print(f"note: {note}", file=sys.stderr)


@click.command(
    short_help="Check records for damage and for leakage between splits.",
    epilog=examples("kmura inspect tfrecords"),
)
@click.argument("records", default="tfrecords", type=click.Path())
@click.option(
    "--near-duplicates/--no-near-duplicates",
    default=True,
    help="Look for near-duplicate images in two splits, which decodes every image.",
)
def inspect(records, near_duplicates):
    """Check RECORDS for damage, wrong counts, and patients, identical or near-duplicate images in two splits.

    Exit code: 0 if there are no errors (there may be warnings and notes), 2 if there are errors.
    """
    from kmura.cli.progress import counting
    from kmura.records.verify import inspect_records

    with counting("shards") as progress:
        inspection = inspect_records(records, progress, near_duplicates=near_duplicates)
    _show_counts(inspection.manifest)
    for finding in inspection.findings:
        click.echo(f"{finding.severity}: {finding.text}")
    if not inspection.findings:
        click.echo("nothing to report: shards, indexes, counts, patients and studies agree")
    sys.exit(0 if inspection.sound else 2)


COMMANDS = (demo_data, build_tfrecords, inspect)
