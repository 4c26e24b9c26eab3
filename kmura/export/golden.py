"""Reference requests and outputs of an export, to verify it in another installation: `golden.npz`."""

import contextlib
import dataclasses
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from kmura.errors import InputError, in_brief, reason
from kmura.files import sha256_of
from kmura.phantoms.radiographs import AREAS, render_view
from kmura.serving.contract import SIGNATURE, Contract, Signature, read_signature
from kmura.serving.prepare import prepared
from kmura.serving.signatures import SIGNATURES

GOLDEN = "golden.npz"
TOLERANCE = 1e-4  # tolerance for other processors and TensorFlow versions, see `difference`
MAP_TOLERANCE = 1e-2  # for maps, relative to their maximum: Grad-CAM++ divides by small numbers
# signature -> number of images in its request
_ASKED = {"serving_default": 5, "tensor": 2, "explain": 2, "explain_tensor": 2, "study": 3}


@dataclasses.dataclass(frozen=True)
class Check:
    """Result of the verification of an export.

    Attributes:
        folder: folder of the version.
        differences: signature -> largest difference from the golden outputs, see `difference`.
        problems: messages of failed checks; empty if all checks pass.
    """

    folder: Path
    differences: dict[str, float]
    problems: tuple[str, ...]


class _Signatures(dict):
    """Signature -> function; keeps a reference to the loaded model."""

    model = None


def golden_requests(contract: Contract, area: str) -> dict[str, np.ndarray]:
    """Returns the golden request of each signature: five phantom images, no patient data, in various file formats.

    The formats are gray PNG, gray JPEG, PNG with 12 of 16 bits, RGB PNG, and a PNG larger than the longest side of the
    records.
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
    requests = {}
    for name, count in _ASKED.items():
        encoded = SIGNATURES[name][0] == "image_bytes"
        requests[name] = np.array(images[:count], dtype=object) if encoded else ready[:count]
    return requests


def write_golden(folder: Path, requests: Mapping[str, np.ndarray], signatures: Mapping[str, Callable]) -> None:
    """Writes requests and the outputs of the signatures for them to `golden.npz` in `folder`."""
    arrays = {}
    for name, value in requests.items():
        for place, item in enumerate(value):
            arrays[f"{name}/in/{place}"] = np.frombuffer(item, np.uint8) if isinstance(item, bytes) else item
        answers = signatures[name](**{SIGNATURES[name][0]: tf.constant(value)})
        arrays |= {f"{name}/out/{output}": _plain(answer.numpy()) for output, answer in answers.items()}
    np.savez_compressed(folder / GOLDEN, **arrays)


def read_golden(folder: Path) -> tuple[dict[str, tf.Tensor], dict[str, dict[str, np.ndarray]]]:
    """Returns requests and outputs in `golden.npz` by signature.

    Raises:
        InputError: The file is missing or damaged.
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
    except Exception as error:  # damaged archives raise various types
        raise InputError(
            f"{folder / GOLDEN} is missing or damaged ({error}); copy the export again or repeat it"
        ) from error
    in_order = {name: [items[place] for place in sorted(items)] for name, items in requests.items()}
    return {
        name: tf.constant([item.tobytes() for item in items] if items[0].dtype == np.uint8 else np.stack(items))
        for name, items in in_order.items()
    }, answers


def check_export(folder: str | os.PathLike) -> Check:
    """Verifies an export: file checksums, then the outputs of all signatures against the golden ones.

    Args:
        folder: folder of an export or of one of its versions.

    Returns:
        The differences and the messages of failed checks. For formats other than savedmodel, only checksums are
        compared.

    Raises:
        InputError: The folder is not an export.
    """
    folder = version_folder(folder)
    signature = read_signature(folder)
    problems = [f"{text}; copy the export again" for text in changed_files(folder, signature)]
    if signature.format != "savedmodel":
        return Check(folder, {}, tuple(problems))
    try:
        differences, different = golden_problems(folder, load_signatures(folder), signature.contract)
    except InputError as error:
        return Check(folder, {}, (*problems, str(error)))
    return Check(folder, differences, (*problems, *different))


def golden_problems(
    folder: Path, signatures: Mapping[str, Callable], contract: Contract
) -> tuple[dict[str, float], list[str]]:
    """Returns the largest difference of each signature from its golden outputs, and a sentence for each too large one.

    Raises:
        InputError: The golden requests are damaged, or a signature fails on them.
    """
    differences = answer_differences(folder, signatures, contract)
    problems = [
        f"{folder}: signature {name} differs by {largest:.2g} from its golden outputs, allowed is {limit:g}"
        for name, (largest, limit) in differences.items()
        if not largest <= limit
    ]
    return {name: largest for name, (largest, _) in differences.items()}, problems


def load_checked(folder: Path) -> tuple[Signature, dict[str, Callable]]:
    """Returns an export and its signatures after verifying checksums and golden outputs.

    Args:
        folder: folder of one version.

    Raises:
        InputError: The folder is no export of a classifier with a SavedModel, its files have changed, it cannot be
            loaded, or its outputs differ from the golden ones.
    """
    signature = read_signature(folder)
    if signature.format != "savedmodel":
        raise InputError(f"{folder} has the format {signature.format}, which cannot be served; export a savedmodel")
    if changed := changed_files(folder, signature):
        raise InputError(f"{changed[0]}; copy the export again")
    signatures = load_signatures(folder)
    _, problems = golden_problems(folder, signatures, signature.contract)
    if problems:
        raise InputError(problems[0])
    return signature, signatures


