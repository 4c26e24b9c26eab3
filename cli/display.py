"""Tables for people, as wide as the terminal."""

import math
import sys

from rich.console import Console
from rich.table import Table

PLAIN_WIDTH = 120
CLASSES_IN_TABLE = 4  # of the records; more classes have a table of their own


def console(file=None) -> Console:
    """A console on `file` (default stdout), as wide as the terminal, or PLAIN_WIDTH where there is none."""
    file = file or sys.stdout
    return Console(
        file=file,
        width=None if file.isatty() else PLAIN_WIDTH,
        highlight=False,
        markup=False,
        soft_wrap=not file.isatty(),
    )


def one_line(text: str) -> str:
    """A text, such as a file name, that a terminal can show in one line: control characters become escapes."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def notes(passed_over, remarks, pictures: int) -> list[str]:
    """The notes on a build or prediction: what was passed over, and pictures that may show nothing."""
    from kmura.records.image_files import passed_over_note
    from kmura.records.remarks import remarks_note

    lines = (passed_over_note(passed_over), remarks_note(remarks, pictures))
    return [one_line(line) for line in lines if line]


def show_evaluation(evaluation) -> None:
    """Prints the tables of an `Evaluation`, and notes on how to read them; or the `facts` of an evaluation of facts."""
    out = console()
    if facts := getattr(evaluation, "facts", None):
        for name, text in {"run": f"{evaluation.area}, {evaluation.phase}", **facts}.items():
            out.print(f"{name}: {text}")
        return
    chosen = f"best epoch chosen on {evaluation.select_on} by {evaluation.selected_epoch_by}"
    show_scores(evaluation, f"{evaluation.area}, {evaluation.phase}: {chosen}")
    for split, value in (evaluation.localization_faithfulness or {}).items():
        out.print(f"localization faithfulness on {split}: {value:.3f} (mean drop of p without the hottest part)")
    if evaluation.select_on == "test":
        out.print("the best epoch was chosen on test: its scores there are optimistic")
    if not evaluation.has_patients:
        out.print("these records have no patients, so leakage between splits could not be checked")


def show_scores(evaluation, title: str) -> None:
    """Prints the tables and notes of an `Evaluation` or of `ScoredPredictions`."""
    out, scores = console(), evaluation.scores
    if evaluation.is_binary:
        for split in scores.splits:
            out.print(evaluation_table(scores, split, title))
            if scores.operating_points[split] and split != scores.options.fit_on:
                out.print(thresholds_table(scores, split))
        if scores.calibrator:
            out.print(_calibration_line(scores))
        if folds := getattr(evaluation, "folds", ()):
            out.print(folds_table(evaluation, folds))
    else:
        for split, levels in scores.splits.items():
            out.print(class_scores_table(levels, split, title))
            out.print(classes_table(levels["study"], split))
            if scores.questions:
                pooled = {"all areas": scores.pooled} if scores.pooled else {}
                out.print(questions_table(scores.questions | pooled, split))
    for note in scores.notes:
        out.print(note)


def show_probe(probe) -> None:
    """Prints the AUC of a `Probe` beside its floor, and whether the encoder beats it."""
    from kmura.evaluation.scoring import shown_levels

    out, pair = console(), (probe.evaluation, probe.floor_evaluation)
    table = Table(title=f"{probe.evaluation.area}: AUC of the frozen encoder and of raw pixels", title_justify="left")
    for heading in ("split", "level", "n", *(evaluation.phase for evaluation in pair)):
        table.add_column(heading, justify="left" if heading in ("split", "level") else "right")
    for split, levels in probe.evaluation.scores.splits.items():
        for level in shown_levels(levels):
            units = "image" if levels["study"].is_single_view else level
            cells = (str(evaluation.scores.splits[split][level].scores["auc"]) for evaluation in pair)
            table.add_row(split, units, str(levels[level].units), *cells)
    out.print(table)
    out.print("settings were chosen on val, so its scores are optimistic; 95 % intervals in brackets")
    out.print(probe.verdict)
    out.print(f"runs: {probe.run}, {probe.floor}")


def evaluation_table(scores, split: str, title: str) -> Table:
    """Scores of a split at both levels (one, if every image is a study), raw and calibrated, one column each."""
    from kmura.evaluation.scoring import shown_levels

    fitted = "; calibrated on this split, so those columns are optimistic" if split == scores.options.fit_on else ""
    levels = scores.splits[split]
    heading = f"{title}\n{split}, {levels['study'].intervals_in_words}{fitted if scores.calibrator else ''}"
    table = Table(title=heading, title_justify="left")
    table.add_column("")
    plural = {"image": "images", "study": "images" if levels["study"].is_single_view else "studies"}
    columns = []
    for level in shown_levels(levels):
        for way, levels in (("", scores.splits), ("calibrated", scores.calibrated)):
            if level in levels.get(split, {}):
                columns.append(levels[split][level])
                counts = f"n = {columns[-1].units}, {columns[-1].positives} positive"
                table.add_column(f"{plural[level]} {way}\n{counts}", justify="right")
    for name in columns[0].scores:
        table.add_row(name, *(str(column.scores[name]) for column in columns))
    for name in columns[-1].calibration:
        table.add_row(name, *(_error_text(column.calibration[name], column.level) for column in columns))
    for cell, label in (("tp", "true positives"), ("fp", "false positives"), ("fn", "false negatives")):
        table.add_row(label, *(str(column.confusion[cell]) for column in columns))
    table.add_row("true negatives", *(str(column.confusion["tn"]) for column in columns))
    return table


def class_scores_table(levels, split: str, title: str) -> Table:
    """Scores over all classes of a split of `MultiScores`, one column per level (one, if every image is a study)."""
    from kmura.evaluation.scoring import shown_levels

    single = levels["study"].is_single_view
    table = Table(title=f"{title}\n{split}, {levels['study'].intervals_in_words}", title_justify="left")
    table.add_column("")
    shown = [levels[level] for level in shown_levels(levels)]
    for scores in shown:
        units = "images" if single or scores.level == "image" else "studies"
        table.add_column(f"{units}\nn = {scores.units}", justify="right")
    for name in shown[0].scores:
        table.add_row(name, *(str(scores.scores[name]) for scores in shown))
    return table


def classes_table(level_scores, split: str) -> Table:
    """Scores of each class of `ClassLevelScores`, one row per class; `metrics.json` has the intervals."""
    level = "" if level_scores.is_single_view else f", {level_scores.level} level"
    table = Table(title=f"classes on {split}{level}", title_justify="left")
    names = list(level_scores.classes[0].scores)
    table.add_column("class", no_wrap=True)
    for heading in ("n", *names):
        table.add_column(heading, justify="right")
    for class_scores in level_scores.classes:
        values = (class_scores.scores[name].value for name in names)
        cells = ("undefined" if math.isnan(value) else f"{value:.3f}" for value in values)
        table.add_row(class_scores.name, str(class_scores.units), *cells)
    return table


def questions_table(questions, split: str) -> Table:
    """The yes/no questions of `MultiScores` at study level, one row each; threshold 0.5, uncalibrated."""
    studies = [scores.splits[split]["study"] for scores in questions.values() if split in scores.splits]
    level = "" if all(study.is_single_view for study in studies) else ", study level"
    table = Table(title=f"as yes/no questions on {split}{level}", title_justify="left")
    names = ("auc", "accuracy", "f1", "kappa")
    for heading in ("", "n", "positive", *names):
        table.add_column(heading, justify="right" if heading else "left")
    for question, scores in questions.items():
        if split in scores.splits:
            study = scores.splits[split]["study"]
            values = (str(study.scores[name]) for name in names)
            table.add_row(question, str(study.units), str(study.positives), *values)
    return table


def thresholds_table(scores, split: str) -> Table:
    """Scores on a split at study level, at the thresholds that were chosen on another split."""
    chosen = f", chosen on {scores.options.fit_on}"
    kind = "calibrated " if scores.calibrated else ""
    units = "images" if scores.splits[split]["study"].is_single_view else "studies"
    table = Table(title=f"thresholds of the {kind}probability of {units} on {split}{chosen}", title_justify="left")
    for heading in ("rule", "threshold", "sensitivity", "specificity", "precision"):
        table.add_column(heading, justify="left" if heading == "rule" else "right")
    for point in scores.operating_points[split]:
        values = (str(point.scores[name]) for name in ("recall", "specificity", "precision"))
        table.add_row(point.rule, f"{point.threshold:.3f}", *values)
    return table


def folds_table(evaluation, folds) -> Table:
    """The AUC of each fold of a `FoldsEvaluation` and their mean, at both levels (one, if every image is a study)."""
    single = all(one.images == one.studies for one in folds)
    table = Table(title=f"AUC of the {evaluation.number} folds, each held out from its model", title_justify="left")
    levels = ("study",) if single else ("study", "image")
    for heading in ("fold", "patients", *(["images"] if single else ["studies", "images"])):
        table.add_column(heading, justify="right")
    for level in levels:
        table.add_column("auc" if single else f"auc, {level} level", justify="right")
    for one in folds:
        numbers = (one.images,) if single else (one.studies, one.images)
        patients = str(one.patients) if evaluation.has_patients else "?"
        table.add_row(str(one.fold), patients, *map(str, numbers), *(str(one.auc[level]) for level in levels))
    blank = [""] * (2 if single else 3)
    table.add_row("mean", *blank, *(str(evaluation.mean_auc[level]) for level in levels))
    return table


def check_scores(scores) -> None:
    """Refuses an unknown name of a score, with the nearest and all known names.

    Raises:
        InputError: an unknown score.
    """
    from kmura.cli.options import nearest
    from kmura.errors import InputError
    from kmura.metrics import SCORES

    unknown = [name for name in scores if name not in SCORES]
    if unknown:
        known = f"choose from {', '.join(SCORES)}{nearest(unknown[0], SCORES)}"
        raise InputError(f"score {unknown[0]!r} is unknown; {known}")


def show_comparison(comparison, levels, scores) -> None:
    """Prints the tables and sentences of a `Comparison` for these levels and scores; or the `facts` of another one."""
    out = console()
    if facts := getattr(comparison, "facts", None):
        for name, text in facts.items():
            out.print(f"{name}: {text}")
        return
    if comparison.is_single_view:
        levels = ("study",)  # both levels are the same
    for level in levels:
        for score in scores:
            out.print(comparison_table(comparison, level, score))
        out.print(ece_table(comparison, level))
    for difference in comparison.differences:
        if difference.level in levels and difference.score in scores:
            out.print(difference.text)
    for note in comparison.notes:
        out.print(note)


def comparison_table(comparison, level: str, score: str) -> Table:
    """One score of all models, one column each, over areas; the best of each row is marked."""
    from kmura.evaluation.scoring import intervals_in_words

    title = f"{score} on {_place(comparison, level)}, {intervals_in_words(comparison.resampled)}"

    def cell(where, model):
        best = comparison.best[level][where].get(score) if len(comparison.runs) > 1 else None
        return str(comparison.scores[level][where][model][score]) + (" *" if model == best else "  ")

    return _over_areas(comparison, level, title + (", * best" if len(comparison.runs) > 1 else ""), cell)


def ece_table(comparison, level: str) -> Table:
    """The calibration error of all models, one column each, over areas."""
    perfect = ", in brackets the value of a perfectly calibrated model" if level == "study" else ""
    title = f"expected calibration error (15 bins of equal width) on {_place(comparison, level)}{perfect}"

    def cell(where, model):
        return _error_text(comparison.calibration[level][where][model]["ece"], level)

    return _over_areas(comparison, level, title, cell)


def _place(comparison, level: str) -> str:
    return comparison.split if comparison.is_single_view else f"{comparison.split}, {level} level"


def _over_areas(comparison, level: str, title: str, cell) -> Table:
    """A table of `cell(where, model)`: one column per model, one row per area or mean of areas."""
    plural = "images" if level == "image" or comparison.is_single_view else "studies"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for heading in (plural, *comparison.runs):
        table.add_column(heading, justify="right")
    titles = {"macro": "mean of areas", "weighted": "mean of areas by size", "pooled": f"all {plural} pooled"}
    for where, by_model in comparison.scores[level].items():
        count = comparison.units[level].get(where, sum(comparison.units[level].values()))
        cells = (cell(where, model) if model in by_model else "-" for model in comparison.runs)
        table.add_row(titles.get(where, where), str(count), *cells)
    return table


def show_eda(exploration) -> None:
    """Prints the tables and notes of an `Eda`."""
    from kmura.evaluation.eda import MOST_COMPONENTS, SIDE

    out = console()
    title = f"gray values 0 to 255 of thumbnails of {SIDE} pixels, means over images"
    table = Table(title=title, title_justify="left")
    for heading in ("area", "class", "images", "studies", "mean", "within", "between", "black", "white"):
        table.add_column(heading, justify="left" if heading in ("area", "class") else "right")
    for area, data in exploration.areas.items():
        for name, grays in data.classes.items():
            numbers = (f"{grays.mean:.1f}", f"{grays.deviation:.1f}", f"{grays.between:.1f}")
            shares = (f"{100 * grays.black:.0f} %", f"{100 * grays.white:.1f} %")
            table.add_row(area, name, str(grays.images), str(grays.studies), *numbers, *shares)
    out.print(table)
    for area, data in exploration.areas.items():
        sizes = (f"{name} {low} to {high} (median {middle})" for name, (low, middle, high) in
                 (("height", data.height), ("width", data.width)))  # fmt: skip
        whole, batches = (
            components.get("0.95") or f"more than {MOST_COMPONENTS}"
            for components in (data.principal.pca, data.principal.incremental)
        )
        out.print(
            f"{area}: {', '.join(sizes)}; 95 % of the variance of {data.principal.images} thumbnails in {whole} "
            f"components (incremental PCA: {batches})"
        )
        crossing = sum(pair.crosses for pair in data.near_doubles)
        out.print(
            f"{area}: {len(data.outliers)} exposure outliers, {len(data.near_doubles)} near-duplicate pairs, "
            f"{crossing} of them in two splits"
        )
        for outlier in data.outliers[:5]:
            out.print(f"  outlier {outlier.image} ({outlier.split}): mean {outlier.mean:.0f}, z {outlier.z:+.1f}")
        for pair in data.near_doubles[:5]:
            out.print(f"  alike {pair.one} ({pair.splits[0]}), {pair.other} ({pair.splits[1]}): {pair.correlation:.4f}")


def _error_text(error, level: str) -> str:
    if level == "image":  # images of a study share a label, which the value of a perfect model does not consider
        return f"{error.value:.3f}"
    return f"{error.value:.3f} (perfect: {error.expected:.3f})"


def _calibration_line(scores) -> str:
    calibrator, options = scores.calibrator, scores.options
    what = {
        "temperature": f"temperature {calibrator.temperature:.3f}",
        "platt": f"temperature {calibrator.temperature:.3f}, bias {calibrator.bias:+.3f} on the logit",
        "isotonic": f"isotonic, {len(calibrator.knots)} knots",
    }[calibrator.method]
    return f"calibrated at {options.calibrate_at} level on {options.fit_on}: {what}"


def records_table(manifest) -> Table:
    """The counts of every area and split of a `Manifest`."""
    table = Table(title_justify="left")
    per_class = manifest.classes if len(manifest.classes) <= CLASSES_IN_TABLE else ()
    for heading in ("area", "split", "images", "studies", "patients", *per_class, "shards", "MB"):
        table.add_column(heading, justify="left" if heading in ("area", "split") else "right")
    for area, splits in manifest.areas.items():
        for split, counts in splits.items():
            numbers = [counts.images, counts.studies, counts.patients, *(counts.per_class if per_class else ())]
            size = sum(shard.bytes for shard in counts.shards) / 1e6
            table.add_row(area, split, *map(str, numbers), str(len(counts.shards)), f"{size:.1f}")
    return table


def class_counts_table(manifest) -> Table:
    """The images of every class in every split of a `Manifest`, one row per area and class."""
    table = Table(title="images of each class", title_justify="left")
    splits = dict.fromkeys(split for of_area in manifest.areas.values() for split in of_area)
    for heading in ("area", "class", *splits):
        table.add_column(heading, justify="left" if heading in ("area", "class") else "right", overflow="fold")
    for area, of_area in manifest.areas.items():
        for number, name in enumerate(manifest.classes):
            counts = (str(of_area[split].per_class[number]) if split in of_area else "" for split in splits)
            table.add_row(area, name, *counts)
    return table
