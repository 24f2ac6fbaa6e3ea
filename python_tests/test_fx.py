"""torch.fx traces models with our modules and functions as it does with torch's."""

import copy
import inspect
import io
import operator
import pickle

import pytest
import torch
import torch.nn.functional as torch_functional
from torch import fx, nn

import hetkern
import hetkern.nn.functional as HF
from hetkern import reference

pytestmark = [
    pytest.mark.filterwarnings("ignore::hetkern.impl.Fallback"),
    pytest.mark.filterwarnings("ignore:Implicit dimension choice"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
MODULES = [
    thing
    for name in hetkern.nn.__all__
    if inspect.isclass(thing := getattr(hetkern.nn, name)) and issubclass(thing, nn.Module)
]


def scores():
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def classes():
    return torch.tensor([0, 3, 1, 2, 0])


class WithLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.attention = nn.Sequential(nn.LogSoftmax(-1), nn.Softmax())
        self.loss = nn.CrossEntropyLoss(torch.arange(1.0, 5.0), label_smoothing=0.1)

    def forward(self, x, target):
        x = self.head(x)
        return self.attention(x), self.loss(x, target)


class Mine(fx.Tracer):
    """As those of feature extractors: it asks in its own words, and names what it meets."""

    def __init__(self):
        super().__init__()
        self.met = []

    def is_leaf_module(self, m, module_qualified_name):
        return m.__module__.startswith("torch.nn") and not isinstance(m, nn.Sequential)

    def call_module(self, m, forward, args, kwargs):
        self.met.append(self.path_of_module(m))
        return super().call_module(m, forward, args, kwargs)


class NoLeaves(fx.Tracer):
    def is_leaf_module(self, m, module_qualified_name):
        return False


def nodes(graph):
    return [(node.op, node.target, node.name) for node in graph.nodes]


def alive(graph_module):
    """The module again: copied, pickled in each protocol, saved, and as its code says."""
    assert compile(graph_module.code, "", "exec")
    yield graph_module
    yield copy.deepcopy(graph_module)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        yield pickle.loads(pickle.dumps(graph_module, protocol))
    file = io.BytesIO()
    torch.save(graph_module, file)
    file.seek(0)
    yield torch.load(file, weights_only=False)


# ---- Modules. ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tracer", [fx.Tracer, Mine])
def test_a_converted_model_has_the_graph_that_it_had(tracer):
    model = WithLoss()
    before = nodes(tracer().trace(model))
    hetkern.nn.convert(model)
    graph = tracer().trace(model)
    assert nodes(graph) == before
    wanted = model(scores(), classes())
    for again in alive(fx.GraphModule(model, graph)):
        assert type(again.get_submodule("loss")) is hetkern.nn.CrossEntropyLoss
        assert [torch.equal(*pair) for pair in zip(again(scores(), classes()), wanted, strict=True)]
        again(scores(), classes())[1].backward()
        assert again.head.weight.grad.abs().max() > 0


def test_a_model_that_is_traced_down_to_functions_computes_the_same():
    model = WithLoss()
    hetkern.nn.convert(model)
    graph = NoLeaves().trace(model)
    targets = {node.target for node in graph.nodes if node.op == "call_function"}
    assert {HF.softmax, hetkern.log_softmax, hetkern.cross_entropy} <= targets
    for again in alive(fx.GraphModule(model, graph)):
        torch.testing.assert_close(
            again(scores(), classes()), model(scores(), classes()), rtol=0, atol=0
        )


def test_features_are_taken_from_a_converted_model():
    """By the module's name, as torchvision's extractors do."""
    model = WithLoss()
    hetkern.nn.convert(model)
    tracer = Mine()
    graph = tracer.trace(model)
    assert tracer.met == ["head", "attention", "attention.0", "attention.1", "loss"]
    (inner,) = [node for node in graph.nodes if node.target == "attention.0"]
    (output,) = [node for node in graph.nodes if node.op == "output"]
    output.args = (inner,)
    features = fx.GraphModule(model, graph)
    features.graph.eliminate_dead_code()
    features.recompile()
    assert "loss" not in features.code
    assert torch.equal(features(scores(), None), model.attention[0](model.head(scores())))


def test_a_pass_finds_our_modules_as_torchs_and_replaces_them():
    model = nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1))
    hetkern.nn.convert(model)
    traced = fx.symbolic_trace(model)
    for node in traced.graph.nodes:
        if node.op == "call_module" and isinstance(traced.get_submodule(node.target), nn.Softmax):
            with traced.graph.inserting_after(node):
                relu = traced.graph.call_function(torch.relu, node.args)
                node.replace_all_uses_with(relu)
            traced.graph.erase_node(node)
    traced.recompile()
    assert torch.equal(traced(scores()), model[0](scores()).relu())


