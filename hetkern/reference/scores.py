"""What every operation on logits does first: accumulate in float32 or float64, scale, cap."""

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for float32 and the 16-bit types."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def scaled_scores(x: Tensor, scale: float, softcap: float | None) -> Tensor:
    """``scale * x`` or ``softcap * tanh(scale * x / softcap)``, accumulation dtype, x's shape."""
    x = x.to(accumulation_dtype(x.dtype))
    if softcap is None:
        return x if not isinstance(scale, Tensor) and scale == 1.0 else scale * x
    return softcap * torch.tanh(x * (scale / softcap))
