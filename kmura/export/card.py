"""The model card of an export: description, evaluation, intended use and limits of the model."""

import numpy as np

from kmura.data.dataset import Dataset
from kmura.errors import InputError
from kmura.evaluation.class_scores import ClassLevelScores, MultiScores
from kmura.evaluation.evaluation import Evaluation
from kmura.evaluation.scoring import (
    Counted,
    LevelScores,
    OperatingScores,
    ScoreOptions,
    Scores,
    intervals_in_words,
    shown_levels,
)
from kmura.metrics import Interval
from kmura.runs.predictions import patient_keys_of, study_keys_of
from kmura.runs.run import RunDescription
from kmura.serving.contract import Contract
from kmura.tasks import ALL, NO_LABEL, Binary

_SHOWN = ("auc", "ap", "accuracy", "recall", "specificity", "f1", "kappa", "brier", "log_loss")


def model_card(
    description: RunDescription,
    evaluation: Evaluation,
    contract: Contract,
    *,
    trained: str,
    made: str,
    records: str,
) -> str:
    """Returns the model card as Markdown.

    Args:
        description, evaluation: description and evaluation of the run.
        contract: contract of the export.
        trained: number of epochs in words, see `kmura.runs.run.Run.epochs_trained`.
        made: date and versions, one line.
        records: folder of the records; without records, their counts are omitted.
    """
    scores, config = evaluation.scores, description.config
    binary = isinstance(scores, Scores)
    parts = [
        f"# {_area(description)}, {description.phase}: a classifier of {_kind(contract)}",
        f"{made}. Network: {config.model.words}, {contract.image_size} x {contract.image_size} pixels.",
        "## Use",
        _use(description, contract),
        "## Data",
        _data(description, records),
        *(f"**Leakage between splits:** {_text(leak)}." for leak in description.leaks),
        "## Model selection",
        f"Trained for {trained} with seed {config.train.seed}; the best epoch was chosen on "
        f"{evaluation.select_on} by {evaluation.selected_epoch_by}."
        + (" Its scores on test are therefore optimistic." if evaluation.select_on == "test" else ""),
        *(
            ("## Calibration and threshold", _calibration(scores.options, contract))
            if binary
            else ("## Probabilities and decision", _class_decision(contract))
        ),
        "## Scores",
        _intervals(evaluation),
    ]
    parts += _binary_scores(scores, contract) if binary else _class_scores(scores, contract)
    if scores.notes:
        parts += ["## Notes of the evaluation", "\n".join(f"- {_text(note)}" for note in scores.notes)]
    return "\n\n".join(parts) + "\n"


def _intervals(evaluation: Evaluation) -> str:
    resampled = next(iter(evaluation.scores.splits.values()))["study"].resampled
    unknown = "" if evaluation.has_patients else " The records do not identify patients."
    return f"{intervals_in_words(resampled)}.{unknown}"


def _binary_scores(scores: Scores, contract: Contract) -> list[str]:
    parts = []
    for split, levels in scores.splits.items():
        for level in shown_levels(levels):
            plain, calibrated = levels[level], scores.calibrated.get(split, {}).get(level)
            parts.append(_scores(split, calibrated or plain, bool(calibrated), scores.options.fit_on))
    return parts + [
        _points(points, contract, _place(split, scores.splits[split]["study"]))
        for split, points in scores.operating_points.items()
        if points
    ]


def _place(split: str, scores: Counted) -> str:
    """Returns where scores are of: the split, and the level unless both are the same."""
    return split if scores.is_single_view else f"{split}, {scores.level} level"


def _units(scores: Counted) -> str:
    return "images" if scores.is_single_view or scores.level == "image" else "studies"


def _class_scores(scores: MultiScores, contract: Contract) -> list[str]:
    parts = []
    for split, levels in scores.splits.items():
        parts += [_class_level(split, levels[level], contract) for level in shown_levels(levels)]
        parts.append(_classes(split, levels["study"]))
        parts += _questions(split, scores, contract)
    return parts


def _area(description: RunDescription) -> str:
    return "all areas" if description.area == ALL else description.area


