"""What only a real GPU shows: graphs, streams, autocast and torch.compile on its own tensors.

Without a GPU the tests that need no GPU's own machinery run on the emulated one.
"""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import hetkern
from hetkern import impl as choice
from hetkern.testing.emulation import emulated_cuda, why_no_emulation

WITHOUT = None if torch.cuda.is_available() else "torch finds no CUDA GPU"
DEVICE = "cpu" if WITHOUT else "cuda"


@pytest.fixture(params=["cuda", "triton"])
def impl(request):
    """Each implementation that serves CUDA tensors; one that cannot on a GPU fails, not skips."""
    if not WITHOUT:
        assert choice.why_not(request.param, "cuda", torch.float32) is None
        yield request.param
    elif request.param == "cuda":
        if reason := why_no_emulation():
            pytest.skip(f"{WITHOUT}, and {reason}")
        with emulated_cuda():
            yield "cuda"
    else:
        if reason := choice.why_not("triton", "cpu", torch.float32):
            pytest.skip(f"{WITHOUT}, and {reason}")
        yield "triton"


@pytest.fixture(params=["cuda", "triton"])
def on_gpu(request):
    """As ``impl``, on a GPU alone."""
    if WITHOUT:
        pytest.skip(WITHOUT)
    assert choice.why_not(request.param, "cuda", torch.float32) is None
    return request.param


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def targets(rows, classes):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(classes, (rows,), generator=generator).to(DEVICE)


def train_step(x, target, impl):
    """Softmax and cross-entropy with their gradients."""
    y = hetkern.softmax(x, -1, impl=impl)
    loss = hetkern.cross_entropy(x, target, impl=impl) + (y * y).sum()
    return loss, torch.autograd.grad(loss, x)[0]


def torchs_step(x, target):
    loss = F.cross_entropy(x, target) + torch.softmax(x, -1).square().sum()
    return loss, torch.autograd.grad(loss, x)[0]


