"""The oracle itself: cells and sequences against torch.nn in float64, and its edges."""

import pytest
import torch
from recurrent import CELLS, by_torch, call, module, weights_of
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import pack_padded_sequence

import hetkern
from hetkern.reference import rnn_gates, rnn_sequence
from hetkern.testing.devices import normal

F64 = torch.float64
T, B, IN, H = 5, 4, 3, 4
VARIANTS = {
    "plain": {},
    "no bias": {"bias": False},
    "bidirectional": {"bidirectional": True},
    "three layers": {"layers": 3},
    "two layers, both ways": {"layers": 2, "bidirectional": True, "bias": False},
    "projection": {"proj": 2, "layers": 2, "bidirectional": True},
}


def random(*shape, seed=0):
    return normal(*shape, seed=seed, dtype=F64)


def states(made, batch=B):
    directions = 2 if made.bidirectional else 1
    rows = made.num_layers * directions
    h0 = random(rows, batch, made.proj_size or H, seed=1)
    return (h0, random(rows, batch, H, seed=2)) if isinstance(made, nn.LSTM) else (h0,)


def same(got, wanted, leaves):
    """Values, and gradients of every leaf under the same random upstream."""
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
    upstream = [random(*y.shape, seed=7 + i) for i, y in enumerate(wanted)]
    gradients = (
        torch.autograd.grad(ys, leaves, upstream, retain_graph=True) for ys in (got, wanted)
    )
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("kind", ["time first", "batch first", "unbatched", "packed", "unsorted"])
def test_reference_equals_torch_with_its_gradients(cell, variant, kind):
    if "proj" in variant and cell != "lstm":
        pytest.skip("torch projects an LSTM alone")
    made = module(cell, IN, H, **variant)
    state = tuple(s.requires_grad_() for s in states(made))
    x = random(T, B, IN).requires_grad_()
    leaves = [x, *state, *made.parameters()]
    options = {"bidirectional": made.bidirectional, "impl": "reference"}
    weights = weights_of(made)
    if kind == "time first":
        return same(call(cell, x, state, weights, **options), by_torch(made, x, state), leaves)
    if kind == "batch first":
        made.batch_first = True
        y, *ends = by_torch(made, x.transpose(0, 1), state)
        got = call(cell, x.transpose(0, 1), state, weights, batch_first=True, **options)
        return same(got, (y, *ends), leaves)
    if kind == "unbatched":
        one = tuple(s[:, 0] for s in state)
        got = call(cell, x[:, 0], one, weights, **options)
        return same(got, by_torch(made, x[:, 0], one), leaves)
    lengths = torch.tensor([5, 4, 2, 1] if kind == "packed" else [2, 5, 1, 4])

    def pack(t):
        return pack_padded_sequence(t, lengths, enforce_sorted=kind == "packed")

    packed = pack(x)
    order = packed.sorted_indices
    ours = state if order is None else tuple(s[:, order] for s in state)
    got = call(cell, packed.data, ours, weights, batch_sizes=packed.batch_sizes, **options)
    if order is not None:
        back = packed.unsorted_indices
        got = got[0], *(s[:, back] for s in got[1:])
    same(got, by_torch(made, packed, state), leaves)

    # The same rows by their lengths, in the order in which they came.
    y, *ends = call(cell, x, state, weights, lengths=lengths, **options)
    same((pack(y).data, *ends), by_torch(made, pack(x), state), leaves)


@pytest.mark.parametrize("cell", CELLS)
def test_reference_cell_equals_torch(cell):
    kind = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}.get(cell, nn.RNNCell)
    options = {"nonlinearity": cell} if kind is nn.RNNCell else {}
    made = kind(IN, H, dtype=F64, **options)
    weights = made.weight_ih, made.weight_hh, made.bias_ih, made.bias_hh
    x, h, c = (random(B, n, seed=n).requires_grad_() for n in (IN, H, H + 1))
    c = c[:, :H]
    if cell == "lstm":
        got = hetkern.lstm_cell(x, (h, c), *weights, impl="reference")
        wanted = made(x, (h, c))
    else:
        ours = hetkern.gru_cell if cell == "gru" else hetkern.rnn_cell
        got = (ours(x, h, *weights, **options, impl="reference"),)
        wanted = (made(x, h),)
    same(got, wanted, [x, h, *weights])


