"""Comparison of evaluated runs from their predictions: scores, best models, and differences with intervals."""

import dataclasses
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kmura import metrics
from kmura.errors import InputError, check_choice
from kmura.evaluation.scoring import LEVELS, Units, joined_units, units_of
from kmura.files import write_json
from kmura.runs.fold_runs import POOLED, with_folds_pooled
from kmura.runs.predictions import patient_keys_of, study_keys_of
from kmura.runs.run import Run
from kmura.tasks import ALL, Binary

OVERALL = ("macro", "weighted", "pooled")  # means over areas, unweighted and weighted by size; all units pooled


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference of two models in one score: `other` minus `one`.

    Attributes:
        where: an area, or one of OVERALL.
        interval: paired, by patient bootstrap.
        delong_p: for AUCs within an area, the p-value of DeLong's test with the variance of Obuchowski (1997), which
            allows for several units per patient; NaN if it is undefined, None for other scores and means over areas.
        sentence: the difference in words.
    """

    where: str
    level: str
    score: str
    one: str
    other: str
    interval: metrics.Interval
    delong_p: float | None
    sentence: str

    @property
    def text(self) -> str:
        """The sentence, with DeLong's p-value if there is one."""
        if self.delong_p is None or np.isnan(self.delong_p):
            return self.sentence
        return f"{self.sentence} (DeLong p = {self.delong_p:.2g})"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Models (runs of one name) over areas, on one split.

    Attributes:
        split: the split that was scored.
        runs: model -> area -> folder of the run.
        units: level -> area -> number of images or studies.
        scores: level -> area or one of OVERALL -> model -> score -> value with interval.
        calibration: level -> area or one of OVERALL -> model -> name -> calibration error; for means over areas it is
            the mean of the errors of the areas, without a percentile.
        best: level -> area or one of OVERALL -> score -> model with the best value; ties give the first.
        differences: differences of all pairs of models in all scores.
        resamples, redrawn: level -> number of resamples, and number of those that were drawn again because they lacked
            a class in an area.
        is_single_view: whether every image is a study of its own, so that both levels are the same.
        resampled: what the bootstrap resamples: `images` if every image is a patient of its own, else `patients`.
        notes: remarks that are needed to interpret the comparison.
    """

    split: str
    runs: dict[str, dict[str, str]]
    units: dict[str, dict[str, int]]
    scores: dict[str, dict[str, dict[str, dict[str, metrics.Interval]]]]
    calibration: dict[str, dict[str, dict[str, dict[str, metrics.CalibrationError]]]]
    best: dict[str, dict[str, dict[str, str]]]
    differences: list[Difference]
    resamples: dict[str, int]
    redrawn: dict[str, int]
    is_single_view: bool
    resampled: str
    notes: tuple[str, ...]


def compare(runs: Sequence[str | os.PathLike], **options) -> Any:
    """Compares evaluated runs of one kind.

    Args:
        runs: folders of two or more runs; folders of folds, and two or more runs of folds, stand for the pooled
            predictions of their cross-validation.
        **options: of `compare_classifiers`, or of `kmura.segmentation.volume_comparison.compare_volumes`.

    Raises:
        InputError: see there; the runs are of kinds that cannot be compared with each other.
    """
    runs = with_folds_pooled(runs, also_single=True)
    opened = [Run(path) for path in runs]
    comparisons = {run.part("comparison"): run for run in opened}
    if len(comparisons) > 1:
        one, other, *_ = comparisons.values()
        raise InputError(
            f"{one} is of the kind {one.kind} and {other} of the kind {other.kind}; compare runs of one kind"
        )
    if not comparisons:
        raise InputError("compare needs two runs or more; give their folders, such as runs/XR_WRIST/baseline")
    (comparison,) = comparisons
    return comparison(runs, **options)


def compare_classifiers(
    runs: Sequence[str | os.PathLike],
    *,
    split: str = "test",
    pooling: str = "mean",
    top_k: int = 2,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compares evaluated classifiers.

    Runs of one phase count as one model over several areas, and so does one run of all areas. If an area has two runs
    of a phase, models are named by their runs folder. Probabilities are not calibrated, and thresholds are 0.5.

    Args:
        runs: folders with `run.json` and `predictions.csv`.
        split: the split to compare on.
        pooling, top_k: pooling of the images of a study, see `metrics.pool_studies`.
        resamples, seed: of the patient bootstrap; all models and scores share its resamples.

    Raises:
        InputError: there are fewer than two runs, a run has no predictions of the split, two runs of an area have
            different images or labels, or a run is given twice.
    """
    if len(runs) < 2:
        raise InputError("compare needs two runs or more; give their folders, such as runs/XR_WRIST/baseline")
    check_choice("pooling", pooling, metrics.POOLINGS)
    folders, notes = _by_model(runs), []
    tables = {}
    for model, areas in folders.items():
        of_run = {path: _questions(Run(path)) for path in dict.fromkeys(areas.values())}
        for path in of_run:
            if Run(path).config.train.select_on == split:
                notes.append(f"{path}: the best epoch was chosen on {split}, so the scores on {split} are optimistic")
        for area, path in areas.items():
            table = of_run[path][area]
            table = table[(table["split"] == split) & (table["label"] >= 0)].sort_values("image", ignore_index=True)
            if table.empty and len(of_run[path]) > 1:  # one model over all areas; this area lacks the split
                notes.append(f"{path}: no predictions of {split} with known labels in {area}; the area is left out")
                continue
            if table.empty:
                raise InputError(f"{path} has no predictions of {split} with known labels; run kmura evaluate {path}")
            tables[model, area] = table
    if not tables:
        raise InputError(f"none of the runs has predictions of {split} with known labels; run kmura evaluate on them")
    folders = {
        model: {area: areas[area] for area in areas if (model, area) in tables} for model, areas in folders.items()
    }
    _check_same_images(tables, folders)
    paths = {model: {area: str(path) for area, path in areas.items()} for model, areas in folders.items()}
    return compare_tables(
        tables, paths, split=split, pooling=pooling, top_k=top_k, resamples=resamples, seed=seed, notes=notes
    )


