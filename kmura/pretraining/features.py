"""Features of a frozen encoder and raw pixels: float32 matrices with one row per image.

Features are cached in RUNS/AREA/.features, one file per encoder, records, preparation and split.
"""

import hashlib
import json
import logging
from pathlib import Path

import keras
import numpy as np

from kmura.data.dataset import PREPARATION, Dataset
from kmura.errors import InputError
from kmura.files import replacing
from kmura.models.base import ImageClassifier

CACHE = ".features"  # folder in RUNS/AREA
POOLED = "pool"  # name of the layer of the linear head that averages P5
log = logging.getLogger(__name__)


def encoder_sha256(model: ImageClassifier) -> str:
    """Returns the SHA-256 of a model's backbone: its name, padding and arrays, hexadecimal."""
    config = model.get_config()
    digest = hashlib.sha256(json.dumps([config["backbone"], config["torch_padding"]]).encode())
    for weight in model.backbone.weights:
        value = np.ascontiguousarray(weight.numpy())
        digest.update(f"{value.shape} {value.dtype}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def pooled_features(model: ImageClassifier, encoder: str, dataset: Dataset, split: str, cache: Path) -> np.ndarray:
    """Returns the spatial means of P5 of a split, float32 [N, D], in the order of `Dataset.rows`.

    Args:
        model: a classifier with the linear head.
        encoder: `encoder_sha256` of the model.
        dataset: images of the size of the model's input.
        split: of the data set.
        cache: the folder in which the features are stored, and looked for.

    Raises:
        InputError: an image is damaged, or a feature is not a finite number.
    """
    file = cache / f"{_key(encoder, dataset)}-{split}.npy"
    images = len(dataset.rows(split))
    stored = _stored(file, images)
    if stored is not None:
        log.info("features of %s: %d images read from %s", split, images, file)
        return stored
    encode = keras.Model(model.input, model.get_layer(POOLED).output)
    with dataset.readable_errors(split):
        batches = dataset.eval(split).map(lambda batch: batch["image"])
        features = np.asarray(encode.predict(batches, verbose=0), np.float32)
    if not np.isfinite(features).all():
        raise InputError(f"the encoder's features of {split} are not finite numbers; give other weights")
    cache.mkdir(parents=True, exist_ok=True)
    with replacing(file, "wb") as out:
        np.save(out, features)
    log.info("features of %s: %d images of %d values, stored in %s", split, *features.shape, file)
    return features


def pixels(dataset: Dataset, split: str) -> np.ndarray:
    """Returns the pixels of a split, float32 [N, S * S * C] in 0..255, in the order of `Dataset.rows`.

    Raises:
        InputError: an image is damaged.
    """
    with dataset.readable_errors(split):
        batches = [batch["image"].numpy() for batch in dataset.eval(split)]
    images = np.concatenate(batches)
    return images.reshape(len(images), -1)


def _key(encoder: str, dataset: Dataset) -> str:
    manifest, data = dataset.manifest, dataset.config
    prepared = {name: manifest.options.get(name) for name in PREPARATION}
    parts = [encoder, manifest.inputs, dataset.area, data.image_size, data.resize, prepared]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _stored(file: Path, images: int) -> np.ndarray | None:
    """The features in a file; None if there are none of this number of images."""
    try:
        features = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    whole = features.ndim == 2 and len(features) == images and features.dtype == np.float32
    return features if whole else None
