"""Attention inside PyTorch: opcheck, fakes, compile, export, autocast, threads, explain, record."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import hetkern
from hetkern.testing.cases.attention import cumulated
from hetkern.testing.devices import normal
from hetkern.testing.values.dispatched import dispatched

pytestmark = [pytest.mark.any_level, pytest.mark.sample(1, simulated=6)]

ENDS = cumulated([2, 0, 3])
FEATURES = {
    "plain": {},
    "causal": {"causal": True},
    "features": {
        "window": (2, 1),
        "softcap": 2.0,
        "bias": normal(1, 2, 3, 4, seed=4),
        "mask": torch.tensor([True, False, True, True]),
        "alibi_slopes": normal(2, seed=5).abs(),
        "sink": normal(2, seed=6),
    },
    "dropout": {"dropout_p": 0.5},
}
KINDS = [*FEATURES, "packed", "decode"]


def inputs(kind, layout="heads outside"):
    if kind == "packed":
        return [normal(5, heads, 8, seed=s) for s, heads in enumerate((2, 1, 1))]
    shapes = (2, 2, 3, 8), (2, 1, 4, 8), (2, 1, 4, 8)
    drawn = [normal(*shape, seed=s) for s, shape in enumerate(shapes)]
    if layout == "heads inside":
        drawn = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in drawn]
    return drawn


def call(kind, q, k, v, **more):
    if kind == "packed":
        return hetkern.attention_varlen(q, k, v, ENDS, ENDS, 3, 3, causal=True, **more)
    if kind == "decode":
        return hetkern.attention_decode(q, k, v, torch.tensor([4, 2]), **more)
    return hetkern.attention(q, k, v, **FEATURES[kind], **more)


@pytest.mark.sample(6, simulated=15)
@pytest.mark.parametrize("layout", ["heads outside", "heads inside"])
@pytest.mark.parametrize("kind", KINDS)
def test_attention_ops_pass_opcheck(native, kind, layout):
    """Schema, fake, autograd registration and AOT dispatch, with and without gradients."""
    leaves = [t.requires_grad_() for t in inputs(kind, layout)]
    with dispatched("hetkern") as recorder:
        out, lse = call(kind, *leaves, return_lse=True)
        torch.autograd.grad(out.square().sum() + lse.sum(), leaves)
    seen = {op.name().split("::")[1]: (op, args) for op, args in recorder.calls}
    assert seen.keys() == {"attention", "attention_backward"}
    constant = ("out", "row_max", "log_sum")
    for op, args in seen.values():
        torch.library.opcheck(op, args)
        names = [argument.name for argument in op._schema.arguments]
        with_gradients = [
            a.detach().clone().requires_grad_()
            if torch.is_tensor(a) and a.is_floating_point() and name not in constant
            else a
            for name, a in zip(names, args, strict=True)
        ]
        torch.library.opcheck(op, tuple(with_gradients))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", ["heads outside", "heads inside"])
@pytest.mark.parametrize("kind", ["plain", "packed", "decode"])
def test_attention_fake_agrees_with_the_real_result(native, kind, layout, dtype):
    given = [t.to(dtype) for t in inputs(kind, layout)]
    real = call(kind, *given, return_lse=True)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = call(kind, *map(mode.from_tensor, given), return_lse=True)
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def block(x, weight, bias):
    """A piece of a model: heads from a projection, attention, heads back."""
    B, L, _ = x.shape
    q, k, v = (x @ weight).view(B, L, 3, 2, 4).permute(2, 0, 3, 1, 4)
    out, lse = hetkern.attention(q, k, v, causal=True, window=(3, 0), bias=bias, return_lse=True)
    return out.transpose(1, 2).reshape(B, L, 8).square().sum() + lse.sum()


@pytest.mark.parametrize("dynamic", [False, True])
def test_attention_compiles_whole_with_its_gradients(impl, dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for L in (4, 7, 9):
        results = []
        for run in (block, compiled):
            given = normal(2, L, 8), normal(8, 24, seed=1), normal(2, 1, L, seed=2)
            leaves = [t.requires_grad_() for t in given]
            loss = run(*leaves)
            results.append((loss, *torch.autograd.grad(loss, leaves)))
        for eager, traced in zip(*results, strict=True):
            torch.testing.assert_close(traced, eager)


def test_attention_compiles_once_for_dynamic_shapes(impl):
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(block, backend=counter, fullgraph=True, dynamic=True)
    for L in (4, 7, 9):
        compiled(normal(2, L, 8), normal(8, 24, seed=1), normal(2, 1, L, seed=2))
    assert counter.frame_count == 1


def test_attention_compiles_with_inductor():
    torch._dynamo.reset()
    given = normal(2, 6, 8).requires_grad_(), normal(8, 24, seed=1), normal(2, 1, 6, seed=2)
    results = []
    for run in (block, torch.compile(block, fullgraph=True)):
        loss = run(*given)
        results.append((loss, *torch.autograd.grad(loss, given[0])))
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager)


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", ["packed", "decode", "dropout"])
def test_every_kind_of_call_compiles_whole(impl, kind):
    torch._dynamo.reset()
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    given = inputs(kind)
    results = []
    for run in (call, compiled):
        torch.manual_seed(0)
        leaves = [t.clone().requires_grad_() for t in given]
        out = run(kind, *leaves)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager)
    if kind == "dropout":
        assert not torch.equal(compiled(kind, *given), compiled(kind, *given))


def test_a_scale_that_changes_between_calls_of_a_graph_is_right_in_each(impl):
    torch._dynamo.reset()

    def scaled(q, scale):
        return hetkern.attention(q, q, q, scale=scale)

    compiled = torch.compile(scaled, backend="aot_eager", fullgraph=True, dynamic=True)
    q = normal(1, 2, 5, 8)
    for scale in (0.5, 0.25, 2.0):
        torch.testing.assert_close(compiled(q, scale), scaled(q, scale))


def test_attention_exports_and_the_program_runs_on_another_length(impl):
    class Model(torch.nn.Module):
        def forward(self, q, k):
            return hetkern.attention(q, k, k, causal=True)

    length = torch.export.Dim("length", min=2)
    shapes = {"q": {2: length}, "k": {2: length}}
    given = normal(2, 2, 5, 8), normal(2, 1, 5, 8)
    program = torch.export.export(Model(), given, dynamic_shapes=shapes)
    q, k = normal(2, 2, 9, 8), normal(2, 1, 9, 8)
    torch.testing.assert_close(program.module()(q, k), Model()(q, k))


@pytest.mark.parametrize("kind", KINDS)
def test_attention_under_autocast_has_its_dtype_and_float32_gradients(impl, kind):
    leaves = [t.requires_grad_() for t in inputs(kind)]
    with torch.autocast(impl.device, dtype=torch.bfloat16):
        torch.manual_seed(0)
        out, lse = call(kind, *leaves, return_lse=True)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    gradients = torch.autograd.grad(out.float().square().sum(), leaves)
    assert {g.dtype for g in gradients} == {torch.float32}
    torch.manual_seed(0)
    wanted, _ = call(kind, *(t.bfloat16().float() for t in leaves), return_lse=True)
    torch.testing.assert_close(out.float(), wanted, rtol=2**-6, atol=2**-6)
    with torch.autocast(impl.device, dtype=torch.bfloat16):
        assert call("plain", *(t.double() for t in inputs("plain"))).dtype == torch.float64


def test_attention_runs_from_several_threads_at_once(impl):
    drawn = [normal(2, 2, 20, 8, seed=seed) for seed in range(9)]

    def work(i):
        q = drawn[i].clone().requires_grad_()
        out = hetkern.attention(q, drawn[i + 1], q, causal=True, impl=impl.name)
        return out.detach(), *torch.autograd.grad(out, q, drawn[i + 1])

    alone = [work(i) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(work, [*range(8)] * 4))
    for i, results in enumerate(together):
        assert all(map(torch.equal, results, alone[i % 8]))


def test_attention_saves_nothing_of_the_size_of_its_scores(native):
    L = 64
    saved = []
    leaves = [normal(1, 1, L, 8, seed=s).requires_grad_() for s in range(3)]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()), lambda t: t):
        hetkern.attention(*leaves, causal=True)
    assert max(saved) == L * 8


def test_attention_refuses_backward_after_its_result_was_written_to(native):
    q = normal(1, 1, 4, 4).requires_grad_()
    out = hetkern.attention(q, q, q)
    out.detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.sample(1)
def test_explain_and_record_tell_what_runs(impl):
    q, k, v = inputs("plain")
    told = hetkern.explain(hetkern.attention, q, k, v, causal=True)
    assert (told.op, told.impl, told.shape) == ("hetkern.attention", impl.name, (2, 2, 3, 8))
    with hetkern.record() as log:
        for kind in ("causal", "packed", "decode"):
            call(kind, *inputs(kind))
    names = ["attention", "attention_varlen", "attention_decode"]
    assert [entry.op for entry in log] == [f"hetkern.{name}" for name in names]
    assert log[0].plan == told.plan


@pytest.mark.parametrize("layout", ["heads outside", "heads inside"])
def test_the_result_is_laid_out_as_the_queries_are(native, layout):
    if layout == "heads outside":
        q, strides = normal(2, 3, 5, 8), (120, 40, 8, 1)
    else:
        q, strides = normal(2, 5, 3, 8).transpose(1, 2), (120, 8, 24, 1)
    assert hetkern.attention(q, q, q).stride() == strides
