"""Parallel work respects the CPU affinity, ends without tracebacks, and does not depend on the current folder."""

import os
import signal
import subprocess
import sys
import time

import pytest
from test_imports import MODULES, ROOT

from kmura import workers
from kmura.workers import in_processes, processors

SQUARES = """
import sys
from kmura.workers import in_processes
if __name__ == "__main__":
    print(sorted(in_processes(abs, [-1, -2, -3], 2)))
"""
SLEEPERS = """
import time
from kmura.workers import in_processes
if __name__ == "__main__":
    try:
        print("started", flush=True)
        list(in_processes(time.sleep, [60] * 4, 2))
    except KeyboardInterrupt:
        print("interrupted")
"""


def test_the_number_of_processors_is_that_of_the_affinity(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert processors() == 1


def test_nothing_else_counts_processors():
    counting = [path.relative_to(ROOT).as_posix() for path in MODULES if "cpu_count(" in path.read_text()]
    assert counting == ["kmura/workers.py"]


@pytest.mark.parametrize("error", [OSError(30, "Read-only file system"), ImportError("no sem_open")])
def test_one_process_does_the_work_where_others_cannot_be_started(monkeypatch, caplog, error):
    def no_pool(*arguments, **options):
        raise error

    monkeypatch.setattr(workers, "ProcessPoolExecutor", no_pool)
    assert list(in_processes(abs, [-1, -2], 2)) == [1, 2]
    assert "as with --workers 1" in caplog.text


def script_of(folder, code):
    path = folder / "script" / "script.py"
    path.parent.mkdir()
    path.write_text(code)
    return [sys.executable, path]


@pytest.mark.parametrize("module", ["socket", "pickle"])
def test_worker_processes_import_nothing_from_the_current_folder(tmp_path, module):
    (tmp_path / f"{module}.py").write_text("raise SystemExit('imported from the current folder')")
    done = subprocess.run(script_of(tmp_path, SQUARES), cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[1, 2, 3]\n", "")


@pytest.mark.parametrize("seconds", [0.1, 1.0])  # while the workers start, and while they work
def test_an_interrupt_ends_all_processes_without_a_traceback(tmp_path, seconds):
    script = script_of(tmp_path, SLEEPERS)
    pipe = subprocess.PIPE
    process = subprocess.Popen(script, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    assert process.stdout.readline() == "started\n"
    time.sleep(seconds)
    started = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=30)
    assert (out, err) == ("interrupted\n", "")
    assert time.monotonic() - started < 10
