"""A few inputs of an export with their answers, by which another installation can be checked: `golden.npz`."""

import dataclasses
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from kmura.errors import InputError, in_brief
from kmura.files import sha256_of
from kmura.phantoms.radiographs import AREAS, render_view
from kmura.serving.contract import SIGNATURE, Contract, read_signature
from kmura.serving.prepare import prepared
from kmura.serving.signatures import SIGNATURES

GOLDEN = "golden.npz"
TOLERANCE = 1e-4  # what other processors and versions of TensorFlow may differ by, on the scale of `difference`
MAP_TOLERANCE = 1e-2  # of maps, by their maximum: Grad-CAM++ divides small numbers
# signature -> how many of the images
_ASKED = {"serving_default": 5, "tensor": 2, "explain": 2, "explain_tensor": 2, "study": 3}


@dataclasses.dataclass(frozen=True)
class Check:
    """How an export answers here.

    Attributes:
        folder: of the version.
        differences: signature -> largest difference from the golden answers, see `difference`.
        problems: what is wrong, a sentence each; empty if all is equal.
    """

    folder: Path
    differences: dict[str, float]
    problems: tuple[str, ...]


class _Signatures(dict):
    """Signature -> function; holds the model that they belong to."""

    model = None


def golden_requests(contract: Contract, area: str) -> dict[str, np.ndarray]:
    """Signature -> its input: five phantoms, none of a patient, of all the kinds of files that are read.

    Gray PNG, gray JPEG, PNG of 12 bits in 16, RGB PNG, and a PNG larger than the records' longest side.
    """
    area = area if area in AREAS else AREAS[0]
    sides = (256, 320, 200, 256, contract.max_side * 5 // 4)
    pixels = [render_view(area, seed=7, study=study, side=side).pixels for study, side in enumerate(sides)]
    tinted = np.stack([pixels[3], pixels[3] // 2, 255 - pixels[3]], axis=-1)
    pictures = [
        (pixels[0], "PNG"),
        (pixels[1], "JPEG"),
        (pixels[2].astype(np.uint16) * 16, "PNG"),
        (tinted, "PNG"),
        (pixels[4], "PNG"),
    ]
    images = [_encoded(picture, kind) for picture, kind in pictures]
    ready = np.stack([prepared(data, contract) for data in images]).astype(np.float32)
    found = {}
    for name, count in _ASKED.items():
        encoded = SIGNATURES[name][0] == "image_bytes"
        found[name] = np.array(images[:count], dtype=object) if encoded else ready[:count]
    return found


def write_golden(folder: Path, requests: Mapping[str, np.ndarray], signatures: Mapping[str, Callable]) -> None:
    """Writes requests and the answers of these signatures to them into `folder`."""
    arrays = {}
    for name, value in requests.items():
        for place, item in enumerate(value):
            arrays[f"{name}/in/{place}"] = np.frombuffer(item, np.uint8) if isinstance(item, bytes) else item
        answers = signatures[name](**{SIGNATURES[name][0]: tf.constant(value)})
        arrays |= {f"{name}/out/{output}": _plain(answer.numpy()) for output, answer in answers.items()}
    np.savez_compressed(folder / GOLDEN, **arrays)


def read_golden(folder: Path) -> tuple[dict[str, tf.Tensor], dict[str, dict[str, np.ndarray]]]:
    """Requests and answers in `golden.npz`, each by signature.

    Raises:
        InputError: missing or damaged.
    """
    requests, answers = {}, {}
    try:
        with np.load(folder / GOLDEN) as arrays:
            for key in arrays.files:
                name, kind, last = key.split("/")
                if kind == "out":
                    answers.setdefault(name, {})[last] = arrays[key]
                else:
                    requests.setdefault(name, {})[int(last)] = arrays[key]
    except Exception as error:  # a damaged archive raises whatever zip and numpy make of it
        raise InputError(f"{folder / GOLDEN} is missing or damaged ({error}); copy or make the export again") from error
    in_order = {name: [items[place] for place in sorted(items)] for name, items in requests.items()}
    return {
        name: tf.constant([item.tobytes() for item in items] if items[0].dtype == np.uint8 else np.stack(items))
        for name, items in in_order.items()
    }, answers


def check_export(folder: str | os.PathLike) -> Check:
    """Whether an export still is what was made, and answers here as there.

    Compares every file with its checksum, then the answers of all signatures with the golden ones.

    Args:
        folder: an export or one version of it.

    Raises:
        InputError: no export, or one without a SavedModel.
    """
    folder = version_folder(folder)
    signature = read_signature(folder)
    problems = []
    for name, digest in signature.files.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{path} is missing; copy the export again")
        elif sha256_of(path) != digest:
            problems.append(f"{path} has changed since the export; copy it again")
    if signature.format != "savedmodel":
        return Check(folder, {}, tuple(problems))
    try:
        signatures = load_signatures(folder)
        differences = answer_differences(folder, signatures, signature.contract)
    except InputError as error:
        return Check(folder, {}, (*problems, str(error)))
    for name, (largest, limit) in differences.items():
        if not largest <= limit:
            problems.append(f"{folder}, signature {name} answers {largest:.2g} away from the export, allowed {limit:g}")
    return Check(folder, {name: largest for name, (largest, _) in differences.items()}, tuple(problems))


def answer_differences(
    folder: Path, signatures: Mapping[str, Callable], contract: Contract
) -> dict[str, tuple[float, float]]:
    """Signature -> the largest difference of an output from the golden one, and what is allowed."""
    requests, answers = read_golden(folder)
    found = {}
    for name, golden in answers.items():
        here = {key: _plain(value.numpy()) for key, value in _asked(signatures, name, requests[name]).items()}
        each = [(difference(key, here, golden, contract), _limit(key)) for key in golden]
        found[name] = max(each, key=lambda pair: pair[0] / pair[1])
    return found


def difference(
    output: str, here: Mapping[str, np.ndarray], there: Mapping[str, np.ndarray], contract: Contract
) -> float:
    """How far an output is from that of another place; infinite if texts or shapes are not equal.

    Logits by the larger of 1 and their size, maps by their maximum; a decision counts where its probability is farther
    from that of another one than rounding.
    """
    if output not in here or here[output].shape != there[output].shape:
        return np.inf
    one, other = here[output], there[output]
    if one.dtype.kind == "U":
        near = output == "decision" and contract.undecided(there["probability"], TOLERANCE)
        return np.inf if ((one != other) & ~np.asarray(near)).any() else 0.0
    scale = np.abs(other).max(initial=0.0)
    return float(np.abs(one - other).max(initial=0.0) / (max(scale, 1e-12) if output == "cam" else max(scale, 1.0)))


def load_signatures(folder: Path) -> dict[str, Callable]:
    """The signatures of an export's SavedModel.

    Raises:
        InputError: it cannot be loaded, or lacks one.
    """
    try:
        loaded = tf.saved_model.load(str(folder))
        signatures = _Signatures(loaded.signatures)
        signatures.model = loaded  # variables live as long as this does
    except Exception as error:  # damaged files raise whatever the loader meets
        what = f"{type(error).__name__}: {in_brief(error)}"
        raise InputError(f"{folder} cannot be loaded ({what}); export the run again") from error
    missing = [name for name in SIGNATURES if name not in signatures]
    if missing:
        raise InputError(f"{folder} has no signature {missing[0]}; export the run again with this kmura")
    return signatures


def versions(out: Path) -> list[int]:
    """The version numbers of the exports in a folder, ascending."""
    if not out.is_dir():
        return []
    return sorted(int(entry.name) for entry in out.iterdir() if entry.name.isdigit() and entry.is_dir())


def version_folder(folder: str | os.PathLike) -> Path:
    """The folder itself if it is one version, else that of its highest version, which a server takes too.

    Raises:
        InputError: neither.
    """
    folder = Path(folder)
    if (folder / SIGNATURE).exists():
        return folder
    found = versions(folder)
    if not found:
        raise InputError(
            f"{folder} is no export of kmura; give a folder that kmura export made, or one of its versions"
        )
    return folder / str(found[-1])


def _asked(signatures, name, value):
    try:
        return signatures[name](**{SIGNATURES[name][0]: value})
    except (tf.errors.OpError, TypeError, ValueError) as error:
        raise InputError(
            f"signature {name} refuses its golden request ({in_brief(error)}); copy or make the export again"
        ) from error


def _limit(output: str) -> float:
    return MAP_TOLERANCE if output == "cam" else TOLERANCE


def _encoded(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def _plain(values: np.ndarray) -> np.ndarray:
    """Strings as text; npz keeps no objects."""
    return np.strings.decode(values.astype(bytes), "utf-8") if values.dtype == object else values
