"""Rerun random configurations: ``python -m hetkern.testing.repro softmax --seed 1234``.

With ``--count`` it runs that many seeds from ``--seed`` on. With ``--state FILE`` it writes its
progress there and, started again with the same arguments, goes on where it stopped; it ends with a
summary line and status 1 if any seed failed.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hetkern.testing.implementations import ISA_LEVELS, Implementation
from hetkern.testing.random_cases import FAMILIES, check_seed

SAVE_EVERY_SECONDS = 10.0


@dataclass
class Progress:
    """How far a run has come; what the state file holds."""

    family: str
    implementation: str
    first: int
    count: int
    done: int = 0
    comparisons: int = 0
    worst: float = 0.0
    where: str = "nowhere"
    failed: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        """The summary line."""
        failed = f"{len(self.failed)} failed {self.failed[:10]}" if self.failed else "none failed"
        return (
            f"{self.family}, {self.implementation}: {self.done} of {self.count} configurations "
            f"from seed {self.first}, {failed}; {self.comparisons} comparisons, "
            f"worst error ÷ limit {self.worst:.3g} ({self.where})"
        )

    def resumed(self, state: Path) -> "Progress":
        """What ``state`` holds, or self if there is nothing.

        Raises:
            ValueError: the file belongs to another run.
        """
        if not state.exists():
            return self
        saved = Progress(**json.loads(state.read_text()))
        for name in ("family", "implementation", "first", "count"):
            if getattr(saved, name) != getattr(self, name):
                raise ValueError(
                    f"{state}: {name}: wanted {getattr(self, name)!r}, got {getattr(saved, name)!r}"
                )
        return saved

    def save(self, state: Path) -> None:
        """Write ``state``, in one step."""
        state.parent.mkdir(parents=True, exist_ok=True)
        fresh = state.with_suffix(".writing")
        fresh.write_text(json.dumps(asdict(self), indent=1))
        os.replace(fresh, state)


def run(progress: Progress, impl: str, state: Path | None) -> Progress:
    """Check every seed that is left; a failure is printed and counted, and the run goes on."""
    saved = time.monotonic()
    while progress.done < progress.count:
        seed = progress.first + progress.done
        try:
            summary = check_seed(progress.family, seed, impl)
        except AssertionError as failure:
            progress.failed.append(seed)
            print(f"FAILED seed {seed}: {failure}", file=sys.stderr)
        else:
            progress.comparisons += summary.comparisons
            if summary.worst > progress.worst:
                progress.worst, progress.where = summary.worst, f"seed {seed}, {summary.where}"
        progress.done += 1
        if state and time.monotonic() - saved > SAVE_EVERY_SECONDS:
            progress.save(state)
            saved = time.monotonic()
    if state:
        progress.save(state)
    return progress


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m hetkern.testing.repro", description=__doc__)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=1, help="how many seeds")
    parser.add_argument("--impl", default="cpu", help='"cpu", "reference", …')
    parser.add_argument("--isa", choices=ISA_LEVELS, help="instruction set of --impl cpu")
    parser.add_argument("--state", type=Path, help="progress file, to resume")
    options = parser.parse_args(arguments)

    implementation = Implementation(options.impl, options.isa)
    if reason := implementation.why_absent():
        print(f"{implementation} cannot run here: {reason}", file=sys.stderr)
        return 2
    progress = Progress(options.family, str(implementation), options.seed, options.count)
    if options.state:
        progress = progress.resumed(options.state)
    if options.count == 1:
        print(FAMILIES[options.family].configure(options.seed))
    with implementation.active():
        print(run(progress, options.impl, options.state))
    return 1 if progress.failed else 0


if __name__ == "__main__":
    sys.exit(main())
