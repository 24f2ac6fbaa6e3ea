"""Where a training step's time goes: torch's profiler, with hetkern's ops by implementation.

Each of hetkern's ops runs inside a range ``hetkern::softmax [cpu]`` of the profiler, and of NVTX on
a GPU, so that a trace, Nsight and the table use the same names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

from hetkern.training.checkpoint import find_checkpoint, read_checkpoint, saved_steps
from hetkern.training.denormals import flushed_denormals
from hetkern.training.launch import join
from hetkern.training.loading import choose_kernels_or_explain
from hetkern.training.loop import prepared
from hetkern.training.randomness import own_random_states
from hetkern.training.run import config_of
from hetkern.training.stops import check_data
from hetkern.training.trainer import Trainer

FOLDER = "profile"
_SPACES = {"hetkern": None, "hetkern_triton": "triton"}  # None: the device says which


class NamedRanges(TorchDispatchMode):
    """Put each of hetkern's ops into a range of its name and implementation."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run ``func``, inside a range if it is one of ours."""
        space = func.namespace
        if space not in _SPACES:
            return func(*args, **(kwargs or {}))
        device = next((a.device.type for a in args if isinstance(a, torch.Tensor)), "cpu")
        with _range(f"hetkern::{func._schema.name.split('::')[1]} [{_SPACES[space] or device}]"):
            return func(*args, **(kwargs or {}))


@contextmanager
def _range(name: str) -> Iterator[None]:
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.nvtx.range_push(name)
    try:
        with record_function(name):
            yield
    finally:
        if cuda:
            torch.cuda.nvtx.range_pop()


def profile_run(run: Path, steps: int, changes: dict[str, Any]) -> str:
    """Time some training steps of a run, from its last checkpoint on; the run stays as it is.

    Returns:
        The table, and where the trace lies: ``profile/trace.json`` in the run's folder, for
        Perfetto or ``chrome://tracing``.
    """
    config = config_of(run, **({"nproc": 1} | changes))
    with flushed_denormals(), join(config) as workers, own_random_states(config.seed):
        kernels = choose_kernels_or_explain(config.kernels, workers.device)
        task = prepared(config, workers)
        check_data(task.facts(), run)
        trainer = Trainer(task, config, kernels, workers)
        if saved_steps(run):
            trainer.restore(read_checkpoint(run, find_checkpoint(run)))
        trainer.make_step()  # what happens once is not what a step costs
        activities = [ProfilerActivity.CPU]
        if workers.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        with profile(activities=activities) as profiler, NamedRanges():
            for number in range(steps):
                with record_function(f"step {number}"):
                    trainer.make_step()
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    profiler.export_chrome_trace(str(folder / "trace.json"))
    table = _table(profiler, steps, workers.device.type == "cuda")
    (folder / "table.txt").write_text(table + "\n", encoding="utf-8")
    return f"{table}\nThe trace is {folder / 'trace.json'}; https://ui.perfetto.dev shows it."


def _table(profiler: Any, steps: int, on_gpu: bool) -> str:
    """Ops by their own time, hetkern's with their implementation, most first."""
    times: dict[tuple[str, str], tuple[float, int]] = {}
    total = 0.0
    for event in profiler.key_averages():
        if event.key.startswith("hetkern::") and event.key.endswith("]"):
            op, impl = event.key[:-1].split(" [")
            own = event.device_time_total if on_gpu else event.cpu_time_total
        elif event.key.startswith("aten::"):
            op, impl = event.key, "torch"
            own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        else:
            continue
        seconds, calls = times.get((op, impl), (0.0, 0))
        times[op, impl] = (seconds + own, calls + event.count)
        total += own
    rows = sorted(times.items(), key=lambda item: -item[1][0])[:25]
    lines = [f"{'op':<42}{'implementation':<16}{'ms a step':>10}{'share':>8}{'calls':>8}"]
    for (op, impl), (microseconds, calls) in rows:
        share = microseconds / max(total, 1e-9)
        per_step = microseconds / 1000 / steps
        lines.append(f"{op:<42}{impl:<16}{per_step:>10.3f}{share:>8.1%}{calls // steps:>8}")
    return "\n".join(lines)
