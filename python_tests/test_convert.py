"""hetkern.nn.convert swaps exact torch modules in place, keeps what they hold, and goes back."""

import copy
import pickle

import pytest
import torch
from torch import nn

import hetkern
from hetkern.nn import convert

pytestmark = pytest.mark.filterwarnings("ignore::hetkern.impl.Fallback")


class Attention(nn.Module):
    def __init__(self, softmax=None):
        super().__init__()
        self.project = nn.Linear(8, 8)
        self.softmax = softmax or nn.Softmax(dim=-1)

    def forward(self, x):
        return self.softmax(self.project(x))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Attention(), Attention()])
        self.head = nn.LogSoftmax(-1)
        self.loss = nn.CrossEntropyLoss(torch.arange(1.0, 9.0), label_smoothing=0.1)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x), self.loss(x, torch.arange(len(x)) % 8)


class Sharp(nn.Softmax):
    def forward(self, input):
        return super().forward(10 * input)


def inputs():
    return torch.randn(5, 8, generator=torch.Generator().manual_seed(0))


NAMES = {
    "blocks.0.softmax": "Softmax",
    "blocks.1.softmax": "Softmax",
    "head": "LogSoftmax",
    "loss": "CrossEntropyLoss",
}


def test_every_exact_torch_module_becomes_ours_and_computes_the_same():
    model = Model()
    before = model(inputs())
    report = convert(model)
    assert report.converted == {name: f"hetkern.nn.{kind}" for name, kind in NAMES.items()}
    assert report.left == {}
    for name, kind in NAMES.items():
        assert type(model.get_submodule(name)) is getattr(hetkern.nn, kind)
    with hetkern.record() as log:
        after = model(inputs())
    assert [call.op.removeprefix("hetkern.") for call in log] == [
        "softmax",
        "softmax",
        "log_softmax",
        "cross_entropy",
    ]
    torch.testing.assert_close(after, before)


def test_parameters_buffers_modules_and_the_training_flag_stay():
    model = Model().eval()
    held = [*model.parameters(), *model.buffers(), *model.modules()]
    state = copy.deepcopy(model.state_dict())
    convert(model)
    assert all(
        a is b
        for a, b in zip(
            held, [*model.parameters(), *model.buffers(), *model.modules()], strict=True
        )
    )
    assert not any(module.training for module in model.modules())
    assert list(model.state_dict()) == list(state) and "loss.weight" in state
    assert torch.equal(model.state_dict()["loss.weight"], state["loss.weight"])
    assert (model.loss.label_smoothing, model.head.dim) == (0.1, -1)


def test_hooks_stay_and_run():
    model = Model()
    heard = []
    model.head.register_forward_hook(lambda module, args, output: heard.append(type(module)))
    handle = model.head.register_forward_pre_hook(lambda module, args: heard.append("before"))
    convert(model)
    model(inputs())
    handle.remove()
    model(inputs())
    assert heard == ["before", hetkern.nn.LogSoftmax, hetkern.nn.LogSoftmax]


def test_a_shared_module_stays_shared_and_is_reported_at_each_place():
    softmax = nn.Softmax(-1)
    model = nn.Sequential(Attention(softmax), Attention(softmax))
    report = convert(model)
    assert model[0].softmax is model[1].softmax is softmax
    assert type(softmax) is hetkern.nn.Softmax
    assert list(report.converted) == ["0.softmax", "1.softmax"]


def test_the_model_itself_may_be_converted():
    loss = nn.CrossEntropyLoss()
    report = convert(loss)
    assert type(loss) is hetkern.nn.CrossEntropyLoss
    assert report.converted == {"": "hetkern.nn.CrossEntropyLoss"}
    assert "(the model): hetkern.nn.CrossEntropyLoss" in str(report)


def test_going_to_torch_undoes_it():
    model = Model()
    before = pickle.dumps(model)
    convert(model)
    report = convert(model, to="torch")
    assert report.converted == {name: f"torch.nn.{kind}" for name, kind in NAMES.items()}
    assert all(type(model.get_submodule(name)) is getattr(nn, kind) for name, kind in NAMES.items())
    assert pickle.dumps(model) == before


def test_converting_twice_changes_nothing():
    model = Model()
    convert(model)
    again = convert(model)
    assert (again.converted, again.left) == ({}, {})


def test_modules_built_as_ours_go_to_torch_without_a_trace():
    softmax = hetkern.nn.Softmax(-1, impl="reference")
    convert(softmax, to="torch")
    assert type(softmax) is nn.Softmax
    assert vars(softmax).keys() == vars(nn.Softmax(-1)).keys()


def test_an_option_that_torch_lacks_keeps_a_module_ours():
    model = nn.ModuleList([hetkern.nn.Softmax(-1, scale=0.5, causal=True), hetkern.nn.Softmax(-1)])
    report = convert(model, to="torch")
    assert report.left == {"0": "hetkern.nn.Softmax, torch has no scale=0.5, causal=True"}
    assert [type(module) for module in model] == [hetkern.nn.Softmax, nn.Softmax]


def test_a_converted_model_trains_copies_and_pickles():
    model = Model()
    convert(model)
    again = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    for each in (model, again):
        _, loss = each(inputs())
        loss.backward()
    gradients = [[p.grad for p in each.parameters()] for each in (model, again)]
    assert all(g.abs().max() > 0 for g in gradients[0])
    torch.testing.assert_close(*gradients)


