"""A model that answers, whatever it was saved as: a run, a `.keras` file or an export."""

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
        contract: how images are prepared, and what the answers mean.
        signatures: `tensor` and `explain_tensor` of `serving.SIGNATURES`, functions of `image`.
    """

    contract: Contract
    signatures: dict[str, Callable]

    def answers(self, images: np.ndarray, *, explained: bool = False) -> dict[str, np.ndarray]:
        """Logit, probability, decision of images [B, S, S, C] in 0..255, explained also `cam` [B, S, S].

        Each is [B], of several classes logit and probability [B, L].

        Raises:
            InputError: the model's output is no number.
        """
        signature = self.signatures["explain_tensor" if explained else "tensor"]
        try:
            found = signature(image=tf.constant(images, tf.float32))
        except tf.errors.InvalidArgumentError as error:
            raise InputError(f"the model gives no answer ({in_brief(error)})") from error
        wanted = ("logit", "probability", *(("cam",) if explained else ()))
        decision = np.array([name.decode() for name in found["decision"].numpy()])
        return {name: found[name].numpy() for name in wanted} | {"decision": decision}


def load_predictor(
    path: str | os.PathLike, *, records: str | os.PathLike | None = None, threshold: str | None = None
) -> Predictor:
    """The predictor in a run folder, a `.keras` file (with what the run around it says), or an export.

    Args:
        path: of the model; of an export the folder of all versions (the highest is taken) or of one.
        records, threshold: of a run, see `contract_of_run`.

    Raises:
        InputError: none of these, damaged, or a threshold that an export was not made with.
    """
    path = Path(path)
    if path.is_dir() and ((path / SIGNATURE).exists() or versions(path)):
        return _of_export(version_folder(path), threshold)
    if path.suffix == ".keras":
        if RunFolder(path.parent).best == path and RunFolder(path.parent).description.exists():
            return load_predictor(path.parent, records=records, threshold=threshold)
        model = load_model(path) if path.is_file() else _no_model(path)
        if threshold not in (None, "0.5"):
            raise InputError(f"{path} lies in no run, which alone knows the threshold {threshold!r}; leave it out")
        return _of_keras(model, contract_of_model(model, str(path)))
    if not path.is_dir():
        _no_model(path)
    contract = contract_of_run(path, records=records, threshold=threshold)
    return _of_keras(load_model(RunFolder(path).best), contract)


def _no_model(path: Path):
    raise InputError(f"{path} is no model; give runs/AREA/PHASE, a .keras file, or a folder that kmura export made")


def _of_keras(model, contract: Contract) -> Predictor:
    return Predictor(contract, ServedModel(model, contract).signatures)


def _of_export(folder: Path, threshold: str | None) -> Predictor:
    signature = read_signature(folder)
    contract = signature.contract
    if signature.format != "savedmodel":
        raise InputError(
            f"{folder} is of the format {signature.format}; predict takes savedmodel exports, runs, .keras"
        )
    check_threshold(folder, contract.task, threshold)
    if threshold not in (None, contract.rule):
        raise InputError(
            f"{folder} decides at the threshold {contract.rule!r}, which is inside of it; export again with "
            f"--threshold '{threshold}', or predict with the run"
        )
    return Predictor(contract, load_signatures(folder))
