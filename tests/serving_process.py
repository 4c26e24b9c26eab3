"""`kmura serve` as a process of its own."""

import contextlib
import os
import re
import signal
import subprocess
import sys

COMMAND = "from kmura.cli.main import main; main()"


@contextlib.contextmanager
def serving(*arguments, log=None):
    """Yields the process and the URL of a server on a free port; the process is ended after the block.

    Args:
        *arguments: of `kmura serve`.
        log: file for stderr.
    """
    command = [sys.executable, "-c", COMMAND, "serve", *map(str, arguments), "--port", "0"]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1"}
    with open(log or os.devnull, "w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
    try:
        url = None
        for line in process.stdout:
            if match := re.match(r"serving at (\S+)", line):
                url = match[1]
                break
        assert url, f"the server ended with {process.wait()}"
        yield process, url
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
