"""RNN, LSTM and GRU of hetkern.nn equal torch's in float64: tensors, lengths, packed rows."""

import itertools

import pytest
import torch
from recurrent import CELLS
from torch import nn
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
)

import hetkern
from hetkern.testing.devices import here, normal

pytestmark = [
    pytest.mark.any_level,
    pytest.mark.filterwarnings("ignore::hetkern.impl.Fallback"),
]
T, B, COLUMNS, H = 4, 3, 2, 5
LENGTHS = {"sorted": [4, 2, 1], "unsorted": [1, 4, 2], "lengths": [2, 4, 1], "dense": [4, 4, 4]}
SHAPES = list(itertools.product((1, 2, 3), (False, True), (True, False), (False, True)))


def pair(cell, *sizes, dtype=torch.float64, **options):
    """Ours and torch's, with the same weights, which do not depend on the run."""
    name = {"tanh": "RNN", "relu": "RNN", "lstm": "LSTM", "gru": "GRU"}[cell]
    options |= {"nonlinearity": cell} if name == "RNN" else {}
    made = []
    for library in (hetkern.nn, nn):
        torch.manual_seed(0)
        made.append(here(getattr(library, name)(*sizes, dtype=dtype, **options)))
    return made


def states_of(made, batch=(B,), seed=7):
    first = made.num_layers * (2 if made.bidirectional else 1)
    h = normal(first, *batch, made.proj_size or made.hidden_size, seed=seed).double()
    c = normal(first, *batch, made.hidden_size, seed=seed + 1).double()
    return (h, c) if made.mode == "LSTM" else h


def leaves_in(*values):
    """Every tensor in them, as leaves that ask for a gradient, and the values with those in it."""
    leaves = []

    def leaf(t):
        leaves.append(t.detach().clone().requires_grad_())
        return leaves[-1]

    return leaves, torch.utils._pytree.tree_map_only(torch.Tensor, leaf, values)


def flat(y, ends):
    data = y.data if isinstance(y, PackedSequence) else y
    return [data, *(ends if isinstance(ends, tuple) else (ends,))]


def judged(run, made, x, hx):
    """Outputs, and the gradients of the input, the states and the parameters."""
    leaves, (x, hx) = leaves_in(x, hx)
    outputs = flat(*run(x, hx))
    loss = sum((y * (1 + normal(*y.shape, seed=i))).sum() for i, y in enumerate(outputs))
    return outputs + list(torch.autograd.grad(loss, [*leaves, *made.parameters()]))


def as_packed(made, x, kind):
    return pack_padded_sequence(
        x, LENGTHS[kind], batch_first=made.batch_first, enforce_sorted=kind == "sorted"
    )


def ours_of(made, kind):
    def run(x, hx):
        if kind == "dense":
            return made(x, hx)
        if kind == "lengths":
            return made(x, hx, lengths=torch.tensor(LENGTHS[kind]))
        return made(as_packed(made, x, kind), hx)

    return run


def torchs_of(made, kind):
    def run(x, hx):
        if kind == "dense":
            return made(x, hx)
        y, ends = made(as_packed(made, x, kind), hx)
        if kind == "lengths":
            y, _ = pad_packed_sequence(y, made.batch_first, total_length=T)
        return y, ends

    return run


@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize("cell, proj", [*((cell, 0) for cell in CELLS), ("lstm", 2)])
def test_every_shape_equals_torch_with_its_gradients(cell, proj, kind):
    for layers, bidirectional, bias, batch_first in SHAPES:
        options = {"proj_size": proj} if proj else {}
        options |= {"bidirectional": bidirectional, "bias": bias, "batch_first": batch_first}
        ours, torchs = pair(cell, COLUMNS, H, layers, **options)
        x = normal(*((B, T) if batch_first else (T, B)), COLUMNS).double()
        hx = states_of(torchs)
        wanted = judged(torchs_of(torchs, kind), torchs, x, hx)
        got = judged(ours_of(ours, kind), ours, x, hx)
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize("cell", CELLS)
def test_a_state_left_out_is_zeros(impl, cell, kind):
    ours, torchs = pair(cell, COLUMNS, H, 2, dtype=torch.float32)
    x = normal(T, B, COLUMNS)
    for got, wanted in zip(
        flat(*ours_of(ours, kind)(x, None)), flat(*torchs_of(torchs, kind)(x, None)), strict=True
    ):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("cell", CELLS)
def test_an_unbatched_sequence_equals_torch(cell):
    for batch_first, bidirectional in itertools.product((False, True), repeat=2):
        options = {"batch_first": batch_first, "bidirectional": bidirectional}
        ours, torchs = pair(cell, COLUMNS, H, 2, **options)
        x, hx = normal(T, COLUMNS).double(), states_of(torchs, ())
        torch.testing.assert_close(
            judged(lambda x, hx, made=ours: made(x, hx), ours, x, hx),
            judged(lambda x, hx, made=torchs: made(x, hx), torchs, x, hx),
        )


# ---- What comes out is of the kind that went in. -------------------------------------------------


@pytest.mark.parametrize("kind", ["sorted", "unsorted"])
def test_packed_rows_come_back_packed_the_same_way(kind):
    made, _ = pair("gru", COLUMNS, H)
    packed = as_packed(made, normal(T, B, COLUMNS).double(), kind)
    y, _ = made(packed)
    assert type(y) is PackedSequence
    for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        mine, given = getattr(y, name), getattr(packed, name)
        assert mine is given or torch.equal(mine, given)
    assert y.data.shape == (7, H)


