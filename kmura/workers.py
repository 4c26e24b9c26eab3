"""Parallel work: the processors that this process may use, and results computed by worker processes."""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

log = logging.getLogger(__name__)


def processors() -> int:
    """The number of processors that this process may use; its CPU affinity may exclude some of the machine's."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def in_processes(
    work: Callable[[Any], Any], items: Sequence[Any], workers: int, *, in_order: bool = False
) -> Iterator[Any]:
    """The results of `work` for every item, computed by worker processes.

    The processes import nothing from the current folder. They end with this process, and at once when it is
    interrupted. Where processes cannot be started (a container without /dev/shm), this process does the work.

    Args:
        work: a function that can be pickled.
        items: its arguments.
        workers: number of processes; 1 works in this process.
        in_order: yield the results in the order of the items; otherwise as they are completed.

    Raises:
        concurrent.futures.process.BrokenProcessPool: a process was killed.
        Exception: raised by `work`.
    """
    workers = min(workers, len(items))
    pool = _pool(workers) if workers > 1 else None
    if pool is None:
        yield from map(work, items)
        return
    others = set(multiprocessing.active_children())
    try:
        with _starting_workers():
            futures = [pool.submit(work, item) for item in items]
        ordered: Iterable = futures if in_order else as_completed(futures)
        for future in ordered:
            yield future.result()
    except Exception:
        raise
    except BaseException:  # interrupted, or the caller needs no more results
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _pool(workers: int) -> ProcessPoolExecutor | None:
    """A pool of processes; None, with a warning, where the system does not support them."""
    # spawn: a parent that uses TensorFlow has threads, and a forked child of such a process can lock up
    context = multiprocessing.get_context("spawn")
    try:
        with _starting_workers():  # multiprocessing's resource tracker starts here
            return ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with_parent)
    except (OSError, ImportError, NotImplementedError) as error:  # semaphores need a writable /dev/shm
        text = " ".join(str(error).split())
        log.warning("worker processes cannot be started (%s); continuing with one process, as with --workers 1", text)
        return None


@contextlib.contextmanager
def _starting_workers() -> Iterator[None]:
    """Processes that start within the block ignore Ctrl-C and do not import from the current folder.

    A terminal sends Ctrl-C to all processes; only the parent answers it, otherwise each worker prints a traceback. The
    parent itself receives it at the end of the block.
    """
    safe, masked = os.environ.get("PYTHONSAFEPATH"), hasattr(signal, "pthread_sigmask")  # not on Windows
    os.environ["PYTHONSAFEPATH"] = "1"
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if masked else set()
    try:
        yield
    finally:
        if safe is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = safe
        if masked:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _die_with_parent() -> None:
    """Ends this worker process as soon as its parent is gone, so that a killed build leaves no process behind."""
    parent = multiprocessing.parent_process()

    def watch():
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
