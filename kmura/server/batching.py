"""Micro-batches: images of concurrent requests share the steps of a model."""

import asyncio
import collections
import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import numpy as np

from kmura.errors import InputError

Outputs = dict[str, np.ndarray]


class Batcher:
    """Collects images of concurrent requests and runs a function on batches of them, one at a time.

    An image waits until the batch is full or `wait` is over, whichever comes first; while a batch runs, the next one
    fills. If a batch fails, its images are run one by one, so that an image that the model refuses fails alone. Not
    thread-safe: all calls come from one event loop.
    """

    def __init__(
        self,
        run: Callable[[np.ndarray], Outputs],
        executor: Executor,
        *,
        size: int,
        wait: float,
        observed: Callable[[int, float], None] = lambda size, seconds: None,
    ):
        """
        Args:
            run: returns the outputs [B, ...] by name for images [B, ...]; raises InputError for images that it refuses.
            executor: where it runs.
            size: largest number of images in a batch.
            wait: seconds.
            observed: called with the number of images and the seconds of each batch.
        """
        self._run, self._executor, self._size, self._wait, self._observed = run, executor, size, wait, observed
        self._waiting: collections.deque[tuple[np.ndarray, asyncio.Future]] = collections.deque()
        self._full = asyncio.Event()
        self._task: asyncio.Task | None = None

    async def outputs(self, images: Sequence[np.ndarray]) -> list[Outputs | InputError]:
        """Returns the outputs of each image by name, or the error with which the model refused it."""
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in images]
        self._waiting.extend(zip(images, futures, strict=True))
        if len(self._waiting) >= self._size:
            self._full.set()
        if self._task is None:
            self._task = loop.create_task(self._work())
        try:
            return [await future for future in futures]
        finally:
            for future in futures:
                future.cancel()  # of a request that was given up: not worth a step; no effect on finished ones

    async def _work(self) -> None:
        try:
            while self._waiting:
                if len(self._waiting) < self._size and self._wait:
                    self._full.clear()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._full.wait(), self._wait)
                batch = []
                while self._waiting and len(batch) < self._size:
                    image, future = self._waiting.popleft()
                    if not future.done():
                        batch.append((image, future))
                if batch:
                    await self._answer(batch)
        finally:
            self._task = None

    async def _answer(self, batch: list[tuple[np.ndarray, asyncio.Future]]) -> None:
        loop = asyncio.get_running_loop()
        images = [image for image, _ in batch]
        try:
            results = await loop.run_in_executor(self._executor, self._results, images)
        except Exception as error:  # a bug or no memory: each request of the batch reports it, the next batch runs
            results = [error] * len(batch)
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception) and not isinstance(result, InputError):
                future.set_exception(RuntimeError(f"the model failed ({type(result).__name__})"))
            else:
                future.set_result(result)

    def _results(self, images: list[np.ndarray]) -> list[Outputs | InputError]:
        start = time.perf_counter()
        try:
            outputs = self._run(np.stack(images))
        except InputError as error:
            if len(images) == 1:
                return [error]
            return [self._results([image])[0] for image in images]
        self._observed(len(images), time.perf_counter() - start)
        return [{name: values[place] for name, values in outputs.items()} for place in range(len(images))]
