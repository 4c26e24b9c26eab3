"""Progress for people: bars on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kmura.cli.display import console


@contextlib.contextmanager
def counting(label: str):
    """A callable (done, total) that shows how many items of a task are done."""
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


class RunClock:
    """Estimates how long a run of several epochs still takes, from the time that its epochs have taken."""

    RECENT = 3  # epochs that the estimate is based on: later phases may be slower than earlier ones

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        """
        Args:
            clock: the present time, seconds.
        """
        self._clock = clock
        self._seconds = []  # of the finished epochs, validation and checkpoint included
        self._started = self._epoch_started = clock()
        self._first_batch_ended = None

    def begin_epoch(self) -> None:
        self._epoch_started, self._first_batch_ended = self._clock(), None

    def end_epoch(self) -> None:
        self._seconds.append(self._clock() - self._epoch_started)

    @property
    def elapsed(self) -> float:
        """Seconds since the clock was made."""
        return self._clock() - self._started

    def remaining(self, epochs: int) -> float | None:
        """Seconds that this many whole epochs will take; None before the first epoch has ended.

        The first epoch counts only while it is the only one: it also traces the model.
        """
        measured = (self._seconds[1:] or self._seconds)[-self.RECENT :]
        return sum(measured) / len(measured) * epochs if measured else None

    def remaining_within(self, batch: int, steps: int, epochs: int) -> float | None:
        """Seconds until the end, within an epoch.

        Args:
            batch: batches of the epoch that are done, 1 or more.
            steps: batches of an epoch.
            epochs: whole epochs that follow.

        In the first epoch the estimate is based on the batches after the first, which traces the model, and lacks
        validation; None until it has two batches.
        """
        now = self._clock()
        if self._first_batch_ended is None:
            self._first_batch_ended = now
        whole = self.remaining(1)
        if whole is not None:
            return max(0.0, whole - (now - self._epoch_started)) + whole * epochs
        if batch < 2:
            return None
        per_batch = (now - self._first_batch_ended) / (batch - 1)
        return per_batch * (steps - batch + steps * epochs)


def duration(seconds: float) -> str:
    """A duration for people: `42 s`, `3:07 min`, `2:05 h`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60}:{seconds % 60:02d} min"
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h"


@contextlib.contextmanager
def training_progress():
    """A Keras callback that prints one line per epoch, on a terminal also a bar; both with the remaining time."""
    import keras

    class TrainingProgress(keras.callbacks.Callback):
        bars = None
        trial = None  # of a search, which sets it

        def title(self, epoch):
            trial = f"trial {self.trial}, " if self.trial is not None else ""
            return f"{trial}epoch {epoch + 1}/{self.params['epochs']}"

        def on_train_begin(self, logs=None):
            self.stop()  # the bar of a trial that failed
            self.clock = RunClock()

        def on_epoch_begin(self, epoch, logs=None):
            self.clock.begin_epoch()
            self.later = self.params["epochs"] - epoch - 1  # epochs after this one
            if sys.stderr.isatty():
                columns = (
                    TextColumn("{task.description}"),
                    BarColumn(),
                    MofNCompleteColumn(),
                    TextColumn("{task.fields[left]}"),
                )
                self.bars = Progress(*columns, console=console(sys.stderr), transient=True)
                left = self.time_left(self.clock.remaining(1 + self.later))
                self.task = self.bars.add_task(self.title(epoch), total=self.params["steps"], left=left)
                self.bars.start()

        def on_train_batch_end(self, batch, logs=None):
            if self.bars:
                seconds = self.clock.remaining_within(batch + 1, self.params["steps"], self.later)
                self.bars.update(self.task, completed=batch + 1, left=self.time_left(seconds))

        def on_epoch_end(self, epoch, logs=None):
            self.stop()
            self.clock.end_epoch()
            names = ("loss", "val_loss_img", "val_auc_img", "val_auc_study", "val_acc_study", "val_f1_study")
            names += ("val_loss", "val_rank", "val_probe_auc")  # of pretraining
            scores = "  ".join(f"{name} {logs[name]:.4f}" for name in names if name in logs)
            star = "  *" if logs.get("best") else ""
            times = f"{logs.get('seconds', 0):.0f} s, {duration(self.clock.elapsed)} in all"
            if self.later:
                times += f", {self.time_left(self.clock.remaining(self.later))}"
            print(f"{self.title(epoch)}  {scores}  {times}{star}", file=sys.stderr)

        @staticmethod
        def time_left(seconds):
            return "" if seconds is None else f"about {duration(seconds)} left"

        def stop(self):
            if self.bars:
                self.bars.stop()
                self.bars = None

    progress = TrainingProgress()
    try:
        yield progress
    finally:
        progress.stop()
