"""Fixtures come from the test kit, as they would in anyone's own project."""

import os
import shutil
import tempfile

import pytest

pytest_plugins = ["hetkern.testing.pytest_plugin"]

_CACHE = pytest.StashKey[str]()


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
