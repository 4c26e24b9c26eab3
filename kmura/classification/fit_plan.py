"""What `fit` would do, without doing it: `plan_areas` checks data, configuration, weights and disk space."""

import dataclasses
import functools
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kmura import kinds
from kmura.classification.fit import never_reached, prepared_areas
from kmura.classification.fold_options import options_of_folds
from kmura.classification.phases import searched
from kmura.classification.search import ORACLE, check_search
from kmura.classification.trials import read_history, results
from kmura.config import ClassificationConfig, ModelConfig
from kmura.data.dataset import Dataset
from kmura.data.decoded import available_memory
from kmura.errors import InputError, reason
from kmura.models.backbones import BACKBONES
from kmura.models.build import build_model
from kmura.models.freezing import set_trainable
from kmura.models.swin import SWINS
from kmura.models.weights import ARRAYS, load_weights
from kmura.runs.checkpoint import STATE
from kmura.runs.predictions import study_keys_of
from kmura.runs.run import RunFolder
from kmura.tasks import ALL
from kmura.training.claim import check_claim, describe
from kmura.training.precision import slow_reason
from kmura.workers import processors

PROCESS_BYTES = 700_000_000  # a process that has imported TensorFlow and Keras and built a small model
KEPT_SHARE = 0.8  # of the outputs of all operations of a forward pass, what is in memory at the same time
# operations whose outputs take no memory of their own
_VIEWS = {"Const", "ExpandDims", "Identity", "IdentityN", "NoOp", "Placeholder", "ReadVariableOp", "Reshape", "Squeeze"}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a call of `fit` or `tune` would do for an area.

    Attributes:
        area, phase: which run this is.
        folder: of the run.
        config: of the run.
        precision: the dtype policy of training.
        source: a sentence that says where tuned values come from, or "".
        images, studies: split -> number.
        labelled: number of training images with a known label; the others are not used in training.
        epochs_done: finished epochs of a run that continues; 0 for a new run and for a search.
        continues: whether an existing run or search continues.
        steps_per_epoch: batches of an epoch.
        trials: largest number of trials that are left; None if this is not a search, or if its tuner decides.
        parameters, trainable: numbers of the model; `trainable` are those that are trained in any epoch.
        weights: sentences that say where the model's weights come from.
        cache: split -> where its decoded images are kept: `memory`, `disk`, or `off` (decoded when they are drawn).
        cache_bytes: split -> size of its decoded images, bytes.
        training_bytes: estimated memory of training without that of the cache, see `training_memory`, bytes.
        available_bytes: memory that is available now, bytes; 0 if the system does not report it.
        disk_bytes: largest size of the files of the run, with a cache on disk, bytes.
        free_bytes: free space where it writes, bytes.
        notes: sentences about probable failures and about settings without effect.
    """

    area: str
    phase: str
    folder: Path
    config: ClassificationConfig
    precision: str
    source: str
    images: dict[str, int]
    studies: dict[str, int]
    labelled: int
    epochs_done: int
    continues: bool
    steps_per_epoch: int
    trials: int | None
    parameters: int
    trainable: int
    weights: tuple[str, ...]
    cache: dict[str, str]
    cache_bytes: dict[str, int]
    training_bytes: int
    available_bytes: int
    disk_bytes: int
    free_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def epochs(self) -> int:
        """The epochs that are left, of one trial if this is a search."""
        return max(0, self.config.train.epochs - self.epochs_done)

    @property
    def total_steps(self) -> int | None:
        """The steps that are left, at most; None if a search's tuner decides how many trials there are."""
        if self.phase != "tune":
            return self.steps_per_epoch * self.epochs
        return None if self.trials is None else self.steps_per_epoch * self.epochs * self.trials


def plan_areas(
    records: str | os.PathLike,
    *,
    area: str | Sequence[str] = ALL,
    phase: str = "baseline",
    runs: str | os.PathLike = "runs",
    recipe: str | None = None,
    settings: Mapping[str, Any] | Iterable[str] = (),
    fresh: bool = False,
    folds: int = 0,
    fold: int | None = None,
) -> list[Plan]:
    """What `fit_areas` (phase `tune`: `tune_areas`) would do with these arguments, one Plan per area and fold.

    The models are built, and weights that are on this machine are loaded into them. Nothing is downloaded, trained or
    written.

    Args:
        records, area, phase, runs, recipe, settings, fresh, folds, fold: as `fit_areas` takes them.

    Raises:
        InputError: an error that `fit` raises before training; too little disk space; a folder that cannot be written.
    """
    options = {"phase": phase, "runs": runs, "recipe": recipe, "settings": settings, "fresh": fresh}
    facts_of = functools.cache(_facts)  # areas usually share one model, and building it takes seconds
    plans = [
        _plan(*prepared, facts_of, phase, of_fold["runs"], fresh)
        for of_fold in options_of_folds(records, folds, fold, options)
        for prepared in prepared_areas(records, area, of_fold)
    ]
    needed, free = sum(plan.disk_bytes for plan in plans), min(plan.free_bytes for plan in plans)
    if needed > free:
        raise InputError(
            f"the runs in {runs} need {needed / 1e6:.0f} MB of disk space, {free / 1e6:.0f} MB are free; free space or "
            "choose another --runs folder"
        )
    return plans


