"""Model + records -> `predictions.csv`, from which alone everything later is computed."""

import os
from pathlib import Path

import keras
import numpy as np
import pandas as pd

import kmura.models.classifier  # noqa: F401  registers the classifier with Keras
from kmura import metrics
from kmura.config import DataConfig
from kmura.data import pipeline
from kmura.data.labels import labelling
from kmura.errors import InputError, in_brief
from kmura.evaluation.class_scores import columns_of
from kmura.records.manifest import read_manifest


def predict_split(model: keras.Model, records, area: str, split: str, data: DataConfig) -> pd.DataFrame:
    """One row an image of a split, in the order of the records: `kmura.runs.predictions.COLUMNS`; of several classes
    those of `kmura.evaluation.class_scores.columns_of` in the place of label, logit and probability.

    Args:
        model: gives logits [B, L] for images [B, H, W, C] in 0..255.
        records: folder of shards and manifest.
        data: task, image size and resizing that the model was trained with.
    """
    labels = labelling(read_manifest(records), area, data.task)
    rows = pipeline.row_keys(records, area, split, data.task)
    with pipeline.readable_errors(records):
        images = pipeline.eval_dataset(records, area, split, data=data).map(lambda batch: batch["image"])
        logit = model.predict(images, verbose=0).astype(np.float64)
    finite = np.isfinite(logit).all(axis=1)
    if not finite.all():
        image = rows["image"][int(np.argmin(finite))]
        raise InputError(f"the model's output for {image} is not a number; fit again with a lower train.learning_rate")
    of_labels, of_logits, of_probabilities = columns_of(labels.task, labels.classes)
    return pd.concat(
        [
            rows.assign(split=split)[["split", "area", "patient", "study", "image", *of_labels]],
            pd.DataFrame(logit, columns=of_logits),
            pd.DataFrame(metrics.probabilities(logit, labels.task), columns=of_probabilities),
        ],
        axis=1,
    )


def load_model(path: str | os.PathLike) -> keras.Model:
    """A saved classifier.

    Raises:
        InputError: no such file, or it cannot be read.
    """
    if not Path(path).is_file():
        raise InputError(f"{path} does not exist; the run has no best epoch yet: run kmura fit again to go on")
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:  # a damaged archive raises whatever its layers raise
        what = f"{type(error).__name__}: {in_brief(error)}"
        raise InputError(f"{path} cannot be loaded ({what}); fit again with --fresh") from error
