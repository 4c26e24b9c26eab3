"""Predictions for image files, aggregated to studies, with optional maps; decoding runs in parallel to the model."""

import collections
import dataclasses
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from kmura.errors import InputError, check_choice, reason
from kmura.explain.overlays import overlay
from kmura.files import replacing
from kmura.metrics import pool_studies
from kmura.prediction.predictor import load_predictor
from kmura.prediction.private_names import with_private_names
from kmura.prediction.sources import Image, list_images, map_files, shown
from kmura.records.image_files import PassedOver, Tally
from kmura.records.images import UnreadableImage
from kmura.records.manifest import Skipped
from kmura.records.remarks import Remark
from kmura.serving.contract import Contract
from kmura.serving.prepare import prepared_with_remarks
from kmura.workers import processors

TTA = ("none", "flip")


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions for images and their studies.

    For several classes, the columns logit and probability are replaced by logit_CLASS and probability_CLASS for each
    class. Models over all areas have the column abnormal_probability, the sum over the abnormal classes.

    Attributes:
        contract: preprocessing and postprocessing of the model.
        images: one row per decoded image, in the order of the call: image, study, logit, probability (as a study of
            one view, 0 to 1), decision, map (file in `cam`; "" without maps).
        studies: one row per study in `images`: study, images, skipped (number of its images that could not be read),
            probability (0 to 1), decision. Empty if no studies are known.
        skipped: files that could not be read, with the reasons.
        passed_over: other files in the given folders, counted by kind.
        remarks: pictures that show next to nothing or have odd declarations.
    """

    contract: Contract
    images: pd.DataFrame
    studies: pd.DataFrame
    skipped: tuple[Skipped, ...]
    passed_over: tuple[PassedOver, ...] = ()
    remarks: tuple[Remark, ...] = ()

    def table(self) -> pd.DataFrame:
        """Returns one row per image, with the prediction for its study, for output files."""
        studies = self.studies.drop(columns="skipped").set_index("study").add_prefix("study_")
        table = self.images.merge(studies, on="study", how="left")
        table["study_images"] = table["study_images"].astype("Int64")
        if self.contract.is_binary:
            table["threshold"] = self.contract.threshold
        return table if self.images["map"].any() else table.drop(columns="map")


def predict(
    model: str | os.PathLike | Sequence[str | os.PathLike],
    images: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    group: str = "auto",
    threshold: str | None = None,
    records: str | os.PathLike | None = None,
    batch_size: int = 16,
    cam: str | os.PathLike | None = None,
    tta: str = "none",
    workers: int | None = None,
    key_file: str | os.PathLike | None = None,
    link_file: str | os.PathLike | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Returns predictions for image files; files that cannot be read are skipped and listed.

    DICOM files whose paths contain an id, a name, a date or a UID of their tags have pseudonyms in all outputs.

    Args:
        model: a run folder, a `.keras` file or an export; several give an ensemble, the mean of their calibrated
            probabilities, see `load_predictor`.
        images: image files, folders or CSVs, see `list_images`.
        group: how images are grouped to studies, see `list_images`.
        threshold: for a binary run, one of the rules with which it was evaluated; None selects 0.5 (for an export: the
            rule of the export).
        records: folder of the records of a run, if they were moved.
        batch_size: images per step, at least 1.
        cam: folder for the overlays: each image with its Grad-CAM++ map of the decision (multilabel: of the most
            probable label).
        tta: test-time augmentation, a name of TTA: `flip` takes the mean of the logits of an image and of its mirror
            image (left and right exchanged), before calibration.
        workers: number of threads that read and decode images; None uses one per processor that this process may use.
        key_file: key of the pseudonyms, made if it is missing; with it, all DICOM files have pseudonyms. None uses the
            key of the user, only where a path identifies a patient.
        link_file: CSV to write with the pseudonyms and the paths that they stand for.
        progress: called with (number of images done, total number of images).

    Raises:
        InputError: The model cannot be read, the models cannot form an ensemble, no images are given, maps are not
            available, or the output folder is not valid.
    """
    check_choice("tta", tta, TTA)
    if cam and tta != "none":
        raise InputError(f"--cam shows the map of an image as it is, not with --tta {tta}; leave one of them out")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}, but must be at least 1; give a larger value")
    tally = Tally()
    sources = list_images([images] if isinstance(images, str | os.PathLike) else images, group, tally)
    if not sources:
        raise InputError("no images are given; give files, a folder or a CSV")
    sources = with_private_names(sources, tally, key_file, link_file)
    files = map_files(sources, Path(cam)) if cam else []
    predictor = load_predictor(model, records=records, threshold=threshold, flips=tta == "flip")
    if cam and "explain_tensor" not in predictor.signatures:
        raise InputError(
            "--cam needs one model, or several runs or .keras files: an export shows maps of its own decisions only; "
            "leave --cam out"
        )
    report = progress or (lambda done, total: None)
    rows, skipped, remarks, done = [], [], [], 0
    # pydicom's warnings quote values of the file; `catch_warnings` within its threads is not reliable
    with warnings.catch_warnings(), ThreadPoolExecutor(workers or processors()) as pool:
        warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
        drawn: list[Future] = []
        for batch in _batches(_ready(sources, predictor.contract, pool, 2 * batch_size), batch_size, skipped):
            places, pixels, texts = zip(*batch, strict=True)
            remarks += [
                Remark(sources[place].name, text) for place, some in zip(places, texts, strict=True) for text in some
            ]
            answers = predictor.answers(np.stack(pixels), explained=bool(cam))
            for number, place in enumerate(places):
                rows.append((place, *(answers[name][number] for name in ("raw", "logit", "probability", "decision"))))
                if cam:
                    drawn.append(pool.submit(_draw, files[place], pixels[number], answers["cam"][number]))
            done += len(batch)
            report(done + len(skipped), len(sources))
        for future in drawn:
            future.result()
    if done + len(skipped) == len(sources) and skipped:
        report(len(sources), len(sources))
    predictions = _predictions(predictor.contract, sources, rows, skipped, files)
    return dataclasses.replace(predictions, passed_over=tally.passed_over(), remarks=tuple(remarks))


