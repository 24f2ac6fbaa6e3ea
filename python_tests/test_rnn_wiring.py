"""The RNN family inside PyTorch: opcheck, fakes, compile, export, autocast, explain, record."""

import pytest
import torch
from recurrent import CELLS, call, module, weights_of

import hetkern
from hetkern.testing.cases.recurrent import GATES, cell_op
from hetkern.testing.devices import normal
from hetkern.testing.values.dispatched import dispatched

pytestmark = pytest.mark.any_level

T, B, COLUMNS, H = 3, 4, 5, 6
ROWS = {
    "dense": {},
    "lengths": {"lengths": torch.tensor([2, 0, 3, 1])},
    "packed": {"batch_sizes": torch.tensor([4, 2, 1])},
    "reset": {"reset": torch.arange(B * T).reshape(B, T) % 4 == 0},
}


def flat_cell(cell):
    gates = GATES[cell] * H
    shapes = [(B, COLUMNS), *[(B, H)] * (2 if cell == "lstm" else 1)]
    shapes += [(gates, COLUMNS), (gates, H), (gates,), (gates,)]
    return [normal(*s, seed=i) for i, s in enumerate(shapes)]


def walk(cell, x, made, **options):
    return call(cell, x, None, weights_of(made), bidirectional=made.bidirectional, **options)


def rows(kind):
    return normal(7, COLUMNS) if kind == "packed" else normal(T, B, COLUMNS)


def check_ops(calls):
    seen = {op.name(): (op, args) for op, args in calls}
    for op, args in seen.values():
        torch.library.opcheck(op, args)
        if "double" in op.name():
            continue
        constant = ("gates", "cells", "h_mask")
        names = [argument.name for argument in op._schema.arguments]
        given = [
            a.detach().clone().requires_grad_()
            if torch.is_tensor(a) and a.is_floating_point() and name not in constant
            else a
            for name, a in zip(names, args, strict=True)
        ]
        torch.library.opcheck(op, tuple(given))
    return {name.split("::")[1] for name in seen}


@pytest.mark.sample(2)
@pytest.mark.parametrize("cell", CELLS)
def test_the_gates_ops_pass_opcheck(native, cell):
    leaves = [t.requires_grad_() for t in flat_cell(cell)]
    with dispatched("hetkern") as recorder:
        y = cell_op(native.name)(*leaves, cell=cell)
        y = y[0] + y[1] if isinstance(y, tuple) else y
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
    names = check_ops(recorder.calls)
    assert names == {"rnn_gates", "rnn_gates_backward", "rnn_gates_double_backward"}


@pytest.mark.sample(10, simulated=10)
@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("cell", CELLS)
def test_the_sequence_ops_pass_opcheck(native, cell, kind):
    made = module(cell, COLUMNS, H, dtype=torch.float32)
    x = rows(kind).requires_grad_()
    with dispatched("hetkern") as recorder:
        y, *_ = walk(cell, x, made, impl=native.name, **ROWS[kind])
        torch.autograd.grad(y.square().sum(), [x, *made.parameters()])
    assert check_ops(recorder.calls) == {"rnn_sequence", "rnn_sequence_backward"}


PACKED = {
    "plain": {},
    "reset": {"reset": torch.arange(4 * 6).reshape(4, 6) % 5 == 0},
    "masks": {"variational_dropout": 0.5, "recurrent_dropout": 0.5},
}


