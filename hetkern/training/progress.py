"""What a run says while it goes: a progress bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress

_SHORT = 3.0  # seconds in which a validation says nothing
_BETWEEN_LINES = 10.0  # seconds from then on


class OutputLost(OSError):
    """Nobody can read any more what the run says: a closed pipe, a full disk."""


def duration(seconds: float) -> str:
    """``83`` as ``1:23``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def carried(text: str, stream: TextIO) -> str:
    """``text`` as ``stream`` can write it: question marks for what its encoding lacks."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


class TrainingProgress:
    """Loss, tokens a second and the time left, step by step."""

    def __init__(
        self,
        steps: int,
        tokens_per_step: int,
        stream: TextIO | None = None,
        unit: str = "token",
        quiet: bool = False,
        done: int = 0,
    ) -> None:
        """Follow ``steps`` steps of which ``done`` are; ``quiet`` says nothing.

        Writes to ``stream``, standard output by default.

        Every method raises OutputLost if the stream takes no more.
        """
        self.steps = steps
        self.tokens_per_step = tokens_per_step
        self.done = done  # steps
        self._units = f"{unit}s"
        self._begun = done
        self._stream = stream if stream is not None else sys.stdout  # None if that is closed
        if quiet:
            self._stream = None
        self._line_every = max(1, steps // 20)
        self._bar: Progress | None = None
        self._trained = 0.0  # seconds spent in steps
        self._step_began = time.perf_counter()

    def __enter__(self) -> TrainingProgress:
        """Start the clock and, on a terminal, the bar."""
        self._step_began = time.perf_counter()
        if self._stream is not None and self._stream.isatty():
            with _lost_output():
                self._bar = _start_bar(self.steps, self.done, self._stream)
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            bar, self._bar = self._bar, None
            with contextlib.suppress(OSError):  # an output that is lost was reported before
                bar.stop()

    def step(self, step: int, loss: float) -> None:
        """Step ``step`` is done, its training loss ``loss`` nats a token."""
        self.done = step
        now = time.perf_counter()
        self._trained += now - self._step_began
        self._step_began = now
        made = max(1, step - self._begun)
        rate = made * self.tokens_per_step / max(self._trained, 1e-9)
        if self._bar is not None:
            task = self._bar.task_ids[0]
            shown = f"loss {loss:.3f} {rate:,.0f} {self._units}/s"
            self._bar.update(task, completed=step, shown=shown)
        elif step % self._line_every == 0 or step == self.steps:
            left = duration(self._trained / made * (self.steps - step))
            speed = f"{rate:,.0f} {self._units}/s"
            self.say(f"step {step}/{self.steps}  loss {loss:.3f}  {speed}  {left} left")

    def resume(self) -> None:
        """Go on after something that was no step, a validation: its time counts for nothing."""
        self._step_began = time.perf_counter()

    @contextlib.contextmanager
    def validation(self, targets: int) -> Iterator[Callable[[int], None]]:
        """A validation of so many targets; what it gives is told how many are done.

        It says nothing for the first seconds: most validations are over by then.
        """
        began = time.perf_counter()
        next_line = began + _SHORT
        task = None

        def watch(done: int) -> None:
            nonlocal next_line, task
            now = time.perf_counter()
            if now < next_line:
                return
            rate = done / (now - began)
            if self._bar is None:
                left = duration((targets - done) / rate)
                self.say(
                    f"step {self.done}/{self.steps}  validating: {done:,} of {targets:,} targets  "
                    f"{rate:,.0f} {self._units}/s  {left} left"
                )
                next_line = now + _BETWEEN_LINES
            elif task is None:
                task = self._bar.add_task("validating", total=targets, shown="")
            if self._bar is not None and task is not None:
                self._bar.update(task, completed=done, shown=f"{rate:,.0f} {self._units}/s")

        try:
            yield watch
        finally:
            if self._bar is not None and task is not None:
                self._bar.remove_task(task)

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._stream is None:
            return
        line = carried(line, self._stream)
        with _lost_output():
            if self._bar is not None:
                self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
            else:
                print(line, file=self._stream, flush=True)


@contextlib.contextmanager
def _lost_output() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputLost(error.errno, error.strerror) from error


def _start_bar(steps: int, done: int, stream: TextIO) -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[shown]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=Console(file=stream),
    )
    bar.add_task("training", total=steps, completed=done, shown="loss -")
    bar.start()
    return bar
