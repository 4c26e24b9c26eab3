"""`probe`: how much the features of a frozen encoder tell about labels, beside the floor of raw pixels."""

import contextlib
import dataclasses
import json
import logging
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kmura.config import ClassificationConfig, DataConfig, ModelConfig, TrainConfig
from kmura.config.probing import ProbeConfig, ProbeStage
from kmura.data.dataset import Dataset
from kmura.errors import InputError, check_choice
from kmura.files import reading_json, replacing, write_json
from kmura.kinds import CLASSIFICATION, PROBE
from kmura.models.build import build_model, check_model
from kmura.models.heads import LOGITS
from kmura.models.weights import PORTED
from kmura.pretraining.features import CACHE, encoder_sha256, pixels, pooled_features
from kmura.pretraining.linear_probes import EPOCHS, Linear, linear_layer, logistic_regression, neighbour_logits
from kmura.runs.predictions import patient_keys_of, predictions_of
from kmura.runs.run import Run, RunFolder, claimed, drop_run, write_run
from kmura.training.claim import describe

METHODS = ("linear", "layer", "knn")
FLOOR = "pixels"
FLOOR_SIDE = 64  # largest side of the images of the floor, whose regression has one coefficient per pixel
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """An encoder to probe.

    Attributes:
        name: for the run folder.
        weights: as `kmura.models.weights.load_weights` takes them.
        backbone: a name of `kmura.models.backbones.BACKBONES`.
        torch_padding: whether the backbone pads as torch does.
        data: how its images were prepared; None if the source does not say.
    """

    name: str
    weights: str
    backbone: str
    torch_padding: bool = False
    data: DataConfig | None = None


@dataclasses.dataclass(frozen=True)
class Probe:
    """The result of `probe`.

    Attributes:
        run: folder of the probe's run.
        floor: folder of the floor's run.
        evaluation, floor_evaluation: what `evaluate` returns for them.
        verdict: one sentence: whether the encoder beats the floor.
    """

    run: Path
    floor: Path
    evaluation: Any
    floor_evaluation: Any
    verdict: str


def probe(
    source: str | os.PathLike,
    *,
    records: str | os.PathLike = "tfrecords",
    area: str = "all",
    method: str = "linear",
    backbone: str | None = None,
    image_size: int | None = None,
    labels: float = 1.0,
    seed: int = 0,
    runs: str | os.PathLike = "runs",
    name: str | None = None,
    fresh: bool = False,
) -> Probe:
    """Probes a frozen encoder; writes and evaluates the run RUNS/AREA/NAME and the floor RUNS/AREA/pixels.

    Args:
        source: a run folder of the kind pretraining or classification, or weights as `model.weights` takes them.
        records: folder of the records.
        area: an area of the records, or `all` for a joint model.
        method: `linear` (logistic regression of scikit-learn, C chosen on val), `layer` (a linear layer trained for 30
            epochs) or `knn` (weighted nearest neighbours, k chosen on val).
        backbone: the encoder's architecture; required unless the source says it.
        image_size: rows and columns of the images, pixels; None takes that of the source, else 224.
        labels: share of the patients whose training labels are used, above 0 to 1; stratified.
        seed: of this choice, and of the order of the images in training the layer.
        runs: folder for the runs.
        name: of the run; None is SOURCE-METHOD.
        fresh: delete an existing run of this name, and the floor, and start again.

    Raises:
        InputError: an argument is invalid, the weights do not fit, a split or a class is missing, or the folder
            contains a run of other settings.
    """
    check_choice("method", method, METHODS)
    if not 0 < labels <= 1:
        raise InputError(f"labels is {labels}; give the share of the training labels, above 0 and at most 1")
    encoder = encoder_of(source, backbone)
    data = encoder.data or DataConfig()
    data = data if image_size is None else dataclasses.replace(data, image_size=image_size)
    model = ModelConfig(backbone=encoder.backbone, weights=encoder.weights, torch_padding=encoder.torch_padding)
    dataset = _dataset(records, area, data)
    check_model(model, data.image_size, dataset.manifest.channels)
    share = "" if labels == 1 else f"-{100 * labels:g}pct"
    name = name or f"{encoder.name}-{method}{share}"
    if Path(name).name != name or name.startswith(".") or name == f"{FLOOR}{share}":
        raise InputError(f"name {name!r} cannot be the name of the run's folder; give another --name")
    parent = Path(runs) / dataset.area

    side = min(data.image_size, FLOOR_SIDE)
    of_floor = _dataset(records, area, dataclasses.replace(data, image_size=side))
    floor = _Job(parent / f"{FLOOR}{share}", of_floor, FLOOR, None, labels, seed)
    of_encoder = _Job(parent / name, dataset, method, model, labels, seed)
    evaluations = [_finished(job, fresh) for job in (of_encoder, floor)]
    return Probe(of_encoder.path, floor.path, *evaluations, _verdict(*evaluations))