def _plan(
    dataset: Dataset, config: ClassificationConfig, source: str, facts_of: Callable, phase: str, runs, fresh: bool
) -> Plan:
    search, area, channels = phase == "tune", dataset.area, dataset.manifest.channels
    if search:
        check_search(config)
    folder = RunFolder(Path(runs) / area / (searched(config)[1] if search else phase))
    continues = not fresh and (folder.path / ORACLE if search else folder.last / STATE).is_file()
    description = describe(dataset, folder.path.name, config, kind=kinds.CLASSIFICATION)
    description = check_claim(
        folder, description, fresh, continues, growing="tune.trials" if search else "train.epochs"
    )
    epochs_done = len(read_history(folder)) if continues and not search else 0

    facts = facts_of(
        config.model,
        config.data.image_size,
        channels,
        dataset.labels.outputs,
        unfreeze=config.train.unfreeze,
        batch_size=config.train.batch_size,
        precision=description.precision,
        epochs_done=epochs_done,
    )
    available = available_memory()
    cache, cache_bytes = _cache(dataset, config, available)
    in_memory, on_disk = (
        sum(size for split, size in cache_bytes.items() if cache[split] == place) for place in ("memory", "disk")
    )
    notes = never_reached(config)
    if slow := slow_reason(description.precision):
        notes.append(slow)
    if available and facts.training_bytes + in_memory > available:
        notes.append("the estimated memory is more than is available; reduce train.batch_size or data.image_size")
    images, studies = _counts(dataset)
    return Plan(
        area=area,
        phase=phase,
        folder=folder.path,
        config=config,
        precision=description.precision,
        source=source,
        images=images,
        studies=studies,
        labelled=len(dataset.index("train").known()),
        epochs_done=epochs_done,
        continues=continues,
        steps_per_epoch=dataset.steps(config.train.batch_size),
        trials=_trials_left(folder, config, continues) if search else None,
        parameters=facts.parameters,
        trainable=facts.trainable,
        weights=facts.weights,
        cache=cache,
        cache_bytes=cache_bytes,
        training_bytes=facts.training_bytes,
        available_bytes=available,
        disk_bytes=run_size(facts.parameters, facts.trainable) + on_disk,
        free_bytes=min(_free_space(path) for path in ([folder.path, dataset.records] if on_disk else [folder.path])),
        notes=tuple(notes),
    )


def training_memory(model: keras.Model, batch_size: int, precision: str) -> int:
    """Returns the estimated memory of training a model, bytes, without the cache of decoded images.

    It is the sum of
    - PROCESS_BYTES, the process itself;
    - 4 bytes per parameter and 12 per trainable one: the weights, their gradients and Adam's two moments;
    - KEPT_SHARE times the float outputs of all operations of a forward pass of one batch, at 4 bytes per number, in a
      mixed precision 2;
    - the prefetched batches: the number of cores plus 2, float32, each plain and mixed.

    For DenseNet-121, ResNet-50 and hybrids with a Swin-Tiny at 128 and 224 pixels and batches of 4 to 16, in float32 on
    a CPU, the first three terms were within 30 % of the measured peak of resident memory. Mixed precision and GPUs were
    not measured.
    """
    trainable = _numbers(model.trainable_variables)
    kept = KEPT_SHARE * _outputs_of_an_image(model) * batch_size * (2 if precision.startswith("mixed") else 4)
    ahead = (processors() + 2) * batch_size * math.prod(model.input_shape[1:]) * 4 * 2
    return round(PROCESS_BYTES + 4 * model.count_params() + 12 * trainable + kept + ahead)


def _outputs_of_an_image(model: keras.Model) -> int:
    """The numbers in the float outputs of all operations of a forward pass in training, for one image."""
    image = tf.TensorSpec([1, *model.input_shape[1:]], tf.float32)
    # traced, since the layers of a backbone for images of any size do not know the shapes of their outputs
    graph = tf.function(lambda images: model(images, training=True)).get_concrete_function(image).graph
    return sum(
        math.prod(output.shape)
        for operation in graph.get_operations()
        if operation.type not in _VIEWS
        for output in operation.outputs
        if output.dtype.is_floating and output.shape.rank and output.shape.is_fully_defined()
    )


def run_size(parameters: int, trainable: int) -> int:
    """The largest size of a run folder during training, bytes: two checkpoints and two models at 4 bytes per number.

    A checkpoint holds the weights and Adam's two moments. The old one is deleted when the new one is complete.
    """
    return 2 * 4 * (parameters + 2 * trainable) + 2 * 4 * parameters


