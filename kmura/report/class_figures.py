"""Figures of runs over several classes, areas or labels, in the visual language of `figures`."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from kmura.metrics import Interval
from kmura.report.figures import (
    AMBER,
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    PINK,
    SKY,
    Picture,
    drawn,
    ink,
    labelled,
    pr_points,
    roc_points,
)

# curves differ in colour, marker and line, since seven colours alone are too similar for some readers
_COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, AMBER, None)  # None is the colour of text
_MARKERS = "os^DvPX"
_STROKES = ("-", "--", ":", "-.")


@dataclasses.dataclass(frozen=True)
class Curve:
    """One class against the rest.

    Attributes:
        name: of the class.
        label, probability: of the units whose label is known, [N]; 0 or 1.
        auc, ap: the areas under the curves, from the evaluation.
    """

    name: str
    label: np.ndarray
    probability: np.ndarray
    auc: Interval
    ap: Interval


def roc_curves(name: str, what: str, curves: Sequence[Curve], n: int, period: int = len(_COLOURS)) -> Picture:
    """Returns the ROC curves of all classes over n units; classes `period` places apart share colour and marker."""

    def draw(axes):
        for place, curve in enumerate(curves):
            text = f"{_area(curve.auc)}  {_short(curve.name)}"
            there = 0 < curve.label.sum() < len(curve.label)
            axes.plot(
                *(roc_points(curve.label, curve.probability) if there else ([], [])), **_line(place, period, text)
            )
        axes.plot([0, 1], [0, 1], color=GRAY, linewidth=1, linestyle=(0, (1, 3)))
        labelled(axes, "1 - specificity", "sensitivity", f"ROC, n = {n}")
        _finish(axes, "AUC")

    return drawn(name, f"ROC curves, {what}", draw, width=4.6, height=_height(curves))


def pr_curves(name: str, what: str, curves: Sequence[Curve], n: int, period: int = len(_COLOURS)) -> Picture:
    """Returns the precision-recall curves of all classes over n units, drawn as in `roc_curves`."""

    def draw(axes):
        for place, curve in enumerate(curves):
            text = f"{_area(curve.ap)}  {_short(curve.name)}"
            points = pr_points(curve.label, curve.probability) if curve.label.any() else ([], [])
            axes.step(*points, where="pre", **_line(place, period, text))
        labelled(axes, "recall (sensitivity)", "precision", f"Precision and recall, n = {n}")
        _finish(axes, "AP")

    return drawn(name, f"Precision-recall curves, {what}", draw, width=4.6, height=_height(curves))


def confusion_of(name: str, what: str, classes: Sequence[str], matrix: Sequence[Sequence[int]], groups=1) -> Picture:
    """Returns the confusion matrix of several classes: counts, and shares of the true class as text and shade.

    Args:
        matrix: rows true, columns predicted.
        groups: number of groups of classes, of equal size, that are separated by lines.
    """
    counts = np.array(matrix, float)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    number = len(classes)

    def draw(axes):
        shade = np.zeros((number, number, 4))
        shade[:] = _rgb(BLUE)
        shade[..., 3] = np.where(counts > 0, 0.06 + 0.54 * share, 0)  # text on it stays legible, light and dark
        axes.pcolormesh(shade, edgecolor="none")
        for row, column in np.argwhere(counts > 0):
            text = f"{100 * share[row, column]:.0f} %\n{counts[row, column]:.0f}"
            weight = "bold" if row == column else "normal"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=7, weight=weight)
        for place in range(number + 1):
            border = place % (number // groups) == 0
            for line in (axes.axhline, axes.axvline):
                line(place, color=ink() if border else GRAY, linewidth=0.8 if border else 0.25)
        ticks = np.arange(number) + 0.5
        axes.set(xlim=(0, number), ylim=(number, 0), xticks=ticks, yticks=ticks, aspect="equal")
        names = [_short(each) for each in classes]
        upright = max(map(len, names)) * number > 50
        axes.set_xticklabels(names, rotation=45 if upright else 0, ha="right" if upright else "center")
        axes.set_xticklabels(names, rotation_mode="anchor")
        axes.set_yticklabels([f"{each}  ({row:.0f})" for each, row in zip(names, counts.sum(1), strict=True)])
        axes.tick_params(length=0)
        labelled(axes, "predicted", "true (n)", f"Share of the true class and count, n = {counts.sum():.0f}")

    side = 1.9 + 0.44 * max(number, 4)
    return drawn(name, f"Confusion matrix, {what}", draw, width=side + 0.4, height=side, wide=number > 8)


def kappas(name: str, what: str, rows: Sequence[tuple[str, Interval]], others: Sequence[tuple[str, list]]) -> Picture:
    """Returns Cohen's kappa of each row with its interval, and the values of `others` in the same rows, or None."""
    places = np.arange(len(rows))

    def draw(axes):
        value = np.array([found.value for _, found in rows])
        spread = np.array([[found.value - found.low, found.high - found.value] for _, found in rows]).T
        axes.errorbar(
            value, places, xerr=np.maximum(0, np.nan_to_num(spread)), color=BLUE, fmt="o", markersize=5, capsize=2.5,
            linewidth=1.4, label="this model, 95 %",
        )  # fmt: skip
        for (title, values), marker, colour in zip(others, "Ds^v", (ORANGE, GREEN, PINK, AMBER), strict=False):
            there = [(found, place) for found, place in zip(values, places, strict=True) if found is not None]
            axes.plot(
                *zip(*there, strict=True), marker, color=colour, markersize=5.5, markerfacecolor="none", label=title
            )
        axes.axvline(0, color=GRAY, linewidth=1, linestyle="--")
        axes.set(yticks=places, ylim=(len(rows) - 0.4, -0.6), xlim=(min(-0.05, axes.get_xlim()[0]), 1.02))
        axes.set_yticklabels([title for title, _ in rows])
        axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.16), ncols=2)
        labelled(axes, "Cohen's kappa", "", "Abnormal or normal, studies")

    return drawn(name, f"Cohen's kappa, {what}", draw, width=5.6, height=2 + 0.28 * len(rows))


def _line(place: int, period: int, text: str) -> dict:
    group, within = divmod(place, period)
    colour = _COLOURS[within % len(_COLOURS)] or ink()
    return {
        "color": colour,
        "linestyle": _STROKES[(group + within // len(_COLOURS)) % len(_STROKES)],
        "linewidth": 1.3,
        "marker": _MARKERS[within % len(_MARKERS)],
        "markersize": 4.5,
        "markerfacecolor": colour if group == 0 else "none",
        "markevery": (0.04 + 0.02 * place, 0.3),
        "label": text,
    }


def _finish(axes, score: str) -> None:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.46, -0.15), ncols=2, fontsize=8, handlelength=3.2, title=score,
        columnspacing=1.2, borderpad=0,
    )  # fmt: skip


def _height(curves: Sequence[Curve]) -> float:
    return 3.9 + 0.19 * ((len(curves) + 1) // 2)


def _area(found: Interval) -> str:
    return "    -" if np.isnan(found.value) else f"{found.value:.3f}"


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)) + (1.0,)
