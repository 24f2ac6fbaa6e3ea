"""How the ops treat a DTensor: rows may lie on several processors, the reduced dimension may not.

A rule gives DTensor, for one mesh dimension, every placement of the operands that an op can work
with alone; DTensor redistributes to the cheapest. It lists what is replicated throughout, and each
dimension but the reduced one sharded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Rule = Callable[..., list[Any]]  # of an op's arguments, tensors replaced by their specs
_rules: list[tuple[Any, Rule]] = []
_registered = 0


def add(op: Any, rule: Rule) -> None:
    """Note ``op``'s rule for the day that a DTensor comes: DTensor is costly to import."""
    _rules.append((op, rule))


def ready() -> None:
    """Hand DTensor the rules that it has not got."""
    global _registered
    if _registered == len(_rules):
        return
    from torch.distributed.tensor.experimental import register_sharding

    for op, rule in _rules[_registered:]:
        register_sharding(op)(rule)
    _registered = len(_rules)


# Runs while torch.compile traces, too: what torch.compiler.assume_constant_result sets, whose call
# would import the compiler.
ready._dynamo_marked_constant = True  # type: ignore[attr-defined]


def shard_rows(
    outputs: str,
    dim: int,
    full: tuple[int, ...],
    full_rows: tuple[int, ...] = (),
    broadcast: tuple[int, ...] = (),
    rows: tuple[int, ...] = (),
    causal: int | None = None,
    reduction: int | None = None,
) -> Rule:
    """The rule of an op, from the places of its arguments, as :func:`batch_rows` has them.

    Args:
        outputs: a letter each: "f" of the reduced shape (its reduced dimension may have another
            size), "r" that shape without the dimension, "-" without rows.
        dim: the reduced dimension.
        full: tensors of the reduced shape; the first that is there leads.
        full_rows: tensors of that shape without the reduced dimension, or without rows.
        broadcast: tensors that broadcast to the reduced shape.
        rows: tensors that broadcast to it without the reduced dimension.
        causal: whether the queries (dimension -2) are numbered.
        reduction: 0 where the op leaves the rows apart; else nothing may be sharded.
    """

    def rule(*args: Any) -> list[Any]:
        from torch.distributed.tensor import Replicate, Shard

        lead = next(args[i] for i in full if args[i] is not None)
        rank = len(lead.shape)
        reduced = args[dim] % max(rank, 1)

        def placed(place: Callable[[int], Any], at_output: Callable[[str], Any]) -> Any:
            specs = [place(i) if hasattr(a, "placements") else None for i, a in enumerate(args)]
            return [at_output(kind) for kind in outputs], specs

        def sharded(d: int) -> Any:
            row = d - (d > reduced)

            def beside(shape: Any, at: int, wanted: int) -> Any:
                """A tensor that broadcasts, aligned at the end."""
                at += len(shape) - wanted
                same = at >= 0 and shape[at] == lead.shape[d] and lead.shape[d] > 1
                return Shard(at) if same else Replicate()

            def place(i: int) -> Any:
                shape = args[i].shape
                if i in full:
                    return Shard(d)
                if i in full_rows:
                    return Shard(row) if len(shape) == rank - 1 else Replicate()
                if i in broadcast:
                    return beside(shape, d, rank)
                return beside(shape, row, rank - 1) if i in rows else Replicate()

            at_output = {"f": Shard(d), "r": Shard(row), "-": Replicate()}
            return placed(place, at_output.__getitem__)

        alone = [placed(lambda _: Replicate(), lambda _: Replicate())]
        if reduction is not None and args[reduction] != 0:
            return alone
        numbered = rank - 2 if causal is not None and args[causal] else None
        return alone + [sharded(d) for d in range(rank) if d not in (reduced, numbered)]

    return rule
