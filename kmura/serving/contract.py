"""What stands between an image file and an answer, besides the weights: read from a run, a model file or an export."""

import dataclasses
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from kmura import metrics
from kmura.config import DataConfig, RecordsConfig
from kmura.errors import InputError
from kmura.evaluation.calibrators import Calibrator, logits_of
from kmura.evaluation.class_scores import joint_areas, read_any_evaluation
from kmura.files import reading_json
from kmura.records.manifest import read_manifest
from kmura.runs.run import RunDescription, RunFolder, read_run

SIGNATURE = "signature.json"  # of an export
EXPORT_VERSION = 1
NO_LABEL = "none"  # the decision of several labels, none of which is there

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Contract:
    """How an image becomes the model's input, and its logit (of several classes: logits) an answer.

    The probability of an image is that of a study of this one view: with a calibrator fitted at study level, the
    calibrated value of its own. The threshold is of the probabilities of studies, and serves images as such studies.

    Attributes:
        classes: what a decision is called: normal, abnormal, or the names of the logits in their order.
        image_size, resize, channels: of the model's input, see DataConfig.
        max_side: larger images are first reduced to this on the longest side, as the records were.
        calibrator, calibrated_at: None leaves the model's own probabilities; see `evaluation.calibrated_levels`.
        pooling, top_k: from images to their study, see `metrics.pool_studies` and `metrics.pool_classes`.
        rule, threshold: abnormal is probability >= threshold, which the rule chose on val; of several labels each is
            there at 0.5 or more.
        tap: feature map whose Grad-CAM++ explains an answer.
        task: `binary`, `multiclass` (the decision is the most probable class) or `multilabel`; see
            `data.labels.Labelling`. Only binary ones are calibrated.
        abnormal: how many of the classes, the first ones, are abnormal, of one model over all areas; else 0.
        jpeg_quality: that of the records, whose losses image files do not go through; None of lossless ones.
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
    task: str = "binary"
    abnormal: int = 0
    jpeg_quality: int | None = None

    @property
    def losses(self) -> str:
        """What sets the answers apart from those of the evaluation, for people; empty if nothing does."""
        if self.jpeg_quality is None:
            return ""
        return (
            f"the records that it was evaluated on are JPEGs of quality {self.jpeg_quality}; files do not go through "
            "that loss here, so answers differ a little from the evaluation's"
        )

    @property
    def calibration(self) -> str:
        """Which calibration the probabilities have gone through, for people: `platt, fitted to studies`."""
        if self.calibrator is None:
            return "none"
        return f"{self.calibrator.method}, fitted to {'studies' if self.calibrated_at == 'study' else 'images'}"

    def study_probabilities(self, study, logit) -> metrics.Studies:
        """The probabilities of studies, calibrated, from the logits of their images; [N], of several classes [N, L]."""
        if self.task != "binary":
            softmax = self.task == "multiclass"
            each = metrics.probabilities(logit, softmax=softmax)
            return metrics.pool_classes(study, each, self.pooling, k=self.top_k, normalize=softmax)
        logit = np.clip(np.asarray(logit, float), -60, 60)
        if self.calibrator is not None and self.calibrated_at == "image":
            return metrics.pool_studies(study, self.calibrator(logit), self.pooling, k=self.top_k)
        pooled = metrics.pool_studies(study, 1 / (1 + np.exp(-logit)), self.pooling, k=self.top_k)
        if self.calibrator is None:
            return pooled
        return dataclasses.replace(pooled, value=self.calibrator(logits_of(pooled.value)))

    def decision(self, probability) -> np.ndarray:
        """The class names [N] that probabilities [N] or [N, L] come to; several labels as `one, other` or `none`."""
        probability, names = np.asarray(probability), np.array(self.classes)
        if self.task == "multiclass":
            return names[probability.argmax(1)]
        above = probability >= self.threshold
        if self.task == "multilabel":
            return np.array([", ".join(names[row]) or NO_LABEL for row in above], dtype=str)
        return np.where(above, self.classes[1], self.classes[0])

    def undecided(self, probability, within: float) -> np.ndarray:
        """Which decisions [N] on probabilities [N] or [N, L] are nearer than `within` to another one."""
        probability = np.asarray(probability)
        if self.task == "multiclass":
            return np.ptp(np.sort(probability, axis=1)[:, -2:], axis=1) < within
        near = np.abs(probability - self.threshold) < within
        return near.any(axis=1) if self.task == "multilabel" else near

    def abnormal_probability(self, probability) -> np.ndarray:
        """That of any abnormal class [N], from probabilities [N, L] of one model over all areas."""
        return np.asarray(probability)[:, : self.abnormal].sum(1)


def contract_of_run(
    run: str | os.PathLike, *, records: str | os.PathLike | None = None, threshold: str | None = None
) -> Contract:
    """The contract of a run's best model as it was evaluated; where it was not, uncalibrated at 0.5, studies by mean.

    Args:
        run: folder of a run.
        records: where its records are now, which say to what size large images are reduced. Where they are gone, the
            default of records is taken.
        threshold: of a binary run a rule among those evaluated; None takes 0.5, or the first where that is not among
            them.

    Raises:
        InputError: no run, a stale evaluation, an unknown rule, a rule for several classes, other records.
    """
    description = read_run(run)
    check_threshold(run, description.task, threshold)
    options = _record_options(description, records)
    contract = Contract(
        classes=description.classes,
        image_size=description.config.data.image_size,
        resize=description.config.data.resize,
        channels=description.channels,
        max_side=options.get("max_side", RecordsConfig.max_side),
        tap=description.config.cam.tap,
        task=description.task,
        abnormal=len(joint_areas(description.area, description.task, description.classes)),
        jpeg_quality=options["quality"] if options.get("encoding") == "jpeg" else None,
    )
    if contract.losses:
        _log.warning("%s: %s", run, contract.losses)
    if not RunFolder(Path(run)).metrics.exists():
        if threshold not in (None, "0.5"):
            raise InputError(f"{run} is not evaluated, so it has the threshold 0.5 alone; run kmura evaluate {run}")
        lacking = "its probabilities are not calibrated" if contract.task == "binary" else "studies are pooled by mean"
        _log.warning("%s is not evaluated: %s; run kmura evaluate %s", run, lacking, run)
        return contract
    scores = read_any_evaluation(run, description)[0]["scores"]
    options = scores["options"]
    contract = dataclasses.replace(contract, pooling=options["pooling"], top_k=options["top_k"])
    if contract.task != "binary":
        return contract
    rule, value = _operating_point(run, scores["operating_points"], threshold)
    return dataclasses.replace(
        contract,
        calibrator=Calibrator.from_json(scores["calibrator"]),
        calibrated_at=options["calibrate_at"],
        rule=rule,
        threshold=value,
    )


def check_threshold(model: str | os.PathLike, task: str, threshold: str | None) -> None:
    """Refuses a threshold (`--threshold`) for a model of several classes or labels.

    Raises:
        InputError: names the model and how it decides.
    """
    if task != "binary" and threshold is not None:
        way = "the most probable class" if task == "multiclass" else "each label at 0.5"
        raise InputError(f"{model} is a {task} model, which decides by {way}; leave --threshold {threshold} out")


def contract_of_model(model, name: str) -> Contract:
    """The contract of a saved classifier without its run: neither calibration nor threshold, default preparation.

    Raises:
        InputError: no classifier of one logit for square images.
    """
    shape = model.input_shape
    if len(shape) != 4 or shape[1] != shape[2] or model.output_shape[1:] != (1,):
        raise InputError(
            f"{name} takes {shape} and gives {model.output_shape}; without its run, which names several classes, a "
            "binary classifier of kmura is needed"
        )
    _log.warning("%s lies in no run: its probabilities are not calibrated, the threshold is 0.5", name)
    return Contract(
        classes=("normal", "abnormal"),
        image_size=shape[1],
        resize=DataConfig.resize,
        channels=shape[3],
        max_side=RecordsConfig.max_side,
    )


def read_signature(folder: Path) -> dict[str, Any]:
    """What `signature.json` of an export (a version's folder) says, with the `Contract` under `contract`.

    Raises:
        InputError: missing, damaged or of another version.
    """
    path = folder / SIGNATURE
    missing = f"{folder} is no export of kmura (no {SIGNATURE}); make one with: kmura export RUN"
    with reading_json(path, mend="export the run again", missing=missing) as found:
        if found["export_version"] != EXPORT_VERSION:
            raise InputError(
                f"{path} has export version {found['export_version']}, this kmura reads {EXPORT_VERSION}; export again"
            )
        raw = found["contract"]
        read = {"classes": tuple(raw["classes"]), "calibrator": Calibrator.from_json(raw["calibrator"])}
        return found | {"contract": Contract(**raw | read)}


def _record_options(description: RunDescription, records) -> dict[str, Any]:
    """The options that the run's records were built with; none where they are gone."""
    folder = records or description.records
    try:
        manifest = read_manifest(folder)
    except InputError:
        if records:
            raise
        text = "records %s are gone: larger images are reduced to %d pixels, the default of records; --records tells"
        _log.warning(text, folder, RecordsConfig.max_side)
        return {}
    if manifest.inputs != description.inputs:
        if records:
            raise InputError(f"{records} are not the records that the run was trained on; give those with --records")
        _log.warning("records %s are not those of the run any more; their max_side is taken all the same", folder)
    return dict(manifest.options)


def _operating_point(run, points: dict[str, list[dict]], wanted: str | None) -> tuple[str, float]:
    known = {point["rule"]: point["threshold"] for split in points.values() for point in split}
    if not known and wanted is None:
        return "0.5", 0.5
    if wanted is None:
        wanted = "0.5" if "0.5" in known else next(iter(known))
    if wanted not in known:
        raise InputError(
            f"threshold {wanted!r} is not among those {run} was evaluated at ({', '.join(known)}); choose one, or "
            f"evaluate it again: kmura evaluate {run} --threshold '{wanted}'"
        )
    return wanted, float(known[wanted])
