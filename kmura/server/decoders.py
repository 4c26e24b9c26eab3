"""Processes that decode uploaded images: a file that crashes a decoder, or that hangs, fails alone."""

import asyncio
import contextlib
import dataclasses
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from kmura.records.images import UnreadableImage
from kmura.server.decoder_process import received, send
from kmura.serving.contract import Contract
from kmura.serving.prepare import fitted

_MODULE = "kmura.server.decoder_process"
_START = 60.0  # seconds that a process may take to start


@dataclasses.dataclass(frozen=True)
class Picture:
    """A decoded image.

    Attributes:
        pixels: uint8 [h, w, C] in 0..255, reduced to `max_side` of the contract.
        ready: the model's input, uint8 [S, S, C] in 0..255.
        width, height: of the file, pixels.
        remarks: what is odd about it, in words without texts of the file.
    """

    pixels: np.ndarray
    ready: np.ndarray
    width: int
    height: int
    remarks: tuple[str, ...]


class DecoderPool:
    """Decodes images in processes of their own; a process that ends or hangs is replaced."""

    def __init__(self, *, workers: int, pixels: int, timeout: float):
        """
        Args:
            workers: number of processes.
            pixels: images that declare more are refused.
            timeout: seconds per image.
        """
        self._pixels, self._timeout = pixels, timeout
        self._executor = ThreadPoolExecutor(workers, "decode")
        self._own = threading.local()
        self._children: set[subprocess.Popen] = set()
        self._lock, self._closed = threading.Lock(), False
        self.workers = workers

    def start(self) -> None:
        """Starts the processes.

        Raises:
            RuntimeError: They cannot be started.
        """
        barrier = threading.Barrier(self.workers)
        waiting = [self._executor.submit(self._started, barrier) for _ in range(self.workers)]
        for future in waiting:
            future.result()

    async def decode(self, data: bytes | memoryview, contract: Contract, suffix: str = "") -> Picture:
        """Returns the picture in the bytes of a file.

        Args:
            data: bytes of the file.
            contract: channels and `max_side`.
            suffix: of its name; only `.dcm` and `.dicom` matter.

        Raises:
            UnreadableImage: The file cannot be decoded, the process ended, or the time is over.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._decoded, data, contract, suffix)

    def close(self) -> None:
        """Ends the processes; images that are being decoded fail."""
        with self._lock:
            self._closed = True
            children = list(self._children)
        for child in children:
            child.kill()
        self._executor.shutdown(cancel_futures=True)

    def _started(self, barrier: threading.Barrier) -> None:
        self._child()
        barrier.wait(_START)  # so that each thread starts one

    def _decoded(self, data, contract: Contract, suffix: str) -> Picture:
        child = self._child()
        alarm = threading.Timer(self._timeout, child.kill)
        alarm.daemon = True
        alarm.start()
        try:
            head = {
                "channels": contract.channels,
                "max_side": contract.max_side,
                "pixels": self._pixels,
                "suffix": suffix if suffix in (".dcm", ".dicom") else "",
            }
            send(child.stdin, head, data)
            most = contract.max_side**2 * contract.channels if contract.max_side else self._pixels * contract.channels
            reply, pixels = received(child.stdout, most)
        except (OSError, EOFError, ValueError) as error:
            self._discard(child)
            raise UnreadableImage("its decoder ended or took too long; the file is probably damaged") from error
        finally:
            alarm.cancel()
        if "error" in reply:
            raise UnreadableImage(reply["error"])
        (height, width, channels), size = reply["shape"], reply["size"]
        array = np.frombuffer(pixels, np.uint8).reshape(height, width, channels)
        return Picture(array, fitted(array, contract), *size, tuple(reply["remarks"]))

    def _child(self) -> subprocess.Popen:
        child = getattr(self._own, "child", None)
        if child is not None and child.poll() is None:
            return child
        if child is not None:
            self._discard(child)
        environment = os.environ | {
            "PYTHONSAFEPATH": "1",
            "OPENBLAS_NUM_THREADS": "1",  # each thread reserves address space, which is limited
            "OMP_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "2",
        }
        with self._lock:
            if self._closed:
                raise UnreadableImage("the server is stopping")
            child = subprocess.Popen(
                [sys.executable, "-m", _MODULE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # a terminal sends Ctrl-C to the server only
            )
            self._children.add(child)
        alarm = threading.Timer(_START, child.kill)
        alarm.daemon = True
        alarm.start()
        try:
            received(child.stdout, 0)  # it says that it is ready
        except (OSError, EOFError, ValueError) as error:
            self._discard(child)
            raise RuntimeError("a process that decodes images could not be started") from error
        finally:
            alarm.cancel()
        self._own.child = child
        return child

    def _discard(self, child: subprocess.Popen) -> None:
        child.kill()
        for stream in (child.stdin, child.stdout):
            with contextlib.suppress(OSError):  # what was not written yet
                stream.close()
        child.wait()
        with self._lock:
            self._children.discard(child)
        self._own.child = None
