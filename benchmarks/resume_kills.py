"""SIGKILL at random moments: every resumed run must end with the straight run's bits.

    python benchmarks/resume_kills.py --points 20
    python benchmarks/resume_kills.py --points 20 --processes 2 --model lstm --parallel fsdp

One process forks children that train and kills them; several are the command with --nproc (or,
with --forked, children that load nothing anew), killed as a group. A run saves every --save-every
steps, and none may lose more steps than that. Exit status 1 if one does, or if bits differ.
`--model classifier` is a bidirectional GRU.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = "the quick brown fox jumps over the lazy dog.\n" * 200
ROWS = "".join(
    f"{label}\t{label[::-1]} {'a b c '[: n % 6]}{n}\n" for n in range(90) for label in ("xy", "uv")
)
SETTINGS = {
    "layers": 1, "width": 16, "batch_size": 4, "warmup": 5, "dropout": 0.1, "threads": 1,
    "log_every": 1, "device": "cpu",
}  # fmt: skip
LANGUAGE = {"heads": 2, "context": 16, "sample_length": 5}
MODELS: dict[str, dict[str, object]] = {
    "gpt": LANGUAGE,
    "lstm": LANGUAGE | {"model": "lstm", "variational_dropout": 0.1, "recurrent_dropout": 0.1},
    "classifier": {"task": "classify", "model": "gru", "min_freq": 1, "epochs": 0},
}


def main() -> int:
    """Train once straight, then once for each kill point; print a line a point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=20, help="kills, each of a run of its own")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--model", choices=MODELS, default="gpt")
    parser.add_argument("--parallel", choices=["ddp", "fsdp"], default="ddp")
    parser.add_argument("--forked", action="store_true", help="several without the launcher")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--save-every", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return _kill(Path(folder), arguments)


def _kill(folder: Path, arguments: argparse.Namespace) -> int:
    labelled = arguments.model == "classifier"
    text = folder / ("rows.tsv" if labelled else "text.txt")
    text.write_text("label\ttext\n" + ROWS if labelled else TEXT)
    config = folder / "config.toml"
    settings = SETTINGS | MODELS[arguments.model] | {
        "data": str(text), "steps": arguments.steps, "eval_every": arguments.steps // 3,
        "save_every": arguments.save_every, "nproc": arguments.processes,
        "parallel": arguments.parallel,
    }  # fmt: skip
    config.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in settings.items()))
    forked = arguments.processes == 1 or arguments.forked
    how = functools.partial(_forked if forked else _launched, processes=arguments.processes)

    straight = folder / "straight"
    if forked:  # what takes seconds to load is not loaded in each child
        import torch._dynamo  # noqa: F401

        import hetkern.training  # noqa: F401
    began = time.monotonic()
    process = how(config, straight)
    _wait_for_steps(straight)
    steps_begin = time.monotonic() - began
    if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]):
        raise RuntimeError("the straight run failed")
    length = time.monotonic() - began
    moments = random.Random(arguments.seed)
    failures = 0
    for point in range(arguments.points):
        run = folder / f"killed{point}"
        stepping = point % 5 != 4  # most of them while it makes steps
        moment = moments.uniform(0.0, length - steps_begin if stepping else length)
        saved, reached = _killed(how, config, run, moment, stepping)
        status = 0
        if not (run / "summary.json").exists():  # else the run had ended already
            status = os.waitstatus_to_exitcode(os.waitpid(how(config, run), 0)[1])
        lost = max(0, reached - saved)  # a row follows its save
        found = f"exit status {status}" if status else _differences(run, straight)
        failures += bool(found) or lost > arguments.save_every
        print(
            f"killed {moment:.2f} s after the {'steps began' if stepping else 'start'}, "
            f"at step {reached}, {lost} steps lost: "
            + (f"OTHER BITS: {found}" if found else "the same bits"),
            flush=True,
        )
    print(f"{arguments.points - failures} of {arguments.points} passed")
    return 1 if failures else 0


def _wait_for_steps(run: Path) -> None:
    """Until a run's first step is near: a busy machine takes now more, now less time to load."""
    began = time.monotonic()
    while not (run / "metrics.jsonl").exists() and time.monotonic() < began + 120:
        time.sleep(0.005)


def _killed(how, config: Path, run: Path, moment: float, stepping: bool) -> tuple[int, int]:
    """The step that was saved when the run was killed, and the last one that it had made."""
    process = how(config, run)
    if stepping:
        _wait_for_steps(run)
    time.sleep(moment)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    time.sleep(0.5)  # the processes that it launched die with it
    steps = [int(path.name[5:]) for path in run.glob("checkpoints/step-*")]
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
    return max(steps, default=0), json.loads(lines[-1])["step"] if lines else 0


def _differences(run: Path, straight: Path) -> str:
    """The names of what is not the same."""
    contents, wanted = _contents(run), _contents(straight)
    names = sorted(contents.keys() | wanted.keys())
    return ", ".join(name for name in names if contents.get(name) != wanted.get(name))


def _contents(run: Path) -> dict[str, object]:
    """All that must be the same: the last checkpoint's bytes, and the rows but for their speed."""
    last = max(run.glob("checkpoints/step-*"))
    contents: dict[str, object] = {f.name: f.read_bytes() for f in last.glob("*.*")}
    for file in last.glob("shards/*"):
        contents[file.name] = _shard(file.read_bytes())
        contents.pop("manifest.json", None)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    contents["rows"] = [{k: v for k, v in row.items() if "per_second" not in k} for row in rows]
    for name in ("sample.txt", "evaluation.json"):
        contents[name] = (run / name).read_bytes() if (run / name).exists() else b""
    return contents


def _shard(contents: bytes) -> tuple[object, bytes]:
    """The header of a safetensors file and its tensors' bytes.

    Of a shard the header has several entries for people, in another order in each process; so the
    hashes in the manifest are other ones, too.
    """
    end = 8 + int.from_bytes(contents[:8], "little")
    return json.loads(contents[8:end]), contents[end:]


def _forked(config: Path, run: Path, processes: int) -> int:
    """A child that trains or, where there is a run, goes on; the parent has loaded torch for it.

    Of several processes it is the first, with the others as its children, and torchrun's words.
    """
    import torch

    from hetkern.training import resume, train
    from hetkern.training.config import config_from_file

    process = os.fork()
    if process:
        with contextlib.suppress(OSError):  # it may have done so itself, and have ended
            os.setpgid(process, process)
        return process
    status = 1
    try:
        os.setpgid(0, 0)  # whichever comes first
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        children = _share(processes)
        torch.set_num_threads(1)  # before OpenMP has any
        if (run / "config.toml").exists():
            resume(run)
        else:
            train(config_from_file(config, out=run))
        status = max([0, *(os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children)])
    finally:
        os._exit(status)


def _share(processes: int) -> list[int]:
    """Fork the other processes; the environment tells each who it is."""
    if processes == 1:
        return []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    os.environ |= {
        "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    children: list[int] = []
    for rank in range(1, processes):
        child = os.fork()
        if not child:
            os.environ["RANK"] = str(rank)
            return []
        children.append(child)
    os.environ["RANK"] = "0"
    return children


def _launched(config: Path, run: Path, processes: int) -> int:
    """The command, which takes the number of processes from the settings."""
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
