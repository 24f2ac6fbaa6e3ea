"""Few queries, whose heads stand together, and keys that are taken in parts: values and bits."""

import pytest
import torch

import hetkern
from hetkern.testing.cases.attention import check_attention, dense_case
from hetkern.testing.devices import here, normal
from hetkern.testing.values.calls import same_bits

pytestmark = [pytest.mark.any_level, pytest.mark.sample(1, simulated=16)]

BOTH = [torch.float32, torch.bfloat16]
DTYPES = [*BOTH, torch.float64]


def spread(*shape):
    """Numbers from -1 to 1 that differ."""
    n = torch.Size(shape).numel()
    return torch.linspace(-1, 1, n).roll(n // 3).reshape(shape)


OF_HEADS = {
    "bias": {"bias": 2 * spread(2, 6, 3, 37), "causal": True},
    "mask": {"mask": spread(2, 6, 3, 37) > -0.4},
    "slopes": {"alibi_slopes": spread(2, 6).abs(), "sink": 3 * spread(6)},
    "dropout": {"dropout_p": 0.3, "window": (9, 0)},
}


@pytest.mark.sample(1, simulated=2)
@pytest.mark.parametrize("feature", OF_HEADS)
def test_few_queries_are_within_budget_with_what_their_heads_do_not_share(impl, feature):
    """The heads of a group stand together where they read the same keys."""
    B, options, dtypes = 2, OF_HEADS[feature], BOTH
    if impl.name == "triton":  # in less time: a sequence, a dtype
        B, dtypes = 1, [torch.float32 if feature == "bias" else torch.bfloat16]
        own = ("bias", "mask", "alibi_slopes")
        options = {name: t[:1] if name in own else t for name, t in options.items()}
    check_attention(impl.name, dense_case(B, (6, 2), 3, 37, 16, **options), dtypes=dtypes)


@pytest.fixture
def keys_of_a_part(impl, monkeypatch):
    """After how many keys sums begin anew: Triton's number is none of its kernels' shape."""
    if impl.name != "triton":
        return 1024
    monkeypatch.setattr("hetkern.triton.attention_tiles.PART", 32)
    return 32


OVER_PARTS = {
    "window and sink": {"causal": True, "sink": spread(2), "return_lse": True},
    "slopes and cap": {"softcap": 3.0, "alibi_slopes": spread(2).abs()},
    "bias and mask": {"dropout_p": 0.3},
}


@pytest.mark.sample(1, simulated=3)
@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize("Lq", [2, 18])
@pytest.mark.parametrize("feature", OVER_PARTS)
def test_attention_is_within_budget_over_parts_of_the_keys(
    impl, keys_of_a_part, feature, Lq, dtype
):
    """Some queries are alone with the keys, others take their parts one after another."""
    part, options = keys_of_a_part, dict(OVER_PARTS[feature])
    Lk = 2 * part + 20
    if feature == "window and sink":
        options["window"] = (3 * part // 2, 0)
    if feature == "bias and mask":
        options["bias"] = 2 * spread(1, 2, 1, Lk)
        options["mask"] = (torch.arange(Lk) < part - 5) | (torch.arange(Lk) >= 2 * part)
    check_attention(impl.name, dense_case(1, (2, 1), Lq, Lk, 16, 24, **options), dtypes=[dtype])


@pytest.mark.sample(1, simulated=1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_lengths_of_a_cache_end_in_any_part_of_the_keys(impl, keys_of_a_part, dtype):
    Lk = 2 * keys_of_a_part + 20
    lengths = torch.tensor([0, 5, keys_of_a_part, Lk])
    case = dense_case(4, (2, 1), 1, Lk, 8, cache_seqlens=lengths, return_lse=True)
    check_attention(impl.name, case, dtypes=[dtype])


@pytest.mark.sample(1)
def test_what_parts_of_the_keys_put_aside_is_small_beside_the_cache(native, monkeypatch):
    """Little more than a number a thousand of the cache's, and a result's size for a prompt."""
    if native.name != "triton":
        pytest.skip("a claim about the Triton launcher")
    from hetkern.triton import attention as family

    made, aside = [], family._aside
    monkeypatch.setattr(family, "_aside", lambda *a: made.append(aside(*a)) or made[-1])
    monkeypatch.setattr(family.Call, "launch", lambda *a, **b: None)
    for Lq, most in ((1, 0.01), (64, 2.2)):
        q, k = torch.empty(2, 8, Lq, 64), torch.empty(2, 2, 5000, 64)
        family.attention(
            q, k, k, 1.0, 0.0, False, -1, -1, *[None] * 4, 0.0, *[None] * 3, 0, 0, None
        )
        beside = k if Lq == 1 else q
        assert sum(t.numel() for t in made[-1][:3]) < most * beside.numel()


MANY_KEYS = {
    "plain": lambda part: {},
    "window": lambda part: {"window": (3 * part // 2, 0)},
    # A part of none.
    "mask": lambda part: {
        "mask": (torch.arange(2 * part + 52) < part - 9) | (torch.arange(2 * part + 52) > 2 * part)
    },
    "sink": lambda part: {"sink": torch.tensor([1.0, -1.0])},
    "slopes": lambda part: {"alibi_slopes": torch.tensor([0.3, 0.1]), "softcap": 5.0},
}


@pytest.mark.sample(1, simulated=4)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("feature", MANY_KEYS)
def test_a_query_alone_has_the_bits_that_it_has_among_others(native, feature, dtype, monkeypatch):
    """Parts of the keys are put together in one way, whoever takes them."""
    part = 1024
    if native.name == "triton":  # whose kernels take any number for what it is
        part = 64
        monkeypatch.setattr("hetkern.triton.attention_tiles.PART", part)
    options = {"causal": True, "return_lse": True}
    made = MANY_KEYS[feature](part)
    options |= {n: here(x) if torch.is_tensor(x) else x for n, x in made.items()}
    if feature == "sink":
        options["sink"] = options["sink"].to(dtype)
    Lk = 2 * part + 52
    q = normal(1, 2, 20, 24).to(dtype)
    k, v = (normal(1, 1, Lk, 24, seed=s).to(dtype) for s in (1, 2))
    many = hetkern.attention(q, k, v, **options)
    alone = hetkern.attention(q[:, :, -1:], k, v, **options)
    for whole, one in zip(many, alone, strict=True):
        assert same_bits(whole[:, :, -1:], one)
