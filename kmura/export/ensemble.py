"""Export of several classifiers, such as those of all folds, as one model: the mean of their probabilities."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kmura
from kmura.errors import InputError
from kmura.evaluation.class_scores import MultiScores
from kmura.evaluation.cross_validation import FoldsEvaluation, read_evaluation
from kmura.evaluation.evaluation import Evaluation
from kmura.export.bundle import Export, finished, signature_of
from kmura.runs.fold_runs import fold_groups, fold_of
from kmura.runs.run import Run, load_model
from kmura.serving.contract import Contract, contract_of_run
from kmura.serving.ensemble_contract import Candidate, ensemble_contract, name_of
from kmura.serving.signatures import ServedModel, check_warmup_possible
from kmura.tasks import ALL


def export_ensemble(
    runs: Sequence[Run],
    out: str | os.PathLike,
    *,
    records: str | os.PathLike | None = None,
    threshold: str | None = None,
    format: str = "savedmodel",
    warmup: bool = True,
) -> Export:
    """Exports the best models of several evaluated classifiers as one SavedModel, the next version in a folder.

    It has the signatures of a single model. The probability of an image, and of a study, is the mean of the calibrated
    probabilities of the members. See `kmura.export.bundle.export_classifier` for checks and interruptions.

    Args:
        runs: two or more evaluated runs of one area and the same classes.
        out: folder of the versions.
        records: folder of the records, if they were moved.
        threshold: for binary runs, one of the rules that all were evaluated with; its threshold is the mean of theirs.
        format: `savedmodel`.
        warmup: whether to write warm-up requests for TensorFlow Serving.

    Raises:
        InputError: the runs cannot form an ensemble, one is not evaluated or has changed since, or see
            `export_classifier`.
    """
    if format != "savedmodel":
        raise InputError(f"an ensemble can be exported as savedmodel only, not as {format}; export its runs one by one")
    contracts = [contract_of_run(run, records=records, threshold=threshold) for run in runs]
    candidates = [
        Candidate(str(run), name_of(run), run.area, contract) for run, contract in zip(runs, contracts, strict=True)
    ]
    contract = ensemble_contract(candidates)
    evaluations = [run.part("evaluation")(run)[0] for run in runs]
    runs[0].description.warn_of_leaks()
    if warmup:
        check_warmup_possible()
    models = [load_model(run.folder.best) for run in runs]
    signature = signature_of(runs[0].description, contract, format) | {
        "phase": ", ".join(dict.fromkeys(run.phase for run in runs)),
        "members": [_member(run, evaluation) for run, evaluation in zip(runs, evaluations, strict=True)],
    }
    card = functools.partial(ensemble_card, runs, evaluations, contract, signature["exported"])
    return finished(
        Path(out),
        card,
        signature,
        contract,
        served=ServedModel(models, contract),
        originals=[run.folder.best for run in runs],
        warmup=warmup,
    )


def _member(run: Run, evaluation: Evaluation) -> dict[str, Any]:
    fold = {} if fold_of(run) is None else {"fold": fold_of(run), "folds": run.config.data.folds}
    return {"run": name_of(run), **fold, "model_sha256": evaluation.model_sha256, "versions": run.description.versions}


def ensemble_card(runs: Sequence[Run], evaluations: Sequence[Evaluation], contract: Contract, made: str) -> str:
    """Returns the model card of an ensemble as Markdown."""
    first = runs[0]
    area = "all areas" if first.area == ALL else first.area
    sides = f"{contract.classes[0]} or {contract.classes[1]}" if contract.is_binary else ", ".join(contract.classes)
    size = f"{contract.image_size} x {contract.image_size}"
    parts = [
        f"# {area}: an ensemble of {len(runs)} classifiers",
        f"Exported on {made} with kmura {kmura.__version__}. Images of {size} pixels; predicts {sides}.",
        "## Use",
        "Intended for research on images similar to the training data. It is not a medical device and does not replace "
        "a reader. It makes predictions for any image, also for images of other areas or devices; such images are not "
        "detected. For other data, scores, calibration and threshold must be measured again. A map is the mean of the "
        "maps of the members; it shows which region influenced the prediction, not where a lesion is."
        + (f" Note: {contract.losses}." if contract.losses else ""),
        *(f"**Leakage between splits:** {leak}." for leak in first.description.leaks),
        "## Probabilities and decision",
        f"The probability is the mean of the probabilities of the members ({contract.calibration}). The probability of "
        f"a study is the mean of those that the members give it; each pools its images by {contract.pooling}."
        + (
            f"\n\nThreshold: {contract.threshold:.6g}, the mean of the thresholds that the rule `{contract.rule}` "
            "selected for the members, each on its own val split."
            if contract.is_binary
            else ""
        ),
        "## Members",
        _members(runs, evaluations),
        "## Scores",
        _scores(runs),
    ]
    return "\n\n".join(parts) + "\n"


def _members(runs: Sequence[Run], evaluations: Sequence[Evaluation]) -> str:
    lines = ["| run | network | trained | held-out split | AUC |", "| --- | --- | --- | --- | --- |"]
    for run, evaluation in zip(runs, evaluations, strict=True):
        splits = evaluation.scores.splits
        split = "test" if "test" in splits else next(iter(splits))
        held_out = split if fold_of(run) is None else f"{split} (fold {fold_of(run)} of {run.config.data.folds})"
        auc = splits[split]["study"].scores["auc"]
        lines.append(f"| {name_of(run)} | {run.config.model.words} | {run.epochs_trained()} | {held_out} | {auc} |")
    return "\n".join(lines)


def _scores(runs: Sequence[Run]) -> str:
    text = (
        "The scores above are those of the members alone, each on its own held-out images. The ensemble has not been "
        "scored, since an image that one member has not seen may have been used to train another one; score it on "
        "images of patients that no member has seen."
    )
    pooled = _pooled(runs)
    if pooled is None:
        return text
    study = pooled.scores.splits["test"]["study"]
    after = {} if isinstance(pooled.scores, MultiScores) else pooled.scores.calibrated.get("test", {})
    shown = after.get("study", study)
    names = [name for name in ("auc", "ap", "accuracy", "recall", "specificity", "f1", "kappa") if name in shown.scores]
    rows = "\n".join(f"| {name} | {shown.scores[name]} |" for name in names)
    calibrated = " (calibrated)" if after else ""
    units = "images" if study.is_single_view else "studies"
    return (
        f"{text}\n\nHeld-out predictions of all {pooled.number} folds, {study.units} {units}{calibrated}, threshold "
        f"0.5; {study.intervals_in_words}. The mean of the AUCs of the folds is {pooled.mean_auc['study']}.\n\n"
        f"| score | value |\n| --- | --- |\n{rows}"
    )


def _pooled(runs: Sequence[Run]) -> FoldsEvaluation | None:
    """The evaluation of all folds, if the runs are the folds of one cross-validation that was pooled."""
    if any(fold_of(run) is None for run in runs):
        return None
    try:
        (group,) = fold_groups(runs)
        evaluation, _ = read_evaluation(group.folder.path)
    except (InputError, ValueError):
        return None
    same = {one.fold for one in evaluation.folds} == {fold_of(run) for run in runs}
    return evaluation if same else None
