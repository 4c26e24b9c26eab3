"""The `kmura` command: what the user typed -> one library function; what went wrong -> one line."""

import logging
import os
import sys
import traceback

import click

import kmura
from kmura.cli import config_command as configuration
from kmura.cli import evaluation_commands as evaluation
from kmura.cli import export_commands as export
from kmura.cli import fit_command as training
from kmura.cli import record_commands as records
from kmura.cli import weight_commands as weights
from kmura.errors import InputError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(kmura.__version__, prog_name="kmura", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show tracebacks and what TensorFlow says of itself.")
def cli(debug: bool) -> None:
    """Train, evaluate, explain and serve classifiers of radiographs."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("kmura").setLevel(logging.INFO)
    logging.getLogger("pydicom").setLevel(logging.ERROR)  # it warns of every oddity of a file that it can read
    if not debug:
        _silence_native_stderr()


ROOMS = (records, training, evaluation, export, weights, configuration)

for command in (command for room in ROOMS for command in room.COMMANDS):
    cli.add_command(command)


def main() -> None:
    """The entry point; exit codes: 0 done, 1 a bug (of predict: some files were skipped), 2 something the user can
    mend, 130 interrupted.
    """
    debug = "--debug" in sys.argv
    try:
        sys.exit(cli.main(standalone_mode=False, prog_name="kmura"))
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help())
        sys.exit(2)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "kmura"
        _fail(f"{where}: {' '.join(error.format_message().split())} ({where} --help shows what it takes)", 2)
    except (InputError, click.ClickException) as error:
        if debug:
            traceback.print_exc()
        _fail(f"kmura: {' '.join(str(error).split())}", 2)
    except (KeyboardInterrupt, click.Abort):
        _fail("kmura: interrupted; the same command goes on from what is finished", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of a pipe has gone
        sys.exit(0)
    except Exception as error:
        if debug:
            raise
        kind = type(error).__name__
        _fail(
            f"kmura: unexpected {kind}: {' '.join(str(error).split())[:300]} (kmura --debug ... shows the traceback)", 1
        )


def _fail(line: str, code: int) -> None:
    print(line, file=sys.stderr)
    sys.exit(code)


def _silence_native_stderr() -> None:
    """Keeps what C++ libraries print on stderr from the user (TensorFlow's start-up lines); Python's own still come."""
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
