"""Attention gives the same bits whatever surrounds a sequence: threads, neighbours, layout."""

import pytest
import torch

import hetkern
from hetkern.testing.cases.attention import attention_op, cumulated
from hetkern.testing.devices import normal
from hetkern.testing.layouts import LAYOUTS
from hetkern.testing.values.calls import Call, random_upstream, run, same_bits

pytestmark = pytest.mark.sample(1, simulated=12)

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
FEATURES = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window": (20, 5)},
    "softcap": {"softcap": 3.0, "causal": True},
    "dropout": {"dropout_p": 0.3},
}


@pytest.fixture(autouse=True)
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def drawn(B, heads, Lq, Lk, D, dtype):
    Hq, Hkv = heads
    shapes = ((B, Hq, Lq, D), (B, Hkv, Lk, D), (B, Hkv, Lk, D))
    return [normal(*shape, seed=seed).to(dtype) for seed, shape in enumerate(shapes)]


def results(impl, tensors, upstream=None, **options):
    """Everything that comes out of one call: out, lse and the gradients."""
    call = Call(tuple(tensors), {"return_lse": True, **options})
    return run(attention_op(impl.name), call, upstream=upstream or random_upstream(0))


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert same_bits(a[name], b[name]), f"{name} has other bits"


@pytest.mark.large
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("B, heads", [(1, (1, 1)), (3, (2, 1))])
def test_attention_bits_do_not_depend_on_the_thread_count(native, B, heads, feature, dtype):
    if native.name != "cpu":
        pytest.skip("a claim about the C++ kernels' threads")
    tensors = drawn(B, heads, 300, 300, 32, dtype)
    shared = {
        "bias": normal(1, heads[0], 1, 300, seed=4).to(dtype),
        "sink": normal(heads[0], seed=5).to(dtype),
        "alibi_slopes": normal(heads[0], seed=6).abs().to(dtype),
    }
    seen = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        seen.append(results(native, tensors, **shared, **FEATURES[feature]))
    assert_same(seen[0], seen[1])
    assert_same(seen[0], seen[2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("feature", ["plain", "causal", "window", "softcap"])
@pytest.mark.parametrize("Lq, Lk", [(1, 40), (9, 9), (70, 90)])
def test_attention_bits_of_a_sequence_do_not_depend_on_its_neighbours(
    native, Lq, Lk, feature, dtype
):
    tensors = drawn(3, (4, 2), Lq, Lk, 24, dtype)
    upstream = [normal(3, 4, Lq, 24, seed=8).to(dtype), normal(3, 4, Lq, seed=9)]
    many = results(native, tensors, lambda i, y: upstream[i].to(y.dtype), **FEATURES[feature])
    for b in range(3):
        alone = results(
            native,
            [t[b : b + 1] for t in tensors],
            lambda i, y, b=b: upstream[i][b : b + 1].to(y.dtype),
            **FEATURES[feature],
        )
        for name, value in alone.items():
            assert same_bits(value, many[name][b : b + 1]), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_packed_sequences_have_the_bits_that_they_have_alone(native, causal, dtype):
    lengths_q, lengths_k = [5, 0, 70, 17], [5, 3, 64, 40]
    ends_q, ends_k = cumulated(lengths_q), cumulated(lengths_k)
    q = normal(92, 4, 16).to(dtype)
    k, v = (normal(112, 2, 16, seed=s).to(dtype) for s in (1, 2))
    packed = {
        "cu_seqlens_q": ends_q,
        "cu_seqlens_k": ends_k,
        "max_seqlen_q": 70,
        "max_seqlen_k": 64,
    }
    dout, dlse = normal(92, 4, 16, seed=8).to(dtype), normal(4, 92, seed=9)
    upstream = [dout, dlse]
    many = results(native, (q, k, v), lambda i, y: upstream[i].to(y.dtype), causal=causal, **packed)
    for b, (n, m) in enumerate(zip(lengths_q, lengths_k, strict=True)):
        if n == 0:
            continue
        rows_q, rows_k = slice(ends_q[b], ends_q[b + 1]), slice(ends_k[b], ends_k[b + 1])
        one = {"cu_seqlens_q": cumulated([n]), "cu_seqlens_k": cumulated([m])}
        parts = [dout[rows_q], dlse[:, rows_q]]
        alone = results(
            native,
            (q[rows_q], k[rows_k], v[rows_k]),
            lambda i, y, parts=parts: parts[i].to(y.dtype),
            causal=causal,
            max_seqlen_q=n,
            max_seqlen_k=m,
            **one,
        )
        places = {"output 0": rows_q, "gradient of argument 0": rows_q}
        for name, value in alone.items():
            whole = many[name]
            whole = whole[:, rows_q] if name == "output 1" else whole[places.get(name, rows_k)]
            assert same_bits(value, whole), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in ("dense", "expanded")])
