"""Runs the command line in the current process."""

import sys

import pytest


def kmura_main(monkeypatch, capsys, *arguments):
    """Returns exit code, stdout and stderr of `kmura ARGUMENTS`."""
    from kmura.cli.main import main

    monkeypatch.setattr(sys, "argv", ["kmura", "--debug", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0, *capsys.readouterr()
