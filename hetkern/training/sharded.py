"""A sharded model's checkpoint: a file a process, through ``torch.distributed.checkpoint``.

RUN/checkpoints/step-00000500/shards/shard-00001-model-00001-of-00001.safetensors    and so on

Each process writes the parts that it holds of the weights (``model.NAME``) and of the optimizer's
state (``optimizer.NUMBER.KEY``, parameters by number), and where they begin in the whole ones. So
any number of processes can read them, one as well. Hashes and the rest of the state are the affair
of :mod:`hetkern.training.checkpoint`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hetkern.training.workers import Workers

SHARDS = "shards"
WEIGHTS, MOMENTS = "model.", "optimizer."  # how names begin


def write_shards(folder: Path, tensors: dict[str, Tensor], workers: Workers) -> dict[str, str]:
    """Write this process's parts into ``folder/shards``; every process calls it.

    Returns:
        The SHA-256 of every process's file by its name, in every process.

    Raises:
        OSError: a process could not write.
    """
    import torch.distributed.checkpoint as dcp  # a second of imports

    target = folder / SHARDS
    with _plain_errors():
        dcp.save(
            tensors, storage_writer=dcp.HuggingFaceStorageWriter(str(target), save_distributed=True)
        )

    def mine() -> dict[str, str]:
        names = sorted(os.listdir(target))[workers.rank :: workers.size]
        return {f"{SHARDS}/{name}": sha256_of(target / name) for name in names}

    hashes: dict[str, str] = {}
    for part in workers.each(mine):
        hashes |= part
    return dict(sorted(hashes.items()))


def read_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fill ``tensors``, sharded ones among this process and others; every process calls it.

    Raises:
        ValueError, RuntimeError: the checkpoint has none of a name, or one of another size.
    """
    import torch.distributed.checkpoint as dcp

    with _plain_errors():
        dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(folder / SHARDS)))


def whole_tensors(folder: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, put together, on the CPU."""
    import torch.distributed.checkpoint as dcp

    known = described(folder)
    tensors = {
        name: torch.empty(of.size, dtype=of.properties.dtype)
        for name, of in known.items()
        if name.startswith(prefix)
    }
    reader = dcp.HuggingFaceStorageReader(str(folder / SHARDS))
    with _plain_errors(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one process reads alone, which it shall
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def described(folder: Path) -> dict[str, Any]:
    """Size and dtype of each whole tensor, by name in one order, from the files' headers."""
    import torch.distributed.checkpoint as dcp

    reader = dcp.HuggingFaceStorageReader(str(folder / SHARDS))
    return dict(sorted(reader.read_metadata().state_dict_metadata.items()))


def with_moments(state: Mapping[str, Any], moments: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state of an optimizer with its tensors that were among the shards."""
    values = {number: dict(of) for number, of in state["state"].items()}
    for name, tensor in moments.items():
        values.setdefault(number_of(name), {})[name.split(".", 2)[2]] = tensor
    return {**state, "state": values}


def number_of(name: str) -> int:
    """The number of the parameter whose optimizer's state has a name among the shards."""
    return int(name.removeprefix(MOMENTS).split(".")[0])


def sha256_of(path: Path) -> str:
    """Of a file, which need not fit into memory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """What a process raised, instead of torch's account of all processes (no ``Exception``)."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None
