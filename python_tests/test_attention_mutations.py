"""Planted errors: the checks of attention fail on each, so that passing them means something."""

import pytest
import torch

from hetkern import impl as _impl
from hetkern.testing import check_op
from hetkern.testing.cases.attention import (
    attention_op,
    check_attention,
    dense_case,
    packed_case,
    torch_attention,
)
from hetkern.testing.cases.mutants import SPOILED, changed_argument, spoiled_gradient, spoiled_value
from hetkern.testing.values import check

pytestmark = [pytest.mark.any_level, pytest.mark.sample(1, simulated=6)]

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def best_level(impl):
    if impl.isa not in (None, _impl.native and _impl.native.isa_levels()[-1]):
        pytest.skip("the best instruction set has caught the same mutant")


@pytest.fixture(autouse=True)
def two_looks(monkeypatch):
    """A mutant is looked at in all draws; fewer will do."""
    monkeypatch.setattr(check, "DRAWS", (1, 4))


def assert_caught(impl, case, dtype, mutant):
    """Attention passes, its mutant does not."""
    check_attention(impl.name, case, dtypes=[dtype])
    with pytest.raises(AssertionError, match=r"error ÷ limit|belongs|other bits"):
        check_op(
            mutant,
            attention_op("reference"),
            [case],
            [dtype],
            baseline=torch_attention,
            device=torch.get_default_device(),
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spoil", SPOILED)
def test_a_spoiled_attention_is_caught(impl, spoil, dtype):
    case, op, fault = (
        dense_case(2, 2, 5, 9, 64, kind="flat"),
        attention_op(impl.name),
        SPOILED[spoil],
    )
    assert_caught(impl, case, dtype, spoiled_value(op, fault))
    assert_caught(impl, case, dtype, spoiled_gradient(op, fault))
    with_lse = dense_case(2, 2, 5, 9, 64, kind="flat", return_lse=True)
    assert_caught(impl, with_lse, dtype, spoiled_value(op, fault, 1))


def last_row(change):
    def changed(t):
        t = t.clone()
        change(t[..., -1, :])
        return t

    return changed


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["flat", "normal", "constant", "shifted"])
def test_a_last_key_that_is_left_out_is_caught(impl, kind, dtype):
    # With seed 0 a shifted row lies at 1.03 of its limit with AVX2: torch's error is small by luck.
    case, op = dense_case(1, 2, 6, 9, 32, kind=kind, seed=1), attention_op(impl.name)
    assert_caught(impl, case, dtype, changed_argument(op, 2, last_row(torch.Tensor.zero_)))
    if kind in ("normal", "shifted"):
        assert_caught(impl, case, dtype, changed_argument(op, 1, last_row(torch.Tensor.neg_)))


FEATURES = {
    "causal": True,
    "window": (2, 1),
    "scale": 0.5,
    "softcap": 0.5,
    "bias": torch.linspace(-1, 1, 2 * 6 * 9).reshape(1, 2, 6, 9),
    "mask": torch.arange(9) % 4 > 0,
    "alibi_slopes": torch.tensor([0.25, 0.5]),
    "sink": torch.tensor([0.5, -0.5]),
    "dropout_p": 0.3,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("feature", FEATURES)
def test_a_feature_that_is_ignored_is_caught(impl, feature, dtype):
    case = dense_case(1, 2, 6, 9, 16, **{feature: FEATURES[feature]})

    def ignoring(q, k, v, **options):
        value = options.pop(feature)
        out = attention_op(impl.name)(q, k, v, **options)
        return out + 0 * value.sum() if torch.is_tensor(value) and value.requires_grad else out

    assert_caught(impl, case, dtype, ignoring)


@pytest.mark.parametrize("what", ["bias", "alibi_slopes", "sink"])
def test_a_gradient_that_is_left_out_is_caught(impl, what):
    case = dense_case(1, 2, 6, 9, 16, **{what: FEATURES[what]})

    def mutant(q, k, v, **options):
        return attention_op(impl.name)(q, k, v, **{n: t.detach() for n, t in options.items()})

    assert_caught(impl, case, torch.float32, mutant)


def test_a_gradient_through_lse_that_is_left_out_is_caught(impl):
    case = dense_case(1, 2, 6, 9, 16, return_lse=True)

    def mutant(*args, **options):
        out, lse = attention_op(impl.name)(*args, **options)
        return out, lse.detach() + 0 * out.sum().to(lse.dtype)

    assert_caught(impl, case, torch.float32, mutant)


def test_a_dropout_that_forgets_its_factor_or_its_mask_is_caught(impl):
    case = dense_case(1, 2, 6, 9, 16, dropout_p=0.3)

    def unscaled(*args, **options):
        return 0.7 * attention_op(impl.name)(*args, **options)

    def other_mask(*args, **options):
        from hetkern.testing.cases import attention as cases

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cases, "SEED", 4321)
            return attention_op(impl.name)(*args, **options)

    for mutant in (unscaled, other_mask):
        assert_caught(impl, case, torch.float32, mutant)


def test_a_packed_batch_that_looks_into_its_neighbour_is_caught(impl):
    case = packed_case([4, 5], [4, 5], 2, 16)

    def mutant(q, k, v, **options):
        ends = torch.tensor([0, 9], dtype=torch.int32)
        options |= {"cu_seqlens_q": ends, "cu_seqlens_k": ends}
        options |= {"max_seqlen_q": 9, "max_seqlen_k": 9}
        return attention_op(impl.name)(q, k, v, **options)

    assert_caught(impl, case, torch.float32, mutant)


def test_a_cache_read_beyond_its_length_is_caught(impl):
    case = dense_case(2, 2, 1, 9, 16, cache_seqlens=torch.tensor([4, 9]))

    def mutant(q, k, v, cache_seqlens):
        return attention_op(impl.name)(q, k, v, cache_seqlens=torch.full_like(cache_seqlens, 9))

    assert_caught(impl, case, torch.float32, mutant)


def test_a_head_that_reads_another_key_head_is_caught(impl):
    case = dense_case(1, (4, 2), 5, 7, 16)
    mutant = changed_argument(attention_op(impl.name), 1, lambda k: k.flip(1))
    assert_caught(impl, case, torch.float32, mutant)
