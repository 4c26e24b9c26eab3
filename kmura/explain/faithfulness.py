"""Faithfulness of maps: deletion and insertion curves, compared with those of random maps."""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from PIL import Image, ImageFilter

from kmura import cam

STEPS = 20  # per curve


@dataclasses.dataclass(frozen=True)
class Curves:
    """Mean confidence in the predicted side or class while pixels are removed or inserted, highest map values first.

    Attributes:
        share: [STEPS + 1] fraction of the pixels that are removed (deletion) or shown (insertion), 0 to 1.
        deletion, insertion: [STEPS + 1] mean confidence, with pixels ordered by the model's maps.
        random_deletion, random_insertion: [STEPS + 1] the same, with pixels ordered by random maps.
        deletion_area, insertion_area: [N] area under the curve of each image; smaller is better for deletion, larger
            is better for insertion.
        random_deletion_area, random_insertion_area: [N] the same for random maps.
    """

    share: np.ndarray
    deletion: np.ndarray
    insertion: np.ndarray
    random_deletion: np.ndarray
    random_insertion: np.ndarray
    deletion_area: np.ndarray
    insertion_area: np.ndarray
    random_deletion_area: np.ndarray
    random_insertion_area: np.ndarray


def deletion_insertion(
    model: Callable, images: np.ndarray, maps: np.ndarray, chance: np.ndarray, multilabel: bool = False
) -> Curves:
    """Returns the deletion and insertion curves of Petsiuk et al. (2018, RISE) for a model's maps and for random maps.

    Deletion starts from the image and sets pixels to black; insertion starts from a blurred image and restores pixels.

    Args:
        model: `model(images, training=False)` returns logits [B, L]; it is called many times, so pass a compiled
            function.
        images: [N, H, W, C] in 0..255.
        maps: [N, H, W]; pixels with higher values come first.
        chance: random maps [N, H, W], see `maps_of_chance`.
        multilabel: whether the logits belong to independent labels rather than to mutually exclusive classes.
    """
    images = np.asarray(images, np.float32)
    blurred = np.stack([_blurred(image) for image in images])
    sides = cam.predicted_sign(_logits(model, images)).numpy()
    share = np.linspace(0, 1, STEPS + 1)
    curves = {}
    for name, heat in (("", np.asarray(maps)), ("random_", chance)):
        order = np.argsort(np.argsort(-heat.reshape(len(heat), -1), axis=1, kind="stable"), axis=1)
        rank = (order / order.shape[1]).reshape(*heat.shape, 1)  # 0 is the pixel with the highest value
        deletion, insertion = [], []
        for part in share:
            hot = rank < part
            deletion.append(_confidence(model, np.where(hot, 0, images), sides, multilabel))
            insertion.append(_confidence(model, np.where(hot, images, blurred), sides, multilabel))
        for kind, rows in (("deletion", deletion), ("insertion", insertion)):
            curve = np.stack(rows)  # [STEPS + 1, N]
            curves[name + kind] = curve.mean(1)
            curves[f"{name}{kind}_area"] = np.trapezoid(curve, share, axis=0)
    return Curves(share=share, **curves)


def maps_of_chance(count: int, size: tuple[int, int], grain: int, seed: int = 0) -> np.ndarray:
    """Returns random maps [N, H, W]: uniform noise at the feature map's resolution, resized to the size of the images.

    Args:
        count: number of maps N.
        size: H and W in pixels.
        grain: side of the feature map in positions.
        seed: seed of the noise.
    """
    noise = np.random.default_rng(seed).random((count, grain, grain, 1), np.float32)
    return tf.image.resize(noise, size).numpy()[..., 0]


def drop(model: Callable, images: np.ndarray, masks: np.ndarray, multilabel: bool = False) -> np.ndarray:
    """Returns max(0, p - p_erased) of each image, [N]; p is the probability of the predicted side or class.

    Args:
        model, multilabel: see `deletion_insertion`.
        images: [N, H, W, C] in 0..255.
        masks: [N, H, W]; 1 where the image is set to black, else 0.
    """
    images = np.asarray(images, np.float32)
    sides = cam.predicted_sign(_logits(model, images)).numpy()
    kept = 1 - np.asarray(masks, np.float32)[..., None]
    whole, without = (_confidence(model, batch, sides, multilabel) for batch in (images, images * kept))
    return np.maximum(0, whole - without)


def masks_of_chance(chance: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Returns masks [N, H, W] of the highest values of random maps, with the same number of pixels as in `masks`.

    Args:
        chance: random maps [N, H, W].
        masks: [N, H, W], 0 or 1.
    """
    flat = chance.reshape(len(chance), -1)
    rank = np.argsort(np.argsort(-flat, axis=1, kind="stable"), axis=1)
    return (rank < masks.reshape(len(masks), -1).sum(1, keepdims=True)).astype(np.float32).reshape(masks.shape)


def _confidence(model, images, sides, multilabel: bool):
    """Returns the probability [N] of the side or class that is predicted for the unmodified image."""
    logits = _logits(model, images)
    if logits.shape[-1] == 1:
        return tf.sigmoid(logits * sides).numpy()[:, 0]
    probability = tf.sigmoid(logits) if multilabel else tf.nn.softmax(logits)
    return tf.reduce_sum(probability * sides, axis=1).numpy()


def _logits(model, images):
    parts = [model(images[at : at + 32].astype(np.float32), training=False) for at in range(0, len(images), 32)]
    return tf.cast(tf.concat(parts, axis=0), tf.float32)


def _blurred(image: np.ndarray) -> np.ndarray:
    """An image without detail: Gaussian blur of a twentieth of its width."""
    radius = image.shape[1] / 20
    layers = [
        np.asarray(Image.fromarray(np.clip(channel, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius)))
        for channel in np.moveaxis(image, -1, 0)
    ]
    return np.stack(layers, axis=-1).astype(np.float32)