def compare_tables(
    tables: Mapping[tuple[str, str], pd.DataFrame],
    sources: dict[str, dict[str, str]],
    *,
    split: str,
    pooling: str = "mean",
    top_k: int = 2,
    resamples: int = 2000,
    seed: int = 0,
    notes: Sequence[str] = (),
) -> Comparison:
    """Compares binary predictions of models for the same images.

    Args:
        tables: (model, area) -> predictions of one split with known labels; the tables of an area have the same images
            in the same order.
        sources: model -> area -> where its predictions are from.
        split: that is compared.
        pooling, top_k, resamples, seed: see `compare_classifiers`.
        notes: remarks that precede those of the comparison.
    """
    notes = list(notes)
    by_level = {"units": {}, "scores": {}, "calibration": {}, "best": {}, "resamples": {}, "redrawn": {}}
    differences = []
    is_single_view = all(len(np.unique(study_keys_of(table))) == len(table) for table in tables.values())
    of_areas = {area: table for (_, area), table in tables.items()}
    patients = np.concatenate([patient_keys_of(table) for table in of_areas.values()])
    for level in LEVELS:
        units = {key: units_of(table, level, pooling=pooling, top_k=top_k) for key, table in tables.items()}
        ours = _level(level, units, list(sources), resamples, seed, is_single_view)
        differences += ours.pop("differences")
        for name, value in ours.items():
            by_level[name][level] = value
    undecided = sum(np.isnan(difference.interval.low) for difference in differences)
    if undecided:
        notes.append(
            f"{undecided} differences have no interval: the score is undefined, or its difference the same in every "
            "resample of so few patients"
        )
    if by_level["redrawn"]["study"]:
        notes.append(
            f"{by_level['redrawn']['study']} bootstrap resamples without both classes in each area were drawn again, "
            f"for {by_level['resamples']['study']} that have both; intervals from so few patients of a class are rough"
        )
    if differences:
        notes.append(f"each interval is a 95 % interval; they are not corrected for {len(differences)} comparisons")
    return Comparison(
        split=split,
        runs=sources,
        differences=differences,
        is_single_view=is_single_view,
        resampled="images" if len(np.unique(patients)) == len(patients) else "patients",
        notes=tuple(notes),
        **by_level,
    )


def write_comparison(comparison: Comparison, path: str | os.PathLike) -> None:
    """Writes a comparison of any kind as JSON, whole or not at all."""
    write_json(path, dataclasses.asdict(comparison))


def _questions(run: Run) -> dict:
    """The binary predictions of a run: area -> table."""
    return run.part("questions")(run)


