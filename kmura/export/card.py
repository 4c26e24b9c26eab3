"""The model card of an export: what the model is, what it was judged by, what it is for and what it is not."""

from typing import Any

from kmura.errors import InputError
from kmura.export.contract import Contract
from kmura.metrics import Interval
from kmura.records.manifest import read_manifest
from kmura.training.run import RunDescription

_SHOWN = ("auc", "ap", "accuracy", "recall", "specificity", "f1", "kappa", "brier", "log_loss")


def model_card(
    description: RunDescription, evaluation: dict[str, Any], contract: Contract, *, made: str, records: str
) -> str:
    """The card as Markdown.

    Args:
        description, evaluation: of the run, its `run.json` and `metrics.json`.
        contract: of the export.
        made: date and versions, a line.
        records: where the records are; their counts are left out where they are gone.
    """
    scores, config = evaluation["scores"], description.config
    parts = [
        f"# {description.area}, {description.phase}: a classifier of radiographs",
        f"{made}. Network: {config.model.words}, {contract.image_size} x {contract.image_size} pixels.",
        "## Use",
        _use(description, contract),
        "## Data",
        _data(description, records),
        "## How it was chosen",
        f"Trained for {config.train.epochs} epochs with seed {config.train.seed}; the best epoch was chosen on "
        f"{evaluation['select_on']} by {evaluation['selected_epoch_by']}."
        + (" Its scores on valid are therefore optimistic." if evaluation["select_on"] == "valid" else ""),
        "## Calibration and threshold",
        _calibration(scores, contract),
        "## Scores",
        "95 % intervals from a bootstrap that resamples "
        + ("patients." if evaluation["has_patients"] else "images: the records know no patients."),
    ]
    for split, levels in scores["splits"].items():
        for level, found in levels.items():
            calibrated = scores["calibrated"].get(split, {}).get(level)
            parts.append(_scores(split, level, calibrated or found, bool(calibrated), scores["options"]["fit_on"]))
    parts += [_points(split, points, contract) for split, points in scores["operating_points"].items() if points]
    if scores["notes"]:
        parts += ["## Notes of the evaluation", "\n".join(f"- {_text(note)}" for note in scores["notes"])]
    return "\n\n".join(parts) + "\n"


def _use(description: RunDescription, contract: Contract) -> str:
    return (
        f"Meant for research on radiographs of {description.area} like those it was trained on: it says "
        f"{contract.classes[0]} or {contract.classes[1]} for an image or for the views of one study. It is no medical "
        "device and replaces no reader.\n\n"
        "Limits: it answers for any picture, also for one that is no radiograph or of another area; nothing in it "
        "notices that. Scores hold for the source of the data, its machines, patients and prevalence; elsewhere they "
        "must be measured again, and calibration and threshold with them. A map shows what moved the answer, "
        "not where a lesion is."
    )


def _data(description: RunDescription, records: str) -> str:
    try:
        splits = read_manifest(records).areas[description.area]
    except (InputError, KeyError):
        return "The records are not at hand any more; counts of the training data are not known."
    rows = [f"| split | images | studies | patients | {' | '.join(map(_text, description.classes))} (images) |"]
    rows.append("| --- " * (4 + len(description.classes)) + "|")
    for name, counts in splits.items():
        numbers = (counts.images, counts.studies, counts.patients, *counts.per_class)
        rows.append(f"| {name} | {' | '.join(map(str, numbers))} |")
    return "\n".join(rows)


def _calibration(scores: dict[str, Any], contract: Contract) -> str:
    options, calibrator = scores["options"], contract.calibrator
    if calibrator is None:
        text = "Probabilities are the model's own, not calibrated."
    else:
        by = {
            "isotonic": f"isotonic, {len(calibrator.knots)} knots",
            "temperature": f"temperature {calibrator.temperature:.4g}",
            "platt": f"Platt: temperature {calibrator.temperature:.4g}, bias {calibrator.bias:+.4g} on the logit",
        }[calibrator.method]
        text = f"Probabilities are calibrated on {options['fit_on']} at {contract.calibrated_at} level ({by})."
    k = f" (k = {contract.top_k})" if contract.pooling == "top-k" else ""
    return (
        f"{text} A study's probability is the {contract.pooling}{k} of its images'. The probability of a single image "
        f"is that of a study of this one view.\n\nThreshold: {contract.threshold:.6g} (rule `{contract.rule}`, at "
        f"study level); {_text(contract.classes[1])} is a probability of at least that."
    )


def _scores(split: str, level: str, found: dict[str, Any], calibrated: bool, fitted_on: str) -> str:
    units = {"image": "images", "study": "studies"}[level]
    count = found["images"] if level == "image" else found["studies"]
    kind = ", calibrated" if calibrated else ""
    warning = f" Calibration and thresholds were fitted on {split}: optimistic." if split == fitted_on else ""
    rows = [
        f"### {split}, {level} level{kind}",
        f"{count} {units}, {found['positives']} positive; thresholded scores at 0.5.{warning}",
        "| score | value | 95 % interval |\n| --- | --- | --- |\n"
        + "\n".join(_row(name, found["scores"][name]) for name in _SHOWN if name in found["scores"]),
    ]
    return "\n\n".join(rows)


def _points(split: str, points: list[dict[str, Any]], contract: Contract) -> str:
    head = "| rule | threshold | sensitivity | specificity | precision |\n| --- | --- | --- | --- | --- |\n"
    rows = []
    for point in points:
        numbers = (_interval(point["scores"][name]) for name in ("recall", "specificity", "precision"))
        mark = " (this export's)" if point["rule"] == contract.rule else ""
        rows.append(f"| `{point['rule']}`{mark} | {point['threshold']:.4g} | {' | '.join(numbers)} |")
    return f"### Thresholds on {split}, study level\n\n{head}" + "\n".join(rows)


def _row(name: str, score: dict[str, Any]) -> str:
    value, _, interval = _interval(score).partition(" ")
    return f"| {name} | {value} | {interval.strip('()')} |"


def _interval(score: dict[str, Any]) -> str:
    return str(Interval.from_json(score))


def _text(name: str) -> str:
    """A name as Markdown that shows it as it is."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>|#" else letter for letter in str(name))
