"""Planted errors: the checks of cross-entropy fail on each, so that passing them means something.

The rows are flat, so that every element carries weight; targets are judged apart from their rows.
"""

import pytest
import torch

from hetkern.reference import cross_entropy as exact
from hetkern.testing import Case, check_op
from hetkern.testing.cases import inputs
from hetkern.testing.cases.families import (
    check_cross_entropy,
    cross_entropy_op,
    target_classes,
    torch_cross_entropy,
)
from hetkern.testing.cases.mutants import (
    SPOILED,
    dropped_target_term,
    skipped_last_tile,
    spoiled_gradient,
    spoiled_value,
)

pytestmark = pytest.mark.any_level

DTYPES = [torch.float32, torch.bfloat16]


def cross_entropy_case(kind, **options):
    generator = torch.Generator().manual_seed(0)
    x = inputs.logits(kind, (3, 200), 1, generator)
    target = inputs.targets("random", x, 1, generator)
    return Case(kind, (x, target), {"reduction": "none"} | options, apart=target_classes)


def assert_caught(impl, case, dtype, mutate):
    """Cross-entropy passes, its mutant does not."""
    check_cross_entropy(impl.name, case, dtypes=[dtype])
    with pytest.raises(AssertionError, match=r"error ÷ limit|belongs"):
        check_op(
            mutate(cross_entropy_op(impl.name)),
            exact,
            [case],
            [dtype],
            baseline=torch_cross_entropy,
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("in_gradient", [False, True])
@pytest.mark.parametrize("kind", ["flat", "normal", "shifted", "ascending"])
def test_a_cross_entropy_that_drops_its_target_term_is_caught(impl, kind, in_gradient, dtype):
    case = cross_entropy_case(kind)
    assert_caught(impl, case, dtype, lambda op: dropped_target_term(op, in_gradient=in_gradient))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spoil", SPOILED)
def test_a_spoiled_cross_entropy_is_caught(impl, spoil, dtype):
    rows, mean, fault = (
        cross_entropy_case("flat"),
        cross_entropy_case("flat", reduction="mean"),
        SPOILED[spoil],
    )
    assert_caught(impl, rows, dtype, lambda op: spoiled_value(op, fault))
    assert_caught(impl, rows, dtype, lambda op: spoiled_gradient(op, fault))
    assert_caught(impl, mean, dtype, lambda op: spoiled_gradient(op, fault))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["flat", "normal", "shifted", "equal"])
def test_a_cross_entropy_that_skips_its_last_tile_is_caught(impl, kind, dtype):
    assert_caught(impl, cross_entropy_case(kind), dtype, skipped_last_tile)
