"""A run's folder: what lies in it, who may write it, how it begins.

config.toml          the settings, readable by ``hetkern train --config``
environment.json     versions, device, threads, and the plan that each op took
data.json            what was read, what was dropped, and its SHA-256
vocabulary.json, …   the task's own: what the tokens and labels are
checkpoints/         see :mod:`hetkern.training.checkpoint`
metrics.jsonl        one row a line, see :mod:`hetkern.training.metrics`
evaluation.json      the last validation, its tables too
sample.txt           what the model wrote at the end
summary.json         how it ended
.lock                held by the process that trains
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import sys
from pathlib import Path
from typing import IO, Any

import torch

from hetkern.training.config import RunConfig, UserError, config_from_file
from hetkern.training.metrics import METRICS
from hetkern.training.storage import write_atomically

CONFIG = "config.toml"
ENVIRONMENT = "environment.json"
DATA = "data.json"
EVALUATION = "evaluation.json"
SAMPLE = "sample.txt"
LOCK = ".lock"


class Lock:
    """A run's folder, held by this process until ``release`` or its end, however it ends."""

    def __init__(self, run: Path) -> None:
        """Take it.

        Raises:
            UserError: another process holds it, or the folder cannot be written.
        """
        try:
            self._file: IO[str] = open(run / LOCK, "a+", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write in the folder {run}: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            who = self._file.read().strip() or "unknown"
            self._file.close()
            raise UserError(f"{run} is in use by another process (its number: {who})") from None
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def release(self) -> None:
        """Let others have it."""
        self._file.close()


def create_run(config: RunConfig, files: dict[str, bytes]) -> tuple[Path, Lock]:
    """Make the run's folder and write what is known before training.

    Raises:
        UserError: ``config.out`` holds a run already, or the folder cannot be made or written.
    """
    run = fresh_folder(config) if config.out is None else Path(config.out)
    try:
        if (run / CONFIG).exists():
            raise UserError(f"{run} holds a run already; choose another --out, or: hetkern resume")
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {run}: {error.strerror}") from error
    lock = Lock(run)
    try:
        for name, contents in files.items():
            write_atomically(run / name, contents)
        (run / METRICS).touch()
        write_atomically(run / CONFIG, config.to_toml().encode("utf-8", "replace"))
    except OSError as error:
        lock.release()
        raise UserError(f"cannot write in the folder {run}: {error.strerror}") from error
    return run, lock


def rewrite_config(run: Path, config: RunConfig) -> None:
    """Keep settings that a resume has changed: more steps, another number of processes."""
    contents = config.to_toml().encode("utf-8", "replace")
    if (run / CONFIG).read_bytes() != contents:
        write_atomically(run / CONFIG, contents)


def fresh_folder(config: RunConfig) -> Path:
    """Make a new folder under ``runs`` for a run that names none.

    Raises:
        UserError: it cannot be made.
    """
    run = Path("runs", config.model)
    try:
        return _fresh_folder(run.parent, run.name)
    except OSError as error:
        raise UserError(f"cannot make the folder {run}: {error.strerror}") from error


def _fresh_folder(parent: Path, name: str) -> Path:
    number = 1
    while True:
        run = parent / f"{name}-{number:03d}"
        try:
            run.mkdir(parents=True)
            return run
        except FileExistsError:
            if not os.path.lexists(run):  # the parent is there, and is no folder
                raise
        number += 1


def config_of(run: Path, **changes: Any) -> RunConfig:
    """The settings of a run.

    Raises:
        UserError: the folder holds none.
    """
    if not (run / CONFIG).is_file():
        raise UserError(f"{run} holds no trained model ({CONFIG} is missing)")
    return config_from_file(run / CONFIG, out=str(run), **changes)


def write_json(path: Path, value: Any) -> None:
    """Write what people and programs may read later."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def environment(config: RunConfig, device: torch.device, processes: int) -> dict[str, Any]:
    """What the run's bits may depend on, beside its settings."""
    import hetkern

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "hetkern": hetkern.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(device),
        "device_name": name or platform.machine(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "parallel": config.parallel if processes > 1 else None,
        "kernels": config.kernels,
        "precision": config.precision,
        "command": sys.argv,
    }


def plan_of(calls: list[Any]) -> list[dict[str, Any]]:
    """What :func:`hetkern.record` heard, equal calls once with their number."""
    plans: dict[str, dict[str, Any]] = {}
    for call in calls:
        row = plans.setdefault(
            str(call),
            {
                "op": call.op, "shape": list(call.shape), "dtype": call.dtype, "impl": call.impl,
                "why": call.why, "plan": {k: str(v) for k, v in call.plan.items()}, "calls": 0,
            },
        )  # fmt: skip
        row["calls"] += 1
    return list(plans.values())
