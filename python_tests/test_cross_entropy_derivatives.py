"""Every derivative of cross-entropy: first, second, forward mode, and under torch.func."""

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
CLASSES = 5
KEPT = (9, 10, 11)  # saved, divisors and entropy among the arguments of the backward ops


random = functools.partial(normal, dtype=F64)


@pytest.fixture
def indices(impl):
    return torch.tensor([0, 4, -100, 2])


WEIGHT = torch.linspace(0.5, 2.0, CLASSES, dtype=F64)


OPTIONS = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "weight": {"weight": WEIGHT},
    "label smoothing": {"label_smoothing": 0.2},
    "scale and softcap": {"scale": 0.7, "softcap": 1.5},
    "z loss": {"z_loss": 0.1},
    "everything": {
        "weight": WEIGHT,
        "label_smoothing": 0.2,
        "scale": -0.7,
        "softcap": 1.5,
        "z_loss": 0.1,
        "reduction": "none",
    },
}


def function(options, impl="auto", stats=False):
    """The public function of x and target; with statistics all differentiable outputs."""

    def call(x, target):
        if not stats:
            return hetkern.cross_entropy(x, target, impl=impl, **options)
        loss, s = hetkern.cross_entropy(x, target, impl=impl, return_stats=True, **options)
        return loss, s.loss, s.lse, s.entropy, s.log_prob

    return call


