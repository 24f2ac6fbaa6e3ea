"""The error budget fails when it should, says where, and passes correctly rounded results."""

import pytest
import torch

from hetkern.testing import assert_close_to_exact

EPS = torch.finfo(torch.float32).eps


def exact_rows():
    return torch.randn(6, 300, generator=torch.Generator().manual_seed(0)).double().softmax(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_budget_passes_the_rounded_exact_value(dtype):
    exact = exact_rows()
    assert assert_close_to_exact(exact.to(dtype), exact, exact.to(dtype)) <= 0.5


def test_budget_limit_is_twice_the_sum_of_torch_error_and_eps_of_the_largest():
    exact = torch.tensor([[1.0, 0.25, 0.0]], dtype=torch.float64)
    baseline = torch.tensor([[1.0, 0.25, 3 * EPS]])
    within, beyond = exact.float(), exact.float()
    within[0, 1] += 7.75 * EPS
    beyond[0, 1] += 8.25 * EPS
    assert assert_close_to_exact(within, exact, baseline) == pytest.approx(7.75 / 8)
    with pytest.raises(AssertionError, match=r"error ÷ limit is 1\.0.* at \(0, 1\)"):
        assert_close_to_exact(beyond, exact, baseline)


def test_budget_judges_every_row_by_its_own_size():
    exact = torch.tensor([[1e6, 1e6], [1e-6, 1e-6]], dtype=torch.float64)
    actual = exact.float()
    actual[1, 0] = 0
    with pytest.raises(AssertionError, match=r"at \(1, 0\).* 1 of 2 rows over"):
        assert_close_to_exact(actual, exact, exact.float())
    assert assert_close_to_exact(actual, exact, exact.float(), dim=(0, 1)) < 1
    with pytest.raises(AssertionError, match="1 of 4 rows over"):
        assert_close_to_exact(actual, exact, exact.float(), dim=())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 0.5])
@pytest.mark.parametrize("wanted", [torch.nan, torch.inf, -torch.inf, 0.5])
def test_budget_wants_nan_and_infinities_exactly_where_they_belong(value, wanted):
    exact = torch.tensor([0.5, wanted], dtype=torch.float64)
    actual = torch.tensor([0.5, value])
    if value == wanted or (value != value and wanted != wanted):
        assert_close_to_exact(actual, exact, exact.float())
        return
    with pytest.raises(AssertionError, match=r"got .* belongs, at \(1,\)"):
        assert_close_to_exact(actual, exact, exact.float())


def test_budget_allows_overflow_only_where_the_rounded_exact_value_overflows():
    exact = torch.tensor([-1e5, -1.0], dtype=torch.float64)
    assert_close_to_exact(exact.half(), exact, exact.half())
    with pytest.raises(AssertionError, match="got -inf where"):
        assert_close_to_exact(torch.tensor([-torch.inf, -1.0]), exact, exact.float())


def test_budget_runs_the_reference_in_the_results_dtype_when_there_is_no_baseline():
    x, asked = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).bfloat16(), []

    def reference(dtype):
        asked.append(dtype)
        return x.to(dtype).softmax(-1)

    assert_close_to_exact(x.softmax(-1), reference)
    assert set(asked) == {torch.bfloat16, torch.float64}
    with pytest.raises(ValueError, match="give a baseline, or exact as a function of dtype"):
        assert_close_to_exact(x.softmax(-1), x.double().softmax(-1))


def test_budget_catches_a_float64_result_computed_in_float32():
    x = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    assert_close_to_exact(x.double().softmax(-1), lambda dtype: x.to(dtype).softmax(-1))
    with pytest.raises(AssertionError, match="error ÷ limit"):
        assert_close_to_exact(x.softmax(-1).double(), lambda dtype: x.to(dtype).softmax(-1))


def test_budget_works_on_scalars_and_empty_results():
    exact = torch.tensor(2.0, dtype=torch.float64)
    assert assert_close_to_exact(torch.tensor(2.0), exact, torch.tensor(2.0)) == 0
    with pytest.raises(AssertionError, match=r"at \(\)"):
        assert_close_to_exact(torch.tensor(2.1), exact, torch.tensor(2.0))
    nothing = torch.zeros(0, 3)
    assert assert_close_to_exact(nothing, nothing.double(), nothing) == 0


def test_budget_failure_names_seed_and_repro():
    exact = torch.ones(3, dtype=torch.float64)
    told = {"name": "softmax y", "seed": 7, "repro": "python -m thing --seed 7"}
    with pytest.raises(
        AssertionError, match=r"^softmax y: .*seed 7\nrepro: python -m thing --seed 7"
    ):
        assert_close_to_exact(torch.zeros(3), exact, exact.float(), **told)
    with pytest.raises(AssertionError, match=r"softmax y: shape \(2,\).*wanted \(3,\)"):
        assert_close_to_exact(torch.zeros(2), exact, exact.float(), **told)
