"""Every derivative of attention: first, second, and under torch.func."""

import functools

import pytest
import torch
from composed import COMPOSED
from torch.autograd import gradcheck, gradgradcheck

import hetkern
from hetkern.ops import attention_derivatives as derivatives
from hetkern.testing.cases.attention import cumulated
from hetkern.testing.devices import normal

pytestmark = pytest.mark.any_level

F64 = torch.float64
random = functools.partial(normal, dtype=F64)
B, HQ, HKV, LQ, LK, D, DV = 2, 2, 1, 3, 4, 3, 2
MASK = torch.tensor([[True, True, False, True], [False] * 4, [True, False, True, True]])

OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "window and scale": {"window": (1, 1), "scale": -0.7},
    "softcap": {"softcap": 1.5},
    "mask": {"mask": MASK},
    "dropout": {"dropout_p": 0.3},
    "everything": {
        "causal": True,
        "window": (2, None),
        "scale": 0.7,
        "softcap": 1.5,
        "mask": MASK,
        "dropout_p": 0.3,
    },
}


def inputs():
    """q, k, v, bias, sink, slopes."""
    shapes = (B, HQ, LQ, D), (B, HKV, LK, D), (B, HKV, LK, DV), (1, HQ, LQ, LK), (HQ,), (B, HQ)
    return [random(*s, seed=i).requires_grad_() for i, s in enumerate(shapes)]


def attend(impl, options, both=True):
    def call(q, k, v, bias=None, sink=None, slopes=None):
        torch.manual_seed(0)  # the dropout's
        out, lse = hetkern.attention(
            q,
            k,
            v,
            bias=bias,
            sink=sink,
            alibi_slopes=slopes,
            return_lse=True,
            impl=impl,
            **options,
        )
        return (out, lse.masked_fill(lse == -torch.inf, 0.0)) if both else out

    return call


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_attention_first_and_second_gradients_are_right(impl, options):
    for leaves in (inputs()[:3], inputs()):
        call = attend(impl.name, options)
        assert gradcheck(call, leaves)
        assert gradgradcheck(call, leaves, fast_mode=True)
    assert gradgradcheck(attend(impl.name, options, both=False), inputs()[:3], fast_mode=True)


@pytest.mark.parametrize("who", range(6), ids=["q", "k", "v", "bias", "sink", "slopes"])
@pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["everything"]], ids=["plain", "all"])
def test_a_gradient_reaches_who_asks_alone(impl, options, who):
    """And is what it is when all ask."""
    leaves = inputs()
    out, lse = attend(impl.name, options)(*leaves)
    wanted = torch.autograd.grad(out.square().sum() + lse.sum(), leaves)
    alone = [t.detach().requires_grad_(i == who) for i, t in enumerate(leaves)]
    out, lse = attend(impl.name, options)(*alone)
    (out.square().sum() + lse.sum()).backward()
    assert [t.grad is not None for t in alone] == [i == who for i in range(6)]
    torch.testing.assert_close(alone[who].grad, wanted[who])


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (B, 1, 1, LK), (LQ, 1), (B, HQ, LQ, LK), (LK,)], ids=str
)
def test_a_bias_has_the_gradient_of_its_own_shape(impl, shape):
    q, k, v = inputs()[:3]
    bias = random(*shape, seed=7).requires_grad_()

    def call(q, k, v, bias):
        return hetkern.attention(q, k, v, bias=bias, causal=True, impl=impl.name)

    assert gradcheck(call, (q, k, v, bias))
    assert gradgradcheck(call, (q, k, v, bias), fast_mode=True)


ENDS = cumulated([2, 0, 3]), cumulated([1, 2, 4])


def packed(impl, **options):
    def call(q, k, v, sink=None, slopes=None):
        torch.manual_seed(0)
        options_all = {"sink": sink, "alibi_slopes": slopes, "return_lse": True, "impl": impl}
        out, lse = hetkern.attention_varlen(q, k, v, *ENDS, 3, 4, **options_all, **options)
        return out, lse.masked_fill(lse == -torch.inf, 0.0)

    return call


