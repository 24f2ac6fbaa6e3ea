"""Nested state to JSON and tensors, and back: no pickle, so that a file can do nothing but be read.

``pack`` leaves numbers, strings, None, lists and dictionaries with string keys as they are, and
writes what JSON lacks as a dictionary with one key: ``{"$tensor": NAME}``, ``{"$tuple": […]}``,
``{"$items": [[key, value], …]}`` for other keys, ``{"$float": "nan"}`` for what is no number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def pack(value: Any, tensors: dict[str, Tensor], name: str = "") -> Any:
    """What JSON can hold of ``value``; its tensors go into ``tensors`` by their path."""
    if isinstance(value, Tensor):
        name = name or "value"
        tensors[name] = value
        return {"$tensor": name}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple):
        return {"$tuple": [pack(v, tensors, f"{name}.{i}") for i, v in enumerate(value)]}
    if isinstance(value, list):
        return [pack(v, tensors, f"{name}.{i}") for i, v in enumerate(value)]
    if isinstance(value, Mapping):
        packed = [(key, pack(v, tensors, f"{name}.{key}")) for key, v in value.items()]
        if all(isinstance(key, str) and not key.startswith("$") for key, _ in packed):
            return dict(packed)
        return {"$items": [[key, v] for key, v in packed]}
    raise TypeError(f"a checkpoint cannot hold {name.lstrip('.')}, a {type(value).__name__}")


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What ``pack`` was given."""
    if isinstance(value, list):
        return [unpack(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$float" in value:
        return float(value["$float"])
    if "$tuple" in value:
        return tuple(unpack(v, tensors) for v in value["$tuple"])
    if "$items" in value:
        return {key: unpack(v, tensors) for key, v in value["$items"]}
    return {key: unpack(v, tensors) for key, v in value.items()}
