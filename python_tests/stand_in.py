"""Pytest plugin: a device that stands in for a GPU, whose memory is the CPU's under another name.

``python -m pytest -p stand_in --impl cuda …``: as on a GPU, a test's new tensors are made on the
device, an operation on tensors of both places is refused, and so is a kernel on tensors left
behind. The kernels are the emulated ones. What torch compiles or exports it cannot show.
"""

import torch
from torch import Tensor
from torch.utils._device import DeviceContext, _device_constructors
from torch.utils._pytree import tree_leaves, tree_map_only

from hetkern import impl
from hetkern.testing import devices, implementations
from hetkern.testing.cases import random_cases
from hetkern.testing.emulation import emulated_cuda
from hetkern.testing.values import check

NAME = "meta"  # a device of torch's that needs no hardware; nothing runs on the real one
READS = (Tensor.cpu, Tensor.tolist, Tensor.item, Tensor.numpy)


class Away(Tensor):
    """A tensor on the device."""

    device = torch.device(NAME)
    is_cpu, is_meta = False, True


def away(value):
    """The same memory under the device's name."""
    return tree_map_only(Tensor, lambda t: t.as_subclass(Away), value)


def plain(value):
    """The same memory under its own name."""
    return tree_map_only(Away, lambda t: t.as_subclass(Tensor), value)


class Device(DeviceContext):
    """Within it new tensors are on the device."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        on_it = [isinstance(t, Away) for t in tensors]
        if function in _device_constructors() or function is Tensor.to:
            named = [a for a in (*args, kwargs.get("device")) if is_device(a)]
            target = torch.device(named[0]).type if named else self.device.type
            if function is Tensor.to and not named:
                target = NAME if on_it[0] else "cpu"
            if target == NAME and kwargs.get("generator") is not None:
                raise RuntimeError(f"expected a generator on {NAME}, got one on the CPU")
            args, kwargs = (tree_map_only(is_device, lambda d: "cpu", v) for v in (args, kwargs))
            if function is not Tensor.to:
                kwargs["device"] = "cpu"
            leaf = kwargs.pop("requires_grad", False)
            made = function(*plain(args), **plain(kwargs))
            made = away(made) if target == NAME else plain(made)
            return made.requires_grad_() if leaf else made
        if function in READS:
            return function(*plain(args), **plain(kwargs))
        if any(on_it) and not all(a or t.dim() == 0 for a, t in zip(on_it, tensors, strict=True)):
            raise RuntimeError(f"{function.__name__}: tensors on {NAME} and on the CPU")
        return function(*args, **kwargs)


def is_device(value):
    return isinstance(value, torch.device) or (isinstance(value, str) and value in (NAME, "cpu"))


def placed_on(device):
    return Device(NAME) if device == NAME else torch.device(device)


def pytest_configure(config):
    """Every implementation of a GPU runs on the device from now on."""
    for module in (check, devices, implementations, random_cases):
        module.placed_on = placed_on
    on_device = property(lambda self: NAME if self.name == "cuda" else "cpu")
    implementations.Implementation.device = on_device
    impl._REASONS["cuda"] = lambda device, dtype: f"a tensor was left behind on {device}"
    emulated_cuda().__enter__()
