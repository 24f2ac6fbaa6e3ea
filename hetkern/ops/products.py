"""Torch's products of 16-bit tensors, by way of float32 where the processor has none of its own.

Without oneDNN's 16-bit products (they want AVX-512, for float16 AVX512-FP16 or AMX-FP16) torch 2.13
multiplies bfloat16 and float16 on one thread in plain loops: 1 to 17 GFLOP/s, by how the operands
lie, where float32 reaches a hundred. Converting costs a copy of each operand, and the result is
rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def _torch_has_none() -> frozenset[torch.dtype]:
    """The 16-bit dtypes that torch multiplies in plain loops on this processor."""
    onednn = torch.backends.mkldnn.is_available() and hasattr(torch.ops, "mkldnn")
    asked = {
        torch.bfloat16: "_is_mkldnn_bf16_supported",
        torch.float16: "_is_mkldnn_fp16_supported",
    }
    return frozenset(t for t, ask in asked.items() if not (onednn and _yes(ask)))


def _yes(question: str) -> bool:
    ask = getattr(torch.ops.mkldnn, question, None)
    return ask is None or bool(ask())


#: Dtypes whose products on the CPU are computed in float32 and rounded once.
WIDENED = _torch_has_none()


def in_float32(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether a product of ``x`` in ``dtype`` goes by way of float32."""
    return dtype in WIDENED and x.is_cpu


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` of tensors of one dtype, rounded once to it whatever way it goes.

    Over AMX torch's product reads an even number of columns: behind an odd row of 16 bits it meets
    the next number in memory, which times 0 is NaN if it is not finite (torch 2.13, bfloat16). Such
    rows get a column of zeros. And the bias lies side by side: to another it adds a product of 16
    bits that it has rounded before.
    """
    dtype = _product_dtype(x)
    if in_float32(x, dtype):
        with torch.autocast("cpu", enabled=False):
            wide = None if bias is None else bias.float()
            return F.linear(x.float(), weight.float(), wide).to(dtype)
    if bias is not None and not bias.is_contiguous():
        bias = bias.contiguous()
    if x.shape[-1] % 2 and x.is_cpu and dtype.itemsize == 2:
        x, weight = F.pad(x, (0, 1)), F.pad(weight, (0, 1))
    return F.linear(x, weight, bias)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of two matrices of one dtype."""
    if in_float32(a, a.dtype):
        with torch.autocast("cpu", enabled=False):
            return (a.float() @ b.float()).to(a.dtype)
    return a @ b


def _product_dtype(x: Tensor) -> torch.dtype:
    """The dtype that autocast makes of a product's operand."""
    if x.is_meta or x.dtype == torch.float64:
        return x.dtype
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
