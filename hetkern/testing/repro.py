"""Rerun random configurations: ``python -m hetkern.testing.repro softmax --seed 1234``.

With ``--count`` it runs that many seeds from ``--seed`` on. With ``--state FILE`` it writes its
progress there and, started again with the same arguments and library, goes on where it stopped; it
ends with a summary line and status 1 if any seed failed. ``--known FILE`` names seeds by family
that are known to exceed their limit, and by what factor at most; they are counted apart.
"""

import argparse
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hetkern.testing.cases.random_cases import FAMILIES, check_seed
from hetkern.testing.implementations import ISA_LEVELS, Implementation

SAVE_EVERY_SECONDS = 10.0


@dataclass
class Progress:
    """How far a run has come; what the state file holds."""

    family: str
    implementation: str
    first: int
    count: int
    library: str = ""  #: hash of the native library, so that no run mixes two
    done: int = 0
    comparisons: int = 0
    worst: float = 0.0
    where: str = "nowhere"
    failed: list[int] = field(default_factory=list)
    known: list[int] = field(default_factory=list)  #: over the limit, and said to be

    def __str__(self) -> str:
        """The summary line."""
        failed = f"{len(self.failed)} failed {self.failed[:10]}" if self.failed else "none failed"
        if self.known:
            failed += f", {len(self.known)} known to be over their limit"
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
        for name in ("family", "implementation", "first", "count", "library"):
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


def run(
    progress: Progress, impl: str, state: Path | None, known: Mapping[str, float] | None = None
) -> Progress:
    """Check every seed that is left; a failure is printed and counted, and the run goes on.

    Args:
        progress: how far it has come.
        impl: the implementation's name.
        state: the file that keeps the progress.
        known: error ÷ limit of seeds that may exceed their limit, by so much and no more.
    """
    saved = time.monotonic()
    while progress.done < progress.count:
        seed = progress.first + progress.done
        try:
            summary = check_seed(progress.family, seed, impl)
        except AssertionError as failure:
            ratio = re.search(r"error ÷ limit is ([\d.e+]+)", str(failure))
            if ratio and float(ratio[1]) <= 1.01 * (known or {}).get(str(seed), 0.0):
                progress.known.append(seed)
                progress.done += 1
                continue
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


def _library() -> str:
    """A hash of hetkern's native libraries that are loaded."""
    import torch

    digest = hashlib.sha256()
    for file in sorted(map(str, torch.ops.loaded_libraries)):
        if "hetkern" in Path(file).name:
            digest.update(Path(file).read_bytes())
    return digest.hexdigest()[:12]


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m hetkern.testing.repro", description=__doc__)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=1, help="how many seeds")
    parser.add_argument("--impl", default="cpu", help='"cpu", "reference", …')
    parser.add_argument("--isa", choices=ISA_LEVELS, help="instruction set of --impl cpu")
    parser.add_argument("--state", type=Path, help="progress file, to resume")
    parser.add_argument("--known", type=Path, help="file of seeds known to exceed the limit")
    options = parser.parse_args(arguments)

    implementation = Implementation(options.impl, options.isa)
    if reason := implementation.why_absent():
        print(f"{implementation} cannot run here: {reason}", file=sys.stderr)
        return 2
    first, count = options.seed, options.count
    progress = Progress(options.family, str(implementation), first, count, _library())
    known = {}
    if options.known:
        known = json.loads(options.known.read_text()).get(options.family, {})
    if options.state:
        progress = progress.resumed(options.state)
    if options.count == 1:
        print(FAMILIES[options.family].configure(options.seed))
    with implementation.active():
        print(run(progress, options.impl, options.state, known))
    return 1 if progress.failed else 0


if __name__ == "__main__":
    sys.exit(main())
