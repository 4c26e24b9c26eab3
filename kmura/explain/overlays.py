"""Overlays of class activation maps on radiographs, with a box around the region of the highest values."""

import logging
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw

from kmura import cam
from kmura.config import ClassificationConfig
from kmura.data.dataset import Dataset
from kmura.explain.outcomes import read_images
from kmura.files import replacing

_log = logging.getLogger(__name__)

# black, purple, orange, yellow, white: lightness increases, so the scale is readable without colour
HEAT = np.array([[0, 0, 0], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], float)
GAP, SEAM = 12, 2  # pixels between images, and between the maps of one image
CAPTION, LETTER = 14, 6  # height of a line of text and width of a letter, in pixels
EVERY, EVERY_LATE = 5, 2  # epochs between the sheets of a hybrid, while its backbone is frozen and afterwards


def box_of(heat: np.ndarray) -> tuple[int, int, int, int] | None:
    """Returns the bounding box of the values of a map [H, W] above half of its maximum; None for an empty map.

    The box is (left, top, right, bottom) in pixels; right and bottom are exclusive.
    """
    if heat.max() <= 0:
        return None
    rows, columns = np.nonzero(heat > heat.max() / 2)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def overlay(image: np.ndarray, heat: np.ndarray) -> Image.Image:
    """Returns a radiograph with its map as a heat map, and the box around the region of the highest values.

    Args:
        image: [H, W, 1 or 3] in 0..255.
        heat: [H, W], nonnegative, any scale; the image is unchanged where it is 0.
    """
    gray = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image
    share, colour = _coloured(heat)
    weight = 0.55 * share[..., None]
    picture = Image.fromarray(np.clip(gray * (1 - weight) + colour * weight, 0, 255).astype(np.uint8))
    box = box_of(heat)
    if box:
        left, top, right, bottom = box
        ImageDraw.Draw(picture).rectangle((left, top, right - 1, bottom - 1), outline=(90, 220, 255))
    return picture


def heat_layer(heat: np.ndarray) -> Image.Image:
    """Returns a map as an RGBA image to lay over its radiograph: transparent where the map is 0.

    Args:
        heat: [H, W], nonnegative, any scale.
    """
    share, colour = _coloured(heat)
    return Image.fromarray(np.dstack([colour, 255 * share]).round().astype(np.uint8))


