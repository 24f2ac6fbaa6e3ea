"""How attention treats a DTensor: sequences or heads may lie on several processors, tokens may not.

See sharding.py for what a rule is. Dropout numbers its weights by sequence and head, which a
processor does not know of its own: with it nothing is sharded, nor are heads that share a key head.
"""

from __future__ import annotations

from typing import Any

from .attention_derivatives import NEEDS, Scores

_FORWARD = ("q", "k", "v", *Scores._fields)
_BACKWARD = (
    *("dout", "dlse", "q", "k", "v", "out", "row_max", "log_sum"),
    *Scores._fields,
    "needs",
)
_TOKENS = ("q", "k", "v", "dout", "out")
_ROWS = ("dlse", "row_max", "log_sum")


def shard_forward(*args: Any) -> list[Any]:
    """The rule of the forward op."""
    return _placed(dict(zip(_FORWARD, args, strict=True)), ("out", "row_max", "log_sum"))


def shard_backward(*args: Any) -> list[Any]:
    """The rule of the backward op, whose results are the gradients of what ``NEEDS`` names."""
    return _placed(dict(zip(_BACKWARD, args, strict=True)), tuple(NEEDS))


def _placed(given: dict[str, Any], results: tuple[str, ...]) -> list[Any]:
    from torch.distributed.tensor import Partial, Replicate, Shard

    packed = given["cu_seqlens_q"] is not None
    Hq, Hkv = given["q"].shape[1], given["k"].shape[1]

    def place(name: str, heads: bool) -> Any:
        """Where an argument lies, or a result of its name and shape."""
        if name in _TOKENS:
            return Shard(1 if heads else 0)
        if name in _ROWS:
            return Shard(1 if heads and not packed else 0)
        t = given.get(name)
        if t is None or not hasattr(t, "placements"):
            return Replicate()
        if name in ("bias", "mask"):
            dim = 1 if heads else 0
            return Shard(dim) if t.shape[dim] > 1 else Replicate()
        if name == "alibi_slopes":
            if heads:
                return Shard(len(t.shape) - 1)
            return Shard(0) if len(t.shape) == 2 else Replicate()
        if name == "sink":
            return Shard(0) if heads else Replicate()
        return Shard(0) if name == "seqlens_k" and not heads else Replicate()

    def result(name: str, heads: bool) -> Any:
        if "needs" not in given:
            return place(name, heads)
        if not given["needs"] & NEEDS[name]:
            return Replicate()
        at = place(name, heads)
        return Partial() if at.is_replicate() else at  # each has a part of the sum

    inputs = [name for name, value in given.items() if hasattr(value, "placements")]
    alone = (
        [Replicate()] * len(results),
        [Replicate() if name in inputs else None for name in given],
    )
    placements = [alone]
    for heads in (False, True):
        if given["dropout_p"] > 0.0 or (Hq != Hkv if heads else packed):
            continue
        placements.append(
            (
                [result(name, heads) for name in results],
                [place(name, heads) if name in inputs else None for name in given],
            )
        )
    return placements
