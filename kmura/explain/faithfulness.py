"""Does the prediction rest on what the map shows? Deletion and insertion curves, beside maps of chance."""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from PIL import Image, ImageFilter

from kmura import cam

STEPS = 20  # of a curve


@dataclasses.dataclass(frozen=True)
class Curves:
    """Mean confidence in the predicted side or class while pixels go or come, hottest first.

    Attributes:
        share: [STEPS + 1] share of the pixels that are gone (deletion) or there (insertion), 0 to 1.
        deletion, insertion: [STEPS + 1] mean confidence by the model's maps.
        random_deletion, random_insertion: the same by maps of chance.
        deletion_area, insertion_area: [N] area under each image's curve; deletion is better the smaller, insertion the
            larger.
        random_deletion_area, random_insertion_area: [N] the same by chance.
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
    """The deletion and insertion curves of Petsiuk et al. (2018, RISE) for a model's maps and for maps of chance.

    Deletion starts from the image and turns pixels black; insertion starts from a blurred image and puts pixels back.

    Args:
        model: `model(images, training=False)` gives logits [B, L]; it is called often, so a compiled one pays.
        images: [N, H, W, C] in 0..255.
        maps: [N, H, W]; higher is hotter.
        chance: [N, H, W], see `maps_of_chance`.
        multilabel: several logits are of labels of their own, not of classes of which one is true.
    """
    images = np.asarray(images, np.float32)
    blurred = np.stack([_blurred(image) for image in images])
    sides = cam.predicted_sign(_logits(model, images)).numpy()
    share = np.linspace(0, 1, STEPS + 1)
    found = {}
    for name, heat in (("", np.asarray(maps)), ("random_", chance)):
        order = np.argsort(np.argsort(-heat.reshape(len(heat), -1), axis=1, kind="stable"), axis=1)
        rank = (order / order.shape[1]).reshape(*heat.shape, 1)  # 0 is the hottest pixel
        deletion, insertion = [], []
        for part in share:
            hot = rank < part
            deletion.append(_confidence(model, np.where(hot, 0, images), sides, multilabel))
            insertion.append(_confidence(model, np.where(hot, images, blurred), sides, multilabel))
        for kind, rows in (("deletion", deletion), ("insertion", insertion)):
            curve = np.stack(rows)  # [STEPS + 1, N]
            found[name + kind] = curve.mean(1)
            found[f"{name}{kind}_area"] = np.trapezoid(curve, share, axis=0)
    return Curves(share=share, **found)


def maps_of_chance(count: int, size: tuple[int, int], grain: int, seed: int = 0) -> np.ndarray:
    """Uniform noise as coarse as the explained feature map, brought to the image's size as its maps are: [N, H, W].

    Args:
        count: N.
        size: H, W.
        grain: places on a side of the feature map.
        seed: of the noise.
    """
    noise = np.random.default_rng(seed).random((count, grain, grain, 1), np.float32)
    return tf.image.resize(noise, size).numpy()[..., 0]


def drop(model: Callable, images: np.ndarray, masks: np.ndarray, multilabel: bool = False) -> np.ndarray:
    """max(0, p - p_erased) of each image, [N]; p is the probability of the predicted side or class.

    Args:
        model, multilabel: as of `deletion_insertion`.
        images: [N, H, W, C] in 0..255.
        masks: [N, H, W], 1 where the image is made black, else 0.
    """
    images = np.asarray(images, np.float32)
    sides = cam.predicted_sign(_logits(model, images)).numpy()
    kept = 1 - np.asarray(masks, np.float32)[..., None]
    whole, without = (_confidence(model, each, sides, multilabel) for each in (images, images * kept))
    return np.maximum(0, whole - without)


def masks_of_chance(chance: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Masks [N, H, W] over the hottest pixels of maps of chance, each as large as its counterpart in `masks`."""
    flat = chance.reshape(len(chance), -1)
    rank = np.argsort(np.argsort(-flat, axis=1, kind="stable"), axis=1)
    return (rank < masks.reshape(len(masks), -1).sum(1, keepdims=True)).astype(np.float32).reshape(masks.shape)


def _confidence(model, images, sides, multilabel: bool):
    """Probability [N] of the side or class that the whole image was predicted to be."""
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
