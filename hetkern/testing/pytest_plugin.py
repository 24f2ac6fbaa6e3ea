"""Pytest fixtures: ``pytest_plugins = ["hetkern.testing.pytest_plugin"]`` in a root conftest.

A test that takes ``impl`` runs once with each implementation active; one that cannot run on this
machine skips with its reason. ``--impl cuda,triton`` runs only the tests of those implementations,
``--impl cpu`` those of every instruction set; without it the ones that need no preparation run:
reference and cpu. ``generator`` is a seeded ``torch.Generator``. Tests marked ``proof``
are long: they run where ``-m`` names them, as in ``pytest -m proof``.
"""

import os
from collections.abc import Iterator

import pytest
import torch

from hetkern.testing.implementations import IMPLEMENTATIONS, Implementation


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--impl``."""
    parser.addoption("--impl", help="only tests of these implementations: reference,cpu,cuda,…")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker ``proof``; let a pytest-xdist worker keep to one core."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)  # workers that each take all cores wait for one another
    config.addinivalue_line("markers", "proof: takes long or much memory; runs where -m names it")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep to the implementations asked for; skip what is marked ``proof`` unless asked for."""
    asked = config.getoption("--impl")
    kept, dropped = [], []
    for item in items:
        (kept if _wanted(item, asked) else dropped).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=dropped)
    if "proof" in config.option.markexpr:
        return
    for item in items:
        if item.get_closest_marker("proof"):
            item.add_marker(pytest.mark.skip(reason="long: pytest -m proof runs it"))


def _wanted(item: pytest.Item, asked: str | None) -> bool:
    """Whether a test is of an implementation asked for; without ``--impl``, or of none."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    implementation = parameters.get("impl")
    if not isinstance(implementation, Implementation):
        return asked is None
    wanted = asked.split(",") if asked else ("reference", "cpu")
    return implementation.name in wanted or str(implementation) in wanted


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Skip a test of a dtype that its implementation lacks, with the reason that it gave."""
    try:
        return (yield)
    except NotImplementedError as refusal:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if "impl" in params and "its kernels have no float64" in str(refusal):
            pytest.skip(str(refusal))
        raise


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