def _coloured(heat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns a map [H, W] divided by its maximum, and its colours [H, W, 3] in 0..255."""
    share = heat / heat.max() if heat.max() > 0 else heat
    stops = np.linspace(0, 1, len(HEAT))
    return share, np.stack([np.interp(share, stops, HEAT[:, channel]) for channel in range(3)], axis=-1)


def contact_sheet(pictures: list[Image.Image], captions: list[str], columns: int = 4) -> Image.Image:
    """Returns a grid of pictures of equal size, each with its caption below."""
    width, height = pictures[0].size
    scale = max(1, round(224 / height))
    width, height = width * scale, height * scale
    rows = -(-len(pictures) // columns)
    columns = min(columns, len(pictures))
    captions = [textwrap.fill(caption, max(10, width // LETTER)) for caption in captions]
    words = CAPTION * max(caption.count("\n") + 1 for caption in captions)
    size = (columns * (width + GAP) + GAP, rows * (height + words + GAP) + GAP)
    sheet = Image.new("RGB", size, (20, 20, 20))
    draw = ImageDraw.Draw(sheet)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        row, column = divmod(number, columns)
        x, y = GAP + column * (width + GAP), GAP + row * (height + words + GAP)
        sheet.paste(picture.resize((width, height), Image.Resampling.BILINEAR), (x, y))
        draw.text((x, y + height + 1), caption, fill=(230, 230, 230))
    return sheet


class CamOverlays(keras.callbacks.Callback):
    """Draws the maps of a fixed sample of images at regular epochs: `RUN/cam/epoch-00005.png`.

    The sample has the same number of images of each class, as far as available. Maps are for `abnormal` (for several
    classes: for the predicted class), averaged with the maps of the mirrored images. Each caption states the label and
    the prediction.
    """

    def __init__(
        self,
        dataset: Dataset,
        run: str | os.PathLike,
        *,
        every: int,
        late: tuple[int, int] | None = None,
        first: bool = False,
        tap: str = "P5",
        method: str = "grad_cam_pp",
        split: str = "test",
        images: int = 8,
    ):
        """
        Args:
            dataset, split: source of the images.
            run: folder of the run.
            every: number of epochs between sheets.
            late: (epoch, every): from this epoch (counted from 1), another number of epochs between sheets.
            first: draw a sheet after the first epoch too.
            tap: name of the feature map to draw, usually `cam.tap`; for a hybrid, the last feature map of each branch
                is drawn instead, side by side.
            method: name of the class activation map, usually `cam.method`; see `kmura.cam.METHODS`.
            images: number of images; at least one per class.
        """
        super().__init__()
        self.every, self.late, self.first, self.folder = every, late, first, Path(run) / "cam"
        self.tap, self.method = tap, method
        self.task, labels = dataset.labels, dataset.ids(split)
        known = np.unique(labels[labels[:, 0] >= 0, 0])
        chosen = sorted(
            number
            for label in known
            for number in _spread(np.nonzero(labels[:, 0] == label)[0], max(1, images // len(known)))
        )
        self.labels = labels[chosen]
        self.images = dataset.images(split, chosen)

    def on_train_begin(self, logs=None):
        epochs = self.params["epochs"]
        if not any(map(self.due, range(1, epochs + 1))):
            _log.warning(
                "no maps are drawn: they are due every %d epochs, but training ends after %d", self.every, epochs
            )
        self.engines = [
            cam.CamEngine(self.model.classifier, method=self.method, tap=tap, fallback=cam.FALLBACKS[tap])
            for tap in shown_taps(self.model.classifier, self.tap)
        ]
        binary = self.task.outputs == 1
        self.target = cam.named_target("abnormal", ("normal", "abnormal")) if binary else None

    def on_epoch_begin(self, epoch, logs=None):
        if epoch and not self._path(epoch).exists():  # the run was stopped before this sheet was written
            self._draw(epoch)

    def on_epoch_end(self, epoch, logs=None):
        self._draw(epoch + 1)

    def due(self, finished: int) -> bool:
        """Returns whether a sheet is drawn after `finished` epochs."""
        if self.first and finished == 1:
            return True
        late = self.late is not None and finished >= self.late[0]
        return finished % (self.late[1] if late else self.every) == 0

    def _draw(self, finished: int) -> None:
        if self.due(finished):
            results = [engine.compiled(tf.constant(self.images), self.target, flip=True) for engine in self.engines]
            maps = {engine.tap: heat.numpy() for engine, (heat, _) in zip(self.engines, results, strict=True)}
            reading = read_images(self.labels, self.task.probabilities(results[0][1].numpy()), self.task)
            sheet = sheet_of(self.images, maps, reading.caption)
            with replacing(self._path(finished), "wb") as file:
                sheet.save(file, format="PNG")

    def _path(self, finished: int) -> Path:
        return self.folder / f"epoch-{finished:05d}.png"


def overlays_of(
    dataset: Dataset, run: str | os.PathLike, config: ClassificationConfig, *, every: int | None = None
) -> list[CamOverlays]:
    """Returns the overlay callbacks of a run, for `callbacks_for` of `kmura.classification.fit.fit_areas`.

    Args:
        dataset, run: see CamOverlays.
        config: configuration of the run.
        every: number of epochs between sheets. If None, sheets are drawn only for a hybrid: after the first epoch,
            every EVERY epochs while its backbone is frozen, then every EVERY_LATE epochs.
    """
    how = {"tap": config.cam.tap, "method": config.cam.method}
    if every is not None:
        return [CamOverlays(dataset, run, every=every, **how)]
    if config.model.architecture != "hybrid":
        return []
    frozen = config.train.frozen_until_epoch
    late = None if frozen is None else (frozen + 1, EVERY_LATE)
    return [CamOverlays(dataset, run, every=EVERY, late=late, first=True, **how)]


def shown_taps(classifier: keras.Model, tap: str) -> list[str]:
    """Returns the names of the feature maps to show: the last one of each branch of a hybrid, else `tap`."""
    return list(classifier.branches.values()) if len(classifier.branches) > 1 else [tap]


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Returns one row of pictures of equal size."""
    width, height = pictures[0].size
    row = Image.new("RGB", (len(pictures) * (width + SEAM) - SEAM, height), (20, 20, 20))
    for number, picture in enumerate(pictures):
        row.paste(picture, (number * (width + SEAM), 0))
    return row


def sheet_of(images, maps: Mapping[str, np.ndarray], captions: list[str]) -> Image.Image:
    """Returns a contact sheet of images with their maps.

    Args:
        images: [N, H, W, C] in 0..255.
        maps: feature map -> maps [N, H, W].
        captions: [N], one per image.
    """
    pictures = [
        side_by_side([overlay(image, heat) for heat in heats])
        for image, *heats in zip(images, *maps.values(), strict=True)
    ]
    if len(maps) > 1:
        captions = [f"{caption}; {', '.join(maps)}" for caption in captions]
    return contact_sheet(pictures, captions)


def _spread(numbers: np.ndarray, count: int) -> list[int]:
    """Returns `count` evenly spaced elements of `numbers`, or all of them if there are fewer."""
    if len(numbers) <= count:
        return numbers.tolist()
    return numbers[np.linspace(0, len(numbers) - 1, count).round().astype(int)].tolist()
