"""Predictions for image files: decoded in threads while the model computes, pooled to studies, with maps if wanted."""

import collections
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from kmura.errors import InputError, reason
from kmura.explain.overlays import overlay
from kmura.files import replacing
from kmura.metrics import pool_studies
from kmura.prediction.predictor import load_predictor
from kmura.prediction.sources import Image, list_images, map_files, shown
from kmura.records import dicom
from kmura.records.images import UnreadableImage
from kmura.records.manifest import Skipped
from kmura.serving.contract import Contract
from kmura.serving.prepare import prepared


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Answers for images and their studies.

    Attributes:
        contract: what the answers mean.
        images: a row an image that could be read, in the order of the call: image, study, logit, probability (as a
            study of this one view), decision, map (file of `cam`, "" without).
        studies: a row a study of `images`: study, images, skipped (images of it that could not be read), probability,
            decision. Empty where no studies are known.
        skipped: files that could not be read, and why.

    Of several classes there are logit_CLASS and probability_CLASS for each, and of one model over all areas
    abnormal_probability, the sum over the abnormal classes.
    """

    contract: Contract
    images: pd.DataFrame
    studies: pd.DataFrame
    skipped: tuple[Skipped, ...]

    def table(self) -> pd.DataFrame:
        """One row an image with its study's answer, for files."""
        studies = self.studies.drop(columns="skipped").set_index("study").add_prefix("study_")
        table = self.images.merge(studies, on="study", how="left")
        table["study_images"] = table["study_images"].astype("Int64")
        if self.contract.is_binary:
            table["threshold"] = self.contract.threshold
        return table if self.images["map"].any() else table.drop(columns="map")


def predict(
    model: str | os.PathLike,
    images: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    group: str = "auto",
    threshold: str | None = None,
    records: str | os.PathLike | None = None,
    batch_size: int = 16,
    cam: str | os.PathLike | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """The model's answers for image files; those that cannot be read are left out and listed.

    Args:
        model: a run folder, a `.keras` file or an export, see `load_predictor`.
        images: files, folders, CSVs, see `list_images`.
        group: how images are put together to studies, see `list_images`.
        threshold: of a binary run a rule that it was evaluated at; None takes 0.5 (an export: that which it was made
            with).
        records: where a run's records are now.
        batch_size: images a step.
        cam: folder for a map of each image over it: Grad-CAM++ of what speaks for the decision (of several labels: for
            the most probable one).
        workers: threads that read and decode; default: one a core.
        progress: called with (images done, images in all).

    Raises:
        InputError: no model, no images at all, a folder that cannot be written.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; 1 or more is needed")
    sources = list_images([images] if isinstance(images, str | os.PathLike) else images, group)
    if not sources:
        raise InputError("no images are given; give files, a folder or a CSV")
    files = map_files(sources, Path(cam)) if cam else []
    predictor = load_predictor(model, records=records, threshold=threshold)
    report = progress or (lambda done, total: None)
    rows, skipped, done = [], [], 0
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        drawn: list[Future] = []
        for batch in _batches(_ready(sources, predictor.contract, pool, 2 * batch_size), batch_size, skipped):
            places, pixels = zip(*batch, strict=True)
            found = predictor.answers(np.stack(pixels), explained=bool(cam))
            for number, place in enumerate(places):
                rows.append((place, *(found[name][number] for name in ("logit", "probability", "decision"))))
                if cam:
                    drawn.append(pool.submit(_draw, files[place], pixels[number], found["cam"][number]))
            done += len(batch)
            report(done + len(skipped), len(sources))
        for future in drawn:
            future.result()
    if done + len(skipped) == len(sources) and skipped:
        report(len(sources), len(sources))
    return _predictions(predictor.contract, sources, rows, skipped, files)


def _ready(
    sources: Sequence[Image], contract: Contract, pool: ThreadPoolExecutor, ahead: int
) -> Iterator[tuple[int, np.ndarray | Skipped]]:
    """Number and pixels of each image (or why there are none), in order; `ahead` of them wait decoded at most."""
    waiting: collections.deque[Future] = collections.deque()
    number = 0
    for place in range(len(sources) + ahead):
        if place < len(sources):
            waiting.append(pool.submit(_pixels, sources[place], contract))
        if len(waiting) > ahead or place >= len(sources):
            if not waiting:
                return
            yield number, waiting.popleft().result()
            number += 1


def _pixels(image: Image, contract: Contract) -> np.ndarray | Skipped:
    try:
        data = image.path.read_bytes()
        return prepared(data, contract, dicom=image.path.suffix.lower() in dicom.SUFFIXES)
    except OSError as error:
        return Skipped(image.name, reason(error))
    except UnreadableImage as error:
        return Skipped(image.name, str(error))


def _batches(ready, size: int, skipped: list) -> Iterator[list[tuple[int, np.ndarray]]]:
    """Full batches of what could be read; the rest goes to `skipped`, with its number."""
    batch = []
    for number, found in ready:
        if isinstance(found, Skipped):
            skipped.append((number, found))
            continue
        batch.append((number, found))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _draw(file: Path, pixels: np.ndarray, heat: np.ndarray) -> None:
    with replacing(file, "wb") as out:
        overlay(pixels, heat).save(out, format="PNG")


def _predictions(contract: Contract, sources, rows: Iterable[tuple], skipped, files) -> Predictions:
    places, *numbers, decision = zip(*rows, strict=True) if rows else ((), (), (), ())
    shape = -1 if contract.is_binary else (-1, len(contract.classes))
    logit, probability = (np.array(values, float).reshape(shape) for values in numbers)
    images = pd.DataFrame(
        {
            "image": [sources[place].name for place in places],
            "study": [sources[place].study for place in places],
            **_named(contract.labels.logit_columns, logit),
            **_probabilities(contract, probability),
            "decision": [str(name) for name in decision],
            "map": [shown(files[place]) if files else "" for place in places],
        }
    )
    known = (images["study"] != "").to_numpy()
    study = images["study"].to_numpy()[known]
    pooled = contract.study_probabilities(study, logit[known])
    names = study[pooled.first]
    lost = collections.Counter(sources[number].study for number, _ in skipped)
    studies = pd.DataFrame(
        {
            "study": names,
            "images": pooled.images,
            "skipped": [lost[name] for name in names],
            **_probabilities(contract, pooled.value),
            "decision": contract.decision(pooled.value),
        }
    )
    if contract.abnormal:  # pooled of its own, as the evaluation does
        abnormal = images["abnormal_probability"].to_numpy()[known]
        studies["abnormal_probability"] = pool_studies(study, abnormal, contract.pooling, k=contract.top_k).value
    return Predictions(contract, images, studies, tuple(found for _, found in skipped))


def _named(names: Sequence[str], values: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of a table, of values [N] or [N, L]."""
    return dict(zip(names, np.atleast_2d(values.T), strict=True))


def _probabilities(contract: Contract, probability: np.ndarray) -> dict[str, np.ndarray]:
    found = _named(contract.labels.probability_columns, probability)
    return found | ({"abnormal_probability": contract.abnormal_probability(probability)} if contract.abnormal else {})
