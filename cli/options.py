"""Options that several commands share, and the parameter types of their values.

Nothing here imports TensorFlow or numpy, so that help, completion and usage errors appear at once.
"""

import csv
import difflib
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from kmura.config import ClassificationConfig, recipe_names

LIST_HELP = "Comma-separated; may be repeated."


class Choice(click.Choice):
    """click's Choice, whose error message also suggests the nearest choice."""

    def convert(self, value, param, ctx):
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            raise click.BadParameter(error.message.rstrip(".") + nearest(value, self.choices), ctx, param) from None


class Names(click.ParamType):
    """A comma-separated list as a tuple of texts; a name that contains a comma is put in double quotes, as in CSV."""

    name = "names"

    def __init__(self, choices: Sequence[str] = ()):
        """
        Args:
            choices: the names that are allowed; empty allows every name.
        """
        self.choices = tuple(choices)

    def convert(self, value, param, ctx) -> tuple[str, ...]:
        if isinstance(value, tuple):  # a default that was converted already
            return value
        try:
            (row,) = csv.reader([value], skipinitialspace=True, strict=True)
        except (csv.Error, ValueError) as error:
            self.fail(f"{value!r} cannot be split at its commas ({error}); close every double quote", param, ctx)
        names = tuple(name.strip() for name in row if name.strip())
        if not names:
            self.fail("is empty; give names separated by commas, or leave it out", param, ctx)
        for name in names:
            if self.choices and name not in self.choices:
                self.fail(
                    f"{name!r} is not one of {', '.join(map(repr, self.choices))}{nearest(name, self.choices)}",
                    param,
                    ctx,
                )
        return names

    def shell_complete(self, ctx, param, incomplete):
        before, comma, last = incomplete.rpartition(",")
        return [CompletionItem(before + comma + name) for name in self.choices if name.startswith(last)]


class Recipe(click.ParamType):
    """The name of a shipped recipe or the path of a TOML file."""

    name = "recipe"

    def __init__(self, *bundles: type):
        """
        Args:
            bundles: whose recipes are allowed; none means those of classification.
        """
        self.bundles = bundles or (ClassificationConfig,)

    @property
    def names(self) -> list[str]:
        """The names of the shipped recipes."""
        return [name for bundle in self.bundles for name in recipe_names(bundle)]

    def convert(self, value, param, ctx) -> str:
        names = self.names
        if value in names or Path(value).is_file():
            return value
        self.fail(
            f"{value!r} is neither a file nor a shipped recipe; recipes: {', '.join(names)}{nearest(value, names)}",
            param,
            ctx,
        )

    def shell_complete(self, ctx, param, incomplete):
        names = [CompletionItem(name) for name in self.names if name.startswith(incomplete)]
        return names or [CompletionItem(incomplete, type="file")]


def names_option(*flags: str, choices: Sequence[str] = (), help: str, **options) -> Callable:
    """An option that takes several values, comma-separated, repeated or both; the command receives a tuple.

    Args:
        *flags: as `click.option` takes them.
        choices: the values that are allowed; empty allows every value.
        help: what the values are; how a list is given is added to it.
        **options: of `click.option`.
    """
    return click.option(*flags, **names_parameter(choices=choices, help=help, **options))


def names_parameter(*, choices: Sequence[str] = (), help: str, **options) -> dict:
    """What makes a `click.Option` one of `names_option`; arguments as there."""
    if choices:
        options.setdefault("metavar", f"[{'|'.join(choices)}],...")
    return {
        "multiple": True,
        "type": Names(choices),
        "callback": lambda ctx, param, values: tuple(name for names in values for name in names),
        "help": f"{help} {LIST_HELP}",
        **options,
    }


def setting_option(
    flag: str, key: str, choices: Sequence[str] | None = None, bundle: type = ClassificationConfig, **options
) -> Callable:
    """A short flag for a key of the configuration; None where it is not given.

    Args:
        flag: such as `--epochs`.
        key: such as `train.epochs`; a Literal type becomes choices.
        choices: the values that are allowed, where the key's type does not list them.
        bundle: the configuration that has the key.
        **options: of `click.option`.
    """
    stage, _, name = key.partition(".")
    config = typing.get_type_hints(bundle)[stage]
    choices = choices or literal_values(config, name)
    options.setdefault("type", Choice(choices) if choices else typing.get_type_hints(config)[name])
    return click.option(flag, default=None, show_default="recipe", **options)


