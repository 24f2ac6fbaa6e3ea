"""Loads the native library, once."""

from __future__ import annotations

import pathlib

import torch

NAME = "libhetkern_ops.so"


def load(package_path: list[str]) -> str | None:
    """Load the library from the package's folders (an editable install has two); say why it is missing, or None."""
    for folder in package_path:
        file = pathlib.Path(folder) / NAME
        if file.exists():
            torch.ops.load_library(file)
            return None
    return f"{NAME} is not in {' or '.join(package_path)}: build it with `pip install .`"
