"""Model + records -> `predictions.csv`, from which alone everything later is computed."""

import os
from pathlib import Path

import keras
import numpy as np
import pandas as pd

import kmura.models.classifier  # noqa: F401  registers the classifier with Keras
from kmura.config import DataConfig
from kmura.data import pipeline
from kmura.errors import InputError, in_brief
from kmura.evaluation.table import COLUMNS


def predict_split(model: keras.Model, records, area: str, split: str, data: DataConfig) -> pd.DataFrame:
    """One row an image of a split, with the columns of COLUMNS, in the order of the records.

    Args:
        model: gives logits [B, 1] for images [B, H, W, C] in 0..255.
        records: folder of shards and manifest.
        data: image size and resizing that the model was trained with.
    """
    rows = pipeline.row_keys(records, area, split)
    with pipeline.readable_errors(records):
        images = pipeline.eval_dataset(records, area, split, data=data).map(lambda batch: batch["image"])
        logit = model.predict(images, verbose=0)[:, 0].astype(np.float64)
    if not np.isfinite(logit).all():
        image = rows["image"][int(np.argmin(np.isfinite(logit)))]
        raise InputError(f"the model's output for {image} is not a number; fit again with a lower train.learning_rate")
    probability = 1 / (1 + np.exp(-np.clip(logit, -60, 60)))
    return rows.assign(split=split, logit=logit, probability=probability)[list(COLUMNS)]


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
