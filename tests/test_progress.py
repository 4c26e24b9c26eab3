"""Progress of a training: how long the run still takes, on a terminal and elsewhere."""

import io

import keras
import numpy as np
import pytest

from kmura.cli import progress
from kmura.cli.progress import RunClock, duration, training_progress


class Time:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    time = Time()
    return time, RunClock(time)


def epoch(clock, seconds):
    time, run = clock
    run.begin_epoch()
    time.now += seconds
    run.end_epoch()


def test_the_first_epoch_counts_only_while_it_is_the_only_one(clock):
    assert clock[1].remaining(3) is None
    epoch(clock, 50)
    assert clock[1].remaining(3) == 150
    epoch(clock, 10)
    assert clock[1].remaining(3) == 30 and clock[1].elapsed == 60
    assert clock[1].remaining(0) == 0


def test_only_recent_epochs_count_because_later_phases_may_be_slower(clock):
    for seconds in (50, 10, 20, 20, 20):
        epoch(clock, seconds)
    assert clock[1].remaining(2) == 40


def test_within_the_first_epoch_the_batches_after_the_first_are_the_measure(clock):
    time, run = clock
    run.begin_epoch()
    time.now += 30  # traces
    assert run.remaining_within(1, 10, 2) is None
    time.now += 4
    assert run.remaining_within(3, 10, 2) == pytest.approx(2 * (7 + 20))


def test_within_a_later_epoch_whole_epochs_are_the_measure_and_validation_is_among_them(clock):
    time, run = clock
    epoch(clock, 50)
    epoch(clock, 20)
    run.begin_epoch()
    time.now += 5
    assert run.remaining_within(3, 10, 2) == 15 + 40
    time.now += 100
    assert run.remaining_within(9, 10, 2) == 40, "an epoch that takes longer has no negative rest"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (187, "3:07 min"), (7500, "2:05 h")]
)
def test_durations_are_printed_for_people(seconds, text):
    assert duration(seconds) == text


def trained(epochs=3):
    model = keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1)])
    model.compile(optimizer="sgd", loss="mse")
    x = np.ones((4, 1), np.float32)
    with training_progress() as progress:
        model.fit(x, x, batch_size=2, epochs=epochs, verbose=0, callbacks=[progress])


def test_a_plain_stream_gets_one_line_per_epoch_with_the_time_left(capsys):
    trained()
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("  ")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert all("s in all" in line for line in lines)
    assert ["left" in line for line in lines] == [True, True, False]


def test_a_terminal_gets_a_bar_with_the_time_left(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    trained()
    assert "epoch 2/3" in terminal.getvalue() and "left" in terminal.getvalue() and "2/2" in terminal.getvalue()