def short_flags(flags: Mapping[str, tuple], bundle: type, **options: dict) -> Callable:
    """A decorator that adds short flags of configuration keys to a command, in their order.

    Args:
        flags: flag -> (key, help, choices where the key's type does not list them).
        bundle: the configuration that has the keys.
        **options: name of a flag, such as `backbone` -> further options of `click.option`.
    """

    def decorated(command: Callable) -> Callable:
        for flag, (key, text, choices) in reversed(flags.items()):
            own = options.get(flag.removeprefix("--"), {})
            command = setting_option(flag, key, choices, bundle, help=text, **own)(command)
        return command

    return decorated


def given_settings(flags: Mapping[str, tuple], values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that short flags give, key -> value.

    Args:
        flags: as for `short_flags`.
        values: parameter name of a flag -> its value; None if it is not given.
    """
    keys = {flag[2:].replace("-", "_"): key for flag, (key, *_) in flags.items()}
    return {keys[name]: value for name, value in values.items() if value is not None}


def literal_values(config: type, name: str) -> tuple[str, ...]:
    """The values that a field of a configuration dataclass allows, as texts; empty if its type is not a Literal."""
    hint = typing.get_type_hints(config)[name]
    return tuple(map(str, typing.get_args(hint))) if typing.get_origin(hint) is typing.Literal else ()


def examples(*lines: str) -> str:
    """The epilog of a command's help: example command lines, not rewrapped."""
    return "\b\n" + "\n".join(("Example:" if len(lines) == 1 else "Examples:", *(f"  {line}" for line in lines)))


def nearest(value: str, choices: Iterable[str]) -> str:
    """The end of an error message that suggests the nearest choice; "" if none is near."""
    if {"val", "test"} <= set(choices) and value in ("tune", "valid"):
        return "; the split tune is now val, and valid is now test"
    matches = difflib.get_close_matches(str(value), list(choices), n=1)
    return f"; did you mean {matches[0]}?" if matches else ""


def debug_option() -> click.Option:
    """The option `--debug`, which every command accepts; `kmura.cli.main.main` acts on it."""
    return click.Option(
        ["--debug"], is_flag=True, expose_value=False, help="Show tracebacks and TensorFlow's messages."
    )


RECORDS_OF_RUN = click.option(
    "--records", type=click.Path(), help="Folder of the records, if it has moved since the training."
)
POOLING = click.option(
    "--pooling",
    type=Choice(["mean", "max", "noisy-or", "top-k"]),
    default="mean",
    help="How the probabilities of a study's images are combined.",
)
TOP_K = click.option(
    "--top-k", type=click.IntRange(1), default=2, metavar="K", help="Number of images for --pooling top-k."
)
SPLIT = click.option("--split", type=Choice(["test", "val"]), default="test", help="The split to use.")
WORKERS = click.option(
    "--workers", type=click.IntRange(1), show_default="one per core", help="Processes that work in parallel."
)


def seed_option(help: str) -> Callable:
    """The option `--seed` of random numbers; `help` says of which."""
    return click.option("--seed", type=click.IntRange(0), default=0, help=help)


def resamples_option(help: str = "Bootstrap resamples of patients.") -> Callable:
    """The option `--resamples` of confidence intervals."""
    return click.option("--resamples", type=click.IntRange(1), default=2000, help=help)


def calibration_options(split: str) -> Callable:
    """A decorator that adds `--calibration`, `--calibrate-at` and `--threshold`; `split`: what they are fitted on."""
    options = (
        click.option(
            "--calibration",
            type=Choice(["platt", "temperature", "isotonic", "none"]),
            default="platt",
            help=f"How probabilities are calibrated on {split}; scores are given before and after.",
        ),
        click.option(
            "--calibrate-at",
            type=Choice(["image", "study"]),
            default="study",
            help="Level at which the calibration is fitted.",
        ),
        names_option(
            "--threshold",
            "rules",
            metavar="RULE,...",
            show_default="0.5, max_f1, youden, sensitivity>=0.9, specificity>=0.9",
            help=f"How thresholds are chosen on {split}: a number, max_f1, youden, sensitivity>=X or specificity>=X.",
        ),
    )

    def decorated(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return decorated


BY = names_option(
    "--by",
    metavar="RULE,...",
    help="Also score subgroups: by the values of a column, such as sex, or by a condition, such as age>=18.",
)
