"""hetkern.nn and hetkern.nn.functional are torch's, by signature, state, repr and value."""

import copy
import inspect
import io
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as torch_functional
from torch import nn

import hetkern
from hetkern.nn import functional

FUNCTIONS = functional.__all__
MODULES = {
    "Softmax": "softmax",
    "LogSoftmax": "log_softmax",
    "CrossEntropyLoss": "cross_entropy",
}  # -> function
pytestmark = pytest.mark.filterwarnings("ignore::hetkern.impl.Fallback")


def scores():
    return torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))


def classes():
    return torch.randint(5, (4, 6), generator=torch.Generator().manual_seed(1))


def call_of(name):
    """Arguments that suit the function or module called ``name``."""
    return (scores(), classes()) if "ross" in name else (scores(),)


def parameters_of(function):
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


# ---- Signatures. ---------------------------------------------------------------------------------


# torch's own is built in, without a signature to read: test_attention_nn.py has its.
@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n != "scaled_dot_product_attention"])
def test_functional_begins_with_torchs_signature_and_ours_follow_by_keyword(name):
    torchs = parameters_of(getattr(torch_functional, name))
    ours = parameters_of(getattr(functional, name))
    assert ours[: len(torchs)] == torchs
    assert len(ours) > len(torchs)
    assert all(kind is inspect.Parameter.KEYWORD_ONLY for _, kind, _ in ours[len(torchs) :])


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n != "scaled_dot_product_attention"])
def test_functional_has_every_option_of_the_public_function(name):
    public = inspect.signature(getattr(hetkern, name)).parameters
    options = [p.name for p in public.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    ours = inspect.signature(getattr(functional, name)).parameters
    assert "impl" in options and set(options) <= set(ours)


@pytest.mark.parametrize("name", MODULES)
def test_modules_begin_with_torchs_constructor_and_ours_follow_by_keyword(name):
    torchs = parameters_of(getattr(nn, name).__init__)
    ours = parameters_of(getattr(hetkern.nn, name).__init__)
    assert ours[: len(torchs)] == torchs
    assert len(ours) > len(torchs)
    assert all(kind is inspect.Parameter.KEYWORD_ONLY for _, kind, _ in ours[len(torchs) :])


# ---- functional: every way to call torch's. ------------------------------------------------------


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((1,), {}),
        ((-1, 3, torch.float64), {}),
        ((), {"dim": 0, "dtype": torch.bfloat16}),
        ((2,), {"_stacklevel": 5}),
    ],
)
def test_functional_softmax_equals_torchs_in_every_way_of_calling(name, args, kwargs):
    x = scores()
    y, wanted = (
        getattr(library, name)(x, *args, **kwargs) for library in (functional, torch_functional)
    )
    assert y.dtype == wanted.dtype
    torch.testing.assert_close(y, wanted)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((torch.arange(1.0, 6.0), None, 3, None, "sum", 0.1), {}),
        ((), {"weight": torch.arange(1.0, 6.0), "reduction": "none", "ignore_index": 2}),
        ((None, False), {}),
        ((None, True, -100, True), {}),
        ((), {"reduce": False}),
        ((), {"size_average": False, "reduce": True, "reduction": "none"}),
    ],
)
@pytest.mark.filterwarnings("ignore:size_average and reduce args")
def test_functional_cross_entropy_equals_torchs_in_every_way_of_calling(args, kwargs):
    x, t = scores(), classes()
    loss = functional.cross_entropy(x, t, *args, **kwargs)
    torch.testing.assert_close(loss, torch_functional.cross_entropy(x, t, *args, **kwargs))


def test_legacy_reduction_warns_as_torchs():
    with pytest.warns(UserWarning, match="please use reduction='sum' instead"):
        functional.cross_entropy(scores(), classes(), size_average=False)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("dims", range(5))
