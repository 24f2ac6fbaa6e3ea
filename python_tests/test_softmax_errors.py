"""What bad input to softmax gets: an error that names op, argument, wanted and got."""

import pytest
import torch

import hetkern
from hetkern.testing.devices import here

pytestmark = pytest.mark.any_level

X = torch.zeros(2, 3)
WRONG = {
    "dim past the end": ({"dim": 2}, IndexError, r"dim: wanted .*-2.*1.*got 2"),
    "dim before the start": ({"dim": -3}, IndexError, r"dim: wanted .*got -3"),
    "integer x": ({"x": X.long()}, ValueError, r"x: wanted .*float.*got .*int64"),
    "complex x": ({"x": X.cfloat()}, ValueError, r"x: wanted .*float.*got .*complex"),
    "integer result": ({"dtype": torch.int64}, ValueError, r"dtype: wanted .*got .*int64"),
    "float mask": ({"mask": X}, ValueError, r"mask: wanted .*bool.*got .*float32"),
    "wide bias": ({"bias": torch.zeros(4)}, ValueError, r"bias: wanted .*2, 3.*got .*4"),
    "deep bias": ({"bias": torch.zeros(1, 2, 3)}, ValueError, r"bias: wanted .*got .*1, 2, 3"),
    "wide mask": ({"mask": torch.ones(3, 3) > 0}, ValueError, r"mask: wanted .*got .*3, 3"),
    "sink of x's shape": ({"sink": X}, ValueError, r"sink: wanted .*2.*got .*2, 3"),
    "softcap of 0": ({"softcap": 0.0}, ValueError, r"softcap: wanted .*above 0.*got (0|0\.0)$"),
    "negative softcap": ({"softcap": -2.0}, ValueError, r"softcap: wanted .*got -2"),
    "causal along another dim": ({"dim": 0, "causal": True}, ValueError, r"causal: wanted .*got"),
    "causal in one dimension": (
        {"x": torch.zeros(3), "causal": True},
        ValueError,
        r"causal: wanted .*got",
    ),
}


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("wrong, error, message", WRONG.values(), ids=WRONG)
def test_softmax_refuses_by_name(impl, wrong, error, message, grad, log):
    arguments = here({"x": X} | wrong)
    if grad and arguments["x"].is_floating_point():
        arguments["x"] = arguments["x"].clone().requires_grad_()
    public = hetkern.log_softmax if log else hetkern.softmax
    with pytest.raises(error, match=rf"softmax: {message}"):
        public(**arguments)


@pytest.mark.parametrize("name", ["bias", "sink"])
def test_softmax_refuses_mixed_dtypes_outside_autocast(native, name):
    tensor = {"bias": torch.zeros(3), "sink": torch.zeros(2)}[name]
    with pytest.raises(ValueError, match=rf"softmax: {name}: wanted .*bfloat16.*got .*float"):
        hetkern.softmax(here(X).bfloat16(), **{name: tensor})


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", ["bias", "mask", "sink"])
def test_softmax_refuses_a_tensor_on_another_device(native, name, grad):
    tensor = {"bias": torch.zeros(3), "mask": torch.ones(3) > 0, "sink": torch.zeros(2)}[name]
    x = here(X).clone().requires_grad_(grad)
    with pytest.raises(
        ValueError, match=rf"softmax\w*: {name}: wanted a tensor on .*got one on meta"
    ):
        hetkern.softmax(x, **{name: tensor.to("meta")})


def test_softmax_refuses_a_scale_that_wants_a_gradient(impl):
    learned = torch.tensor(2.0, requires_grad=True)
    with pytest.raises(NotImplementedError, match=r"softmax: scale: wanted a number.*multiply"):
        hetkern.softmax(here(X), scale=learned)
    for scale in (2, torch.tensor(2.0), learned.detach()):
        assert torch.equal(hetkern.softmax(here(X), scale=scale), hetkern.softmax(here(X) * 2.0))


def test_softmax_refuses_what_is_no_tensor():
    with pytest.raises(TypeError, match=r"log_softmax: x: wanted a tensor, got list"):
        hetkern.log_softmax([1.0, 2.0])


def test_softmax_refuses_an_unknown_implementation():
    with pytest.raises(ValueError, match=r"softmax: impl: wanted .*cpu.*reference.*got 'gpu'"):
        hetkern.softmax(X, impl="gpu")


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_softmax_named_implementation_never_falls_back(name):
    with pytest.raises(NotImplementedError, match=rf"softmax: impl: '{name}' cannot run here: \w+"):
        hetkern.softmax(X, impl=name)


def test_softmax_registered_op_checks_its_arguments_itself(native):
    """torch.ops can be called past Python: nothing is read out of bounds."""
    op, x = torch.ops.hetkern.softmax, here(X)
    with pytest.raises(ValueError, match=r"softmax: bias: wanted .*got"):
        op(x, -1, None, 1.0, 0.0, torch.zeros(4), None, False, False)
    with pytest.raises(IndexError, match=r"softmax: dim: wanted .*got 5"):
        op(x, 5, None, 1.0, 0.0, None, None, False, False)
    with pytest.raises(ValueError, match=r"softmax: mask: wanted .*got"):
        op(x, -1, None, 1.0, 0.0, None, torch.ones(4) > 0, False, False)
    backward = torch.ops.hetkern.softmax_backward
    with pytest.raises(ValueError, match=r"softmax_backward: dy: wanted .*got"):
        backward(torch.zeros(2, 4), x, None, -1, x.dtype, 1.0, 0.0, None, False, False, None)
    with pytest.raises(ValueError, match=r"softmax_backward: y_sink: wanted .*got"):
        backward(x, x, None, -1, x.dtype, 1.0, 0.0, None, False, False, torch.zeros(5))


def test_softmax_refuses_by_the_same_name_when_compiled(native):
    compiled = torch.compile(lambda x, b: hetkern.softmax(x, bias=b), backend="aot_eager")
    with pytest.raises(ValueError, match=r"softmax: bias: wanted .*got"):
        compiled(here(X), torch.zeros(4))
