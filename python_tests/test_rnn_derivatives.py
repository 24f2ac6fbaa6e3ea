"""Every derivative of the RNN family: first, second, forward mode of cells, under torch.func."""

import pytest
import torch
from recurrent import CELLS, call, module, weights_of
from torch.autograd import gradcheck, gradgradcheck

import hetkern
from hetkern.ops.rnn import OPS
from hetkern.testing.cases.recurrent import GATES, cell_op
from hetkern.testing.devices import normal

pytestmark = pytest.mark.any_level

F64 = torch.float64
B, COLUMNS, H = 3, 2, 3


def random(*shape, seed=0):
    return normal(*shape, seed=seed, dtype=F64)


def cell_inputs(cell):
    gates = GATES[cell] * H
    shapes = [(B, COLUMNS), *[(B, H)] * (2 if cell == "lstm" else 1)]
    shapes += [(gates, COLUMNS), (gates, H), (gates,), (gates,)]
    return tuple(random(*s, seed=i).requires_grad_() for i, s in enumerate(shapes))


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_has_right_first_and_second_gradients_and_tangents(impl, cell):
    def step(*inputs):
        return cell_op(impl.name)(*inputs, cell=cell)

    inputs = cell_inputs(cell)
    assert gradcheck(step, inputs, check_forward_ad=True)
    assert gradgradcheck(step, inputs)


@pytest.mark.parametrize("cell", CELLS)
def test_a_third_derivative_of_a_cell_is_refused_by_name(native, cell):
    x, *flat = cell_inputs(cell)
    y = cell_op(native.name)(x, *flat, cell=cell)
    y = y[0] if isinstance(y, tuple) else y
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="rnn_gates: derivatives past the second"):
        torch.autograd.grad(second.square().sum(), x)


WALKS = {
    "plain": {},
    "lengths": {"lengths": torch.tensor([2, 0, 3])},
    "packed": {"batch_sizes": torch.tensor([3, 2, 1])},
    "reset": {"reset": torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 1]]) > 0},
    "everything": {"lengths": torch.tensor([2, 0, 3]), "reset": torch.eye(3) > 0},
}


@pytest.mark.sample(3)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("both", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("options", WALKS.values(), ids=WALKS)
def test_a_sequence_has_right_first_and_second_gradients(impl, cell, options, both):
    T, H = 3, 2
    made = module(cell, COLUMNS, H, bidirectional=both)
    weights = weights_of(made)
    packed = "batch_sizes" in options
    x = random(6, COLUMNS) if packed else random(T, B, COLUMNS)
    states = [random(2 if both else 1, B, H, seed=i) for i in range(2 if cell == "lstm" else 1)]

    def walk(x, *rest):
        state, flat = rest[: len(states)], rest[len(states) :]
        layers = [flat[4 * i : 4 * i + 4] for i in range(len(weights))]
        return call(cell, x, state, layers, impl=impl.name, bidirectional=both, **options)

    flat = [w for layer in weights for w in layer]
    leaves = [t.detach().clone().requires_grad_() for t in (x, *states, *flat)]
    assert gradcheck(walk, leaves)
    if options in (WALKS["plain"], WALKS["packed"], WALKS["everything"]):
        assert gradgradcheck(walk, leaves, fast_mode=True)


@pytest.mark.parametrize("cell", CELLS)
def test_a_mask_of_the_recurrent_state_has_right_gradients(native, cell):
    op = OPS[native.name].rnn_sequence
    gates = GATES[cell] * H
    x, w, b, h0 = random(3, B, gates), random(gates, H, seed=1), random(gates), random(B, H, seed=2)
    mask = (random(B, H, seed=3) > 0).double() * 2
    reset = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 1]]) > 0
    c0 = random(B, H, seed=4) if cell == "lstm" else None
    leaves = [t.requires_grad_() for t in (x, w, b, h0, c0) if t is not None]

    def walk(x, w, b, h0, c0=None):
        y, h_n, c_n, *_ = op(
            CELLS.index(cell), x, w, b, h0, c0, None, None, mask, reset, True, True
        )
        return (y, h_n) if c0 is None else (y, h_n, c_n)

    assert gradcheck(walk, leaves)
    assert gradgradcheck(walk, leaves, fast_mode=True)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_call_that_saved_nothing_can_be_differentiated_all_the_same(native, cell):
    op, gates = OPS[native.name].rnn_sequence, GATES[cell] * H
    x, w, h0 = random(3, B, gates).requires_grad_(), random(gates, H, seed=1), random(B, H, seed=2)
    c0 = random(B, H, seed=4) if cell == "lstm" else None
    rest = w, None, h0, c0, None, None, None, None, False
    got, wanted = (
        torch.autograd.grad(op(CELLS.index(cell), x, *rest, save)[0].square().sum(), x)[0]
        for save in (False, True)
    )
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_works_under_torch_func(impl, cell):
    x, *flat = (t.detach() for t in cell_inputs(cell))
    states = 2 if cell == "lstm" else 1
    one_state, weights = [s[0] for s in flat[:states]], flat[states:]

    def loss(x, *weights):
        y = cell_op(impl.name)(x, *one_state, *weights, cell=cell)
        y = y[0] + y[1] if isinstance(y, tuple) else y
        return y.square().sum()

    in_dims = (0, *[None] * len(weights))
    losses = torch.func.vmap(loss, in_dims)(x, *weights)
    torch.testing.assert_close(losses, torch.stack([loss(one, *weights) for one in x]))
    per_sample = torch.func.vmap(torch.func.grad(loss, argnums=1), in_dims)(x, *weights)
    wanted = torch.stack([torch.func.grad(loss, argnums=1)(one, *weights) for one in x])
    torch.testing.assert_close(per_sample, wanted)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("packed", [False, True])
