"""The RNN modules inside PyTorch: compile, export, autocast, torch.func, DDP and FSDP2."""

import copy
import os
import traceback

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_rnn_nn import CELLS, SEQUENCES, an_input, both
from test_rnn_packed import as_packed
from torch import nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves

import hetkern
from hetkern.testing.devices import here, normal

pytestmark = [
    pytest.mark.any_level,
    pytest.mark.filterwarnings("ignore::hetkern.impl.Fallback"),
]
T, B, COLUMNS, H = 4, 3, 2, 5


def of_all(value):
    """A number that hangs on every element differently."""
    return sum(
        (t * (1 + i + torch.arange(t.shape[-1], device=t.device))).sin().sum()
        for i, t in enumerate(tree_leaves(value))
    )


def gradients(module, *args, **rows):
    leaves = [args[0].clone().requires_grad_(), *module.parameters()]
    return torch.autograd.grad(of_all(module(leaves[0], *args[1:], **rows)), leaves)


# ---- torch.compile and torch.export. -------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", SEQUENCES)
def test_a_module_compiles_in_one_graph_with_its_gradients(name, dynamic):
    torch._dynamo.reset()
    made = here(getattr(hetkern.nn, name)(COLUMNS, H, bidirectional=True, batch_first=True))
    compiled = torch.compile(made, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for rows in ((B, T), (2, 6)) if dynamic else ((B, T),):
        x, given = normal(*rows, COLUMNS), {"lengths": torch.arange(rows[0]) + 1} if dynamic else {}
        wanted = gradients(made, x, **given)
        for got, right in zip(gradients(compiled, x, **given), wanted, strict=True):
            torch.testing.assert_close(got, right)


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_compiles_in_one_graph_with_its_gradients(name):
    torch._dynamo.reset()
    made = here(getattr(hetkern.nn, name)(COLUMNS, H))
    compiled = torch.compile(made, backend="aot_eager", fullgraph=True)
    x = an_input(name)
    for got, right in zip(gradients(compiled, x), gradients(made, x), strict=True):
        torch.testing.assert_close(got, right)


@pytest.mark.parametrize("state", [False, True], ids=["zeros", "state"])
@pytest.mark.parametrize("kind", ["sorted", "unsorted"])
def test_a_model_around_packed_rows_compiles_in_one_graph(kind, state):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.head = hetkern.nn.GRU(COLUMNS, H), nn.Linear(H, 2)

        def forward(self, x, h):
            y, h = self.gru(x, h)
            return self.head(y.data), self.head(h)

    torch._dynamo.reset()
    model = Model()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    packed = as_packed(model.gru, normal(T, B, COLUMNS), kind)
    h = normal(1, B, H) if state else None
    results = []
    for run in (compiled, model):
        results.append(torch.autograd.grad(of_all(run(packed, h)), list(model.parameters())))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.proof)]
)
def test_a_state_of_more_rows_than_sorted_packed_ones_is_refused_compiled_too(backend):
    torch._dynamo.reset()
    made = here(hetkern.nn.LSTM(COLUMNS, H))
    compiled = torch.compile(made, backend=backend, fullgraph=True)
    packed = as_packed(made, normal(T, B, COLUMNS), "sorted")
    right, wrong = ((normal(1, rows, H), normal(1, rows, H)) for rows in (B, B + 1))
    torch.testing.assert_close(compiled(packed, right)[1], made(packed, right)[1])
    for module in (made, compiled):
        with pytest.raises(RuntimeError, match=r"LSTM: hx.*: wanted"):
            module(packed, wrong)


@pytest.mark.parametrize("name", SEQUENCES + CELLS)
def test_a_module_exports_and_runs_on_other_sizes(name):
    made = here(getattr(hetkern.nn, name)(COLUMNS, H))
    sizes = {0: torch.export.Dim("first", min=2)}
    if name in SEQUENCES:
        sizes[1] = torch.export.Dim("second", min=2)
    program = torch.export.export(made, (an_input(name),), dynamic_shapes={"input": sizes})
    x = normal(*([7, 2, COLUMNS] if name in SEQUENCES else [7, COLUMNS]))
    torch.testing.assert_close(program.module()(x), made(x))


# ---- Autocast. -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SEQUENCES + CELLS)
def test_autocast_gives_outputs_and_states_in_its_dtype_for_any_input(impl, name):
    made = here(getattr(hetkern.nn, name)(COLUMNS, H))
    shape = (1, B, H) if name in SEQUENCES else (B, H)
    h = normal(*shape)
    x = an_input(name)
    for given in (x, x.bfloat16()):
        for hx in (None, (h, h.bfloat16()) if "LSTM" in name else h):
            with torch.autocast(x.device.type, torch.bfloat16):
                outputs = tree_leaves(made(given, hx))
            assert {t.dtype for t in outputs} == {torch.bfloat16}
    leaves = list(made.parameters())
    assert {g.dtype for g in torch.autograd.grad(of_all(outputs), leaves)} == {torch.float32}


def test_packed_rows_too_come_out_in_autocasts_dtype():
    made = hetkern.nn.GRU(COLUMNS, H)
    packed = as_packed(made, normal(T, B, COLUMNS), "unsorted")
    with torch.autocast("cpu", torch.bfloat16):
        y, h = made(packed)
    assert y.data.dtype == h.dtype == torch.bfloat16


