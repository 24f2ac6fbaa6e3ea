"""Loads the native library, once."""

from __future__ import annotations

import os
import pathlib

import torch

NAME = "libhetkern_ops.so"


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
