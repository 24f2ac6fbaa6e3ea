"""Steps: each timed, passed or failed by what it shows, and none in the way of the next."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class Failed(Exception):
    """A step did not show what it is for."""


@dataclass
class Result:
    """What became of a step."""

    name: str
    passed: bool
    seconds: float
    facts: dict[str, Any] = field(default_factory=dict)
    error: str = ""


class Runner:
    """Runs commands and steps under one deadline; all output goes to one log."""

    def __init__(self, log: Path, seconds: float) -> None:
        self.log = log
        self.deadline = time.monotonic() + seconds
        self.results: list[Result] = []
        self._writing = threading.Lock()
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("")

    def note(self, text: str) -> None:
        """Add to the log."""
        with self._writing, self.log.open("a") as file:
            file.write(text.rstrip("\n") + "\n")

    def remaining(self) -> float:
        """Seconds before the deadline."""
        return self.deadline - time.monotonic()

    def command(
        self,
        words: Sequence[str | Path],
        limit: float = math.inf,
        env: Mapping[str, str] | None = None,
        may_fail: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the checkout; stdout and stderr come together.

        Raises:
            Failed: it failed (unless it may), or ran past its limit or the deadline.
        """
        seconds = min(limit, self.remaining())
        text = " ".join(map(str, words))
        if seconds <= 0:
            raise Failed(f"no time was left for: {text}")
        process = subprocess.Popen(
            [str(word) for word in words],
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        late = False
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            late = True
            output = _stop(process)
        self.note(f"$ {text}\n{output}")
        if late:
            raise Failed(f"stopped after {seconds:.0f} s: {text}\n{_tail(output)}")
        if process.returncode and not may_fail:
            raise Failed(f"exit status {process.returncode}: {text}\n{_tail(output)}")
        return subprocess.CompletedProcess(list(words), process.returncode, output)

    def step(self, name: str, body: Callable[[], dict[str, Any]]) -> None:
        """Run a step's body, which returns what it showed and must show something."""
        print(f"== {name}", flush=True)
        start = time.monotonic()
        result = Result(name, False, 0)
        try:
            result.facts = body()
            result.passed = bool(result.facts)
            result.error = "" if result.facts else "it showed nothing"
        except Exception as error:  # the next step runs all the same
            result.error = str(error) or type(error).__name__
            result.facts = getattr(error, "facts", {})
            if not isinstance(error, Failed):
                result.error = f"{type(error).__name__}: {error}"
            print(result.error, file=sys.stderr, flush=True)
        result.seconds = round(time.monotonic() - start, 1)
        self.results.append(result)
        state = "passed" if result.passed else "FAILED"
        print(f"== {name}: {state}, {result.seconds} s", flush=True)


def _stop(process: subprocess.Popen[str]) -> str:
    """End a late command with all its children; interrupted first, pytest still reports."""
    for sign, patience in ((signal.SIGINT, 8.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, sign)
            return process.communicate(timeout=patience)[0]
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            break
    return ""


def _tail(text: str, lines: int = 25) -> str:
    return "\n".join(text.splitlines()[-lines:])