def captured(step):
    """A graph of a step, and the tensors that a replay fills."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = step()
    return graph, outs


@pytest.mark.parametrize("length", [100, 4096, 70000])
def test_a_captured_graph_replays_on_new_values(on_gpu, length):
    target = targets(8, length)
    x = normal(8, length).requires_grad_()
    graph, outs = captured(lambda: train_step(x, target, on_gpu))
    for seed in (1, 2, 3):
        with torch.no_grad():
            x.copy_(normal(8, length, seed=seed))
        for tensor in outs:
            tensor.detach().fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        for got, wanted in zip(outs, torchs_step(x, target), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", ["dense", "lengths", "packed", "packed, reset"])
def test_a_captured_recurrence_replays_on_new_values(on_gpu, rows):
    T, B, H, sizes = 5, 4, 32, torch.tensor([4, 3, 3, 1, 1])
    weights = [(normal(4 * H, H), normal(4 * H, H, seed=1), None, None)]
    weights = [tuple(w if w is None else (0.2 * w).requires_grad_() for w in weights[0])]
    options = {"batch_sizes": sizes} if "packed" in rows else {}
    if rows == "lengths":
        options["lengths"] = torch.tensor([5, 0, 2, 3]).to(DEVICE)
    if "reset" in rows:
        options["reset"] = (torch.arange(B * T).reshape(B, T) % 3 == 0).to(DEVICE)
    shape = (int(sizes.sum()), H) if "packed" in rows else (T, B, H)
    x = normal(*shape).requires_grad_()

    def step(impl):
        y, _ = hetkern.lstm(x, None, weights, impl=impl, **options)
        return y, *torch.autograd.grad(y.square().sum(), [x, *weights[0][:2]])

    graph, outs = captured(lambda: step(on_gpu))
    for seed in (1, 2):
        with torch.no_grad():
            x.copy_(normal(*shape, seed=seed))
        graph.replay()
        torch.cuda.synchronize()
        for got, wanted in zip(outs, step("reference"), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["dense", "window", "packed", "decode"])
def test_captured_attention_replays_on_new_values(on_gpu, kind):
    heads, D, ends = 4, 64, torch.tensor([0, 5, 5, 40], device=DEVICE)
    shape = {"packed": (40, heads, D), "decode": (2, heads, 1, D)}.get(kind, (2, heads, 40, D))
    keys = (2, heads, 40, D) if kind == "decode" else shape
    q = normal(*shape).requires_grad_()
    k, v = (normal(*keys, seed=seed).requires_grad_() for seed in (1, 2))

    def step(impl=on_gpu):
        if kind == "packed":
            given = {"causal": True, "impl": impl}
            out = hetkern.attention_varlen(q, k, v, ends, ends, 35, 35, **given)
        elif kind == "decode":
            return (hetkern.attention_decode(q, k, v, seen, impl=impl).detach(),)
        else:
            window = (8, 0) if kind == "window" else None
            out = hetkern.attention(q, k, v, causal=True, window=window, impl=impl)
        return out.detach(), *torch.autograd.grad(out.square().sum(), [q, k, v])

    seen = torch.tensor([7, 40], device=DEVICE)
    graph, outs = captured(step)
    for seed in (3, 4):
        with torch.no_grad():
            q.copy_(normal(*shape, seed=seed))
        graph.replay()
        torch.cuda.synchronize()
        for got, wanted in zip(outs, step("reference"), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("length", [100, 70000])
def test_kernels_run_on_the_stream_that_is_current(on_gpu, length):
    """A stream that sleeps first: a kernel on another stream would read what is not there yet."""
    target, wanted = targets(8, length), normal(8, length, seed=4)
    for call in (
        lambda x: hetkern.softmax(x, -1, impl=on_gpu),
        lambda x: hetkern.cross_entropy(x, target, reduction="none", impl=on_gpu),
    ):
        right = call(wanted)
        x = torch.full_like(wanted, float("nan"))
        torch.cuda.synchronize()
        second = torch.cuda.Stream()
        with torch.cuda.stream(second):
            torch.cuda._sleep(200_000_000)  # about a tenth of a second
            x.copy_(wanted)
            got = call(x)
        second.synchronize()
        assert torch.equal(got, right)


def test_autocast_gives_the_values_and_dtypes_that_torch_gives(impl):
    target = targets(16, 1000)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        scores = normal(16, 64) @ normal(64, 1000, seed=1)
        assert scores.dtype == torch.bfloat16
        y = hetkern.softmax(scores, -1, impl=impl)
        assert y.dtype == torch.softmax(scores, -1).dtype
        loss = hetkern.cross_entropy(scores, target, impl=impl)
        wanted = F.cross_entropy(scores, target)
    torch.testing.assert_close(loss, wanted.float(), rtol=1e-4, atol=1e-5)
    exact = torch.softmax(scores.double(), -1)
    torch.testing.assert_close(y.double(), exact, rtol=2**-7, atol=2**-9)


def test_a_compiled_step_gives_what_the_eager_one_gives(impl):
    torch._dynamo.reset()

    def loss(x, target):
        y = hetkern.softmax(x * 2, -1, impl=impl)
        return hetkern.cross_entropy(x, target, impl=impl) + y.square().sum()

    compiled = torch.compile(loss, backend="aot_eager" if WITHOUT else "inductor", fullgraph=True)
    x, target = normal(8, 1000).requires_grad_(), targets(8, 1000)
    results = []
    for run in (loss, compiled):
        value = run(x, target)
        results.append((value, torch.autograd.grad(value, x)[0]))
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager)


def test_results_are_on_the_device_and_come_from_the_implementation_named(impl):
    with hetkern.record() as log:
        y = hetkern.softmax(normal(4, 1000), -1, impl=impl)
    assert y.device.type == DEVICE
    assert [call.impl for call in log] == [impl]


def test_no_call_waits_for_the_gpu(on_gpu):
    """Every synchronisation raises; the checks of targets, ends and lengths need none."""
    x, target = normal(8, 4096).requires_grad_(), targets(8, 4096)
    packed, ends = normal(40, 2, 64).requires_grad_(), torch.tensor([0, 5, 40], device=DEVICE)
    rows, lengths = normal(6, 3, 32).requires_grad_(), torch.tensor([6, 0, 2], device=DEVICE)
    gru = torch.nn.GRU(32, 32, device=DEVICE)

    def step():
        train_step(x, target, on_gpu)
        out = hetkern.attention_varlen(
            packed, packed, packed, ends, ends, 35, 35, causal=True, impl=on_gpu
        )
        torch.autograd.grad(out.sum(), packed)
        y, _ = hetkern.gru(rows, None, [tuple(gru.parameters())], lengths=lengths, impl=on_gpu)
        torch.autograd.grad(y.sum(), rows)

    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_auto_takes_cuda_on_a_gpu():
    if WITHOUT:
        pytest.skip(WITHOUT)
    with hetkern.record() as log:
        hetkern.softmax(normal(4, 1000), -1)
        hetkern.cross_entropy(normal(4, 1000), targets(4, 1000))
    assert [call.impl for call in log] == ["cuda", "cuda"]


BAD_TARGET = """
import torch, hetkern
target = torch.tensor([1, 7, 2], device="cuda")
hetkern.cross_entropy(torch.randn(3, 5, device="cuda"), target, impl={impl!r})
torch.cuda.synchronize()
"""


def test_a_bad_target_is_named_and_traps(on_gpu):
    """In a process of its own: after a trap no call of it works."""
    done = subprocess.run(
        [sys.executable, "-c", BAD_TARGET.format(impl=on_gpu)], text=True, capture_output=True
    )
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "hetkern::cross_entropy: target: wanted" in said
    assert "CUDA error" in said


def test_without_a_gpu_the_implementations_say_so_by_name():
    if WITHOUT is None:
        pytest.skip("there is a GPU")
    reason = choice.why_not("cuda", "cuda")
    assert reason is not None and reason.startswith(
        ("this torch is a build without CUDA", "torch finds no CUDA GPU", "the native library")
    )
