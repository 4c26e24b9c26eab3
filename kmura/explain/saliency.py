"""Saliency of pixels: the gradient of the predicted side's score by the image, plain and smoothed, by tf-keras-vis."""

import warnings

import keras
import numpy as np
from tf_keras_vis.saliency import Saliency

from kmura import cam

SAMPLES, NOISE = 16, 0.1  # of SmoothGrad; noise as a share of the image's range


def saliency_maps(model: keras.Model, images: np.ndarray, *, smooth: bool = False, seed: int = 0) -> np.ndarray:
    """|d score / d pixel| of each image, the largest over the channels: float32 [B, H, W], 0 or more.

    The score is the logit towards the predicted side, or of the predicted class. Simonyan et al. (2014); with `smooth`
    SmoothGrad (Smilkov et al. 2017), the mean over SAMPLES images with normal noise added.

    Args:
        model: gives logits [B, L] for images in 0..255.
        images: [B, H, W, C] in 0..255.
        smooth: SmoothGrad.
        seed: of its noise.
    """
    images = np.asarray(images, np.float32)
    sides = cam.predicted_sign(model(images, training=False)).numpy()

    def score(logits):
        return keras.ops.sum(logits * sides, axis=1)

    options = {"smooth_samples": SAMPLES, "smooth_noise": NOISE} if smooth else {}
    state = np.random.get_state()
    np.random.seed(seed)  # tf-keras-vis draws from numpy's own state
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The structure of `inputs`")  # tf-keras-vis passes a list
            maps = Saliency(model, clone=False)(score, images, normalize_map=False, **options)
    finally:
        np.random.set_state(state)
    return np.asarray(maps, np.float32)
