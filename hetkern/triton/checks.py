"""What the Triton families check of their arguments: the checks of csrc/, with the same messages.

(csrc/common/operands.cpp, csrc/softmax.cpp, csrc/cross_entropy.cpp)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def value_error(op: str, argument: str, wanted: str, got: object) -> NoReturn:
    """Op, argument, wanted, got."""
    raise ValueError(f"hetkern::{op}: {argument}: wanted {wanted}, got {got}")


def name_of(dtype: torch.dtype) -> str:
    """float32 and the like."""
    return str(dtype).removeprefix("torch.")


def shape_text(shape: Sequence[int]) -> str:
    """A shape as Python writes a tuple."""
    return str(tuple(shape))


def check_float(op: str, name: str, t: Tensor) -> None:
    """ValueError unless ``t`` is a float; float64, which Triton's kernels lack, by name."""
    if t.dtype == torch.float64:
        raise NotImplementedError(
            f"hetkern::{op}: {name}: wanted float32, float16 or bfloat16 of impl='triton', got "
            "float64: its kernels have no float64"
        )
    if t.dtype not in FLOATS:
        value_error(op, name, "float32, float64, float16 or bfloat16", name_of(t.dtype))


def check_like(op: str, name: str, t: Tensor, x: Tensor, dtype: torch.dtype) -> None:
    """ValueError unless ``t`` has this dtype and stands on ``x``'s device."""
    if t.dtype != dtype:
        value_error(op, name, name_of(dtype), name_of(t.dtype))
    if t.device != x.device:
        value_error(op, name, "a tensor on the first argument's device", "one on another")


def check_shape(op: str, name: str, t: Tensor, wanted: Sequence[int]) -> None:
    """ValueError unless ``t`` has this shape."""
    if tuple(t.shape) != tuple(wanted):
        value_error(op, name, f"shape {shape_text(wanted)}", shape_text(t.shape))


def check_broadcasts(op: str, name: str, shape: Sequence[int], sizes: Sequence[int]) -> None:
    """ValueError unless ``shape`` broadcasts to ``sizes``."""
    pairs = zip(reversed(shape), reversed(sizes), strict=False)
    if len(shape) > len(sizes) or any(have not in (1, size) for have, size in pairs):
        value_error(op, name, f"a shape that broadcasts to {shape_text(sizes)}", shape_text(shape))


def checked_dim(op: str, dim: int, rank: int) -> int:
    """``dim`` counted from the front; a scalar has one dimension."""
    dims = max(rank, 1)
    if not -dims <= dim < dims:
        raise IndexError(f"hetkern::{op}: dim: wanted a value in [{-dims}, {dims - 1}], got {dim}")
    return dim % dims


def check_softcap(op: str, softcap: float) -> None:
    """ValueError if it is below 0 or NaN."""
    if not softcap >= 0:
        value_error(op, "softcap", "a value above 0, or 0 for none", f"{softcap:g}")


def check_length(op: str, columns: int) -> None:
    """Columns are counted in 32 bits."""
    if columns >= 2**31:
        raise NotImplementedError(f"hetkern::{op}: the Triton kernels take rows below 2^31 columns")


def checked_output_type(op: str, x: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    """The type of y: that of x, or float32 for 16-bit x."""
    if wanted is None or wanted == x:
        return x
    if wanted == torch.float32 and x in (torch.float16, torch.bfloat16):
        return wanted
    value_error(op, "dtype", f"{name_of(x)} or, for a 16-bit x, float32", name_of(wanted))


def checked_queries(op: str, causal: bool, dim: int, sizes: Sequence[int]) -> int:
    """L of a causal call; 0 if it is not causal."""
    if not causal:
        return 0
    if len(sizes) < 2 or dim != len(sizes) - 1:
        wanted = "dim = -1 and at least two dimensions"
        value_error(op, "causal", wanted, f"dim {dim} of shape {shape_text(sizes)}")
    return sizes[-2]


def check_cross_entropy(
    op: str,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    any_dim: int,
    ignore_index: int,
    label_smoothing: float,
    softcap: float,
) -> int:
    """Whether the arguments of a loss fit together; returns the class dimension."""
    sizes = tuple(x.shape)
    if not sizes:
        value_error(op, "input", "a class dimension", "a scalar")
    dim = checked_dim(op, any_dim, len(sizes))
    if sizes[dim] == 0:
        value_error(op, "input", "at least one class", f"shape {shape_text(sizes)}")
    check_length(op, sizes[dim])
    if target.is_floating_point():
        check_like(op, "target", target, x, x.dtype)
        check_shape(op, "target", target, sizes)
        if ignore_index >= 0:
            wanted = "a negative one beside class probabilities"
            value_error(op, "ignore_index", wanted, ignore_index)
    else:
        if target.dtype != torch.int64:
            wanted = "int64 class indices, or class probabilities of input's dtype"
            value_error(op, "target", wanted, name_of(target.dtype))
        check_like(op, "target", target, x, torch.int64)
        check_shape(op, "target", target, sizes[:dim] + sizes[dim + 1 :])
    if weight is not None:
        check_like(op, "weight", weight, x, torch.float32)
        check_shape(op, "weight", weight, sizes[dim : dim + 1])
    check_softcap(op, softcap)
    if not 0 <= label_smoothing <= 1:
        value_error(op, "label_smoothing", "a value in [0, 1]", f"{label_smoothing:g}")
    return dim


def check_target_range(op: str, target: Tensor, classes: int, ignore_index: int) -> None:
    """IndexError for a class out of range on the CPU; a GPU is not waited for, its kernel traps."""
    if not target.is_cpu or target.is_floating_point():
        return
    rows = target.reshape(-1)
    bad = ((rows < 0) | (rows >= classes)) & (rows != ignore_index)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise IndexError(
            f"hetkern::{op}: target: wanted a class in [0, {classes}) or ignore_index "
            f"{ignore_index}, got {int(rows[row])} in row {row}"
        )
