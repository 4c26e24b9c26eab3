"""The work of a server that does not depend on HTTP: admitting, decoding and predicting images."""

import asyncio
import contextlib
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kmura.errors import InputError
from kmura.records.images import UnreadableImage
from kmura.server.batching import Outputs
from kmura.server.decoders import DecoderPool, Picture
from kmura.server.limits import Limits, Overloaded
from kmura.server.served_versions import Loaded, Versions
from kmura.server.telemetry import Telemetry

_LONGEST_RETRY = 60  # seconds


class Engine:
    """The models of a server and what they share.

    Attributes:
        limits, telemetry: of the server.
        models: name -> versions.
        stopping: whether the server was asked to stop.
    """

    def __init__(self, exports: dict[str, Path], limits: Limits):
        """
        Args:
            exports: name of the model -> folder of the export.
            limits: of the server.
        """
        self.limits, self.telemetry, self.stopping = limits, Telemetry(), False
        self._steps = ThreadPoolExecutor(1, "model")  # a step of a model uses all cores
        self._parsing = ThreadPoolExecutor(1, "parse")
        self._decoders = DecoderPool(workers=limits.decoders, pixels=limits.pixels, timeout=limits.timeout)
        self.models = {
            name: Versions(name, folder, limits, self._steps, self.telemetry) for name, folder in exports.items()
        }
        self._admitted, self._held, self._pace = 0, 0, 0.1  # images, bytes, seconds per image

    def start(self) -> None:
        """Loads the models and starts the decoders.

        Raises:
            InputError: A model has no version that can be served.
        """
        for versions in self.models.values():
            versions.load_first()
        try:
            self._decoders.start()
        except RuntimeError as error:
            raise InputError(f"{error}; check the limits of processes and memory") from error

    def close(self) -> None:
        """Ends the decoders and threads."""
        self.stopping = True
        self._decoders.close()
        self._steps.shutdown(cancel_futures=True)
        self._parsing.shutdown(cancel_futures=True)

    async def parsed(self, function, *arguments):
        """Returns the result of a function of a request's body, computed aside so that other requests go on."""
        return await asyncio.get_running_loop().run_in_executor(self._parsing, function, *arguments)

    @contextlib.contextmanager
    def images(self, number: int) -> Iterator[None]:
        """Admits `number` images to the server during the block.

        Raises:
            Overloaded: The queue is full.
        """
        if self._admitted + number > self.limits.queue:
            self.telemetry.refused.labels("queue").inc()
            wait = max(1, min(_LONGEST_RETRY, math.ceil(self._admitted * self._pace)))
            raise Overloaded(f"{self._admitted} images are waiting, at most {self.limits.queue} may", wait)
        self._admitted += number
        self.telemetry.queue.set(self._admitted)
        start = asyncio.get_running_loop().time()
        try:
            yield
        finally:
            seconds = (asyncio.get_running_loop().time() - start) / max(self._admitted, 1)
            self._pace += 0.1 * (seconds - self._pace)
            self._admitted -= number
            self.telemetry.queue.set(self._admitted)

    def hold(self, size: int) -> None:
        """Counts bytes of a request body that are in memory; negative when they are freed.

        Raises:
            Overloaded: The bodies of all requests are too large together.
        """
        if size > 0 and self._held + size > self.limits.held:
            self.telemetry.refused.labels("memory").inc()
            raise Overloaded("other uploads use the memory for uploads", 1)
        self._held += size
        self.telemetry.held.set(self._held)

    async def pictures(
        self, model: Loaded, files: Sequence[bytes | memoryview], suffixes: Sequence[str] = ()
    ) -> list[Picture | UnreadableImage]:
        """Returns the decoded files, or the error of each that cannot be decoded."""
        suffixes = suffixes or [""] * len(files)
        results = await asyncio.gather(
            *(
                self._decoders.decode(data, model.contract, suffix)
                for data, suffix in zip(files, suffixes, strict=True)
            ),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, UnreadableImage):
                raise result
        failed = sum(isinstance(result, UnreadableImage) for result in results)
        self.telemetry.images.labels(model.name, "unreadable").inc(failed)
        self.telemetry.images.labels(model.name, "decoded").inc(len(results) - failed)
        return results

    async def outputs(
        self, model: Loaded, images: Sequence[np.ndarray], *, explained: bool = False
    ) -> list[Outputs | InputError]:
        """Returns the outputs of the model for each image, or the error with which the model refuses it.

        Args:
            model: the version.
            images: [S, S, C] each, in 0..255.
            explained: whether to add the map `cam`.
        """
        return await (model.explained if explained else model.plain).outputs(images)
