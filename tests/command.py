"""The command line in this process."""

import sys

import pytest


def kmura_main(monkeypatch, capsys, *arguments):
    """Exit code, stdout and stderr of `kmura ARGUMENTS`; a bug of kmura fails the test with its line."""
    from kmura.cli import main

    monkeypatch.setattr(sys, "argv", ["kmura", *map(str, arguments)])
    # it would take stderr from pytest, for the sake of messages that TensorFlow printed when it was imported
    monkeypatch.setattr(main, "_silence_native_stderr", lambda: None)
    with pytest.raises(SystemExit) as ended:
        main.main()
    out, err = capsys.readouterr()
    assert "kmura: unexpected" not in err, err
    return ended.value.code or 0, out, err
