"""Image files to the model's pixels with Pillow, as records make them: what the exported graph must repeat."""

import functools

import numpy as np
import tensorflow as tf

from kmura.data.resize import axis_weights, resized, taps_needed
from kmura.records.dicom import decode_dicom, is_dicom
from kmura.records.images import decode_image, reduced
from kmura.serving.contract import Contract


def prepared(data: bytes, contract: Contract, *, dicom: bool = False) -> np.ndarray:
    """The model's pixels of an image file's bytes: uint8 [S, S, C].

    Args:
        data: a PNG, JPEG, TIFF, ... (see `decode_image`), or DICOM.
        contract: size, resizing and channels.
        dicom: read it as DICOM even if it does not begin as one.

    Raises:
        UnreadableImage: the reason.
    """
    decode = decode_dicom if dicom or is_dicom(data) else decode_image
    image = reduced(decode(data, contract.channels), contract.max_side)
    pixels = np.asarray(image).reshape(image.height, image.width, contract.channels)
    size, how = contract.image_size, contract.resize
    taps = taps_needed(np.array([pixels.shape[:2]]), size, how)
    return _fitting(size, how, contract.channels, taps)(pixels).numpy()


@functools.lru_cache(maxsize=64)
def _fitting(size: int, how: str, channels: int, taps: int):
    """A graph that brings an image uint8 [h, w, C] to the model's size.

    One for each number of taps: a graph that finds it out itself takes six times as long.
    """

    def fitted(image):
        places, weights = axis_weights(tf.shape(image, tf.int64)[None, :2], size, how, taps)
        return resized(image, places[0], weights[0])

    with tf.device("CPU"):
        return tf.function(fitted, input_signature=[tf.TensorSpec([None, None, channels], tf.uint8)], autograph=False)