def test_a_model_is_quantised_with_our_softmax_left_in_it():
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_fx

    model = nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1)).eval()
    hetkern.nn.convert(model)
    prepared = prepare_fx(model, get_default_qconfig_mapping(), (scores(),))
    assert type(prepared.get_submodule("1")) is hetkern.nn.Softmax
    assert torch.equal(prepared(scores()), model(scores()))


def test_a_users_subclass_is_looked_into_as_one_of_torchs_is():
    class Sharp(hetkern.nn.Softmax):
        def forward(self, input):
            return super().forward(10 * input)

    model = nn.Sequential(Sharp(-1))
    traced = fx.symbolic_trace(model)
    assert [n.target for n in traced.graph.nodes][1:3] == [operator.mul, hetkern.softmax]
    assert torch.equal(traced(scores()), model(scores()))


@pytest.mark.parametrize("kind", MODULES, ids=lambda kind: kind.__name__)
def test_a_class_says_truly_where_it_is_and_pickles(kind):
    recurrent = issubclass(kind, (nn.RNNBase, nn.RNNCellBase))
    heads = issubclass(kind, nn.MultiheadAttention)
    place = "recurrent_cells" if issubclass(kind, nn.RNNCellBase) else "recurrent"
    place = f"hetkern.nn.{place if recurrent else 'attention' if heads else 'modules'}"
    assert kind.__module__ == place
    assert repr(kind) == f"<class '{place}.{kind.__name__}'>"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        sizes = (2, 3) if recurrent else (4, 2) if heads else ()
        data = pickle.dumps((kind, kind(*sizes)), protocol)
        again, module = pickle.loads(data)
        assert again is type(module) is kind
        assert b"_Place" not in data  # it can be read by a hetkern that does without


# ---- Functions. ----------------------------------------------------------------------------------


class Calls(nn.Module):
    """A call in a user's own forward, on inputs, a parameter and a buffer."""

    def __init__(self, call):
        super().__init__()
        self.call = call
        self.parameter = nn.Parameter(torch.linspace(-1, 1, 4))
        self.register_buffer("buffer", torch.linspace(0.5, 2, 4))
        self.register_buffer("keep", torch.eye(5, 4, dtype=torch.bool))

    def forward(self, x, target):
        return self.call(self, x, target)


