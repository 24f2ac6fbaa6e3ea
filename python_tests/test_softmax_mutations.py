"""Planted errors: the checks of softmax fail on each, so that passing them means something.

Rows must differ for a stale row to be wrong, and an element must carry weight for its loss to show.
"""

import pytest
import torch

import hetkern
from hetkern.testing import Case, check_op
from hetkern.testing.cases import inputs
from hetkern.testing.cases.families import check_softmax, exact_softmax, softmax_op, torch_softmax
from hetkern.testing.cases.mutants import (
    SPOILED,
    planted,
    skipped_last_tile,
    spoiled_gradient,
    spoiled_value,
    stale_row,
    zeros,
)

pytestmark = pytest.mark.any_level

DTYPES = [torch.float32, torch.bfloat16]


def softmax_case(kind, **options):
    x = inputs.logits(kind, (3, 200), 1, torch.Generator().manual_seed(0))
    return Case(kind, (x,), options)


def assert_caught(impl, case, dtype, mutate):
    """Softmax passes, its mutant does not."""
    check_softmax(impl.name, case, dtypes=[dtype])
    with pytest.raises(AssertionError, match=r"error ÷ limit|belongs"):
        check_op(
            mutate(softmax_op(impl.name)), exact_softmax, [case], [dtype], baseline=torch_softmax
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spoil", SPOILED)
def test_a_spoiled_softmax_is_caught(impl, spoil, dtype):
    case, fault = softmax_case("flat"), SPOILED[spoil]
    assert_caught(impl, case, dtype, lambda op: spoiled_value(op, fault))
    assert_caught(impl, case, dtype, lambda op: spoiled_gradient(op, fault))


@pytest.mark.parametrize("kind", ["normal", "huge", "shifted", "minus_inf", "descending"])
def test_a_log_softmax_of_zeros_or_with_a_stale_row_is_caught(impl, kind):
    for fault in (zeros, stale_row):
        case = softmax_case(kind, log=True)
        assert_caught(impl, case, torch.float32, lambda op, fault=fault: spoiled_value(op, fault))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("kind", ["flat", "normal", "shifted", "equal", "ascending"])
def test_a_softmax_that_skips_its_last_tile_is_caught(impl, kind, log, dtype):
    assert_caught(impl, softmax_case(kind, log=log), dtype, skipped_last_tile)


def test_planted_replaces_a_public_function_and_puts_it_back(impl):
    honest, case = hetkern.softmax, softmax_case("normal")
    with planted(hetkern, "softmax", lambda op: spoiled_value(op, zeros)):
        with pytest.raises(AssertionError, match=r"error ÷ limit"):
            check_softmax(impl.name, case)
    assert hetkern.softmax is honest
    check_softmax(impl.name, case)
