"""Fixtures come from the test kit, as they would in anyone's own project."""

import os
import shutil
import tempfile

import pytest

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
    if not hasattr(config, "workerinput"):  # xdist's workers inherit the variable
        config.stash[_CACHE] = tempfile.mkdtemp(prefix="hetkern-compile-")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = config.stash[_CACHE]


def pytest_unconfigure(config):
    """Take the cache away again."""
    if _CACHE in config.stash:
        shutil.rmtree(config.stash[_CACHE], ignore_errors=True)
