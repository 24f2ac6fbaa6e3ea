"""A rung of the ladder says how many of its tests have to run."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize(("least", "status"), [(1, 0), (2, 1)])
def test_a_rung_whose_tests_did_not_run_fails(least, status):
    one = HERE / "test_rungs.py::test_that_passes"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--at-least", str(least), one],
        cwd=HERE.parent,
        text=True,
        capture_output=True,
    )
    assert done.returncode == status
    assert ("--at-least: wanted 2 passed tests, got 1" in done.stdout) == bool(status)


def test_that_passes():
    """What the test above runs."""
