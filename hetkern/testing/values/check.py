"""``check_op``: an operation and its gradients against the float64 reference, case by case."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hetkern.testing.devices import placed_on
from hetkern.testing.layouts import LAYOUTS
from hetkern.testing.values.budget import Dims, assert_within_budget, error_of
from hetkern.testing.values.calls import Call, Op, random_upstream, run, same_bits

DRAWS = (1, 4, 32)  #: in which torch's error is sampled, as long as a result is over its budget
_FINER = (  # beside the repro of a failure without a baseline
    "\nThe result is {0}, the arguments {1}: torch's error in {1} counts in units of {0}. If the "
    "operation rounds to {1} in between by design, give baseline=, torch's way to do the same."
)
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
    #: What makes a row of each result, by its name, where ``dim`` does not say it.
    rows: Callable[[str, Tensor], Dims] | None = None


#: Called with every case and dtype that passed: a test run finds out what it has shown.
listeners: list[Callable[[Case, torch.dtype], None]] = []


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
    baseline: Op | None = None,
    layouts: Sequence[str] = ("dense",),
    seed: int = 0,
    device: torch.device | str | None = None,
    drawn: dict[Any, Any] | None = None,
) -> Summary:
    """Check ``op`` on every case × dtype × layout, forward and backward.

    Each result, and each gradient under a random upstream gradient, must be within the error budget
    of ``reference`` run in float64; a second run must give the same bits; the inputs must keep
    theirs. A tensor of the first argument's shape is judged row by row along the case's ``dim``;
    outputs without that dimension element by element; other gradients, being sums over many rows,
    whole.

    A result that is over its budget gets another look, in which torch's own error and the largest
    magnitude are the worst of up to 32 draws: the same call with all its numbers, the upstream
    gradient's too, scaled by up to three hundredths. In one draw a short row may be exact by luck.

    Args:
        op: the operation under test; returns a tensor or a tuple of tensors.
        reference: takes the same arguments in any floating dtype and is differentiable.
        cases: the calls.
        dtypes: floating dtypes of the inputs.
        baseline: the torch computation whose error is the yardstick. None for ``reference`` in the
            dtype under test, in float32 for float64. One that is given also runs in float64 and
            must take another way than ``reference`` there: what they differ by is the exact
            value's own error.
        layouts: names from ``hetkern.testing.layouts.LAYOUTS``, for all tensors at once and for the
            upstream gradient.
        seed: of the upstream gradients.
        device: where ``op`` runs: every tensor of a case is moved there. None for where they are.
            What it is judged by is computed on the CPU.
        drawn: what one call computes of ``reference`` and ``baseline``, and a later call takes from
            it, as where many mutants meet one case. Of one reference and one baseline; a case is
            known by its name.

    Returns:
        How many comparisons were made, and the worst.

    Raises:
        AssertionError: the first failure, with a one-line repro.
    """
    summary = Summary()
    for case in cases:
        for dtype in dtypes:
            for layout in layouts:
                _check(op, reference, baseline, case, dtype, layout, seed, device, drawn, summary)
    return summary


def _check(
    op: Op,
    reference: Op,
    baseline: Op | None,
    case: Case,
    dtype: torch.dtype,
    layout: str,
    seed: int,
    device: torch.device | str | None,
    drawn: dict[Any, Any] | None,
    summary: Summary,
) -> None:
    """One case in one dtype and layout."""
    where = f"{case.name}, {dtype}, {layout}"
    repro = case.repro or (
        f"check_op(op, reference, [{case.name!r}], [{dtype}], layouts=[{layout!r}], seed={seed})"
    )
    template = Call(case.args, case.kwargs).map(_cast(torch.float32)).map(_cast(dtype))
    given = (template.map(lambda t: t.to(device)) if device else template).map(LAYOUTS[layout])

    # The operation, twice, on its device.
    before = given.map(torch.clone)
    upstream = _upstream(seed, layout, case.dim)
    results = run(op, given, constant=case.constant, upstream=upstream)
    again = run(op, given, constant=case.constant, upstream=upstream)
    for name, value in given.tensors().items():
        if not same_bits(value, before.tensors()[name]):
            raise AssertionError(f"{where}: {name} was written to\nrepro: {repro}")
    for name, value in results.items():
        if value.device != given.args[0].device:
            raise AssertionError(f"{where}: {name} is on {value.device}\nrepro: {repro}")
        if not same_bits(value, again[name]):
            raise AssertionError(f"{where}: {name} has other bits on a second run\nrepro: {repro}")

    # The exact value, and the same computation by torch, on the CPU. The upstream gradient is
    # rounded as the operation's own outputs are.
    call = template.map(Tensor.cpu).map(LAYOUTS[layout])
    results = {name: value.cpu() for name, value in results.items()}
    types = [value.dtype for value in results.values()]
    yardsticks = [(baseline or reference, dtype if dtype != torch.float64 else torch.float32)]
    if dtype == torch.float64 and baseline is not None:
        yardsticks.append((baseline, dtype))

    def referred(by: Op, working: torch.dtype, draw: int) -> dict[str, Tensor]:
        scaled, known = _scaled(1.0 + draw / 1024), {} if drawn is None else drawn
        which = case.name, dtype, layout, seed, draw, by is reference, working, tuple(types)
        if which not in known:
            known[which] = run(
                by,
                call.map(scaled).map(_cast(working)),
                constant=case.constant,
                upstream=lambda i, y: scaled(upstream(i, y.to(types[i]))).to(y.dtype),
            )
        return known[which]

    exact: list[dict[str, Tensor]] = []
    by_torch: list[dict[str, Tensor]] = []

    def look(draws: int) -> Iterator[tuple[str, float]]:
        for draw in range(len(exact) // len(yardsticks), draws):
            exact.extend([referred(reference, torch.float64, draw)] * len(yardsticks))
            by_torch.extend(referred(by, working, draw) for by, working in yardsticks)
        if results.keys() != exact[0].keys():
            raise AssertionError(
                f"{where}: got {sorted(results)}, wanted {sorted(exact[0])}\nrepro: {repro}"
            )
        for name, value in results.items():
            wanted = [run_exactly[name] for run_exactly in exact]
            measured = [run_by_torch[name] for run_by_torch in by_torch]
            for part in _parts(name, call, case):
                rows = _rows(name, value, call.args[0].shape, case)
                hint = _FINER.format(value.dtype, dtype) if _is_finer(value, dtype) else ""
                told = {
                    "name": f"{where}: {name}",
                    "seed": seed,
                    "repro": repro + hint * (not baseline),
                }
                yield f"{where}: {name}", _judged(value, wanted, measured, part, rows, told)

    for draws in DRAWS:
        try:
            with placed_on("cpu"):
                ratios = list(look(draws))
        except AssertionError:
            if draws == DRAWS[-1]:
                raise
        else:
            break
    for label, ratio in ratios:
        summary.add(ratio, label)
    for listener in listeners:
        listener(case, dtype)


def _judged(
    value: Tensor,
    exact: Sequence[Tensor],
    by_torch: Sequence[Tensor],
    part: Tensor | None,
    rows: Dims,
    told: dict[str, Any],
) -> float:
    """Error ÷ limit of one result, or of a part of it, where there is one exact value a draw."""
    if value.shape != exact[0].shape or not value.is_floating_point():
        if not any(torch.equal(value, wanted) for wanted in (exact[0], by_torch[0])):
            raise AssertionError("{name} differs from the reference\nrepro: {repro}".format(**told))
        return 0.0
    errors = [error_of(by, wanted, value.dtype) for by, wanted in zip(by_torch, exact, strict=True)]
    judged = [value, exact[0], torch.stack(errors).amax(0)]
    magnitude = torch.stack([wanted.abs() for wanted in exact]).amax(0)
    if value.dtype != torch.float64:  # the exact value has its own eps, of the tensor's largest
        eps = torch.finfo(torch.float64).eps / torch.finfo(value.dtype).eps
        largest = torch.where(magnitude.isfinite(), magnitude, 0.0).max() if value.numel() else 0.0
        magnitude = magnitude.clamp_min(eps * largest)
    judged.append(magnitude)
    if part is not None:
        judged = [torch.where(part, t, 0.0) for t in judged]
    return assert_within_budget(*judged, dim=rows, **told)


def _parts(name: str, call: Call, case: Case) -> list[Tensor | None]:
    """The parts of a result that are judged on their own; None for the whole."""
    if case.apart is None or name != "gradient of argument 0":
        return [None]
    apart = case.apart(call)
    return [apart, ~apart]


def _upstream(seed: int, layout: str, dim: Dims) -> Op:
    """Random upstream gradients in a layout, never constant along a row: softmax's is 0 then."""
    along = (dim,) if isinstance(dim, int) else dim

    def laid_out(dy: Tensor) -> Tensor:
        constant = layout == "expanded" and any(d % max(dy.dim(), 1) == 0 for d in along)
        return dy if constant else LAYOUTS[layout](dy)

    return random_upstream(seed, laid_out)


def _rows(name: str, value: Tensor, shape: torch.Size, case: Case) -> Dims:
    """What makes a row of a result."""
    if case.rows is not None:
        return case.rows(name, value)
    if value.shape == shape:
        return case.dim
    return tuple(range(value.dim())) if name.startswith("gradient") else ()


def _is_finer(value: Tensor, dtype: torch.dtype) -> bool:
    """Whether a result has more digits than what it was computed from."""
    floating = value.is_floating_point()
    return floating and torch.finfo(value.dtype).eps < torch.finfo(dtype).eps


def _scaled(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda t: t * factor if t.is_floating_point() else t


def _cast(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda t: t.to(dtype) if t.is_floating_point() else t
