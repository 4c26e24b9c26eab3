"""Progress and tables for people: bars on a terminal, plain lines elsewhere."""

import contextlib
import dataclasses
import math
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

PLAIN_WIDTH = 120


def console(file=None) -> Console:
    """Returns a console on `file` (default stdout), as wide as the terminal, or PLAIN_WIDTH without one."""
    file = file or sys.stdout
    return Console(
        file=file,
        width=None if file.isatty() else PLAIN_WIDTH,
        highlight=False,
        markup=False,
        soft_wrap=not file.isatty(),
    )


@contextlib.contextmanager
def counting(label: str):
    """Yields a function (done, total) that shows the progress of a task."""
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console(sys.stderr), transient=True) as bars:
            task = bars.add_task(label, total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)
        return
    shown = [time.monotonic()]

    def line(done: int, total: int) -> None:
        if done == total or time.monotonic() - shown[0] > 10:
            shown[0] = time.monotonic()
            print(f"{label}: {done} of {total}", file=sys.stderr)

    yield line


@contextlib.contextmanager
def training_progress():
    """Yields a Keras callback that shows one progress bar per epoch on a terminal, and prints one line per epoch."""
    import keras

    class TrainingProgress(keras.callbacks.Callback):
        bars = None
        trial = None  # name of the trial; a search sets it

        def title(self, epoch):
            trial = f"trial {self.trial}, " if self.trial is not None else ""
            return f"{trial}epoch {epoch + 1}/{self.params['epochs']}"

        def on_epoch_begin(self, epoch, logs=None):
            if sys.stderr.isatty():
                columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
                self.bars = Progress(*columns, console=console(sys.stderr), transient=True)
                self.task = self.bars.add_task(self.title(epoch), total=self.params["steps"])
                self.bars.start()

        def on_train_batch_end(self, batch, logs=None):
            if self.bars:
                self.bars.update(self.task, completed=batch + 1)

        def on_epoch_end(self, epoch, logs=None):
            self.stop()
            names = ("loss", "val_loss_img", "val_auc_img", "val_auc_study", "val_acc_study", "val_f1_study")
            found = "  ".join(f"{name} {logs[name]:.4f}" for name in names if name in logs)
            star = "  *" if logs.get("best") else ""
            line = f"{self.title(epoch)}  {found}  {logs.get('seconds', 0):.0f} s{star}"
            print(line, file=sys.stderr)

        def stop(self):
            if self.bars:
                self.bars.stop()
                self.bars = None

    progress = TrainingProgress()
    try:
        yield progress
    finally:
        progress.stop()


def show_evaluation(found) -> None:
    """Prints the tables of an `Evaluation` on stdout, with the notes that are needed to interpret them."""
    out, scores = console(), found.scores
    title = f"{found.area}, {found.phase}: best epoch chosen on {found.select_on} by {found.selected_epoch_by}"
    if found.is_binary:
        for split in scores.splits:
            out.print(evaluation_table(scores, split, title))
            if scores.operating_points[split] and split != scores.options.fit_on:
                out.print(thresholds_table(scores, split))
        if scores.calibrator:
            out.print(_calibration_line(scores))
    else:
        for split, levels in scores.splits.items():
            out.print(class_scores_table(levels, split, title))
            out.print(classes_table(levels["study"], split))
            if scores.questions:
                pooled = {"all areas": scores.pooled} if scores.pooled else {}
                out.print(questions_table(scores.questions | pooled, split))
    for split, value in (found.localization_faithfulness or {}).items():
        out.print(
            f"localization faithfulness on {split}: {value:.3f} (mean drop of p when the hottest region is erased)"
        )
    for note in scores.notes:
        out.print(note)
    if found.select_on == "test":
        out.print("the best epoch was chosen on test: its scores there are optimistic")
    if not found.has_patients:
        out.print("these records have no patient ids: intervals resample images, and leakage could not be checked")


def evaluation_table(scores, split: str, title: str) -> Table:
    """Returns the scores of a split of `Scores`: one column per level, before and after calibration."""
    fitted = "; calibrated here, so those columns are optimistic" if split == scores.options.fit_on else ""
    heading = f"{title}\n{split}, 95 % intervals by patient bootstrap{fitted if scores.calibrator else ''}"
    table = Table(title=heading, title_justify="left")
    table.add_column("")
    plural = {"image": "images", "study": "studies"}
    columns = []
    for level in scores.splits[split]:
        for way, levels in (("", scores.splits), ("calibrated", scores.calibrated)):
            if level in levels.get(split, {}):
                columns.append(levels[split][level])
                counts = f"n = {columns[-1].units}, {columns[-1].positives} positive"
                table.add_column(f"{plural[level]} {way}\n{counts}", justify="right")
    for name in columns[0].scores:
        table.add_row(name, *(str(column.scores[name]) for column in columns))
    for name in ("ece", "ece_mass", "ece_debiased", "mce"):
        table.add_row(name, *(_error_text(column.calibration[name], column.level) for column in columns))
    for cell, label in (("tp", "true positives"), ("fp", "false positives"), ("fn", "false negatives")):
        table.add_row(label, *(str(column.confusion[cell]) for column in columns))
    table.add_row("true negatives", *(str(column.confusion["tn"]) for column in columns))
    return table