def _use(description: RunDescription, contract: Contract) -> str:
    return (
        f"Intended for research on {_kind(contract)} of {_area(description)} similar to the training data: it predicts "
        f"{_answers(contract)} for an image or for the views of one study. It is not a medical "
        "device and does not replace a reader.\n\n"
        f"Limits: it makes predictions for any image, including images that are not {_kind(contract)} or show another "
        "area; such images are not detected. The scores apply to the source of the data, its devices, patients "
        "and prevalence; for other data they must be measured again"
        f"{', and so must calibration and threshold' if contract.is_binary else ''}. "
        "A map shows which region influenced the prediction, not where a lesion is."
        + (f" Note: {contract.losses}." if contract.losses else "")
    )


def _kind(contract: Contract) -> str:
    return "radiographs" if contract.channels == 1 else "colour images"


def _answers(contract: Contract) -> str:
    if contract.is_binary:
        return f"{contract.classes[0]} or {contract.classes[1]}"
    names = ", ".join(map(_text, contract.classes))
    return f"{'one' if contract.labels.softmax else 'any or none'} of {names}"


def _data(description: RunDescription, records: str) -> str:
    try:
        dataset = Dataset(records, description.area, description.config.data)
        if description.config.data.folds:
            return _fold_data(dataset)
        if not isinstance(description.labels, Binary):
            return _class_data(dataset)
        splits = dataset.manifest.areas[description.area]
    except InputError:
        return "The records are no longer available; the counts of the training data are not known."
    rows = [f"| split | images | studies | patients | {' | '.join(map(_text, description.classes))} (images) |"]
    rows.append("| --- " * (4 + len(description.classes)) + "|")
    for name, counts in splits.items():
        numbers = (counts.images, counts.studies, counts.patients, *counts.per_class)
        rows.append(f"| {name} | {' | '.join(map(str, numbers))} |")
    return "\n".join(rows)


def _fold_data(dataset: Dataset) -> str:
    """Returns a table with one column per split of a fold, and a sentence that says which fold it is."""
    number, fold = dataset.config.folds, dataset.config.fold
    rows = [["images"], ["studies"], ["patients"], *([f"images of {_text(name)}"] for name in dataset.count_names())]
    for split in dataset.splits:
        table = dataset.rows(split)
        units = [len(table), len(np.unique(study_keys_of(table))), len(np.unique(patient_keys_of(table)))]
        for row, count in zip(rows, (*units, *dataset.counts(split)), strict=True):
            row.append(count)
    text = f"Fold {fold} of {number} was held out as test, fold {(fold + 1) % number} was val."
    return f"{_table(['', *dataset.splits], rows)}\n\n{text}"


def _class_data(dataset: Dataset) -> str:
    """Returns a table with one column per split common to all areas, and one row per class (there may be many)."""
    manifest = dataset.manifest
    areas = list(manifest.areas.values()) if dataset.area == ALL else [manifest.areas[dataset.area]]
    splits = [split for split in areas[0] if all(split in area for area in areas)]
    rows = [
        [name, *(sum(getattr(area[split], name) for area in areas) for split in splits)]
        for name in ("images", "studies", "patients")
    ]
    counts = [dataset.counts(split) for split in splits]
    rows += [
        [f"images of {_text(name)}", *numbers] for name, *numbers in zip(dataset.count_names(), *counts, strict=True)
    ]
    counted = "\n\nA patient with images of several areas is counted in each of them." if len(areas) > 1 else ""
    return _table(["", *splits], rows) + counted


def _calibration(options: ScoreOptions, contract: Contract) -> str:
    calibrator = contract.calibrator
    if calibrator is None:
        text = "Probabilities are not calibrated."
    else:
        by = {
            "isotonic": f"isotonic, {len(calibrator.knots)} knots",
            "temperature": f"temperature {calibrator.temperature:.4g}",
            "platt": f"Platt: temperature {calibrator.temperature:.4g}, bias {calibrator.bias:+.4g} on the logit",
        }[calibrator.method]
        text = f"Probabilities are calibrated on {options.fit_on} at {contract.calibrated_at} level ({by})."
    return (
        f"{text} The probability of a study is the {_pooling(contract)} of the probabilities of its images. The "
        "probability of a single image is that of a study of this one view.\n\n"
        f"Threshold: {contract.threshold:.6g} (rule `{contract.rule}`, at study level); the decision is "
        f"{_text(contract.classes[1])} at this probability or above."
    )


def _pooling(contract: Contract) -> str:
    return contract.pooling + (f" (k = {contract.top_k})" if contract.pooling == "top-k" else "")


