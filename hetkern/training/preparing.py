"""How far the preparation of a large corpus is: a bar on a terminal, lines anywhere else."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

_BETWEEN_LINES = 10.0  # seconds


@contextlib.contextmanager
def preparing() -> Iterator[Callable[[int, int], None]]:
    """What this gives is told how many bytes of how many are tokenised."""
    stream = sys.stdout
    if stream is not None and stream.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        columns = TextColumn("tokenising"), BarColumn(), DownloadColumn(), Remaining()
        with Progress(*columns, console=Console(file=stream), transient=True) as bar:
            tasks: list = []

            def show(done: int, total: int) -> None:
                if not tasks:
                    tasks.append(bar.add_task("", total=total))
                bar.update(tasks[0], completed=done)

            yield show
        return
    began = time.perf_counter()
    said = began

    def say(done: int, total: int) -> None:
        nonlocal said
        now = time.perf_counter()
        if now - said < _BETWEEN_LINES:
            return
        said = now
        left = (now - began) * (total - done) / max(1, done)
        print(f"tokenising: {done:,} of {total:,} bytes, {left:.0f} s left", flush=True)

    yield say
