"""What an RNN does at the edges: rows without steps, padding that holds anything, states, NaN."""

import pytest
import torch
from recurrent import CELLS, call, module, weights_of

import hetkern
from hetkern.testing.devices import normal
from hetkern.testing.values.calls import same_bits

pytestmark = pytest.mark.any_level

T, B, COLUMNS, H = 6, 4, 3, 20
LENGTHS = torch.tensor([2, 0, 6, 1])


def outputs(cell, x, state, weights, **options):
    """Everything of one call: results and the gradients of x, states and weights."""
    leaves = [x, *state, *(w for layer in weights for w in layer if w is not None)]
    leaves = [t.detach().requires_grad_() for t in leaves]
    states = 2 if cell == "lstm" else 1
    flat = iter(leaves[1 + states :])
    layers = [tuple(None if w is None else next(flat) for w in layer) for layer in weights]
    results = call(cell, leaves[0], tuple(leaves[1 : 1 + states]), layers, **options)
    upstream = [normal(*y.shape, seed=9 + i).to(y.dtype) for i, y in enumerate(results)]
    gradients = torch.autograd.grad(results, leaves, upstream)
    return [y.detach() for y in results], list(gradients)


def states(cell, rows, batch=B, dtype=torch.float32):
    count = 2 if cell == "lstm" else 1
    return tuple(normal(rows, batch, H, seed=1 + i).to(dtype) for i in range(count))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("cell", CELLS)