def _class_decision(contract: Contract) -> str:
    softmax, way = contract.labels.softmax, "The decision is the most probable class."
    if not softmax:
        way = f"The decision is every label with a probability of 0.5 or more, `{NO_LABEL}` if there is none."
    abnormal = " `abnormal_probability` is the sum over the abnormal classes." if contract.abnormal else ""
    return (
        f"Probabilities are {'the softmax' if softmax else 'the logistic function'} of the logits and are not "
        f"calibrated. The probabilities of a study are the {_pooling(contract)} of those of its images, class by class"
        f"{', normalised to sum to 1' if softmax else ''}. {way}{abnormal}"
    )


def _class_level(split: str, scores: ClassLevelScores, contract: Contract) -> str:
    means = "of the most probable class" if contract.labels.softmax else "at 0.5, means over the labels"
    rows = "\n".join(_row(name, score) for name, score in scores.scores.items())
    counts = f"{scores.images} images" + ("" if scores.is_single_view else f", {scores.studies} studies")
    return (
        f"### {_place(split, scores)}\n\n{counts}; scores of decisions "
        f"are {means}.\n\n| score | value | 95 % interval |\n| --- | --- | --- |\n{rows}"
    )


def _classes(split: str, scores: ClassLevelScores) -> str:
    names = list(scores.classes[0].scores)
    rows = [
        [_text(of_class.name), of_class.units, *(of_class.scores[name] for name in names)]
        for of_class in scores.classes
    ]
    return f"### Classes on {_place(split, scores)}\n\n{_table(['class', _units(scores), *names], rows)}"


def _questions(split: str, scores: MultiScores, contract: Contract) -> list[str]:
    questions = scores.questions | ({"all areas": scores.pooled} if contract.abnormal else {})
    rows = []
    for name, question in questions.items():
        if split in question.splits:
            study = question.splits[split]["study"]
            rows.append([_text(name), study.studies, study.positives, study.scores["auc"], study.scores["kappa"]])
    if not rows:
        return []
    text = "Each question is scored by its own probability."
    if contract.abnormal:
        text = (
            "Abnormal or normal: the abnormal probability of each image, pooled like the probabilities of the classes. "
            "The area is the one with the largest sum over its classes: accuracy "
            f"{scores.areas[split]['study'].scores['accuracy']}."
        )
    of_split = scores.splits[split]["study"]
    table = _table(["question", _units(of_split), "positive", "auc", "kappa at 0.5"], rows)
    return [f"### Yes or no on {_place(split, of_split)}\n\n{text}\n\n{table}"]


def _scores(split: str, scores: LevelScores, calibrated: bool, fitted_on: str) -> str:
    suffix = ", calibrated" if calibrated else ""
    warning = f" Calibration and thresholds were fitted on {split}: optimistic." if split == fitted_on else ""
    rows = [
        f"### {_place(split, scores)}{suffix}",
        f"{scores.units} {_units(scores)}, {scores.positives} positive; thresholded scores at 0.5.{warning}",
        "| score | value | 95 % interval |\n| --- | --- | --- |\n"
        + "\n".join(_row(name, scores.scores[name]) for name in _SHOWN if name in scores.scores),
    ]
    return "\n\n".join(rows)


def _points(points: list[OperatingScores], contract: Contract, place: str) -> str:
    head = "| rule | threshold | sensitivity | specificity | precision |\n| --- | --- | --- | --- | --- |\n"
    rows = []
    for point in points:
        numbers = " | ".join(str(point.scores[name]) for name in ("recall", "specificity", "precision"))
        mark = " (this export's)" if point.rule == contract.rule else ""
        rows.append(f"| `{point.rule}`{mark} | {point.threshold:.4g} | {numbers} |")
    return f"### Thresholds on {place}\n\n{head}" + "\n".join(rows)


def _row(name: str, score: Interval) -> str:
    value, _, interval = str(score).partition(" ")
    return f"| {name} | {value} | {interval.strip('()')} |"


def _table(heads: list[str], rows: list[list]) -> str:
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    return "\n".join(lines + [f"| {' | '.join(map(str, row))} |" for row in rows])


def _text(name: str) -> str:
    """Returns a name escaped for Markdown."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>|#" else letter for letter in str(name))
