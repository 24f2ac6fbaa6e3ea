"""One call of attention, as the operands of its Triton kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .attention_checks import Scores, Sizes
from .attention_kernels import attention_lengths_kernel
from .attention_tiles import width
from .views import Operand

# A release build keeps the trap on bad lengths; the compiler's own overflow checks stay out.
_TRAPS = {"debug": True, "sanitize_overflow": False}
_MOST_PROGRAMS = 2**31 - 1


class Call:
    """What the kernels of a call have in common."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, sizes: Sizes, s: Scores) -> None:
        self.sizes, self.s = sizes, s
        slopes: Operand | None = None
        if s.alibi_slopes is not None:
            slopes = s.alibi_slopes.contiguous(), 0 if s.alibi_slopes.dim() == 1 else sizes.Hq
        self.features = slopes, self.operand(s.bias), self.operand(s.mask)
        self.sink = None if s.sink is None else s.sink.contiguous()
        packed: Operand | None = None
        if s.cu_seqlens_q is not None and s.cu_seqlens_k is not None:
            ends = s.cu_seqlens_q.contiguous(), s.cu_seqlens_k.contiguous()
            packed = *ends, q.shape[0], k.shape[0]
        cache = None if s.seqlens_k is None else s.seqlens_k.contiguous()
        self.lengths = packed, cache
        # A side that reaches beyond every key bounds nothing.
        most = sizes.Lq + sizes.Lk
        left = -1 if s.window_left >= most else s.window_left
        right = -1 if s.window_right >= most else s.window_right
        self.window = left, 0 if s.causal else right
        softcap = float(s.softcap)
        self.numbers = (
            float(s.scale),
            softcap,
            1.0 / softcap if softcap > 0 else 0.0,
            int(s.dropout_p * 2**32),
            1.0 / (1.0 - s.dropout_p),
        )
        tf32 = q.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
        self.constants = {
            "D": sizes.D,
            "DV": sizes.Dv,
            "WIDTH": width(sizes.D),
            "WIDTH_V": width(sizes.Dv),
            "CAPPED": softcap > 0,
            "DROPOUT": s.dropout_p > 0,
            "PRECISION": "tf32" if tf32 else "ieee",
        }

    def operand(self, t: Tensor | None) -> Operand | None:
        """Pointer, strides of batch, head, row and column: 0 where a dimension has one element."""
        if t is None:
            return None
        steps = [0 if size == 1 else step for size, step in zip(t.shape, t.stride(), strict=True)]
        if t.dim() == 3:  # packed: rows, heads, columns
            steps = [0, steps[1], steps[0], steps[2]]
        return (t, *steps)

    def stats(self, *tensors: Tensor | None) -> Operand:
        """One number a row: pointers, strides of batch and head."""
        sizes, first = self.sizes, next(t for t in tensors if t is not None)
        if sizes.packed:
            return *tensors, 0, first.shape[1]
        return *tensors, sizes.Hq * sizes.Lq, sizes.Lq

    def blocks(self, rows: int, tiles: dict[str, int]) -> int:
        """How many blocks the longest sequence has."""
        return -(-rows // tiles["rows"])

    def check_lengths(self) -> None:
        """Trap on a GPU; the CPU's were looked at."""
        given = [t for t in (self.s.cu_seqlens_q, self.s.seqlens_k) if t is not None]
        if given and not given[0].is_cpu:
            attention_lengths_kernel[(1,)](
                self.lengths, self._sizes(1), self.sizes.B, BLOCK=256, num_warps=4, **_TRAPS
            )

    def _sizes(self, blocks: int) -> tuple[int, ...]:
        sizes = self.sizes
        return sizes.Hq, sizes.Hq // max(sizes.Hkv, 1), sizes.Lq, sizes.Lk, blocks

    def launch(
        self,
        kernel: Any,
        tiles: dict[str, int],
        rows: int,
        heads: int,
        *operands: Any,
        parts: int = 1,
        **constants: Any,
    ) -> None:
        """A program for each block of ``rows`` of each of ``heads``, of every sequence.

        Or for each of the ``parts`` of its keys.
        """
        blocks = self.blocks(rows, tiles)
        programs = self.sizes.B * heads * blocks
        self.launch_programs(
            kernel, programs, tiles, *operands, blocks=blocks, parts=parts, **constants
        )

    def launch_programs(
        self,
        kernel: Any,
        programs: int,
        tiles: dict[str, int],
        *operands: Any,
        blocks: int = 0,
        parts: int = 1,
        **constants: Any,
    ) -> None:
        """A kernel with those of the call's arguments that it names."""
        if programs > _MOST_PROGRAMS:
            raise NotImplementedError(
                f"hetkern::attention: the Triton kernels take {_MOST_PROGRAMS} blocks of rows, "
                f"got {programs}"
            )
        if programs == 0:
            return
        before, after = self.window
        common = {
            "seed": self.s.seed if self.s.dropout_p > 0 else None,
            "lengths": self.lengths,
            "sizes": self._sizes(blocks),
            "window": (max(before, 0), max(after, 0)),
            "numbers": self.numbers,
            "BEFORE": before >= 0,
            "AFTER": after >= 0,
            "ROWS": tiles["rows"],
            "COLUMNS": tiles["columns"],
            **self.constants,
        }
        named = {name: value for name, value in common.items() if name in kernel.arg_names}
        kernel[(programs,) if parts == 1 else (programs, parts)](
            *operands,
            **named,
            **constants,
            num_warps=tiles["warps"],
            num_stages=tiles["stages"],
        )
