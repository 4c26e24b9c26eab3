"""Figures of a segmentation run, in the style of `figures`."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd

from kmura.report.figures import BLUE, GRAY, GREEN, ORANGE, Picture, drawn, labelled

OPACITY = 0.45  # of the classes on the gray values
LARGEST_MATRIX = 24  # classes that are named along the confusion matrix


def progress(name: str, what: str, history: pd.DataFrame) -> Picture:
    """The loss, and Dice and IoU on whole val volumes, by epoch.

    Args:
        name, what: beginning of the file's name, end of the title.
        history: one row per epoch.
    """

    def draw(axes):
        loss, overlap = axes
        loss.plot(history["epoch"], history["loss"], color=GRAY, marker=".", label="training")
        loss.plot(history["epoch"], history["val_loss"], color=BLUE, marker=".", label="val (cross-entropy)")
        overlap.plot(history["epoch"], history["val_dice"], color=BLUE, marker=".", label="Dice")
        overlap.plot(history["epoch"], history["val_iou"], color=ORANGE, marker=".", label="IoU")
        overlap.set_ylim(0, 1)
        for panel, title in ((loss, "loss"), (overlap, "mean over the classes on val")):
            panel.legend(fontsize=8)
            panel.xaxis.get_major_locator().set_params(integer=True)
            labelled(panel, "epoch", title, "")

    return drawn(name, f"Loss and overlap by epoch, {what}", draw, panels=2)


def class_overlap(name: str, what: str, classes: Sequence[str], dice: np.ndarray, iou: np.ndarray) -> Picture:
    """Dice and IoU of each class as bars.

    Args:
        name, what: beginning of the file's name, end of the title.
        classes: names.
        dice, iou: of each class, 0 to 1; NaN draws none.
    """

    def draw(axes):
        places = np.arange(len(classes))
        axes.barh(places - 0.2, np.nan_to_num(dice), 0.4, color=BLUE, label="Dice")
        axes.barh(places + 0.2, np.nan_to_num(iou), 0.4, color=ORANGE, label="IoU")
        axes.set_yticks(places, classes, fontsize=7)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.legend(fontsize=8, loc="lower right")
        labelled(axes, "overlap with the labels", "", "")

    return drawn(name, f"Overlap of each class, {what}", draw, height=max(2.4, 0.24 * len(classes) + 0.8), width=5)


def confusion(name: str, what: str, classes: Sequence[str], matrix: np.ndarray) -> Picture:
    """The confusion matrix in shares of the voxels of each true class; rows are true classes.

    Args:
        name, what: beginning of the file's name, end of the title.
        classes: names without background.
        matrix: [K + 1, K + 1] voxels; the background is first.
    """
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    names = ["background", *classes]

    def draw(axes):
        shown = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        axes.figure.colorbar(shown, ax=axes, shrink=0.7)
        if len(names) <= LARGEST_MATRIX:
            axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
            axes.set_yticks(range(len(names)), names, fontsize=6)
        labelled(axes, "given class", "true class", "")

    side = 2.4 + 0.14 * min(len(names), LARGEST_MATRIX)
    return drawn(name, f"Where the voxels of each class go, {what}", draw, width=side + 0.6, height=side)


def montage(name: str, what: str, plane: str, overlay: Mapping[str, np.ndarray], classes: int) -> Picture:
    """Slices of a plane: the gray values, with the labels in the upper row and with the prediction in the lower one.

    Args:
        name, what: beginning of the file's name, end of the title.
        plane: anatomical plane.
        overlay: `gray`, `truth` and `predicted`, uint8 [n, rows, columns].
        classes: number of classes, for the colours.
    """
    colours = matplotlib.colormaps["nipy_spectral"](np.linspace(0.08, 0.95, classes))[:, :3]
    upright = plane != "axial"  # rows run from the feet to the head there
    pictures = []
    for kind in ("truth", "predicted"):
        row = []
        for gray, numbers in zip(overlay["gray"], overlay[kind], strict=True):
            picture = np.repeat(gray[..., None] / 255.0, 3, axis=-1)
            inside = numbers > 0
            picture[inside] = (1 - OPACITY) * picture[inside] + OPACITY * colours[numbers[inside] - 1]
            row.append(picture[::-1] if upright else picture)
        pictures.append(np.concatenate(row, axis=1))
    whole = np.concatenate(pictures, axis=0)

    def draw(axes):
        axes.imshow(whole, interpolation="nearest")
        axes.set_xticks([])
        height = overlay["gray"].shape[1]
        axes.set_yticks([height / 2, 3 * height / 2], ["labels", "prediction"], rotation=90, va="center")
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set_visible(False)

    ratio = whole.shape[0] / whole.shape[1]
    return drawn(
        name, f"{plane[0].upper()}{plane[1:]} slices, {what}", draw, width=8, height=8 * ratio + 0.3, wide=True
    )


def distances(name: str, what: str, classes: Sequence[str], hausdorff: np.ndarray, surface: np.ndarray) -> Picture:
    """Surface distances of each class as bars, mm; the means over the volumes.

    Args:
        name, what: beginning of the file's name, end of the title.
        classes: names.
        hausdorff, surface: of each class, mm; NaN draws none.
    """

    def draw(axes):
        places = np.arange(len(classes))
        axes.barh(places - 0.2, np.nan_to_num(hausdorff), 0.4, color=GREEN, label="95th percentile (Hausdorff)")
        axes.barh(places + 0.2, np.nan_to_num(surface), 0.4, color=GRAY, label="mean")
        axes.set_yticks(places, classes, fontsize=7)
        axes.invert_yaxis()
        axes.legend(fontsize=8)
        labelled(axes, "distance of the surfaces, mm", "", "")

    return drawn(name, f"Distance of the surfaces, {what}", draw, height=max(2.4, 0.24 * len(classes) + 0.8), width=5)
