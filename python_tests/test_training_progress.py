"""Progress: a bar on a terminal, plain lines elsewhere."""

import io

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


def test_durations_read_as_minutes_and_seconds():
    assert [duration(seconds) for seconds in (0.4, 59.6, 83, 3600)] == [
        "0:00", "1:00", "1:23", "60:00",
    ]  # fmt: skip
