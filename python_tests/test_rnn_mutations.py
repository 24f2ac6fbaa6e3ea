"""Planted errors: the RNN family's checks fail on each, so that passing them means something."""

import pytest
import torch
from recurrent import CELLS

from hetkern import impl as _impl
from hetkern.testing import check_op
from hetkern.testing.cases.mutants import (
    changed_argument,
    dropped_element,
    spoiled_gradient,
    spoiled_value,
    stale_row,
    zeros,
)
from hetkern.testing.cases.recurrent import by_torch, check_rnn, rnn_op, sequence_case

pytestmark = pytest.mark.any_level

# A mutant that is caught has cost every draw of torch's error: one dtype a cell, and draws once.
DTYPE = {
    "tanh": torch.float32,
    "relu": torch.float32,
    "lstm": torch.bfloat16,
    "gru": torch.bfloat16,
}
REFERENCE = rnn_op("reference")
DRAWN = {}


def last_unit(t):
    """The last unit was never written."""
    t[..., -1] = 0
    return t


def without_last_unit(w_hh):
    """The product leaves out the last unit of the state."""
    return torch.cat([w_hh[:, :-1], torch.zeros_like(w_hh[:, -1:])], 1)


def argument(cell, name):
    """Where a case has it: x, the states, then the weights."""
    return ("w_ih", "w_hh", "b_ih", "b_hh").index(name) + (3 if cell == "lstm" else 2)


def short(cell, **options):
    """A few units over a few steps; those of a relu are above 0, where nothing hides an error."""
    made = sequence_case(cell, 3, 2, 4, 9, **options)
    if cell == "relu":
        made.args[argument(cell, "b_ih")].add_(4.0)
    return made


def assert_caught(case, mutant):
    with pytest.raises(AssertionError, match=r"error ÷ limit|belongs"):
        check_op(
            mutant,
            REFERENCE,
            [case],
            [DTYPE[case.kwargs["cell"]]],
            baseline=by_torch(REFERENCE),
            device=torch.get_default_device(),
            drawn=DRAWN,
        )


@pytest.fixture(params=CELLS)
def cell(request, native):
    """Every one; at one instruction set, since mutants stand above all of them."""
    if native.isa not in (None, _impl.native.isa_levels()[-1]):
        pytest.skip("the best instruction set has caught the same mutant")
    return request.param


@pytest.fixture
def case(native, cell):
    """A short one that passes: its mutants must not."""
    made = short(cell)
    check_rnn(native.name, made, dtypes=[DTYPE[cell]])
    return made


def test_spoiled_results_and_gradients_are_caught(native, cell, case):
    """A stale row of y is the state of the step before; h_n and c_n are results as well."""
    op = rnn_op(native.name)
    for spoil in (zeros, stale_row, last_unit, dropped_element):
        assert_caught(case, spoiled_value(op, spoil))
        assert_caught(case, spoiled_gradient(op, spoil))
    for which in range(1, 3 if cell == "lstm" else 2):
        for spoil in (zeros, last_unit):
            assert_caught(case, spoiled_value(op, spoil, which))


def test_what_is_left_out_of_the_arithmetic_is_caught(native, cell, case):
    """A bias, the last unit of the state, the state that came from outside."""
    op = rnn_op(native.name)
    for name in ("b_ih", "b_hh"):
        dropped = changed_argument(op, argument(cell, name), torch.zeros_like)
        assert_caught(case, dropped)
    shorter = changed_argument(op, argument(cell, "w_hh"), without_last_unit)
    assert_caught(case, shorter)
    for state in range(1, 3 if cell == "lstm" else 2):
        assert_caught(case, changed_argument(op, state, torch.zeros_like))


def test_ignored_options_are_caught(native, cell):
    """A sequence that outlives its rows, or that never starts anew."""
    options = {
        "lengths": torch.tensor([3, 1]),
        "reset": torch.tensor([[False, True, False], [False, False, True]]),
    }
    for name, value in options.items():
        case = short(cell, **{name: value})
        check_rnn(native.name, case, dtypes=[DTYPE[cell]])

        def mutant(*args, name=name, **kwargs):
            return rnn_op(native.name)(*args, **{**kwargs, name: None})

        assert_caught(case, mutant)