@pytest.mark.parametrize("cell", CELLS)
def test_reference_has_every_derivative(cell):
    gates = {"lstm": 4, "gru": 3}.get(cell, 1)
    x, w, b = random(3, 2, gates * 2), random(gates * 2, 2, seed=1), random(gates * 2, seed=2)
    h0, c0 = random(2, 2, seed=3), random(2, 2, seed=4)
    leaves = [t.requires_grad_() for t in ((x, w, b, h0, c0) if cell == "lstm" else (x, w, b, h0))]
    where = {"lengths": torch.tensor([3, 1]), "reset": torch.tensor([[0, 0], [1, 0], [0, 0]]) > 0}

    def walk(*leaves):
        return [t for t in rnn_sequence(cell, *leaves, **where) if t is not None]

    assert gradcheck(walk, leaves, check_forward_ad=True)
    assert gradgradcheck(walk, leaves)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_reference_padding_changes_nothing_and_has_no_gradient_whatever_it_holds(cell, reverse):
    gates = {"lstm": 4, "gru": 3}.get(cell, 1)
    x, w = random(T, 3, gates * H), random(gates * H, H, seed=1)
    h0, c0 = random(3, H, seed=3).requires_grad_(), random(3, H, seed=4).requires_grad_()
    lengths = torch.tensor([2, 0, 5])
    results = []
    for poison in (0.0, torch.nan, torch.inf):
        given = x.clone()
        given[2:, 0] = given[:, 1] = poison
        given.requires_grad_()
        state = (h0, c0) if cell == "lstm" else (h0,)
        y, h_n, c_n = rnn_sequence(cell, given, w, None, *state, lengths=lengths, reverse=reverse)
        ends = [h_n] if c_n is None else [h_n, c_n]
        assert torch.equal(h_n[1], h0[1]) and not y[:, 1].any() and not y[2:, 0].any()
        upstream = [random(*t.shape, seed=5) for t in (y, *ends)]
        dx, *dstate = torch.autograd.grad([y, *ends], [given, *state], upstream)
        assert not dx[:, 1].any() and not dx[2:, 0].any() and dx[:2, 0].any()
        assert torch.equal(dstate[0][1], upstream[1][1])
        results.append((y, *ends, dx, *dstate))
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


@pytest.mark.parametrize("cell", CELLS)
def test_reference_reset_is_a_sequence_begun_anew(cell):
    made = module(cell, IN, H, bidirectional=True, layers=2)
    weights, options = weights_of(made), {"bidirectional": True, "impl": "reference"}
    x = random(6, 2, IN)
    reset = torch.zeros(2, 6, dtype=torch.bool)
    reset[:, 4] = True
    y, *_ = call(cell, x, None, weights, reset=reset, **options)
    pieces = [call(cell, piece, None, weights, **options)[0] for piece in (x[:4], x[4:])]
    # Each layer's backward direction begins anew as well: what stands behind an edge is not seen.
    torch.testing.assert_close(y, torch.cat(pieces), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("cell", CELLS)
def test_reference_16_bit_gates_are_computed_in_float32_and_rounded_once(cell):
    gates = {"lstm": 4, "gru": 3}.get(cell, 1)
    x, h_gates = normal(B, gates * H).bfloat16(), normal(B, gates * H, seed=1).bfloat16()
    h, c = normal(B, H, seed=2).bfloat16(), normal(B, H, seed=3)
    got, c_got = rnn_gates(cell, x, h_gates, h, c)
    wanted, c_wanted = rnn_gates(cell, x.float(), h_gates.float(), h.float(), c)
    assert got.dtype == torch.bfloat16 and torch.equal(got, wanted.bfloat16())
    assert c_got is None or (c_got.dtype == torch.float32 and torch.equal(c_got, c_wanted))
