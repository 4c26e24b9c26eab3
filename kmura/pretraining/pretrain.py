"""`pretrain`: learns an encoder from images without labels, and writes it as weights that `fit` can start from."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras

from kmura.config import PretrainingConfig, load_config
from kmura.data.dataset import Dataset, dataset_of
from kmura.errors import InputError
from kmura.kinds import PRETRAINING
from kmura.models.projection import ProjectionNetwork
from kmura.models.weights import save_preset
from kmura.runs.run import RunFolder, claimed, load_model
from kmura.training.loop import RunResult, train_run


def pretrain(
    records: str | os.PathLike | Dataset,
    *,
    area: str,
    name: str | None = None,
    runs: str | os.PathLike = "runs",
    recipe: str | None = None,
    settings: Mapping[str, Any] | Iterable[str] = (),
    config: PretrainingConfig | None = None,
    fresh: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    command: str | None = None,
) -> RunResult:
    """Pretrains an encoder in `RUNS/AREA/NAME/`; it continues after its last finished epoch if there is one.

    Labels are not needed; where there are some, a linear probe is trained beside the encoder and its AUC is reported,
    without an effect on the encoder. `RUNS/AREA/NAME/encoder` is the encoder as a preset folder of keras-hub:
    `fit(..., settings={"model.weights": "RUNS/AREA/NAME/encoder"})` starts from it.

    Args:
        records: folder of shards and manifest, or its Dataset.
        area: one area of the records, or `all`.
        name: of the run; None takes the name of the method.
        runs: folder of all runs.
        recipe: name of a shipped recipe of pretraining (`ref`, `ssl`, `sft`: augmentation sets) or path of a TOML file.
        settings: mapping `stage.key -> value`, or texts `stage.key=value`; they override the recipe.
        config: complete configuration, which replaces recipe and settings.
        fresh: start again and delete the content of the run folder.
        callbacks: further Keras callbacks, such as a progress display; their logs contain all scores.
        command: stored in `run.json`; None stores the command line of this process.

    Raises:
        InputError: the area is unknown, there are too few images, the run folder has another configuration or other
            records, or weights cannot be loaded.
    """
    config = config or load_config(recipe, settings, PretrainingConfig)
    dataset = dataset_of(records, area, config.data)
    check_data(dataset, config)
    result = train_run(
        dataset,
        name or config.method.method,
        config,
        kind=PRETRAINING,
        runs=runs,
        fresh=fresh,
        callbacks=callbacks,
        command=command,
    )
    with claimed(result.folder):
        write_encoder(RunFolder(result.folder))
    return result


def check_data(dataset: Dataset, config: PretrainingConfig) -> None:
    """Checks that there are images to train and to validate on, and that the network can be built.

    Raises:
        InputError: a split is missing or has too few images, or an image is too small for the encoder.
    """
    for split, least in (("train", config.train.batch_size), ("val", 2)):
        if split not in dataset.splits:
            raise InputError(
                f"area {dataset.area} of {dataset.records} has no {split} split; build the records again with a "
                "validation split"
            )
        if (images := len(dataset.index(split))) < least:
            raise InputError(
                f"area {dataset.area}, split {split} in {dataset.records} has {images} images, {least} or more are "
                "needed; reduce train.batch_size or add images"
            )
    ProjectionNetwork.check(
        backbone=config.encoder.backbone,
        image_size=config.data.image_size,
        channels=dataset.manifest.channels,
        num_classes=1,
        **config.method.projection,
    )


def write_encoder(folder: RunFolder) -> None:
    """Writes the encoder of the best model of a run as a preset folder, whole or not at all.

    Raises:
        InputError: the run has no best model, or the folder cannot be written.
    """
    network = load_model(folder.best)
    settings = network.get_config()
    save_preset(
        network.backbone,
        folder.encoder,
        backbone=settings["backbone"],
        torch_padding=settings["torch_padding"],
        replace=True,
    )
