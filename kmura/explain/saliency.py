"""Pixel saliency: the gradient of the predicted score with respect to the image, plain or SmoothGrad (tf-keras-vis)."""

import warnings

import keras
import numpy as np
from tf_keras_vis.saliency import Saliency

from kmura import cam

SAMPLES, NOISE = 16, 0.1  # of SmoothGrad; the noise is relative to the range of the image


def saliency_maps(model: keras.Model, images: np.ndarray, *, smooth: bool = False, seed: int = 0) -> np.ndarray:
    """Returns |d score / d pixel| of each image, the maximum over channels: float32 [B, H, W], nonnegative.

    The score is the logit of the predicted class; for a single logit, the logit with the sign of the prediction. See
    Simonyan et al. (2014). With `smooth`, the result is SmoothGrad (Smilkov et al. 2017): the mean over SAMPLES copies
    of the image with normal noise added.

    Args:
        model: returns logits [B, L] for images in 0..255.
        images: [B, H, W, C] in 0..255.
        smooth: whether to compute SmoothGrad.
        seed: seed of the SmoothGrad noise.
    """
    images = np.asarray(images, np.float32)
    sides = cam.predicted_sign(model(images, training=False)).numpy()

    def score(logits):
        return keras.ops.sum(logits * sides, axis=1)

    options = {"smooth_samples": SAMPLES, "smooth_noise": NOISE} if smooth else {}
    state = np.random.get_state()
    np.random.seed(seed)  # tf-keras-vis uses the global NumPy random state
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The structure of `inputs`")  # tf-keras-vis passes a list
            maps = Saliency(model, clone=False)(score, images, normalize_map=False, **options)
    finally:
        np.random.set_state(state)
    return np.asarray(maps, np.float32)
