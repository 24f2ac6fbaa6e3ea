"""Every derivative of softmax: first, second, forward mode, and under torch.func."""

import functools

import pytest
import torch
from composed import COMPOSED, forward_over_reverse
from torch.autograd import gradcheck, gradgradcheck

import hetkern
from hetkern import reference
from hetkern.testing import Case, check_op
from hetkern.testing.devices import normal
from hetkern.testing.values.dispatched import ops_of

pytestmark = pytest.mark.any_level

F64 = torch.float64


random = functools.partial(normal, dtype=F64)


OPS = ("softmax", "softmax_sink", "softmax_backward", "softmax_double_backward")


OPTIONS = {
    "plain": {},
    "scale": {"scale": -0.7},
    "softcap": {"softcap": 1.5, "scale": 0.7},
    "mask": {"mask": torch.tensor([True, True, False, True])},
    "causal": {"causal": True},
    "other dim": {"dim": 1},
    "everything but the dim": {
        "scale": 0.7,
        "softcap": 1.5,
        "mask": torch.tensor([True, True, False, True]),
        "causal": True,
    },
}


def function(log, options, impl="auto"):
    """The public function of x, bias and sink, of its finite entries."""
    public = hetkern.log_softmax if log else hetkern.softmax

    def call(x, bias=None, sink=None):
        y = public(x, impl=impl, bias=bias, sink=sink, **options)
        return y.masked_fill(y == -torch.inf, 0.0) if log else y

    return call


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_softmax_first_and_second_gradients_are_right(impl, options, log):
    x = random(2, 3, 4).requires_grad_()
    bias = random(3, 4, seed=1).requires_grad_()
    sink = random(2, 1, seed=2).requires_grad_() if "dim" not in options else None
    inputs = (x, bias) if sink is None else (x, bias, sink)
    for arguments in ((x,), inputs):
        assert gradcheck(function(log, options, impl.name), arguments)
        assert gradgradcheck(
            function(log, options, impl.name),
            arguments,
            check_fwd_over_rev=forward_over_reverse(impl),
        )


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_softmax_forward_mode_is_right(impl, options, log):
    x, bias = random(2, 3, 4).requires_grad_(), random(3, 4, seed=1).requires_grad_()
    call = function(log, options, impl.name)
    assert gradcheck(call, (x, bias), check_forward_ad=True, check_backward_ad=False)


@pytest.mark.parametrize("log", [False, True])
def test_softmax_registered_ops_have_right_gradients_when_called_directly(native, log):
    options = {"scale": 0.7, "softcap": 1.5}
    seen = {}
    for sink in (None, random(3, seed=2)):
        seen |= ops_of(lambda x, sink=sink: function(log, options)(x, sink=sink), random(3, 4))
    seen = {name.split("::")[1]: call for name, call in seen.items()}
    assert seen.keys() == set(OPS)
    for name, (op, args) in seen.items():
        variables = [i for i, a in enumerate(args) if torch.is_tensor(a) and a.is_floating_point()]

        def call(*tensors, op=op, args=args, variables=variables):
            given = list(args)
            for i, tensor in zip(variables, tensors, strict=True):
                given[i] = tensor
            return op(*given)

        leaves = [args[i].clone().requires_grad_() for i in variables]
        assert gradcheck(call, leaves), name
        if name == "softmax_double_backward":  # past the third, by torch's operations
            assert gradgradcheck(call, leaves)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_softmax_hessian_vector_products_are_right(impl, options, log):
    """torch's hvp differentiates a second derivative once more, by what it is linear in."""
    x, v = random(2, 3, 4), random(2, 3, 4, seed=1)
    call = function(log, options, impl.name)

    def loss(x):
        return call(x).sin().sum()

    product = torch.autograd.functional.hvp(loss, x, v)[1]
    torch.testing.assert_close(product, torch.autograd.functional.vhp(loss, x, v)[1])


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("kind", ["plain", "softcap", "mask"])
def test_softmax_double_backward_is_within_budget(impl, kind, log):
    """The backward, as an operation of x and dy, is held to the reference's like any other."""

    def backward_of(softmax):
        def backward(x, dy):
            x = x if x.requires_grad else x.detach().requires_grad_()
            return torch.autograd.grad(softmax(x), x, dy, create_graph=True)[0]

        return backward

    length = 300
    options = dict(OPTIONS[kind])
    if kind == "mask":
        options["mask"] = torch.arange(length) % 3 > 0

    def options_beside(x):
        return {n: v.to(x.device) if torch.is_tensor(v) else v for n, v in options.items()}

    def ours(x):
        return function(log, options_beside(x), impl.name)(x)

    def exact(x):
        y = reference.softmax(x, log=log, **options_beside(x))
        return y.masked_fill(y == -torch.inf, 0.0) if log else y

    x, dy = (random(4, length, seed=seed, dtype=torch.float32) for seed in (0, 1))
    check_op(backward_of(ours), backward_of(exact), [Case(kind, (x, dy))], [torch.float32])


