"""Several processes on one model: DDP and FSDP2, and the states that are saved.

Everything is torch's: gradients are averaged by DistributedDataParallel or ``fully_shard``, and
``torch.distributed.checkpoint`` saves sharded states and brings them back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hetkern.training.config import RunConfig
from hetkern.training.sharded import (
    MOMENTS,
    WEIGHTS,
    described,
    number_of,
    read_shards,
    with_moments,
)
from hetkern.training.workers import Workers


def wrap(losses: nn.Module, config: RunConfig, workers: Workers) -> nn.Module:
    """``losses`` as several processes train it; itself for one."""
    if workers.size == 1:
        return losses
    if config.parallel == "ddp":
        return nn.parallel.DistributedDataParallel(losses)
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    model = losses.model
    assert isinstance(model, nn.Module)
    for blocks in model.children():
        if isinstance(blocks, nn.ModuleList):
            for block in blocks:
                fully_shard(block)
    fully_shard(model)
    for method in ("loss", "extend"):  # forward passes by other names
        if hasattr(model, method):
            register_fsdp_forward_method(model, method)
    return losses


@contextlib.contextmanager
def synchronised(wrapped: nn.Module, wanted: bool) -> Iterator[None]:
    """Whether the backward pass in this context brings the processes' gradients together."""
    if isinstance(wrapped, nn.parallel.DistributedDataParallel) and not wanted:
        with wrapped.no_sync():
            yield
        return
    model: Any = getattr(wrapped, "model", None)
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(wanted)
    yield


def is_sharded(config: RunConfig) -> bool:
    """Whether the parameters lie in pieces in several processes."""
    return config.parallel == "fsdp" and dist.is_initialized() and dist.get_world_size() > 1


def states(
    model: nn.Module, optimizer: torch.optim.Optimizer, config: RunConfig
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor] | None]:
    """The states of model and optimizer; of a sharded model what it shards apart, by name.

    Then the weights are among those shards, and the optimizer's state keeps the rest.
    """
    if not is_sharded(config):
        return dict(model.state_dict()), optimizer.state_dict(), None
    shards = {f"{WEIGHTS}{name}": tensor for name, tensor in model.state_dict().items()}
    saved = optimizer.state_dict()
    rest: dict[int, dict[str, Any]] = {}
    for number, values in saved["state"].items():
        rest[number] = {}
        for key, value in values.items():
            if _is_shard(value):
                shards[f"{MOMENTS}{number}.{key}"] = value
            else:
                rest[number][key] = value
    return {}, saved | {"state": rest}, shards


def _is_shard(value: Any) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def load_shards(
    model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, state: dict[str, Any]
) -> None:
    """Put back what :func:`states` gave, from the shards in ``folder``: this process's parts.

    Raises:
        RuntimeError, ValueError, KeyError: they are of another model.
    """
    weights = {f"{WEIGHTS}{name}": tensor for name, tensor in model.state_dict().items()}
    known = described(folder)
    unknown = sorted(weights.keys() ^ {name for name in known if name.startswith(WEIGHTS)})
    if unknown:
        raise KeyError(f"the weights {unknown[0].removeprefix(WEIGHTS)} are in one of them alone")
    parameters = [p.detach() for group in optimizer.param_groups for p in group["params"]]
    moments = {
        name: torch.zeros_like(parameters[number_of(name)], dtype=of.properties.dtype)
        for name, of in known.items()
        if name.startswith(MOMENTS)
    }
    read_shards(folder, weights | moments)
    optimizer.load_state_dict(with_moments(state, moments))


def load_full_states(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: RunConfig,
    weights: dict[str, Tensor],
    state: dict[str, Any],
) -> None:
    """Put back whole states, which any process has, into a model that may be sharded."""
    if not is_sharded(config):
        model.load_state_dict(weights)
        optimizer.load_state_dict(state)
        return
    from torch.distributed.checkpoint import state_dict as dcp

    options = dcp.StateDictOptions(full_state_dict=True)
    by_name = _by_name(state, _names(model, optimizer))
    dcp.set_state_dict(
        model,
        optimizer,
        model_state_dict=cast(dict[str, Any], weights),
        optim_state_dict=by_name,
        options=options,
    )
    for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
        group.update({key: value for key, value in saved.items() if key != "params"})  # of its type


def _names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """The parameters' names in the optimizer's order."""
    name_of = {id(p): name for name, p in model.named_parameters()}
    return [name_of[id(p)] for group in optimizer.param_groups for p in group["params"]]


def _by_name(by_number: dict[str, Any], names: list[str]) -> dict[str, Any]:
    return {
        "state": {names[number]: state for number, state in by_number["state"].items()},
        "param_groups": [
            {**group, "params": [names[number] for number in group["params"]]}
            for group in by_number["param_groups"]
        ],
    }


def gathered(value: Any, workers: Workers) -> list[Any]:
    """Each process's ``value``, in the first one; elsewhere this one's alone."""
    value = moved(value, torch.device("cpu"))
    if workers.size == 1:
        return [value]
    values: list[Any] | None = [None] * workers.size if workers.first else None
    dist.gather_object(value, values)
    return values if values is not None else [value]


def moved(value: Any, device: torch.device) -> Any:
    """Nested state with its tensors on ``device``."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: moved(v, device) for key, v in value.items()}
    if isinstance(value, list | tuple):
        items = [moved(v, device) for v in value]
        return items if isinstance(value, list) else tuple(items)
    return value
