"""Pytest fixtures: ``pytest_plugins = ["hetkern.testing.pytest_plugin"]`` in a root conftest.

A test that takes ``impl`` runs once with each implementation active; one that cannot run on this
machine skips with its reason. ``--impl cuda,triton`` runs only the tests of those implementations,
``--impl cpu`` those of every instruction set; without it reference and cpu run, which need no
preparation. ``generator`` is a seeded ``torch.Generator``. Tests marked ``proof`` are long: they
run where ``-m`` names them, as in ``pytest -m proof``, and so do those marked ``large`` on an
implementation that is emulated or interpreted.

Where an implementation runs on a GPU, its tests' new tensors are made there (torch's default
device) and tensors among their parameters moved there.
"""

import os
from collections.abc import Iterator

import pytest
import torch

from hetkern.testing.devices import here
from hetkern.testing.implementations import IMPLEMENTATIONS, Implementation


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--impl``."""
    parser.addoption("--impl", help="only tests of these implementations: reference,cpu,cuda,…")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker ``proof``; let a pytest-xdist worker keep to one core."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)  # workers that each take all cores wait for one another
    config.addinivalue_line("markers", "proof: takes long or much memory; runs where -m names it")
    config.addinivalue_line("markers", "large: emulated and interpreted, only together with proof")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep to the implementations asked for; skip what is marked ``proof`` unless asked for."""
    asked = config.getoption("--impl")
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        (kept if _wanted(item, asked) else dropped).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=dropped)
    if config.option.markexpr not in ("", "not proof"):
        return
    long = pytest.mark.skip(reason="long: pytest -m proof runs it")
    for item in items:
        slow = (implementation := _implementation(item)) is not None and implementation.simulated
        if item.get_closest_marker("proof") or (slow and item.get_closest_marker("large")):
            item.add_marker(long)


def _implementation(item: pytest.Item) -> Implementation | None:
    """The implementation that a test runs on; None if it takes none."""
    implementation = getattr(getattr(item, "callspec", None), "params", {}).get("impl")
    return implementation if isinstance(implementation, Implementation) else None


def _wanted(item: pytest.Item, asked: str | None) -> bool:
    """Whether a test is of an implementation asked for; without ``--impl``, or of none."""
    implementation = _implementation(item)
    if implementation is None:
        return asked is None
    wanted = asked.split(",") if asked else ("reference", "cpu")
    return implementation.name in wanted or str(implementation) in wanted


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """Move the tensors among a test's parameters to its implementation's device."""
    if _implementation(pyfuncitem):
        for name in pyfuncitem.callspec.params:
            pyfuncitem.funcargs[name] = here(pyfuncitem.funcargs[name])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Skip a test of a dtype or op that its implementation lacks, with the reason that it gave."""
    try:
        return (yield)
    except NotImplementedError as refusal:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if "impl" in params and "its kernels have no " in str(refusal):
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
