"""The chapter of a pretrained encoder."""

from pathlib import Path

import numpy as np

from kmura.evaluation.encoder import EncoderFeatures, read_evaluation
from kmura.pretraining.methods import METHODS
from kmura.report import encoder_figures
from kmura.report.chapter import Chapter, Section, Table, Text, number_text
from kmura.report.run_files import read_explored, read_history
from kmura.runs.run import Run, epochs_trained
from kmura.tasks import ALL, NO_LABEL, Task

OVERVIEW = (
    "run", "method", "positives", "crop", "intensity", "inversion, blur, noise", "epochs", "probe AUC on val",
    "standard deviation", "effective rank",
)  # fmt: skip


def chapter(run: Run, number: int, eda: Path | None = None) -> Chapter:
    """Returns the chapter of a pretraining run.

    Args:
        run: an evaluated run.
        number: of the chapter.
        eda: the file that `kmura eda` wrote; None looks for it in the folder of the records.

    Raises:
        InputError: the run is not evaluated, or one of its files is damaged.
    """
    description, folder, config = run.description, run.folder, run.config
    evaluation, arrays = read_evaluation(run)
    history = read_history(folder)
    name, area = f"run{number}", "All areas" if description.area == ALL else description.area
    what = f"{area}, {description.phase}"
    labels = label_names(arrays, run.labels)
    warnings = [f"Leakage between splits: {leak}." for leak in description.leaks]
    if evaluation.embeddings.has_collapsed:
        warnings.insert(0, f"The encoder has collapsed: {evaluation.embeddings.text}.")
    pictures = {}
    if history is not None:
        method = METHODS[config.method.method]
        pictures = {
            "terms": encoder_figures.terms(f"{name}-terms", what, history, method.term_names),
            "progress": encoder_figures.progress(f"{name}-progress", what, history),
        }
    of_split = f"{what}, {evaluation.split}"
    spread = {"spread": encoder_figures.deviations(f"{name}-spread", of_split, arrays.features)}
    places = {"maps": encoder_figures.maps(f"{name}-maps", of_split, arrays, labels)}
    similar = {"neighbours": encoder_figures.neighbours(f"{name}-neighbours", of_split, arrays, labels)}
    return Chapter(
        id=name,
        title=what,
        area=area,
        path=str(run),
        headline=_headline(evaluation, history),
        overview=Table("Pretrained encoders", OVERVIEW, (_overview(run, evaluation, history),)),
        tables=(Table(f"Encoder on {evaluation.split}", ("", "value"), tuple(evaluation.facts.items())),),
        explored=read_explored(description, eda),
        warnings=tuple(warnings),
        sections=(
            Section(
                "How was it trained?",
                "The probe is a linear classifier that is trained beside the encoder without an effect on it. "
                "Embeddings that are nearly equal for all images (a standard deviation near 0), or that vary in few "
                "directions (a low effective rank), are a collapse.",
                pictures={"": pictures},
            ),
            Section(
                "Does it tell images apart?",
                "Features with a standard deviation of 0 carry nothing. Colours are labels, unknown to the encoder.",
                pictures={"": spread | places},
            ),
            Section(
                "Which images does it find similar?",
                f"Images of {evaluation.split} drawn at random, and the images with the most similar features; the "
                "numbers are cosine similarities.",
                pictures={"": similar},
            ),
        ),
        facts=_facts(run),
    )


def label_names(arrays: EncoderFeatures, task: Task) -> list[str]:
    """Returns the name of the label of each image: a class, the labels of a multilabel image, or `unknown`."""
    names = []
    for row in arrays.label:
        if (row < 0).any():
            names.append("unknown")
        elif task.by_label:
            names.append(", ".join(np.array(task.classes)[row == 1]) or NO_LABEL)
        else:
            names.append(task.classes[row[0]])
    return names


def _headline(evaluation, history) -> tuple[Text, ...]:
    parts = []
    if history is not None and "val_probe_auc" in history:
        best = history[history["best"].astype(bool)].iloc[-1]
        parts.append(Text(f"online probe AUC {number_text(best['val_probe_auc'])} on val", strong=True))
    if evaluation.embeddings.has_collapsed:
        parts.append(Text("collapsed", strong=True))
    parts.append(Text(f"effective rank of the features {evaluation.feature_rank:.1f}"))
    separated = [part for text in parts for part in (Text("; "), text)]
    return tuple(separated[1:])


def _overview(run: Run, evaluation, history) -> tuple:
    views, method = run.config.views, run.config.method
    probe = "-"
    if history is not None and "val_probe_auc" in history:
        probe = number_text(history[history["best"].astype(bool)]["val_probe_auc"].iloc[-1])
    return (
        f"{run.area}, {run.phase}",
        method.method,
        method.positives,
        f"{views.area_scale[0]:g} to {views.area_scale[1]:g}, {views.rotation:g} degrees",
        f"{views.brightness:g}, {views.contrast:g}",
        f"{views.invert:g}, {views.blur:g}, {views.noise:g}",
        epochs_trained(run.folder, run.config).removesuffix(" epochs"),
        probe,
        f"{evaluation.embeddings.std:.2f}" + (" (collapsed)" if evaluation.embeddings.has_collapsed else ""),
        f"{evaluation.embeddings.rank:.1f}",
    )


def _facts(run: Run) -> dict[str, str]:
    """How a run was made: name -> text."""
    description, config = run.description, run.config
    train, method = config.train, config.method
    projector = ", ".join(map(str, method.projection["projector"]))
    return {
        "encoder": f"{config.encoder.backbone}, start {config.encoder.weights}, {config.data.image_size} pixels",
        "method": f"{method.method}, projection head {projector}, positives of one {method.positives}",
        "training": f"{epochs_trained(run.folder, config)}, batches of {train.batch_size}, {train.optimizer} at "
        f"{train.learning_rate:g}, {description.policy}, seed {train.seed}",
        "records": description.records,
        "command": description.command,
        "versions": ", ".join(f"{name} {version}" for name, version in description.versions.items()),
    }
