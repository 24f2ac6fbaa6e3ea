"""What a run says while it goes: a progress bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress


def duration(seconds: float) -> str:
    """``83`` as ``1:23``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


class TrainingProgress:
    """Loss, tokens a second and the time left, step by step."""

    def __init__(self, steps: int, tokens_per_step: int, stream: TextIO | None = None) -> None:
        """Follow ``steps`` steps; writes to ``stream``, standard output by default."""
        self.steps = steps
        self.tokens_per_step = tokens_per_step
        self.stream = stream if stream is not None else sys.stdout
        self._line_every = max(1, steps // 20)
        self._bar: Progress | None = None
        self._trained = 0.0  # seconds spent in steps
        self._step_began = time.perf_counter()

    def __enter__(self) -> TrainingProgress:
        """Start the clock and, on a terminal, the bar."""
        self._step_began = time.perf_counter()
        if self.stream.isatty():
            self._bar = _start_bar(self.steps, self.stream)
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, step: int, loss: float) -> None:
        """Step ``step`` is done, its training loss ``loss`` nats a token."""
        now = time.perf_counter()
        self._trained += now - self._step_began
        self._step_began = now
        rate = step * self.tokens_per_step / max(self._trained, 1e-9)
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=step, loss=f"{loss:.3f}", rate=f"{rate:,.0f}")
        elif step % self._line_every == 0 or step == self.steps:
            left = duration(self._trained / step * (self.steps - step))
            speed = f"{rate:,.0f} tokens/s"
            self.say(f"step {step}/{self.steps}  loss {loss:.3f}  {speed}  {left} left")

    def resume(self) -> None:
        """Go on after something that was no step, a validation: its time counts for nothing."""
        self._step_began = time.perf_counter()

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=self.stream, flush=True)


def _start_bar(steps: int, stream: TextIO) -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TextColumn("{task.fields[rate]} tokens/s"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=Console(file=stream),
    )
    bar.add_task("training", total=steps, loss="-", rate="-")
    bar.start()
    return bar