# ---- torch.func. ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SEQUENCES + CELLS)
def test_gradients_of_each_sample_come_from_vmap(name):
    made = here(getattr(hetkern.nn, name)(COLUMNS, H))
    rows = 1 if name in SEQUENCES else 0
    x = an_input(name)

    def loss(parameters, x):
        return of_all(torch.func.functional_call(made, parameters, (x,)))

    parameters = {k: p.detach() for k, p in made.named_parameters()}
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, rows))(parameters, x)
    for b in range(B):
        alone = torch.autograd.grad(of_all(made(x.select(rows, b))), list(made.parameters()))
        torch.testing.assert_close([g[b] for g in each.values()], list(alone))


def test_an_ensemble_runs_as_one():
    """Weights of its own for each, which torch.nn's refuse."""
    members = [hetkern.nn.GRU(COLUMNS, H) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(members)
    skeleton, x = copy.deepcopy(members[0]).to("meta"), normal(T, B, COLUMNS)

    def one(parameters, buffers):
        return torch.func.functional_call(skeleton, (parameters, buffers), (x,))[0]

    together = torch.func.vmap(one)(parameters, buffers)
    torch.testing.assert_close(together, torch.stack([member(x)[0] for member in members]))


# ---- Names and parametrizations. -----------------------------------------------------------------


@pytest.mark.parametrize("name", SEQUENCES + CELLS)
def test_a_parametrization_computes_once_a_call(name):
    """Stochastic ones, and power iterations; torch's sequences compute four times."""

    class Counted(nn.Module):
        calls = 0

        def forward(self, weight):
            self.calls += 1
            return weight

    made, counted = here(getattr(hetkern.nn, name)(COLUMNS, H)), Counted()
    weight = "weight_hh_l0" if name in SEQUENCES else "weight_hh"
    parametrize.register_parametrization(made, weight, counted)
    x, before = an_input(name), counted.calls
    made(x)
    assert counted.calls == before + 1
    if name in SEQUENCES:
        made(as_packed(made, x, "unsorted"))
        assert counted.calls == before + 2


@pytest.mark.parametrize("name", SEQUENCES + CELLS)
def test_torchs_name_may_stand_for_our_class(name, monkeypatch):
    ours, _ = both(name, COLUMNS, H)
    monkeypatch.setattr(nn, name, getattr(hetkern.nn, name))
    _, made = both(name, COLUMNS, H)
    torch.testing.assert_close(made(an_input(name)), ours(an_input(name)))
    if name in SEQUENCES:
        made(as_packed(made, an_input(name), "unsorted"))


# ---- Several processes. --------------------------------------------------------------------------


class Tagger(nn.Module):
    """A bidirectional LSTM over packed rows, and a GRU cell behind it."""

    def __init__(self):
        super().__init__()
        self.lstm = hetkern.nn.LSTM(COLUMNS, H, 2, bidirectional=True)
        self.cell = hetkern.nn.GRUCell(2 * H, H)

    def forward(self, x):
        y, (h, _) = self.lstm(x)
        packed, _ = self.lstm(as_packed(self.lstm, x, "unsorted"))
        return self.cell(y[-1]).sum() + packed.data.square().sum() + h.sum()


def _data(rank):
    return normal(T, B, COLUMNS, seed=10 + rank)


def _step_alone(processes):
    """A step by the mean over all processes' data."""
    torch.manual_seed(0)
    model = Tagger()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    (sum(model(_data(rank)) for rank in range(processes)) / processes).backward()
    optimizer.step()
    return dict(model.named_parameters())


def _step(wrap, rank, processes, whole=lambda t: t):
    torch.manual_seed(0)
    model = wrap(Tagger())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(_data(rank)).backward()
    optimizer.step()
    wanted = _step_alone(processes)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(whole(parameter), wanted[name.removeprefix("module.")])
    return model


def _steps(rank, processes, file):
    """One step with DistributedDataParallel and one with fully_shard."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    def sharded(model):
        mesh = init_device_mesh("cpu", (processes,))
        fully_shard(model.lstm, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    try:
        dist.init_process_group("gloo", f"file://{file}", rank=rank, world_size=processes)
        _step(DistributedDataParallel, rank, processes)
        model = _step(sharded, rank, processes, lambda t: t.full_tensor())
        assert model.lstm.weight_hh_l0.to_local().shape[0] == 4 * H // processes
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _process(rank, file, errors):
    torch.set_num_threads(1)
    try:
        _steps(rank, 2, file)
    except BaseException:
        errors.put(traceback.format_exc())
        raise


def test_a_process_by_itself_steps_with_ddp_and_with_fsdp2(tmp_path):
    _steps(0, 1, tmp_path / "store")


@pytest.mark.proof
def test_two_processes_step_as_one_with_ddp_and_with_fsdp2(tmp_path):
    context = mp.get_context("spawn")
    errors = context.Queue()
    file = os.fspath(tmp_path / "store")
    processes = [context.Process(target=_process, args=(rank, file, errors)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0, 0], errors.get(timeout=5)