@pytest.mark.parametrize("log", [False, True])
def test_softmax_gradient_can_be_taken_twice_and_from_two_losses(impl, log):
    x = random(3, 4).requires_grad_()
    y = function(log, {}, impl.name)(x)
    first = torch.autograd.grad(y.sum() + y.square().sum(), x, retain_graph=True)[0]
    again = torch.autograd.grad(y.sum() + y.square().sum(), x)[0]
    assert torch.equal(first, again)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_softmax_works_under_torch_func(impl, options, log):
    """grad, vmap, per-sample gradients, jvp and jacrev agree with plain autograd."""
    call = function(log, options, impl.name)
    x, tangent, weights = random(5, 2, 3, 4), random(5, 2, 3, 4, seed=1), random(2, 3, 4, seed=2)
    torch.testing.assert_close(torch.func.vmap(call)(x), torch.stack([call(one) for one in x]))

    def loss(one):
        return (call(one) * weights).sum()

    per_sample = torch.func.vmap(torch.func.grad(loss))(x)
    for one, got in zip(x, per_sample, strict=True):
        one = one.clone().requires_grad_()
        torch.testing.assert_close(got, torch.autograd.grad(loss(one), one)[0])

    _, pushed = torch.func.jvp(call, (x[0],), (tangent[0],))
    jacobian = torch.func.jacrev(call)(x[0]).reshape(24, 24)
    torch.testing.assert_close(pushed.reshape(24), jacobian @ tangent[0].reshape(24))


def test_softmax_takes_a_tensor_that_outlived_torch_func(impl):
    x, escaped = random(2, 4).requires_grad_(), []
    torch.func.grad(lambda inside: (escaped.append(inside), inside.sum())[1])(x)
    got, wanted = (
        torch.autograd.grad(hetkern.softmax(t, impl=impl.name).square().sum(), x)[0]
        for t in (escaped[0], x)
    )
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("who", ["x", "bias", "sink"])
@pytest.mark.parametrize("composed", COMPOSED.values(), ids=COMPOSED)
@pytest.mark.parametrize("log", [False, True])
def test_softmax_derivatives_go_through_vmap(impl, log, composed, who):
    """A derivative of a batched call is that of its samples one by one."""
    inputs = {"x": random(3, 2, 4), "bias": random(3, 4, seed=1), "sink": random(3, 2, seed=2)}
    public, weights = hetkern.log_softmax if log else hetkern.softmax, random(3, 2, 4, seed=4)
    names = ("x", who) if who != "x" else ("x",)

    def loss(batched):
        def call(*tensors):
            x, *more = tensors
            return public(x, impl=impl.name, **dict(zip(names[1:], more, strict=True)))

        def total(tensor):
            tensors = [tensor if name == who else inputs[name] for name in names]
            if batched:
                y = torch.func.vmap(call)(*tensors)
            else:
                y = torch.stack([call(*one) for one in zip(*tensors, strict=True)])
            return (y * weights).square().sum()

        return total

    got, wanted = (
        composed(loss(batched), inputs[who].clone().requires_grad_()) for batched in (True, False)
    )
    torch.testing.assert_close(got, wanted)
    assert wanted.abs().max() > 1e-3


@pytest.mark.parametrize("in_dim", [0, 1, -1])
def test_softmax_batches_over_any_dimension_and_with_its_bias_mask_and_sink(impl, in_dim):
    x, bias = random(3, 4, 5).movedim(0, in_dim), random(5, 3, seed=1)
    mask, sink = (random(3, 5, seed=2) > -0.5), random(3, 4, seed=3)

    def call(x, bias, mask, sink):
        return hetkern.softmax(x, bias=bias, mask=mask, sink=sink, impl=impl.name)

    got = torch.func.vmap(call, in_dims=(in_dim, 1, 0, 0))(x, bias, mask, sink)
    each = zip(x.unbind(in_dim), bias.unbind(1), mask, sink, strict=True)
    torch.testing.assert_close(got, torch.stack([call(*one) for one in each]))


@pytest.mark.parametrize("log", [False, True])
def test_softmax_gradient_of_an_expanded_upstream_is_right(impl, log):
    x, weights = random(6, 5).requires_grad_(), random(5)
    call = function(log, {}, impl.name)
    (got,) = torch.autograd.grad(call(x), x, weights.expand(6, 5))
    (wanted,) = torch.autograd.grad(call(x), x, weights.expand(6, 5).contiguous())
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("log", [False, True])
def test_softmax_of_scalars_goes_through_vmap(impl, log):
    def call(x, bias, sink):
        public = hetkern.log_softmax if log else hetkern.softmax
        return public(x, dim=0, bias=bias, sink=sink, impl=impl.name).square()

    x, bias, sink = (random(3, seed=seed) for seed in range(3))
    for chosen in ((x, None, None), (x, bias, None), (x, bias, sink), (x, None, sink)):
        in_dims = tuple(None if t is None else 0 for t in chosen)
        got = torch.func.vmap(call, in_dims)(*chosen)
        one = [call(*(t if t is None else t[i] for t in chosen)) for i in range(3)]
        torch.testing.assert_close(got, torch.stack(one))
    slopes = torch.func.vmap(torch.func.grad(call), (0, 0, None))(x, bias, sink[0])
    each = [torch.func.grad(call)(x[i], bias[i], sink[0]) for i in range(3)]
    torch.testing.assert_close(slopes, torch.stack(each))


def test_softmax_gradient_reaches_only_who_asks(impl):
    x, bias, sink = random(3, 4), random(4, seed=1), random(3, seed=2)
    for who in range(3):
        inputs = [t.clone().requires_grad_(i == who) for i, t in enumerate((x, bias, sink))]
        y = hetkern.softmax(inputs[0], bias=inputs[1], sink=inputs[2], impl=impl.name)
        (y * x).sum().backward()
        assert [t.grad is not None for t in inputs] == [i == who for i in range(3)]
    assert not hetkern.softmax(x, impl=impl.name).requires_grad