def class_scores_table(levels, split: str, title: str) -> Table:
    """Returns the scores over all classes of a split of `MultiScores`, one column per level."""
    table = Table(title=f"{title}\n{split}, 95 % intervals by patient bootstrap", title_justify="left")
    table.add_column("")
    for level, found in levels.items():
        table.add_column(f"{'images' if level == 'image' else 'studies'}\nn = {found.units}", justify="right")
    for name in next(iter(levels.values())).scores:
        table.add_row(name, *(str(found.scores[name]) for found in levels.values()))
    return table


def classes_table(found, split: str) -> Table:
    """Returns the scores of `ClassLevelScores`, one row per class; `metrics.json` contains the intervals."""
    table = Table(title=f"classes on {split}, {found.level} level", title_justify="left")
    names = list(found.classes[0].scores)
    table.add_column("class", no_wrap=True)
    for heading in ("n", *names):
        table.add_column(heading, justify="right")
    for each in found.classes:
        values = (dataclasses.replace(each.scores[name], low=math.nan, high=math.nan) for name in names)
        table.add_row(each.name, str(each.units), *map(str, values))
    return table


def questions_table(questions, split: str) -> Table:
    """Returns the scores of `MultiScores` at study level, one row per yes/no question; threshold 0.5, uncalibrated."""
    table = Table(title=f"as yes/no questions on {split}, study level", title_justify="left")
    names = ("auc", "accuracy", "f1", "kappa")
    for heading in ("", "n", "positive", *names):
        table.add_column(heading, justify="right" if heading else "left")
    for question, scores in questions.items():
        if split in scores.splits:
            found = scores.splits[split]["study"]
            values = (str(found.scores[name]) for name in names)
            table.add_row(question, str(found.units), str(found.positives), *values)
    return table


def thresholds_table(scores, split: str) -> Table:
    """Returns the scores of the chosen thresholds on a split, at study level."""
    chosen = f", chosen on {scores.options.fit_on}"
    kind = "calibrated " if scores.calibrator else ""
    table = Table(title=f"thresholds of the {kind}probability of studies on {split}{chosen}", title_justify="left")
    for heading in ("rule", "threshold", "sensitivity", "specificity", "precision"):
        table.add_column(heading, justify="left" if heading == "rule" else "right")
    for point in scores.operating_points[split]:
        values = (str(point.scores[name]) for name in ("recall", "specificity", "precision"))
        table.add_row(point.rule, f"{point.threshold:.3f}", *values)
    return table


def show_comparison(found, levels, scores) -> None:
    """Prints the tables and sentences of a `Comparison` on stdout, for these levels and scores.

    Raises:
        InputError: an unknown score.
    """
    from kmura.errors import InputError
    from kmura.metrics import SCORES

    unknown = [name for name in scores if name not in SCORES]
    if unknown:
        raise InputError(f"score {unknown[0]!r} is unknown; choose from {', '.join(SCORES)}")
    out = console()
    for level in levels:
        for score in scores:
            out.print(comparison_table(found, level, score))
        out.print(ece_table(found, level))
    for difference in found.differences:
        if difference.level in levels and difference.score in scores:
            out.print(difference.text)
    for note in found.notes:
        out.print(note)


def comparison_table(found, level: str, score: str) -> Table:
    """Returns one score of all models: one column per model, one row per area; the best of a row is marked."""
    title = f"{score} on {found.split}, {level} level, 95 % intervals by patient bootstrap"

    def cell(where, model):
        best = found.best[level][where].get(score) if len(found.runs) > 1 else None
        return str(found.scores[level][where][model][score]) + (" *" if model == best else "  ")

    return _over_areas(found, level, title + (", * best" if len(found.runs) > 1 else ""), cell)


def ece_table(found, level: str) -> Table:
    """Returns the calibration error of all models: one column per model, one row per area."""
    perfect = ", in brackets that of a perfectly calibrated model" if level == "study" else ""
    title = f"expected calibration error (15 bins of equal width) on {found.split}, {level} level{perfect}"

    def cell(where, model):
        return _error_text(found.calibration[level][where][model]["ece"], level)

    return _over_areas(found, level, title, cell)