CALLS = {
    "softmax": lambda m, x, t: hetkern.softmax(x),
    "softmax, options": lambda m, x, t: hetkern.softmax(
        x, 0, torch.float64, scale=0.5, softcap=2.0, bias=m.parameter, mask=m.keep, impl="reference"
    ),
    "softmax, causal": lambda m, x, t: hetkern.softmax(x, causal=True, sink=m.parameter[0]),
    "softmax of a constant": lambda m, x, t: hetkern.softmax(m.buffer, bias=x[0]),
    "softmax with a measured scale": lambda m, x, t: hetkern.softmax(x, scale=x.size(-1) ** -0.5),
    "softmax with a measured softcap": lambda m, x, t: hetkern.softmax(m.buffer, softcap=x.size(0)),
    "log_softmax": lambda m, x, t: hetkern.log_softmax(x, dim=0),
    "cross_entropy": lambda m, x, t: hetkern.cross_entropy(x, t),
    "cross_entropy, options": lambda m, x, t: hetkern.cross_entropy(
        x, t, m.buffer, 0, "sum", 0.1, scale=0.5, softcap=3.0, z_loss=0.1
    ),
    "cross_entropy of a constant": lambda m, x, t: hetkern.cross_entropy(m.buffer, t[0]),
    "cross_entropy with statistics": lambda m, x, t: unpacked(
        hetkern.cross_entropy(x, x.softmax(-1), return_stats=True)
    ),
    "F.softmax": lambda m, x, t: HF.softmax(x, -1),
    "F.softmax, guessed": lambda m, x, t: HF.softmax(x, scale=2.0),
    "F.log_softmax, guessed": lambda m, x, t: HF.log_softmax(x, dtype=torch.float64),
    "F.cross_entropy": lambda m, x, t: HF.cross_entropy(x, t, None, False, -100, None),
    "F.scaled_dot_product_attention": lambda m, x, t: HF.scaled_dot_product_attention(
        x, x, x, None, 0.0, True
    ),
    "F.scaled_dot_product_attention with a measured scale": lambda m, x, t: (
        HF.scaled_dot_product_attention(x, x, x, scale=x.size(-1) ** -0.5)
    ),
    "attention": lambda m, x, t: hetkern.attention(
        x[None, None], x[None, None], x[None, None], causal=True, window=(2, 0)
    ),
    "reference.softmax": lambda m, x, t: reference.softmax(x, mask=m.keep),
    "reference.cross_entropy": lambda m, x, t: reference.cross_entropy(x, target=t),
}


def unpacked(result):
    loss, stats = result
    return loss, stats.lse


@pytest.mark.parametrize("name", CALLS)
def test_a_call_in_a_forward_is_traced_and_runs_as_it_does_eagerly(name):
    model = Calls(CALLS[name])
    wanted = model(scores(), classes())
    model.call = None  # a lambda does not pickle
    traced = Calls(CALLS[name])
    graph_module = fx.GraphModule(model, fx.Tracer().trace(traced))
    for again in alive(graph_module):
        torch.testing.assert_close(again(scores(), classes()), wanted, rtol=0, atol=0)


def test_no_public_function_is_forgotten():
    """A family that comes later as well."""
    spaces = {"": hetkern, "F.": HF, "reference.": reference}
    public = {
        space + name
        for space, module in spaces.items()
        for name in module.__all__
        if name in HF.__all__ or (name == "attention" and module is hetkern)
    }
    assert public == {call.split(",")[0].split(" ")[0] for call in CALLS}


def test_a_graph_says_no_more_than_was_asked():
    class Model(nn.Module):
        def forward(self, x, target):
            return hetkern.cross_entropy(hetkern.log_softmax(x, scale=2.0), target)

    code = fx.symbolic_trace(Model()).code
    assert "log_softmax(x, scale = 2.0)" in code
    assert "cross_entropy(log_softmax, target)" in code


def test_what_is_no_tensor_and_stands_for_none_is_refused_as_before():
    for call in (hetkern.softmax, hetkern.log_softmax):
        with pytest.raises(TypeError, match="x: wanted a tensor, got list"):
            call([1.0])
    with pytest.raises(TypeError, match="target: wanted a tensor, got int"):
        hetkern.cross_entropy(scores(), 1)


def test_a_subclass_of_tensor_is_no_stand_in():
    """Its ``__torch_function__`` hears of the op, as before."""

    heard = []

    class Logged(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            heard.append(function)
            return super().__torch_function__(function, types, args, kwargs)

    y = hetkern.softmax(scores().as_subclass(Logged))
    assert hetkern.softmax not in heard
    torch.testing.assert_close(y.as_subclass(torch.Tensor), scores().softmax(-1))


def test_torchs_own_functions_are_traced_by_the_same_rule():
    """What the tests above ask of ours holds for torch's."""
    model = Calls(lambda m, x, t: torch_functional.softmax(x))
    traced = fx.Tracer().trace(model)
    assert [n.target for n in traced.nodes][2] is torch_functional.softmax
