"""The model card of an export: what the model is, what it was judged by, what it is for and what it is not."""

from typing import Any

from kmura.data.dataset import Dataset
from kmura.data.index import ALL
from kmura.errors import InputError
from kmura.metrics import Interval
from kmura.runs.run import RunDescription
from kmura.serving.contract import NO_LABEL, Contract

_SHOWN = ("auc", "ap", "accuracy", "recall", "specificity", "f1", "kappa", "brier", "log_loss")


def model_card(
    description: RunDescription,
    evaluation: dict[str, Any],
    contract: Contract,
    *,
    trained: str,
    made: str,
    records: str,
) -> str:
    """The card as Markdown.

    Args:
        description, evaluation: of the run, its `run.json` and `metrics.json`.
        contract: of the export.
        trained: how many epochs, see `kmura.runs.run.epochs_trained`.
        made: date and versions, a line.
        records: where the records are; their counts are left out where they are gone.
    """
    scores, config = evaluation["scores"], description.config
    binary = contract.task == "binary"
    parts = [
        f"# {_area(description)}, {description.phase}: a classifier of {_kind(contract)}",
        f"{made}. Network: {config.model.words}, {contract.image_size} x {contract.image_size} pixels.",
        "## Use",
        _use(description, contract),
        "## Data",
        _data(description, records),
        "## How it was chosen",
        f"Trained for {trained} with seed {config.train.seed}; the best epoch was chosen on "
        f"{evaluation['select_on']} by {evaluation['selected_epoch_by']}."
        + (" Its scores on test are therefore optimistic." if evaluation["select_on"] == "test" else ""),
        *(
            ("## Calibration and threshold", _calibration(scores, contract))
            if binary
            else ("## Probabilities and decision", _class_decision(contract))
        ),
        "## Scores",
        "95 % intervals from a bootstrap that resamples "
        + ("patients." if evaluation["has_patients"] else "images: the records know no patients."),
    ]
    parts += _binary_scores(scores, contract) if binary else _class_scores(scores, contract)
    if scores["notes"]:
        parts += ["## Notes of the evaluation", "\n".join(f"- {_text(note)}" for note in scores["notes"])]
    return "\n\n".join(parts) + "\n"


def _binary_scores(scores: dict[str, Any], contract: Contract) -> list[str]:
    parts = []
    for split, levels in scores["splits"].items():
        for level, found in levels.items():
            calibrated = scores["calibrated"].get(split, {}).get(level)
            parts.append(_scores(split, level, calibrated or found, bool(calibrated), scores["options"]["fit_on"]))
    return parts + [_points(split, points, contract) for split, points in scores["operating_points"].items() if points]


def _class_scores(scores: dict[str, Any], contract: Contract) -> list[str]:
    parts = []
    for split, levels in scores["splits"].items():
        parts += [_class_level(split, level, found, contract) for level, found in levels.items()]
        parts.append(_classes(split, levels["study"]))
        parts += _questions(split, scores, contract)
    return parts


def _area(description: RunDescription) -> str:
    return "all areas" if description.area == ALL else description.area


def _use(description: RunDescription, contract: Contract) -> str:
    return (
        f"Meant for research on {_kind(contract)} of {_area(description)} like those it was trained on: it says "
        f"{_answers(contract)} for an image or for the views of one study. It is no medical "
        "device and replaces no reader.\n\n"
        f"Limits: it answers for any picture, also for one that is none of these {_kind(contract)} or of another area; "
        "nothing in it notices that. Scores hold for the source of the data, its machines, patients and prevalence; "
        "elsewhere they must be measured again"
        f"{', and calibration and threshold with them' if contract.task == 'binary' else ''}. "
        "A map shows what moved the answer, not where a lesion is."
        + (f" Note: {contract.losses}." if contract.losses else "")
    )


def _kind(contract: Contract) -> str:
    return "radiographs" if contract.channels == 1 else "colour images"


def _answers(contract: Contract) -> str:
    if contract.task == "binary":
        return f"{contract.classes[0]} or {contract.classes[1]}"
    names = ", ".join(map(_text, contract.classes))
    return f"{'one' if contract.task == 'multiclass' else 'any or none'} of {names}"


