"""Figures of what `kmura eda` found, in the style of `figures`."""

import numpy as np

from kmura.evaluation.exploration import AreaData, PrincipalParts
from kmura.report.figures import AMBER, BLUE, GRAY, GREEN, ORANGE, PINK, SKY, Picture, drawn, ink, labelled

_COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, AMBER, None)  # None stands for the colour of text
_STROKES = ("-", "--", ":", "-.")
_MOST_CURVES = 14  # classes with more images first; more curves cannot be distinguished


def pictures(name: str, what: str, explored: AreaData) -> dict[str, Picture]:
    """Returns the figures of an area by name, as far as its file has their values (earlier versions lack some).

    Args:
        name: beginning of the names of their files.
        what: end of their titles.
        explored: what `kmura eda` found.
    """
    found = {}
    if explored.splits:
        found["distribution"] = class_distribution(f"{name}-distribution", what, explored)
    if any(intensity.histogram for intensity in explored.classes.values()):
        found["intensity"] = intensities(f"{name}-intensity", what, explored)
    if explored.principal.cumulative:
        found["variance"] = explained_variance(f"{name}-variance", f"{what}, thumbnails", explored.principal)
    return found


def class_distribution(name: str, what: str, explored: AreaData) -> Picture:
    """The number of images of each class in each split, as bars with the share of the split."""
    splits = explored.splits
    classes = list(dict.fromkeys(label for counts in splits.values() for label in counts))
    height = 0.8 / len(splits)

    def draw(axes):
        for number, (split, counts) in enumerate(splits.items()):
            values = np.array([counts.get(label, 0) for label in classes])
            places = np.arange(len(classes)) + (number - (len(splits) - 1) / 2) * height
            colour = _COLOURS[number % len(_COLOURS)] or ink()
            axes.barh(places, values, height=0.9 * height, color=colour, label=f"{split} (n = {values.sum()})")
            for place, value in zip(places, values, strict=True):
                text = f"{value} ({100 * value / max(1, values.sum()):.0f} %)"
                beside = {"xytext": (3, 0), "textcoords": "offset points"}
                axes.annotate(text, (value, place), va="center", fontsize=7, **beside)
        most = max(max(counts.values()) for counts in splits.values())
        axes.set(yticks=np.arange(len(classes)), ylim=(len(classes) - 0.5, -0.5), xlim=(0, 1.25 * most))
        axes.set_yticklabels(classes)
        axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.16), ncols=3, fontsize=8)
        labelled(axes, "images (share of the split)", "", "Images of each class by split")

    rows = len(classes) * len(splits)
    return drawn(name, f"Class distribution of {what}", draw, width=4.6, height=max(3.4, 1.4 + 0.2 * rows))


def intensities(name: str, what: str, explored: AreaData) -> Picture:
    """Histograms of the gray values of thumbnails by class."""
    classes = {label: found for label, found in explored.classes.items() if found.histogram}
    largest = sorted(classes, key=lambda label: -classes[label].images)[:_MOST_CURVES]

    def draw(axes):
        for number, label in enumerate(label for label in classes if label in largest):
            shares = np.array(classes[label].histogram)
            edges = np.linspace(0, 256, len(shares) + 1)
            axes.stairs(
                100 * shares, edges, label=f"{label} (n = {classes[label].images})", linewidth=1.4,
                color=_COLOURS[number % len(_COLOURS)] or ink(), linestyle=_STROKES[number % len(_STROKES)],
            )  # fmt: skip
        axes.set(xlim=(0, 256), yscale="log" if _is_peaked(classes.values()) else "linear")
        axes.legend(fontsize=8)
        labelled(axes, "gray value", "pixels in %", "Gray values of thumbnails by class")

    return drawn(name, f"Gray values of {what}", draw)


def _is_peaked(intensities) -> bool:
    """Whether a single bin, usually that of black, would hide all others on a linear axis."""
    return any(max(found.histogram) > 0.25 for found in intensities)


def explained_variance(name: str, what: str, principal: PrincipalParts) -> Picture:
    """The share of the variance that the first principal components of thumbnails explain."""

    def draw(axes):
        cumulative = principal.cumulative
        axes.plot(np.arange(1, len(cumulative) + 1), cumulative, color=BLUE)
        for share in (0.9, 0.95):
            axes.axhline(share, color=GRAY, linestyle=":", linewidth=1)
        axes.set(xlabel="principal components", ylabel="share of the variance", ylim=(0, 1.02))
        axes.set_title(f"Explained variance, n = {principal.images} images")

    return drawn(name, f"Explained variance of {what}", draw)
