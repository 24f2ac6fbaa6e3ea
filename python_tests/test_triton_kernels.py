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


def rnn_calls():
    """Ops of the RNN family with one thing wrong, by what it is."""
    x, w, state = torch.zeros(3, 2, 20), torch.zeros(20, 5), torch.zeros(2, 5)
    lengths, packed = torch.tensor([1, 3]), torch.tensor([2, 2, 2])
    step = {"cell": 2, "x": x[0], "h_gates": x[0], "h": None, "c": state}
    for name, wrong in {
        "no such cell": {"cell": 4},
        "a part of a gate": {"x": torch.zeros(2, 21)},
        "h_gates of another batch": {"h_gates": x[0, :1]},
        "h_gates of another dtype": {"h_gates": x[0].bfloat16()},
        "an h for an lstm": {"h": state},
        "no c for an lstm": {"c": None},
        "a wide c": {"c": torch.zeros(2, 6)},
        "integers": {"x": x[0].long()},
    }.items():
        yield name, "rnn_gates", tuple((step | wrong).values())
    yield "dh", "rnn_gates_backward", (2, state[:1], None, *tuple(step.values())[1:])
    yield "g", "rnn_gates_double_backward", (2, state, *(None,) * 5, *tuple(step.values())[1:])
    walk = {"cell": 2, "x": x, "w": w, "b": None, "h0": state, "c0": state}
    walk |= {"lengths": lengths, "packed": None, "h_mask": None, "reset": None, "reverse": False}
    for name, wrong in {
        "no such cell": {"cell": -1},
        "x of two dimensions": {"x": x[0]},
        "packed x of three": {"lengths": None, "packed": packed},
        "narrow w_hh": {"w": w[:, :4]},
        "long b_hh": {"b": torch.zeros(21)},
        "one state": {"h0": state[0]},
        "another batch": {"h0": state[:1]},
        "no c0": {"c0": None},
        "16-bit c0": {"c0": state.half()},
        "a longer length": {"lengths": lengths + 1},
        "short lengths": {"lengths": lengths[:1]},
        "integer lengths": {"lengths": lengths.int()},
        "a narrow mask": {"h_mask": state[:, :4]},
        "a reset of floats": {"reset": torch.zeros(3, 2)},
        "a reset turned": {"reset": torch.zeros(2, 3) > 0},
        "lengths beside packed": {"x": x.flatten(0, 1), "packed": packed},
        "packed too few": {"x": x[0], "lengths": None, "packed": packed},
        "packed rising": {"x": x[:2, 0], "lengths": None, "packed": torch.tensor([1, 2])},
        "packed too many": {"x": x[0], "lengths": None, "packed": packed + 1},
        "packed of int32": {"x": x[0], "lengths": None, "packed": packed.int()},
    }.items():
        yield name, "rnn_sequence", (*(walk | wrong).values(), True)
    right = tuple(walk.values())
    gates, ends = torch.zeros(3, 2, 20), (None, None, None)
    back = "rnn_sequence_backward"
    yield "y", back, (2, *ends, x, gates, x[..., :5], *right[1:])
    yield "gates", back, (2, *ends, x[..., :5], gates[0], x[..., :5], *right[1:])
    yield "cells", back, (2, *ends, x[..., :5], gates, x[..., :4], *right[1:])
    yield "dy", back, (2, x, None, None, x[..., :5], gates, x[..., :5], *right[1:])
    yield "dc_n", back, (2, None, None, w, x[..., :5], gates, x[..., :5], *right[1:])


@pytest.mark.parametrize("name, op, arguments", list(rnn_calls()), ids=str)
def test_triton_rnn_errors_are_those_of_the_cpu(name, op, arguments):
    texts = []
    for space in ("hetkern", "hetkern_triton"):
        with pytest.raises(ValueError, match=f"{op}: .*wanted") as caught:
            getattr(getattr(torch.ops, space), op)(*arguments)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]


def moved(counted):
    """Floats read and written."""
    return tuple(
        sum(row.bytes for row in counted.rows if row.op == op) // 4 for op in ("load", "store")
    )


