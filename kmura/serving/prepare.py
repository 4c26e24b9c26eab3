"""Preprocessing of image files with Pillow, as in the records: the reference for the exported graph."""

import functools

import numpy as np
import tensorflow as tf

from kmura.data.resize import axis_weights, resized, taps_needed
from kmura.records.decode import decoded
from kmura.records.images import reduced
from kmura.records.remarks import remarks_on
from kmura.serving.contract import Contract


def prepared(data: bytes, contract: Contract, *, name: str = "") -> np.ndarray:
    """Returns the model's input pixels for the bytes of an image file: uint8 [S, S, C], in 0..255.

    See `prepared_with_remarks`.
    """
    return prepared_with_remarks(data, contract, name=name)[0]


def prepared_with_remarks(data: bytes, contract: Contract, *, name: str = "") -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns the model's input pixels, uint8 [S, S, C] in 0..255, and the remarks on the picture.

    Args:
        data: bytes of a PNG, JPEG, TIFF, ... (see `decode_image`) or DICOM file.
        contract: size, resizing and channels.
        name: name of the file, see `kmura.records.decode.decoded`.

    Raises:
        UnreadableImage: The file cannot be decoded; the message states the reason.
    """
    picture = decoded(data, contract.channels, name)
    image = reduced(picture, contract.max_side)
    pixels = np.asarray(image).reshape(image.height, image.width, contract.channels)
    return fitted(pixels, contract), remarks_on(picture)


def fitted(pixels: np.ndarray, contract: Contract) -> np.ndarray:
    """Returns the model's input, uint8 [S, S, C], of a picture that is reduced to `max_side`, uint8 [h, w, C]."""
    size, how = contract.image_size, contract.resize
    taps = taps_needed(np.array([pixels.shape[:2]]), size, how)
    return _fitting(size, how, contract.channels, taps)(pixels).numpy()


@functools.lru_cache(maxsize=64)
def _fitting(size: int, how: str, channels: int, taps: int):
    """Returns a graph that resizes an image uint8 [h, w, C] to uint8 [size, size, C].

    The number of taps is fixed per graph: a graph that computes it takes six times as long.
    """

    def fitted(image):
        places, weights = axis_weights(tf.shape(image, tf.int64)[None, :2], size, how, taps)
        return resized(image, places[0], weights[0])

    with tf.device("CPU"):
        return tf.function(fitted, input_signature=[tf.TensorSpec([None, None, channels], tf.uint8)], autograph=False)
