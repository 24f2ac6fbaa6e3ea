"""Both families under torch.compile where its answer could be silently wrong.

Forward mode, derivatives of second order, numbers that change from call to call, and compiled
autograd around an eager call.
"""

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter

import hetkern
from hetkern.testing.devices import normal

X, V = normal(4, 6), normal(4, 6, seed=1)
INDEX, SINK = torch.tensor([1, 2, 3, -100]), normal(4, seed=2)
PROBABILITIES = normal(4, 6, seed=3).softmax(-1)
CAP = 2.0


def _capped(x):
    return CAP * torch.tanh(x / CAP)


#: Our function of x, and what it is in torch's operations.
FUNCTIONS = {
    "softmax": (
        lambda x: hetkern.softmax(x, softcap=CAP).square().sum(),
        lambda x: _capped(x).softmax(-1).square().sum(),
    ),
    "log_softmax": (
        lambda x: hetkern.log_softmax(x, 0).square().sum(),
        lambda x: x.log_softmax(0).square().sum(),
    ),
    "sink": (
        lambda x: hetkern.softmax(x, sink=SINK).square().sum(),
        lambda x: torch.cat([x, SINK.to(x)[:, None]], 1).softmax(1)[:, :-1].square().sum(),
    ),
    "loss of indices": (
        lambda x: hetkern.cross_entropy(x, INDEX),
        lambda x: F.cross_entropy(x, INDEX),
    ),
    "loss of probabilities": (
        lambda x: hetkern.cross_entropy(x, PROBABILITIES, z_loss=0.1),
        lambda x: F.cross_entropy(x, PROBABILITIES.to(x)) + 0.1 * x.logsumexp(1).square().mean(),
    ),
    "statistics": (
        lambda x: hetkern.cross_entropy(x, INDEX, return_stats=True)[1].entropy.sum(),
        lambda x: -(x.softmax(1) * x.log_softmax(1)).sum(),
    ),
}
#: Attention of four tokens and two heads, which has no forward mode.
SLOPES = normal(2, seed=4).abs()


def _heads(x):
    q = x[None, None] + torch.stack([V, 0.5 * V]).to(x)
    return q, q[..., :6].tanh(), q.sin()


def _attention(x):
    bias = x[None, None, :, :4]
    out, lse = hetkern.attention(
        *_heads(x), causal=True, softcap=CAP, bias=bias, alibi_slopes=SLOPES.to(x), return_lse=True
    )
    return out.square().sum() + lse.sin().sum()


def _attention_by_torch(x):
    q, k, v = _heads(x)
    i = torch.arange(4)
    z = _capped(q @ k.mT / 6**0.5) - SLOPES.to(x)[:, None, None] * (i[:, None] - i).abs()
    z = (z + x[None, None, :, :4]).masked_fill(i > i[:, None], -torch.inf)
    return (z.softmax(-1) @ v).square().sum() + z.logsumexp(-1).sin().sum()