def test_a_missing_dim_is_guessed_with_the_warning_of_torch_at_the_users_line(name, dims):
    x = torch.randn([3] * dims)
    with pytest.warns(
        UserWarning, match=f"Implicit dimension choice for {name} has been deprecated"
    ) as seen:
        y = getattr(functional, name)(x)
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = getattr(torch_functional, name)(x)
    torch.testing.assert_close(y, wanted)


def test_functional_passes_our_options_on():
    x, mask = scores(), torch.rand(4, 5, 6) > 0.3
    options = {
        "scale": 0.5,
        "softcap": 3.0,
        "bias": scores()[0],
        "mask": mask,
        "sink": torch.zeros(4, 5),
    }
    for name in ("softmax", "log_softmax"):
        assert torch.equal(
            getattr(functional, name)(x, -1, **options), getattr(hetkern, name)(x, -1, **options)
        )
    assert torch.equal(functional.softmax(x, -1, causal=True), hetkern.softmax(x, -1, causal=True))
    options = {"scale": 0.5, "softcap": 3.0, "z_loss": 0.1, "return_stats": True}
    loss, stats = functional.cross_entropy(x, classes(), **options)
    wanted, wanted_stats = hetkern.cross_entropy(x, classes(), **options)
    assert torch.equal(loss, wanted) and torch.equal(stats.lse, wanted_stats.lse)
    assert loss != hetkern.cross_entropy(x, classes())


# ---- Modules. ------------------------------------------------------------------------------------


def pair(name, *args, **kwargs):
    """Ours and torch's."""
    return (getattr(library, name)(*args, **kwargs) for library in (hetkern.nn, nn))


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_an_instance_of_torchs(name):
    ours, torchs = pair(name)
    assert isinstance(ours, type(torchs))


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("Softmax", (1,)),
        ("LogSoftmax", (-1,)),
        ("CrossEntropyLoss", (torch.arange(1.0, 6.0), None, 2, None, "sum", 0.1)),
    ],
)
def test_a_module_computes_what_torchs_does_with_gradient(name, args):
    results = []
    for module in pair(name, *args):
        x, *rest = call_of(name)
        x.requires_grad_()
        y = module(x, *rest)
        y.square().sum().backward()
        results.append((y.detach(), x.grad))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", MODULES)
def test_the_implementation_that_a_module_names_runs(name):
    with hetkern.record() as log:
        getattr(hetkern.nn, name)(impl="reference", **({} if "ross" in name else {"dim": 1}))(
            *call_of(name)
        )
    assert [(call.impl, call.why) for call in log] == [("reference", "named in the call")]


def test_softmax_modules_guess_a_missing_dim_with_the_warning_of_torch():
    x = torch.randn(2, 3, 4, 5)
    for name in ("Softmax", "LogSoftmax"):
        told = []
        for module in pair(name):
            with pytest.warns(UserWarning, match="Implicit dimension choice") as seen:
                y = module(x)
            told.append((str(seen[0].message), seen[0].filename, seen[0].lineno))
        assert told[0] == told[1]
        torch.testing.assert_close(y, getattr(x, MODULES[name])(1))


def test_softmax_modules_take_masks_where_they_are_called():
    x, mask, bias, sink = scores(), torch.rand(4, 5, 6) > 0.3, scores()[0], torch.ones(4, 5)
    for name in ("Softmax", "LogSoftmax"):
        y = getattr(hetkern.nn, name)(-1, scale=0.5, softcap=4.0)(
            x, bias=bias, mask=mask, sink=sink
        )
        function = getattr(hetkern, MODULES[name])
        assert torch.equal(
            y, function(x, -1, scale=0.5, softcap=4.0, bias=bias, mask=mask, sink=sink)
        )
        y = getattr(hetkern.nn, name)(-1, causal=True)(x)
        assert torch.equal(y, function(x, -1, causal=True))