@pytest.mark.parametrize("cell", ["tanh", "relu", "lstm", "gru"])
@pytest.mark.parametrize("H", [1, 5, 40, 600])
def test_triton_rnn_gates_move_each_gate_and_state_once(cell, H):
    from hetkern.ops.rnn import CELLS, GATES, OPS

    B, lstm, gru = 7, cell == "lstm", cell == "gru"
    x, h_gates = normal(B, GATES[cell] * H), normal(B, GATES[cell] * H, seed=1)
    h, c = normal(B, H) if gru else None, normal(B, H) if lstm else None
    step, wide, one = (x, h_gates, h, c), x.numel(), B * H
    with triton_interpreter.traffic() as counted:
        h_next, _ = OPS["triton"].rnn_gates(CELLS.index(cell), *step)
    forward = 2 * wide + (one if lstm or gru else 0)
    assert moved(counted) == (forward, (2 if lstm else 1) * one)
    with triton_interpreter.traffic() as counted:
        OPS["triton"].rnn_gates_backward(CELLS.index(cell), h_next, c, *step)
    read = forward + one + (one if lstm else 0)
    assert moved(counted) == (read, (2 if gru else 1) * wide + (one if lstm or gru else 0))


def second_derivatives(step, cell, dtype, tensors, upstream, given):
    """Results, gradients and gradients of these, of a step or a walk of (x, h, c if lstm)."""
    leaves = [t.to(dtype).requires_grad_() for t in tensors]
    # c and its gradient are float32 beside 16 bits.
    wide = [torch.float64 if dtype == torch.float64 else torch.float32] * 2
    if cell == "lstm":
        leaves[-1] = tensors[-1].to(wide[0]).requires_grad_()
    results = step(*leaves)
    upstream = [u.to(y.dtype).requires_grad_() for u, y in zip(upstream, results, strict=False)]
    first = torch.autograd.grad(results, leaves, upstream, create_graph=True)
    given = [g.to(d.dtype) for g, d in zip(given, first, strict=True)]
    second = torch.autograd.grad(first, [*upstream, *leaves], given)
    return [t.detach() for t in (*results, *first, *second)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cell", ["tanh", "relu", "lstm", "gru"])
def test_triton_rnn_gates_have_right_second_derivatives(cell, dtype):
    from hetkern.ops.rnn import GATES, OPS
    from hetkern.ops.rnn_derivatives import gates_by
    from hetkern.reference.rnn import rnn_gates
    from hetkern.testing import assert_close_to_exact
    from hetkern.testing.cases.recurrent import torch_gates

    B, H = 5, 40
    shapes = [(B, GATES[cell] * H)] * 2 + [(B, H)] * (cell in ("lstm", "gru"))
    tensors = [normal(*s, seed=i).to(dtype) for i, s in enumerate(shapes)]
    upstream = [normal(B, H, seed=5 + i).to(dtype) for i in range(2)]
    given = [normal(*s, seed=8 + i).to(dtype) for i, s in enumerate(shapes)]

    def by(gates):
        def step(x, h_gates, state=None):
            h, c = (state, None) if cell == "gru" else (None, state)
            results = gates(cell, x, h_gates, h, c)
            return results if cell == "lstm" else results[:1]

        return step

    runs = (gates_by(OPS["triton"]), dtype), (rnn_gates, torch.float64), (torch_gates, dtype)
    results = [second_derivatives(by(g), cell, t, tensors, upstream, given) for g, t in runs]
    for i, (actual, exact, baseline) in enumerate(zip(*results, strict=True)):
        assert_close_to_exact(actual, exact, baseline, name=f"result {i}")


@pytest.mark.parametrize("rows", ["lengths", "packed"])
@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru"])
def test_triton_sequences_have_right_second_derivatives_and_batch_under_vmap(cell, rows):
    from hetkern.ops.rnn import CELLS, GATES, OPS
    from hetkern.reference.rnn import rnn_sequence
    from hetkern.testing import assert_close_to_exact
    from hetkern.testing.cases.recurrent import by_torch

    B, H, lengths = 3, 6, torch.tensor([3, 1, 0])
    columns = GATES[cell] * H
    packed = torch.tensor([2, 1, 1]) if rows == "packed" else None
    lengths = lengths if packed is None else None
    shapes = [(3, B, columns) if packed is None else (4, columns), (columns, H), (B, H)]
    shapes += [(B, H)] * (cell == "lstm")
    tensors = [normal(*s, seed=i) / (2 if i == 1 else 1) for i, s in enumerate(shapes)]
    upstream = [normal(*s, seed=5).float() for s in ((*shapes[0][:-1], H), (B, H), (B, H))]
    given = [normal(*s, seed=8 + i) for i, s in enumerate(shapes)]

    def by_reference(x, w, h0, c0=None):
        places = {"lengths": lengths, "batch_sizes": packed, "reverse": True}
        results = rnn_sequence(cell, x, w, None, h0, c0, **places)
        return results if cell == "lstm" else results[:2]

    def by_triton(x, w, h0, c0=None):
        op, places = OPS["triton"].rnn_sequence, (lengths, packed, None, None, True, True)
        results = op(CELLS.index(cell), x, w, None, h0, c0, *places)
        return results[: 3 if cell == "lstm" else 2]

    runs = (by_triton, torch.float32), (by_reference, torch.float64)
    runs += ((by_torch(by_reference), torch.float32),)
    results = [second_derivatives(f, cell, t, tensors, upstream, given) for f, t in runs]
    for i, (actual, exact, baseline) in enumerate(zip(*results, strict=True)):
        dims = tuple(range(exact.dim()))
        assert_close_to_exact(actual, exact, baseline, name=f"result {i}", dim=dims)

    def loss(x):
        return by_triton(x, *tensors[1:])[0].square().sum()

    many = torch.stack([tensors[0], -tensors[0]])
    got = torch.func.vmap(torch.func.grad(loss))(many)
    torch.testing.assert_close(got, torch.stack([torch.func.grad(loss)(x) for x in many]))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", [1, 2, 3])
def test_triton_lengths_out_of_range_touch_nothing_out_of_bounds(monkeypatch, cell, reverse):
    """As on a GPU, whose lengths the host does not read; the interpreter checks every access."""
    from hetkern.triton import rnn, rnn_checks

    T, H, columns = 3, 5, {1: 5, 2: 20, 3: 15}[cell]
    x, w, state = normal(T, 3, columns), normal(columns, H), normal(3, H)
    c, reset = state if cell == 2 else None, normal(T, 3) > 1
    monkeypatch.setattr(rnn_checks, "_check_lengths", lambda *_: None)
    runs = []
    for lengths in (torch.tensor([-3, 99, 2]), torch.tensor([0, T, 2])):
        walk = x, w, None, state, c, lengths, None, None, reset, reverse
        y, h_n, c_n, *saved = rnn.rnn_sequence(cell, *walk, True)
        back = rnn.rnn_sequence_backward(
            cell, y, h_n, c_n if c is not None else None, y, *saved, *walk
        )
        runs.append((y, h_n, c_n, *saved, *back))
    for wild, tame in zip(*runs, strict=True):
        assert torch.equal(wild, tame)


def test_triton_explains_an_rnn_by_its_tiles():
    weights = [(torch.ones(15, 4), torch.ones(15, 5), None, None)]
    x = torch.zeros(3, 2, 4)
    told = hetkern.explain(hetkern.gru, x, None, weights, impl="triton")
    assert told.plan == {
        "path": "step_by_step",
        "block": 8,
        "rows": 64,
        "warps": 4,
        "programs": 1,
    }
    with hetkern.record() as log:
        hetkern.gru(x, None, weights, impl="triton")
        hetkern.gru_cell(x[0], torch.zeros(2, 5), *weights[0][:2], impl="triton")
    assert log[0].plan == told.plan
    assert log[1].plan == {"path": "two products, one kernel"}


def test_triton_refuses_float64_by_name():
    with pytest.raises(NotImplementedError, match=r"rnn_gates: x_gates: .*float64"):
        x = torch.zeros(2, 5, dtype=torch.float64)
        torch.ops.hetkern_triton.rnn_gates(0, x, x, None, None)
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
