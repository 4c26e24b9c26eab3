"""Scores of maps against boxes: pointing game, energy inside, and intersection over union (IoU).

Shapes: boxes [n, 4] are x0, y0, x1, y1 in pixels of the map. A map without positive values scores 0 everywhere.
"""

from collections.abc import Sequence

import numpy as np

from kmura.explain.overlays import box_of

LEVEL = 0.5  # of the maximum: the region of a map is where it exceeds this, as in `box_of`

_TIE = 1e-5  # relative difference from the maximum that is rounding of the resized map


def placed(boxes: np.ndarray, size: int, how: str, sides: tuple[int, int]) -> np.ndarray:
    """Returns boxes [n, 4] in pixels of the model's input image.

    Args:
        boxes: [n, 4], as fractions of width and height, in 0..1.
        size: side of the model's input image in pixels.
        how: `squash` or `pad`, see DataConfig.
        sides: height and width of the stored image in pixels.
    """
    height, width = (size, size)
    if how == "pad":
        longest = max(sides)
        height, width = (max(1, (2 * side * size + longest) // (2 * longest)) for side in sides)
    left, top = (size - width) // 2, (size - height) // 2
    return boxes * [width, height, width, height] + [left, top, left, top]


def mask_of(boxes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Returns the pixels in any of the boxes [n, 4] of an image of a height and width, bool [H, W].

    A pixel belongs to a box if its centre does; a box between the centres has the pixel of its own centre.
    """
    mask = np.zeros(shape, bool)
    for x0, y0, x1, y1 in boxes:
        mask[_pixels(y0, y1, shape[0]), _pixels(x0, x1, shape[1])] = True
    return mask


def covered(boxes: np.ndarray, shape: tuple[int, int]) -> float:
    """Returns the share of an image that boxes [n, 4] cover: the expected pointing and energy of a random map.

    Args:
        boxes: [n, 4] in pixels.
        shape: height and width of the image in pixels.
    """
    return float(mask_of(boxes, shape).mean())


def box_scores(maps: np.ndarray, boxes: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the scores of every map against the boxes of every image by name, float64 [B, M].

    - `pointing`: 1 if the maximum of the map lies in a box, else 0 (Zhang et al. 2016, without tolerance); the share of
      the pixels of the maximum in boxes, if several share it. A coarse map is constant beyond the centres of its outer
      cells, so one pixel of them would always be at the border of the image;
    - `energy`: share of the sum of the positive map that lies in the boxes (Wang et al. 2020, Score-CAM, energy-based
      pointing game);
    - `iou`: IoU of the region of the map above LEVEL of its maximum with the union of the boxes;
    - `overlap`: largest IoU of the bounding box of that region with any box.

    Args:
        maps: [M, H, W].
        boxes: of B images, [n, 4] each.
    """
    number, *shape = maps.shape
    heat = np.maximum(maps.reshape(number, -1), 0).astype(np.float64)
    top, total = heat.max(axis=1), heat.sum(axis=1)
    full = top > 0
    masks = np.array([mask_of(corners, tuple(shape)).ravel() for corners in boxes]).reshape(len(boxes), -1)
    region = (heat > LEVEL * top[:, None]).astype(np.float32)  # sums of ones are exact in float32 up to 2^24 pixels
    peak = ((heat >= (1 - _TIE) * top[:, None]) & full[:, None]).astype(np.float32)
    common = masks.astype(np.float32) @ region.T
    union = masks.sum(axis=1, dtype=float)[:, None] + region.sum(axis=1) - common
    return {
        "pointing": (masks.astype(np.float32) @ peak.T).astype(float) / np.maximum(peak.sum(axis=1), 1),
        "energy": np.minimum(1, masks.astype(np.float64) @ heat.T / np.where(full, total, 1)),
        "iou": common.astype(float) / np.maximum(union, 1),
        "overlap": _overlaps(maps, boxes),
    }


def _overlaps(maps: np.ndarray, boxes: Sequence[np.ndarray]) -> np.ndarray:
    predicted = [box_of(cam_map) for cam_map in maps]
    empty = np.array([box is None for box in predicted], bool)
    frames = np.array([box or (0, 0, 1, 1) for box in predicted], float)[:, None]  # [M, 1, 4]
    rows = [np.where(empty, 0, _iou(frames, np.asarray(corners, float)).max(axis=1)) for corners in boxes]
    return np.array(rows).reshape(len(boxes), len(maps))


def _iou(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the IoU of boxes [..., 4] that are broadcast against each other."""
    low, high = np.maximum(ones[..., :2], others[..., :2]), np.minimum(ones[..., 2:], others[..., 2:])
    common = np.prod(np.maximum(high - low, 0), axis=-1)
    areas = [np.prod(corners[..., 2:] - corners[..., :2], axis=-1) for corners in (ones, others)]
    return common / (areas[0] + areas[1] - common)


def _pixels(low: float, high: float, length: int) -> slice:
    """The pixels of an axis whose centres lie in low <= centre < high; at least one."""
    first, stop = int(np.ceil(low - 0.5)), int(np.ceil(high - 0.5))
    if first >= stop:
        first = int(np.floor((low + high) / 2))
        stop = first + 1
    first = min(max(first, 0), length - 1)
    return slice(first, max(stop, first + 1))
