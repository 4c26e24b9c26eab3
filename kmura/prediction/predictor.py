"""A model for prediction, loaded from a run, a `.keras` file or an export, or from several of them as an ensemble."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from kmura.errors import InputError, in_brief
from kmura.export.golden import load_signatures, version_folder, versions
from kmura.runs.fold_runs import members_of
from kmura.runs.run import Run, RunFolder, load_model
from kmura.serving.answers import answers_of
from kmura.serving.contract import (
    SIGNATURE,
    Contract,
    check_threshold,
    contract_of_model,
    contract_of_run,
    read_signature,
)
from kmura.serving.ensemble_contract import Candidate, ensemble_contract, name_of
from kmura.serving.signatures import ServedModel


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A model, or an ensemble of several, with its contract.

    Attributes:
        contract: preprocessing of images and postprocessing of logits.
        signatures: functions of `image`, at least `tensor` of `kmura.serving.signatures.SIGNATURES`; without
            `explain_tensor`, maps cannot be computed.
        flips: whether the logits of every model are the mean of those of the image and of its mirror image (left and
            right exchanged), before calibration.
    """

    contract: Contract
    signatures: dict[str, Callable]
    flips: bool = False

    def answers(self, images: np.ndarray, *, explained: bool = False) -> dict[str, np.ndarray]:
        """Returns the predictions for images.

        Args:
            images: [B, S, S, C] in 0..255.
            explained: whether to compute the maps `cam`.

        Returns:
            A dictionary with `logit`, `probability` (0 to 1) and `decision`, [B] each; with `raw`, the logits from
            which `Contract.study_probabilities` follow: those of the network, or of an ensemble those of its members;
            and with `cam` [B, S, S] if `explained`. For several classes, `logit` and `probability` are [B, L].

        Raises:
            InputError: The output of the model is not a number.
        """
        signature = self.signatures["explain_tensor" if explained else "tensor"]
        try:
            outputs = signature(image=tf.constant(images, tf.float32))
            if self.flips:
                mirrored = signature(image=tf.constant(images[:, :, ::-1], tf.float32))
                name = self.contract.raw_output
                outputs = answers_of(self.contract).of_images(
                    _network_shape((outputs[name] + mirrored[name]) / 2, self.contract)
                )
        except tf.errors.InvalidArgumentError as error:
            raise InputError(
                f"the model cannot predict these images ({in_brief(error)}); check the model and the pixel range"
            ) from error
        wanted = ("logit", "probability", *(("cam",) if explained else ()))
        decision = np.array([name.decode() for name in outputs["decision"].numpy()])
        raw = outputs[self.contract.raw_output].numpy()
        return {name: outputs[name].numpy() for name in wanted} | {"decision": decision, "raw": raw}


@dataclasses.dataclass(frozen=True)
class _Loaded:
    """A model that was loaded: its contract, and either the Keras model or the signatures of an export."""

    candidate: Candidate
    model: Any = None
    signatures: dict[str, Callable] | None = None

    @property
    def contract(self) -> Contract:
        return self.candidate.contract


def load_predictor(
    path: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    records: str | os.PathLike | None = None,
    threshold: str | None = None,
    flips: bool = False,
) -> Predictor:
    """Returns the predictor of a run folder, a `.keras` file (with the contract of its run, if any) or an export.

    Args:
        path: path of the model; for an export, the folder of all versions (the highest is used) or of one version.
            Several paths, a folder of folds, or a run of the kind `folds` give an ensemble, see
            `kmura.serving.ensemble_contract.ensemble_contract`.
        records, threshold: for a run, see `contract_of_run`.
        flips: see Predictor.

    Raises:
        InputError: A path is not a model, a model is damaged, the models cannot form an ensemble, or the threshold is
            not that of the export.
    """
    paths = members_of([path] if isinstance(path, str | os.PathLike) else path)
    loaded = [_loaded(each, records, threshold) for each in paths]
    if len(loaded) == 1:
        (one,) = loaded
        return Predictor(one.contract, one.signatures or ServedModel(one.model, one.contract).signatures, flips)
    contract = ensemble_contract([one.candidate for one in loaded])
    if all(one.model is not None for one in loaded):
        return Predictor(contract, ServedModel([one.model for one in loaded], contract).signatures, flips)
    return Predictor(contract, {"tensor": _mean_of(loaded, contract)}, flips)


def _loaded(path: Path, records: str | os.PathLike | None, threshold: str | None) -> _Loaded:
    if path.is_dir() and ((path / SIGNATURE).exists() or versions(path)):
        return _of_export(path, threshold)
    if path.suffix == ".keras":
        if RunFolder(path.parent).best == path and RunFolder(path.parent).description.exists():
            return _loaded(path.parent, records, threshold)
        model = load_model(path) if path.is_file() else _no_model(path)
        if threshold not in (None, "0.5"):
            raise InputError(
                f"{path} is not part of a run, which defines the threshold {threshold!r}; omit --threshold"
            )
        return _Loaded(Candidate(str(path), path.stem, "", contract_of_model(model, str(path))), model)
    if not path.is_dir():
        _no_model(path)
    contract = contract_of_run(path, records=records, threshold=threshold)
    run = Run(path)
    return _Loaded(Candidate(str(path), name_of(run), run.area, contract), load_model(run.folder.best))


def _no_model(path: Path):
    raise InputError(f"{path} is not a model; give runs/AREA/PHASE, a .keras file, or a folder made by kmura export")


def _of_export(path: Path, threshold: str | None) -> _Loaded:
    folder = version_folder(path)
    signature = read_signature(folder)
    contract = signature.contract
    if signature.format != "savedmodel":
        raise InputError(
            f"{folder} has the format {signature.format}; give a savedmodel export, a run or a .keras file"
        )
    check_threshold(folder, contract.labels, threshold)
    if threshold not in (None, contract.rule):
        raise InputError(
            f"{folder} decides at the threshold {contract.rule!r}, which is fixed in an export; export again with "
            f"--threshold '{threshold}', or predict with the run"
        )
    candidate = Candidate(str(folder), path.name, signature.area, contract)
    return _Loaded(candidate, signatures=load_signatures(folder))


def _mean_of(loaded: Sequence[_Loaded], contract: Contract) -> Callable:
    """Returns the signature `tensor` of an ensemble of exports and other models."""
    answers = answers_of(contract)
    parts = [(one.signatures or ServedModel(one.model, one.contract).signatures, one.contract) for one in loaded]

    def tensor(image):
        logits = []
        for signatures, own in parts:
            raw = _network_shape(signatures["tensor"](image=image)[own.raw_output], own)
            logits.append(raw if own.members else raw[:, None])
        return answers.of_images(tf.concat(logits, axis=1))

    return tensor


def _network_shape(raw: tf.Tensor, contract: Contract) -> tf.Tensor:
    """Returns raw outputs with an axis for the logits, which those of binary models lack: [B, L] or [B, M, L]."""
    return raw[..., None] if contract.is_binary else raw