def encoder_of(source: str | os.PathLike, backbone: str | None = None) -> Encoder:
    """Returns the encoder that a run folder, a preset folder or the name of weights stands for.

    Args:
        source: see `probe`.
        backbone: the architecture; None takes that of the source.

    Raises:
        InputError: the source does not say its backbone or says another one, or the run has no encoder yet.
    """
    text, path = str(source), Path(source).expanduser()
    slug = re.sub(r"[^A-Za-z0-9._]+", "-", path.stem if path.exists() else text).strip("-.") or "weights"
    padding, stated, data = False, None, None
    if RunFolder(path).description.is_file():
        run = Run(path)
        folder, slug, data = run.folder, run.phase, run.config.data
        if folder.encoder.is_dir() and hasattr(run.config, "encoder"):
            text, part = str(folder.encoder.resolve()), run.config.encoder
        elif folder.best.is_file() and hasattr(run.config, "model"):
            text, part = str(folder.best.resolve()), run.config.model
        else:
            raise InputError(f"{source} has no encoder (kind {run.kind}); give a pretrained or trained run, or weights")
        padding, stated = part.torch_padding, part.backbone
    elif (path / PORTED).is_file():
        with reading_json(path / PORTED, fix="make the preset again") as content:
            padding, stated = bool(content["torch_padding"]), content.get("backbone")
    if backbone is None and stated is None:
        raise InputError(f"{source} does not say its backbone; give it with --backbone, such as --backbone densenet121")
    if stated and backbone and stated != backbone:
        raise InputError(f"{source} has backbone {stated}, not {backbone}; leave --backbone out")
    return Encoder(slug, text, stated or backbone, padding, data)


@dataclasses.dataclass(frozen=True)
class _Job:
    """One run to make: a probe, or the floor, which has no model."""

    path: Path
    dataset: Dataset
    method: str
    model: ModelConfig | None
    labels: float
    seed: int

    @property
    def config(self) -> ClassificationConfig | ProbeConfig:
        train = TrainConfig(
            epochs=EPOCHS if self.method == "layer" else 1,
            unfreeze="none",
            balance=False,
            monitor="val_auc_img",
            precision="float32",
            seed=self.seed,
        )
        if self.method in ("linear", "layer"):
            return ClassificationConfig(data=self.dataset.config, model=self.model, train=train)
        source, backbone = (self.model.weights, self.model.backbone) if self.model else ("", "")
        stage = ProbeStage(method=self.method, source=source, backbone=backbone, labels=self.labels)
        return ProbeConfig(data=self.dataset.config, probe=stage, train=train)


def _dataset(records: str | os.PathLike, area: str, data: DataConfig) -> Dataset:
    dataset = Dataset(records, area, data)
    areas = dataset.models()
    if len(areas) > 1:
        raise InputError(f"area {area} of {records} means one model per area; give one of {', '.join(areas)}")
    dataset = dataset.of_area(areas[0])
    for split in ("train", "val"):
        if split not in dataset.splits:
            raise InputError(f"{records} has no split {split} in area {dataset.area}; build records with it")
    return dataset


def _finished(job: _Job, fresh: bool) -> Any:
    """The evaluation of a job's run, which is made if it does not exist yet."""
    job.path.parent.mkdir(parents=True, exist_ok=True)
    with claimed(job.path):
        folder, model, encoder = RunFolder(job.path), None, ""
        if job.path.exists() and not folder.description.is_file() and any(job.path.iterdir()):
            raise InputError(f"{job.path} is not a run folder; choose another --name")
        if job.model:
            size, channels = job.dataset.config.image_size, job.dataset.manifest.channels
            options = dataclasses.asdict(job.model)
            outputs = job.dataset.labels.outputs
            model = build_model(image_size=size, channels=channels, num_classes=outputs, seed=job.seed, **options)
            encoder = encoder_sha256(model)
        settings = {
            "method": job.method,
            "encoder_sha256": encoder,
            "inputs": job.dataset.manifest.inputs,
            "image_size": job.dataset.config.image_size,
            "resize": job.dataset.config.resize,
            "task": job.dataset.labels.name,
            "labels": job.labels,
            "seed": job.seed,
        }
        if folder.description.is_file() and not fresh:
            _check_settings(folder, settings)
            run = Run(job.path)
            if run.description.finished:
                log.info("%s is finished; its scores are read", run)
                with contextlib.suppress(InputError):
                    return run.part("evaluation")(run)[0]
                return run.part("evaluate")(run)
        elif folder.description.is_file():
            drop_run(job.path)
        job.path.mkdir(exist_ok=True)
        return _made(job, folder, model, settings)


