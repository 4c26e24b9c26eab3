"""Explanation of a run: galleries of correct and incorrect predictions with maps, and the faithfulness of the maps."""

import dataclasses
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from kmura import cam
from kmura.data.dataset import Dataset
from kmura.errors import InputError, reason, remedy
from kmura.evaluation.evaluation import read_evaluation
from kmura.explain.boxes.box_agreement import (
    POSITIVE_SIDE,
    PREDICTED,
    RANDOM_MAPS,
    BoxedMap,
    agreement,
    boxed_maps,
)
from kmura.explain.boxes.placing import POSITIVE, box_options
from kmura.explain.explanation import PICTURES, Case, Explanation, Localization, Look, MeanCurves, Worth
from kmura.explain.faithfulness import Curves, deletion_insertion, drop, maps_of_chance, masks_of_chance
from kmura.explain.outcomes import Reading, gallery_rows, read_images
from kmura.explain.overlays import box_of, overlay, sheet_of, shown_taps
from kmura.explain.saliency import saliency_maps
from kmura.files import write_json
from kmura.metrics import Interval, patient_means
from kmura.models.lookup import entry
from kmura.runs.run import Run

SHEET = "gallery.png"
_BATCH = 32
_NO_FILE_NAME = re.compile(r"[^\w.+-]+")  # names of classes may contain any character


def explain(
    run: str | os.PathLike,
    *,
    records: str | os.PathLike | None = None,
    split: str = "test",
    cases: int = 8,
    sample: int = 64,
    boxes: str | os.PathLike | None = None,
    box_sizes: str | os.PathLike | None = None,
    boxes_of: str = POSITIVE,
    box_classes: Sequence[str] = (),
    tap: str | None = None,
    method: str | None = None,
    towards: Sequence[str] = (),
    seed: int = 0,
) -> Explanation:
    """Returns the explanation of a run's best model and writes it to the folder `explain` in the folder of the run.

    Maps are averaged with the maps of the mirrored images. SHEET in that folder is an overview of the maps
    of the galleries; the maps of several branches are shown side by side.

    Args:
        run: folder of an evaluated run.
        records: folder of the records, if they were moved after training.
        split: split of the predictions.
        cases: number of images per outcome in the galleries, most of them the most confident ones, see
            `kmura.explain.outcomes.gallery_rows`.
        sample: number of images for the curves, evenly spread over the split.
        boxes: file of boxes, see `kmura.explain.boxes.reading.read_boxes`; all of its images in the split are
            compared, see `boxes_of`.
        box_sizes, boxes_of, box_classes: sizes of the original images, whether boxes belong to a finding (`positive`)
            or to anatomy (`all`), and the classes to use; see `kmura.explain.boxes.placing.BoxOptions`.
        tap: name of the feature map to explain; `S4` is that of the transformer in a hybrid. None selects the last
            feature map of each branch of a hybrid, and `cam.tap` of the run for a classifier.
        method: name of the class activation map, see `kmura.cam.METHODS`; None selects `cam.method` of the run.
        towards: names of classes, or `all`; every image of the galleries gets one additional map for each of them.
        seed: seed of the SmoothGrad noise and of the random maps.

    Raises:
        InputError: The run is not finished, has no predictions or is of a kind without a classifier, the records are
            not those of the run, or boxes, classes, the method or the feature map are invalid.
    """
    run = Run(run)
    run.part("contract")  # kinds without one have no classifier to explain
    options = box_options(boxes, box_sizes, boxes_of, box_classes)
    found_boxes = options.read() if options else None
    folder, task, dataset = run.folder, run.labels, run.dataset(records)
    evaluation, table = read_evaluation(run)
    table = table[table["split"] == split].reset_index(drop=True)
    if table["image"].tolist() != dataset.rows(split)["image"].tolist():
        raise InputError(
            f"{folder.predictions} does not match split {split} of {dataset.records}; run kmura evaluate {run} again"
        )
    numbers = {name: number for number, name in enumerate(task.classes)}
    requested = list(numbers.values()) if "all" in towards else [entry(numbers, name, "class") for name in towards]
    method = method or run.config.cam.method
    entry(cam.METHODS, method, "method")
    reading = read_images(table[task.label_columns].to_numpy(), table[task.probability_columns].to_numpy(), task)
    boxed, notes = None, []
    if found_boxes:
        boxed, notes = boxed_maps(dataset, split, table, reading, options, *found_boxes)
    work = _Work(run, dataset, split, tap, method, requested, seed)
    chosen = gallery_rows(reading, cases)
    spread = np.linspace(0, len(table) - 1, min(sample, len(table))).round().astype(int)
    aside = folder.path / f".{folder.explained.name}.part"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir()
        gallery = work.gallery(table, reading, chosen, aside)
        first, *beside = [work.worth(maps, table, spread, reading, boxed) for maps in work.maps]
        explanation = Explanation(
            run=str(run),
            area=run.area,
            phase=run.phase,
            model_sha256=evaluation.model_sha256,
            split=split,
            method=method,
            cases=gallery,
            counts={name: int((reading.outcome == name).sum()) for name in reading.outcomes},
            sample=len(spread),
            **vars(first),
            beside=beside,
            boxes_of=boxes_of,
            notes=notes,
        )
        write_json(aside / folder.explanation.name, dataclasses.asdict(explanation))
        shutil.rmtree(folder.explained, ignore_errors=True)
        aside.rename(folder.explained)
    except OSError as error:
        raise InputError(
            f"{folder.explained} cannot be written: {reason(error)}; {remedy(error, 'explain a copy of the run')}"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return explanation


class _Maps:
    """Computes the maps of one feature map of a model, averaged with those of the mirrored images."""

    def __init__(self, model, tap: str, method: str):
        if tap not in cam.FALLBACKS or tap not in model.feature_maps:
            known = ", ".join(name for name in cam.FALLBACKS if name in model.feature_maps)
            raise InputError(f"the model has no feature map {tap} to explain; choose one of {known}")
        self.tap, self.grain = tap, int(model.feature_maps[tap].shape[1])
        self.engine = cam.CamEngine(model, method=method, tap=tap, fallback=cam.FALLBACKS[tap])

    def __call__(self, images: np.ndarray, target=None) -> np.ndarray:
        """Returns maps [N, H, W] of images [N, H, W, C] in 0..255.

        Args:
            images: [N, H, W, C] in 0..255.
            target: see `kmura.cam.CamEngine`; None explains the predicted side or class.
        """
        parts = [
            self.engine.compiled(images[at : at + _BATCH], target, flip=True)[0].numpy()
            for at in range(0, len(images), _BATCH)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, *images.shape[1:3]), np.float32)


