"""Planted errors: the checks of both families fail on each, so that passing them means something.

Rows must differ for a stale row to be wrong, and an element must carry weight for its loss to show.
"""

import pytest
import torch

import hetkern
from hetkern import reference
from hetkern.testing import Case, check_op, inputs
from hetkern.testing.families import (
    cross_entropy_op,
    exact_softmax,
    softmax_op,
    target_classes,
)
from hetkern.testing.mutants import (
    SPOILED,
    dropped_target_term,
    planted,
    skipped_last_tile,
    spoiled_gradient,
    spoiled_value,
    stale_row,
    zeros,
)

DTYPES = [torch.float32, torch.bfloat16]


def softmax_case(kind, **options):
    x = inputs.logits(kind, (3, 200), 1, torch.Generator().manual_seed(0))
    return Case(kind, (x,), options)


def cross_entropy_case(kind, **options):
    generator = torch.Generator().manual_seed(0)
    x = inputs.logits(kind, (3, 200), 1, generator)
    target = inputs.targets("random", x, 1, generator)
    return Case(kind, (x, target), {"reduction": "none"} | options, apart=target_classes)


def assert_caught(op, exact, case, dtype, mutate):
    """The op passes, its mutant does not."""
    check_op(op, exact, [case], [dtype])
    with pytest.raises(AssertionError, match=r"error ÷ limit|belongs"):
        check_op(mutate(op), exact, [case], [dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spoil", SPOILED)
def test_a_spoiled_softmax_is_caught(impl, spoil, dtype):
    op, case = softmax_op(impl.name), softmax_case("flat")
    assert_caught(op, exact_softmax, case, dtype, lambda op: spoiled_value(op, SPOILED[spoil]))
    assert_caught(op, exact_softmax, case, dtype, lambda op: spoiled_gradient(op, SPOILED[spoil]))


@pytest.mark.parametrize("kind", ["normal", "huge", "shifted", "minus_inf", "descending"])
def test_a_log_softmax_of_zeros_or_with_a_stale_row_is_caught(impl, kind):
    op, case = softmax_op(impl.name), softmax_case(kind, log=True)
    for spoil in (zeros, stale_row):
        assert_caught(op, exact_softmax, case, torch.float32, lambda op, f=spoil: spoiled_value(op, f))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("kind", ["flat", "normal", "shifted", "equal", "ascending"])
def test_a_softmax_that_skips_its_last_tile_is_caught(impl, kind, log, dtype):
    case = softmax_case(kind, log=log)
    assert_caught(softmax_op(impl.name), exact_softmax, case, dtype, skipped_last_tile)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("in_gradient", [False, True])
@pytest.mark.parametrize("kind", ["flat", "normal", "shifted", "ascending"])
def test_a_cross_entropy_that_drops_its_target_term_is_caught(impl, kind, in_gradient, dtype):
    assert_caught(
        cross_entropy_op(impl.name),
        reference.cross_entropy,
        cross_entropy_case(kind),
        dtype,
        lambda op: dropped_target_term(op, in_gradient=in_gradient),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spoil", SPOILED)
def test_a_spoiled_cross_entropy_is_caught(impl, spoil, dtype):
    op, exact, fault = cross_entropy_op(impl.name), reference.cross_entropy, SPOILED[spoil]
    case = cross_entropy_case("flat")
    assert_caught(op, exact, case, dtype, lambda op: spoiled_value(op, fault))
    assert_caught(op, exact, case, dtype, lambda op: spoiled_gradient(op, fault))
    mean = cross_entropy_case("flat", reduction="mean")
    assert_caught(op, exact, mean, dtype, lambda op: spoiled_gradient(op, fault))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["flat", "normal", "shifted", "equal"])
def test_a_cross_entropy_that_skips_its_last_tile_is_caught(impl, kind, dtype):
    op, case = cross_entropy_op(impl.name), cross_entropy_case(kind)
    assert_caught(op, reference.cross_entropy, case, dtype, skipped_last_tile)


def test_planted_replaces_a_public_function_and_puts_it_back(impl):
    honest, case = hetkern.softmax, softmax_case("normal")
    op = softmax_op(impl.name)
    with planted(hetkern, "softmax", lambda op: spoiled_value(op, zeros)):
        with pytest.raises(AssertionError, match=r"error ÷ limit"):
            check_op(op, exact_softmax, [case])
    assert hetkern.softmax is honest
    check_op(op, exact_softmax, [case])