def _over_areas(found, level: str, title: str, cell) -> Table:
    """Returns a table of `cell(where, model)` with one column per model and one row per area or mean of areas."""
    plural = {"image": "images", "study": "studies"}[level]
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for heading in (plural, *found.runs):
        table.add_column(heading, justify="right")
    titles = {"macro": "mean of areas", "weighted": "mean of areas by size", "pooled": f"all {plural} pooled"}
    for where, by_model in found.scores[level].items():
        count = found.units[level].get(where, sum(found.units[level].values()))
        cells = (cell(where, model) if model in by_model else "-" for model in found.runs)
        table.add_row(titles.get(where, where), str(count), *cells)
    return table


def show_explanation(found) -> None:
    """Prints an `Explanation` on stdout."""
    out = console()
    for maps in (found, *found.beside):
        out.print(_worth(found, maps))
    counts = ", ".join(f"{number} {name}" for name, number in found.counts.items())
    empty = ", ".join(f"{100 * maps.empty_share:.0f} %" for maps in (found, *found.beside))
    out.print(f"images: {counts}; maps without positive evidence: {empty} of the sample")
    out.print(f"galleries of {len(found.cases)} images in {found.run}/explain")


def _worth(found, maps) -> Table:
    """Returns the measures of faithfulness of the maps of one tap of an `Explanation`."""
    table = Table(
        title=f"{found.area}, {found.phase}, {found.split}: Grad-CAM++ of {maps.tap} on {found.sample} images, "
        "means with 95 % intervals",
        title_justify="left",
    )
    for heading in ("", "by the maps", "by chance"):
        table.add_column(heading, justify="left" if not heading else "right")
    means = maps.curves.means
    for label, name in (
        ("area under deletion (less is better)", "deletion"),
        ("area under insertion (more is better)", "insertion"),
        ("drop without the hottest part", "drop"),
    ):
        table.add_row(label, str(means[name]), str(means[f"random_{name}"]))
    if maps.localization:
        where = maps.localization
        table.add_row(f"pointing game ({where.images} images)", str(where.pointing), f"{where.chance:.3f}")
        table.add_row("overlap of boxes (IoU)", str(where.overlap), "")
    return table


def show_eda(found) -> None:
    """Prints an `Eda` on stdout."""
    from kmura.evaluation.eda import MOST_COMPONENTS, SIDE

    out = console()
    title = f"gray values 0 to 255 of thumbnails of {SIDE} pixels, means over images"
    table = Table(title=title, title_justify="left")
    for heading in ("area", "class", "images", "studies", "mean", "within", "between", "black", "white"):
        table.add_column(heading, justify="left" if heading in ("area", "class") else "right")
    for area, data in found.areas.items():
        for name, each in data.classes.items():
            numbers = (f"{each.mean:.1f}", f"{each.deviation:.1f}", f"{each.between:.1f}")
            shares = (f"{100 * each.black:.0f} %", f"{100 * each.white:.1f} %")
            table.add_row(area, name, str(each.images), str(each.studies), *numbers, *shares)
    out.print(table)
    for area, data in found.areas.items():
        sizes = (f"{name} {low} to {high} (median {middle})" for name, (low, middle, high) in
                 (("height", data.height), ("width", data.width)))  # fmt: skip
        whole, batches = (
            each.get("0.95") or f"more than {MOST_COMPONENTS}"
            for each in (data.principal.pca, data.principal.incremental)
        )
        out.print(
            f"{area}: {', '.join(sizes)}; 95 % of the variance of {data.principal.images} thumbnails in {whole} "
            f"components (incremental PCA: {batches})"
        )
        crossing = sum(pair.crosses for pair in data.near_doubles)
        out.print(
            f"{area}: {len(data.outliers)} exposure outliers, {len(data.near_doubles)} pairs of near-duplicates, "
            f"{crossing} of them across two splits"
        )
        for each in data.outliers[:5]:
            out.print(f"  outlier {each.image} ({each.split}): mean {each.mean:.0f}, z {each.z:+.1f}")
        for pair in data.near_doubles[:5]:
            out.print(f"  alike {pair.one} ({pair.splits[0]}), {pair.other} ({pair.splits[1]}): {pair.correlation:.4f}")


def _error_text(error, level: str) -> str:
    if level == "image":  # images of a study share a label, which the expected error does not consider
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
    """Returns the counts of every area and split of a manifest."""
    table = Table(title_justify="left")
    per_class = manifest.classes if len(manifest.classes) <= 4 else ()
    for heading in ("area", "split", "images", "studies", "patients", *per_class, "shards", "MB"):
        table.add_column(heading, justify="left" if heading in ("area", "split") else "right")
    for area, splits in manifest.areas.items():
        for split, counts in splits.items():
            numbers = [counts.images, counts.studies, counts.patients, *(counts.per_class if per_class else ())]
            size = sum(shard.bytes for shard in counts.shards) / 1e6
            table.add_row(area, split, *map(str, numbers), str(len(counts.shards)), f"{size:.1f}")
    return table