@pytest.mark.parametrize("cell", CELLS)
def test_only_the_steps_that_there_are_are_computed(cell):
    """One call whose rows are those of the packed tensor; no padded one beside it."""
    from hetkern.testing.values.dispatched import dispatched

    ours, _ = pair(cell, COLUMNS, H)
    packed = pack_sequence([normal(n, COLUMNS).double() for n in (9, 1, 1, 1)])
    with dispatched("hetkern") as recorder, torch.no_grad():
        ours(packed)
    (call,) = [args for op, args in recorder.calls if op.name() == "hetkern::rnn_sequence"]
    assert call[1].shape[0] == 12  # and not 4 * 9


def test_what_is_behind_a_rows_end_changes_nothing_and_comes_out_as_zeros():
    made, _ = pair("lstm", COLUMNS, H, 2, bidirectional=True)
    x = normal(T, B, COLUMNS).double()
    lengths = torch.tensor([2, 4, 0])
    spoilt = x.clone()
    spoilt[2:, 0] = spoilt[:, 2] = torch.nan
    leaf = spoilt.requires_grad_()
    y, (h, c) = made(leaf, lengths=lengths)
    wanted, (wanted_h, wanted_c) = made(x, lengths=lengths)
    assert torch.equal(y, wanted) and torch.equal(h, wanted_h) and torch.equal(c, wanted_c)
    assert not y[2:, 0].any() and not y[:, 2].any() and not h[:, 2].any() and y[:2, 0].all()
    y.sum().backward()
    assert not leaf.grad[2:, 0].any() and not leaf.grad[:, 2].any() and leaf.grad[:2, 0].any()


def test_a_row_without_a_step_ends_where_it_began():
    made, _ = pair("gru", COLUMNS, H)
    h = states_of(made)
    _, ends = made(normal(T, B, COLUMNS).double(), h, lengths=torch.tensor([0, 4, 2]))
    assert torch.equal(ends[:, 0], h[:, 0]) and not torch.equal(ends[:, 1], h[:, 1])


@pytest.mark.parametrize("cell", CELLS)
def test_lengths_sorted_and_unsorted_packing_agree(cell):
    made, _ = pair(cell, COLUMNS, H, 2, bidirectional=True)
    x, lengths, hx = normal(T, B, COLUMNS).double(), torch.tensor([1, 4, 2]), states_of(made)
    y, ends = made(x, hx, lengths=lengths)
    packed, packed_ends = made(pack_padded_sequence(x, lengths, enforce_sorted=False), hx)
    padded, _ = pad_packed_sequence(packed)
    torch.testing.assert_close(padded, y)
    torch.testing.assert_close(packed_ends, ends)


# ---- reset. --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize("cell", CELLS)
def test_reset_walks_through_each_piece_alone(cell, kind):
    """Rows cut where ``reset`` says, each piece by torch; the first one begins with the state."""
    ours, torchs = pair(cell, COLUMNS, H, dtype=torch.float64)
    x, hx = normal(T, B, COLUMNS).double(), states_of(torchs)
    reset = torch.zeros(B, T, dtype=torch.bool)
    reset[0, 2] = reset[1, 1] = reset[1, 3] = reset[2, 0] = True
    lengths = LENGTHS[kind]
    if kind == "dense":
        y, ends = ours(x, hx, reset=reset)
    elif kind == "lengths":
        y, ends = ours(x, hx, lengths=torch.tensor(lengths), reset=reset)
    else:
        packed, ends = ours(as_packed(ours, x, kind), hx, reset=reset)
        y, _ = pad_packed_sequence(packed)
    for b, length in enumerate(lengths):
        state = torch.utils._pytree.tree_map_only(torch.Tensor, lambda s, b=b: s[:, b], hx)
        for t in range(length):
            if reset[b, t]:
                state = torch.utils._pytree.tree_map_only(torch.Tensor, torch.zeros_like, state)
            step, state = torchs(x[t : t + 1, b], state)
            torch.testing.assert_close(y[t, b], step[0])
        mine = torch.utils._pytree.tree_map_only(torch.Tensor, lambda s, b=b: s[:, b], ends)
        torch.testing.assert_close(mine, state)


def test_reset_of_an_unbatched_sequence_has_one_dimension():
    made, _ = pair("gru", COLUMNS, H, batch_first=True)
    x = normal(T, COLUMNS).double()
    y, _ = made(x, reset=torch.tensor([False, False, True, False]))
    torch.testing.assert_close(y[:2], made(x[:2])[0])
    torch.testing.assert_close(y[2:], made(x[2:])[0])


# ---- Bad input. ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows, message",
    [
        ({"lengths": torch.tensor([4, 2, 5])}, r"lengths: wanted .*in \[0, 4\], got 5"),
        ({"lengths": torch.tensor([4.0, 2.0, 1.0])}, r"lengths: wanted integers, got .*float32"),
        ({"reset": torch.zeros(T, B) > 0}, r"reset: wanted shape \(3, 4\), got \(4, 3\)"),
    ],
)
def test_rows_that_do_not_fit_are_refused_by_name(rows, message):
    made, _ = pair("gru", COLUMNS, H)
    with pytest.raises(ValueError, match=message):
        made(normal(T, B, COLUMNS).double(), **rows)


def test_lengths_beside_packed_rows_are_refused():
    made, _ = pair("gru", COLUMNS, H)
    packed = as_packed(made, normal(T, B, COLUMNS).double(), "sorted")
    with pytest.raises(ValueError, match=r"GRU: lengths: wanted none beside a PackedSequence"):
        made(packed, lengths=torch.tensor(LENGTHS["sorted"]))


def test_a_state_of_another_batch_than_the_packed_rows_is_refused_as_by_torch():
    for made in pair("lstm", COLUMNS, H):
        packed = as_packed(made, normal(T, B, COLUMNS).double(), "sorted")
        with pytest.raises(RuntimeError):
            made(packed, states_of(made, (B + 1,)))
