"""What both kernels are held to."""

import torch

from hetkern.testing import Case


def reference(x, w, eps=1e-6):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * w


def _case(name, M, N, scale=1.0):
    g = torch.Generator().manual_seed(N)
    return Case(name, (scale * torch.randn(M, N, generator=g), torch.randn(N, generator=g)))


CASES = [
    _case("one column", 3, 1),
    _case("less than a warp", 2, 31),
    _case("a block and a tail", 2, 129),
    _case("several steps and a tail", 3, 1000),
    _case("beside eps", 2, 64, scale=1e-3),
]
