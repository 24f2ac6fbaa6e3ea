"""One process or several: ``--nproc`` runs the command itself again, through torchrun's launcher.

The processes write what went wrong into torchrun's error files and say nothing; the launching
process says it once: the first failure's own sentence.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hetkern.training.config import RunConfig, UserError
from hetkern.training.workers import Workers

LAUNCHER = "HETKERN_LAUNCHER"  # set for processes whose failures the launching one says


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


class StoppedAll(KeyboardInterrupt):
    """Ctrl-C stopped several processes, of which the first has said what it left."""


class ProcessFailed(UserError):
    """One of several processes ended early; the message is its own."""


def hand_over(config: RunConfig, script: str) -> bool:
    """Run this command in as many processes as ``config`` wants; False where that is this one.

    Args:
        config: the settings, which the processes read again from this process's arguments.
        script: the command's file.

    Raises:
        ProcessFailed: one of them failed.
        KeyboardInterrupt: they were stopped by Ctrl-C.
    """
    if launched() or processes_wanted(config) == 1:
        return False
    run_processes(processes_wanted(config), [script, *sys.argv[1:]])
    return True


def run_processes(number: int, command: list[str]) -> None:
    """Run ``python COMMAND…`` in so many processes, through torchrun's launcher."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.ERROR)  # the launcher's own account of what failed
    before = dict(os.environ)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // number)))
    os.environ[LAUNCHER] = "1"
    os.environ["PYTHONSAFEPATH"] = "1"  # the command's folder holds no modules of its own
    launch_config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=number,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(launch_config, sys.executable)(*command)
    except ChildFailedError as error:
        rank, failure = _cause(error)
        if failure.exitcode == 130:
            raise StoppedAll from None
        raise ProcessFailed(_why(rank, failure)) from None
    except SignalException as error:
        raise StoppedAll from error
    finally:
        logging.disable(logging.NOTSET)
        os.environ.clear()
        os.environ.update(before)


def _cause(error: Any) -> tuple[int, Any]:
    """The first failure that has something to say; without one, the first of all."""
    failures = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
    told = [item for item in failures if isinstance(item[1].message, dict)]
    rank, failure = (told or failures)[0]
    return rank, failure


def _message(failure: Any) -> str:
    message = failure.message
    return str(message.get("message", "") if isinstance(message, dict) else message)


def _why(rank: int, failure: Any) -> str:
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        return (
            f"process {rank} was killed by {name}, and the others were stopped; "
            "the last checkpoint can be used: hetkern resume goes on"
        )
    return _message(failure) or f"process {rank} ended with exit status {failure.exitcode}"


def report_failure(message: str, stopped: bool) -> bool:
    """Leave a sentence for the launching process; False where this process has to say it.

    The launcher hears of no failure where Ctrl-C has stopped it as well: the first process speaks.
    """
    if stopped and LAUNCHER in os.environ:
        return os.environ.get("RANK") != "0"
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path or LAUNCHER not in os.environ:
        return False
    error = {"message": {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}}
    Path(path).write_text(json.dumps(error), encoding="utf-8")
    return True


def lost_another(error: Exception) -> bool:
    """Whether an error only says that another process has ended, which says why itself."""
    if not launched():
        return False
    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "timed out")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def processes_now(config: RunConfig) -> int:
    """How many processes train: those that torchrun started, or those that a config asks for."""
    return int(os.environ["WORLD_SIZE"]) if launched() else processes_wanted(config)


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
    _end_with_the_launcher()
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


def _end_with_the_launcher() -> None:
    """Let the system kill this process if the one that launched it is killed.

    Otherwise it would train on, and hold the run's folder against a resume.
    """
    if LAUNCHER in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


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