def changed_files(folder: Path, signature: Signature) -> list[str]:
    """One sentence for each file of an export that is missing or has changed since."""
    texts = []
    for name, digest in signature.files.items():
        path = folder / name
        if not path.is_file():
            texts.append(f"{path} is missing")
            continue
        try:
            if sha256_of(path) != digest:
                texts.append(f"{path} has changed since the export")
        except OSError as error:
            texts.append(f"{path} cannot be read ({reason(error)})")
    return texts


def answer_differences(
    folder: Path, signatures: Mapping[str, Callable], contract: Contract
) -> dict[str, tuple[float, float]]:
    """Returns, per signature, the largest difference of an output from the golden one and the allowed difference."""
    requests, answers = read_golden(folder)
    differences = {}
    for name, golden in answers.items():
        outputs = {key: _plain(value.numpy()) for key, value in _asked(signatures, name, requests[name]).items()}
        pairs = [(difference(key, outputs, golden, contract), _limit(key)) for key in golden]
        differences[name] = max(pairs, key=lambda pair: pair[0] / pair[1])
    return differences


def difference(
    output: str, here: Mapping[str, np.ndarray], there: Mapping[str, np.ndarray], contract: Contract
) -> float:
    """Returns the difference of an output between two installations; infinite if texts or shapes differ.

    The difference of logits is relative to the larger of 1 and the largest absolute logit, that of maps to their
    maximum. A different decision is accepted where a change of the probability below TOLERANCE alters the decision.

    Args:
        output: name of the output.
        here: outputs of this installation by name.
        there: reference outputs by name.
        contract: contract of the export.
    """
    if output not in here or here[output].shape != there[output].shape:
        return np.inf
    value, reference = here[output], there[output]
    if value.dtype.kind == "U":
        near = output == "decision" and contract.undecided(there["probability"], TOLERANCE)
        return np.inf if ((value != reference) & ~np.asarray(near)).any() else 0.0
    scale = np.abs(reference).max(initial=0.0)
    return float(
        np.abs(value - reference).max(initial=0.0) / (max(scale, 1e-12) if output == "cam" else max(scale, 1.0))
    )


def load_signatures(folder: Path) -> dict[str, Callable]:
    """Returns the signatures of the SavedModel of an export.

    Raises:
        InputError: The SavedModel cannot be loaded, or a signature is missing.
    """
    try:
        with without_patterns(folder) as path:
            loaded = tf.saved_model.load(str(path))
        signatures = _Signatures(loaded.signatures)
        signatures.model = loaded  # keeps the variables alive
    except Exception as error:  # damaged files raise various types
        what = f"{type(error).__name__}: {in_brief(error)}"
        raise InputError(f"{folder} cannot be loaded ({what}); {_remedy_of_export(folder)}") from error
    missing = [name for name in SIGNATURES if name not in signatures]
    if missing:
        raise InputError(f"{folder} has no signature {missing[0]}; export the run again with this version of kmura")
    return signatures


def _remedy_of_export(folder: Path) -> str:
    """What helps if an export cannot be loaded, by the checksums of its files."""
    try:
        changed = changed_files(folder, read_signature(folder))
    except InputError:
        changed = []
    if changed:
        return f"{changed[0]}; copy the export again"
    return f"its files are as exported: use the version of TensorFlow in {SIGNATURE} (this is {tf.__version__})"


@contextlib.contextmanager
def without_patterns(folder: Path) -> Iterator[Path]:
    """A context manager with a path of a folder in which TensorFlow sees no pattern.

    TensorFlow looks for the variables of a SavedModel by a pattern that begins with its path, so it finds none below a
    folder whose name contains one of PATTERN_CHARACTERS. The path is then a temporary link to the folder.
    """
    absolute = os.path.abspath(folder)
    if not PATTERN_CHARACTERS.intersection(absolute):
        yield folder
        return
    with tempfile.TemporaryDirectory() as aside:
        link = Path(aside, "export")
        link.symlink_to(absolute, target_is_directory=True)
        yield link


PATTERN_CHARACTERS = frozenset("*?[]\\") if os.name == "posix" else frozenset("[]")


def versions(out: Path) -> list[int]:
    """Returns the version numbers of the exports in a folder in ascending order."""
    if not out.is_dir():
        return []
    return sorted(int(entry.name) for entry in out.iterdir() if entry.name.isdigit() and entry.is_dir())


def version_folder(folder: str | os.PathLike) -> Path:
    """Returns the folder itself if it is a version, else that of its highest version, which a server loads too.

    Raises:
        InputError: The folder is not an export.
    """
    folder = Path(folder)
    if (folder / SIGNATURE).exists():
        return folder
    numbers = versions(folder)
    if not numbers:
        raise InputError(
            f"{folder} is not an export of kmura; give a folder made by kmura export, or one of its versions"
        )
    return folder / str(numbers[-1])


def _asked(signatures, name, value):
    try:
        return signatures[name](**{SIGNATURES[name][0]: value})
    except (tf.errors.OpError, TypeError, ValueError) as error:
        raise InputError(
            f"signature {name} fails on its golden request ({in_brief(error)}); copy the export again or repeat it"
        ) from error


def _limit(output: str) -> float:
    return MAP_TOLERANCE if output == "cam" else TOLERANCE


def _encoded(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def _plain(values: np.ndarray) -> np.ndarray:
    """Returns values with byte strings decoded to text, as npz files cannot store objects."""
    return np.strings.decode(values.astype(bytes), "utf-8") if values.dtype == object else values
