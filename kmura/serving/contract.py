"""The contract of a model: preprocessing and postprocessing, read from a run, a model file or an export."""

import dataclasses
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from kmura import metrics
from kmura.config import DataConfig, RecordsConfig
from kmura.data.dataset import Dataset
from kmura.errors import InputError
from kmura.evaluation.calibrators import Calibrator, logits_of
from kmura.evaluation.scoring import OperatingScores
from kmura.runs.run import Run
from kmura.tasks import Binary, Task, task_of
from kmura.typed import read_typed

SIGNATURE = "signature.json"  # of an export
EXPORT_VERSION = 1

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Member:
    """One of the models whose mean probability an ensemble gives.

    Attributes:
        name: its run, such as `fold0/XR_WRIST/baseline`.
        calibrator, calibrated_at, tap: as in Contract.
    """

    name: str
    calibrator: Calibrator | None = None
    calibrated_at: str = "study"
    tap: str = "P5"


@dataclasses.dataclass(frozen=True)
class Contract:
    """Preprocessing of images to the model's input, and postprocessing of its logits to probabilities and decisions.

    The probability of an image is that of a study with this image as its only view: if the calibrator was fitted at
    study level, it is applied to the image's own probability. The threshold applies to probabilities of studies, and
    to images as studies of one view.

    Attributes:
        classes: names of the decisions: normal, abnormal; or the names of the logits in their order.
        image_size, resize, channels: of the model's input; image_size in pixels, see DataConfig.
        max_side: larger images are first reduced to this many pixels on the longest side, as in the records.
        calibrator, calibrated_at: None keeps the uncalibrated probabilities; see `evaluation.calibrated_levels`.
        pooling, top_k: aggregation of images to studies, see `metrics.pool_studies` and `metrics.pool_classes`.
        rule, threshold: the decision is abnormal if probability >= threshold, which the rule selected on val; in
            multilabel models a label is present if its probability is at least 0.5.
        tap: feature map whose Grad-CAM++ map explains the decision.
        task: a name of `kmura.tasks.TASKS`. Only binary models are calibrated.
        abnormal: number of abnormal classes (they come first) of one model over all areas; else 0.
        jpeg_quality: quality of the records if they are JPEG, 1 to 100; image files for prediction are not compressed
            again. None if the records are lossless.
        members: the models of an ensemble; empty for a single model. The probability of an ensemble, of an image or of
            a study, is the mean of the calibrated probabilities of its members; `calibrator` is None.
    """

    classes: tuple[str, ...]
    image_size: int
    resize: str
    channels: int
    max_side: int
    calibrator: Calibrator | None = None
    calibrated_at: str = "study"
    pooling: str = "mean"
    top_k: int = 2
    rule: str = "0.5"
    threshold: float = 0.5
    tap: str = "P5"
    task: str = Binary.name
    abnormal: int = 0
    jpeg_quality: int | None = None
    members: tuple[Member, ...] = ()

    def of_members(self) -> "list[Contract]":
        """Returns the contract of each model: of every member of an ensemble, or this one of a single model."""
        if not self.members:
            return [self]
        return [
            dataclasses.replace(
                self, members=(), calibrator=member.calibrator, calibrated_at=member.calibrated_at, tap=member.tap
            )
            for member in self.members
        ]

    @property
    def raw_output(self) -> str:
        """The name of the output from which probabilities follow: the logits of the network or of all members."""
        return "member_logit" if self.members else "logit"

    @property
    def raw_shape(self) -> tuple[int, ...]:
        """The shape of that output of one image: [], [L], or of an ensemble [M] or [M, L]."""
        return (len(self.members),) * bool(self.members) + (() if self.is_binary else (len(self.classes),))

    @property
    def labels(self) -> Task:
        """The task, with the classes of the contract."""
        return task_of(self.task, self.classes)

    @property
    def is_binary(self) -> bool:
        """Whether the task is binary: one logit, a threshold and an optional calibrator."""
        return isinstance(self.labels, Binary)

    @property
    def losses(self) -> str:
        """The reason why predictions differ from those of the evaluation; empty if they do not."""
        if self.jpeg_quality is None:
            return ""
        return (
            f"the records used for evaluation are JPEGs of quality {self.jpeg_quality}; image files are not compressed "
            "again, so predictions differ slightly from those of the evaluation"
        )

    @property
    def calibration(self) -> str:
        """The calibration of the probabilities in words, for example `platt, fitted to studies`."""
        if self.members:
            each = " or ".join(dict.fromkeys(one.calibration for one in self.of_members()))
            return f"mean of {len(self.members)} models, each: {each}"
        if self.calibrator is None:
            return "none"
        return f"{self.calibrator.method}, fitted to {'studies' if self.calibrated_at == 'study' else 'images'}"

    def study_probabilities(self, study, logit) -> metrics.Studies:
        """Returns the calibrated probabilities of S studies from the logits of their images.

        Args:
            study: [N], name of the study of each image.
            logit: logits of the images, [N] or, for several classes, [N, L]; of an ensemble, those of its M members,
                [N, M] or [N, M, L].

        Returns:
            `metrics.Studies` whose `value` is [S] or, for several classes, [S, L]; in 0..1.
        """
        if self.members:
            logit = np.asarray(logit, float)
            parts = [one.study_probabilities(study, logit[:, place]) for place, one in enumerate(self.of_members())]
            return dataclasses.replace(parts[0], value=np.mean([part.value for part in parts], axis=0))
        if not self.is_binary:
            probability = self.labels.probabilities(logit)
            return metrics.pool_classes(study, probability, self.pooling, k=self.top_k, normalize=self.labels.softmax)
        logit = np.asarray(logit, float)
        if self.calibrator is not None and self.calibrated_at == "image":
            return metrics.pool_studies(study, self.calibrator(logit), self.pooling, k=self.top_k)
        pooled = metrics.pool_studies(study, special.expit(logit), self.pooling, k=self.top_k)
        if self.calibrator is None:
            return pooled
        return dataclasses.replace(pooled, value=self.calibrator(logits_of(pooled.value)))

    def decision(self, probability) -> np.ndarray:
        """Returns the names of the decided classes [N] for probabilities [N] or [N, L].

        Several labels are joined as `first, second`; the name is `none` if no label is present.
        """
        return self.labels.decision(probability, self.threshold)

    def undecided(self, probability, within: float) -> np.ndarray:
        """Returns bool [N]: whether changing probabilities [N] or [N, L] by less than `within` changes the decision."""
        return self.labels.undecided(probability, self.threshold, within)

    def abnormal_probability(self, probability) -> np.ndarray:
        """Returns the probability [N] of any abnormal class, from probabilities [N, L] of one model over all areas."""
        return np.asarray(probability)[:, : self.abnormal].sum(1)


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
    """A threshold of a binary model and what it achieved in the evaluation, at study level.

    Attributes:
        rule, threshold: the decision is abnormal if probability >= threshold; the rule selected it on val.
        split: the split that the scores were measured on.
        studies: number of studies of the split.
        sensitivity, specificity: with their 95 % intervals.
    """

    rule: str
    threshold: float
    split: str
    studies: int
    sensitivity: metrics.Interval
    specificity: metrics.Interval


