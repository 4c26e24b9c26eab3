"""Export of a segmentation network: a SavedModel from slices in Hounsfield units to class numbers and probabilities.

The window of the gray values is part of the model, and so are the names of the classes. What the model does not do is
what needs the whole volume: resampling to the voxel size of training, and the mid-sagittal plane; `signature.json` says
what the slices have to be.
"""

import dataclasses
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import kmura
from kmura.errors import InputError, check_choice
from kmura.export.bundle import CARD, aside_of, published
from kmura.files import sha256_of, write_json
from kmura.models.unet import map_probabilities
from kmura.runs.run import Run, load_model
from kmura.segmentation.targets import targets_of
from kmura.serving.contract import SIGNATURE

EXPORT_VERSION = 1
LIMIT = 1e-5  # of the probabilities, compared with Keras
SIZES = ((1, 64, 64), (3, 50, 70))  # batches, rows and columns of the comparison


@dataclasses.dataclass(frozen=True)
class SliceExport:
    """Result of an export.

    Attributes:
        folder: folder of the version.
        version: number of the version.
        classes: names of the classes 0, 1, ...; 0 is the background.
        difference: largest difference of a probability from that of the Keras model, in a fresh process.
    """

    folder: Path
    version: int
    classes: tuple[str, ...]
    difference: float

    @property
    def facts(self) -> dict[str, str]:
        """What `kmura export` prints."""
        return {
            str(self.folder): f"version {self.version}, written and read back",
            "classes": ", ".join(self.classes),
            "against the model, in a fresh process": f"probability {self.difference:.1g}",
        }


class SliceModel(tf.Module):
    """The network with its window.

    The signature `serving_default` takes `slices` float32 [B, rows, columns, S] in Hounsfield units and returns
    `probabilities` float32 [B, rows, columns, K] and `classes` uint8 [B, rows, columns]. With a coordinate, the last
    channel of the slices is the distance to the mid-sagittal plane in mm, positive on the left.
    """

    def __init__(self, network: keras.Model, *, window: tuple[float, float], background: bool, coordinate: bool):
        super().__init__()
        self.network, self._window, self._background = network, window, background
        self._coordinate = coordinate
        shape = (None, None, None, network.input_shape[-1])
        self.answer = tf.function(self._answer, input_signature=[tf.TensorSpec(shape, tf.float32, name="slices")])

    def _answer(self, slices):
        low, high = self._window
        gray, rest = (slices[..., :-1], slices[..., -1:]) if self._coordinate else (slices, slices[..., :0])
        # whole gray levels, as the records have them
        gray = tf.clip_by_value(tf.round((gray - low) * (255.0 / (high - low))), 0.0, 255.0)
        logits = self.network(tf.concat([gray, rest], axis=-1), training=False)
        values = map_probabilities(logits, background=self._background)
        return {"probabilities": values, "classes": tf.cast(tf.argmax(values, axis=-1), tf.uint8)}


def export_slices(
    run: Run, out: str | os.PathLike, *, format: str = "savedmodel", threshold: str | None = None, **_
) -> SliceExport:
    """Exports the network of one plane as the next version: `OUT/1`, `OUT/2`, ...

    Args:
        run: a finished run.
        out: folder of the versions.
        format: `savedmodel`.
        threshold: not supported.

    Raises:
        InputError: the run has no best model, the format is another one, `out` cannot be written, or the export differs
            from the model.
    """
    check_choice("format", format, ("savedmodel",))
    if threshold is not None:
        raise InputError("a segmentation has no threshold; leave --threshold out")
    out, config, names = Path(out), run.config, run.labels.classes
    targets = targets_of(names, merged=config.data.sides == "merged")
    network = run.model()
    with aside_of(out) as aside:
        served = _served(network, run)
        tf.saved_model.save(served, aside, signatures={"serving_default": served.answer})
        signature = {
            "export_version": EXPORT_VERSION,
            "kind": run.kind,
            "exported": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "area": run.area,
            "phase": run.phase,
            "model_sha256": run.model_sha256(),
            "versions": run.description.versions | {"kmura": kmura.__version__},
            "input": f"slices: float32 [B, rows, columns, {network.input_shape[-1]}], HU",
            "outputs": {
                "probabilities": f"float32 [B, rows, columns, {len(targets.names) + 1}]",
                "classes": "uint8 [B, rows, columns]",
            },
            "plane": config.data.plane,
            "neighbouring_slices": config.data.slices,
            "sides": config.data.sides,
            "spacing_mm": run.description.preparation["spacing"],
            "window_hu": run.description.preparation["window"],
            "classes": ["background", *targets.names],
        }
        (aside / CARD).write_text(_card(signature, run), encoding="utf-8")
        difference = difference_in_fresh_process(aside, run)
        signature["difference"] = difference
        files = {path.relative_to(aside).as_posix(): path for path in sorted(aside.rglob("*")) if path.is_file()}
        signature["files"] = {name: sha256_of(path) for name, path in files.items()}
        write_json(aside / SIGNATURE, signature)
        version = published(aside, out)
    return SliceExport(out / str(version), version, tuple(signature["classes"]), difference)