def test_a_sequence_batches_and_has_per_sample_gradients(impl, cell, packed):
    T, V = 3, 2
    made = module(cell, COLUMNS, H, bidirectional=True)
    flat = [w.detach() for layer in weights_of(made) for w in layer]
    x = random(V, 6, COLUMNS) if packed else random(V, T, B, COLUMNS)
    options = {"batch_sizes": torch.tensor([3, 2, 1])} if packed else {}

    def loss(x, *flat):
        layers = [flat[:4], flat[4:]]
        y, *ends = call(cell, x, None, layers, impl=impl.name, bidirectional=True, **options)
        return y.square().sum() + sum(end.square().sum() for end in ends)

    in_dims = (0, *[None] * len(flat))
    got = torch.func.vmap(loss, in_dims)(x, *flat)
    torch.testing.assert_close(got, torch.stack([loss(one, *flat) for one in x]))
    for argument in (0, 2):
        per_sample = torch.func.vmap(torch.func.grad(loss, argnums=argument), in_dims)(x, *flat)
        wanted = torch.stack([torch.func.grad(loss, argnums=argument)(one, *flat) for one in x])
        torch.testing.assert_close(per_sample, wanted)

    # Weights of its own for each sample.
    many = [torch.stack([w, 2 * w]) for w in flat]
    got = torch.func.vmap(loss)(x, *many)
    wanted = torch.stack([loss(one, *(w[v] for w in many)) for v, one in enumerate(x)])
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("how", ["jvp", "jacfwd", "dual numbers", "hessian"])
@pytest.mark.parametrize("cell", CELLS)
def test_forward_mode_of_a_sequence_is_refused_by_name(native, cell, how):
    """Whoever has the tangent: an input, the state, or a weight of the op itself."""
    weights = [tuple(w.detach() for w in weights_of(module(cell, COLUMNS, H))[0])]
    weights = [tuple(w.float() for w in weights[0])]
    x, states = normal(3, B, COLUMNS), [normal(1, B, H, seed=i) for i in (1, 2)]
    states = tuple(states[: 2 if cell == "lstm" else 1])
    w_ih, w_hh, *biases = weights[0]
    for leaf, walk in (
        (x, lambda x: call(cell, x, states, weights)[0]),
        (states[0], lambda h: call(cell, x, (h, *states[1:]), weights)[0]),
        (w_hh, lambda w: call(cell, x, states, [(w_ih, w, *biases)])[0]),
    ):
        with pytest.raises(NotImplementedError, match="rnn_sequence: forward-mode"):
            if how == "jvp":
                torch.func.jvp(walk, (leaf,), (leaf,))
            elif how == "jacfwd":
                torch.func.jacfwd(walk)(leaf)
            elif how == "hessian":
                torch.func.hessian(lambda t, walk=walk: walk(t).square().sum())(leaf)
            else:
                with torch.autograd.forward_ad.dual_level():
                    walk(torch.autograd.forward_ad.make_dual(leaf, leaf))


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_reach_only_who_asks(impl, cell):
    made = module(cell, COLUMNS, H)
    for who in range(5):
        flat = [w.detach() for w in weights_of(made)[0]]
        leaves = [random(3, B, COLUMNS), *flat]
        leaves = [t.clone().requires_grad_(i == who) for i, t in enumerate(leaves)]
        y, *_ = call(cell, leaves[0], None, [leaves[1:]], impl=impl.name)
        y.square().sum().backward()
        assert [t.grad is not None for t in leaves] == [i == who for i in range(5)]
    assert not hetkern.gru_cell(
        random(B, 2), random(B, 2), random(6, 2), random(6, 2), impl=impl.name
    ).requires_grad
