"""Ctrl-C while training: finish the step, then stop; a second one stops at once.

Where nothing would be lost, the first one stops at once too.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

_ECHO = 5.0  # seconds


class Interrupt:
    """Whether Ctrl-C was pressed, and whether it may stop what is under way."""

    def __init__(self) -> None:
        self.requested = False
        self._at_once = False

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """A context out of which Ctrl-C raises KeyboardInterrupt, one that came before it too."""
        self._at_once = True
        try:
            if self.requested:
                raise KeyboardInterrupt
            yield
        finally:
            self._at_once = False

    def press(self) -> None:
        """Ctrl-C was pressed."""
        self.requested = True
        if self._at_once:
            raise KeyboardInterrupt


@contextlib.contextmanager
def stop_on_interrupt(echoes: bool = False) -> Iterator[Interrupt]:
    """A context in which the first Ctrl-C is noted, and stops only what runs ``at_once``.

    Outside the main thread, where Python delivers no signals, it changes nothing.

    Args:
        echoes: a launcher passes each Ctrl-C on to a process that the terminal sent it to as well,
            or asks it to end by SIGTERM: what follows within some seconds is no second one.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    previous = signal.getsignal(signal.SIGINT)

    # A shell starts its background jobs with SIGINT ignored: whoever sends the second one means it.
    second = previous if callable(previous) else signal.default_int_handler

    first_at: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if echoes:
            if first_at and time.monotonic() - first_at[0] > _ECHO:
                raise KeyboardInterrupt
            first_at.append(time.monotonic())
        else:
            signal.signal(signal.SIGINT, second)
        interrupt.press()

    signal.signal(signal.SIGINT, handle)
    before = signal.signal(signal.SIGTERM, handle) if echoes else None
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, previous)
        if before is not None:
            signal.signal(signal.SIGTERM, before)
