"""Attention, values and gradients, within the error budget of the reference."""

import pytest
import torch

import hetkern
from hetkern.testing import check_seed
from hetkern.testing.cases.attention import KINDS, check_attention, dense_case, packed_case
from hetkern.testing.devices import normal
from hetkern.testing.layouts import LAYOUTS
from hetkern.testing.values.check import DTYPES

pytestmark = [pytest.mark.any_level, pytest.mark.sample(1, simulated=16)]

BOTH = [torch.float32, torch.bfloat16]
# Queries and keys: one, less than a vector, around tiles, more keys, more queries.
LENGTHS = [(1, 1), (1, 7), (5, 3), (16, 16), (17, 15), (63, 65), (64, 64), (65, 130), (129, 31)]
# flash-attention's own tests.
WIDTHS = [32, 40, 59, 64, 80, 96, 111, 128, 160, 192, 224, 256]
PAIRS = [(1, 239), (3, 799), (127, 512), (113, 203), (128, 217)]
LONG_PAIRS = [(512, 256), (1023, 1024), (2048, 2048)]


def spread(*shape):
    """Numbers from -1 to 1 that differ."""
    n = torch.Size(shape).numel()
    return torch.linspace(-1, 1, n).roll(n // 3).reshape(shape)


FEATURES = {
    "causal": {"causal": True},
    "window": {"window": (3, 2)},
    "window to the left": {"window": (5, None)},
    "causal window": {"causal": True, "window": (4, 9)},
    "scale": {"scale": 0.7},
    "negative scale": {"scale": -0.3},
    "softcap": {"softcap": 2.0},
    "bias": {"bias": 2 * spread(2, 4, 20, 37)},
    "bias of heads": {"bias": 2 * spread(1, 4, 20, 37)},
    "bias of keys": {"bias": 2 * spread(2, 1, 1, 37)},
    "bias of queries and keys": {"bias": 2 * spread(20, 37)},
    "mask": {"mask": spread(2, 4, 20, 37) > -0.4},
    "mask of padding": {
        "mask": (torch.arange(37) < torch.tensor([20, 37])[:, None])[:, None, None]
    },
    "slopes": {"alibi_slopes": spread(4).abs()},
    "slopes of sequences": {"alibi_slopes": spread(2, 4).abs()},
    "sink": {"sink": 3 * spread(4)},
    "dropout": {"dropout_p": 0.3},
    "lse": {"return_lse": True},
}
EVERYTHING = {
    "causal": True,
    "window": (25, None),
    "scale": 0.5,
    "softcap": 3.0,
    "bias": FEATURES["bias"]["bias"],
    "mask": FEATURES["mask"]["mask"],
    "alibi_slopes": FEATURES["slopes of sequences"]["alibi_slopes"],
    "sink": FEATURES["sink"]["sink"],
    "dropout_p": 0.3,
    "return_lse": True,
}


def featured(impl, B, heads, Lq, Lk, D, keys=34, **options):
    """A dense case; for Triton's interpreter, which takes its time, of half as many heads.

    Some queries and ``keys`` alone, too, but more than a block of its kernels has: 32 keys of 16
    bits, 16 of float32; and no sequence beside the first where nothing is a sequence's own.
    """
    if impl.name != "triton":
        return dense_case(B, heads, Lq, Lk, D, **options)
    least = {heads[0]: heads[0] // 2, Lq: min(Lq, 18), Lk: keys}
    options = {
        name: t[tuple(slice(least.get(n, n)) for n in t.shape)] if torch.is_tensor(t) else t
        for name, t in options.items()
    }
    tensors = [t for t in options.values() if torch.is_tensor(t)]
    if not any(t.dim() in (2, 4) and t.shape[0] == B for t in tensors):
        B = 1
    return dense_case(B, (heads[0] // 2, heads[1] // 2), least[Lq], least[Lk], D, **options)


def drawn_dtypes(impl):
    """All, or what differs: one of 16 bits is to Triton as the other, and shown elsewhere."""
    return BOTH if impl.name == "triton" else DTYPES


@pytest.mark.sample(1)  # shows each feature to the support table, of every implementation
@pytest.mark.any_level(1)
def test_attention_is_within_budget_with_every_feature_at_once(impl):
    everything = EVERYTHING | {"bias": spread(1, 2, 4, 9), "sink": spread(2)}
    everything |= {"mask": spread(1, 2, 4, 9) > -0.4, "alibi_slopes": spread(1, 2).abs()}
    cache = {"cache_seqlens": torch.tensor([7]), "window": (5, None)}
    check_attention(
        impl.name,
        dense_case(1, (2, 1), 4, 9, 8, **everything),
        dense_case(1, (2, 1), 1, 9, 8, **cache),
        packed_case([3, 5], [4, 6], (2, 1), 8, causal=True, return_lse=True),
    )


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_attention_is_within_budget_at_every_length_and_dtype(impl, lengths):
    B = 1 if impl.name == "triton" else 2
    check_attention(impl.name, dense_case(B, 2, *lengths, 24), dtypes=drawn_dtypes(impl))
    check_attention(impl.name, dense_case(B, 2, *lengths, 24, causal=True), dtypes=BOTH)


@pytest.mark.parametrize("D", [1, 2, 3, 8, 15, 16, 17, 33, 64, 72, 128, 200, 256])
def test_attention_is_within_budget_at_every_width(impl, D):
    check_attention(impl.name, dense_case(1, 2, 18, 21, D, causal=True))


@pytest.mark.parametrize("D, Dv", [(8, 1), (16, 40), (64, 17), (40, 128), (192, 128)])
def test_attention_is_within_budget_with_values_of_another_width(impl, D, Dv):
    check_attention(impl.name, dense_case(1, 2, 18, 21, D, Dv, causal=True))


@pytest.mark.parametrize("heads", [(2, 1), (4, 2), (6, 3), (8, 1), (3, 3)], ids=str)
def test_attention_is_within_budget_with_shared_keys(impl, heads):
    check_attention(impl.name, dense_case(2, heads, 19, 23, 16, causal=True, sink=spread(heads[0])))


@pytest.mark.parametrize("kind", KINDS)
def test_attention_is_within_budget_on_adversarial_scores(impl, kind):
    check_attention(impl.name, dense_case(1, 2, 40, 67, 32, kind=kind, return_lse=True))
    check_attention(impl.name, dense_case(1, 2, 67, 67, 32, kind=kind, causal=True), dtypes=BOTH)


@pytest.mark.parametrize("feature", FEATURES)
def test_attention_is_within_budget_with_each_feature(impl, feature):
    case = featured(impl, 2, (4, 2), 20, 37, 16, **FEATURES[feature])
    check_attention(impl.name, case, dtypes=drawn_dtypes(impl))


@pytest.mark.parametrize("left_out", [None, *EVERYTHING])
def test_attention_is_within_budget_with_all_features_and_with_all_but_one(impl, left_out):
    options = {name: value for name, value in EVERYTHING.items() if name != left_out}
    # Triton's 16 bits have them all in every layout, below.
    dtypes, keys = BOTH, 34
    if impl.name == "triton" and left_out is None:
        dtypes, keys = [torch.float32], 19
    case = featured(impl, 2, (4, 2), 20, 37, 16, keys=keys, **options)
    check_attention(impl.name, case, dtypes=dtypes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_is_within_budget_in_every_layout(impl, layout):
    dtypes = [torch.bfloat16] if impl.name == "triton" else DTYPES
    everything = featured(impl, 2, (4, 2), 20, 37, 17, **EVERYTHING)
    check_attention(impl.name, everything, dtypes=dtypes, layouts=[layout])
    check_attention(impl.name, dense_case(1, 1, 1, 5, 8, causal=True), layouts=[layout])
    check_attention(
        impl.name, dense_case(3, 2, 9, 9, 64, causal=True), layouts=[layout], dtypes=BOTH
    )


@pytest.fixture(params=["fma", "dot", "amx"])
def product(request, native):
    """Each way to multiply bfloat16 that this processor has."""
    from hetkern import _C

    if native.name != "cpu":
        pytest.skip("a claim about the C++ kernels")
    before = _C.bf16_product()
    if _C.set_bf16_product(request.param) != request.param:
        _C.set_bf16_product(before)
        pytest.skip(f"this processor, at this instruction set, has no {request.param} of bfloat16")
    yield request.param
    _C.set_bf16_product(before)


def test_every_product_of_bfloat16_is_within_budget(native, product):
    from hetkern import _C

    assert _C.attention_plan(1, 2, 2, 9, 9, 8, 8, "bfloat16")["product"] == product
    assert _C.attention_plan(1, 2, 2, 9, 9, 8, 8, "float16")["product"] == "fma"
    cases = [
        dense_case(2, (4, 2), 20, 37, 16, **EVERYTHING),
        dense_case(1, 2, 150, 230, 72, 40, causal=True, return_lse=True),
        dense_case(1, 2, 130, 1300, 33, 130, window=(90, 40), kind="sharp"),
        dense_case(1, (8, 2), 1, 1300, 64, causal=True),
        packed_case([5, 100, 0, 33], [70, 100, 3, 8], (2, 1), 59, causal=True),
    ]
    check_attention("cpu", *cases, dtypes=[torch.bfloat16])
    check_attention("cpu", cases[1], dtypes=[torch.bfloat16], layouts=[*LAYOUTS])


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_every_product_of_bfloat16_keeps_poison_where_it_is_seen(native, product, poison):
    """In the rows that see a poisoned key, and in the keys that a poisoned query sees."""
    L = 150
    clean = [normal(1, 1, L, 40, seed=i).bfloat16() for i in range(3)]

    def gradients(tensors):
        leaves = [t.clone().requires_grad_() for t in tensors]
        out = hetkern.attention(*leaves, causal=True, window=(50, 0))
        return [out, *torch.autograd.grad(out, leaves, torch.ones_like(out))]

    for which in range(3):
        dirty = [t.clone() for t in clean]
        dirty[which][0, 0, 80, 3] = poison
        out, dq, dk, dv = (
            (a != b).any(-1)[0, 0] for a, b in zip(gradients(clean), gradients(dirty), strict=True)
        )
        rows = slice(80, 131) if which else slice(80, 81)
        for changed in (out, dq):
            assert changed[rows].any() and not changed[: rows.start].any()
            assert not changed[rows.stop :].any()
        keys = slice(30, 131) if which else slice(30, 81)
        for changed in (dk, dv):
            assert not changed[: keys.start].any() and not changed[keys.stop :].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_confident_rows_gradient_keeps_its_digits_in_16_bits(native, dtype):
    """One key has nearly all of each row: what is left of dP - delta is small beside both."""
    q, k, v = (normal(1, 1, 90, 32, seed=i) for i in range(3))
    q = (0.4 * q + 8 * k / k.norm(dim=-1, keepdim=True)).to(dtype)
    k, v = k.to(dtype), v.to(dtype)

    def gradient(tensors, **options):
        leaves = [t.clone().requires_grad_() for t in tensors]
        out = hetkern.attention(*leaves, causal=True, **options)
        return torch.autograd.grad(out.sum(), leaves[0])[0].double()

    exact = gradient([t.double() for t in (q, k, v)], impl="reference")
    error = (gradient((q, k, v), impl=native.name) - exact).norm(dim=-1)
    values = torch.eye(90, dtype=torch.double)[None, None]
    most = hetkern.attention(q.double(), k.double(), values, causal=True).amax(-1)
    confident = (most > 0.8) & (most < 0.999)
    assert confident.sum() > 20
    assert (error / exact.norm(dim=-1))[confident].max() < torch.finfo(dtype).eps


@pytest.mark.parametrize("seed", [20088, 20157, 1464])
def test_a_row_whose_gradient_is_0_keeps_no_rounding_of_its_output(native, seed):
    """Keys alike in float16, in float32 one or one with most of a row: dP and delta must cancel."""
    check_seed("attention", seed, native.name)


PACKED = {
    "same": ([5, 17, 1, 64, 33], [5, 17, 1, 64, 33]),
    "other keys": ([5, 17, 1, 40], [70, 17, 3, 8]),
    "empty": ([0, 9, 0, 3, 7, 0], [4, 9, 0, 0, 7, 5]),
    "one": ([70], [70]),
    "none": ([0, 0], [0, 0]),
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", PACKED.values(), ids=PACKED)
def test_packed_attention_is_within_budget(impl, lengths, causal):
    check_attention(impl.name, packed_case(*lengths, (4, 2), 24, causal=causal))


PACKED_FEATURES = ("window", "causal window", "softcap", "slopes", "sink", "dropout", "lse")


@pytest.mark.parametrize("feature", PACKED_FEATURES)
def test_packed_attention_is_within_budget_with_each_feature(impl, feature):
    lengths = [0, 9, 26, 3], [4, 9, 30, 12]
    check_attention(impl.name, packed_case(*lengths, (4, 2), 16, 24, **FEATURES[feature]))
    options = {"causal": True} | FEATURES[feature]
    if feature == "slopes":
        options["alibi_slopes"] = spread(4, 4).abs()
    for layout in ("permuted", "sliced"):
        case = packed_case(*lengths, (4, 2), 16, **options)
        check_attention(impl.name, case, dtypes=BOTH, layouts=[layout])


@pytest.mark.parametrize(
    "Lq, heads", [(1, (4, 1)), (1, (2, 2)), (3, (8, 2)), (17, (2, 1))], ids=str
)
def test_attention_over_a_cache_is_within_budget(impl, Lq, heads):
    lengths = torch.tensor([130, 1, 0, 77])
    case = dense_case(4, heads, Lq, 130, 40, cache_seqlens=lengths, return_lse=True)
    check_attention(impl.name, case)


@pytest.mark.parametrize(
    "feature", ["window", "softcap", "bias of keys", "mask of padding", "slopes", "sink"]
)
def test_attention_over_a_cache_is_within_budget_with_each_feature(impl, feature):
    lengths = torch.tensor([33, 9])
    case = dense_case(2, (4, 2), 2, 37, 16, cache_seqlens=lengths, **FEATURES[feature])
    check_attention(impl.name, case, dtypes=BOTH)


@pytest.mark.large
@pytest.mark.parametrize("lengths", PAIRS, ids=str)
@pytest.mark.parametrize("D", [32, 59, 111, 128])
def test_attention_is_within_budget_in_flash_attentions_cases(impl, D, lengths):
    case = dense_case(1, (2, 1), *lengths, D, causal=lengths[0] % 2 == 1)
    check_attention(impl.name, case, dtypes=BOTH)


@pytest.mark.proof
@pytest.mark.parametrize("lengths", [*PAIRS, *LONG_PAIRS], ids=str)
@pytest.mark.parametrize("D", WIDTHS)
def test_attention_is_within_budget_in_all_of_flash_attentions_cases(impl, D, lengths):
    if impl.simulated and max(lengths) > 300:
        pytest.skip("it would take hours")
    for options in (
        {"return_lse": True},
        {"causal": True, "alibi_slopes": spread(3).abs()},
        {"window": (31, 10), "softcap": 50.0},
        {"causal": True, "dropout_p": 0.17},
    ):
        check_attention(impl.name, dense_case(1, (3, 1), *lengths, D, **options), dtypes=BOTH)


@pytest.mark.large
@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize("window", [None, (40, 0)])
def test_attention_is_within_budget_over_several_blocks(native, window, dtype):
    case = dense_case(1, (2, 1), 700, 700, 64, causal=True, window=window)
    check_attention(native.name, case, dtypes=[dtype])


@pytest.mark.parametrize("seed", range(60))
def test_attention_is_within_budget_in_random_configurations(impl, seed):
    check_seed("attention", seed, impl.name)


# ---- What it means, by other ways to the same value. ---------------------------------------------


@pytest.mark.parametrize("Lq, Lk", [(4, 4), (2, 5), (5, 2), (1, 3), (3, 1), (40, 70)])
def test_causal_attention_is_aligned_bottom_right(impl, Lq, Lk):
    q, k, v = normal(1, 2, Lq, 8), normal(1, 2, Lk, 8, seed=1), normal(1, 2, Lk, 8, seed=2)
    kept = torch.arange(Lk) <= torch.arange(Lq)[:, None] + Lk - Lq
    got, wanted = (hetkern.attention(q, k, v, **o) for o in ({"causal": True}, {"mask": kept}))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    "window", [(0, 0), (2, 0), (2, 1), (None, 1), (3, -1), (-1, None), (90, 90)]
)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("Lq, Lk", [(9, 9), (7, 40), (40, 7), (70, 70)])
def test_a_window_is_the_mask_that_it_stands_for(impl, Lq, Lk, causal, window):
    q, k, v = normal(1, 2, Lq, 8), normal(1, 2, Lk, 8, seed=1), normal(1, 2, Lk, 8, seed=2)
    beside, j = torch.arange(Lq)[:, None] + Lk - Lq, torch.arange(Lk)
    left, right = (1000 if side in (None, -1) else side for side in window)
    kept = (j >= beside - left) & (j <= beside + (min(right, 0) if causal else right))
    got = hetkern.attention(q, k, v, causal=causal, window=window, return_lse=True)
    torch.testing.assert_close(got, hetkern.attention(q, k, v, mask=kept, return_lse=True))


def test_slopes_are_the_bias_that_they_stand_for(impl):
    q, k, v = normal(2, 3, 5, 8), normal(2, 3, 9, 8, seed=1), normal(2, 3, 9, 8, seed=2)
    slopes = normal(2, 3, seed=3).abs()
    distance = (torch.arange(5)[:, None] + 9 - 5 - torch.arange(9)).abs()
    got = hetkern.attention(q, k, v, alibi_slopes=slopes)
    wanted = hetkern.attention(q, k, v, bias=-slopes[..., None, None] * distance)
    torch.testing.assert_close(got, wanted)


def test_a_packed_batch_is_its_sequences_one_by_one_dropout_included(impl):
    lengths = [3, 0, 20, 1]
    ends = torch.tensor([0, *lengths]).cumsum(0)
    q, k, v = (normal(24, 4, 8, seed=seed) for seed in range(3))
    options = {"causal": True, "dropout_p": 0.5, "window": (7, 0)}
    torch.manual_seed(0)
    packed = hetkern.attention_varlen(q, k, v, ends, ends, 20, 20, **options)
    padded = [torch.zeros(4, 20, 4, 8) for _ in range(3)]
    for b in range(4):
        for t, whole in zip((q, k, v), padded, strict=True):
            whole[b, : lengths[b]] = t[ends[b] : ends[b + 1]]
    for b, n in enumerate(lengths):
        torch.manual_seed(0)
        # The masks count sequence, query and key: a dense batch has the same in its rows.
        dense = [t[:, :n].transpose(1, 2) for t in padded]
        if n:
            alone = hetkern.attention(*dense, **options)[b].transpose(0, 1)
            torch.testing.assert_close(packed[ends[b] : ends[b + 1]], alone)


def test_every_implementation_drops_the_same_weights(native):
    q, k, v = (normal(2, 2, 30, 16, seed=seed) for seed in range(3))
    outputs = []
    for name in (native.name, "reference"):
        torch.manual_seed(7)
        outputs.append(hetkern.attention(q, k, v, dropout_p=0.5, impl=name))
    torch.testing.assert_close(*outputs)


def test_lse_is_that_of_the_scores(impl):
    q, k, v = normal(2, 2, 5, 8), normal(2, 2, 9, 8, seed=1), normal(2, 2, 9, 8, seed=2)
    out, lse = hetkern.attention(q, k, v, scale=0.5, return_lse=True)
    torch.testing.assert_close(lse, (0.5 * q @ k.mT).logsumexp(-1))
    assert lse.dtype == torch.float32 and out.shape == q.shape
    _, lse = hetkern.attention(*(t.bfloat16() for t in (q, k, v)), return_lse=True)
    assert lse.dtype == torch.float32
