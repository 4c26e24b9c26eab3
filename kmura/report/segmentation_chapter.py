"""The chapter of a segmentation run, or of the fusion of its planes."""

import warnings
from pathlib import Path

import numpy as np

from kmura.metrics import overlap
from kmura.report import segmentation_figures as figures
from kmura.report.chapter import Chapter, Section, Table, Text, number_text
from kmura.report.published import CT_FIGURES
from kmura.report.run_files import read_history
from kmura.runs.run import Run, epochs_trained
from kmura.segmentation.targets import pairs
from kmura.segmentation.volume_scores import SegmentationEvaluation, interval_text, read_evaluation, read_overlays

OVERVIEW = ("run", "split", "volumes", "prediction", "Dice", "IoU", "wrong side, %", "misclassified")
SHOWN_VOLUMES = 2  # with pictures


def chapter(run: Run, number: int, eda: Path | None = None) -> Chapter:
    """Returns the chapter of a segmentation run.

    Args:
        run: an evaluated run.
        number: of the chapter.
        eda: not used; volumes are not explored.

    Raises:
        InputError: the run is not evaluated, or one of its files is damaged.
    """
    description = run.description
    evaluation, table = read_evaluation(run)
    name, what = f"run{number}", f"{description.area}, {description.phase}"
    split = evaluation.splits[-1]
    shown = list(evaluation.fusions)[0]
    matrix = evaluation.confusion(split, shown)
    history = read_history(run.folder)
    of_split = f"{what}, {split}"
    volumes = evaluation.of_split(split, shown)
    dice, iou = overlap.dice(matrix)[1:], overlap.iou(matrix)[1:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes that no volume has
        hausdorff = np.nanmean([one.hausdorff for one in volumes], axis=0)
        surface = np.nanmean([one.surface for one in volumes], axis=0)
    pictures = {
        "overlap": figures.class_overlap(f"{name}-overlap", of_split, evaluation.classes, dice, iou),
        "distances": figures.distances(f"{name}-distances", of_split, evaluation.classes, hausdorff, surface),
        "confusion": figures.confusion(f"{name}-confusion", of_split, evaluation.classes, matrix),
    }
    montages = {}
    for place, (volume, planes) in enumerate(read_overlays(run, split).items()):
        if place < SHOWN_VOLUMES:
            montages[f"Volume {volume}"] = {
                plane: figures.montage(
                    f"{name}-{plane}{place}", f"volume {volume}, {of_split}", plane, arrays, len(evaluation.classes)
                )
                for plane, arrays in planes.items()
            }
    return Chapter(
        id=name,
        title=what,
        area=description.area,
        path=str(run),
        headline=_headline(evaluation, split),
        overview=Table("Segmentation", OVERVIEW, _overview(run, evaluation)),
        warnings=tuple(f"Leakage between splits: {leak}." for leak in description.leaks),
        sections=(
            Section(
                "Where are the regions?",
                "Labels above, prediction below. The patient's left is on the right of axial and coronal slices.",
                pictures=montages,
            ),
            Section(
                f"How well does it segment each class on {split}?",
                "All voxels of the volumes together. A row of the confusion matrix is a true class.",
                tables=(_class_table(evaluation, split, shown), _published()),
                pictures={"": pictures},
            ),
            Section(
                "How does it differ between volumes?",
                "Means over the classes that occur in a volume.",
                tables=(_volume_table(table),),
            ),
            Section(
                "How was it trained?",
                pictures={}
                if history is None
                else {"": {"progress": figures.progress(f"{name}-progress", what, history)}},
            ),
        ),
        facts=_facts(run),
    )


def _headline(evaluation: SegmentationEvaluation, split: str) -> tuple[Text, ...]:
    matrix = evaluation.confusion(split)
    dice, iou = (np.nanmean(score(matrix)[1:]) for score in (overlap.dice, overlap.iou))
    wrong = 100 * overlap.side_errors(matrix, pairs(evaluation.classes))
    return (
        Text(f"mean Dice {number_text(dice)}, mean IoU {number_text(iou)} on {split}", strong=True),
        Text(f"; {wrong:.2f} % of the labelled voxels have the right region on the wrong side"),
    )


def _overview(run: Run, evaluation: SegmentationEvaluation) -> tuple:
    rows = []
    for fusion in evaluation.fusions:
        for split in evaluation.splits:
            matrix, means = evaluation.confusion(split, fusion), evaluation.means(split, fusion)
            rows.append(
                (
                    f"{run.area}, {run.phase}",
                    split,
                    len(evaluation.of_split(split, fusion)),
                    fusion,
                    interval_text(means["dice"]),
                    interval_text(means["iou"]),
                    f"{100 * overlap.side_errors(matrix, pairs(evaluation.classes)):.2f}",
                    f"{np.nanmean(overlap.misclassification(matrix)[1:]):.2e}",
                )
            )
    return tuple(rows)


def _class_table(evaluation: SegmentationEvaluation, split: str, fusion: str) -> Table:
    matrix = evaluation.confusion(split, fusion)
    columns = (overlap.dice(matrix), overlap.iou(matrix), overlap.fp_fn_ratio(matrix))
    wrong, voxels = overlap.misclassification(matrix), matrix.sum(axis=1)
    rows = tuple(
        (name, f"{voxels[place]:,}", *(number_text(column[place]) for column in columns), f"{wrong[place]:.2e}")
        for place, name in enumerate(evaluation.classes, start=1)
    )
    return Table("Classes", ("class", "voxels", "Dice", "IoU", "FP / FN", "misclassified, share of all voxels"), rows)


def _volume_table(table) -> Table:
    scores = ("dice", "iou", "misclassified", "hausdorff95_mm", "surface_mm")
    means = table.groupby(["fusion", "split", "volume"], sort=False)[list(scores)].mean().reset_index()
    rows = tuple(
        (row.volume, row.split, row.fusion, number_text(row.dice), number_text(row.iou), f"{row.misclassified:.2e}",
         number_text(row.hausdorff95_mm), number_text(row.surface_mm))
        for row in means.itertuples()
    )  # fmt: skip
    heads = ("volume", "split", "prediction", "Dice", "IoU", "misclassified", "95 % Hausdorff, mm", "mean surface, mm")
    return Table("Volumes", heads, rows)


def _published() -> Table:
    return Table(
        "Published: seven volumes of 512 x 512 x 98 to 116, volume 1 held out of the others; not comparable directly",
        ("prediction", "IoU", "mean misclassification rate", "FP / FN, mean (variance)"),
        CT_FIGURES,
    )


def _facts(run: Run) -> dict[str, str]:
    """How a run was made: name -> text."""
    description, config = run.description, run.config
    data, network = config.data, {}
    if hasattr(config, "model"):
        network = _network_facts(run)
    return {
        **network,
        "volumes": f"fold {data.fold} of {data.folds}" if data.folds else "splits of the records",
        "records": description.records,
        "command": description.command,
        "versions": ", ".join(f"{name} {version}" for name, version in description.versions.items()),
    }


def _network_facts(run: Run) -> dict[str, str]:
    config = run.config
    train, model, data = config.train, config.model, config.data
    what = f"widths {', '.join(map(str, model.widths))}" if model.encoder == "none" else f"encoder {model.encoder}"
    return {
        "network": f"U-Net, {what}, {data.slices} slices, sides {data.sides}",
        "loss": f"Tversky {config.loss.tversky:g} (alpha {config.loss.alpha:g}, beta {config.loss.beta:g}), "
        f"cross-entropy {config.loss.cross_entropy:g}",
        "training": f"{epochs_trained(run.folder, config)}, batches of {train.batch_size}, Adam at "
        f"{train.learning_rate:g}, {run.description.policy}, seed {train.seed}",
    }