@pytest.mark.sample(1, simulated=3)
@pytest.mark.parametrize("stats", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_cross_entropy_first_and_second_gradients_are_right(impl, options, stats, indices):
    x, p = random(4, CLASSES).requires_grad_(), random(4, CLASSES, seed=1).softmax(1)
    call = function(options, impl.name, stats)
    assert gradcheck(lambda x: call(x, indices), (x,))
    assert gradgradcheck(
        lambda x: call(x, indices), (x,), check_fwd_over_rev=forward_over_reverse(impl)
    )
    assert gradcheck(call, (x, p.requires_grad_()))
    assert gradgradcheck(call, (x, p), check_fwd_over_rev=forward_over_reverse(impl))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_cross_entropy_forward_mode_is_right(impl, options, indices):
    x, p = random(4, CLASSES).requires_grad_(), random(4, CLASSES, seed=1).softmax(1)
    call = function(options, impl.name)
    forward = {"check_forward_ad": True, "check_backward_ad": False}
    assert gradcheck(lambda x: call(x, indices), (x,), **forward)
    assert gradcheck(call, (x, p.requires_grad_()), **forward)


def test_cross_entropy_statistics_carry_gradients_one_by_one(impl, indices):
    x = random(4, CLASSES).requires_grad_()
    _, stats = hetkern.cross_entropy(x, indices, z_loss=0.1, return_stats=True, impl=impl.name)
    for name in ("loss", "lse", "z_loss", "entropy", "log_prob"):

        def one(x, name=name):
            out = hetkern.cross_entropy(x, indices, z_loss=0.1, return_stats=True, impl=impl.name)
            return getattr(out[1], name)

        assert gradcheck(one, (x,)), name
        assert gradgradcheck(one, (x,), check_fwd_over_rev=forward_over_reverse(impl)), name
    assert not stats.correct.requires_grad


def test_cross_entropy_registered_ops_have_right_gradients_when_called_directly(native, indices):
    options = {"softcap": 1.5, "label_smoothing": 0.1, "z_loss": 0.1}
    x, p = random(4, CLASSES), random(4, CLASSES, seed=1).softmax(1)
    seen = ops_of(lambda x: function(options)(x, indices), x)
    seen |= ops_of(function(options), x, p)
    checked = 0
    for name, (op, args) in seen.items():
        backward = "backward" in name
        variables = [
            i
            for i, a in enumerate(args)
            if torch.is_tensor(a) and a.is_floating_point() and not (backward and i in KEPT)
        ]

        def call(*tensors, op=op, args=args, variables=variables, backward=backward):
            given = list(args)
            for i, tensor in zip(variables, tensors, strict=True):
                given[i] = tensor
            if backward:  # m and d follow the logits: the derivative is by x through them, too
                x, target, weight, *_ = given[6:]
                dim, ignore_index, *options = given[12:]
                forward = torch.ops.hetkern.cross_entropy
                kept = forward(x.detach(), target.detach(), weight, dim, ignore_index, 0, *options)
                given[9] = kept[1]
            return op(*given)

        assert gradcheck(call, [args[i].clone().requires_grad_() for i in variables]), name
        checked += 1
    assert checked >= 3


@pytest.mark.parametrize("target", ["indices", "probabilities"])
@pytest.mark.parametrize("kind", ["plain", "label smoothing", "scale and softcap", "z loss"])
def test_cross_entropy_double_backward_is_within_budget(impl, kind, target):
    """The backward, as an operation of x and dy, is held to the reference's like any other."""
    length, rows = 300, 6
    t = torch.arange(rows) % length
    if target == "probabilities":
        t = random(rows, length, seed=2, dtype=torch.float32).softmax(1)

    def backward_of(cross_entropy):
        def backward(x, dy):
            x = x if x.requires_grad else x.detach().requires_grad_()
            given = t.to(x.device, x.dtype if t.is_floating_point() else None)
            loss = cross_entropy(x, given, reduction="none", **OPTIONS[kind])
            return torch.autograd.grad(loss, x, dy, create_graph=True)[0]

        return backward

    def ours(*args, **options):
        return hetkern.cross_entropy(*args, impl=impl.name, **options)

    x, dy = random(rows, length, dtype=torch.float32), random(rows, seed=1, dtype=torch.float32)
    exact = backward_of(reference.cross_entropy)
    check_op(backward_of(ours), exact, [Case(kind, (x, dy))], [torch.float32])


def test_cross_entropy_gradient_can_be_taken_twice_and_from_two_losses(impl, indices):
    """retain_graph, and two losses on the same logits: nothing was written over."""
    x, other = random(4, CLASSES).requires_grad_(), torch.tensor([1, 1, 2, 3])
    kept = x.detach().clone()
    a = hetkern.cross_entropy(x, indices, impl=impl.name)
    b = hetkern.cross_entropy(x, other, impl=impl.name, z_loss=0.1)
    (first,) = torch.autograd.grad(a + b, x, retain_graph=True)
    (again,) = torch.autograd.grad(a + b, x)
    assert torch.equal(first, again) and torch.equal(x, kept)
    parts = [
        torch.autograd.grad(hetkern.cross_entropy(x, indices, impl=impl.name), x)[0],
        torch.autograd.grad(hetkern.cross_entropy(x, other, impl=impl.name, z_loss=0.1), x)[0],
    ]
    torch.testing.assert_close(first, parts[0] + parts[1])


def test_cross_entropy_takes_a_gradient_for_each_row(impl, indices):
    x, dy = random(4, CLASSES).requires_grad_(), random(4, seed=1)
    loss = hetkern.cross_entropy(x, indices, reduction="none", impl=impl.name)
    (dx,) = torch.autograd.grad(loss, x, dy)
    onehot = torch.nn.functional.one_hot(indices.clamp_min(0), CLASSES)
    wanted = dy[:, None] * (x.softmax(1) - onehot) * (indices != -100)[:, None]
    torch.testing.assert_close(dx, wanted)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_cross_entropy_works_under_torch_func(impl, options, indices):
    """grad, vmap, per-sample gradients, jvp and jacrev agree with plain autograd."""
    call = function(options, impl.name)
    x, target = random(3, 4, CLASSES), torch.stack([indices, indices.flip(0), indices.roll(1)])
    each = torch.stack([call(a, t) for a, t in zip(x, target, strict=True)])
    torch.testing.assert_close(torch.func.vmap(call)(x, target), each)

    def loss(a, t):
        return call(a, t).sum()

    per_sample = torch.func.vmap(torch.func.grad(loss))(x, target)
    for a, t, got in zip(x, target, per_sample, strict=True):
        a = a.clone().requires_grad_()
        torch.testing.assert_close(got, torch.autograd.grad(loss(a, t), a)[0])
    single = torch.func.vmap(torch.func.grad(loss), in_dims=(0, 0))
    one_row = torch.tensor([1, 2, 3, 4])
    rows = torch.stack([torch.func.grad(loss)(a, t) for a, t in zip(x[0], one_row, strict=True)])
    torch.testing.assert_close(single(x[0], one_row), rows)

    tangent = random(4, CLASSES, seed=1)
    _, pushed = torch.func.jvp(lambda a: call(a, indices), (x[0],), (tangent,))
    jacobian = torch.func.jacrev(lambda a: call(a, indices))(x[0])
    torch.testing.assert_close(pushed, (jacobian * tangent).sum((-2, -1)))


def test_cross_entropy_takes_a_tensor_that_outlived_torch_func(impl, indices):
    x, escaped = random(4, CLASSES).requires_grad_(), []
    torch.func.grad(lambda inside: (escaped.append(inside), inside.sum())[1])(x)
    got, wanted = (
        torch.autograd.grad(hetkern.cross_entropy(t, indices, impl=impl.name), x)[0]
        for t in (escaped[0], x)
    )
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("who", ["x", "q", "x of statistics", "x of indices"])
@pytest.mark.parametrize("composed", COMPOSED.values(), ids=COMPOSED)
def test_cross_entropy_derivatives_go_through_vmap(impl, indices, composed, who):
    """A derivative of a batched call is that of its samples one by one."""
    x, q = random(3, 4, CLASSES), random(3, 4, CLASSES, seed=1).softmax(-1)
    target = torch.stack([indices, indices.flip(0), indices.roll(1)])
    call = function({"z_loss": 0.1}, impl.name, stats=who == "x of statistics")

    def total(outputs):
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return sum((i + 1) * t.square().sum() for i, t in enumerate(outputs))

    def loss(batched):
        def of(tensor):
            logits = x if who == "q" else tensor
            targets = {"q": tensor, "x": q}.get(who, target)
            if batched:
                return total(torch.func.vmap(call)(logits, targets))
            return sum(total(call(*one)) for one in zip(logits, targets, strict=True))

        return of

    start = q if who == "q" else x
    got, wanted = (
        composed(loss(batched), start.clone().requires_grad_()) for batched in (True, False)
    )
    torch.testing.assert_close(got, wanted)
    assert wanted.abs().max() > 1e-3


def test_cross_entropy_gradient_reaches_only_who_asks(impl, indices):
    for who in range(2):
        x, p = random(4, CLASSES), random(4, CLASSES, seed=1).softmax(1)
        inputs = [t.requires_grad_(i == who) for i, t in enumerate((x, p))]
        hetkern.cross_entropy(*inputs, impl=impl.name).backward()
        assert [t.grad is not None for t in inputs] == [i == who for i in range(2)]
    assert not hetkern.cross_entropy(random(4, CLASSES), indices, impl=impl.name).requires_grad