@pytest.mark.parametrize(
    "options", [{}, {"causal": True, "dropout_p": 0.3, "softcap": 1.5}], ids=["plain", "all"]
)
def test_packed_attention_first_and_second_gradients_are_right(impl, options):
    shapes = (5, HQ, D), (7, HKV, D), (7, HKV, DV), (HQ,), (3, HQ)
    leaves = [random(*s, seed=i).requires_grad_() for i, s in enumerate(shapes)]
    for some in (leaves[:3], leaves):
        assert gradcheck(packed(impl.name, **options), some)
        assert gradgradcheck(packed(impl.name, **options), some, fast_mode=True)


def test_attention_over_a_cache_has_right_gradients(impl):
    leaves, lengths = inputs()[:3], torch.tensor([3, 0])

    def call(q, k, v):
        return hetkern.attention_decode(q, k, v, lengths, impl=impl.name)

    assert gradcheck(call, leaves) and gradgradcheck(call, leaves, fast_mode=True)


def test_double_backward_is_the_same_in_blocks_of_any_size(native, monkeypatch):
    leaves = inputs()
    found = []
    for block in (1, 2 * B * HQ * LK, 1 << 20):
        monkeypatch.setattr(derivatives, "BLOCK_ELEMENTS", block)
        out, lse = attend(native.name, OPTIONS["everything"])(*leaves)
        first = torch.autograd.grad(
            out.square().sum() + lse.square().sum(), leaves, create_graph=True
        )
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    for other in found[1:]:
        torch.testing.assert_close(found[0], other)


def test_double_backward_takes_the_memory_of_a_block(native, monkeypatch):
    """Nothing that it makes is as large as all scores."""
    if native.simulated:
        pytest.skip("the same Python, slowly")
    L, largest = 300, [0]
    monkeypatch.setattr(derivatives, "BLOCK_ELEMENTS", 10 * L)

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for t in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(t, torch.Tensor):
                    largest[0] = max(largest[0], t.untyped_storage().nbytes() // t.element_size())
            return result

    q, k, v = (normal(1, 1, L, 4, seed=s).requires_grad_() for s in range(3))
    with Watch():
        out = hetkern.attention(q, k, v, causal=True)
        (dq,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
        torch.autograd.grad(dq.square().sum(), (q, k, v))
    assert largest[0] <= 11 * (L + 1)


def test_a_third_derivative_is_right(native):
    q, k, v = inputs()[:3]

    def second(q):
        out = hetkern.attention(q, k, v, softcap=1.5)
        (first,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
        return torch.autograd.grad(first.square().sum(), q, create_graph=True)[0]

    assert gradcheck(second, (q,), fast_mode=True)


def test_forward_mode_is_refused_by_name(native):
    q, k, v = inputs()[:3]
    with pytest.raises(NotImplementedError, match=r"attention: forward-mode derivatives"):
        torch.func.jvp(lambda q: hetkern.attention(q, k, v), (q.detach(),), (q.detach(),))


def test_a_gradient_can_be_taken_twice_and_from_two_losses(impl):
    q, k, v = inputs()[:3]
    out = hetkern.attention(q, k, v)
    loss = out.sum() + out.square().sum()
    first = torch.autograd.grad(loss, q, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(loss, q)[0])


def test_the_gradient_of_an_expanded_upstream_is_right(impl):
    leaves, weights = inputs()[:3], random(DV)
    out = hetkern.attention(*leaves)
    wide = weights.expand(out.shape)
    got = torch.autograd.grad(out, leaves, wide, retain_graph=True)
    torch.testing.assert_close(got, torch.autograd.grad(out, leaves, wide.contiguous()))


# ---- torch.func. ---------------------------------------------------------------------------------

BATCHED = {
    "plain": {},
    "causal": {"causal": True},
    "mask of all": {"mask": MASK},
    "mask of sequences": {"mask": torch.stack([MASK, MASK])[:, None]},
}


@pytest.mark.parametrize("options", BATCHED.values(), ids=BATCHED)
def test_attention_works_under_torch_func(impl, options):
    """vmap, grad and per-sample gradients agree with calls one by one."""
    V = 3
    q, k, v = (
        random(V, B, HQ, LQ, D),
        random(V, B, HKV, LK, D, seed=1),
        random(V, B, HKV, LK, DV, seed=2),
    )

    def call(*tensors):
        return hetkern.attention(*tensors, impl=impl.name, **options)

    def loss(*tensors):
        return call(*tensors).square().sum()

    got = torch.func.vmap(call)(q, k, v)
    torch.testing.assert_close(got, torch.stack([call(*one) for one in zip(q, k, v, strict=True)]))
    per_sample = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 2)))(q, k, v)
    for i in range(V):
        leaves = [t[i].clone().requires_grad_() for t in (q, k, v)]
        wanted = torch.autograd.grad(loss(*leaves), leaves)
        torch.testing.assert_close(tuple(g[i] for g in per_sample), wanted)


