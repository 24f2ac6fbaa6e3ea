"""One optimizer step after another: model, optimizer, order and all that they carry.

A step's loss is the sum over all processes and accumulated batches, divided by how many tokens (or
examples) they hold together. So it is the mean that one large batch would have, however unequal the
parts are.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hetkern.models import Kernels
from hetkern.training import parallel
from hetkern.training.checkpoint import Checkpoint, of_another_model
from hetkern.training.config import RunConfig, UserError
from hetkern.training.memory import check_step
from hetkern.training.optimizer import build_optimizer, clip_gradients, learning_rate
from hetkern.training.randomness import random_states, set_random_states
from hetkern.training.task import Batch, Carried, Task
from hetkern.training.workers import Workers

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(config: RunConfig, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """The precision that a config asks for."""
    dtype = AUTOCAST.get(config.precision)
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)


class Losses(nn.Module):
    """A model whose forward pass is the task's loss: what DDP and torch.compile wrap."""

    def __init__(self, task: Task, model: nn.Module) -> None:
        super().__init__()
        self.task = task
        self.model = model

    def forward(self, batch: Batch, carried: Carried) -> tuple[Tensor, Carried]:
        """The sum of the batch's losses, and what goes to the next one."""
        return self.task.loss(self.model, batch, carried)


class Trainer:
    """A model on its way; ``step`` is how many optimizer steps it has made."""

    def __init__(self, task: Task, config: RunConfig, kernels: Kernels, workers: Workers) -> None:
        """Draw the weights from torch's generator, the same ones in every process."""
        assert isinstance(config.batch_size, int)
        check_step(task, config, kernels, workers)
        self.task = task
        self.config = config
        self.workers = workers
        self.model = task.build_model(kernels).to(workers.device)
        if config.recompute:
            _recompute(self.model)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        losses = Losses(task, self.model)
        self.wrapped = parallel.wrap(losses, config, workers)  # shards the parameters in place
        self.optimizer = build_optimizer(self.model, config)
        self.run_losses = torch.compile(self.wrapped) if config.compile else self.wrapped
        self.scaler = torch.amp.GradScaler(workers.device.type, enabled=config.precision == "fp16")
        self.rows = config.batch_size * config.accumulate * workers.size
        self.order = task.order(self.rows, config.seed)
        self.carried: list[Carried] = [None] * config.accumulate
        self.step = 0
        self.steps = config.epochs * self.order.steps_per_epoch or config.steps
        self.rate = 0.0
        self.last_rows: Tensor | None = None
        if workers.rank:  # dropout differs from process to process, the first as if alone
            torch.manual_seed(config.seed + workers.rank)

    @property
    def epoch(self) -> float:
        """Passes over the training data so far."""
        return self.step / self.order.steps_per_epoch

    def make_step(self, stop: Callable[[], bool] = lambda: False) -> tuple[float, int, bool]:
        """One optimizer step. A loss that is no number changes no weight.

        Args:
            stop: whether this process was asked to stop; asked when the step is computed.

        Returns:
            The loss, how many tokens (examples) it is the mean over, and whether any process was
            asked to stop.
        """
        self.rate = learning_rate(self.step + 1, self.steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        self.optimizer.zero_grad()
        self.last_rows = rows = self.order.draw()
        count = self.task.count(rows)
        parts = self.workers.part(rows).tensor_split(self.config.accumulate)
        total = 0.0
        for number, part in enumerate(parts):
            with parallel.synchronised(self.wrapped, number == len(parts) - 1):
                total += self._backward(number, part, rows, count)
        total, stops = self.workers.total(total, float(stop()))
        loss = total / count
        if math.isfinite(loss):
            self._update()
            self.step += 1
        return loss, count, stops > 0

    def _backward(self, number: int, part: Tensor, rows: Tensor, count: int) -> float:
        """Add the gradient of one accumulated batch; returns its sum of losses."""
        weight = 1.0
        if not len(part):  # every process must take part, and a row that is there counts for none
            part, weight = rows[:1], 0.0
        batch = tuple(t.to(self.workers.device, non_blocking=True) for t in self.task.fetch(part))
        with self.autocast():
            loss, carried = self.run_losses(batch, self.carried[number])
        if weight:
            self.carried[number] = carried
        # DDP and FSDP take the mean over the processes of what shall be a sum.
        self.scaler.scale(loss * (weight * self.workers.size / count)).backward()
        return weight * loss.item()

    def _update(self) -> None:
        if self.config.clip > 0:
            self.scaler.unscale_(self.optimizer)
            clip_gradients(list(self.model.parameters()), self.config.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """The precision of a forward pass."""
        return autocast(self.config, self.workers.device)

    def checkpoint(self, more: Mapping[str, Any]) -> Checkpoint:
        """All that a later process needs to go on; every process calls it, the first gets it all.

        Of a sharded model each process gets its shards.

        Args:
            more: what the loop adds.
        """
        model, optimizer, shards = parallel.states(self.model, self.optimizer, self.config)
        state = {
            "optimizer": optimizer,
            "scaler": self.scaler.state_dict(),
            "order": self.order.state_dict(),
            "processes": self.workers.size,
            "random": parallel.gathered(random_states(), self.workers),
            "carried": parallel.gathered(self.carried, self.workers),
            "loop": dict(more),
        }
        return Checkpoint(self.step, model, state, shards)

    def restore(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Go on from a checkpoint; returns what the loop had added.

        Raises:
            UserError: it is of another model, or of another number of processes where that matters.
        """
        state = checkpoint.state
        self._check_processes(state)
        try:
            if checkpoint.folder is not None:
                parallel.load_shards(
                    self.model, self.optimizer, checkpoint.folder, state["optimizer"]
                )
            else:
                parallel.load_full_states(
                    self.model, self.optimizer, self.config, checkpoint.model, state["optimizer"]
                )
        except (RuntimeError, ValueError, KeyError) as error:
            raise of_another_model(checkpoint.step, error) from error
        self.scaler.load_state_dict(state["scaler"])
        self.order.load_state_dict(state["order"])
        mine = self.workers.rank if state["processes"] == self.workers.size else 0
        carried = parallel.moved(state["carried"][mine], self.workers.device)
        if any(part is not None for part in carried):
            self.carried = carried
        set_random_states(state["random"][mine])
        self.step = checkpoint.step
        self.rate = learning_rate(self.step, self.steps, self.config)
        return state["loop"]

    def _check_processes(self, state: Mapping[str, Any]) -> None:
        saved, now = state["processes"], self.workers.size
        carries = any(part is not None for carried in state["carried"] for part in carried)
        if carries and len(state["carried"][0]) != len(self.carried):
            raise UserError(
                f"this run carries its state through {len(state['carried'][0])} accumulated "
                "batches: resume it with as many processes as it had"
            )
        matters = carries or getattr(self.config, "dropout", 0.0) > 0
        if saved != now and matters:
            why = "what it carries from step to step" if carries else "its dropout"
            raise UserError(
                f"this run had {saved} process{'es' if saved > 1 else ''}, and {why} belongs to "
                f"each: resume it with --nproc {saved}"
            )


def _recompute(model: nn.Module) -> None:
    if not hasattr(model, "recompute"):
        raise UserError(f"--recompute is for models of blocks; {type(model).__name__} has none")
    setattr(model, "recompute", True)  # noqa: B010