def _data(description: RunDescription, records: str) -> str:
    try:
        dataset = Dataset(records, description.area, description.config.data)
        if description.task != "binary":
            return _class_data(dataset)
        splits = dataset.manifest.areas[description.area]
    except InputError:
        return "The records are not at hand any more; counts of the training data are not known."
    rows = [f"| split | images | studies | patients | {' | '.join(map(_text, description.classes))} (images) |"]
    rows.append("| --- " * (4 + len(description.classes)) + "|")
    for name, counts in splits.items():
        numbers = (counts.images, counts.studies, counts.patients, *counts.per_class)
        rows.append(f"| {name} | {' | '.join(map(str, numbers))} |")
    return "\n".join(rows)


def _class_data(dataset: Dataset) -> str:
    """A column for each split that all areas have, since classes may be many."""
    manifest = dataset.manifest
    areas = list(manifest.areas.values()) if dataset.area == ALL else [manifest.areas[dataset.area]]
    splits = [split for split in areas[0] if all(split in area for area in areas)]
    rows = [
        [name, *(sum(getattr(area[split], name) for area in areas) for split in splits)]
        for name in ("images", "studies", "patients")
    ]
    counts = [dataset.counts(split) for split in splits]
    names = dataset.count_names()
    rows += [[f"images of {_text(name)}", *each] for name, *each in zip(names, *counts, strict=True)]
    counted = "\n\nA patient counts in each area anew." if len(areas) > 1 else ""
    return _table(["", *splits], rows) + counted


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
    return (
        f"{text} A study's probability is the {_pooling(contract)} of its images'. The probability of a single image "
        f"is that of a study of this one view.\n\nThreshold: {contract.threshold:.6g} (rule `{contract.rule}`, at "
        f"study level); {_text(contract.classes[1])} is a probability of at least that."
    )


def _pooling(contract: Contract) -> str:
    return contract.pooling + (f" (k = {contract.top_k})" if contract.pooling == "top-k" else "")


def _class_decision(contract: Contract) -> str:
    softmax = contract.task == "multiclass"
    ways = {
        "multiclass": "The decision is the most probable class.",
        "multilabel": f"The decision is all labels of a probability of 0.5 or more, `{NO_LABEL}` without any.",
    }
    abnormal = " `abnormal_probability` is the sum over the abnormal classes." if contract.abnormal else ""
    return (
        f"Probabilities are the model's own ({'softmax' if softmax else 'the logistic function'} of the logits), not "
        f"calibrated. A study's are the {_pooling(contract)} of its images', class by class"
        f"{', brought to the sum 1' if softmax else ''}. {ways[contract.task]}{abnormal}"
    )


def _class_level(split: str, level: str, found: dict[str, Any], contract: Contract) -> str:
    means = "of the most probable class" if contract.task == "multiclass" else "at 0.5, means over the labels"
    rows = "\n".join(_row(name, score) for name, score in found["scores"].items())
    return (
        f"### {split}, {level} level\n\n{found['images']} images, {found['studies']} studies; scores of decisions are "
        f"{means}.\n\n| score | value | 95 % interval |\n| --- | --- | --- |\n{rows}"
    )


def _classes(split: str, found: dict[str, Any]) -> str:
    names = list(found["classes"][0]["scores"])
    rows = [
        [_text(each["name"]), each["units"], *(_interval(each["scores"][name]) for name in names)]
        for each in found["classes"]
    ]
    return f"### Classes on {split}, study level\n\n{_table(['class', 'studies', *names], rows)}"


def _questions(split: str, scores: dict[str, Any], contract: Contract) -> list[str]:
    rows = []
    for name, answered in (
        scores["questions"] | ({"all areas": scores["pooled"]} if contract.abnormal else {})
    ).items():
        if split in answered["splits"]:
            found = answered["splits"][split]["study"]
            values = (_interval(found["scores"][key]) for key in ("auc", "kappa"))
            rows.append([_text(name), found["studies"], found["positives"], *values])
    if not rows:
        return []
    what = "Each by its own probability."
    if contract.abnormal:
        accuracy = _interval(scores["areas"][split]["study"]["scores"]["accuracy"])
        what = (
            "Abnormal or normal: the abnormal probability of each image, pooled like the classes'. Which area it is, "
            f"by the sums over the classes of each: accuracy {accuracy}."
        )
    table = _table(["question", "studies", "positive", "auc", "kappa at 0.5"], rows)
    return [f"### Yes or no on {split}, study level\n\n{what}\n\n{table}"]


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


def _table(heads: list[str], rows: list[list]) -> str:
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    return "\n".join(lines + [f"| {' | '.join(map(str, row))} |" for row in rows])


def _text(name: str) -> str:
    """A name as Markdown that shows it as it is."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>|#" else letter for letter in str(name))