def test_padding_changes_no_bit_and_has_no_gradient_whatever_it_holds(impl, cell, dtype):
    made = module(cell, COLUMNS, H, layers=2, bidirectional=True, dtype=dtype)
    options = {"bidirectional": True, "lengths": LENGTHS}
    seen = []
    for poison in (0.0, torch.nan, torch.inf):
        x = normal(T, B, COLUMNS).to(dtype)
        for b, length in enumerate(LENGTHS):
            x[length:, b] = poison
        seen.append(outputs(cell, x, states(cell, 4, dtype=dtype), weights_of(made), **options))
    for results, gradients in seen:
        for b, length in enumerate(LENGTHS):
            assert not results[0][length:, b].any() and not gradients[0][length:, b].any()
            assert length == 0 or gradients[0][:length, b].any()
        for a, other in zip(results + gradients, seen[0][0] + seen[0][1], strict=True):
            assert same_bits(a, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_input_product_is_rounded_once_whatever_the_strides(impl, dtype):
    """torch's linear rounds it before the bias as well, where rows or the bias are strided."""
    columns, state = 4, states("gru", 1, dtype=dtype)
    w_ih, w_hh, b_ih, b_hh = weights_of(module("gru", columns, H, dtype=dtype))[0]
    x = normal(T, B, 2 * columns).to(dtype)[..., :columns]
    every_other = torch.stack([b_ih, b_ih], 1)[:, 0]
    seen = [
        call("gru", rows, state, [(w_ih, w_hh, bias, b_hh)])[0]
        for rows, bias in ((x.contiguous(), b_ih), (x, b_ih), (x.contiguous(), every_other))
    ]
    assert same_bits(seen[1], seen[0]) and same_bits(seen[2], seen[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cell", CELLS)
def test_a_row_of_length_0_ends_where_it_began_and_passes_its_gradient_on(impl, cell, dtype):
    made = module(cell, COLUMNS, H, bidirectional=True, dtype=dtype)
    state = states(cell, 2, dtype=dtype)
    x = normal(T, B, COLUMNS).to(dtype)
    results, gradients = outputs(
        cell, x, state, weights_of(made), bidirectional=True, lengths=LENGTHS
    )
    for i, first in enumerate(state):
        assert torch.equal(results[1 + i][:, 1], first[:, 1])
        upstream = normal(2, B, H, seed=10 + i).to(dtype)
        assert torch.equal(gradients[1 + i][:, 1], upstream[:, 1])


@pytest.mark.parametrize("options", [{}, {"recurrent_dropout": 0.5}, {"reset": True}], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_nan_in_the_state_of_a_row_without_a_step_reaches_no_other_gradient(impl, cell, options):
    made = module(cell, COLUMNS, H, bidirectional=True, dtype=torch.float32)
    reset = torch.zeros(B, T, dtype=torch.bool)
    reset[:, 3] = True
    options = {**options, "reset": reset} if "reset" in options else options
    seen = []
    for poison in (0.0, torch.nan, torch.inf):
        state = states(cell, 2)
        for s in state:
            s[:, 1] = poison
        torch.manual_seed(0)
        results, gradients = outputs(
            cell, normal(T, B, COLUMNS), state, weights_of(made),
            bidirectional=True, lengths=LENGTHS, **options,
        )  # fmt: skip
        ends = [end[:, 1] for end in results[1:]]
        assert all(same_bits(end, s[:, 1]) for end, s in zip(ends, state, strict=True))
        seen.append([results[0], *gradients])
    for got in seen[1:]:
        assert all(same_bits(a, b) for a, b in zip(got, seen[0], strict=True))


@pytest.mark.parametrize("cell", CELLS)
def test_rows_by_their_lengths_are_the_rows_one_by_one(impl, cell):
    made = module(cell, COLUMNS, H, bidirectional=True)
    x, state = normal(T, B, COLUMNS).double(), states(cell, 2, dtype=torch.float64)
    options = {"bidirectional": True}
    y, *ends = call(cell, x, state, weights_of(made), lengths=LENGTHS, **options)
    for b, length in enumerate(LENGTHS):
        if length:
            one = tuple(s[:, b : b + 1] for s in state)
            alone = call(cell, x[:length, b : b + 1], one, weights_of(made), **options)
            torch.testing.assert_close(y[:length, b : b + 1], alone[0], rtol=1e-13, atol=1e-14)
            for end, wanted in zip(ends, alone[1:], strict=True):
                torch.testing.assert_close(end[:, b : b + 1], wanted, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("cell", CELLS)
def test_reset_begins_anew_in_both_directions(impl, cell):
    made = module(cell, COLUMNS, H, bidirectional=True, layers=2)
    x = normal(T, B, COLUMNS).double()
    reset = torch.zeros(B, T, dtype=torch.bool)
    reset[:, 4] = True
    y, *_ = call(cell, x, None, weights_of(made), bidirectional=True, reset=reset)
    pieces = [
        call(cell, piece, None, weights_of(made), bidirectional=True)[0] for piece in (x[:4], x[4:])
    ]
    torch.testing.assert_close(y, torch.cat(pieces), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("cell", CELLS)
def test_reset_in_the_padding_changes_no_bit(impl, cell):
    made = module(cell, COLUMNS, H, bidirectional=True, dtype=torch.float32)
    x, start = normal(T, B, COLUMNS), states(cell, 2)
    reset = torch.arange(B * T).reshape(B, T) % 3 == 1
    padded = torch.arange(T) >= torch.tensor(LENGTHS)[:, None]
    seen = [
        outputs(cell, x, start, weights_of(made), bidirectional=True, lengths=LENGTHS, reset=flags)
        for flags in (reset & ~padded, reset | padded)
    ]
    for a, other in zip(seen[0][0] + seen[0][1], seen[1][0] + seen[1][1], strict=True):
        assert same_bits(a, other)


@pytest.mark.parametrize("cell", CELLS)
def test_nan_stays_in_its_row_and_behind_its_step(impl, cell):
    made = module(cell, COLUMNS, H, dtype=torch.float32)
    x = normal(T, B, COLUMNS)
    x[3, 2] = torch.nan
    y, h_n, *_ = call(cell, x, None, weights_of(made))
    assert y[3:, 2].isnan().all() and h_n[:, 2].isnan().all()
    y[3:, 2] = 0.0
    assert y.isfinite().all() and h_n[:, [0, 1, 3]].isfinite().all()


@pytest.mark.parametrize("cell", CELLS)
def test_no_rows_give_empty_results(impl, cell):
    made = module(cell, COLUMNS, H, dtype=torch.float32)
    x = torch.zeros(T, 0, COLUMNS, requires_grad=True)
    y, h_n, *_ = call(cell, x, None, weights_of(made))
    assert y.shape == (T, 0, H) and h_n.shape == (1, 0, H)
    (dx,) = torch.autograd.grad(y.sum() + h_n.sum(), x)
    assert dx.shape == x.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cell", CELLS)
def test_recurrent_dropout_multiplies_the_state_by_one_mask_a_sequence(impl, cell, dtype):
    """Where x and the biases are 0 and W_hh the identity, a state that is dropped stays what it is.

    So only kept units are ever seen by the product: drawn again with one seed, the masks agree.
    """
    made = module(cell, COLUMNS, H, dtype=dtype)
    x, state = normal(T, B, COLUMNS).to(dtype), states(cell, 1, dtype=dtype)
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results, gradients = outputs(cell, x, state, weights_of(made), recurrent_dropout=0.5)
        drawn.append(results + gradients)
    assert all(same_bits(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert not torch.equal(drawn[0][0], drawn[2][0])
    plain, _ = outputs(cell, x, state, weights_of(made))
    assert not torch.equal(drawn[0][0], plain[0])


@pytest.mark.parametrize("cell", CELLS)
def test_dropout_masks_are_the_same_for_every_implementation(impl, cell):
    made = module(cell, COLUMNS, H, layers=2, bidirectional=True)
    x, state = normal(T, B, COLUMNS).double(), states(cell, 4, dtype=torch.float64)
    options = {"bidirectional": True, "variational_dropout": 0.3, "recurrent_dropout": 0.4}
    drawn = []
    for name in ("reference", impl.name):
        torch.manual_seed(5)
        drawn.append(outputs(cell, x, state, weights_of(made), impl=name, **options))
    for a, b in zip(*[results + gradients for results, gradients in drawn], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_lies_between_rows_of_an_odd_width_is_not_read(impl, dtype):
    """Torch's product of bfloat16 over AMX reads one column more, and NaN there is NaN."""
    assert COLUMNS % 2
    x = torch.full((17, 3, COLUMNS + 8), torch.nan, dtype=dtype)[..., 4 : 4 + COLUMNS]
    x.copy_(normal(17, 3, COLUMNS))
    made = module("tanh", COLUMNS, 48, dtype=dtype)
    weights, state = weights_of(made), torch.zeros(1, 3, 48, dtype=dtype)
    assert call("tanh", x, (state,), weights)[0].isfinite().all()
    step = x.flatten(0, 1)
    h = hetkern.rnn_cell(step, torch.zeros(len(step), 48, dtype=dtype), *weights[0])
    assert h.isfinite().all()


@pytest.mark.parametrize("autocast", [False, True])
def test_a_nan_row_of_an_odd_width_leaves_the_row_before_it_alone(impl, autocast):
    dtype = torch.float32 if autocast else torch.bfloat16
    x = normal(1, 51, COLUMNS).to(dtype)
    x[0, 5] = torch.nan
    weights = weights_of(module("tanh", COLUMNS, 48, dtype=dtype))
    zeros = torch.zeros(1, 51, 48, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = call("tanh", x, (zeros,), weights)[0][0]
        h = hetkern.rnn_cell(x[0], zeros[0], *weights[0])
    for rows in (y, h):
        assert rows.isnan().any(1).nonzero().flatten().tolist() == [5]