def _served(network: keras.Model, run: Run) -> SliceModel:
    config = run.config
    return SliceModel(
        network,
        window=tuple(run.description.preparation["window"]),
        background=config.model.background,
        coordinate=config.data.sides == "coordinate",
    )


def _card(signature: dict, run: Run) -> str:
    """The model card, Markdown."""
    low, high = signature["window_hu"]
    spacing = " x ".join(f"{size:g}" for size in signature["spacing_mm"])
    lines = [
        f"# {run.area}, {run.phase}",
        "",
        f"Segmentation of {signature['plane']} slices, exported on {signature['exported']} with kmura "
        f"{kmura.__version__}. Not a medical device.",
        "",
        f"- Input: {signature['input']}; {signature['neighbouring_slices']} neighbouring slices as channels, of a "
        f"volume resampled to {spacing} mm, x to the patient's left, y to the back, z to the head.",
        f"- Window inside the model: {low:g} to {high:g} HU.",
        f"- Left and right: {signature['sides']}.",
        f"- Classes: {', '.join(signature['classes'])}.",
        f"- Trained: {run.epochs_trained()}.",
    ]
    return "\n".join(lines) + "\n"


def difference_in_fresh_process(folder: Path, run: Run) -> float:
    """Returns the largest difference of a probability of an export from its model, computed in a new process.

    Raises:
        InputError: it exceeds LIMIT, or the export cannot be read back.
    """
    paths = os.pathsep.join(path for path in sys.path if path)  # -P: the current folder is not one of them
    environment = os.environ | {"PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "3"}
    with tempfile.TemporaryDirectory() as aside:
        answer = Path(aside, "difference.json")
        command = [sys.executable, "-P", "-m", "kmura.export.slice_model", str(folder), str(run), str(answer)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        try:
            difference = json.loads(answer.read_text())["difference"]
        except (OSError, ValueError, KeyError) as error:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise InputError(f"the export cannot be read back ({last[:300]}); nothing was exported") from error
    if not difference <= LIMIT:
        raise InputError(
            f"the export differs from {run} by {difference:.2g}, allowed is {LIMIT:g}; nothing was exported"
        )
    return difference


def difference(folder: Path, run: Run) -> float:
    """Returns the largest difference of a probability of an export from its model, on random slices."""
    signature = tf.saved_model.load(folder).signatures["serving_default"]
    network, rng = load_model(run.folder.best), np.random.default_rng(0)
    low, high = run.description.preparation["window"]
    coordinate = run.config.data.sides == "coordinate"
    worst = 0.0
    for size in SIZES:
        slices = rng.uniform(low - 100, high + 100, (*size, network.input_shape[-1])).astype(np.float32)
        if coordinate:
            slices[..., -1] = rng.uniform(-80, 80, size)
        gray = np.clip(np.round((slices - np.float32(low)) * np.float32(255.0 / (high - low))), 0, 255)
        if coordinate:
            gray[..., -1] = slices[..., -1]
        logits = network(gray, training=False)
        expected = map_probabilities(logits, background=run.config.model.background).numpy()
        found = signature(slices=tf.constant(slices))["probabilities"].numpy()
        worst = max(worst, float(np.abs(found - expected).max()))
    return worst


if __name__ == "__main__":
    exported, original, target = sys.argv[1:]
    write_json(Path(target), {"difference": difference(Path(exported), Run(original))})
