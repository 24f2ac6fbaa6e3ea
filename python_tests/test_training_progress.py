"""Progress: a bar on a terminal, plain lines elsewhere."""

import io

import pytest

from hetkern.training import progress as progress_module
from hetkern.training.progress import TrainingProgress, duration


class Terminal(io.StringIO):
    def isatty(self):
        return True


def follow(stream):
    with TrainingProgress(steps=40, tokens_per_step=1000, stream=stream) as progress:
        for step in range(1, 41):
            progress.step(step, loss=5.0 - step / 10)
        progress.say("[0.5] said")
    return stream.getvalue()


def test_plain_lines_hold_step_loss_speed_and_time_left():
    lines = follow(io.StringIO()).splitlines()
    assert len(lines) == 21  # one in twenty of the steps, and what was said
    assert lines[9].startswith("step 20/40  loss 3.000  ")
    assert lines[9].endswith(" tokens/s  0:00 left")
    assert lines[-1] == "[0.5] said"


def test_a_terminal_gets_a_bar_with_loss_speed_and_time_left(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    shown = follow(Terminal())
    assert "\x1b[" in shown and "step 20/40" not in shown
    for part in ("training", "40/40", "loss 1.000", "tokens/s", "left", "[0.5] said"):
        assert part in shown


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["lines", "terminal"])
def test_a_validation_of_more_than_seconds_is_shown(monkeypatch, stream):
    monkeypatch.setenv("TERM", "xterm")
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: now[0])
    with TrainingProgress(steps=40, tokens_per_step=1000, stream=stream) as progress:
        now[0] += 1
        progress.step(4, loss=5.0)
        with progress.validation(targets=40_000) as watch:
            for done in range(1000, 41_000, 1000):
                now[0] += 0.5
                watch(done)
            if progress._bar is not None:
                progress._bar.refresh()
    shown = stream.getvalue()
    if stream.isatty():
        assert "validating" in shown and "40000/40000" in shown
    else:
        lines = [line for line in shown.splitlines() if "validating" in line]
        assert lines[0].endswith(
            "step 4/40  validating: 6,000 of 40,000 targets  2,000 tokens/s  0:17 left"
        )
        assert len(lines) == 2  # after 3 and 13 of 20 seconds


def test_a_short_validation_says_nothing():
    stream = io.StringIO()
    with (
        TrainingProgress(steps=40, tokens_per_step=1000, stream=stream) as progress,
        progress.validation(targets=100) as watch,
    ):
        watch(50)
    assert stream.getvalue() == ""


def test_durations_read_as_minutes_and_seconds():
    assert [duration(seconds) for seconds in (0.4, 59.6, 83, 3600)] == [
        "0:00", "1:00", "1:23", "60:00",
    ]  # fmt: skip
