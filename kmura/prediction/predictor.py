"""A model for prediction, loaded from a run, a `.keras` file or an export."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

from kmura.errors import InputError, in_brief
from kmura.export.golden import load_signatures, version_folder, versions
from kmura.runs.run import RunFolder, load_model
from kmura.serving.contract import (
    SIGNATURE,
    Contract,
    check_threshold,
    contract_of_model,
    contract_of_run,
    read_signature,
)
from kmura.serving.signatures import ServedModel


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A model with its contract.

    Attributes:
        contract: preprocessing of images and postprocessing of logits.
        signatures: functions of `image`, at least `tensor` and `explain_tensor` of
            `kmura.serving.signatures.SIGNATURES`.
    """

    contract: Contract
    signatures: dict[str, Callable]

    def answers(self, images: np.ndarray, *, explained: bool = False) -> dict[str, np.ndarray]:
        """Returns the predictions for images.

        Args:
            images: [B, S, S, C] in 0..255.
            explained: whether to compute the maps `cam`.

        Returns:
            A dictionary with `logit`, `probability` (0 to 1) and `decision`, [B] each, and with `cam` [B, S, S] if
            `explained`; for several classes, `logit` and `probability` are [B, L].

        Raises:
            InputError: The output of the model is not a number.
        """
        signature = self.signatures["explain_tensor" if explained else "tensor"]
        try:
            outputs = signature(image=tf.constant(images, tf.float32))
        except tf.errors.InvalidArgumentError as error:
            raise InputError(
                f"the model cannot predict these images ({in_brief(error)}); check the model and the pixel range"
            ) from error
        wanted = ("logit", "probability", *(("cam",) if explained else ()))
        decision = np.array([name.decode() for name in outputs["decision"].numpy()])
        return {name: outputs[name].numpy() for name in wanted} | {"decision": decision}


def load_predictor(
    path: str | os.PathLike, *, records: str | os.PathLike | None = None, threshold: str | None = None
) -> Predictor:
    """Returns the predictor of a run folder, a `.keras` file (with the contract of its run, if any) or an export.

    Args:
        path: path of the model; for an export, the folder of all versions (the highest is used) or of one version.
        records, threshold: for a run, see `contract_of_run`.

    Raises:
        InputError: The path is not a model, the model is damaged, or the threshold is not that of the export.
    """
    path = Path(path)
    if path.is_dir() and ((path / SIGNATURE).exists() or versions(path)):
        return _of_export(version_folder(path), threshold)
    if path.suffix == ".keras":
        if RunFolder(path.parent).best == path and RunFolder(path.parent).description.exists():
            return load_predictor(path.parent, records=records, threshold=threshold)
        model = load_model(path) if path.is_file() else _no_model(path)
        if threshold not in (None, "0.5"):
            raise InputError(
                f"{path} is not part of a run, which defines the threshold {threshold!r}; omit --threshold"
            )
        return _of_keras(model, contract_of_model(model, str(path)))
    if not path.is_dir():
        _no_model(path)
    contract = contract_of_run(path, records=records, threshold=threshold)
    return _of_keras(load_model(RunFolder(path).best), contract)


def _no_model(path: Path):
    raise InputError(f"{path} is not a model; give runs/AREA/PHASE, a .keras file, or a folder made by kmura export")


def _of_keras(model, contract: Contract) -> Predictor:
    return Predictor(contract, ServedModel(model, contract).signatures)


def _of_export(folder: Path, threshold: str | None) -> Predictor:
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
    return Predictor(contract, load_signatures(folder))
