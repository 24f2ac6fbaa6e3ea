"""The edges of attention's meaning: what is not a number, what is hidden, what is not there."""

import pytest
import torch

import hetkern
from hetkern.testing import assert_stays_inside
from hetkern.testing.cases.attention import attention_op, cumulated
from hetkern.testing.devices import far_apart, normal
from hetkern.testing.values.check import DTYPES

pytestmark = [pytest.mark.any_level, pytest.mark.sample(1, simulated=12)]

POISONS = [torch.nan, torch.inf, -torch.inf]
LENGTHS = [(1, 1), (3, 7), (3, 15), (5, 16), (20, 17), (70, 130)]


def drawn(Lq, Lk, D=16, dtype=torch.float32, B=2, H=2):
    shapes = (Lq, Lk, Lk)
    return [normal(B, H, L, D, seed=seed).to(dtype) for seed, L in enumerate(shapes)]


def results(q, k, v, **options):
    """out, lse and the gradients of q, k, v under an upstream of finite numbers."""
    leaves = [t.detach().clone().requires_grad_() for t in (q, k, v)]
    out, lse = hetkern.attention(*leaves, return_lse=True, **options)
    upstream = normal(*out.shape, seed=5).to(out.dtype), normal(*lse.shape, seed=6).to(lse.dtype)
    return [out.detach(), lse.detach(), *torch.autograd.grad((out, lse), leaves, upstream)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("Lq, Lk", LENGTHS)
def test_nan_in_a_query_stays_in_its_row_at_every_length(impl, Lq, Lk, causal, dtype):
    q, k, v = drawn(Lq, Lk, dtype=dtype)
    i = Lq // 2
    q[0, 1, i, 3] = torch.nan
    out, lse, dq, _, _ = results(q, k, v, causal=causal)
    sees = not causal or i + Lk - Lq >= 0
    for t in (out, dq):
        spoiled = t.isnan().any(-1)
        assert spoiled[0, 1, i] == sees and spoiled.sum() == sees
    assert out[0, 1, i].isnan().all() == sees
    assert lse.isnan().sum() == sees and lse[0, 1, i].isnan() == sees


@pytest.mark.parametrize("which", ["k", "v"])
@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("Lq, Lk", LENGTHS)
def test_a_poisoned_key_reaches_the_rows_that_see_it_and_no_other(impl, Lq, Lk, poison, which):
    """Forward and backward; the rest has the very bits of a clean call."""
    if impl.name == "triton" and Lk > 100:  # still more than a block of its kernels has
        Lq, Lk = Lq // 2, Lk // 2
    q, k, v = drawn(Lq, Lk, B=1 if impl.simulated else 2)
    j = (2 * Lk) // 3
    sees = torch.arange(Lq) + Lk - Lq >= j
    clean = results(q, k, v, causal=True)
    (k if which == "k" else v)[0, 1, j, 3] = poison
    dirty = results(q, k, v, causal=True)
    for a, b in zip(clean[:3], dirty[:3], strict=True):  # out, lse, dq: a row a query
        a, b = a.clone(), b.clone()
        a[0, 1, sees], b[0, 1, sees] = 0.0, 0.0
        assert torch.equal(a, b)
    if poison != poison:
        column = slice(3, 4) if which == "v" else slice(None)
        assert dirty[0][0, 1, sees][..., column].isnan().all()
        assert dirty[1][0, 1, sees].isnan().all() == (which == "k") or not sees.any()
    for a, b in zip(clean[3:], dirty[3:], strict=True):  # dk, dv: sums over queries that see
        a, b = a.clone(), b.clone()
        reached = torch.arange(Lk) <= Lk - 1  # by the last row, if one of them sees the key
        a[0, 1, reached], b[0, 1, reached] = 0.0, 0.0
        assert torch.equal(a, b)


HIDDEN = {
    "window": {"window": (4, 3)},
    "mask": {"mask": torch.arange(20) % 3 > 0},
    "mask of padding": {
        "mask": (torch.arange(20) < torch.tensor([12, 17])[:, None])[:, None, None]
    },
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("hide", HIDDEN)
def test_what_no_query_sees_changes_no_bit(impl, hide, softcap, poison, dtype):
    Lq, Lk = 7, 20
    options = HIDDEN[hide] | {"softcap": softcap}
    clean, dirty = drawn(Lq, Lk, dtype=dtype), drawn(Lq, Lk, dtype=dtype)
    beside, j = torch.arange(Lq)[:, None] + Lk - Lq, torch.arange(Lk)
    seen = options.get("mask", (j >= beside - 4) & (j <= beside + 3))
    unseen = ~seen.expand(2, 1, Lq, Lk).any(-2)  # (B, 1, Lk)
    for t in dirty[1:]:
        t.masked_fill_(unseen.unsqueeze(-1), poison)
    a, b = results(*clean, **options), results(*dirty, **options)
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y)
    assert unseen.any()
    for gradient in b[3:]:
        assert (gradient.masked_select(unseen.unsqueeze(-1)) == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("poison", [0.0, *POISONS])
@pytest.mark.parametrize("how", ["mask", "bias", "causal"])
def test_an_emptied_row_is_nothing_and_passes_no_gradient(impl, how, poison, dtype):
    q, k, v = drawn(6, 4, dtype=dtype)
    rows = torch.tensor([True, True, False, False, False, False])  # causal sees no key there
    options = {"causal": True} if how == "causal" else {}
    if how == "mask":
        options["mask"] = ~rows[:, None]
    if how == "bias":
        poison = 0.0  # it is added to the scores
        options["bias"] = torch.zeros(6, 1).masked_fill(rows[:, None], -torch.inf).to(dtype)
    q[:, :, rows] = poison
    out, lse, dq, dk, dv = results(q, k, v, **options)
    assert (out[:, :, rows] == 0).all() and lse[:, :, rows].eq(-torch.inf).all()
    assert (dq[:, :, rows] == 0).all() and dq[:, :, ~rows].ne(0).any()
    for t in (out[:, :, ~rows], lse[:, :, ~rows], dq, dk, dv):
        assert t.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_emptied_row_with_a_sink_has_its_lse_and_its_gradient(impl, dtype):
    q, k, v = drawn(6, 4, dtype=dtype)
    sink = torch.tensor([0.5, -2.0], dtype=dtype, requires_grad=True)
    out, lse = hetkern.attention(q, k, v, causal=True, sink=sink, return_lse=True)
    assert (out[:, :, :2] == 0).all()
    assert torch.equal(lse[:, :, :2], sink.to(lse.dtype)[:, None].expand(2, 2, 2))
    (dsink,) = torch.autograd.grad(lse[:, :, :2].sum(), sink)
    assert dsink.tolist() == [4.0, 4.0]  # two sequences of two rows


@pytest.mark.parametrize("share, sink", [(1.0, -torch.inf), (0.5, 0.0), (0.0, 1e4)])
def test_a_sink_takes_its_share(impl, share, sink):
    q, k, v = torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 4, 8), torch.ones(1, 2, 4, 8)
    bias = -torch.tensor(4.0).log().expand(1, 1, 1, 1)
    out = hetkern.attention(q, k, v, bias=bias, sink=torch.full((2,), sink))
    torch.testing.assert_close(out, torch.full_like(out, share))


@pytest.mark.parametrize("causal", [False, True])
def test_what_lies_behind_a_sequence_in_a_cache_is_never_read(impl, causal):
    q, k, v = drawn(2, 40, B=4)
    lengths = torch.tensor([0, 1, 17, 40])
    options = {"causal": causal, "return_lse": True}
    wanted = hetkern.attention_decode(q, k, v, lengths, **options)
    for t in (k, v):
        t.masked_fill_((torch.arange(40) >= lengths[:, None])[:, None, :, None], torch.nan)
    got = hetkern.attention_decode(q, k, v, lengths, **options)
    assert torch.equal(got[0], wanted[0]) and torch.equal(got[1], wanted[1])
    assert (got[0][0] == 0).all() and got[1][0].eq(-torch.inf).all()
    for b, n in enumerate(lengths.tolist()):
        alone = hetkern.attention(
            q[b : b + 1], k[b : b + 1, :, :n], v[b : b + 1, :, :n], causal=causal
        )
        torch.testing.assert_close(got[0][b : b + 1], alone)


EMPTY = [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("B, H, Lq, Lk", EMPTY)
def test_empty_tensors_give_empty_results_and_zeros(impl, B, H, Lq, Lk, dtype):
    q, k, v = drawn(Lq, Lk, 8, dtype, B, H)
    out, lse, dq, dk, dv = results(q, k, v, causal=True)
    assert (out.shape, lse.shape) == ((B, H, Lq, 8), (B, H, Lq))
    assert [t.shape for t in (dq, dk, dv)] == [q.shape, k.shape, v.shape]
    if Lk == 0:
        assert (out == 0).all() and lse.eq(-torch.inf).all() and (dq == 0).all()


def test_a_head_of_width_0_gives_the_mean_of_the_values(impl):
    q, k, v = torch.zeros(1, 2, 3, 0), torch.zeros(1, 2, 5, 0), normal(1, 2, 5, 4)
    torch.testing.assert_close(
        hetkern.attention(q, k, v), v.mean(2, keepdim=True).expand(1, 2, 3, 4)
    )
    nothing = hetkern.attention(normal(1, 2, 3, 8), normal(1, 2, 5, 8), torch.zeros(1, 2, 5, 0))
    assert nothing.shape == (1, 2, 3, 0)


@pytest.mark.parametrize("ends", [[0, 5, 5, 5, 12], [0, 0, 0, 0, 12], [0]])
def test_empty_sequences_pass_nothing_and_take_nothing(impl, ends):
    ends = torch.tensor(ends, dtype=torch.int32)
    total = int(ends[-1])
    q, k, v = (normal(total, 2, 8, seed=s).requires_grad_() for s in range(3))
    out, lse = hetkern.attention_varlen(q, k, v, ends, ends, 12, 12, return_lse=True)
    assert (out.shape, lse.shape) == ((total, 2, 8), (2, total))
    gradients = torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
    assert all(g.isfinite().all() for g in (out, lse, *gradients))


def test_queries_of_a_sequence_without_keys_are_emptied_rows(impl):
    q, k = normal(5, 2, 8), normal(3, 2, 8, seed=1)
    ends_q, ends_k = cumulated([2, 3]), cumulated([0, 3])
    out, lse = hetkern.attention_varlen(q, k, k, ends_q, ends_k, 3, 3, return_lse=True)
    assert (out[:2] == 0).all() and lse[:, :2].eq(-torch.inf).all()
    assert out[2:].ne(0).all() and lse[:, 2:].isfinite().all()


def test_a_sequence_does_not_see_its_neighbours(impl):
    q, k, v = (normal(12, 2, 8, seed=s) for s in range(3))
    ends = cumulated([5, 7])
    before = hetkern.attention_varlen(q, k, v, ends, ends, 7, 7)
    for t in (q, k, v):
        t[5:] = torch.nan
    after = hetkern.attention_varlen(q, k, v, ends, ends, 7, 7)
    assert torch.equal(before[:5], after[:5]) and after[5:].isnan().all()


def test_attention_writes_no_input_and_reads_nothing_outside(native):
    H, Lq, Lk, D = 2, 9, 19, 17
    B = 1 if native.simulated else 2
    offsets = (0, 16) if native.name == "triton" else (0, 1)  # its sums' order follows alignment
    features = {
        "bias": normal(B, 1, Lq, Lk, seed=3),
        "mask": normal(B, H, 1, Lk, seed=4) > -1,
        "sink": normal(H, seed=5),
        "alibi_slopes": normal(B, H, seed=6).abs(),
    }
    kinds = {"causal": True}, {"softcap": 2.0, "return_lse": True, **features}
    for dtype in [torch.float32, torch.bfloat16] if native.simulated else DTYPES:
        q, k, v = drawn(Lq, Lk, D, dtype, B)
        in_turn = kinds[1:] if dtype == torch.float32 else kinds[:1]
        for options in in_turn if native.name == "triton" else kinds:
            cast = {
                name: t.to(dtype) if torch.is_tensor(t) and t.is_floating_point() else t
                for name, t in options.items()
            }
            assert_stays_inside(attention_op(native.name), q, k, v, offsets=offsets, **cast)
        if native.name == "triton" and dtype == torch.bfloat16:
            continue  # its kernels ask no dtype where they read
        ends = cumulated([4, 0, 15])
        q, k, v = (normal(19, H, D, seed=s).to(dtype) for s in range(3))
        packed = {
            "cu_seqlens_q": ends,
            "cu_seqlens_k": ends,
            "max_seqlen_q": 15,
            "max_seqlen_k": 15,
        }
        assert_stays_inside(attention_op(native.name), q, k, v, offsets=offsets, **packed)
        q, k, v = drawn(1, 33, D, dtype)
        lengths = torch.tensor([33, 5])
        assert_stays_inside(
            attention_op(native.name), q, k, v, offsets=offsets, cache_seqlens=lengths
        )


@pytest.mark.parametrize("far", [0, 1, 2])
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_attention_finds_elements_two_to_the_31_apart(native, dim, far):
    tensors = [t.bfloat16() for t in drawn(3, 3)]
    wanted = results(*tensors, causal=True)
    tensors[far] = far_apart(tensors[far], dim)
    leaves = [t.requires_grad_() for t in tensors]
    out, lse = hetkern.attention(*leaves, causal=True, return_lse=True)
    upstream = normal(*out.shape, seed=5).to(out.dtype), normal(*lse.shape, seed=6)
    got = [out, lse, *torch.autograd.grad((out, lse), leaves, upstream)]
    assert all(map(torch.equal, got, wanted))
