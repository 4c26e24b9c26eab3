"""Figures of a run, drawn with matplotlib in one style, with colours that colour-blind people can distinguish.

A figure is SVG text for a page, whose text colour it takes over (`currentColor`), and a PNG.
"""

import dataclasses
import io
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from kmura import metrics
from kmura.evaluation.scoring import Units
from kmura.explain.explanation import MeanCurves

# Okabe & Ito (2008): distinguishable with every common colour blindness, on light and dark pages
BLUE, ORANGE, GREEN, PINK, GRAY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a8a8a"
SKY, AMBER = "#56b4e9", "#e69f00"
NEGATIVE, POSITIVE = BLUE, ORANGE
# column of a history -> colour and label in the training curves
TRAINING_COLUMNS = {
    "loss": (GRAY, "training"),
    "val_loss_img": (BLUE, "images"),
    "acc": (GRAY, "training (augmented)"),
    "val_acc_img": (BLUE, "images"),
    "val_acc_study": (ORANGE, "studies"),
    "val_auc_img": (BLUE, "images"),
    "val_auc_study": (ORANGE, "studies"),
    "val_f1_img": (BLUE, "images"),
    "val_f1_study": (ORANGE, "studies"),
}
# score -> its columns
_TRAINING_PANELS = {
    "loss": ("loss", "val_loss_img"),
    "accuracy": ("acc", "val_acc_img", "val_acc_study"),
    "AUC": ("val_auc_img", "val_auc_study"),
    "F1": ("val_f1_img", "val_f1_study"),
}
TRAINING = {"training": ("loss", "accuracy"), "training-scores": ("AUC", "F1")}  # name of a figure -> its panels
_INK = "#123456"  # stands for the page's text colour and is replaced by it
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "kmura",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "text.color": _INK,
    "text.parse_math": False,  # a $ in a name is a $
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        name: of its files.
        title: shown below it and read by screen readers.
        svg: for a page, with `currentColor` as the colour of text.
        png: the same on white, 200 dots per inch.
        wide: whether it takes the whole width of the page.
    """

    name: str
    title: str
    svg: str
    png: bytes
    wide: bool = False


def drawn(
    name: str,
    title: str,
    draw: Callable,
    *,
    width: float = 4.2,
    height: float = 3.4,
    panels: int = 1,
    wide: bool = False,
) -> Picture:
    """Returns a picture.

    Args:
        name, title, wide: see `Picture`.
        draw: `draw(axes)` draws the figure; it gets an array of axes if there are several panels.
        width, height: of a panel, in inches.
        panels: number of panels, side by side.
    """
    text, pixels = io.StringIO(), io.BytesIO()
    black = {key: "black" if value == _INK else value for key, value in STYLE.items()}
    black |= {"figure.facecolor": "white", "figure.dpi": 200}
    for style, canvas in ((STYLE, FigureCanvasSVG), (black, FigureCanvasAgg)):
        with matplotlib.rc_context(style):
            figure = Figure(figsize=(width * panels, height), layout="constrained")
            draw(figure.subplots(1, panels))
            if canvas is FigureCanvasSVG:
                canvas(figure).print_svg(text, metadata={"Date": None})
            else:
                canvas(figure).print_png(pixels)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    # matplotlib gives every figure the same ids, which would collide within one page
    svg = svg.replace('id="', f'id="{name}-').replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{_attribute(title)}" ', 1)
    return Picture(name, title, svg, pixels.getvalue(), wide)


def _attribute(text: str) -> str:
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(character, entity)
    return text


def roc_points(label, probability) -> tuple[np.ndarray, np.ndarray]:
    """Returns 1 - specificity and sensitivity at every threshold, [T + 1] each.

    Args:
        label: [N], 0 or 1; both must occur.
        probability: [N], 0 to 1.
    """
    tp, fp = _counts(label, probability)
    return fp / fp[-1], tp / tp[-1]


def pr_points(label, probability) -> tuple[np.ndarray, np.ndarray]:
    """Returns recall and precision at every threshold, [T + 1] each.

    Drawn as steps of the kind `pre`, the area under the curve is the average precision: each gain in recall counts with
    the precision at its end.

    Args:
        label: [N], 0 or 1; a 1 must occur.
        probability: [N], 0 to 1.
    """
    tp, fp = _counts(label, probability)
    precision = tp[1:] / (tp + fp)[1:]
    return tp / tp[-1], np.r_[precision[0], precision]


def _counts(label, probability) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of true and false positives at the T distinct thresholds, beginning with none predicted: [T + 1] each."""
    order = np.argsort(-probability, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(probability[order]) != 0, True][: len(order)])
    tp, fp = (np.r_[0, np.cumsum(label[order] == value)[ends]] for value in (1, 0))
    return tp, fp