def test_attention_bits_do_not_depend_on_the_layout(native, layout, dtype):
    make = LAYOUTS[layout]
    options = {"bias": normal(2, 1, 19, 37, seed=4).to(dtype), "causal": True}
    for D in (16, 17):
        tensors = drawn(2, (4, 2), 19, 37, D, dtype)
        upstream = [normal(2, 4, 19, D, seed=8).to(dtype), normal(2, 4, 19, seed=9)]
        wanted = results(native, tensors, lambda i, y, u=upstream: u[i].to(y.dtype), **options)
        got = results(
            native,
            [make(t) for t in tensors],
            lambda i, y, u=upstream: make(u[i].to(y.dtype)),
            **options | {"bias": make(options["bias"])},
        )
        assert_same(wanted, got)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_bits_do_not_depend_on_features_that_do_nothing(native, dtype):
    tensors = drawn(2, (4, 2), 19, 37, 16, dtype)
    wanted = results(native, tensors)
    for options in (
        {"mask": torch.ones(37, dtype=torch.bool)},
        {"window": (100, 100)},
        {"sink": torch.full((4,), -torch.inf, dtype=dtype)},
        {"bias": torch.zeros(1, 1, 1, 37, dtype=dtype)},
        {"alibi_slopes": torch.zeros(4, dtype=dtype)},
    ):
        got = results(native, tensors, **options)
        assert_same(wanted, {name: got[name] for name in wanted})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", [(4, 4), (4, 1)])
@pytest.mark.parametrize("length", [1, 40, 300])
def test_decoding_has_the_bits_of_the_same_query_in_a_longer_cache(native, length, heads, dtype):
    """What lies behind the length changes nothing, nor how much it is, nor in how many parts."""
    q, k, v = drawn(2, heads, 1, 1200 if length == 300 else 400, 32, dtype)
    v[..., 5] = -0.0
    lengths = torch.tensor([length, max(length - 1, 0)])
    wanted = hetkern.attention_decode(q, k, v, lengths, return_lse=True)
    shorter = k[:, :, :length], v[:, :, :length]
    got = hetkern.attention_decode(q, *shorter, lengths, return_lse=True)
    assert same_bits(wanted[0], got[0]) and same_bits(wanted[1], got[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("Lk", [7, 64, 300, pytest.param(1000, marks=pytest.mark.large)])
def test_decoding_gives_the_last_row_of_prefill(native, Lk, dtype):
    q, k, v = drawn(2, (4, 2), Lk, Lk, 32, dtype)
    full = hetkern.attention(q, k, v, causal=True)[:, :, -1:]
    one = hetkern.attention_decode(q[:, :, -1:], k, v, torch.full((2,), Lk))
    assert same_bits(full, one)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "heads, D, Dv",
    [((12, 2), 64, 192), ((4, 4), 96, 20), ((16, 1), 33, 64), ((12, 4), 43, 48), ((8, 1), 130, 16)],
)
def test_decoding_reads_a_cache_where_it_lies_with_the_bits_of_prefill(native, heads, D, Dv, dtype):
    """Whatever its layout, columns and the queries that share a head; a value is not finite."""
    Lk = 230
    q, k = (normal(2, h, Lk, D, seed=s).to(dtype) for s, h in enumerate(heads))
    v = normal(2, heads[1], Lk, Dv, seed=2).to(dtype)
    v[1, 0, 100, 3] = float("inf")
    full = hetkern.attention(q, k, v, causal=True)[:, :, -1:]
    for layout in (lambda t: t, lambda t: t.transpose(1, 2).contiguous().transpose(1, 2)):
        one = hetkern.attention_decode(q[:, :, -1:], layout(k), layout(v), torch.full((2,), Lk))
        assert same_bits(full, one)


def test_attention_bits_repeat(native):
    tensors = drawn(2, (4, 2), 65, 130, 64, torch.float32)
    assert_same(results(native, tensors, causal=True), results(native, tensors, causal=True))
