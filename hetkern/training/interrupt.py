"""Ctrl-C while training: finish the step, then stop; a second one stops at once.

Where nothing would be lost, the first one stops at once too.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


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
def stop_on_interrupt() -> Iterator[Interrupt]:
    """A context in which the first Ctrl-C is noted, and stops only what runs ``at_once``.

    Outside the main thread, where Python delivers no signals, it changes nothing.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    previous = signal.getsignal(signal.SIGINT)

    # A shell starts its background jobs with SIGINT ignored: whoever sends the second one means it.
    second = previous if callable(previous) else signal.default_int_handler

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, second)
        interrupt.press()

    signal.signal(signal.SIGINT, handle)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, previous)
