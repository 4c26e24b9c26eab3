"""Localization faithfulness: how much the model's output drops when the region that its map marks is erased."""

import keras
import numpy as np
import tensorflow as tf

from kmura import cam
from kmura.data.dataset import Dataset


def localization_faithfulness(
    model: keras.Model,
    dataset: Dataset,
    split: str,
    *,
    q: float,
    tap: str = "P5",
    method: str = "grad_cam_pp",
) -> float:
    """Returns the mean over the images of max(0, p - p_erased), 0 to 1.

    p is the probability of abnormal for a model with one logit, otherwise that of the class (or label) that is the most
    probable one before the erasing. The top 1 - q of each image's positive class activation map towards the predicted
    class, averaged with the map of the mirrored image, is erased (set to black). An image with an empty map counts 0.

    Args:
        model: a model with logits [B, L] and `feature_maps`.
        dataset, split: the images, with the task, size and resizing of the model's training.
        q: above 0 and below 1.
        tap: the feature map that is explained.
        method: a name of `kmura.cam.METHODS`.
    """
    probabilities = tf.nn.softmax if dataset.labels.softmax else tf.sigmoid
    engine = cam.CamEngine(model, method=method, tap=tap, fallback=cam.FALLBACKS[tap])

    @tf.function(reduce_retracing=True)
    def drops(images):
        maps, logits = engine(images, flip=True)
        kept = 1 - cam.erase_mask(maps, q)
        erased = tf.cast(model(images * kept[..., None], training=False), tf.float32)
        scored = tf.ones_like(logits) if logits.shape[-1] == 1 else cam.predicted_sign(logits)
        return tf.nn.relu(tf.reduce_sum((probabilities(logits) - probabilities(erased)) * scored, axis=1))

    with dataset.readable_errors(split):
        images = dataset.eval(split).map(lambda batch: batch["image"])
        return float(np.mean(np.concatenate([drops(batch).numpy() for batch in images])))
