"""Attention's gradients in Triton: the launcher.     (the kernels: attention_backward_kernels.py).

It goes: check, allocate, return if empty, plan, launch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .attention_backward_kernels import attention_delta_kernel, attention_dq_kernel
from .attention_bias_kernel import attention_dbias_kernel
from .attention_call import Call
from .attention_checks import ACCUMULATOR, Scores, checked
from .attention_keys_kernel import attention_dk_dv_kernel
from .attention_tiles import plan, together
from .checks import check_like, check_shape, value_error
from .views import on_device

_DQ, _DK, _DV, _DBIAS, _DSINK, _DSLOPES = (1 << n for n in range(6))


def attention_backward(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    row_max: Tensor,
    log_sum: Tensor,
    *scores_and_needs: Any,
) -> tuple[Tensor, ...]:
    """``hetkern::attention_backward``: dq, dk, dv, dbias, dsink and dslopes."""
    # Check.
    op, s, needs = "attention_backward", Scores(*scores_and_needs[:-1]), int(scores_and_needs[-1])
    sizes = checked(op, q, k, v, s)
    for name, t in (("out", out), ("dout", dout)):
        check_like(op, name, t, q, q.dtype)
        check_shape(op, name, t, sizes.out(q))
    for name, stat in (("row_max", row_max), ("log_sum", log_sum), ("dlse", dlse)):
        if stat is not None:
            check_like(op, name, stat, q, ACCUMULATOR)
            check_shape(op, name, stat, sizes.rows(q))
    if not 0 <= needs < 64:
        value_error(op, "needs", "a sum of 1, 2, 4, 8, 16 and 32", needs)

    # Allocate, return if empty.
    def gradient(bit: int, of: Tensor | None) -> Tensor:
        if of is None or not needs & bit:
            return q.new_empty(0)
        return q.new_empty(of.shape, dtype=of.dtype)

    dq, dk, dv = gradient(_DQ, q), gradient(_DK, k), gradient(_DV, v)
    dbias, dsink = gradient(_DBIAS, s.bias), gradient(_DSINK, s.sink)
    dslopes = gradient(_DSLOPES, s.alibi_slopes)
    results = dq, dk, dv, dbias, dsink, dslopes
    if all(t.numel() == 0 for t in results):
        return results

    # Plan and launch.
    row_max, log_sum = row_max.contiguous(), log_sum.contiguous()
    dlse = None if dlse is None else dlse.contiguous()
    delta = torch.empty_like(row_max)
    tiles = plan(sizes.D, sizes.Dv, q.dtype)
    call = Call(q, k, v, sizes, s)
    with on_device(q):
        call.check_lengths()
        operands = tuple(map(call.operand, (q, k, v, dout)))
        stats = call.stats(row_max, log_sum, delta)
        sums = _sums(call, tiles["delta"], dsink)
        call.launch(
            attention_delta_kernel,
            tiles["delta"],
            sizes.Lq,
            sizes.Hq,
            *operands,
            call.operand(out),
            dlse,
            delta,
            call.stats(row_max, log_sum),
            call.features,
            call.sink,
            sums,
        )
        if sums is not None:
            dsink.copy_(sums.sum((0, 2), dtype=torch.float64))
        sums = _sums(call, tiles["dq"], dslopes)
        if dq.numel() or sums is not None:
            call.launch(
                attention_dq_kernel,
                tiles["dq"],
                sizes.Lq,
                sizes.Hq,
                *operands,
                call.operand(dq) if dq.numel() else None,
                sums,
                stats,
                call.features,
            )
        if sums is not None:
            over = (0, 2) if dslopes.dim() == 1 else 2
            dslopes.copy_(sums.sum(over, dtype=torch.float64))
        passes = [(dk, dv)] if together(sizes.D, sizes.Dv, q.dtype) else [(dk, None), (None, dv)]
        for of_keys in passes:
            wanted = [t if t is not None and t.numel() else None for t in of_keys]
            if any(t is not None for t in wanted):
                call.launch(
                    attention_dk_dv_kernel,
                    tiles["dk_dv"],
                    sizes.Lk,
                    sizes.Hkv,
                    *operands,
                    *map(call.operand, wanted),
                    stats,
                    call.features,
                )
        if dbias.numel():
            _launch_dbias(call, tiles["dq"], operands, dbias, stats)
    return results


def _sums(call: Call, tiles: dict[str, int], wanted: Tensor) -> Tensor | None:
    """A number for each block of queries of each head: a packed batch leaves some at 0."""
    if wanted.numel() == 0:
        return None
    sizes = call.sizes
    shape = sizes.B, sizes.Hq, call.blocks(sizes.Lq, tiles)
    return torch.zeros(shape, dtype=ACCUMULATOR, device=wanted.device)


def _launch_dbias(
    call: Call, tiles: dict[str, int], operands: tuple[Any, ...], dbias: Tensor, stats: Any
) -> None:
    sizes = call.sizes
    B, H, queries, keys = dbias.shape
    all_queries, all_keys = queries != sizes.Lq, keys != sizes.Lk
    blocks_i, blocks_j = -(-sizes.Lq // tiles["rows"]), -(-sizes.Lk // tiles["columns"])
    own = 1 if all_queries else blocks_i, 1 if all_keys else blocks_j
    shape = (
        *(B, H, *own, queries, keys),
        *(sizes.B // B, sizes.Hq // H, blocks_i // own[0], blocks_j // own[1]),
    )
    call.launch_programs(
        attention_dbias_kernel,
        B * H * own[0] * own[1],
        tiles,
        *operands,
        dbias,
        shape,
        stats,
        call.features,
        ALL_QUERIES=all_queries,
        ALL_KEYS=all_keys,
    )
