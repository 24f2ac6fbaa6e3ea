"""The inputs of torch's own tests (its OpInfo) through our drop-in functions."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as torch_functional
from torch import Tensor
from torch.testing._internal.common_methods_invocations import op_db

from hetkern.nn import functional
from hetkern.testing import assert_close_to_exact
from hetkern.testing.devices import normal

FUNCTIONS = {
    "softmax": functional.softmax,
    "log_softmax": functional.log_softmax,
    "nn.functional.cross_entropy": functional.cross_entropy,
    "nn.functional.scaled_dot_product_attention": functional.scaled_dot_product_attention,
}


def torchs_attention(query: Tensor, *args: Any, **options: Any) -> Tensor:
    """torch's by its kernel, which takes four dimensions, not by its steps, which round less."""
    if query.dim() != 3:
        return torch_functional.scaled_dot_product_attention(query, *args, **options)
    key, value, *more = args
    four = (t.unsqueeze(0) for t in (query, key, value))
    return torch_functional.scaled_dot_product_attention(*four, *more, **options).squeeze(0)


TORCHS = {"nn.functional.scaled_dot_product_attention": torchs_attention}
OPS = [op for op in op_db if op.name in FUNCTIONS]
DTYPES = (
    torch.float32,
    torch.bfloat16,
    *(pytest.param(dtype, marks=pytest.mark.proof) for dtype in (torch.float64, torch.float16)),
)
pytestmark = [
    pytest.mark.any_level,
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Implicit dimension choice
]


def in_float64(value: Any) -> Any:
    """A floating tensor, leaf again, or a dtype, in float64; anything else as it is."""
    if isinstance(value, torch.dtype):
        return torch.float64
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().double().requires_grad_(value.requires_grad)
    return value


def results(function: Callable[..., Tensor], args: tuple, options: dict) -> Iterator[Tensor]:
    """The output, and the gradients of what asks for one."""
    y = function(*args, **options)
    yield y.detach()
    leaves = [t for t in (*args, *options.values()) if isinstance(t, Tensor) and t.requires_grad]
    if y.requires_grad and leaves:
        # The same upstream whatever y's dtype: float16 and bfloat16 hold a quarter exactly.
        dy = (4 * normal(*y.shape)).round() / 4
        yield from torch.autograd.grad(y, leaves, dy.to(y.dtype))


def check(ours: Callable, torchs: Callable, args: tuple, options: dict, together: dict) -> int:
    """How many results of ours are judged by torch's: here, or those of its kind together."""
    exact_args = tuple(in_float64(value) for value in args)
    exact_options = {name: in_float64(value) for name, value in options.items()}
    exact = list(results(torchs, exact_args, exact_options))
    three = zip(results(ours, args, options), results(torchs, args, options), exact, strict=True)
    for k, (of_ours, of_torch, right) in enumerate(three):
        assert of_ours.shape == of_torch.shape
        if of_ours.dtype == torch.float64:
            torch.testing.assert_close(of_ours, right, equal_nan=True, check_dtype=False)
        elif torchs is torchs_attention:
            together.setdefault(k, []).append((of_ours, right, of_torch))
        elif of_ours.numel():
            assert_close_to_exact(of_ours, right, of_torch, dim=tuple(range(of_ours.dim())))
    return len(exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name + op.variant_test_name)
def test_a_function_on_torchs_samples(native, op, dtype):
    torch.manual_seed(0)  # what torch's samples are drawn with
    seen, together = 0, {}
    one_in = 4 if native.simulated and op.name in TORCHS else 1  # alike, and slow in an interpreter
    for sample in list(op.sample_inputs(native.device, dtype, requires_grad=True))[::one_in]:
        args = (sample.input, *sample.args)
        if sample.kwargs.get("dropout_p", 0.0) > 0.0:
            continue  # other numbers than torch's
        torchs = TORCHS.get(op.name, op.op)
        seen += check(FUNCTIONS[op.name], torchs, args, sample.kwargs, together)
    # Attention's samples are sharp and of a hundred numbers, so that torch's error of one is luck,
    # another on each processor: all outputs make a row, all gradients of the queries, and so on.
    for found in together.values():
        joined = (torch.cat([t.flatten() for t in ts]) for ts in zip(*found, strict=True))
        assert_close_to_exact(*joined)
    assert seen > 10