@dataclasses.dataclass(frozen=True)
class _Facts:
    """The fields of Plan that describe the model."""

    parameters: int
    trainable: int
    weights: tuple[str, ...]
    training_bytes: int


def _facts(
    config: ModelConfig,
    image_size: int,
    channels: int,
    outputs: int,
    *,
    unfreeze: str,
    batch_size: int,
    precision: str,
    epochs_done: int,
) -> _Facts:
    """Returns the facts about the model that `fit` builds from these arguments."""
    options = dataclasses.asdict(config) | {"weights": "none", "swin_weights": "none"}
    model = build_model(**options, image_size=image_size, channels=channels, num_classes=outputs)
    set_trainable(model, unfreeze)
    return _Facts(
        parameters=model.count_params(),
        trainable=_numbers(model.trainable_variables),
        weights=(f"from the checkpoint of epoch {epochs_done}",) if epochs_done else _loaded(model, config),
        training_bytes=training_memory(model, batch_size, precision),
    )


def _numbers(variables) -> int:
    return sum(math.prod(variable.shape) for variable in variables)


def _loaded(model: keras.Model, config: ModelConfig) -> tuple[str, ...]:
    """Loads the weights that are on this machine into a model; returns sentences about the sources of its weights."""
    parts = [(config.backbone, config.weights, BACKBONES[config.backbone].imagenet)]
    if config.architecture == "hybrid":
        parts.append((config.swin, config.swin_weights, SWINS[config.swin].imagenet))
    sentences, loaded = [], []
    for name, weights, imagenet in parts:
        preset = imagenet if weights == "imagenet" else weights
        if weights == "none":
            sentences.append(f"{name}: random")
        elif preset is not None and not Path(preset).expanduser().exists() and _must_be_downloaded(preset):
            sentences.append(f"{name}: {preset}, which is not on this machine and will be downloaded")
            weights = "none"
        else:
            sentences.append(f"{name}: {preset}, loaded without an error")
        loaded.append(weights)
    load_weights(model, *loaded)
    return tuple(sentences)


def _must_be_downloaded(preset: str) -> bool:
    """Whether a keras-hub preset has to be fetched from the network; False if it is on this machine, or no preset."""
    from keras_hub.models import Backbone

    handle = Backbone.presets[preset]["kaggle_handle"] if preset in Backbone.presets else preset
    scheme, _, name = handle.partition("://")
    if scheme == "kaggle":
        from kagglehub.cache import get_cached_path
        from kagglehub.handle import parse_model_handle

        try:
            return not (Path(get_cached_path(parse_model_handle(name))) / ARRAYS).is_file()
        except ValueError:  # not a Kaggle handle; loading reports it
            return False
    if scheme == "hf":
        from huggingface_hub import try_to_load_from_cache

        return not isinstance(try_to_load_from_cache(name, ARRAYS), str)
    return False


def _cache(dataset: Dataset, config: ClassificationConfig, available: int) -> tuple[dict[str, str], dict[str, int]]:
    """Where `kmura.data.decoded.image_source` will keep the decoded images of each split, and their sizes in bytes."""
    places, sizes = {}, {}
    indexes = [dataset.index(split) for split in dict.fromkeys(("train", config.train.select_on))]
    for index in {(index.base or index).split: index.base or index for index in indexes}.values():
        size, split = len(index) * config.data.image_size**2 * dataset.manifest.channels, index.split
        place = config.data.cache
        if place == "auto":
            place = "memory" if size <= available / 2 else "off"
        if place == "memory":
            available -= size
        places[split], sizes[split] = place, size
    return places, sizes


def _counts(dataset: Dataset) -> tuple[dict[str, int], dict[str, int]]:
    """Images and studies of each split of an area, or of all areas."""
    if dataset.config.folds:
        keys = {split: dataset.index(split).keys for split in dataset.splits}
        return (
            {split: len(table) for split, table in keys.items()},
            {split: len(np.unique(study_keys_of(table))) for split, table in keys.items()},
        )
    images, studies, areas = {}, {}, dataset.manifest.areas
    for splits in areas.values() if dataset.area == ALL else [areas[dataset.area]]:
        for split, counts in splits.items():
            images[split] = images.get(split, 0) + counts.images
            studies[split] = studies.get(split, 0) + counts.studies
    return images, studies


def _trials_left(folder: RunFolder, config: ClassificationConfig, continues: bool) -> int | None:
    if config.tune.tuner == "hyperband":
        return None
    return max(0, config.tune.trials - (len(results(folder.path)) if continues else 0))


def _free_space(path: Path) -> int:
    """The free bytes where a folder is, or will be created.

    Raises:
        InputError: it cannot be created or written.
    """
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise InputError(f"cannot write to {path}: {existing} is not a folder; choose another folder")
    if not os.access(existing, os.W_OK):
        raise InputError(f"cannot write to {path}: no permission for {existing}; choose another folder")
    try:
        return shutil.disk_usage(existing).free
    except OSError as error:
        raise InputError(f"cannot write to {path}: {reason(error)}; choose another folder") from error