def test_a_model_compiled_before_runs_ours_afterwards():
    graphs = []

    def keep(graph, example_inputs):
        graphs.append(str(graph.code))
        return graph.forward

    model = nn.Sequential(nn.Softmax(-1))
    compiled = torch.compile(model, backend=keep, fullgraph=True)
    compiled(inputs())
    convert(model)
    torch.testing.assert_close(compiled(inputs()), inputs().softmax(-1))
    assert len(graphs) == 2


# ---- What is left, and why. ----------------------------------------------------------------------


def test_a_subclass_is_left():
    model = nn.Sequential(Sharp(-1))
    report = convert(model)
    assert type(model[0]) is Sharp
    (why,) = report.left.values()
    assert why.endswith("Sharp, a subclass of Softmax")


def test_a_subclass_of_ours_is_left_on_the_way_back():
    class Mine(hetkern.nn.Softmax):
        pass

    model = nn.Sequential(Mine(-1))
    assert convert(model).left == {}  # it is ours already
    assert "a subclass of Softmax" in convert(model, to="torch").left["0"]


def test_a_module_whose_forward_was_replaced_is_left():
    model = nn.Sequential(nn.Softmax(-1))
    model[0].forward = lambda x: x + 1
    report = convert(model)
    assert report.left == {"0": "torch.nn.Softmax, its forward is replaced on the instance"}
    assert torch.equal(model(inputs()), inputs() + 1)


LINEAR_LOSS = [nn.LinearCrossEntropyLoss(4, 5)] if hasattr(nn, "LinearCrossEntropyLoss") else []


@pytest.mark.parametrize("module", [nn.Softmin(-1), nn.Softmax2d(), *LINEAR_LOSS], ids=str)
def test_a_softmax_without_a_drop_in_is_named(module):
    kind = type(module)
    report = convert(nn.Sequential(module, nn.Linear(8, 8)))
    assert report.left == {"0": f"torch.nn.{kind.__name__}, hetkern has no drop-in for it"}
    assert type(module) is kind


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        ("head", {"head": "excluded by 'head'"}),
        (
            ["blocks.*.softmax"],
            dict.fromkeys(
                ["blocks.0.softmax", "blocks.1.softmax"], "excluded by 'blocks.*.softmax'"
            ),
        ),
        ("blocks.1", {"blocks.1.softmax": "excluded by 'blocks.1'"}),
        (nn.LogSoftmax, {"head": "excluded as a LogSoftmax"}),
        (
            (Attention, "loss"),
            {
                "blocks.0.softmax": "excluded as a Attention",
                "blocks.1.softmax": "excluded as a Attention",
                "loss": "excluded by 'loss'",
            },
        ),
        ("", dict.fromkeys(NAMES, "excluded by ''")),
    ],
)
def test_exclude_takes_names_and_types_and_leaves_what_is_inside(exclude, left):
    model = Model()
    report = convert(model, exclude)
    assert report.left == {name: f"torch.nn.{NAMES[name]}, {why}" for name, why in left.items()}
    assert list(report.converted) == [name for name in NAMES if name not in left]
    for name, kind in NAMES.items():
        library = nn if name in left else hetkern.nn
        assert type(model.get_submodule(name)) is getattr(library, kind)


def test_a_shared_module_is_left_if_one_of_its_names_is_excluded():
    softmax = nn.Softmax(-1)
    report = convert(nn.Sequential(Attention(softmax), Attention(softmax)), exclude="1")
    assert type(softmax) is nn.Softmax
    assert list(report.left) == ["0.softmax", "1.softmax"] and report.converted == {}


def test_exclude_holds_on_the_way_back():
    model = Model()
    convert(model)
    report = convert(model, exclude="head", to="torch")
    assert report.left == {"head": "hetkern.nn.LogSoftmax, excluded by 'head'"}
    assert type(model.head) is hetkern.nn.LogSoftmax and type(model.loss) is nn.CrossEntropyLoss


def test_the_report_prints_a_line_for_each_module():
    assert str(convert(nn.Sequential(nn.Softmax(-1), nn.Softmin(-1)))) == (
        "1 converted, 1 left\n"
        "  0: hetkern.nn.Softmax\n"
        "  1: left as torch.nn.Softmin, hetkern has no drop-in for it"
    )


# ---- Bad input: nothing is swapped. --------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"exclude": "haed"},
            ValueError,
            "exclude: the model has no module 'haed'; did you mean 'head'?",
        ),
        ({"exclude": ["zzz"]}, ValueError, "exclude: the model has no module 'zzz'"),
        ({"exclude": [3]}, TypeError, "exclude: wanted names and classes, got 3"),
        ({"to": "jax"}, ValueError, "to: wanted 'hetkern' or 'torch', got 'jax'"),
    ],
)
def test_bad_arguments_are_named_and_change_nothing(arguments, error, message):
    model = Model()
    with pytest.raises(error) as caught:
        convert(model, **arguments)
    assert str(caught.value) == f"hetkern.nn.convert: {message}"
    assert all(type(model.get_submodule(name)) is getattr(nn, kind) for name, kind in NAMES.items())


def test_a_model_that_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"model: wanted a torch.nn.Module, got <class 'dict'>"):
        convert({})
