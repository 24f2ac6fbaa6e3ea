"""The error budget: how far from the exact value a result may be.

Row by row, with errors taken against float64,

    max_j |actual_j - exact_j|  <=  2 (max_j |torch_j - exact_j| + eps max_j |exact_j|)

where eps belongs to the result's dtype and torch is the same computation by plain torch operations
in the same dtype. So the limit follows the data: no tolerance is chosen by hand, and a result of
zeros, a stale row or a dropped term cannot hide under one chosen for another size of number. Half
an eps would fail one correct softmax row in a thousand. A float64 result has twice the limit: what
it is held to was computed in float64 as well.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Dims = int | tuple[int, ...]


class Widening:
    """Units of eps that a result may be off beside its rounding, where approximations are (0)."""

    units = 0


widening = Widening()


def assert_close_to_exact(
    actual: Tensor,
    exact: Tensor | Callable[[torch.dtype], Tensor],
    baseline: Tensor | None = None,
    *,
    dim: Dims = -1,
    dtype: torch.dtype | None = None,
    name: str = "result",
    seed: int | None = None,
    repro: str | None = None,
) -> float:
    """Raise AssertionError unless every row of ``actual`` is within the error budget.

    NaN and the infinities must stand exactly where the exact value has them once rounded to the
    result's dtype.

    Args:
        actual: the result under test; any floating dtype, any shape.
        exact: the float64 value, of the same shape; or a function that runs the reference with its
            floating inputs cast to the dtype that it is given.
        baseline: the torch computation's result. None calls ``exact(dtype)``; for a float64
            result ``exact(torch.float32)``, since float64 cannot judge itself. The error of a
            baseline coarser than the result counts in units of eps (its inputs must be the same
            values: draw them in float32).
        dim: the dimension, or dimensions, that make up a row; ``()`` makes each element its own.
        dtype: of the inputs; None for the dtype of ``actual``.
        name: what a failure calls the result.
        seed: printed by a failure.
        repro: one line that reproduces the failure, printed by it.

    Returns:
        The largest error ÷ limit of any row, at most 1.

    Raises:
        AssertionError: names the worst row, its error ÷ limit, the seed and the repro.
        ValueError: no baseline, and ``exact`` is not a function.
    """
    if not isinstance(exact, Tensor):
        if baseline is None:
            inputs = dtype or actual.dtype
            baseline = exact(torch.float32 if inputs == torch.float64 else inputs)
        exact = exact(torch.float64)
    if baseline is None:
        raise ValueError("assert_close_to_exact: give a baseline, or exact as a function of dtype")
    if actual.shape != exact.shape or baseline.shape != exact.shape:
        raise AssertionError(
            f"{name}: shape {tuple(actual.shape)} (baseline {tuple(baseline.shape)}), "
            f"wanted {tuple(exact.shape)}{_told(seed, repro)}"
        )
    torch_error = error_of(baseline, exact, actual.dtype)
    return assert_within_budget(
        actual,
        exact,
        torch_error,
        exact.detach().double().abs(),
        dim=dim,
        name=name,
        seed=seed,
        repro=repro,
    )


def error_of(baseline: Tensor, exact: Tensor, dtype: torch.dtype) -> Tensor:
    """A torch computation's error, element by element, in float64; 0 where either is not finite.

    A baseline coarser than ``dtype`` has its error scaled down by the ratio of the two eps.
    """
    coarser = min(1.0, torch.finfo(dtype).eps / torch.finfo(baseline.dtype).eps)
    return coarser * _finite_distance(baseline.detach(), exact.detach().double())


def assert_within_budget(
    actual: Tensor,
    exact: Tensor,
    torch_error: Tensor,
    magnitude: Tensor,
    *,
    dim: Dims = -1,
    name: str = "result",
    seed: int | None = None,
    repro: str | None = None,
) -> float:
    """``assert_close_to_exact`` for a known torch error and magnitude, element by element."""
    told = _told(seed, repro)
    actual, exact = actual.detach(), exact.detach().double()
    if actual.numel() == 0:
        return 0.0
    _assert_same_pattern(actual, exact.to(actual.dtype), name, told)
    error = _finite_distance(actual, exact)
    info = torch.finfo(actual.dtype)
    largest = _row_max(torch.where(magnitude.isfinite(), magnitude, 0.0), dim)
    units = 1 + widening.units if actual.dtype == torch.float32 else 1
    step = (units * info.eps * largest).clamp_min(info.smallest_normal * info.eps)
    torch_error = _row_max(torch_error, dim)
    limit = (4.0 if actual.dtype == torch.float64 else 2.0) * (torch_error + step)

    ratio = error / limit
    worst = int(ratio.argmax())
    worst_ratio = float(ratio.reshape(-1)[worst])
    if worst_ratio > 1.0:
        where = _unravel(worst, actual.shape)
        terms = [t.expand_as(ratio).reshape(-1)[worst].item() for t in (error, limit, torch_error)]
        over = int((_row_max(ratio, dim) > 1.0).sum())
        raise AssertionError(
            f"{name}: error ÷ limit is {worst_ratio:.4g} in the worst row, at {where}: "
            f"got {actual[where].item():.9g}, exact {exact[where].item():.9g}, "
            f"error {terms[0]:.3g}, limit {terms[1]:.3g} (torch's own error {terms[2]:.3g}); "
            f"{over} of {_row_max(ratio, dim).numel()} rows over, "
            f"{actual.dtype}, shape {tuple(actual.shape)}{told}"
        )
    return worst_ratio


def _told(seed: int | None, repro: str | None) -> str:
    """The end of a failure."""
    seeded = "" if seed is None else f"; seed {seed}"
    return seeded + (f"\nrepro: {repro}" if repro else "")


def _assert_same_pattern(actual: Tensor, wanted: Tensor, name: str, told: str) -> None:
    """NaN, inf and -inf stand where they should and nowhere else."""
    same = torch.where(wanted.isfinite(), actual.isfinite(), actual == wanted)
    same |= wanted.isnan() & actual.isnan()
    if not bool(same.all()):
        where = _unravel(int((~same).reshape(-1).nonzero()[0]), same.shape)
        raise AssertionError(
            f"{name}: got {actual[where].item()} where {wanted[where].item()} belongs, at {where}, "
            f"and {int((~same).sum()) - 1} more of {same.numel()}{told}"
        )


def _finite_distance(value: Tensor, exact: Tensor) -> Tensor:
    """``|value - exact|``, 0 where either is not finite (the pattern is checked by itself)."""
    distance = (value.double() - exact).abs()
    return torch.where(distance.isfinite(), distance, 0.0)


def _row_max(values: Tensor, dim: Dims) -> Tensor:
    """The largest of each row, kept in place."""
    return values if dim == () or values.dim() == 0 else values.amax(dim, keepdim=True)


def _unravel(flat: int, shape: torch.Size) -> tuple[int, ...]:
    """The index of element ``flat`` in row-major order."""
    index = []
    for size in reversed(shape):
        flat, last = divmod(flat, size)
        index.append(last)
    return tuple(reversed(index))