class _Work:
    """A model with the dataset used for its explanation."""

    def __init__(
        self, run: Run, dataset: Dataset, split: str, tap: str | None, method: str, towards: list[int], seed: int
    ):
        self.model = model = run.model()
        self.dataset, self.split, self.config, self.seed = dataset, split, run.config, seed
        self.classes, self.multilabel = run.labels.classes, run.labels.by_label
        self.logits = tf.function(lambda images, training: model(images, training=training), reduce_retracing=True)
        attention = getattr(model, "attention_maps", None)
        self.attention = None if attention is None else keras.Model(model.input, attention)
        self.towards = towards
        self.one_class = tf.Variable(0, dtype=tf.int64)  # a variable, so that one trace serves all classes

        def towards_one_class(logits):
            if logits.shape[-1] > 1:
                return tf.one_hot(tf.fill(tf.shape(logits)[:1], self.one_class), logits.shape[-1])
            positive = self.one_class == len(self.classes) - 1
            return tf.fill(tf.shape(logits), tf.where(positive, 1.0, -1.0))

        self.towards_one_class = towards_one_class
        taps = [tap] if tap else shown_taps(model, self.config.cam.tap)
        self.maps = [_Maps(model, name, method) for name in taps]

    def images(self, rows) -> np.ndarray:
        return self.dataset.images(self.split, rows)

    def gallery(self, table, reading: Reading, chosen: dict[int, bool], folder: Path) -> list[Case]:
        rows = list(chosen)
        images = self.images(rows)
        heats = [maps(images) for maps in self.maps]
        pixels = (
            {
                name: np.concatenate(
                    [
                        saliency_maps(self.model, images[at : at + _BATCH], smooth=smooth, seed=self.seed)
                        for at in range(0, len(images), _BATCH)
                    ]
                )
                for name, smooth in (("saliency", False), ("smoothgrad", True))
            }
            if rows
            else {}
        )
        cases = []
        for number, row in enumerate(rows):
            image = images[number]
            name = f"{reading.outcome[row]}-{number:03d}"
            pictures = {"image": _gray(image)} | {kind: _ink(maps[number]) for kind, maps in pixels.items()}
            for kind, picture in pictures.items():
                picture.save(folder / f"{name}-{kind}.png", format="PNG")
            shown = {maps.tap: heat[number] for maps, heat in zip(self.maps, heats, strict=True)}
            looks = []
            for what, heat in (shown | self._more_maps(image, reading, row)).items():
                file = f"{name}-cam-{len(looks)}-{_NO_FILE_NAME.sub('-', what)}.png"
                overlay(image, heat).save(folder / file, format="PNG")
                looks.append(Look(what, bool(heat.max() <= 0), box_of(heat), file))
            cases.append(
                Case(
                    outcome=str(reading.outcome[row]),
                    image=table["image"][row],
                    study=table["study"][row],
                    label=int(reading.truth[row]),
                    probability=float(reading.probability[row]),
                    caption=reading.caption[row],
                    empty=looks[0].empty,
                    box=looks[0].box,
                    files={kind: looks[0].file if kind == "cam" else f"{name}-{kind}.png" for kind in PICTURES},
                    beside=looks[1:],
                    borderline=chosen[row],
                )
            )
        if cases:
            captions = [f"{case.outcome}{', borderline' if case.borderline else ''}, {case.caption}" for case in cases]
            shown = {maps.tap: heat for maps, heat in zip(self.maps, heats, strict=True)}
            sheet_of(images, shown, captions).save(folder / SHEET, format="PNG")
        return cases

    def _more_maps(self, image, reading: Reading, row: int) -> dict[str, np.ndarray]:
        """Returns additional maps [H, W] of an image by name: for its true class if the prediction is wrong, for the
        requested classes, and attention maps."""
        heats = {}
        own = [int(reading.truth[row])] if reading.outcome[row] == "wrong" and not self.multilabel else []
        for number in dict.fromkeys(own + self.towards):
            self.one_class.assign(number)
            name = self.classes[number]
            heats |= {f"{maps.tap} towards {name}": maps(image[None], self.towards_one_class)[0] for maps in self.maps}
        if self.attention is not None:
            maps = tf.image.resize(self.attention(image[None], training=False), image.shape[:2])[0].numpy()
            heats |= {f"attention {number + 1}": maps[..., number] for number in range(maps.shape[-1])}
        return heats

    def worth(self, maps: _Maps, table, rows, reading: Reading, boxed: list[BoxedMap] | None) -> Worth:
        """Returns the faithfulness of maps on a sample, and their agreement with boxes if there are any."""
        images = self.images(rows)
        heat = maps(images)
        chance = maps_of_chance(len(images), images.shape[1:3], maps.grain, self.seed)
        empty = heat.max((1, 2)) <= 0
        # an empty map does not order pixels: a random map has no expected gain, raster order would have a spurious one
        ordered = np.where(empty[:, None, None], chance, heat)
        curves = deletion_insertion(self.logits, images, ordered, chance, self.multilabel)
        values = {
            name: getattr(curves, f"{name}_area")
            for name in ("deletion", "insertion", "random_deletion", "random_insertion")
        }
        values["deletion_gain"] = values["random_deletion"] - values["deletion"]
        values["insertion_gain"] = values["insertion"] - values["random_insertion"]
        masks = cam.erase_mask(heat, self.config.cam.erase_q).numpy()
        values["drop"] = drop(self.logits, images, masks, self.multilabel)
        values["random_drop"] = drop(self.logits, images, masks_of_chance(chance, masks), self.multilabel)
        scores = patient_means(values, table["patient"].to_numpy()[rows], self.seed)
        localization = None if boxed is None else self.localization(maps, table, reading, boxed)
        return Worth(maps.tap, float(empty.mean()), _mean_curves(curves, scores), localization)

    def localization(self, maps: _Maps, table, reading: Reading, boxed: list[BoxedMap]) -> Localization:
        def maps_of(rows, target):
            if target in (PREDICTED, POSITIVE_SIDE):
                return maps(self.images(rows), None if target == PREDICTED else reading.towards)
            self.one_class.assign(target)
            return maps(self.images(rows), self.towards_one_class)

        size = self.dataset.config.image_size
        random = maps_of_chance(RANDOM_MAPS, (size, size), maps.grain, self.seed)
        return agreement(maps_of, boxed, table["patient"].to_numpy(), random, self.seed)


def _mean_curves(curves: Curves, scores: dict[str, Interval]) -> MeanCurves:
    names = ("share", "deletion", "insertion", "random_deletion", "random_insertion")
    return MeanCurves(**{name: [float(value) for value in getattr(curves, name)] for name in names}, means=scores)


def _gray(image: np.ndarray) -> Image.Image:
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _ink(heat: np.ndarray) -> Image.Image:
    """Returns a pixel map as a picture, dark on white; the top 1 % is black so that outliers do not hide the rest."""
    top = np.quantile(heat, 0.99)
    share = np.clip(heat / top, 0, 1) if top > 0 else np.zeros_like(heat)
    return Image.fromarray((255 * (1 - share)).astype(np.uint8))
