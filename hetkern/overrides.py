"""Calls on what stands in for a tensor: an object with ``__torch_function__`` takes them.

As with torch's own functions. The one that users meet is ``torch.fx``'s Proxy, which writes the
call into a graph.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])


def any_stands_in(*values: Any) -> bool:
    """Whether one of ``values`` is no tensor and takes torch's calls all the same."""
    for value in values:
        if value is None or isinstance(value, Tensor):
            continue
        if hasattr(type(value), "__torch_function__"):
            return True
    return False


def handed_over(function: Callable[..., Any], **arguments: Any) -> Any:
    """What the stand-ins among ``arguments`` make of ``function(**arguments)``.

    They are told of the arguments that differ from their defaults, as a reader would write them.
    """
    default = {name: p.default for name, p in inspect.signature(function).parameters.items()}
    required = [v for k, v in arguments.items() if default[k] is inspect.Parameter.empty]
    chosen = {
        k: v
        for k, v in arguments.items()
        if default[k] is not inspect.Parameter.empty and v is not default[k]
    }
    relevant = tuple(v for v in arguments.values() if hasattr(type(v), "__torch_function__"))
    return torch.overrides.handle_torch_function(function, relevant, *required, **chosen)


def overridable(function: Function) -> Function:
    """Decorate a function whose speed does not matter; it asks each of its arguments."""

    @functools.wraps(function)
    def asking(*args: Any, **kwargs: Any) -> Any:
        if any_stands_in(*args, *kwargs.values()):
            bound = inspect.signature(function).bind(*args, **kwargs)
            return handed_over(asking, **bound.arguments)
        return function(*args, **kwargs)

    return asking  # type: ignore[return-value]
