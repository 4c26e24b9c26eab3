"""What the comparison of runs shows beside its scores: best models, best and worst areas, bar charts."""

import numpy as np

from kmura.evaluation.compare import OVERALL, Comparison
from kmura.report.chapter import Section, Table
from kmura.report.classification_tables import extremes
from kmura.report.figures import AMBER, BLUE, GREEN, ORANGE, PINK, SKY, Picture, drawn, ink, labelled

TITLES = {
    "auc": "AUC",
    "ap": "AP",
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall (sensitivity)",
    "specificity": "specificity",
    "npv": "negative predictive value",
    "f1": "F1",
    "f1_negative": "F1 of the negative class",
    "balanced_accuracy": "balanced accuracy",
    "kappa": "kappa",
    "brier": "Brier",
    "log_loss": "log loss",
}
WORDS = {"macro": "mean of areas", "weighted": "mean of areas by size", "pooled": "all studies pooled"}
BARS = ("auc", "f1")  # scores of the bar charts
BY_AREA = ("precision", "recall", "specificity", "accuracy")  # folded tables
EXTREMES = {name: TITLES[name] for name in ("auc", "f1", "kappa", "accuracy", "precision", "recall")}
_COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, AMBER, None)  # None stands for the colour of text
_HATCHES = ("", "//", "..", "xx", "\\\\", "oo", "++")


def compared(comparison: Comparison) -> Section:
    """Returns the tables and figures of a comparison at study level, beside the tables of its main scores."""
    tables = [table for table in (best_models(comparison), best_areas(comparison)) if table]
    folded = [by_area(comparison, score) for score in BY_AREA]
    pictures = {f"comparison-{score}": bars(f"comparison-{score}", comparison, score) for score in BARS}
    return Section("", "", "", tuple(tables), tuple(folded), {"": pictures})


def best_models(comparison: Comparison) -> Table | None:
    """The best model by each score, in each area and over all of them; None for a single model."""
    if len(comparison.runs) < 2:
        return None
    best = comparison.best["study"]
    where = [name for name in best if name == "macro" or name not in OVERALL]
    where = where if len(where) <= 9 else ["macro"]
    rows = []
    for score, title in TITLES.items():
        winners = [best[name].get(score) for name in where]
        values = [
            "-" if model is None else f"{model}: {comparison.scores['study'][name][model][score].value:.3f}"
            for name, model in zip(where, winners, strict=True)
        ]
        rows.append((title, *values))
    what = f"The best model by each score on {_where(comparison)}; not every difference exceeds chance"
    return Table(what, ("score", *(WORDS.get(name, name) for name in where)), tuple(rows))


def best_areas(comparison: Comparison) -> Table | None:
    """The best and the worst area of each model; None if no model has two areas."""
    scores = comparison.scores["study"]
    rows = []
    for model in comparison.runs:
        of_model = {
            area: by_model[model] for area, by_model in scores.items() if area not in OVERALL and model in by_model
        }
        rows += [(model, *row) for row in extremes(of_model, EXTREMES)]
    heads = ("model", "score", "best area", "worst area")
    return Table(f"Best and worst area on {_where(comparison)}", heads, tuple(rows)) if rows else None


def by_area(comparison: Comparison, score: str) -> Table:
    """A score of every model in every area, study level."""
    rows = [
        (WORDS.get(where, where), *(by_model[model][score] if model in by_model else "-" for model in comparison.runs))
        for where, by_model in comparison.scores["study"].items()
    ]
    what = f"{TITLES[score]} on {_where(comparison)}, threshold 0.5"
    return Table(what, ("area", *comparison.runs), tuple(rows))


def bars(name: str, comparison: Comparison, score: str) -> Picture:
    """A bar chart of a score of every model over the areas and their mean, with 95 % intervals."""
    scores = comparison.scores["study"]
    where = [area for area in scores if area == "macro" or area not in OVERALL]
    models = list(comparison.runs)
    width = 0.8 / len(models)

    def draw(axes):
        for number, model in enumerate(models):
            found = [(place, scores[area][model][score]) for place, area in enumerate(where) if model in scores[area]]
            found = [(place, value) for place, value in found if not np.isnan(value.value)]
            places = np.array([place for place, _ in found]) + (number - (len(models) - 1) / 2) * width
            values = np.array([value.value for _, value in found])
            spread = [[value.value - value.low, value.high - value.value] for _, value in found]
            axes.bar(
                places, values, 0.92 * width, color=_COLOURS[number % len(_COLOURS)] or ink(), alpha=0.75, label=model,
                hatch=_HATCHES[number % len(_HATCHES)], edgecolor=ink(), linewidth=0.5,
            )  # fmt: skip
            if found:
                spread = np.maximum(0, np.nan_to_num(np.array(spread).T))
                axes.errorbar(places, values, yerr=spread, fmt="none", ecolor=ink(), capsize=2, linewidth=1)
        names = [WORDS.get(area, area) for area in where]
        axes.set(xticks=np.arange(len(where)), ylim=(min(0, axes.get_ylim()[0]), 1.02))
        upright = max(map(len, names)) * len(names) > 60
        axes.set_xticklabels(names, rotation=30 if upright else 0, ha="right" if upright else "center")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3 if upright else -0.12), ncols=3, fontsize=8)
        labelled(axes, "", TITLES[score], f"{TITLES[score]} on {_where(comparison)}, 95 % intervals")

    long = len(where) * len(models) > 8
    width_of_panel = min(11.0, max(4.2, 0.8 + 0.35 * len(where) * len(models)))
    return drawn(name, f"{TITLES[score]} of models over areas", draw, width=width_of_panel, height=3.8, wide=long)


def _where(comparison: Comparison) -> str:
    return comparison.split if comparison.is_single_view else f"{comparison.split}, study level"