def _check_settings(folder: RunFolder, settings: dict) -> None:
    try:
        before = json.loads(folder.probe.read_text())["settings"]
        changed = [name for name, value in settings.items() if before.get(name) != value]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{folder.path} is not a probe; choose another --name, or delete it with --fresh") from None
    if changed:
        raise InputError(
            f"{folder.path} is a probe of other settings ({', '.join(changed)}); repeat the old settings, choose "
            "another --name, or delete it and start again with --fresh"
        )


def _made(job: _Job, folder: RunFolder, model, settings: dict) -> Any:
    """Fits a probe, writes its run folder and returns the evaluation."""
    dataset, task = job.dataset, job.dataset.labels
    kind = CLASSIFICATION if job.method in ("linear", "layer") else PROBE
    description = describe(dataset, job.path.name, job.config, kind=kind)
    write_json(folder.probe, {"settings": settings})
    write_run(folder, description)

    def features(split: str) -> np.ndarray:
        if model is None:
            return pixels(dataset, split)
        cache = job.path.parent / CACHE
        return pooled_features(model, settings["encoder_sha256"], dataset, split, cache)

    rows = dataset.rows("train")
    chosen = labelled_rows(rows, task.targets(dataset.ids("train")), job.labels, job.seed)
    train = features("train")[chosen], task.targets(dataset.ids("train"))[chosen]
    val = features("val"), task.targets(dataset.ids("val"))
    held_out = [split for split in dataset.splits if split != "train"]
    if job.method == "knn":
        others = {split: features(split) for split in held_out}
        logits, k = neighbour_logits(task, train, val, others)
        found = {"k": k}
    else:
        fitted = linear_layer(task, train, val, job.seed) if job.method == "layer" else logistic_regression(
            task, train, val
        )  # fmt: skip
        found = {name: fitted.history[-1][name] for name in ("C",) if name in fitted.history[-1]}
        if model is None:
            logits = {split: fitted.logits(features(split)) for split in held_out}
        else:
            _save(model, fitted, folder)
    if kind == PROBE:
        tables = [predictions_of(dataset.rows(split), split, logits[split], task) for split in held_out]
        with replacing(folder.predictions) as file:
            pd.concat(tables).to_csv(file, index=False)
    write_json(folder.probe, {"settings": settings, "training_images": int(len(chosen)), **found})
    write_run(folder, dataclasses.replace(description, finished=True))
    run = Run(job.path)
    return run.part("evaluate")(run)


def _save(model, fitted: Linear, folder: RunFolder) -> None:
    """Writes `best.keras` with the fitted weights in its last layer, and `history.csv`."""
    model.backbone.trainable = False
    model.get_layer(LOGITS).set_weights([fitted.kernel.astype(np.float32), fitted.bias.astype(np.float32)])
    aside = folder.path / "aside.keras"
    model.save(aside)
    os.replace(aside, folder.best)
    with replacing(folder.history) as file:
        pd.DataFrame(fitted.history).to_csv(file, index=False)


def labelled_rows(rows: pd.DataFrame, targets: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Returns the numbers of the training images whose labels are used, int64, ascending.

    Patients are drawn within strata: of the class of their images (the largest), or (multilabel) of their rarest
    label. Each stratum keeps at least one patient.

    Args:
        rows: table of `Dataset.rows`.
        targets: [N, L] of 0 and 1, -1 where unknown.
        share: above 0 to 1.
        seed: of the choice.
    """
    if share == 1:
        return np.arange(len(rows))
    patients = patient_keys_of(rows)
    positive = targets == 1
    rarity = np.argsort(np.argsort(positive.sum(axis=0)))  # 0 is the rarest label
    none = targets.shape[1]
    of_image = np.where(positive, rarity, none).min(axis=1)
    stratum = pd.Series(of_image).groupby(pd.Series(patients, dtype=object)).min().sort_index()
    rng, drawn = np.random.default_rng(seed), []
    for _, names in stratum.groupby(stratum):
        members = names.index.to_numpy(object)
        drawn += list(rng.permutation(members)[: max(1, round(share * len(members)))])
    return np.flatnonzero(pd.Series(patients, dtype=object).isin(drawn).to_numpy())


def _verdict(evaluation: Any, floor: Any) -> str:
    """One sentence about the AUC of the first held-out split that both have, at study level."""
    split = "test" if "test" in evaluation.scores.splits else next(iter(evaluation.scores.splits))
    ours, theirs = (part.scores.splits[split]["study"].scores["auc"] for part in (evaluation, floor))
    if math.isnan(ours.value) or math.isnan(theirs.value):
        return f"the AUC on {split} is undefined, so the encoder cannot be compared with the floor"
    beats = "beats" if ours.value > theirs.value else "does not beat"
    unclear = ours.low <= theirs.value <= ours.high
    note = "; the floor is within the interval of the encoder, see kmura compare" if unclear else ""
    return f"the encoder {beats} the floor on {split}: AUC {ours.value:.3f} against {theirs.value:.3f}{note}"
