"""Progress and tables as a person reads them: bars on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

PLAIN_WIDTH = 120


def console(file=None) -> Console:
    """A console on `file` (default stdout): as wide as the terminal, PLAIN_WIDTH where there is none."""
    file = file or sys.stdout
    return Console(
        file=file, width=None if file.isatty() else PLAIN_WIDTH, highlight=False, soft_wrap=not file.isatty()
    )


@contextlib.contextmanager
def counting(label: str):
    """A callable (done, total) that shows how far a work is."""
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
    """A Keras callback: a bar an epoch on a terminal, and a line an epoch everywhere; the bar goes with the block."""
    import keras

    class TrainingProgress(keras.callbacks.Callback):
        bars = None
        trial = None  # of a search; set by it

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
    """The table of an `Evaluation` on stdout, with what must be known to read it."""
    out = console()
    out.print(evaluation_table(found))
    for split, value in (found.localization_faithfulness or {}).items():
        out.print(f"localization faithfulness on {split}: {value:.3f} (mean drop of p without the hottest part)")
    if found.select_on == "valid":
        out.print("the best epoch was chosen on valid: its scores there are optimistic")
    if not found.has_patients:
        out.print("these records know no patients: intervals resample images, leakage could not be checked")


def evaluation_table(found) -> Table:
    """Both levels of every split of an `Evaluation`, a column each."""
    title = f"{found.area}, {found.phase}: best epoch chosen on {found.select_on} by {found.selected_epoch_by}"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    plural = {"image": "images", "study": "studies"}
    columns = [(split, level) for split, levels in found.splits.items() for level in levels.values()]
    for split, level in columns:
        units = level.images if level.level == "image" else level.studies
        table.add_column(f"{split}, {plural[level.level]} (n = {units}, {level.positives} positive)", justify="right")

    def text(score) -> str:
        return f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})"

    for name in columns[0][1].scores:
        table.add_row(name, *(text(level.scores[name]) for _, level in columns))
    for cell, label in (("tp", "true positives"), ("fp", "false positives"), ("fn", "false negatives")):
        table.add_row(label, *(str(level.confusion[cell]) for _, level in columns))
    table.add_row("true negatives", *(str(level.confusion["tn"]) for _, level in columns))
    return table


def records_table(manifest) -> Table:
    """Counts of every area and split of a manifest."""
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
