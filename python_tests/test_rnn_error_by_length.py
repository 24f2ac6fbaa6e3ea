"""An RNN's error does not grow with its steps beyond what torch's own does."""

import sys
from pathlib import Path

import pytest

from hetkern.testing import assert_close_to_exact

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from bench_rnn_error import DTYPES, LENGTHS, three


@pytest.mark.parametrize(
    "T", [pytest.param(T, marks=pytest.mark.proof if T > 64 else ()) for T in LENGTHS]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru"])
def test_the_error_is_within_budget_at_every_number_of_steps(cell, dtype, T):
    results = three(cell, T, dtype)
    for name, ours, torchs, exact in zip(("h", "dW_hh"), *results.values(), strict=True):
        rows = -1 if name == "h" else (0, 1)
        assert_close_to_exact(ours, exact, torchs, dim=rows, name=f"{cell} T {T} {name}")
