"""The versions of an export that a server has loaded: loading, checking, and switching to a new one."""

import asyncio
import dataclasses
import json
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from kmura.errors import InputError, in_brief
from kmura.export.bundle import CARD
from kmura.export.golden import load_checked, versions
from kmura.server.batching import Batcher, Outputs
from kmura.server.limits import Limits
from kmura.server.telemetry import Telemetry
from kmura.serving.contract import SIGNATURE, Signature

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A version in memory.

    Attributes:
        name, version: of the model.
        folder: of the version.
        signature: content of its `signature.json`.
        definitions: signature -> its definition in the SavedModel, as JSON.
        card: the model card, Markdown.
        plain, explained: batchers of the signatures `tensor` and `explain_tensor`.
    """

    name: str
    version: int
    folder: Path
    signature: Signature
    definitions: dict[str, Any]
    card: str
    plain: Batcher
    explained: Batcher

    @property
    def contract(self):
        """Preprocessing and postprocessing of the model."""
        return self.signature.contract


class Versions:
    """A model that a server offers: the version in use, and the versions that were refused.

    Attributes:
        name: of the model.
        current: the version in use; requests keep the one that they started with.
        refused: version -> why it is not served.
    """

    def __init__(self, name: str, folder: Path, limits: Limits, executor: Executor, telemetry: Telemetry):
        """
        Args:
            name: of the model.
            folder: folder of the versions, or of a single one.
            limits, executor, telemetry: of the server.
        """
        self.name, self.folder = name, folder
        self._limits, self._executor, self._telemetry = limits, executor, telemetry
        self.current: Loaded | None = None
        self.refused: dict[int, str] = {}
        self._states: dict[int, Any] = {}  # of the files of refused versions

    @property
    def is_single(self) -> bool:
        """Whether the folder is one version, which is never replaced."""
        return (self.folder / SIGNATURE).exists()

    def load_first(self) -> None:
        """Loads the highest version that can be served; refused ones above it are logged.

        Raises:
            InputError: None can be served; the message is that of the highest.
        """
        if self.is_single:
            number = int(self.folder.name) if self.folder.name.isdigit() else 1
            self._use(self._loaded(number, self.folder))
            return
        first_error = None
        for number in reversed(versions(self.folder)):
            try:
                self._use(self._loaded(number, self.folder / str(number)))
                return
            except InputError as error:
                first_error = first_error or error
                self._refuse(number, str(error))
        raise first_error or InputError(
            f"{self.folder} is not an export of kmura; give a folder made by kmura export, or one of its versions"
        )

    async def update(self) -> bool:
        """Loads a new highest version beside the one in use and switches to it; returns whether it did.

        A version that cannot be loaded or whose outputs differ from its golden ones is refused, and tried again when
        its files change. If the version in use was deleted, the highest remaining one replaces it.
        """
        if self.is_single:
            return False
        numbers = await asyncio.to_thread(versions, self.folder)
        for number in [number for number in self.refused if number not in numbers]:
            del self.refused[number], self._states[number]
        for number in reversed(numbers):
            if self.current and number == self.current.version:
                return False
            folder = self.folder / str(number)
            if not (folder / SIGNATURE).exists():  # being copied
                continue
            state = await asyncio.to_thread(_state, folder)
            if self._states.get(number) == state:
                continue
            try:
                loaded = await asyncio.to_thread(self._loaded, number, folder)
            except InputError as error:
                self._refuse(number, str(error), state)
                continue
            self._use(loaded)
            return True
        return False

    def _use(self, loaded: Loaded) -> None:
        before, self.current = self.current, loaded
        self.refused.pop(loaded.version, None)
        self._states.pop(loaded.version, None)
        self._telemetry.version.labels(self.name).set(loaded.version)
        self._telemetry.loads.labels(self.name, "loaded").inc()
        if before:
            _log.info("%s: version %d replaces version %d", self.name, loaded.version, before.version)

    def _refuse(self, number: int, text: str, state: Any = None) -> None:
        self.refused[number], self._states[number] = text, state or _state(self.folder / str(number))
        self._telemetry.loads.labels(self.name, "refused").inc()
        kept = f"; version {self.current.version} stays in use" if self.current else ""
        _log.warning("%s: version %d is refused: %s%s", self.name, number, text, kept)

    def _loaded(self, number: int, folder: Path) -> Loaded:
        signature, signatures = load_checked(folder)
        card = folder / CARD
        batchers = {
            name: Batcher(
                partial(_outputs, signatures[name]),
                self._executor,
                size=self._limits.batch,
                wait=self._limits.wait,
                observed=self._observed,
            )
            for name in ("tensor", "explain_tensor")
        }
        return Loaded(
            self.name,
            number,
            folder,
            signature,
            _definitions(folder),
            card.read_text(encoding="utf-8") if card.is_file() else "",
            batchers["tensor"],
            batchers["explain_tensor"],
        )

    def _observed(self, size: int, seconds: float) -> None:
        self._telemetry.batch.labels(self.name).observe(size)
        self._telemetry.step.labels(self.name).observe(seconds)


def check_can_be_served(folder: Path) -> None:
    """Checks, without loading anything, that a folder is an export that can be served.

    Raises:
        InputError: It is not; the message states the reason.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give a folder made by kmura export, or one of its versions")
    if not (folder / SIGNATURE).exists() and not versions(folder):
        raise InputError(
            f"{folder} is not an export of kmura; give a folder made by kmura export, or one of its versions"
        )
    newest = folder if (folder / SIGNATURE).exists() else folder / str(versions(folder)[-1])
    if (newest / SIGNATURE).exists() and _kind(newest) == "segmentation":
        raise InputError(f"{newest} is an export of a segmentation; kmura serve serves classifiers")


def _kind(folder: Path) -> str:
    """Returns the kind of learning of an export; empty if it does not state one, as those of classifiers."""
    try:
        content = json.loads((folder / SIGNATURE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""  # loading reports the reason
    return str(content.get("kind", "")) if isinstance(content, dict) else ""


def _outputs(signature: Callable, images: np.ndarray) -> Outputs:
    try:
        outputs = signature(image=tf.constant(images, tf.float32))
    except tf.errors.InvalidArgumentError as error:
        raise InputError(in_brief(error)) from error
    return {name: value.numpy() for name, value in outputs.items()}


def _definitions(folder: Path) -> dict[str, Any]:
    """Returns the signatures in the SavedModel of a version as JSON, in the form of TensorFlow Serving's metadata."""
    from google.protobuf import json_format
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    return {
        name: json_format.MessageToDict(
            definition, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        for name, definition in model.meta_graphs[0].signature_def.items()
    }


def _state(folder: Path) -> tuple:
    """Returns what changes when a file of a version changes."""
    return tuple(
        (path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )
