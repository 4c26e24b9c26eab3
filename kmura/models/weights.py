"""Weights for a classifier: from the network, a preset folder or a file.

Keras' sources come down to the same two things, its description of a model (`config.json`) and its arrays
(`model.weights.h5`): a preset folder holds them side by side, a `.keras` file zipped, a `.weights.h5` file is
the second alone. State dicts of torch, alone or in a Hugging Face folder, go through the tables of
`kmura.models.porting`. Nothing of them is executed.
"""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import tempfile
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import keras

from kmura.errors import InputError, reason
from kmura.models.backbones import BACKBONES
from kmura.models.lookup import entry, nearest_first
from kmura.models.porting import SUFFIXES, Ported, port, read_state
from kmura.models.swin import SWINS, build_swin

CONFIG = "config.json"
ARRAYS = "model.weights.h5"
PORTED = "kmura.json"  # of a preset that `port_preset` wrote: whether its weights want torch's padding
# Where Keras keeps the backbone's arrays in a classifier's file; beside it are those of the head.
BACKBONE_GROUP = "layers/functional"
SWIN_GROUP = "layers/swin_maps/backbone"
# Of a backbone's config; all else is its architecture.
NOT_ARCHITECTURE = {"name", "trainable", "dtype", "image_shape", "data_format"}
CONNECT_SECONDS = 10
HUGGING_FACE = ("model.safetensors", "pytorch_model.bin")  # where transformers keeps a state dict
CLASSIFIERS = ("kmura>RadiographClassifier", "kmura>HybridClassifier")

log = logging.getLogger("kmura")


@dataclasses.dataclass(frozen=True)
class Part:
    """A backbone of a model, which takes weights of its own.

    Attributes:
        model: the whole classifier.
        body: the backbone.
        key: of a classifier's config that names it; also the name of the table that it comes from.
        name: of the backbone, in kmura's words.
        imagenet: keras-hub preset of its ImageNet weights, or None.
        group: where Keras keeps its arrays in a classifier's file.
        leads: weights of a whole model may come with it.
    """

    model: keras.Model
    body: keras.Model
    key: str
    name: str
    imagenet: str | None
    group: str
    leads: bool


def load_weights(model, weights: str, swin_weights: str = "none") -> None:
    """Puts `weights` into a RadiographClassifier or HybridClassifier: into its convolutional backbone, and into all the
    rest if they have the same; and `swin_weights` into the transformer of a hybrid.

    Every load is logged: how many arrays matched, are missing, were reshaped. What does not match is refused.

    Args:
        model: the classifier.
        weights: `none` (stays random), `imagenet` (the backbone's own preset), a keras-hub preset
            (`densenet_121_imagenet`, `kaggle://keras/densenet/keras/densenet_121_imagenet/3`,
            `hf://keras/densenet_121_imagenet`), or a path: a preset folder, a `.keras` or `.weights.h5` file of a
            backbone or of a classifier of kmura, a state dict of torchvision or timm (`.safetensors`, `.pth`), a folder
            as Hugging Face's transformers save it.
        swin_weights: the same for the transformer; `none` and `imagenet` leave it as it is where `weights` brought the
            whole hybrid.

    Raises:
        InputError: nothing there, no network, a damaged file, or another architecture.
    """
    config = model.get_config()
    name = config["backbone"]
    part = Part(model, model.backbone, "backbone", name, BACKBONES[name].imagenet, BACKBONE_GROUP, True)
    whole = _load_part(part, weights)
    if "swin" in config and not (whole and swin_weights in ("none", "imagenet")):
        name = config["swin"]
        _load_part(Part(model, model.swin, "swin", name, SWINS[name].imagenet, SWIN_GROUP, False), swin_weights)


def _load_part(part: Part, weights: str) -> bool:
    """Puts weights into a part; True if they brought the whole model."""
    if weights == "none":
        return False
    preset = part.imagenet if weights == "imagenet" else weights
    if preset is None:
        table = BACKBONES if part.key == "backbone" else SWINS
        there = [name for name, known in table.items() if known.imagenet]
        flag = "weights" if part.key == "backbone" else "swin_weights"
        raise InputError(
            f"{part.key} {part.name} has no ImageNet weights; give {flag} none or a path, or take one of "
            f"{', '.join(there)}"
        )
    source = Path(preset).expanduser()
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


def _wants_torch_padding(source: Path) -> bool:
    """Whether a source is a preset that was ported from weights that were trained with torch's padding."""
    file = source / PORTED
    if not file.is_file():
        return False
    try:
        return bool(json.loads(file.read_text())["torch_padding"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"weights {source}: {PORTED} is damaged ({error!r}); port them again") from error


def _state_file(source: Path) -> Path | None:
    """The torch state dict that `source` is, or holds as a Hugging Face folder does; None if it is Keras' own."""
    if source.is_dir() and not (source / ARRAYS).is_file():
        files = [source / name for name in HUGGING_FACE if (source / name).is_file()]
        return files[0] if files else None
    return source if source.suffix in SUFFIXES else None


def _load_state(state: Path, part: Part, source: Path) -> None:
    done = port(read_state(state), part.body, source, part.name)
    log.info(
        "weights %s: %d arrays of backbone %s matched, 0 missing, %d reshaped; the rest stays (not taken: %d arrays)",
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
        "weights %s were trained with torch's padding, backbone %s pads as TensorFlow does; "
        "set model.torch_padding=true",
        source,
        part.name,
    )


def _downloaded(preset: str, body: keras.Model) -> Path:
    """The folder with the two files of a keras-hub preset, from the network or an earlier download."""
    from keras_hub.models import Backbone  # imported already: it built the backbone

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
        raise InputError(f"weights {preset}: there is no such file or folder")
    else:
        names = nearest_first(preset, ["imagenet", "none", *type(body).presets])
        raise InputError(f"weights {preset}: neither a path nor a preset; choose a path or one of {', '.join(names)}")
    try:
        fetch(name, CONFIG)
        return fetch(name, ARRAYS).parent
    except Exception as error:  # each hub, and the HTTP library below it, has errors of its own
        cause = textwrap.shorten(f"{type(error).__name__}: {error}", 120)
        raise InputError(
            f"weights {preset}: could not be downloaded ({cause}); where there is a network run "
            f'`python -c "{recipe}"`, copy that folder here and give it as weights; or give weights none '
            "to start from random ones"
        ) from error


def _from_kaggle(name: str, file: str) -> Path:
    import kagglehub

    return Path(kagglehub.model_download(name, file))


def _from_hugging_face(name: str, file: str) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(name, file, local_files_only=True))
    except huggingface_hub.errors.LocalEntryNotFoundError:
        # Asked first because it gives up at once without network; a download tries for half a minute.
        huggingface_hub.HfApi().model_info(name, timeout=CONNECT_SECONDS)
        return Path(huggingface_hub.hf_hub_download(name, file))


@contextlib.contextmanager
def _config_and_arrays(source: Path) -> Iterator[tuple[dict | None, Path]]:
    """Keras' config (None if there is none) and the path of the arrays of a preset folder or a file."""
    if source.is_dir():
        for name in (CONFIG, ARRAYS):
            if not (source / name).is_file():
                raise InputError(
                    f"weights {source}: the folder has no {name}; a preset has {CONFIG} and {ARRAYS}, a folder of "
                    f"Hugging Face {' or '.join(HUGGING_FACE)}"
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
            except (zipfile.BadZipFile, KeyError, EOFError, OSError) as error:
                raise InputError(f"weights {source}: damaged, or no file of Keras ({error})") from error
            yield _parsed(source, config), Path(folder) / ARRAYS
    else:
        raise InputError(
            f"weights {source}: not a kind of file kmura knows; give a preset folder, .keras, .weights.h5 or a "
            f"state dict of torch ({', '.join(SUFFIXES)})"
        )


def _parsed(source: Path, config: bytes) -> dict:
    """Registered name of the class, and its own config."""
    try:
        config = json.loads(config)
        return {"class": config["registered_name"] or config["class_name"], "config": config["config"]}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"weights {source}: {CONFIG} does not describe a model of Keras ({error!r})") from error


def _check_architecture(config: dict, part: Part, source: Path) -> None:
    """Raises InputError unless `config` is of the part's backbone, alone or in a classifier of kmura."""
    name, theirs = config["class"], config["config"]
    if name in CLASSIFIERS and part.key in theirs:
        if theirs[part.key] != part.name:
            raise InputError(f"weights {source}: of {part.key} {theirs[part.key]}; the model has {part.name}")
        padding = bool(theirs.get("torch_padding"))
        if part.key == "backbone" and padding != part.model.get_config()["torch_padding"]:
            raise InputError(
                f"weights {source}: trained with model.torch_padding={str(padding).lower()}, the model pads otherwise; "
                "set it likewise"
            )
        return
    expected = keras.saving.get_registered_name(type(part.body))
    if name != expected:
        raise InputError(
            f"weights {source}: of a {name}; backbone {part.name} needs a {expected} or a whole classifier"
        )
    ours = json.loads(json.dumps(part.body.get_config()))
    for key in sorted(ours.keys() & theirs.keys() - NOT_ARCHITECTURE):
        if theirs[key] != ours[key]:
            raise InputError(f"weights {source}: {key} is {theirs[key]}; backbone {part.name} has {ours[key]}")


def _load_arrays(path: Path, part: Part, source: Path) -> bool:
    """Reads the arrays of `path` into the backbone, or into all of the model (then True) if it has all its shapes."""
    model, backbone = part.model, part.name
    body = [tuple(weight.shape) for weight in part.body.weights]
    of_body = {id(weight) for weight in part.body.weights}
    rest = [tuple(weight.shape) for weight in model.weights if id(weight) not in of_body]
    try:
        with h5py.File(path) as file, tempfile.TemporaryDirectory() as folder:
            of_classifier = part.group in file
            found = _shapes(file[part.group] if of_classifier else file)
            if sorted(found) != sorted(body):
                raise InputError(
                    f"weights {source}: {len(found)} arrays do not have the shapes of the {len(body)} of "
                    f"backbone {backbone}; choose the backbone they were saved from"
                )
            whole = part.leads and of_classifier and sorted(_shapes(file["layers"])) == sorted(found + rest)
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
    except ValueError as error:  # Keras does not find an array where it should be
        cause = textwrap.shorten(str(error), 200)
        raise InputError(f"weights {source}: they do not fit backbone {backbone} ({cause})") from error
    except (OSError, RuntimeError, KeyError) as error:  # h5py
        raise InputError(f"weights {source}: damaged, or no HDF5 file ({error})") from error
    if whole:
        of_rest = "the rest of the model too"
    else:
        of_rest = "the rest stays, the source has " + ("one of another shape" if of_classifier else "none")
    log.info(
        "weights %s: %d arrays of backbone %s matched, 0 missing, 0 reshaped; %s",
        source,
        len(found),
        backbone,
        of_rest,
    )
    return whole


def _shapes(group: h5py.Group) -> list[tuple[int, ...]]:
    """Shapes of all arrays in `group`, whatever their depth."""
    shapes = []
    group.visititems(lambda _, item: shapes.append(item.shape) if isinstance(item, h5py.Dataset) else None)
    return shapes


def port_preset(source: str | Path, backbone: str, out: str | Path, *, image_size: int | None = None) -> Ported:
    """What of a torch state dict was ported into a preset folder of keras-hub, which `load_weights` takes.

    Args:
        source: a state dict of torchvision or timm (`.safetensors`, `.pth`), or a folder as Hugging Face's transformers
            save it.
        backbone: a name of BACKBONES or SWINS.
        out: the folder to write; must not exist.
        image_size: of a Swin transformer alone, see `kmura.models.swin.check_side`; None takes its smallest.

    Raises:
        InputError: an unknown backbone, nothing to port, another architecture, `out` taken or not writable.
    """
    source, out = Path(source), Path(out)
    entry({**BACKBONES, **SWINS}, backbone, "backbone")
    if image_size is not None and backbone not in SWINS:
        raise InputError(f"image_size is of a Swin transformer; weights of {backbone} fit every size, leave it out")
    state = _state_file(source) if source.exists() else None
    if state is None:
        raise InputError(
            f"{source} is no state dict of torch; give a file {', '.join(SUFFIXES)} or a folder with one of "
            f"{', '.join(HUGGING_FACE)}"
        )
    if out.exists():
        raise InputError(f"{out} exists; choose another --out")
    if backbone in SWINS:
        body = build_swin(backbone, image_size or SWINS[backbone].unit)
    else:
        body = BACKBONES[backbone].build()
    done = port(read_state(state), body, source, backbone)
    aside = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        aside.parent.mkdir(parents=True, exist_ok=True)
        body.save_to_preset(aside)
        (aside / PORTED).write_text(json.dumps({"torch_padding": done.other_padding}))
        aside.rename(out)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {reason(error)}; choose another --out") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return done
