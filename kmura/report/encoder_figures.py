"""Figures of a pretrained encoder, in the style of `figures`."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from kmura.evaluation.encoder import EncoderFeatures
from kmura.pretraining.collapse import LEAST_RANK, LEAST_STD
from kmura.report.figures import AMBER, BLUE, GRAY, GREEN, ORANGE, PINK, SKY, Picture, drawn, labelled

_COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, AMBER)
_MARKERS = "os^Dv*"
_UNKNOWN = "unknown"


def terms(name: str, what: str, history: pd.DataFrame, names: Sequence[str]) -> Picture:
    """The terms of the loss by epoch: in training (with the probe's), and on val.

    Args:
        name, what: beginning of the file's name, end of the title.
        history: one row per epoch.
        names: terms of the method.
    """
    columns = [*names, "probe_loss"]

    def draw(axes):
        for panel, (prefix, place) in zip(axes, (("", "training"), ("val_", "val")), strict=True):
            for column, colour in zip(columns, _COLOURS, strict=False):
                values = history.get(prefix + column, history["val_loss"] if prefix and len(names) == 1 else None)
                if values is not None and not (prefix and column == "probe_loss"):
                    panel.plot(history["epoch"], values, color=colour, marker=".", label=column)
            panel.legend(fontsize=8)
            panel.xaxis.get_major_locator().set_params(integer=True)
            labelled(panel, "epoch", "weighted term of the loss", place[0].upper() + place[1:])

    return drawn(name, f"Terms of the loss by epoch, {what}", draw, panels=2)


def progress(name: str, what: str, history: pd.DataFrame) -> Picture:
    """AUC of the probe, standard deviation and effective rank of the embeddings on val by epoch.

    Arguments as in `terms`. The limits below which the embeddings count as collapsed are drawn.
    """
    panels = {
        "val_probe_auc": ("AUC of the probe", None),
        "val_std": ("standard deviation", LEAST_STD),
        "val_rank": ("effective rank", LEAST_RANK),
    }
    panels = {column: panel for column, panel in panels.items() if column in history}

    def draw(axes):
        for panel, (column, (title, limit)) in zip(axes, panels.items(), strict=True):
            panel.plot(history["epoch"], history[column], color=BLUE, marker=".")
            if limit is not None:
                panel.axhline(limit, color=GRAY, linestyle="--", linewidth=1, label="collapse")
                panel.set_ylim(bottom=0)
                panel.legend(fontsize=8)
            panel.xaxis.get_major_locator().set_params(integer=True)
            labelled(panel, "epoch", title, f"{title[0].upper()}{title[1:]} on val")

    return drawn(name, f"Probe and embeddings by epoch, {what}", draw, panels=len(panels), width=3.4, height=3.0)


def deviations(name: str, what: str, features: np.ndarray) -> Picture:
    """Standard deviations of all features, and the shares of the variance of their principal directions."""
    std = features.std(axis=0)
    singular = np.linalg.svd(features - features.mean(axis=0), compute_uv=False)
    share = np.cumsum(singular**2) / max(float((singular**2).sum()), np.finfo(float).tiny)

    def draw(axes):
        axes[0].hist(std, bins=40, color=BLUE)
        labelled(axes[0], "standard deviation", "features", "Standard deviation of each feature")
        axes[1].plot(np.arange(1, len(share) + 1), share, color=BLUE)
        axes[1].set(xscale="log", ylim=(0, 1.02))
        axes[1].xaxis.set_major_formatter("{x:g}")  # the default needs mathematical text
        labelled(axes[1], "principal directions", "share of the variance", "Variance in the first directions")

    return drawn(name, f"Spread of the features of {what}", draw, panels=2)


def maps(name: str, what: str, arrays: EncoderFeatures, labels: Sequence[str]) -> Picture:
    """The features in two dimensions, by PCA and t-SNE, coloured by label.

    Args:
        name, what: beginning of the file's name, end of the title.
        arrays: of the evaluation.
        labels: name of the label of each image [N].
    """
    labels = np.asarray(labels)
    known = [label for label in dict.fromkeys(sorted(labels)) if label != _UNKNOWN]
    classes = known[: len(_COLOURS)] if len(known) <= len(_COLOURS) else []  # more cannot be distinguished
    first, second = arrays.pca_share
    views = [("PCA", arrays.pca, f"component 1 ({first:.0%})", f"component 2 ({second:.0%})")]
    if len(arrays.tsne):
        views.append(("t-SNE", arrays.tsne, "", ""))

    def draw(axes):
        for panel, (title, places, x, y) in zip(np.atleast_1d(axes), views, strict=True):
            here = labels[: len(places)]
            rest = ~np.isin(here, classes)
            if rest.any():
                text = _UNKNOWN if classes or not known else "images"
                panel.scatter(*places[rest].T, s=6, color=GRAY, alpha=0.6, label=text)
            for label, colour, marker in zip(classes, _COLOURS, _MARKERS, strict=False):
                chosen = here == label
                panel.scatter(*places[chosen].T, s=8, color=colour, marker=marker, alpha=0.6, label=label)
            panel.legend(fontsize=8, markerscale=2)
            if not x:
                panel.set(xticks=[], yticks=[])
            labelled(panel, x, y, title)

    return drawn(name, f"Features in two dimensions, {what}", draw, panels=len(views), width=4.2, height=3.8)


def neighbours(name: str, what: str, arrays: EncoderFeatures, labels: Sequence[str]) -> Picture:
    """Some images and their nearest neighbours, each with its label and cosine similarity; arguments as in `maps`."""
    rows, columns = arrays.thumbnails.shape[:2]
    height, width = arrays.thumbnails.shape[2:]
    gap, text = 2, 0.22

    def draw(axes):
        axes.set(xlim=(0, columns * (width + gap)), ylim=(rows * (1 + text) * height, 0), aspect="equal")
        axes.axis("off")
        for row, (query, nearest, similarity) in enumerate(
            zip(arrays.queries, arrays.neighbours, arrays.similarity, strict=True)
        ):
            top = row * (1 + text) * height
            captions = [labels[query]] + [
                f"{labels[place]} {value:.2f}" for place, value in zip(nearest, similarity, strict=True)
            ]
            for column, caption in enumerate(captions):
                left = column * (width + gap)
                extent = (left, left + width, top + height, top)
                axes.imshow(arrays.thumbnails[row, column], cmap="gray", vmin=0, vmax=255, extent=extent)
                axes.text(left, top + height * (1 + text * 0.75), caption, fontsize=6)

    inch = 0.85
    title = f"Images (left) and their nearest neighbours, {what}"
    return drawn(name, title, draw, width=inch * columns, height=inch * rows * (1 + text))
