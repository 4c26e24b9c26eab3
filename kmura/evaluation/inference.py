"""Predictions of a model on a split: the rows of `predictions.csv`."""

import keras
import numpy as np
import pandas as pd

from kmura.data.dataset import Dataset
from kmura.errors import InputError
from kmura.runs.predictions import predictions_of


def predict_split(model: keras.Model, dataset: Dataset, split: str) -> pd.DataFrame:
    """Predicts a split; returns one row per image in the order of the records, as `kmura.runs.predictions` reads it.

    Columns: split, area, patient, study, image, then the labels, logits and probabilities of the data set's task.

    Args:
        model: maps images [B, H, W, C] in 0..255 to logits [B, L].
        dataset: data set with the task, image size and resizing of the model's training.
        split: the split to predict.

    Raises:
        InputError: an image is damaged, or the model's output for one is not a number.
    """
    task, rows = dataset.labels, dataset.rows(split)
    with dataset.readable_errors():
        images = dataset.eval(split).map(lambda batch: batch["image"])
        logit = model.predict(images, verbose=0).astype(np.float64)
    finite = np.isfinite(logit).all(axis=1)
    if not finite.all():
        image = rows["image"][int(np.argmin(finite))]
        raise InputError(f"the model's output for {image} is not a number; fit again with a lower train.learning_rate")
    return predictions_of(rows, split, logit, task)
