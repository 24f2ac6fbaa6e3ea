"""One process or several: ``--nproc`` runs the command itself again, through torchrun."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist

from hetkern.training.config import RunConfig, UserError
from hetkern.training.workers import Workers


def launched() -> bool:
    """Whether torchrun started this process."""
    return {"RANK", "WORLD_SIZE"} <= os.environ.keys()


def processes_wanted(config: RunConfig) -> int:
    """How many processes a config asks for.

    Raises:
        UserError: one for each GPU, and there is none.
    """
    if isinstance(config.nproc, int):
        return config.nproc
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not gpus:
        raise UserError("--nproc gpu: torch finds no GPU here; give a number")
    return gpus


@contextlib.contextmanager
def join(config: RunConfig) -> Iterator[Workers]:
    """This process among those that train together; the process group ends with the context.

    Raises:
        UserError: the device cannot be used, or several processes are wanted and torchrun has not
            started them.
    """
    if not launched():
        if processes_wanted(config) > 1:
            raise UserError(
                "several processes are started by the command (hetkern train --nproc N) or by "
                "torchrun, not from inside one"
            )
        yield Workers(device=device_of(config.device))
        return
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = device_of(config.device, local)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    began = not dist.is_initialized()
    if began:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield Workers(dist.get_rank(), dist.get_world_size(), device)
    finally:
        if began:
            dist.destroy_process_group()


def device_of(name: str, local: int | None = None) -> torch.device:
    """The device called ``name``; ``local`` is this process's number on its machine.

    Raises:
        UserError: it cannot be used here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None and local is not None:
            device = torch.device("cuda", local)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise UserError(f"--device {name} cannot run here: {error}") from error
    return device