def test_cross_entropy_loss_passes_its_options_on():
    x, t = scores(), classes()
    module = hetkern.nn.CrossEntropyLoss(scale=0.5, softcap=4.0, z_loss=0.1, return_stats=True)
    loss, stats = module(x, t)
    wanted, _ = hetkern.cross_entropy(x, t, scale=0.5, softcap=4.0, z_loss=0.1, return_stats=True)
    assert torch.equal(loss, wanted)
    assert stats.correct.shape == (4, 6)


@pytest.mark.filterwarnings("ignore:size_average and reduce args")
def test_legacy_arguments_of_the_loss_overrule_reduction():
    for arguments in (
        {"size_average": False},
        {"reduce": False},
        {"size_average": True, "reduction": "sum"},
    ):
        ours, torchs = pair("CrossEntropyLoss", **arguments)
        assert ours.reduction == torchs.reduction


def test_state_dicts_are_torchs_both_ways():
    for name in MODULES:
        ours, torchs = pair(name)
        assert ours.state_dict() == torchs.state_dict() == {}
    ours, torchs = pair("CrossEntropyLoss", torch.arange(1.0, 6.0))
    assert list(ours.state_dict()) == list(torchs.state_dict()) == ["weight"]
    assert dict(ours.named_buffers()).keys() == {"weight"} and not list(ours.parameters())
    other = hetkern.nn.CrossEntropyLoss(torch.zeros(5))
    other.load_state_dict(torchs.state_dict())
    assert torch.equal(other.weight, torch.arange(1.0, 6.0))
    torchs.load_state_dict(hetkern.nn.CrossEntropyLoss(torch.full((5,), 7.0)).state_dict())
    assert torch.equal(torchs.weight, torch.full((5,), 7.0))
    assert ours.double().weight.dtype == torch.float64


def test_repr_is_torchs_and_then_the_options_that_were_chosen():
    for name, args in (("Softmax", (1,)), ("LogSoftmax", ()), ("CrossEntropyLoss", ())):
        ours, torchs = pair(name, *args)
        assert repr(ours) == repr(torchs)
    assert (
        repr(hetkern.nn.Softmax(-1, scale=0.5, causal=True))
        == "Softmax(dim=-1, scale=0.5, causal=True)"
    )
    loss = hetkern.nn.CrossEntropyLoss(z_loss=1e-4, impl="reference")
    assert repr(loss) == "CrossEntropyLoss(z_loss=0.0001, impl='reference')"


def saved_and_loaded(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded]
)
def test_a_copied_or_pickled_module_is_the_same_module(again):
    softmax = again(hetkern.nn.Softmax(-1, scale=0.5, impl="reference").eval())
    assert type(softmax) is hetkern.nn.Softmax and not softmax.training
    assert repr(softmax) == "Softmax(dim=-1, scale=0.5, impl='reference')"
    weight = torch.arange(1.0, 6.0)
    loss = again(hetkern.nn.CrossEntropyLoss(weight, label_smoothing=0.1, z_loss=0.5))
    wanted = hetkern.cross_entropy(scores(), classes(), weight, label_smoothing=0.1, z_loss=0.5)
    assert torch.equal(loss(scores(), classes()), wanted)


def test_an_option_may_be_set_after_construction():
    module = hetkern.nn.Softmax(-1)
    module.scale = 0.5
    assert torch.equal(module(scores()), hetkern.softmax(scores(), scale=0.5))
    assert "scale" not in vars(hetkern.nn.Softmax(-1))


@pytest.mark.parametrize("name", MODULES)
def test_a_module_compiles_in_one_graph(name):
    module = getattr(hetkern.nn, name)(**({} if "ross" in name else {"dim": 1}))
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*call_of(name)), module(*call_of(name)))


@pytest.mark.parametrize("name", MODULES)
def test_a_module_exports(name):
    module = getattr(hetkern.nn, name)(**({} if "ross" in name else {"dim": 1}))
    exported = torch.export.export(module, call_of(name))
    torch.testing.assert_close(exported.module()(*call_of(name)), module(*call_of(name)))
