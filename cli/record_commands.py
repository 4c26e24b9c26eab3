"""Commands that make and check records: demo-data, build-tfrecords, inspect."""

import sys

import click


def names(context, parameter, value: str | None) -> tuple[str, ...]:
    """A comma-separated option as a tuple."""
    if value is None:
        return ()
    found = tuple(item.strip() for item in value.split(",") if item.strip())
    if not found:
        raise click.BadParameter("is empty; give names separated by commas, or leave it out")
    return found


@click.command("demo-data")
@click.argument("out", type=click.Path())
@click.option("--areas", callback=names, help="Comma-separated; default: all seven.")
@click.option("--train-studies", default=200, show_default=True, help="Studies an area for training.")
@click.option("--test-studies", default=60, show_default=True, help="Studies an area held out.")
@click.option("--side", default=512, show_default=True, help="Longest side, pixels.")
@click.option(
    "--shortcut",
    default=0.0,
    show_default=True,
    metavar="P",
    help="Chance that a fixed marker stands on an abnormal training image (to measure shortcut learning).",
)
@click.option("--seed", default=0, show_default=True)
@click.option("--workers", type=int, help="Processes; default: one a core.")
def demo_data(out, areas, train_studies, test_studies, side, shortcut, seed, workers):
    """Make a MURA-shaped tree of synthetic radiographs in OUT."""
    from kmura.cli.display import counting
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

        choice = click.Choice(list(LAYOUTS))
        text = "How the images are stored, see Layouts."
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
        form |= {"callback": names, "metavar": option.metavar}
    else:
        kind = click.Choice(option.choices) if option.choices else option.type
        default = str(option.default) if option.default is not None else None
        form |= {"type": kind, "metavar": option.metavar, "show_default": default}
    return click.Option([option.flag, option.name], **form)


@click.command("build-tfrecords", cls=_BuildCommand)
@click.argument("root", type=click.Path())
@click.option("--out", default="tfrecords", show_default=True, type=click.Path(), help="Folder for the records.")
@click.option("--encoding", default="png", show_default=True, type=click.Choice(["png", "jpeg"]))
@click.option("--quality", default=95, show_default=True, help="Of JPEG, 1 to 100.")
@click.option("--max-side", default=512, show_default=True, help="Longest side, pixels; larger images are reduced.")
@click.option("--channels", default="1", show_default=True, type=click.Choice(["1", "3"]), help="Gray or RGB.")
@click.option("--val-fraction", default=0.1, show_default=True, help="Share of training patients for the val split.")
@click.option("--test-fraction", default=0.2, show_default=True, help="folders without splits: share held out.")
@click.option("--seed", default=0, show_default=True, help="Of splits and record order.")
@click.option("--strict", is_flag=True, help="Fail on an unreadable image instead of listing it.")
@click.option("--overwrite", is_flag=True, help="Replace records of another input or other options.")
@click.option("--workers", type=int, help="Processes; default: one a core.")
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
    strict,
    overwrite,
    workers,
    **layout_options,
):
    """Turn the images of ROOT, a folder or a file, into TFRecords.

    The same command resumes an interrupted build.
    """
    from kmura.cli.display import console, counting, records_table
    from kmura.config import RecordsConfig
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
            strict=strict,
            overwrite=overwrite,
            workers=workers,
            progress=progress,
            **layout_options,
        )
    console().print(records_table(manifest))
    for skipped in manifest.skipped[:10]:
        print(f"skipped {skipped.file}: {skipped.reason}", file=sys.stderr)
    if len(manifest.skipped) > 10:
        print(f"skipped {len(manifest.skipped) - 10} more; {out}/manifest.json lists them", file=sys.stderr)


@click.command()
@click.argument("records", default="tfrecords", type=click.Path())
def inspect(records):
    """Check RECORDS: damage, indexes, counts, patients in two splits, identical images. Exit code 2 on errors."""
    from kmura.cli.display import console, counting, records_table
    from kmura.records.verify import inspect_records

    with counting("shards") as progress:
        inspection = inspect_records(records, progress)
    console().print(records_table(inspection.manifest))
    for finding in inspection.findings:
        click.echo(f"{finding.severity}: {finding.text}")
    if not inspection.findings:
        click.echo("nothing to report: shards, indexes, counts, patients and studies agree")
    sys.exit(0 if inspection.sound else 2)


COMMANDS = (demo_data, build_tfrecords, inspect)
