"""Does the model rest on what its map shows? The drop of its output when that part of the image is gone."""

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
) -> float:
    """Mean over the images of max(0, p - p_erased), p the probability of abnormal.

    Erased (black) is the top 1 - q of each image's positive Grad-CAM++ towards the predicted side, averaged with the
    mirrored image's map. An image with an empty map counts as 0.

    Args:
        model: gives logits [B, 1], with `feature_maps`.
        dataset, split: the images, of the size and resizing that the model was trained with.
        q: in (0, 1).
        tap: the feature map that is explained.
    """
    engine = cam.CamEngine(model, tap=tap, fallback=cam.FALLBACKS[tap])

    @tf.function(reduce_retracing=True)
    def drops(images):
        maps, logits = engine(images, flip=True)
        kept = 1 - cam.erase_mask(maps, q)
        erased = tf.cast(model(images * kept[..., None], training=False), tf.float32)
        return tf.nn.relu(tf.sigmoid(logits) - tf.sigmoid(erased))[:, 0]

    with dataset.readable_errors(split):
        images = dataset.eval(split).map(lambda batch: batch["image"])
        return float(np.mean(np.concatenate([drops(batch).numpy() for batch in images])))
