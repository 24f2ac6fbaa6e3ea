"""SIGKILL at random moments: every resumed run must end with the straight run's bits.

    python benchmarks/resume_kills.py --points 20
    python benchmarks/resume_kills.py --points 20 --processes 2

One process forks children that train and kills them; several are the command with --nproc,
killed as a group. A run saves every --save-every steps, and none may lose more steps than that.
Exit status 1 if one does, or if bits differ.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = "the quick brown fox jumps over the lazy dog.\n" * 200
SETTINGS = {
    "layers": 1, "heads": 2, "width": 16, "context": 16, "batch_size": 4, "warmup": 5,
    "dropout": 0.1, "sample_length": 5, "threads": 1, "log_every": 1, "device": "cpu",
}  # fmt: skip


def main() -> int:
    """Train once straight, then once for each kill point; print a line a point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=20, help="kills, each of a run of its own")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--save-every", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return _kill(Path(folder), arguments)


def _kill(folder: Path, arguments: argparse.Namespace) -> int:
    text = folder / "text.txt"
    text.write_text(TEXT)
    config = folder / "config.toml"
    settings = SETTINGS | {
        "data": str(text), "steps": arguments.steps, "eval_every": arguments.steps // 3,
        "save_every": arguments.save_every, "nproc": arguments.processes,
    }  # fmt: skip
    config.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in settings.items()))
    start = _forked if arguments.processes == 1 else _command

    straight = folder / "straight"
    if arguments.processes == 1:  # what takes seconds to load is not loaded in each child
        import torch._dynamo  # noqa: F401

        import hetkern.training  # noqa: F401
    began = time.monotonic()
    process = start(config, straight)
    while not (straight / "metrics.jsonl").exists() and time.monotonic() < began + 120:
        time.sleep(0.005)
    steps_begin = time.monotonic() - began
    if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]):
        raise RuntimeError("the straight run failed")
    length = time.monotonic() - began
    moments = random.Random(arguments.seed)
    failures = 0
    for point in range(arguments.points):
        run = folder / f"killed{point}"
        earliest = 0.0 if point % 5 == 4 else steps_begin  # most of them while it makes steps
        moment = moments.uniform(earliest, length)
        saved, reached = _killed(start, config, run, moment)
        status = 0
        if not (run / "summary.json").exists():  # else the run had ended already
            status = os.waitstatus_to_exitcode(os.waitpid(start(config, run), 0)[1])
        lost = reached - saved
        same = status == 0 and _contents(run) == _contents(straight)
        failures += not same or lost > arguments.save_every
        print(
            f"killed after {moment:.2f} of {length:.2f} s at step {reached}, {lost} steps lost: "
            + ("the same bits" if same else f"OTHER BITS (exit status {status})"),
            flush=True,
        )
    print(f"{arguments.points - failures} of {arguments.points} passed")
    return 1 if failures else 0


def _killed(start, config: Path, run: Path, moment: float) -> tuple[int, int]:
    """The step that was saved when the run was killed, and the last one that it had made."""
    process = start(config, run)
    time.sleep(moment)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    time.sleep(0.5)  # the processes that it launched die with it
    steps = [int(path.name[5:]) for path in run.glob("checkpoints/step-*")]
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
    return max(steps, default=0), json.loads(lines[-1])["step"] if lines else 0


def _contents(run: Path) -> dict[str, object]:
    """All that must be the same: the last checkpoint's bytes, and the rows but for their speed."""
    last = max(run.glob("checkpoints/step-*"))
    contents: dict[str, object] = {f.name: f.read_bytes() for f in sorted(last.iterdir())}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    contents["rows"] = [{k: v for k, v in row.items() if "per_second" not in k} for row in rows]
    contents["sample"] = (run / "sample.txt").read_bytes()
    return contents


def _forked(config: Path, run: Path) -> int:
    """A child that trains or, where there is a run, goes on; the parent has loaded torch for it."""
    import torch

    from hetkern.training import TrainConfig, resume, train

    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.setpgid(0, 0)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        torch.set_num_threads(1)  # before OpenMP has any
        if (run / "config.toml").exists():
            resume(run)
        else:
            train(TrainConfig.from_file(config, out=run))
        status = 0
    finally:
        os._exit(status)


def _command(config: Path, run: Path) -> int:
    new = ["train", "--config", str(config), "--out", str(run)]
    words = ["resume", str(run)] if (run / "config.toml").exists() else new
    process = subprocess.Popen(
        [sys.executable, "-P", str(ROOT / "hetkern" / "cli.py"), *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    return process.pid


if __name__ == "__main__":
    sys.exit(main())