def roc_pr(name: str, what: str, units: Units) -> Picture:
    """ROC and precision-recall curves of the units of one level, with the areas under them, n and chance lines."""
    label, probability = units.label, units.probability
    n, positives = len(label), int((label == 1).sum())

    def draw(axes):
        roc, pr = axes
        if 0 < positives < n:
            area = f"AUC {metrics.auc(label, probability)[0]:.3f}"
            roc.plot(*roc_points(label, probability), color=BLUE, label=area)
            area = f"AP {metrics.average_precision(label, probability)[0]:.3f}"
            pr.step(*pr_points(label, probability), where="pre", color=BLUE, label=area)
            roc.legend(loc="lower right")
        else:
            _nothing(roc, "undefined: one class")
            _nothing(pr, "undefined: one class")
        roc.plot([0, 1], [0, 1], color=GRAY, linewidth=1, linestyle="--")
        pr.axhline(positives / max(n, 1), color=GRAY, linewidth=1, linestyle="--", label="chance")
        pr.legend(loc="lower left")
        labelled(roc, "1 - specificity", "sensitivity", f"ROC, n = {n}")
        labelled(pr, "recall (sensitivity)", "precision", f"Precision and recall, n = {n}, {positives} positive")
        for panel in axes:
            panel.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))

    return drawn(name, f"ROC and precision-recall curves, {what}", draw, panels=2)


def confusion(name: str, what: str, cells: dict[str, int], sides: tuple[str, str]) -> Picture:
    """A confusion matrix at threshold 0.5: counts, and shares of the true class as shade.

    Args:
        name, what: of the picture: its name, and the end of its title.
        cells: counts `tp`, `fp`, `fn` and `tn`.
        sides: names of the negative and the positive class.
    """
    counts = np.array([[cells["tn"], cells["fp"]], [cells["fn"], cells["tp"]]], float)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)

    def draw(axes):
        for row in range(2):
            for column in range(2):
                shade = share[row, column]
                axes.fill_between([column, column + 1], row, row + 1, color=BLUE, alpha=0.1 + 0.75 * shade, linewidth=0)
                text = f"{counts[row, column]:.0f}\n{100 * shade:.0f} %"
                axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=11)
        axes.set(xlim=(0, 2), ylim=(2, 0), xticks=[0.5, 1.5], yticks=[0.5, 1.5], aspect="equal")
        axes.set_xticklabels(sides)
        axes.set_yticklabels(sides, rotation=90, va="center")
        labelled(axes, "predicted", "true", f"Confusion at 0.5, n = {counts.sum():.0f}")

    return drawn(name, f"Confusion matrix, {what}", draw, width=3.2)


def histogram(name: str, what: str, units: Units, sides: tuple[str, str]) -> Picture:
    """Histograms of the probabilities by true class, 20 bins; sides as in `confusion`."""

    def draw(axes):
        edges = np.linspace(0, 1, 21)
        for value, colour, title in ((0, NEGATIVE, sides[0]), (1, POSITIVE, sides[1])):
            these = units.probability[units.label == value]
            axes.hist(these, edges, color=colour, alpha=0.55, label=f"{title} (n = {len(these)})")
        axes.axvline(0.5, color=GRAY, linewidth=1, linestyle="--")
        axes.legend(loc="upper center")
        axes.set(xlim=(0, 1))
        labelled(axes, f"probability of {sides[1]}", "count", f"Probabilities by class, n = {len(units.label)}")

    return drawn(name, f"Histogram of probabilities by class, {what}", draw)


def reliability(
    name: str, what: str, before: Units, after: Units | None, sides: tuple[str, str], bins: int = 10
) -> Picture:
    """Reliability diagrams before and after calibration: share of positives against mean probability.

    Args:
        name, what, sides: as in `confusion`.
        before, after: units with probabilities of the model, and with calibrated ones; None if there are none.
        bins: number of bins, of equal mass.
    """
    panels = [("uncalibrated", before)] + ([("calibrated", after)] if after else [])

    def draw(axes):
        for panel, (title, units) in zip(np.atleast_1d(axes), panels, strict=True):
            panel.plot([0, 1], [0, 1], color=GRAY, linewidth=1, linestyle="--", label="perfect")
            shown = metrics.reliability_bins(units.label, units.probability, bins, "mass")
            low, high = metrics.wilson(shown.fraction, shown.count)
            spread = np.maximum(0, [shown.fraction - low, high - shown.fraction])
            panel.errorbar(
                shown.probability, shown.fraction, yerr=spread, color=BLUE, fmt="o-", markersize=4, linewidth=1.2,
                elinewidth=0.8, label="bins, 95 % (Wilson)",
            )  # fmt: skip
            panel.legend(loc="upper left")
            panel.set(xlim=(-0.02, 1.02), ylim=(-0.05, 1.1))
            labelled(panel, "mean probability", f"share of {sides[1]}", f"Reliability {title}, n = {len(units.label)}")

    return drawn(name, f"Reliability diagrams, {what}", draw, panels=len(panels))


