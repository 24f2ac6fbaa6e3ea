"""Cross-entropy inside PyTorch: opcheck, compile, export, autocast, workers, threads, memory."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

import hetkern
from hetkern.testing.devices import normal
from hetkern.testing.layouts import dense, expanded, permuted
from hetkern.testing.values.dispatched import ops_of

pytestmark = pytest.mark.any_level

OPTIONS = {
    "plain": {},
    "none": {"reduction": "none"},
    "features": {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 2.0, "weight": torch.ones(4)},
}


@pytest.fixture
def target(impl):
    return torch.tensor([0, 3, -100])


def step(x, target, weight):
    """The end of a model with everything in it."""
    loss, stats = hetkern.cross_entropy(
        x * 2.0, target, weight, label_smoothing=0.1, z_loss=0.1, softcap=5.0, return_stats=True
    )
    return loss + stats.entropy.mean() + hetkern.cross_entropy(x, target)


@pytest.mark.sample(6, simulated=9)
@pytest.mark.parametrize("layout", [dense, permuted, expanded], ids=lambda f: f.__name__)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_cross_entropy_ops_pass_opcheck(native, options, layout, target):
    """Schema, fake, autograd registration and AOT dispatch, with and without gradients."""
    x, p = layout(normal(3, 4)), normal(3, 4, seed=1).softmax(1)
    seen = ops_of(lambda x: hetkern.cross_entropy(x, target, **options), x)
    seen |= ops_of(lambda x, p: hetkern.cross_entropy(x, p, **options), x, p)
    assert len(seen) >= 2
    for op, args in seen.values():
        for grad in (False, True):
            if grad and "double_backward" in op.name():
                continue
            given = [
                layout(a).requires_grad_(grad)
                if torch.is_tensor(a) and a.is_floating_point()
                else a
                for a in args
            ]
            torch.library.opcheck(op, tuple(given))


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("shape", [(4,), (3, 4), (3, 4, 2)])
def test_cross_entropy_fake_agrees_with_the_real_result(native, shape, reduction):
    rows = shape[:-1] if len(shape) == 1 else shape[:1] + shape[2:]
    x, target = normal(*shape).bfloat16(), torch.zeros(rows, dtype=torch.long)
    options = {"reduction": reduction, "return_stats": True}
    real, real_stats = hetkern.cross_entropy(x, target, **options)
    with torch._subclasses.FakeTensorMode() as mode:
        fake, fake_stats = hetkern.cross_entropy(
            mode.from_tensor(x), mode.from_tensor(target), **options
        )
    for a, b in zip((fake, *fake_stats), (real, *real_stats), strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


@pytest.mark.parametrize("dynamic", [False, True])
def test_cross_entropy_compiles_whole_with_its_gradients(impl, dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for rows in (3, 5, 8):
        x, target = normal(rows, 6).requires_grad_(), torch.arange(rows) % 6
        results = []
        for run in (step, compiled):
            loss = run(x, target, torch.ones(6))
            results.append((loss, *torch.autograd.grad(loss, x)))
        for eager, traced in zip(*results, strict=True):
            torch.testing.assert_close(traced, eager)


def test_cross_entropy_compiles_once_for_dynamic_shapes(impl):
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(step, backend=counter, fullgraph=True, dynamic=True)
    for rows in (3, 5, 8):
        compiled(normal(rows, 6), torch.arange(rows) % 6, torch.ones(6))
    assert counter.frame_count == 1


@pytest.mark.parametrize("dynamic", [pytest.param(False, marks=pytest.mark.proof), True])
def test_cross_entropy_compiles_with_inductor_and_counts_ignored_rows(dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic)
    x, target = normal(7, 6).requires_grad_(), torch.tensor([0, -100, 5, 3, -100, -100, 2])
    results = []
    for run in (step, compiled):
        loss = run(x, target, torch.ones(6))
        results.append((loss, *torch.autograd.grad(loss, x)))
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager)


def test_cross_entropy_exports_and_the_program_runs_on_another_length(impl):
    class Model(torch.nn.Module):
        def forward(self, x, target):
            return hetkern.cross_entropy(x, target, z_loss=0.1)

    rows = {0: torch.export.Dim("rows", min=2)}
    given = (normal(3, 4), torch.tensor([0, 3, 1]))
    shapes = {"x": rows, "target": rows}
    program = torch.export.export(Model(), given, dynamic_shapes=shapes)
    x, target = normal(7, 4), torch.arange(7) % 4
    torch.testing.assert_close(program.module()(x, target), Model()(x, target))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cross_entropy_under_autocast_is_float32_as_torchs(impl, dtype, target):
    x = normal(3, 4).to(dtype)
    weight = torch.ones(4)
    with torch.autocast(impl.device, dtype=torch.bfloat16):
        loss = hetkern.cross_entropy(x, target, weight)
        assert loss.dtype == torch.float32
        scores = normal(3, 4) @ normal(4, 4)
        mixed = hetkern.cross_entropy(scores, target, weight)
    torch.testing.assert_close(loss, F.cross_entropy(x.float(), target))
    torch.testing.assert_close(mixed, F.cross_entropy(scores.float(), target))


class Rows(Dataset):
    """Losses that are taken in the worker that loads them."""

    def __len__(self):
        return 8

    def __getitem__(self, i):
        return hetkern.cross_entropy(normal(64, 1000, seed=i), torch.arange(64))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_cross_entropy_runs_in_dataloader_workers(start):
    hetkern.cross_entropy(normal(512, 1000), torch.arange(512))  # threads run before the fork
    loader = DataLoader(
        Rows(), batch_size=4, num_workers=2, multiprocessing_context=start, timeout=120
    )
    loaded = torch.cat(list(loader))
    torch.testing.assert_close(loaded, torch.stack([Rows()[i] for i in range(8)]))


def test_cross_entropy_runs_from_several_threads_at_once(impl):
    rows = 257 if impl.name in ("reference", "cpu") else 6  # emulated, a row takes long
    drawn, target = [normal(rows, 513, seed=seed) for seed in range(8)], torch.arange(rows)

    def work(i):
        x = drawn[i].clone().requires_grad_()
        loss = hetkern.cross_entropy(x, target, z_loss=0.1, impl=impl.name)
        return loss.detach(), *torch.autograd.grad(loss, x)

    alone = [work(i) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(work, [*range(8)] * 4))
    for i, results in enumerate(together):
        for got, wanted in zip(results, alone[i % 8], strict=True):
            assert torch.equal(got, wanted)


def test_cross_entropy_saves_its_logits_and_nothing_else_of_their_size(native):
    x = normal(64, 512).requires_grad_()
    saved = []

    def pack(t):
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        hetkern.cross_entropy(x, torch.arange(64), label_smoothing=0.1, z_loss=0.1)
    large = [t for t in saved if t.numel() >= x.numel()]
    assert [t.data_ptr() for t in large] == [x.data_ptr()]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_cross_entropy_forward_allocates_no_second_logits(native, options):
    """Allocations as the dispatcher's profiler sees them: all far below the logits' size."""
    rows = 32 if native.simulated else 256
    x, target = normal(rows, 4000), torch.arange(rows)
    given = {**options, "weight": torch.ones(4000)} if "weight" in options else options
    with torch.profiler.profile(profile_memory=True) as profile:
        hetkern.cross_entropy(x, target, **given)
    usage = "cpu_memory_usage" if x.is_cpu else "device_memory_usage"
    largest = max((getattr(event, usage) for event in profile.events()), default=0)
    assert 0 < largest < x.numel()


def test_cross_entropy_refuses_backward_after_its_logits_were_written_to(native, target):
    x = normal(3, 4).requires_grad_()
    logits = x * 1.0
    loss = hetkern.cross_entropy(logits, target)
    logits.detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
