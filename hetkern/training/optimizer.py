"""Optimizers and learning rates."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from hetkern.training.config import RunConfig


def build_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """The optimizer of a config, fused; it decays matrices, and not biases and gains."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
    decay = 0.0 if config.optimizer == "adam" else config.weight_decay
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rate = config.learning_rate
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=config.momentum, fused=True)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=rate, betas=(0.9, config.beta2), fused=True)


def learning_rate(step: int, steps: int, config: RunConfig) -> float:
    """The learning rate of step 1, 2, … of ``steps``: a straight rise, then the schedule."""
    highest, least = config.learning_rate, config.min_learning_rate
    if step <= config.warmup:
        return highest * step / config.warmup
    if config.schedule == "constant":
        return highest
    done = (step - config.warmup) / max(1, steps - config.warmup)
    left = 1.0 - done if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return least + left * (highest - least)


def clip_gradients(parameters: list[nn.Parameter], largest: float) -> None:
    """``nn.utils.clip_grad_norm_``, which on a CPU leaves gradients alone that are small enough.

    It multiplies them by 1, which takes as long as reading and writing them all.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(grads)
    plain = type(norm) is Tensor and norm.device.type == "cpu"  # a shard's is no number here
    if not (plain and largest / (norm + 1e-6) >= 1.0):
        nn.utils.clip_grads_with_norm_(parameters, largest, norm)
