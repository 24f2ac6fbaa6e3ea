"""What the public functions ask of arguments before an op sees them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference.scores import scaled_scores
from . import sharding


def number(op: str, name: str, value: Any) -> Any:
    """``value`` as a float; ask ``type(value) is not float`` first.

    A tensor stays one while torch.compile traces, which could not read it.

    Raises:
        NotImplementedError: a tensor that requires a gradient, which would get none.
    """
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise NotImplementedError(
                f"{op}: {name}: wanted a number, which has no gradient, got a tensor that requires "
                "one: multiply by it before the call"
            )
        if torch.compiler.is_compiling():
            return value
    return float(value)


def tensor(op: str, name: str, value: Any) -> bool:
    """Whether ``value`` is a DTensor; ask ``type(value) is not Tensor`` first.

    Raises:
        TypeError: it is no tensor.
        NotImplementedError: it is a nested one.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name}: wanted a tensor, got {type(value).__name__}")
    if value.is_nested:
        taken = "its values()"
        if "attention" in op:
            taken = "hetkern.attention_varlen takes its values() and offsets()"
        raise NotImplementedError(f"{op}: {name}: wanted a dense tensor, got a nested one: {taken}")
    if type(value).__name__ != "DTensor":  # whose module nobody imports for the question
        return False
    sharding.ready()
    return True


def check_has_values(op: str, name: str, t: Tensor) -> None:
    """Refuse torch's CausalBias, whose elements are what its memory happens to hold."""
    if type(t).__name__ == "CausalBias":
        raise ValueError(f"{op}: {name}: wanted a tensor of values, got a CausalBias: causal=True")


def check_softcap(op: str, softcap: Any) -> None:
    """Raise ValueError unless it is above 0; what a traced tensor holds nobody can ask."""
    if not isinstance(softcap, Tensor) and not softcap > 0:
        raise ValueError(f"{op}: softcap: wanted a value above 0, or None, got {softcap}")


# ---- Numbers that change from one call of a compiled graph to the next. --------------------------
#
# As an argument of an op torch.compile would either compile anew for every value of them or, in
# torch 2.13, keep the first one. What torch's own operators do with them is right in each call.


def varies(value: Any) -> bool:
    """Whether a number is unknown while torch.compile traces."""
    if value is None or not torch.compiler.is_compiling():
        return False
    if isinstance(value, Tensor):
        return True
    # Dynamo shows a symbolic number as a plain float. But it has no answer to such a question.
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return not (statically_known_true(value < 1.0) or statically_known_true(value >= 1.0))


def scaled_outside(x: Tensor, scale: Any, softcap: Any, *beside: Tensor | None) -> tuple[Any, ...]:
    """The scores of a scale or softcap that varies, with 1 and None in their place.

    ``beside`` are floating-point tensors that are to have the scores' dtype, which is the
    accumulation's.
    """
    z = scaled_scores(x, scale, softcap)
    return z, 1.0, None, *(t if t is None else t.to(z.dtype) for t in beside)