def thresholds(name: str, what: str, units: Units, chosen: Sequence[tuple[str, float]]) -> Picture:
    """Sensitivity, specificity, precision, F1 and accuracy against the threshold.

    Args:
        name, what: as in `confusion`.
        units: of one level.
        chosen: rules and their thresholds, drawn as vertical lines.
    """
    grid = np.linspace(0, 1, 201)
    cells = [metrics.confusion(units.label, units.probability, threshold) for threshold in grid]

    def draw(axes):
        for score, colour, title in (
            ("recall", ORANGE, "sensitivity"),
            ("specificity", BLUE, "specificity"),
            ("precision", PINK, "precision"),
            ("f1", GREEN, "F1"),
            ("accuracy", ink(), "accuracy"),
        ):
            line = "--" if score == "accuracy" else "-"
            values = [metrics.FROM_CONFUSION[score](*four)[0] for four in cells]
            axes.plot(grid, values, color=colour, label=title, linestyle=line)
        rules: dict[float, list[str]] = {}
        for rule, threshold in sorted(chosen, key=lambda point: point[1]):
            rules.setdefault(round(threshold, 3), []).append(rule)
        for number, (threshold, names) in enumerate(rules.items()):
            axes.axvline(threshold, color=GRAY, linewidth=0.8, linestyle=":")
            axes.text(threshold, 1.02 + 0.05 * (number % 4), ", ".join(names), fontsize=7, ha="center")
        axes.legend(loc="lower center", ncols=2, fontsize=8)
        axes.set(xlim=(0, 1), ylim=(-0.02, 1.22), yticks=np.linspace(0, 1, 6))
        labelled(axes, "threshold on the probability", "score", f"Scores against threshold, n = {len(units.label)}")

    return drawn(name, f"Scores against threshold, {what}", draw, width=5.2)


def training(name: str, what: str, history: pd.DataFrame, scores: Sequence[str]) -> Picture | None:
    """Scores by epoch on the training images and on the split that selects the best epoch, with the chosen epoch.

    Args:
        name, what: as in `confusion`.
        history: one row per epoch, with the columns `epoch` and `best`, and those of TRAINING_COLUMNS that there are.
        scores: keys of _TRAINING_PANELS; those without a column in the history are left out.

    Returns:
        None if no score is left.
    """
    panels = {score: [name for name in _TRAINING_PANELS[score] if name in history] for score in scores}
    panels = {score: columns for score, columns in panels.items() if columns}

    def draw(axes):
        for panel, (score, columns) in zip(np.atleast_1d(axes), panels.items(), strict=True):
            for column in columns:
                colour, title = TRAINING_COLUMNS[column]
                panel.plot(history["epoch"], history[column], color=colour, label=title, marker=".")
            for epoch in history["epoch"][history["best"].astype(bool)].tail(1):
                panel.axvline(epoch, color=GRAY, linewidth=1, linestyle="--", label=f"chosen epoch {epoch}")
            panel.legend(fontsize=8)
            panel.xaxis.get_major_locator().set_params(integer=True)
            labelled(panel, "epoch", score, f"{score[0].upper()}{score[1:]} by epoch")

    title = f"{', '.join(panels)} by epoch, {what}"
    return drawn(name, f"{title[0].upper()}{title[1:]}", draw, panels=len(panels)) if panels else None


def views(name: str, what: str, groups: Sequence[tuple[str, int, int]]) -> Picture:
    """The accuracy of studies by their number of images, with Wilson's 95 % interval.

    Args:
        name, what: as in `confusion`.
        groups: (number of images, studies, correct studies).
    """
    studies, right = (np.array([group[place] for group in groups], float) for place in (1, 2))
    share = right / studies
    low, high = metrics.wilson(share, studies)

    def draw(axes):
        places = np.arange(len(groups))
        spread = np.maximum(0, [share - low, high - share])
        axes.bar(places, share, color=SKY, width=0.6)
        axes.errorbar(places, share, yerr=spread, color=ink(), fmt="none", capsize=3, linewidth=1.2)
        axes.set(xticks=places, ylim=(0, 1.05))
        axes.set_xticklabels([f"{title}\n(n = {count})" for title, count, _ in groups])
        labelled(axes, "images per study", "accuracy of the study", "Accuracy by number of images, 95 % (Wilson)")

    return drawn(name, f"Accuracy of studies by number of images, {what}", draw)


def perturbation(name: str, what: str, curves: MeanCurves, sample: int) -> Picture:
    """Deletion and insertion curves by the model's maps and by random maps, over a sample of images."""

    def draw(axes):
        for panel, kind, title in zip(axes, ("deletion", "insertion"), ("Deletion", "Insertion"), strict=True):
            panel.plot(curves.share, getattr(curves, kind), color=BLUE, label="the model's maps")
            panel.plot(curves.share, getattr(curves, f"random_{kind}"), color=GRAY, linestyle="--", label="random maps")
            panel.legend()
            panel.set(xlim=(0, 1), ylim=(0, 1.02))
            share = "share of pixels removed" if kind == "deletion" else "share of pixels shown"
            labelled(panel, share, "confidence in the prediction", f"{title}, n = {sample}")

    return drawn(name, f"Deletion and insertion, {what}", draw, panels=2)


def ink() -> str:
    """The colour of text in the figure that is drawn at the moment."""
    return matplotlib.rcParams["text.color"]


def labelled(axes, x: str, y: str, title: str) -> None:
    axes.set(xlabel=x, ylabel=y)
    axes.set_title(title)


def _nothing(axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)
