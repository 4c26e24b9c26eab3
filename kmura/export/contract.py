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
from kmura.evaluation.calibration import Calibrator, logits_of
from kmura.evaluation.table import read_evaluation
from kmura.files import reading_json
from kmura.records.manifest import read_manifest
from kmura.training.run import RunDescription, RunFolder, read_run

SIGNATURE = "signature.json"  # of an export
EXPORT_VERSION = 1

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Contract:
    """How an image becomes the model's input, and its logit an answer.

    The probability of an image is that of a study of this one view: with a calibrator fitted at study level, the
    calibrated value of its own. The threshold is of the probabilities of studies, and serves images as such studies.

    Attributes:
        classes: normal, abnormal: what a decision is called.
        image_size, resize, channels: of the model's input, see DataConfig.
        max_side: larger images are first reduced to this on the longest side, as the records were.
        calibrator, calibrated_at: None leaves the model's own probabilities; see `evaluation.calibrated_levels`.
        pooling, top_k: from images to their study, see `metrics.pool_studies`.
        rule, threshold: abnormal is probability >= threshold, which the rule chose on tune.
        tap: feature map whose Grad-CAM++ explains an answer.
    """

    classes: tuple[str, str]
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

    @property
    def calibration(self) -> str:
        """Which calibration the probabilities have gone through, for people: `platt, fitted to studies`."""
        if self.calibrator is None:
            return "none"
        return f"{self.calibrator.method}, fitted to {'studies' if self.calibrated_at == 'study' else 'images'}"

    def study_probabilities(self, study, logit) -> metrics.Studies:
        """The probabilities of studies, calibrated, from the logits of their images; both [N]."""
        logit = np.clip(np.asarray(logit, float), -60, 60)
        if self.calibrator is not None and self.calibrated_at == "image":
            return metrics.pool_studies(study, self.calibrator(logit), self.pooling, k=self.top_k)
        pooled = metrics.pool_studies(study, 1 / (1 + np.exp(-logit)), self.pooling, k=self.top_k)
        if self.calibrator is None:
            return pooled
        return dataclasses.replace(pooled, value=self.calibrator(logits_of(pooled.value)))

    def decision(self, probability) -> np.ndarray:
        """The class names [N] that probabilities [N] come to."""
        return np.where(np.asarray(probability) >= self.threshold, self.classes[1], self.classes[0])


def contract_of_run(
    run: str | os.PathLike, *, records: str | os.PathLike | None = None, threshold: str | None = None
) -> Contract:
    """The contract of a run's best model as it was evaluated; uncalibrated at 0.5 where it was not.

    Args:
        run: folder of a run.
        records: where its records are now, which say to what size large images are reduced. Where they are gone, the
            default of records is taken.
        threshold: a rule among those evaluated; None takes 0.5, or the first where that is not among them.

    Raises:
        InputError: no run, a stale evaluation, an unknown rule, other records.
    """
    description = read_run(run)
    if description.task != "binary":
        raise InputError(f"{run} has {description.task} labels; export and prediction take binary ones")
    contract = Contract(
        classes=description.classes,
        image_size=description.config.data.image_size,
        resize=description.config.data.resize,
        channels=description.channels,
        max_side=_max_side(description, records),
        tap=description.config.cam.tap,
    )
    if not RunFolder(Path(run)).metrics.exists():
        if threshold not in (None, "0.5"):
            raise InputError(f"{run} is not evaluated, so it has the threshold 0.5 alone; run kmura evaluate {run}")
        _log.warning("%s is not evaluated: its probabilities are not calibrated; run kmura evaluate %s", run, run)
        return contract
    scores = read_evaluation(run)[0]["scores"]
    options = scores["options"]
    rule, value = _operating_point(run, scores["operating_points"], threshold)
    return dataclasses.replace(
        contract,
        calibrator=Calibrator.from_json(scores["calibrator"]),
        calibrated_at=options["calibrate_at"],
        pooling=options["pooling"],
        top_k=options["top_k"],
        rule=rule,
        threshold=value,
    )


def contract_of_model(model, name: str) -> Contract:
    """The contract of a saved classifier without its run: neither calibration nor threshold, default preparation.

    Raises:
        InputError: no classifier of one logit for square images.
    """
    shape = model.input_shape
    if len(shape) != 4 or shape[1] != shape[2] or model.output_shape[1:] != (1,):
        raise InputError(f"{name} takes {shape} and gives {model.output_shape}; a binary classifier of kmura is needed")
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


def _max_side(description: RunDescription, records) -> int:
    folder = records or description.records
    try:
        manifest = read_manifest(folder)
    except InputError:
        if records:
            raise
        default = RecordsConfig.max_side
        text = "records %s are gone: larger images are reduced to %d pixels, the default of records; --records tells"
        _log.warning(text, folder, default)
        return default
    if manifest.inputs != description.inputs:
        if records:
            raise InputError(f"{records} are not the records that the run was trained on; give those with --records")
        _log.warning("records %s are not those of the run any more; their max_side is taken all the same", folder)
    return manifest.options.get("max_side", RecordsConfig.max_side)


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