def _by_model(runs) -> dict[str, dict[str, Path]]:
    """Returns model -> area -> folder; models are named by phase if unique in each area, else by folder and phase."""
    paths = [Path(run) for run in runs]
    described = [Run(path) for path in paths]
    names = [f"{run.phase} of all areas" if run.area == ALL else run.phase for run in described]
    if len(set(zip([run.area for run in described], names, strict=True))) < len(paths):
        names = [f"{_runs_folder(path).name}/{name}" for path, name in zip(paths, names, strict=True)]
    models: dict[str, dict[str, Path]] = {}
    for path, run, name in zip(paths, described, names, strict=True):
        if run.labels is None:
            raise InputError(f"{path} is a run of kind {run.kind}, which answers no yes/no question; leave it out")
        areas = models.setdefault(name, {})
        answered = [run.area] if isinstance(run.labels, Binary) else list(_questions(run))
        if not answered:
            raise InputError(
                f"{path} answers no yes/no question of its {len(run.labels.classes)} classes; leave it out"
            )
        for area in answered:
            if area in areas:
                raise InputError(
                    f"{path} and {areas[area]} would both be {name} of {area}; give each run once, from folders of "
                    "different names"
                )
            areas[area] = path
    return models


def _runs_folder(path: Path) -> Path:
    """The folder of all runs: RUNS of `RUNS/AREA/PHASE`, and of the folds `RUNS/folds/AREA/PHASE`."""
    folder = path.resolve().parents[1]
    return folder.parent if folder.name == POOLED else folder


def _check_same_images(tables, folders) -> None:
    """Checks that all tables of an area have the same images with the same labels."""
    first = {}
    for (model, area), table in tables.items():
        reference, path = first.setdefault(area, (table, folders[model][area]))
        keys = ["image", "label", "patient", "study"]
        if len(table) != len(reference) or not (table[keys].to_numpy() == reference[keys].to_numpy()).all():
            raise InputError(
                f"{folders[model][area]} and {path} were evaluated on different images of {area}; "
                "evaluate both on the same records"
            )


def _mean_intervals(by_area, units, share, patients: int, percentiles) -> dict[str, metrics.Interval]:
    """Returns the mean scores over areas with their intervals.

    Args:
        by_area: score -> interval, of each area.
        units: units and places of their patients, of each area.
        share: weights of the areas, which sum to 1.
        patients: number of patients of all areas.
        percentiles: score -> percentile interval of the mean; kept unless it has no width.
    """
    result = dict(percentiles)
    for name, interval in percentiles.items():
        if np.isnan(interval.low) and not np.isnan(interval.value) and name != "log_loss":
            bounds = metrics.mean_bounds([scores[name] for scores in by_area], share)
            result[name] = metrics.with_width(interval.value, *bounds, metrics.BOUNDS)
    aucs = [metrics.clustered_auc(one.label, one.probability, place, patients) for one, place in units]
    return result | {"auc": metrics.mean_auc_interval(aucs, share)}


def _level(
    level: str,
    units: Mapping[tuple[str, str], Units],
    models: list[str],
    resamples: int,
    seed: int,
    is_single_view: bool,
) -> dict:
    """Returns the fields of `Comparison` for one level."""
    areas = list(dict.fromkeys(area for _, area in units))
    any_model = {area: next(scored for (_, name), scored in units.items() if name == area) for area in areas}
    sizes = {area: len(scored.label) for area, scored in any_model.items()}
    draws = metrics.PatientBootstrap(
        np.concatenate([scored.patient for scored in any_model.values()]),
        np.concatenate([scored.label for scored in any_model.values()]),
        group=np.repeat(areas, list(sizes.values())),
        resamples=resamples,
        seed=seed,
    )
    everywhere = [model for model in models if all((model, area) in units for area in areas)]
    scored = dict(units)
    if len(areas) > 1:
        scored |= {(model, "pooled"): joined_units([units[model, area] for area in areas]) for model in everywhere}
    places = {key: draws.place(one.patient) for key, one in scored.items()}
    of_resamples = draws.scores(
        {key: metrics.Scorer(one.label, one.probability, place=places[key]) for key, one in scored.items()}
    )
    values: dict[str, dict[str, dict]] = {area: {} for area in areas}  # where -> model -> score -> [1]
    drawn: dict[str, dict[str, dict]] = {area: {} for area in areas}
    intervals: dict[str, dict[str, dict[str, metrics.Interval]]] = {area: {} for area in areas}
    for (model, area), one in units.items():
        values[area][model], drawn[area][model] = metrics.scores(one.label, one.probability), of_resamples[model, area]
        intervals[area][model] = metrics.binary_intervals(
            one.label, one.probability, places[model, area], drawn[area][model]
        )
    calibration: dict[str, dict[str, dict[str, metrics.CalibrationError]]] = {area: {} for area in areas}
    for (model, area), one in units.items():
        calibration[area][model] = metrics.calibration_errors(one.label, one.probability, seed=seed)
    if len(areas) > 1:
        shares = {"macro": np.full(len(areas), 1 / len(areas)), "weighted": np.array([sizes[area] for area in areas])}
        shares["weighted"] = shares["weighted"] / shares["weighted"].sum()
        for model in everywhere:
            whole = scored[model, "pooled"]
            errors = _mean_errors({area: calibration[area][model] for area in areas}, sizes)
            errors["pooled"] = metrics.calibration_errors(whole.label, whole.probability, seed=seed)
            for where in OVERALL:
                calibration.setdefault(where, {})[model] = errors[where]
            for target, pooled in (
                (values, metrics.scores(whole.label, whole.probability)),
                (drawn, of_resamples[model, "pooled"]),
            ):
                means = metrics.averages({area: target[area][model] for area in areas}, sizes)
                for where, scores in (means | {"pooled": pooled}).items():
                    target.setdefault(where, {})[model] = scores
            for where, share in shares.items():
                intervals.setdefault(where, {})[model] = _mean_intervals(
                    [intervals[area][model] for area in areas],
                    [(units[model, area], places[model, area]) for area in areas],
                    share,
                    len(draws.ids),
                    metrics.intervals(values[where][model], drawn[where][model]),
                )
            intervals.setdefault("pooled", {})[model] = metrics.binary_intervals(
                whole.label, whole.probability, places[model, "pooled"], drawn["pooled"][model]
            )
    return {
        "units": sizes,
        "scores": intervals,
        "calibration": calibration,
        "best": {where: _best(by_model) for where, by_model in values.items()},
        "resamples": draws.resamples,
        "redrawn": draws.redrawn,
        "differences": [
            difference
            for where in values
            for one, other in itertools.combinations(values[where], 2)
            for difference in _differences(level, where, one, other, values[where], drawn[where], units, is_single_view)
        ],
    }


