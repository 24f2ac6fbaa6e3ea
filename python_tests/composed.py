"""Derivatives of derivatives that torch.func composes, for the tests of every family."""

import torch

from hetkern.testing.devices import normal
from hetkern.testing.implementations import ISA_LEVELS


def _gradient_of_gradient(f, x):
    return torch.func.grad(lambda x: torch.func.grad(f)(x).square().sum())(x.detach())


def _tangent(f, x):
    return torch.func.jvp(f, (x.detach(),), (normal(*x.shape, seed=3, dtype=x.dtype),))[1]


#: Each takes a function with one result, and where to differentiate it.
COMPOSED = {
    "backward after vmap": lambda f, x: torch.autograd.grad(f(x), x)[0],
    "grad of vmap": lambda f, x: torch.func.grad(f)(x.detach()),
    "grad of grad of vmap": _gradient_of_gradient,
    "jacrev of grad of vmap": lambda f, x: torch.func.jacrev(torch.func.grad(f))(x.detach()),
    "hessian of vmap": lambda f, x: torch.func.hessian(f)(x.detach()),
    "jvp of vmap": _tangent,
}


def forward_over_reverse(impl):
    """Whether to check it: it is composed of torch's operations, the same for every level."""
    return impl.isa in (None, ISA_LEVELS[-1])
