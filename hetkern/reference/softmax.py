"""Softmax and log-softmax of scaled, capped, biased and masked scores, with a sink.

    z_j = scale x_j  or  softcap tanh(scale x_j / softcap),   + bias_j,   -inf where masked
    m   = max(max_j z_j, sink)
    y_j = exp(z_j - m) / (sum_k exp(z_k - m) + exp(sink - m))                  or its logarithm

Edges: a row with nothing kept (mask, causal) gives 0, or -inf for the logarithm, and all gradients
0, whatever x holds there; a row of -inf without a mask gives NaN, as torch does; NaN stays in its
row.
"""

import torch
from torch import Tensor

from hetkern.overrides import overridable
from hetkern.reference.scores import scaled_scores


@overridable
def softmax(
    x: Tensor,
    dim: int = -1,
    dtype: torch.dtype | None = None,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    causal: bool = False,
    sink: Tensor | None = None,
    log: bool = False,
) -> Tensor:
    """Softmax of ``z`` along ``dim`` (equations above), or its logarithm.

    Args:
        x: logits of any shape; float32, float64, float16 or bfloat16; any strides.
        dim: the dimension that sums to one (with the sink).
        dtype: x is cast to it first, as ``torch.softmax`` does; also the dtype of the result.
        scale: factor on x.
        softcap: bound of the scores before the bias; None for none.
        bias: added to the scores; any float dtype; broadcasts to x's shape.
        mask: boolean, True keeps; broadcasts to x's shape.
        causal: row i of the last two dimensions ``(Lq, Lk)`` keeps columns ``j <= i + Lk - Lq``.
        sink: one raw logit a row that takes part in the sum and is not returned; broadcasts to x's
            shape without ``dim``.
        log: return ``log y``.

    Returns:
        x's shape; ``dtype`` or x's dtype, rounded once from the accumulation dtype.

    Raises:
        IndexError: ``dim`` is out of range.
        ValueError: x is not floating, softcap is not above 0, mask is not boolean, bias, mask or
            sink do not broadcast to x, or ``causal`` with another ``dim`` than the last or fewer
            than two dimensions.
    """
    if dtype is not None:
        x = x.to(dtype)
    dim = _checked_dim(x, dim, softcap, mask, causal)
    if x.dim() == 0:
        return softmax(
            x[None], 0, scale=scale, softcap=softcap, bias=bias, mask=mask, sink=sink, log=log
        )[0]

    z, emptied = row_scores(
        x, dim, scale=scale, softcap=softcap, bias=bias, mask=mask, causal=causal, sink=sink
    )
    # Rows side by side: torch sums along another dimension without care (63 eps off at 50257).
    z = z.movedim(dim, -1).contiguous()
    y = torch.log_softmax(z, -1) if log else torch.softmax(z, -1)
    y = y.movedim(-1, dim).narrow(dim, 0, x.shape[dim])
    if emptied is not None:
        y = torch.where(emptied, -torch.inf if log else 0.0, y)
    return y.to(x.dtype)


def row_scores(
    x: Tensor,
    dim: int,
    *,
    scale: float,
    softcap: float | None,
    bias: Tensor | None,
    mask: Tensor | None,
    causal: bool,
    sink: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """``z`` in the accumulation dtype, the sink as one more column, and which rows are emptied.

    Emptied rows hold 0 instead of -inf, so that nothing that follows is NaN; None stands for none.
    """
    # What is not kept is zeroed before the scores: tanh would make a NaN there a NaN gradient.
    keep = _kept(x, mask, causal)
    z = scaled_scores(x if keep is None else torch.where(keep, x, 0.0), scale, softcap)
    if bias is not None:
        z = z + _broadcast("bias", bias, x.shape).to(z.dtype)
    emptied = None
    if keep is not None:
        emptied = ~keep.any(dim, keepdim=True)
        z = torch.where(keep, z, -torch.inf)
        z = torch.where(emptied, 0.0, z)
    if sink is not None:
        row_shape = x.shape[:dim] + x.shape[dim + 1 :]
        z = torch.cat([z, _broadcast("sink", sink, row_shape).to(z.dtype).unsqueeze(dim)], dim)
    return z, emptied


def _checked_dim(
    x: Tensor, dim: int, softcap: float | None, mask: Tensor | None, causal: bool
) -> int:
    """``dim`` counted from the front, once the arguments agree with one another."""
    dims = max(x.dim(), 1)
    if not -dims <= dim < dims:
        raise IndexError(f"softmax: dim: wanted one in [{-dims}, {dims - 1}], got {dim}")
    if not x.is_floating_point():
        raise ValueError(f"softmax: x: wanted a floating dtype, got {x.dtype}")
    if softcap is not None and not softcap > 0.0:
        raise ValueError(f"softmax: softcap: wanted a value above 0 or None, got {softcap}")
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"softmax: mask: wanted torch.bool (True keeps), got {mask.dtype}")
    if causal and (x.dim() < 2 or dim % dims != dims - 1):
        raise ValueError(
            "softmax: causal: wanted dim = -1 and at least two dimensions, "
            f"got dim = {dim} of shape {tuple(x.shape)}"
        )
    return dim % dims


def _broadcast(name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    """``tensor`` expanded to ``shape``."""
    sizes = zip(reversed(tensor.shape), reversed(shape), strict=False)
    if tensor.dim() > len(shape) or any(size not in (1, wanted) for size, wanted in sizes):
        raise ValueError(
            f"softmax: {name}: wanted a shape that broadcasts to {tuple(shape)}, "
            f"got {tuple(tensor.shape)}"
        )
    return tensor.expand(shape)


def _kept(x: Tensor, mask: Tensor | None, causal: bool) -> Tensor | None:
    """Where the scores count, in x's shape; None for everywhere."""
    keep = None if mask is None else _broadcast("mask", mask, x.shape)
    if causal:
        rows, columns = x.shape[-2:]
        triangle = torch.ones(rows, columns, dtype=torch.bool, device=x.device)
        triangle = triangle.tril(columns - rows).expand(x.shape)
        keep = triangle if keep is None else keep & triangle
    return keep