func = torch.func
TRANSFORMS = {
    "jvp": lambda f: lambda x, v: func.jvp(f, (x,), (v,))[1],
    "jacfwd": lambda f: lambda x, v: func.jacfwd(f)(x),
    "vmap of jvp": lambda f: (
        lambda x, v: func.vmap(lambda v: func.jvp(f, (x,), (v,))[1])(torch.stack([v, x]))
    ),
    "grad": lambda f: lambda x, v: func.grad(f)(x),
    "jvp of grad": lambda f: lambda x, v: func.jvp(func.grad(f), (x,), (v,))[1],
    "grad of grad": lambda f: lambda x, v: func.grad(lambda x: (func.grad(f)(x) * v).sum())(x),
    "hessian": lambda f: lambda x, v: func.hessian(f)(x),
}


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("ours, torchs", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_transform_is_right_compiled_and_not(ours, torchs, transform):
    wanted = transform(torchs)(X.double(), V.double()).float()
    torch.testing.assert_close(transform(ours)(X, V), wanted)
    compiled = torch.compile(transform(ours), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(X, V), wanted)
    assert wanted.abs().max() > 1e-3


@pytest.mark.parametrize("transform", ["grad", "grad of grad", "vmap of grad"])
def test_attention_under_a_transform_is_right_compiled_and_not(transform):
    def of_rows(f):
        return lambda x, v: func.vmap(func.grad(f))(torch.stack([v, x]))

    apply = of_rows if transform == "vmap of grad" else TRANSFORMS[transform]
    wanted = apply(_attention_by_torch)(X.double(), V.double()).float()
    torch.testing.assert_close(apply(_attention)(X, V), wanted, rtol=2e-5, atol=2e-5)
    compiled = torch.compile(apply(_attention), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(X, V), wanted, rtol=2e-5, atol=2e-5)
    assert wanted.abs().max() > 1e-3


def test_dual_numbers_have_their_tangent_in_a_compiled_graph():
    forward_ad = torch.autograd.forward_ad

    def tangent(x, v):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(hetkern.cross_entropy(forward_ad.make_dual(x, v), INDEX))

    compiled = torch.compile(tangent, backend="aot_eager")
    wanted = tangent(X, V).tangent
    assert wanted.abs() > 1e-3
    torch.testing.assert_close(compiled(X, V).tangent, wanted)


def test_a_transform_of_an_op_called_directly_is_right():
    op = torch.ops.hetkern.softmax

    def direct(x):
        return op(x, -1, None, 1.0, CAP, None, None, False, False).square().sum()

    for transform in TRANSFORMS.values():
        wanted = transform(FUNCTIONS["softmax"][1])(X.double(), V.double()).float()
        torch.testing.assert_close(transform(direct)(X, V), wanted)


#: Two ways to write a call with a number s in it: torch's, and ours.
NUMBERS = {
    "scale": (lambda x, s: (s * x).softmax(-1), lambda x, s: hetkern.softmax(x, scale=s)),
    "scale of a logarithm": (
        lambda x, s: (x / s).log_softmax(0),
        lambda x, s: hetkern.log_softmax(x, 0, scale=1 / s),
    ),
    "softcap": (
        lambda x, s: (s * torch.tanh(x / s)).softmax(-1),
        lambda x, s: hetkern.softmax(x, softcap=s),
    ),
    "scale and a sink": (
        lambda x, s: torch.cat([s * x, SINK.to(x)[:, None]], 1).softmax(1)[:, :-1],
        lambda x, s: hetkern.softmax(x, scale=s, sink=SINK),
    ),
    "scale of a loss": (
        lambda x, s: F.cross_entropy(s * x, INDEX),
        lambda x, s: hetkern.cross_entropy(x, INDEX, scale=s),
    ),
    "softcap of a loss": (
        lambda x, s: F.cross_entropy(s * torch.tanh(x / s), PROBABILITIES.to(x)),
        lambda x, s: hetkern.cross_entropy(x, PROBABILITIES, softcap=s),
    ),
    "z_loss": (
        lambda x, s: F.cross_entropy(x, INDEX) + s * x[:3].logsumexp(1).square().mean(),
        lambda x, s: hetkern.cross_entropy(x, INDEX, z_loss=s),
    ),
    "z_loss of statistics": (
        lambda x, s: s * x[:3].logsumexp(1).square().sum(),
        lambda x, s: hetkern.cross_entropy(x, INDEX, z_loss=s, return_stats=True)[1].z_loss.sum(),
    ),
}
VALUES = [1.0 + 0.25 * i for i in range(12)]


@pytest.mark.parametrize("torchs, ours", NUMBERS.values(), ids=NUMBERS)
def test_a_number_that_changes_is_right_in_every_call_and_compiles_as_often_as_torchs(torchs, ours):
    compilations = []
    for function in (torchs, ours):
        torch._dynamo.reset()
        counter = CompileCounter()
        compiled = torch.compile(function, backend=counter, fullgraph=True)
        for s in VALUES:
            compiled(X, s)
        compilations.append(counter.frame_count)
    assert compilations[1] == compilations[0] == 2


@pytest.mark.parametrize("name", ["scale", "softcap of a loss", "z_loss"])
def test_inductor_keeps_no_number_of_an_earlier_call(name):
    torchs, ours = NUMBERS[name]
    compiled = torch.compile(lambda x, s: ours(x, 2 / s), fullgraph=True)
    for s in VALUES[:5]:
        x = X.clone().requires_grad_()
        y = compiled(x, s)
        (dx,) = torch.autograd.grad(y.square().sum(), x)
        exact = X.double().requires_grad_()
        wanted = torchs(exact, 2 / s)
        (wanted_dx,) = torch.autograd.grad(wanted.square().sum(), exact)
        torch.testing.assert_close(y, wanted.float())
        torch.testing.assert_close(dx, wanted_dx.float())


def test_label_smoothing_that_changes_is_right_in_every_call():
    compiled = torch.compile(
        lambda x, s: hetkern.cross_entropy(x, INDEX, label_smoothing=s / 8), fullgraph=True
    )
    for s in (1.0, 2.0, 3.0, 0.0, 8.0):
        wanted = F.cross_entropy(X.double(), INDEX, label_smoothing=s / 8)
        torch.testing.assert_close(compiled(X, s), wanted.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["scale", "softcap", "scale of a loss", "z_loss"])
def test_a_tensor_serves_as_a_number_compiled_and_not(name, dtype):
    ours = NUMBERS[name][1]
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    for s in VALUES[:3]:
        x = X.to(dtype)
        wanted = ours(x, s)
        for run in (ours, compiled):
            got = run(x, torch.tensor(s))
            assert got.dtype == wanted.dtype
            torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "loss of indices", "statistics"])
def test_compiled_autograd_traces_the_backward_pass_of_an_eager_call(name):
    ours = FUNCTIONS[name][0]
    linear, outside = torch.nn.Linear(6, 6), torch._dynamo.disable(ours)
    ours(linear(X)).backward()
    wanted, linear.weight.grad = linear.weight.grad, None

    def step(x):
        outside(linear(x)).backward()

    with torch._dynamo.config.patch(compiled_autograd=True):
        torch.compile(step, backend="aot_eager")(X)
    torch.testing.assert_close(linear.weight.grad, wanted)
