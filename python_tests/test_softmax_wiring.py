"""Softmax inside PyTorch: opcheck, compile, export, autocast, workers, threads."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import hetkern
from hetkern.testing.devices import normal
from hetkern.testing.layouts import dense, expanded, permuted
from hetkern.testing.values.dispatched import ops_of

pytestmark = pytest.mark.any_level

OPTIONS = {
    "plain": {},
    "log": {"log": True},
    "features": {"scale": 0.5, "softcap": 2.0, "mask": torch.tensor([True, False, True, True])},
}


def softmax(x, log=False, **options):
    return (hetkern.log_softmax if log else hetkern.softmax)(x, **options)


def step(x, bias, sink):
    """A piece of a model with everything in it, and its gradient's way."""
    scores = x * 2.0
    y = hetkern.softmax(scores, scale=0.5, softcap=3.0, bias=bias, causal=True, sink=sink)
    return hetkern.log_softmax(y @ x, dim=1).sum(0)


@pytest.mark.sample(2)
@pytest.mark.parametrize("layout", [dense, permuted, expanded], ids=lambda f: f.__name__)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_softmax_ops_pass_opcheck(native, options, layout):
    """Schema, fake, autograd registration and AOT dispatch, with and without gradients."""
    x, sink = layout(normal(3, 4)), normal(3, seed=1)
    seen = ops_of(lambda x: softmax(x, **options), x)
    seen |= ops_of(lambda x: softmax(x, sink=sink, **options), x)
    assert len(seen) == 4
    for op, args in seen.values():
        for grad in (False, True):
            given = [
                layout(a).requires_grad_(grad)
                if torch.is_tensor(a) and a.is_floating_point()
                else a
                for a in args
            ]
            torch.library.opcheck(op, tuple(given))


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_softmax_fake_agrees_with_the_real_result(native, dtype, dim):
    x, sink = normal(3, 4, 5).bfloat16(), torch.zeros(1, dtype=torch.bfloat16)
    for layout in (dense, permuted, expanded):
        real = hetkern.softmax(layout(x), dim, dtype, sink=sink)
        with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = hetkern.softmax(mode.from_tensor(layout(x)), dim, dtype, sink=sink)
        assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


@pytest.mark.parametrize("dynamic", [False, True])
def test_softmax_compiles_whole_with_its_gradients(impl, dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for size in (3, 5, 8):
        x, bias, sink = normal(2, size, size), normal(size, seed=1), normal(1, size, seed=2)
        results = []
        for run in (step, compiled):
            leaves = [t.clone().requires_grad_() for t in (x, bias, sink)]
            y = run(*leaves)
            results.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
        for eager, traced in zip(*results, strict=True):
            torch.testing.assert_close(traced, eager)


def test_softmax_compiles_once_for_dynamic_shapes(impl):
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(step, backend=counter, fullgraph=True, dynamic=True)
    for size in (3, 5, 8):
        compiled(normal(2, size, size), normal(size), normal(1, size))
    assert counter.frame_count == 1


@pytest.mark.parametrize("dynamic", [pytest.param(False, marks=pytest.mark.proof), True])
def test_softmax_compiles_with_inductor(dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic)
    x, bias, sink = normal(2, 6, 6).requires_grad_(), normal(6, seed=1), normal(1, 6, seed=2)
    results = []
    for run in (step, compiled):
        y = run(x, bias, sink)
        results.append((y, *torch.autograd.grad(y.square().sum(), x)))
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager)


def test_softmax_exports_and_the_program_runs_on_another_length(impl):
    class Model(torch.nn.Module):
        def forward(self, x):
            return hetkern.softmax(x, dim=1, scale=0.5) + hetkern.log_softmax(x)

    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(Model(), (normal(3, 4),), dynamic_shapes={"x": {0: rows}})
    x = normal(7, 4)
    torch.testing.assert_close(program.module()(x), Model()(x))


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_softmax_under_autocast_has_the_dtype_that_torch_has(impl, dtype, log):
    x = normal(3, 4).to(dtype)
    torchs = torch.log_softmax if log else torch.softmax
    with torch.autocast(impl.device, dtype=torch.bfloat16):
        assert softmax(x, log=log).dtype == torchs(x, -1).dtype
        scores = normal(3, 4) @ normal(4, 4)
        assert scores.dtype == softmax(scores, log=log).dtype == torch.bfloat16


def test_softmax_under_autocast_takes_float32_bias_and_sink_with_16_bit_scores(impl):
    bias, sink = normal(4, seed=1).requires_grad_(), normal(3, seed=2).requires_grad_()
    with torch.autocast(impl.device, dtype=torch.bfloat16):
        scores = normal(3, 4) @ normal(4, 4)
        y = hetkern.softmax(scores, bias=bias, sink=sink)
    y.square().sum().backward()
    wanted = hetkern.softmax(scores.float(), bias=bias, sink=sink)
    torch.testing.assert_close(y.float(), wanted, rtol=2**-6, atol=2**-8)
    assert bias.grad.dtype == sink.grad.dtype == torch.float32


class Rows(Dataset):
    """Rows that are softmaxed in the worker that loads them."""

    def __init__(self, impl):
        self.impl = impl

    def __len__(self):
        return 8

    def __getitem__(self, i):
        return hetkern.softmax(normal(64, 1000, seed=i), impl=self.impl)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_softmax_runs_in_dataloader_workers(start):
    hetkern.softmax(normal(512, 1000))  # the parent's own threads run before it forks
    rows = Rows("auto")
    loader = DataLoader(
        rows, batch_size=4, num_workers=2, multiprocessing_context=start, timeout=120
    )
    loaded = torch.cat(list(loader))
    torch.testing.assert_close(loaded, torch.stack([rows[i] for i in range(8)]))


def test_softmax_runs_from_several_threads_at_once(impl):
    rows = 257 if impl.name in ("reference", "cpu") else 6  # emulated, a row takes long
    drawn = [normal(rows, 513, seed=seed) for seed in range(9)]

    def work(i):
        x = drawn[i].clone().requires_grad_()
        y = hetkern.softmax(x, impl=impl.name)
        return y.detach(), *torch.autograd.grad(y, x, drawn[i + 1])

    alone = [work(i) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(work, [*range(8)] * 4))
    for i, results in enumerate(together):
        for got, wanted in zip(results, alone[i % 8], strict=True):
            assert torch.equal(got, wanted)


def test_softmax_saves_no_more_than_its_result(native):
    x = normal(64, 64).requires_grad_()
    saved = []

    def pack(t):
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = hetkern.softmax(x)
    assert [t.data_ptr() for t in saved] == [y.data_ptr()]


def test_softmax_refuses_backward_after_its_result_was_written_to(native):
    x = normal(4, 4).requires_grad_()
    y = hetkern.softmax(x)
    y.detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
