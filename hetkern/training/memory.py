"""What cannot fit into memory is refused before it is allocated.

Linux promises more memory than there is, and ends a process that then uses it: no error, no line.
So the least that a step can take is compared with what there is. It counts only what every step
keeps until its backward pass, so that nothing is refused that would have fitted.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from hetkern.models import Kernels
from hetkern.training.config import RunConfig, UserError
from hetkern.training.task import Task
from hetkern.training.workers import Workers

KEPT = 16  # a layer's activations, in its inputs: what a suggestion reckons with
MOMENTS = {"adamw": 2, "adam": 2, "sgd": 1}


def check_step(task: Task, config: RunConfig, kernels: Kernels, workers: Workers) -> None:
    """Refuse a model, or a batch of it, that cannot be trained here.

    Raises:
        UserError: it takes more memory than there is; the message has a size to try.
    """
    room = available(workers.device)
    if room is None:
        return
    here = int(os.environ.get("LOCAL_WORLD_SIZE", workers.size))
    room //= here if workers.device.type == "cpu" else 1
    weights = _parameters(task, kernels)
    model = 4 * weights * (2 + MOMENTS[config.optimizer])
    if config.parallel == "fsdp":
        model //= workers.size
    if model > room:
        raise UserError(
            f"a model of {weights:,} parameters takes {_size(model)} to train, and there is memory "
            f"for {_size(room)}: a smaller --width or fewer --layers take less"
        )
    # Of each token: it and its target; the input of each layer.
    sizes = config.layers * config.width * (4 if config.precision == "float32" else 2)  # type: ignore[attr-defined]
    _, tokens = task.size()
    a_row = tokens * (8 + sizes)
    assert isinstance(config.batch_size, int)
    batch = config.batch_size * a_row
    order = 8 * config.batch_size * config.accumulate * workers.size  # the numbers of its rows
    if model + batch + order <= room:
        return
    if config.batch_size == 1 or model + batch <= room:
        raise UserError(
            f"--accumulate {config.accumulate} takes at least {_size(order)} to number a step's "
            f"{task.steps_are}s, and there is memory for {_size(room - model)}: a smaller one"
        )
    _refuse(config.batch_size, batch, room - model, KEPT * a_row, task)


def check_evaluation(task: Task, config: RunConfig, rows: int, workers: Workers) -> None:
    """Refuse a batch of an evaluation that does not fit; none is larger than the data."""
    room = available(workers.device)
    if room is None:
        return
    most, tokens = task.size()
    a_row = tokens * (8 + 4 * config.width)  # type: ignore[attr-defined]
    if min(rows, most) * a_row > room:
        _refuse(rows, min(rows, most) * a_row, room, KEPT * a_row, task)


def _refuse(rows: int, least: int, room: int, likely: int, task: Task) -> None:
    most, _ = task.size()
    fits = max(1, min(room // likely, most, rows // 2))
    size = 1 << (fits.bit_length() - 1)
    raise UserError(
        f"--batch-size {rows} takes at least {_size(least)} of memory, and there is {_size(room)}: "
        f"try --batch-size {size}"
    )


def _parameters(task: Task, kernels: Kernels) -> int:
    """How many weights the model has; none is allocated."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return sum(p.numel() for p in task.build_model(kernels).parameters())


def _size(number: int) -> str:
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"


def available(device: torch.device) -> int | None:
    """Bytes that a process can still have on a device; None where nobody says."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    rooms = list(_rooms())
    return min(rooms) if rooms else None


def _rooms() -> Iterator[int]:
    """What the system has left, swap as well, and what its groups of processes may still take."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        yield sizes["MemAvailable"] + sizes["SwapFree"]
    for folder, limit, used, cached in _groups():
        with contextlib.suppress(OSError, ValueError, KeyError):  # "max" is no limit
            most = int((folder / limit).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            yield most - int((folder / used).read_text()) + int(stat[cached])


def _groups() -> Iterator[tuple[Path, str, str, str]]:
    """This process's control groups and those above them: version 2, and version 1."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds == "":
                root, names = "/sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
            elif "memory" in kinds.split(","):
                root = "/sys/fs/cgroup/memory"
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            else:
                continue
            folder = Path(root, path.lstrip("/"))
            while folder != Path(root).parent:
                yield folder, *names
                folder = folder.parent
