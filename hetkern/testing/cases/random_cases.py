"""Random configurations of each family: a seed names one, for ever.

Every feature is drawn on its own, so that they meet in all combinations; sizes come from the
lengths that have a regime to stand for. A seed is rerun by
``python -m hetkern.testing.repro FAMILY --seed SEED``.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hetkern.testing.cases import attention, families, inputs, recurrent
from hetkern.testing.cases.configuration import Configuration
from hetkern.testing.devices import placed_on
from hetkern.testing.layouts import LAYOUTS
from hetkern.testing.values.check import DTYPES, Case, Summary

#: Elements of a tensor: usually, and in one configuration of ten. 10^5 must run in about an hour.
USUAL_ELEMENTS, MOST_ELEMENTS = 1 << 12, 1 << 17


def softmax(seed: int) -> Configuration:
    """A softmax or log-softmax of up to four dimensions with any features."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    dims = draw.randint(1, 4)
    dim = draw.choice([dims - 1, draw.randrange(dims)])
    shape = _shape(draw, dims, dim)
    kind = draw.choice(list(inputs.LOGITS))
    dtype = draw.choice(DTYPES)
    options: dict[str, Any] = {"dim": draw.choice([dim, dim - dims]), "log": draw.random() < 0.5}
    if draw.random() < 0.5:
        options["scale"] = draw.choice([0.125, 2.5, -1.0])
    if draw.random() < 0.25:
        options["softcap"] = draw.choice([2.0, 30.0])
    if draw.random() < 0.4:
        options["bias"] = torch.randn(_bias_shape(draw, shape, dim), generator=generator)
    if draw.random() < 0.4:
        options["mask"] = torch.rand(_broadcastable(draw, shape), generator=generator) < 0.7
    if dims >= 2 and dim == dims - 1 and draw.random() < 0.4:
        options["causal"] = True
    # One column beside a sink may be as near 1 as it likes, where torch has no digits left either.
    if draw.random() < 0.3 and shape[dim] > 1:
        rows = shape[:dim] + shape[dim + 1 :]
        options["sink"] = torch.randn(_broadcastable(draw, rows), generator=generator)
    if dtype in (torch.bfloat16, torch.float16) and draw.random() < 0.2:
        options["dtype"] = torch.float32
    x = inputs.logits(kind, shape, dim, generator)
    case = Case(
        f"softmax({kind}, {_text(options)})", (x,), options, dim, repro=_repro("softmax", seed)
    )
    return Configuration(case, dtype, draw.choice(list(LAYOUTS)), seed)


def cross_entropy(seed: int) -> Configuration:
    """A cross-entropy of up to four dimensions, of indices or probabilities, with any features."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    dims = draw.choice([1, 2, 2, 2, 3, 4])
    dim = min(1, dims - 1)
    shape = _shape(draw, dims, dim)
    kind = draw.choice(list(inputs.LOGITS))
    x = inputs.logits(kind, shape, dim, generator)
    options: dict[str, Any] = {"reduction": draw.choice(["none", "mean", "sum"])}
    if draw.random() < 0.3:
        target_kind = draw.choice(["dense", "one_hot"])
        target = inputs.probabilities(target_kind, x, dim, generator)
    else:
        target_kind = draw.choice(["random", "confident", "edges", "ignored", "all_ignored"])
        if draw.random() < 0.3:
            options["ignore_index"] = draw.choice([-1, 0, shape[dim] - 1])
        ignored = options.get("ignore_index", -100)
        target = inputs.targets(target_kind, x, dim, generator, ignored)
    if draw.random() < 0.4:
        options["weight"] = torch.rand(shape[dim], generator=generator)
    if draw.random() < 0.3:
        options["label_smoothing"] = draw.choice([0.1, 1.0])
    if draw.random() < 0.4:
        options["scale"] = draw.choice([0.125, 2.5, -1.0])
    if draw.random() < 0.25:
        options["softcap"] = draw.choice([2.0, 30.0])
    if draw.random() < 0.3:
        options["z_loss"] = 1e-3
    # With one class most terms of the statistics' gradients cancel, and torch's without rounding.
    if draw.random() < 0.4 and shape[dim] > 1:
        options["return_stats"] = True
    name = f"cross_entropy({kind}, {target_kind}, {_text(options)})"
    repro = _repro("cross_entropy", seed)
    case = Case(name, (x, target), options, dim, ("weight",), families.target_classes, repro)
    return Configuration(case, draw.choice(DTYPES), draw.choice(list(LAYOUTS)), seed)


@dataclass(frozen=True)
class Family:
    """What random testing needs to know of an operation."""

    configure: Callable[[int], Configuration]
    check: Callable[
        ..., Summary
    ]  #: takes the implementation's name, cases, and ``check_op``'s options


FAMILIES = {
    "softmax": Family(softmax, families.check_softmax),
    "cross_entropy": Family(cross_entropy, families.check_cross_entropy),
    "attention": Family(attention.attention, attention.check_attention),
    "rnn": Family(recurrent.rnn, recurrent.check_rnn),
}


def check_seed(family: str, seed: int, impl: str = "auto") -> Summary:
    """Check the configuration that ``seed`` names; AssertionError carries the one-line repro."""
    with placed_on("cpu"):
        drawn = FAMILIES[family].configure(seed)
    case = drawn.case
    if impl not in ("auto", "cpu"):
        case = replace(case, repro=f"{case.repro} --impl {impl}")
    options = {"dtypes": [drawn.dtype], "layouts": [drawn.layout], "seed": seed}
    return FAMILIES[family].check(impl, case, **options)


def _shape(draw: random.Random, dims: int, dim: int) -> tuple[int, ...]:
    """Sizes with a length of a named regime along ``dim``; now and then empty."""
    shape = [draw.choice([1, 1, 2, 3, 5, 8]) for _ in range(dims)]
    shape[dim] = 1
    most = MOST_ELEMENTS if draw.random() < 0.1 else USUAL_ELEMENTS
    shape[dim] = draw.choice([n for n in inputs.LENGTHS if n <= most // math.prod(shape)])
    others = [i for i in range(dims) if i != dim]
    if others and draw.random() < 0.02:
        shape[draw.choice(others)] = 0
    elif others and draw.random() < 0.2:
        shape[draw.choice(others)] *= max(1, min(64, most // math.prod(shape)))
    return tuple(shape)


def _broadcastable(draw: random.Random, shape: Sequence[int]) -> tuple[int, ...]:
    """A shape that broadcasts to ``shape``."""
    if draw.random() < 0.3:
        return tuple(shape)
    kept = shape[draw.randint(0, len(shape)) :]
    return tuple(draw.choice([size, 1]) for size in kept)


def _bias_shape(draw: random.Random, shape: Sequence[int], dim: int) -> tuple[int, ...]:
    """A shape that broadcasts to ``shape`` and is whole along ``dim``.

    A bias that is the same along a row changes nothing: its gradient is 0, and rounding alone.
    """
    first = draw.randint(0, dim)
    kept = enumerate(shape[first:], first)
    return tuple(size if i == dim or draw.random() < 0.5 else 1 for i, size in kept)


def _text(options: dict[str, Any]) -> str:
    """Options on one line; a tensor as its shape."""
    return ", ".join(
        f"{name}={tuple(value.shape) if isinstance(value, Tensor) else value}"
        for name, value in options.items()
    )


def _repro(family: str, seed: int) -> str:
    return f"python -m hetkern.testing.repro {family} --seed {seed}"
