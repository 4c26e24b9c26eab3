"""The command that shows the configuration: config."""

import sys

import click

from kmura.cli.options import Recipe, examples
from kmura.config import ClassificationConfig, PretrainingConfig, SegmentationConfig, recipe_names
from kmura.config.names import PHASE_NAMES

KINDS = {
    "classification": ClassificationConfig,
    "pretraining": PretrainingConfig,
    "segmentation": SegmentationConfig,
}


@click.command(
    epilog=examples(
        "kmura config final --only cam",
        "kmura config --phase final --area XR_WRIST",
        "kmura config baseline --set train.epochs=20 --format toml > mine.toml",
    ),
)
@click.argument("recipe", required=False, shell_complete=Recipe(*KINDS.values()).shell_complete)
@click.option(
    "--kind",
    type=click.Choice(KINDS),
    show_default="that of RECIPE, else classification",
    help="Whose keys: those of kmura fit, kmura pretrain or kmura segment fit.",
)
@click.option("--phase", type=click.Choice(PHASE_NAMES), help="Use the recipe of this phase, unless RECIPE is given.")
@click.option(
    "--area", metavar="AREA", help="With --phase: also apply the tuned values of this area, as kmura fit does."
)
@click.option(
    "--runs", default="runs", show_default=True, type=click.Path(), help="With --area: folder of the runs and searches."
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set a key; may be repeated.")
@click.option("--only", metavar="PREFIX", help="Only keys that begin with PREFIX, such as train.focal.")
@click.option(
    "--format",
    "form",
    default="table",
    show_default=True,
    type=click.Choice(["table", "toml", "markdown"]),
    help="toml: a commented recipe for --recipe. markdown: the page docs/configuration.md.",
)
def config(recipe, kind, phase, area, runs, settings, only, form):
    """Print every configuration key with its type, value, default, allowed values and meaning.

    RECIPE is the name of a shipped recipe or a TOML file; without it and without --phase the values are the defaults.
    Values that differ from the default are marked with *.
    """
    if area and not phase:
        raise click.UsageError("--area requires --phase, which says whose tuned values to apply")
    if form == "markdown":
        if recipe or kind or phase or settings or only:
            raise click.UsageError(
                "--format markdown is the page of all keys; give no RECIPE, --kind, --phase, --set or --only"
            )
        from kmura.config.reference import as_markdown

        click.echo(as_markdown(), nl=False)
        return

    bundle = KINDS[kind or _kind_of(recipe)]
    if phase and bundle is not ClassificationConfig:
        raise click.UsageError("--phase is for the kind classification; leave it out")

    from kmura.config.reference import as_text, as_toml, chosen_keys

    keys = chosen_keys(bundle, only)
    values, source = _configuration(recipe, bundle, phase, area, runs, settings)
    if source:
        click.echo(source, err=True)
    if form == "toml":
        click.echo(as_toml(values, keys, f"Written by: {_command_line()}"), nl=False)
    elif sys.stdout.isatty():
        _show_tables(values, keys)
    else:
        click.echo(as_text(values, keys), nl=False)


def _kind_of(recipe: str | None) -> str:
    """The kind that has a shipped recipe of this name; classification if none has."""
    return next((kind for kind, bundle in KINDS.items() if recipe in recipe_names(bundle)), "classification")


def _configuration(recipe, bundle, phase, area, runs, settings):
    """The configuration that the options describe, and where its tuned values come from, or ""."""
    from kmura.config import load_config

    if phase is None:
        return load_config(recipe, settings, bundle), ""

    from kmura.classification.phases import SEARCHES, phase_config

    if area is None and phase in SEARCHES:  # without an area there are no tuned values
        return load_config(recipe or phase, settings), ""
    return phase_config(phase, area, runs, recipe, settings)


def _command_line() -> str:
    import shlex

    return shlex.join(["kmura", *sys.argv[1:]])


def _show_tables(values, keys) -> None:
    """One table per stage on a terminal."""
    import itertools

    from rich import box
    from rich.table import Table
    from rich.text import Text

    from kmura.cli.display import console
    from kmura.config.reference import CHANGED, facts, value_of, value_text

    for stage, group in itertools.groupby(keys, lambda key: key.stage):
        table = Table(title=stage, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        table.add_column("key", no_wrap=True)
        table.add_column("value", overflow="fold", max_width=24)
        table.add_column("meaning", ratio=1)
        for key in group:
            value = value_of(values, key)
            changed = value != key.default
            text = Text(value_text(value) + (f" {CHANGED}" if changed else ""), style="bold" if changed else "")
            table.add_row(key.name, text, Text.assemble(key.meaning, "\n", (facts(key), "dim")))
        console().print(table)


COMMANDS = (config,)