def _ready(
    sources: Sequence[Image], contract: Contract, pool: ThreadPoolExecutor, ahead: int
) -> Iterator[tuple[int, tuple[np.ndarray, tuple[str, ...]] | Skipped]]:
    """Yields index and pixels with remarks (or Skipped) of each image in order; prefetches at most `ahead`."""
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


def _pixels(image: Image, contract: Contract) -> tuple[np.ndarray, tuple[str, ...]] | Skipped:
    try:
        return prepared_with_remarks(image.path.read_bytes(), contract, name=image.path.name)
    except OSError as error:
        return Skipped(image.name, reason(error))
    except UnreadableImage as error:
        return Skipped(image.name, str(error))


def _batches(ready, size: int, skipped: list) -> Iterator[list[tuple[int, np.ndarray, tuple[str, ...]]]]:
    """Yields full batches of index, pixels and remarks of decoded images; appends the others to `skipped`."""
    batch = []
    for number, result in ready:
        if isinstance(result, Skipped):
            skipped.append((number, result))
            continue
        batch.append((number, *result))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _draw(file: Path, pixels: np.ndarray, heat: np.ndarray) -> None:
    with replacing(file, "wb") as out:
        overlay(pixels, heat).save(out, format="PNG")


def _predictions(contract: Contract, sources, rows: Iterable[tuple], skipped, files) -> Predictions:
    places, raw, *numbers, decision = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    shape = -1 if contract.is_binary else (-1, len(contract.classes))
    raw = np.array(raw, float).reshape(len(places), *contract.raw_shape)
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
    pooled = contract.study_probabilities(study, raw[known])
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
    if contract.abnormal:  # pooled separately, as in the evaluation
        abnormal = images["abnormal_probability"].to_numpy()[known]
        studies["abnormal_probability"] = pool_studies(study, abnormal, contract.pooling, k=contract.top_k).value
    return Predictions(contract, images, studies, tuple(entry for _, entry in skipped))


def _named(names: Sequence[str], values: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the columns of a table by name, from values [N] or [N, L]."""
    return dict(zip(names, np.atleast_2d(values.T), strict=True))


def _probabilities(contract: Contract, probability: np.ndarray) -> dict[str, np.ndarray]:
    columns = _named(contract.labels.probability_columns, probability)
    return columns | ({"abnormal_probability": contract.abnormal_probability(probability)} if contract.abnormal else {})