@pytest.mark.parametrize("in_dims", [(0, None, None), (None, 0, 0), (1, 2, 3), (-1, 0, None)])
def test_attention_batches_over_any_dimension_of_any_input(impl, in_dims):
    V = 3
    given = [random(B, HQ, LQ, D), random(B, HKV, LK, D, seed=1), random(B, HKV, LK, DV, seed=2)]
    for i, at in enumerate(in_dims):
        if at is not None:
            given[i] = torch.stack([given[i] * (1 + n) for n in range(V)]).movedim(0, at)

    def call(*tensors):
        return hetkern.attention(*tensors, impl=impl.name)

    got = torch.func.vmap(call, in_dims)(*given)
    each = [
        [t if at is None else t.select(at, n) for t, at in zip(given, in_dims, strict=True)]
        for n in range(V)
    ]
    torch.testing.assert_close(got, torch.stack([call(*one) for one in each]))


@pytest.mark.parametrize("who", ["q", "k", "bias", "sink", "slopes"])
@pytest.mark.parametrize("composed", [n for n in COMPOSED if "j" not in n and "hessian" not in n])
def test_attention_derivatives_go_through_vmap(impl, composed, who):
    """A derivative of a batched call is that of its samples one by one."""
    if impl.name != "reference" and "grad of grad" in composed and impl.simulated:
        pytest.skip("second derivatives are torch's operations on every implementation")
    V = 2
    given = {
        "q": random(V, B, HQ, LQ, D),
        "k": random(V, B, HKV, LK, D, seed=1),
        "v": random(V, B, HKV, LK, DV, seed=2),
        "bias": random(V, LQ, LK, seed=3),
        "sink": random(V, HQ, seed=4),
        "slopes": random(V, HQ, seed=5),
    }
    names = ["q", "k", "v", *([who] if who not in "qk" else [])]

    def loss(batched):
        def call(*tensors):
            t = dict(zip(names, tensors, strict=True))
            more = {"bias": t.get("bias"), "sink": t.get("sink"), "alibi_slopes": t.get("slopes")}
            return hetkern.attention(t["q"], t["k"], t["v"], impl=impl.name, **more)

        def total(tensor):
            tensors = [tensor if name == who else given[name] for name in names]
            if batched:
                out = torch.func.vmap(call)(*tensors)
            else:
                out = torch.stack([call(*one) for one in zip(*tensors, strict=True)])
            return out.square().sum()

        return total

    got, wanted = (
        COMPOSED[composed](loss(batched), given[who].clone().requires_grad_())
        for batched in (True, False)
    )
    torch.testing.assert_close(got, wanted)
    assert wanted.abs().max() > 1e-3


def test_packed_and_dropped_attention_batch_call_by_call(impl):
    V = 2
    q, k = random(V, 5, HQ, D), random(V, 7, HKV, D, seed=1)

    def call(q, k):
        return hetkern.attention_varlen(q, k, k, *ENDS, 3, 4, impl=impl.name)

    got = torch.func.vmap(call)(q, k)
    torch.testing.assert_close(got, torch.stack([call(*one) for one in zip(q, k, strict=True)]))

    q, k, v = (t.expand(V, *t.shape) for t in inputs()[:3])
    dropped = torch.func.vmap(
        lambda q, k, v: hetkern.attention(q, k, v, dropout_p=0.5, impl=impl.name),
        randomness="same",
    )(q, k, v)
    assert torch.equal(dropped[0], dropped[1])
