"""Compiles what hetkern's Triton operations launch, for the table of their memory traffic.

The interpreter counts (triton_interpreter); where it runs, Triton cannot compile: another process.
"""

from __future__ import annotations

import importlib
import multiprocessing
import subprocess
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from hetkern.testing.traffic.resources import Needs, told
from hetkern.testing.traffic.table import Launch


def triton_resources(run: Callable[..., Any], *arguments: Any) -> list[list[str]]:
    """A line for each kernel of each step of ``run``: registers, spills, shared memory, occupancy.

    Args:
        run: a module's function, which yields after each step; its last argument is the device of
            its tensors: "meta", since nothing is computed.
        arguments: those before the device.
    """
    with multiprocessing.get_context("spawn").Pool(1) as alone:
        return alone.apply(_compiled_steps, (run, arguments))


class _LaunchingOnMeta(TorchDispatchMode):
    """Tensors without memory reach Triton's launchers, instead of the functions for shapes."""

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        space, name = op._schema.name.split("::")
        if space != "hetkern_triton":
            return op(*args, **(kwargs or {}))
        family = next(f for f in ("softmax", "cross_entropy", "rnn") if name.startswith(f))
        return getattr(importlib.import_module(f"hetkern.triton.{family}"), name)(*args)


def _compiled_steps(run: Callable[..., Any], arguments: tuple[Any, ...]) -> list[list[str]]:
    from hetkern.testing.triton_aot import launches

    steps: list[list[str]] = []
    with launches() as launched, _LaunchingOnMeta():
        for _ in run(*arguments, "meta"):
            steps.append(list(dict.fromkeys(map(_compiled, launched))))
            launched.clear()
    return steps


def _compiled(launch: Any) -> str:
    name = f"sm_90 {launch.kernel.__name__}"
    try:
        built = launch.compile(90)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        return f"{name}: registers: Triton cannot compile it here: {error}"
    threads = 32 * launch.options.get("num_warps", 4)
    like = Launch(launch.kernel.__name__, 1, threads, built.shared, 1)
    return told(name, Needs(built.registers, built.spills), like, "stores")
