"""Pytest fixtures: ``pytest_plugins = ["hetkern.testing.pytest_plugin"]`` in a root conftest.

A test that takes ``impl`` runs once with each implementation active; one that cannot run on this
machine skips with its reason. ``generator`` is a seeded ``torch.Generator``. Tests marked ``proof``
are long: they run where ``-m`` names them, as in ``pytest -m proof``.
"""

import os
from collections.abc import Iterator

import pytest
import torch

from hetkern.testing.implementations import IMPLEMENTATIONS, Implementation


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker ``proof``; let a pytest-xdist worker keep to one core."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)  # workers that each take all cores wait for one another
    config.addinivalue_line("markers", "proof: takes long or much memory; runs where -m names it")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what is marked ``proof`` unless asked for."""
    if "proof" in config.option.markexpr:
        return
    for item in items:
        if item.get_closest_marker("proof"):
            item.add_marker(pytest.mark.skip(reason="long: pytest -m proof runs it"))


@pytest.fixture(params=IMPLEMENTATIONS, ids=str)
def impl(request: pytest.FixtureRequest) -> Iterator[Implementation]:
    """Each implementation in turn, active while the test runs."""
    implementation: Implementation = request.param
    if reason := implementation.why_absent():
        pytest.skip(reason)
    with implementation.active():
        yield implementation


@pytest.fixture
def native(impl: Implementation) -> Implementation:
    """``impl`` without the reference: for claims that torch's own operations do not make."""
    if impl.name == "reference":
        pytest.skip("the claim is about our kernels, not about torch's")
    return impl


@pytest.fixture
def generator() -> torch.Generator:
    """A generator with a fixed seed."""
    return torch.Generator().manual_seed(0)
