"""``check_op``: an operation and its gradients against the float64 reference, case by case."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hetkern.testing.budget import Dims, assert_close_to_exact
from hetkern.testing.calls import Call, Op, random_upstream, run, same_bits
from hetkern.testing.layouts import LAYOUTS

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    """One call to check.

    Floating tensors are templates: they are rounded to float32, cast to the dtype under test and
    laid out anew, so that all dtypes and the exact value see the same numbers.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dim: Dims = -1  #: what makes a row of a tensor that has the first argument's shape
    constant: tuple[str, ...] = ()  #: floating arguments without a gradient
    #: Which elements of the first argument's gradient are judged apart from the rest of their row,
    #: which they dwarf: a loss's targets, beside which a bfloat16 row of zeros would pass.
    apart: Callable[[Call], Tensor] | None = None
    repro: str | None = None  #: one line that reproduces this case


@dataclass
class Summary:
    """What ``check_op`` compared."""

    comparisons: int = 0
    worst: float = 0.0  #: the largest error ÷ limit
    where: str = "nowhere"  #: the result that had it

    def add(self, ratio: float, where: str) -> None:
        """Count one comparison."""
        self.comparisons += 1
        if ratio > self.worst:
            self.worst, self.where = ratio, where

    def __str__(self) -> str:
        """One line."""
        return f"{self.comparisons} comparisons, worst error ÷ limit {self.worst:.3g}: {self.where}"


def check_op(
    op: Op,
    reference: Op,
    cases: Iterable[Case],
    dtypes: Sequence[torch.dtype] = DTYPES,
    *,
    layouts: Sequence[str] = ("dense",),
    seed: int = 0,
) -> Summary:
    """Check ``op`` on every case × dtype × layout, forward and backward.

    Each result, and each gradient under a random upstream gradient, must be within the error budget
    of ``reference`` run in float64; a second run must give the same bits; the inputs must keep
    theirs. A tensor of the first argument's shape is judged row by row along the case's ``dim``;
    outputs without that dimension element by element; other gradients, being sums over many rows,
    whole.

    Args:
        op: the operation under test; returns a tensor or a tuple of tensors.
        reference: takes the same arguments in any floating dtype and is differentiable.
        cases: the calls.
        dtypes: floating dtypes of the inputs.
        layouts: names from ``hetkern.testing.layouts.LAYOUTS``, for all tensors at once and for the
            upstream gradient.
        seed: of the upstream gradients.

    Returns:
        How many comparisons were made, and the worst.

    Raises:
        AssertionError: the first failure, with a one-line repro.
    """
    summary = Summary()
    for case in cases:
        for dtype in dtypes:
            for layout in layouts:
                _check(op, reference, case, dtype, layout, seed, summary)
    return summary


def _check(
    op: Op,
    reference: Op,
    case: Case,
    dtype: torch.dtype,
    layout: str,
    seed: int,
    summary: Summary,
) -> None:
    """One case in one dtype and layout."""
    where = f"{case.name}, {dtype}, {layout}"
    repro = case.repro or (
        f"check_op(op, reference, [{case.name!r}], [{dtype}], layouts=[{layout!r}], seed={seed})"
    )
    call = Call(case.args, case.kwargs).map(_cast(torch.float32)).map(_cast(dtype))
    call = call.map(LAYOUTS[layout])

    # The operation, twice.
    before = call.map(torch.clone)
    upstream = random_upstream(seed, LAYOUTS[layout])
    given: list[Tensor] = []

    def recorded(index: int, output: Tensor) -> Tensor:
        given.append(upstream(index, output))
        return given[-1]

    results = run(op, call, constant=case.constant, upstream=recorded)
    again = run(op, call, constant=case.constant, upstream=upstream)
    for name, value in call.tensors().items():
        if not same_bits(value, before.tensors()[name]):
            raise AssertionError(f"{where}: {name} was written to\nrepro: {repro}")
    for name, value in results.items():
        if not same_bits(value, again[name]):
            raise AssertionError(f"{where}: {name} has other bits on a second run\nrepro: {repro}")

    # The exact value, and the same computation by torch.
    def referred(working: torch.dtype) -> dict[str, Tensor]:
        return run(
            reference,
            call.map(_cast(working)),
            constant=case.constant,
            upstream=lambda index, output: given[index].to(output.dtype),
        )

    exact = referred(torch.float64)
    baseline = referred(torch.float32 if dtype == torch.float64 else dtype)
    if results.keys() != exact.keys():
        raise AssertionError(
            f"{where}: got {sorted(results)}, wanted {sorted(exact)}\nrepro: {repro}"
        )
    shape = call.args[0].shape
    parts: list[tuple[Tensor, ...]]
    for name, value in results.items():
        label = f"{where}: {name}"
        if not value.is_floating_point():
            if not (torch.equal(value, exact[name]) or torch.equal(value, baseline[name])):
                raise AssertionError(f"{label} differs from the reference\nrepro: {repro}")
            summary.add(0.0, label)
            continue
        triple = (value, exact[name], baseline[name])
        parts = [triple]
        if case.apart and name == "gradient of argument 0":
            apart = case.apart(call)
            parts = [tuple(torch.where(part, t, 0.0) for t in triple) for part in (apart, ~apart)]
        for part in parts:
            ratio = assert_close_to_exact(
                *part, dim=_rows(name, value, shape, case.dim), name=label, seed=seed, repro=repro
            )
            summary.add(ratio, label)


def _rows(name: str, value: Tensor, shape: torch.Size, dim: Dims) -> Dims:
    """What makes a row of a result."""
    if value.shape == shape:
        return dim
    return tuple(range(value.dim())) if name.startswith("gradient") else ()


def _cast(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda t: t.to(dtype) if t.is_floating_point() else t