def _mean_errors(by_area: Mapping[str, Mapping[str, metrics.CalibrationError]], sizes: Mapping[str, int]):
    """Returns the `macro` and `weighted` means over areas of calibration errors and of their expected values."""

    def mean(name: str, weights) -> metrics.CalibrationError:
        parts = [(errors[name].value, errors[name].expected) for errors in by_area.values()]
        value, expected = np.average(parts, axis=0, weights=weights)
        return metrics.CalibrationError(float(value), float(expected), np.nan)

    names = next(iter(by_area.values()))
    hows = {"macro": None, "weighted": [sizes[area] for area in by_area]}
    return {how: {name: mean(name, weights) for name in names} for how, weights in hows.items()}


def _best(by_model: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, str]:
    """Returns score -> model with the best value, for the scores that are defined for any model."""
    result = {}
    for name in next(iter(by_model.values())):
        sign = -1 if name in metrics.FROM_PROBABILITY else 1
        defined = {model: sign * scores[name][0] for model, scores in by_model.items() if not np.isnan(scores[name][0])}
        if defined:
            result[name] = max(defined, key=defined.get)
    return result


def _differences(level, where, one, other, values, drawn, units, is_single_view):
    intervals = metrics.differences(values[one], values[other], drawn[one], drawn[other])
    for score, interval in intervals.items():
        p = None
        if score == "auc" and where not in OVERALL:
            two = [units[model, where] for model in (one, other)]
            p = metrics.delong(two[0].label, *(model.probability for model in two), two[0].patient).p
        sentence = _sentence(where, level, score, one, other, interval, is_single_view)
        yield Difference(where, level, score, one, other, interval, p, sentence)


def _sentence(where, level, score, one, other, interval: metrics.Interval, is_single_view: bool) -> str:
    if where == "pooled":
        images = level == "image" or is_single_view
        place = f"over all areas' {'images' if images else 'studies'} pooled"
    else:
        place = {"macro": "in the mean over areas", "weighted": "in the mean over areas by size"}.get(
            where, f"on {where}"
        )
    start = f"{score} {place}: " if is_single_view else f"{score} {place}, {level} level: "
    if np.isnan(interval.value):
        return f"{start}{one} and {other} cannot be compared, since the score is undefined"
    if np.isnan(interval.low):
        size = f"{other} minus {one} is {interval.value:+.3f}"
        return f"{start}{one} and {other} cannot be compared; {size} in every resample, so there is no interval"
    less_is_better = score in metrics.FROM_PROBABILITY
    better, worse = (other, one) if (interval.value > 0) != less_is_better else (one, other)
    size = abs(interval.value)
    low, high = sorted(abs(bound) for bound in (interval.low, interval.high))
    if interval.low > 0 or interval.high < 0:
        return f"{start}{better} is better than {worse} by {size:.3f} ({low:.3f} to {high:.3f})"
    return (
        f"{start}{one} and {other} cannot be distinguished; {other} minus {one} is {interval.value:+.3f} "
        f"({interval.low:+.3f} to {interval.high:+.3f})"
    )
