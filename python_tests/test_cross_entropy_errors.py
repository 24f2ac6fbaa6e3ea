"""What bad input to cross-entropy gets: an error that names op, argument, wanted and got."""

import pytest
import torch

import hetkern
from hetkern.testing.devices import here

pytestmark = pytest.mark.any_level

X, T = torch.zeros(2, 3), torch.tensor([0, 2])
WRONG = {
    "integer input": ({"input": X.long()}, r"input: wanted .*float.*got .*int64"),
    "scalar input": ({"input": torch.tensor(0.0)}, r"input: wanted .*class.*got"),
    "no classes": ({"input": torch.zeros(2, 0)}, r"input: wanted .*class.*got .*2, 0"),
    "too few targets": ({"target": T[:1]}, r"target: .*wanted .*2.*got .*1"),
    "a target too many": ({"target": torch.tensor([0, 1, 2])}, r"target: .*wanted .*2.*got .*3"),
    "target of another rank": ({"target": T[:, None]}, r"target: .*wanted .*2.*got .*2, 1"),
    "probabilities of another shape": (
        {"target": torch.zeros(2, 4)},
        r"target: .*wanted .*2, 3.*got .*2, 4",
    ),
    "boolean target": (
        {"target": torch.zeros(2, dtype=torch.bool)},
        r"target: .*wanted .*got .*[Bb]ool",
    ),
    "short weight": ({"weight": torch.ones(2)}, r"weight: wanted .*3.*got .*2"),
    "deep weight": ({"weight": torch.ones(1, 3)}, r"weight: wanted .*3.*got .*1, 3"),
    "unknown reduction": ({"reduction": "average"}, r"reduction: wanted .*mean.*got '?average"),
    "too much smoothing": ({"label_smoothing": 1.5}, r"label_smoothing: wanted .*got 1\.5"),
    "negative smoothing": ({"label_smoothing": -0.1}, r"label_smoothing: wanted .*got -0\.1"),
    "softcap of 0": ({"softcap": 0.0}, r"softcap: wanted .*above 0.*got 0"),
    "ignored probabilities": (
        {"target": X.softmax(1), "ignore_index": 1},
        r"ignore_index: wanted .*got 1",
    ),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("wrong, message", WRONG.values(), ids=WRONG)
def test_cross_entropy_refuses_by_name(impl, wrong, message, grad):
    arguments = here({"input": X, "target": T} | wrong)
    if grad and arguments["input"].is_floating_point():
        arguments["input"] = arguments["input"].clone().requires_grad_()
    with pytest.raises(ValueError, match=rf"cross_entropy: {message}"):
        hetkern.cross_entropy(**arguments)


@pytest.fixture
def on_cpu(native):
    """``native`` where its kernels refuse a bad target: a GPU's trap."""
    if native.device != "cpu":
        pytest.skip("a trap ends the process's use of the GPU: gpu_check's driver meets it alone")
    return native


@pytest.mark.parametrize("bad", [3, -1, 2**40, -(2**40), torch.iinfo(torch.int64).min])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_cross_entropy_refuses_a_target_out_of_range_with_its_row(on_cpu, bad, reduction):
    target = torch.tensor([0, 1, 2, 1, bad, 0])
    for x in (torch.zeros(6, 3), torch.zeros(6, 3, requires_grad=True)):
        with pytest.raises(IndexError, match=rf"cross_entropy: target: wanted .*3.*got {bad}.*4"):
            hetkern.cross_entropy(x, target, reduction=reduction)


def test_cross_entropy_refuses_a_target_out_of_range_on_every_thread(on_cpu):
    target = torch.zeros(50_000, dtype=torch.long)
    target[49_999] = 64
    with pytest.raises(IndexError, match=r"cross_entropy: target: .*got 64.*49999"):
        hetkern.cross_entropy(torch.zeros(50_000, 64), target)


def test_cross_entropy_reference_refuses_a_target_out_of_range():
    with pytest.raises(IndexError, match=r"cross_entropy: target: wanted .*3.*got 3 in row 1"):
        hetkern.cross_entropy(X, torch.tensor([0, 3]), impl="reference")
    with pytest.raises(IndexError, match=r"target: wanted .*3.*7, got -1 in row 1"):
        hetkern.cross_entropy(X, torch.tensor([7, -1]), ignore_index=7, impl="reference")


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", ["input", "target", "weight"])
def test_cross_entropy_refuses_a_tensor_on_another_device(native, name, grad):
    arguments = here({"input": X, "target": T, "weight": torch.ones(3)})
    arguments[name] = arguments[name].to("meta")
    arguments["input"] = arguments["input"].clone().requires_grad_(grad)
    with pytest.raises(ValueError, match=r"cross_entropy: \w+: wanted a tensor on .*, got one on "):
        hetkern.cross_entropy(**arguments)


@pytest.mark.parametrize("name", ["scale", "z_loss"])
def test_cross_entropy_refuses_a_number_that_wants_a_gradient(impl, name):
    learned = torch.tensor(2.0, requires_grad=True)
    with pytest.raises(NotImplementedError, match=rf"cross_entropy: {name}: wanted a number"):
        hetkern.cross_entropy(here(X), here(T), **{name: learned})
    once = hetkern.cross_entropy(here(X), here(T), **{name: torch.tensor(2.0)})
    assert torch.equal(once, hetkern.cross_entropy(here(X), here(T), **{name: 2.0}))


@pytest.mark.parametrize("name", ["input", "target"])
def test_cross_entropy_refuses_what_is_no_tensor(name):
    with pytest.raises(TypeError, match=rf"cross_entropy: {name}: wanted a tensor, got list"):
        hetkern.cross_entropy(**{"input": X, "target": T} | {name: [0.0, 1.0]})


def test_cross_entropy_names_each_dtype_that_a_weight_may_have_once():
    wanted = r"weight: wanted torch.float32, got torch.float64"
    with pytest.raises(ValueError, match=wanted):
        hetkern.cross_entropy(X, T, torch.ones(3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"wanted torch.bfloat16 or torch.float32, got"):
        hetkern.cross_entropy(X.bfloat16(), T, torch.ones(3, dtype=torch.float64))


def test_explain_refuses_a_loss_of_a_scalar():
    with pytest.raises(ValueError, match="input: wanted a class dimension, got a scalar"):
        hetkern.explain(hetkern.cross_entropy, torch.tensor(1.0), torch.tensor(0))


def test_cross_entropy_takes_an_ignored_index_that_would_be_out_of_range(impl):
    x, target = torch.randn(3, 4), torch.tensor([0, 99, 3])
    loss = hetkern.cross_entropy(x, target, ignore_index=99, impl=impl.name)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(x[[0, 2]], target[[0, 2]]))


def test_cross_entropy_refuses_an_unknown_implementation():
    with pytest.raises(ValueError, match=r"cross_entropy: impl: wanted .*cpu.*got 'gpu'"):
        hetkern.cross_entropy(X, T, impl="gpu")


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_cross_entropy_named_implementation_never_falls_back(name):
    with pytest.raises(NotImplementedError, match=rf"impl: '{name}' cannot run here: \w+"):
        hetkern.cross_entropy(X, T, impl=name)


def test_cross_entropy_refuses_by_the_same_name_when_compiled(on_cpu):
    compiled = torch.compile(lambda x, t: hetkern.cross_entropy(x, t), backend="aot_eager")
    with pytest.raises(IndexError, match=r"cross_entropy: target: wanted .*got 3"):
        compiled(here(X), torch.tensor([0, 3]))
