"""Our Triton kernels in the interpreter: plans, bits, errors, numbers.

The families' own tests run with ``--impl triton``; test_triton_interpreter.py starts these.
"""

import importlib.util

import pytest
import torch
import torch.nn.functional as F

import hetkern
from hetkern.testing import triton_interpreter

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
if not triton_interpreter.active():
    pytest.skip("test_triton_interpreter.py runs it in a process", allow_module_level=True)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("length", [3, 64, 257, 3000, 17000])
def test_triton_bits_of_a_row_do_not_depend_on_its_neighbours_or_layout(length):
    rows = 40 if length < 1000 else 3
    x, target = normal(rows, length), torch.arange(rows) % length
    views = {"dense": x, "offset": torch.empty(x.numel() + 1)[1:].view(x.shape).copy_(x)}
    views["padded"] = torch.empty(rows, length + 3)[:, :length].copy_(x)
    wanted = hetkern.softmax(x, impl="triton")
    losses = hetkern.cross_entropy(x, target, reduction="none", impl="triton")
    for name, view in views.items():
        assert torch.equal(hetkern.softmax(view, impl="triton"), wanted), name
        loss = hetkern.cross_entropy(view, target, reduction="none", impl="triton")
        assert torch.equal(loss, losses), name
    turned = hetkern.softmax(x.t().contiguous(), 0, impl="triton")
    assert torch.equal(turned.t(), wanted)
    last = hetkern.softmax(x[-1:], impl="triton")
    assert torch.equal(last, wanted[-1:])


@pytest.mark.parametrize("N, path", [(1, "kept"), (16384, "kept"), (16385, "looped")])
def test_triton_softmax_plan_depends_on_the_length_alone(N, path):
    from hetkern.triton.softmax import plan

    plans = [plan(M, N, torch.bfloat16) for M in (1, 100, 100_000)]
    assert plans[0]["path"] == path and plans[0] == plans[1] == plans[2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"dim": 5},
        {"bias": torch.zeros(4)},
        {"mask": torch.ones(3, 3) > 0},
        {"mask": torch.zeros(2, 3)},
        {"sink": torch.zeros(2, 3)},
        {"dim": 0, "causal": True},
        {"bias": torch.zeros(3).bfloat16()},
    ],
    ids=str,
)
def test_triton_errors_are_those_of_the_cpu(wrong):
    texts = []
    for impl in ("cpu", "triton"):
        with pytest.raises((ValueError, IndexError)) as caught:
            hetkern.softmax(torch.zeros(2, 3), impl=impl, **wrong)
        texts.append((caught.type, str(caught.value)))
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"target": torch.tensor([0, 3])},
        {"target": torch.tensor([0])},
        {"target": torch.zeros(2, dtype=torch.int32)},
        {"target": torch.zeros(2, 4)},
        {"target": torch.zeros(2, 3), "ignore_index": 1},
        {"weight": torch.ones(2)},
        {"label_smoothing": 1.5},
        {"input": torch.zeros(2, 0)},
    ],
    ids=str,
)
def test_triton_loss_errors_are_those_of_the_cpu(wrong):
    arguments = {"input": torch.zeros(2, 3), "target": torch.tensor([0, 2])} | wrong
    texts = []
    for impl in ("cpu", "triton"):
        with pytest.raises((ValueError, IndexError)) as caught:
            hetkern.cross_entropy(**arguments, impl=impl)
        texts.append((caught.type, str(caught.value)))
    assert texts[0] == texts[1]


def test_triton_refuses_float64_by_name():
    with pytest.raises(NotImplementedError, match="float64"):
        hetkern.softmax(torch.zeros(2, 3, dtype=torch.float64), impl="triton")


def test_triton_functions_keep_their_accuracy():
    import triton
    import triton.language as tl

    from hetkern.triton import rows

    @triton.jit
    def apply(x, y, F: tl.constexpr, BLOCK: tl.constexpr):
        i = tl.arange(0, BLOCK)
        tl.store(y + i, F(tl.load(x + i)))

    ramp = torch.linspace(0, 1, 1 << 14)
    checks = {
        rows.exp: (-80 * ramp, torch.exp),
        rows.log1p: (torch.cat([ramp[: 1 << 13] ** 8, 1000 * ramp[1 << 13 :]]), torch.log1p),
        rows.expm1: (-20 * ramp**4, torch.expm1),
        rows.tanh: (20 * ramp**4 - 10, torch.tanh),
    }
    for function, (x, exact) in checks.items():
        y = torch.empty_like(x)
        apply[(1,)](x, y, F=function, BLOCK=1 << 14)
        wanted = exact(x.double())
        error = (y.double() - wanted).abs() / wanted.abs().clamp_min(1e-30)
        assert error.max() < 3 * torch.finfo(torch.float32).eps, function.__name__


def test_triton_softmax_equals_torch_through_its_gradients():
    x = normal(5, 300).requires_grad_()
    results = []
    for f in (lambda: hetkern.softmax(x, impl="triton"), lambda: F.softmax(x, -1)):
        y = f()
        results.append((y, *torch.autograd.grad(y, x, normal(5, 300, seed=1))))
    torch.testing.assert_close(results[0], results[1])