@pytest.mark.parametrize("options", PACKED.values(), ids=PACKED)
@pytest.mark.parametrize("cell", CELLS)
def test_packed_rows_need_nothing_that_the_host_computes(native, cell, options):
    """Indices from batch sizes would be copied to a GPU, which no CUDA graph can hold.

    A wait for the device cannot be seen here; a tensor of indices or a copy can.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made.append(function.name())
            return function(*args, **(kwargs or {}))

    weights = weights_of(module(cell, COLUMNS, H, bidirectional=True, dtype=torch.float32))
    sizes = torch.tensor([4, 4, 2, 1, 1, 1])
    x, made = normal(13, COLUMNS).requires_grad_(), []
    with Seen():
        y, *_ = call(
            cell, x, None, weights, batch_sizes=sizes, bidirectional=True, **options,
        )  # fmt: skip
        torch.autograd.grad(y.square().sum(), [x, *(w for layer in weights for w in layer)])
    assert {"hetkern" in name for name in made} == {False, True}
    from_sizes = ("index", "searchsorted", "cumsum", "gather", "repeat_interleave", "nonzero")
    assert not [name for name in made if any(word in name for word in from_sizes)]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("sizes", [[3, 3, 2, 1, 1], [4], [2, 2, 0], [4, 3, 2, 1], [0, 0]])
def test_slices_and_indices_find_the_same_packed_rows(sizes, reverse):
    from hetkern.reference import packed_rows as both

    B, sizes = 4, torch.tensor(sizes)
    rows, device = int(sizes.sum()), torch.device("cpu")
    slices = both.packed_rows(sizes, rows, B, device)
    indices = both._Indices(sizes, rows, B, device)
    assert type(slices) is both._Slices
    x, first = normal(rows, 2), normal(B, 2, seed=1)
    padded = slices.padded(x)
    assert torch.equal(slices.lengths, indices.lengths)
    assert torch.equal(padded, indices.padded(x)) and torch.equal(slices.packed(padded), x)
    assert torch.equal(slices.packed(padded), indices.packed(padded))
    assert torch.equal(slices.of_sequences(first), indices.of_sequences(first))
    assert torch.equal(slices.before(x, first, reverse), indices.before(x, first, reverse))


@pytest.mark.sample(3)
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_compiles_whole_with_its_gradients(impl, cell, dynamic):
    torch._dynamo.reset()
    made = module(cell, COLUMNS, H, bidirectional=True, layers=2, dtype=torch.float32)

    weights = weights_of(made)  # Dynamo refuses to look at one of torch's recurrent modules

    def step(x, lengths):
        y, *ends = call(cell, x, None, weights, bidirectional=True, lengths=lengths)
        return y.square().sum() + sum(end.sum() for end in ends)

    if impl.name == "reference" and dynamic:
        pytest.skip("its loop over the steps has as many as the first call has")
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for sizes in ((3, 4), (5, 2)) if dynamic else ((3, 4),):
        x, lengths = normal(*sizes, COLUMNS), torch.arange(sizes[1]) % (sizes[0] + 1)
        results = []
        for run in (step, compiled):
            leaves = [x.clone().requires_grad_(), *made.parameters()]
            loss = run(leaves[0], lengths)
            results.append((loss, *torch.autograd.grad(loss, leaves)))
        for eager, traced in zip(*results, strict=True):
            torch.testing.assert_close(traced, eager)


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_compiles_whole_with_its_gradients(impl, cell):
    torch._dynamo.reset()

    def step(*leaves):
        y = cell_op("auto")(*leaves, cell=cell)
        return (y[0] + y[1] if isinstance(y, tuple) else y).square().sum()

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    results = []
    for run in (step, compiled):
        leaves = [t.requires_grad_() for t in flat_cell(cell)]
        results.append(torch.autograd.grad(run(*leaves), leaves))
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager)


def test_dropout_compiles_whole_and_draws_anew(impl):
    torch._dynamo.reset()
    made = module("gru", COLUMNS, H, dtype=torch.float32)
    options = {"variational_dropout": 0.5, "recurrent_dropout": 0.5}

    weights = weights_of(made)

    def step(x):
        return call("gru", x, None, weights, **options)[0]

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    x = normal(T, B, COLUMNS)
    torch.manual_seed(0)
    first, second = compiled(x), compiled(x)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    torch.testing.assert_close(step(x), first)


@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_exports_and_runs_on_another_batch(native, cell):
    made = module(cell, COLUMNS, H, dtype=torch.float32)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.made = torch.nn.ParameterList(made.parameters())

        def forward(self, x):
            return call(cell, x, None, [tuple(self.made)])[0]

    batch = torch.export.Dim("batch", min=2)
    model = Model()
    program = torch.export.export(model, (normal(T, 4, COLUMNS),), dynamic_shapes={"x": {1: batch}})
    x = normal(T, 7, COLUMNS)
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize("cell", CELLS)
def test_autocast_gives_outputs_and_states_in_its_dtype(impl, cell):
    made = module(cell, COLUMNS, H, dtype=torch.float32)
    x = normal(T, B, COLUMNS)
    flat = [t.requires_grad_() for t in flat_cell(cell)]
    with torch.autocast(impl.device, dtype=torch.bfloat16):
        outputs = walk(cell, x, made)
        step = cell_op("auto")(*flat, cell=cell)
    step = step if isinstance(step, tuple) else (step,)
    assert {t.dtype for t in (*outputs, *step)} == {torch.bfloat16}
    loss = sum(t.float().square().sum() for t in (*outputs, *step))
    leaves = [*made.parameters(), *flat]
    assert {g.dtype for g in torch.autograd.grad(loss, leaves)} == {torch.float32}


def test_explain_and_record_tell_the_path():
    made = module("gru", COLUMNS, 256, dtype=torch.float32)
    x = normal(100, 1, COLUMNS)
    told = hetkern.explain(hetkern.gru, x, None, weights_of(made))
    assert told.op == "hetkern.gru" and told.impl in hetkern.impl.IMPLEMENTATIONS
    if told.impl == "cpu" and hetkern.impl.native is not None:
        assert told.plan["path"] in ("one_task", "split_units") and told.plan["product"] == "fma"
    with hetkern.record() as log:
        hetkern.gru(x, None, weights_of(made))
        hetkern.rnn_cell(x[0], x[0, :, :3], torch.ones(3, COLUMNS), torch.ones(3, 3))
    assert [entry.op for entry in log] == ["hetkern.gru", "hetkern.rnn_cell"]
    assert log[0].plan == told.plan
