"""Fixtures come from the test kit, as they would in anyone's own project."""

import fcntl
import os
import shutil
import tempfile
import zlib

import pytest
import torch

from hetkern.testing.implementations import IMPLEMENTATIONS
from hetkern.testing.values import check

pytest_plugins = ["hetkern.testing.pytest_plugin"]

_CACHE = pytest.StashKey[str]()


def pytest_addoption(parser):
    """Let a rung say how many of its tests have to run."""
    parser.addoption(
        "--at-least",
        type=int,
        default=0,
        metavar="N",
        help="fail if fewer than N tests pass: a rung whose tests are all skipped proves nothing",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Leave to the proof what stands for many alike: see the markers."""
    present = [level for level in IMPLEMENTATIONS if level.isa and not level.why_absent()]
    for item in items:
        impl = getattr(getattr(item, "callspec", None), "params", {}).get("impl")
        sample, one_in = item.get_closest_marker("sample"), 1
        if sample:
            one_in = sample.args[0]
            if impl is not None and impl.simulated:
                one_in = sample.kwargs.get("simulated", 4 * one_in if one_in > 1 else 1)
        level = item.get_closest_marker("any_level")
        if impl in present[:-1] and level:
            one_in = max(one_in, *level.args or (8,))
        if zlib.crc32(item.nodeid.encode()) % one_in:
            item.add_marker(pytest.mark.proof)


def _passed(config):
    return len(config.pluginmanager.get_plugin("terminalreporter").stats.get("passed", ()))


def pytest_sessionfinish(session):
    """Fail a run that skipped what it was to prove."""
    config = session.config
    if not hasattr(config, "workerinput") and _passed(config) < config.getoption("--at-least"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    """Say so."""
    wanted, passed = config.getoption("--at-least"), _passed(config)
    if passed < wanted:
        terminalreporter.write_line(f"--at-least: wanted {wanted} passed tests, got {passed}")


def pytest_configure(config):
    """Give the run a compile cache of its own.

    torch keeps compiled graphs on disk and looks a backward graph up by its forward graph alone:
    one that another version of an op's schema left there would be run against this one.
    """
    config.addinivalue_line(
        "markers",
        "any_level(n=8): hardly of the instruction set: all but the best run one in n, proof all",
    )
    config.addinivalue_line(
        "markers",
        "sample(n, simulated=4 n): many alike: one in n runs, of what is emulated or interpreted "
        "another share, the others in proof",
    )
    if not hasattr(config, "workerinput"):  # xdist's workers inherit the variable
        config.stash[_CACHE] = tempfile.mkdtemp(prefix="hetkern-compile-")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = config.stash[_CACHE]


@pytest.fixture(scope="session")
def once_a_run(tmp_path_factory):
    """``once_a_run(name, make)``: the text that ``make()`` gives, made by one worker of xdist."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # each worker has a folder of its own in it

    def made(name, make):
        kept = folder / name
        with open(folder / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not kept.exists():
                kept.write_text(make())
        return kept.read_text()

    return made


@pytest.fixture(autouse=True)
def _what_is_shown(request):
    """Say in the test's JUnit record which features it has checked in which dtypes.

    ``python_tests/support_table.py`` reads it.
    """
    shown = set()

    def listener(case, dtype):
        features = {name for name, value in case.kwargs.items() if value is not None}
        second = case.args[1] if len(case.args) > 1 else None
        if isinstance(second, torch.Tensor) and second.is_floating_point():
            features.add("class probabilities")
        shown.update(f"{feature}:{str(dtype).removeprefix('torch.')}" for feature in features)

    check.listeners.append(listener)
    yield
    check.listeners.remove(listener)
    if shown:
        request.node.user_properties.append(("shown", ",".join(sorted(shown))))


def pytest_unconfigure(config):
    """Take the cache away again."""
    if _CACHE in config.stash:
        shutil.rmtree(config.stash[_CACHE], ignore_errors=True)