@dataclasses.dataclass(frozen=True)
class Signature:
    """The entries of the `signature.json` of an export that kmura reads; further entries are for people.

    Attributes:
        format: one of `kmura.export.bundle.FORMATS`.
        contract: preprocessing and postprocessing.
        files: file of the export -> its SHA-256; empty while the export is being checked.
        area: area of the training images.
        operating_points: the thresholds of a binary run as measured on test (without test: on the last split that
            was scored); empty for several classes, and for exports of versions that did not store them.
    """

    format: str
    contract: Contract
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    area: str = ""
    operating_points: tuple[OperatingPoint, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Version:
    export_version: int


def contract_of_run(
    run: str | os.PathLike, *, records: str | os.PathLike | None = None, threshold: str | None = None
) -> Contract:
    """Returns the contract of a run's best model as it was evaluated.

    A run that was not evaluated is not calibrated, has the threshold 0.5, and pools studies by the mean.

    Args:
        run: folder of a run.
        records: folder of its records, if they were moved. They are only needed for runs of earlier versions, which do
            not store the size to which large images are reduced; without records, the default size is used for them.
        threshold: of a binary run, one of the rules that it was evaluated at; None takes 0.5, or the first rule if 0.5
            is not among them.

    Raises:
        InputError: There is no run, its evaluation is outdated, the rule is unknown or given for several classes, or
            the records are not those of the run.
    """
    run = run if isinstance(run, Run) else Run(run)
    return run.part("contract")(run, records=records, threshold=threshold)


def classification_contract(
    run: Run, *, records: str | os.PathLike | None = None, threshold: str | None = None
) -> Contract:
    """Returns the contract of a run of kind classification; see `contract_of_run`."""
    description = run.description
    check_threshold(run, run.labels, threshold)
    options = _record_options(run, records)
    contract = Contract(
        classes=description.classes,
        image_size=description.config.data.image_size,
        resize=description.config.data.resize,
        channels=description.channels,
        max_side=options.get("max_side", RecordsConfig.max_side),
        tap=description.config.cam.tap,
        task=description.task,
        abnormal=run.labels.abnormal,
        jpeg_quality=options["quality"] if options.get("encoding") == "jpeg" else None,
    )
    if contract.losses:
        _log.warning("%s: %s", run, contract.losses)
    if not run.folder.metrics.exists():
        if threshold not in (None, "0.5"):
            raise InputError(f"{run} is not evaluated, so its only threshold is 0.5; run kmura evaluate {run}")
        lacking = "its probabilities are not calibrated" if contract.is_binary else "studies are pooled by mean"
        _log.warning("%s is not evaluated: %s; run kmura evaluate %s", run, lacking, run)
        return contract
    scores = run.part("evaluation")(run)[0].scores
    contract = dataclasses.replace(contract, pooling=scores.options.pooling, top_k=scores.options.top_k)
    if not contract.is_binary:
        return contract
    rule, value = _operating_point(run, scores.operating_points, threshold)
    return dataclasses.replace(
        contract,
        calibrator=scores.calibrator,
        calibrated_at=scores.options.calibrate_at,
        rule=rule,
        threshold=value,
    )


def check_threshold(model: str | os.PathLike, task: Task, threshold: str | None) -> None:
    """Checks that no threshold (`--threshold`) is given for a model of several classes or labels.

    Raises:
        InputError: A threshold is given.
    """
    if not isinstance(task, Binary) and threshold is not None:
        way = "the most probable class" if task.softmax else "each label at 0.5"
        raise InputError(f"{model} is a {task.name} model, which decides by {way}; remove --threshold {threshold}")


def contract_of_model(model, name: str) -> Contract:
    """Returns the contract of a classifier without its run: no calibration, threshold 0.5, default preprocessing.

    Args:
        model: a Keras model.
        name: name of its file, for messages.

    Raises:
        InputError: The model is not a classifier of one logit for square images.
    """
    if not hasattr(model, "feature_maps"):
        raise InputError(
            f"{name} is a Keras model, but not a classifier of kmura, which normalises the images and names its "
            "feature maps; give a run, or a .keras file that kmura fit has written"
        )
    shape = model.input_shape
    if len(shape) != 4 or shape[1] != shape[2] or model.output_shape[1:] != (1,):
        raise InputError(
            f"{name} takes {shape} and returns {model.output_shape}; without a run, which names the classes, kmura can "
            "use only a binary classifier of square images; give the folder of the run"
        )
    _log.warning("%s is not part of a run: its probabilities are not calibrated and the threshold is 0.5", name)
    return Contract(
        classes=("normal", "abnormal"),
        image_size=shape[1],
        resize=DataConfig.resize,
        channels=shape[3],
        max_side=RecordsConfig.max_side,
    )


def read_signature(folder: Path) -> Signature:
    """Returns the content of the `signature.json` of an export (the folder of one version).

    Raises:
        InputError: The file is missing, damaged or of another version.
    """
    path = folder / SIGNATURE
    if not path.is_file():
        raise InputError(f"{folder} is not an export of kmura (no {SIGNATURE}); make one with: kmura export RUN")
    version = read_typed(_Version, path, "kmura export RUN").export_version
    if version != EXPORT_VERSION:
        raise InputError(f"{path} has export version {version}, this kmura reads {EXPORT_VERSION}; export again")
    return read_typed(Signature, path, "kmura export RUN")


def _record_options(run: Run, records) -> dict[str, Any]:
    """Returns the options with which the records of the run were built, as the run stores them.

    For runs that do not store them, they are read from the records; empty if the records no longer exist.
    """
    stored = run.description.preparation
    if stored is not None and not records:
        return stored
    folder = records or run.description.records
    try:
        manifest = Dataset(folder, run.area, run.config.data).manifest
    except InputError:
        if records:
            raise
        text = (
            "records %s are missing: images are reduced to %d pixels, the default of records; if this is wrong, give "
            "the records with --records"
        )
        _log.warning(text, folder, RecordsConfig.max_side)
        return {}
    if manifest.inputs != run.description.inputs:
        if records:
            raise InputError(f"{records} are not the records that the run was trained on; give those with --records")
        _log.warning("records %s are no longer those of the run; their max_side is used anyway", folder)
    return dict(manifest.options) if stored is None else stored


def operating_points(scores) -> tuple[OperatingPoint, ...]:
    """Returns the operating points of the evaluation of a run, measured on test; empty for several classes.

    Args:
        scores: `Scores` or `MultiScores` of the run. Without a split test, the last split with thresholds is used.
    """
    splits = {split: points for split, points in getattr(scores, "operating_points", {}).items() if points}
    if not splits:
        return ()
    split = "test" if "test" in splits else list(splits)[-1]
    studies = scores.splits[split]["study"].units
    return tuple(
        OperatingPoint(point.rule, point.threshold, split, studies, point.scores["recall"], point.scores["specificity"])
        for point in splits[split]
    )


def _operating_point(run, points: dict[str, list[OperatingScores]], wanted: str | None) -> tuple[str, float]:
    known = {point.rule: point.threshold for split in points.values() for point in split}
    if not known and wanted is None:
        return "0.5", 0.5
    if wanted is None:
        wanted = "0.5" if "0.5" in known else next(iter(known))
    if wanted not in known:
        raise InputError(
            f"threshold {wanted!r} is not among the rules with which {run} was evaluated ({', '.join(known)}); choose "
            f"one, or evaluate it again: kmura evaluate {run} --threshold '{wanted}'"
        )
    return wanted, known[wanted]
