"""The `kmura` command: arguments to one library function, errors to one line."""

import errno
import io
import logging
import os
import sys
import traceback

import click

import kmura
from kmura.cli import (
    config_command,
    evaluation_commands,
    export_commands,
    fit_command,
    pretrain_command,
    probe_command,
    record_commands,
    score_command,
    segment_commands,
    serve_command,
    weight_commands,
)
from kmura.cli.options import debug_option, examples
from kmura.errors import InputError, reason, remedy

# heading of `kmura --help` -> its commands, in the order of work
HEADINGS = {
    "Data": ("demo-data", "build-tfrecords", "inspect", "eda"),
    "Training": ("fit", "pretrain", "probe", "config"),
    "Evaluation": ("evaluate", "compare", "explain", "report", "score"),
    "Use": ("export", "predict", "serve"),
    "Volumes": ("segment build", "segment fit", "segment predict"),
    "Weights": ("weights port",),
}


class CommandGroup(click.Group):
    """The group of all commands: lists them under HEADINGS, and adds --debug to each."""

    def format_commands(self, ctx, formatter):
        width = max(len(name) for names in HEADINGS.values() for name in names)  # all headings share one column
        for heading, names in HEADINGS.items():
            commands = {name: self._find(ctx, name) for name in names}
            rows = [
                (name.ljust(width), command.get_short_help_str(100)) for name, command in commands.items() if command
            ]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)

    def _find(self, ctx, name: str) -> click.Command | None:
        """The command of a name such as `fit` or `weights port`; None if there is none."""
        command = self
        for part in name.split():
            command = command.get_command(ctx, part)
            if command is None:
                return None
        return command

    def add_command(self, command, name=None):
        super().add_command(command, name)
        command.params.append(debug_option())
        for child in getattr(command, "commands", {}).values():
            child.params.append(debug_option())


@click.group(
    cls=CommandGroup,
    params=[debug_option()],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True},
    epilog=examples(
        "kmura demo-data images && kmura build-tfrecords images --out tfrecords",
        "kmura fit --area XR_WRIST --records tfrecords",
        "kmura fit --help",
    )
    + '\n\n\b\nCompletion in bash: eval "$(_KMURA_COMPLETE=bash_source kmura)"',
)
@click.version_option(kmura.__version__, prog_name="kmura", message="%(prog)s %(version)s")
def cli() -> None:
    """Build, train, evaluate, explain and serve models of medical images."""


MODULES = (
    record_commands,
    fit_command,
    pretrain_command,
    probe_command,
    config_command,
    evaluation_commands,
    score_command,
    export_commands,
    serve_command,
    segment_commands,
    weight_commands,
)

for command in (command for module in MODULES for command in module.COMMANDS):
    cli.add_command(command)


# errors of files that are not a bug of kmura, wherever they occur
OF_THE_SYSTEM = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENAMETOOLONG, errno.EIO, errno.EMFILE}


def main() -> None:
    """The entry point.

    Exit codes: 0 success; 1 a bug (for `predict`: some files were skipped); 2 an error that the user can fix;
    130 interrupted.
    """
    debug = "--debug" in sys.argv[1:]
    _show_every_character()
    _set_up_messages(debug)
    try:
        sys.exit(cli.main(standalone_mode=False, prog_name="kmura"))
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help())
        sys.exit(2)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "kmura"
        _fail(f"{command}: {_in_one_line(error.format_message())} (see {command} --help)", 2)
    except (InputError, click.ClickException) as error:
        if debug:
            traceback.print_exc()
        _fail(f"kmura: {_in_one_line(str(error))}", 2)
    except (KeyboardInterrupt, click.Abort):
        _fail("kmura: interrupted; run the same command again to continue from what is finished", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of the pipe has closed it
        sys.exit(0)
    except Exception as error:
        if debug:
            raise
        if isinstance(error, OSError) and error.errno in OF_THE_SYSTEM:
            place = error.filename or "a file"
            text = f"{place} cannot be used: {reason(error)}; {remedy(error, 'choose another path')}"
            _fail(f"kmura: {_in_one_line(str(text))}", 2)
        kind = type(error).__name__
        _fail(f"kmura: unexpected {kind}: {_in_one_line(str(error))[:300]} (--debug shows the traceback)", 1)


def _in_one_line(text: str) -> str:
    return " ".join(text.split())


def _fail(line: str, code: int) -> None:
    print(line, file=sys.stderr)
    sys.exit(code)


def _show_every_character() -> None:
    """Lets stdout and stderr show characters that their encoding lacks (an ASCII terminal) as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None if the caller closed it
            stream.reconfigure(errors="backslashreplace")


def _set_up_messages(debug: bool) -> None:
    """Prints kmura's log messages on stderr; without `debug`, no messages of other libraries."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("kmura").setLevel(logging.INFO)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns about its cache where HOME is read-only
    if not debug:
        _silence_native_stderr()


def _silence_native_stderr() -> None:
    """Hides what C++ libraries print on stderr (TensorFlow's start-up messages); Python's own output still appears."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if sys.stderr is None:  # the caller closed it
        return
    sys.stderr.flush()
    visible = os.fdopen(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr:
            handler.setStream(visible)
    sys.stderr = visible
