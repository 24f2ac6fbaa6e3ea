"""Loads the native library, once, and finds the package that has it."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import sys

import torch

NAME = "libhetkern_ops.so"

passed_over: pathlib.Path | None = None  # sources without a library that were imported first


def load(package_path: list[str]) -> str | None:
    """Load the library from the package's folders; say why it is missing, or None.

    An editable install has two folders. HETKERN_LIBRARY names another build of it, such as one
    under a sanitizer.
    """
    files = [pathlib.Path(folder) / NAME for folder in package_path]
    if other := os.environ.get("HETKERN_LIBRARY"):
        files = [pathlib.Path(other)]
    for file in files:
        if file.exists():
            torch.ops.load_library(file)
            return None
    folders = " or ".join(str(file.parent) for file in files)
    return f"{NAME} is not in {folders}: build it with `pip install .`"


def hidden(package_path: list[str]) -> pathlib.Path | None:
    """The installed package that sources without a library stand in front of; None if none does.

    Python looks into the folder that it is started in first, and finds the sources in a clone's.
    """
    ours = [pathlib.Path(folder) for folder in package_path]
    if os.environ.get("HETKERN_LIBRARY") or any((folder / NAME).exists() for folder in ours):
        return None
    for entry in sys.path:
        folder = pathlib.Path(entry).absolute() / "hetkern"
        if (folder / NAME).exists() and (folder / "__init__.py").exists():
            return folder
    return None


def run_instead(name: str, package_path: list[str], installed: pathlib.Path) -> None:
    """Put the installed package in the place of the one that is being imported, all of it.

    Its Python and its library belong together; the sources may be of another day.
    """
    del sys.modules[__name__]
    spec = importlib.util.spec_from_file_location(
        name, installed / "__init__.py", submodule_search_locations=[str(installed)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if hasattr(module, "_library"):
        module._library.passed_over = pathlib.Path(package_path[0])
