"""Liger's operations, anybody's Triton kernels, in the interpreter under the error budget.

A rung of ``make proof`` installs liger-kernel in a temporary folder and runs this with the plugin.
"""

import importlib
import importlib.util

import pytest
import torch
import torch.nn.functional as F

from hetkern.testing import Case, check_op, triton_interpreter

if not triton_interpreter.active():
    pytest.skip("needs the interpreter: make proof runs it", allow_module_level=True)
if importlib.util.find_spec("liger_kernel") is None:
    pytest.skip("liger-kernel is not installed: make proof runs it", allow_module_level=True)

H = 129


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def liger(module, function, *arguments):
    operation = getattr(importlib.import_module(f"liger_kernel.ops.{module}"), f"Liger{function}")
    return operation.apply(*arguments)


def rms_norm(x, w):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * w


def angles(q):
    at, half = torch.arange(q.shape[-2]).double(), torch.arange(0, q.shape[-1], 2).double()
    turned = torch.outer(at, 1e4 ** (-half / q.shape[-1]))
    both = torch.cat([turned, turned], -1)
    return both.cos()[None].to(q.dtype), both.sin()[None].to(q.dtype)


def rope(q, k):
    cos, sin = angles(q)
    half = q.shape[-1] // 2
    return tuple(
        x * cos[:, None] + torch.cat([-x[..., half:], x[..., :half]], -1) * sin[:, None]
        for x in (q, k)
    )


def liger_rope(q, k):
    return liger("rope", "RopeFunction", q.clone(), k.clone(), *angles(q), None, 1)


def cross_entropy(softcap=None):
    """Liger writes the gradient over its input."""

    def operation(x, target):
        return liger(
            "cross_entropy", "CrossEntropyFunction", x.clone(), target,
            None, -100, 0.0, 0.0, "mean", softcap, False,
        )[0]  # fmt: skip

    return operation


def linear_cross_entropy(x, w, target):
    name = "fused_linear_cross_entropy"
    return liger(name, "FusedLinearCrossEntropyFunction", x, w, target)[0]


def jensen_shannon(x, target):
    mean = torch.log((x.exp() + target.exp()) / 2)
    both = (F.kl_div(mean, p, reduction="sum", log_target=True) for p in (target, x))
    return sum(both) / 2 / x.shape[0]


def poly_norm(x, w, b):
    def norm(u):
        return u * torch.rsqrt(u.square().mean(-1, keepdim=True) + 1e-6)

    return w[0] * norm(x**3) + w[1] * norm(x**2) + w[2] * norm(x) + b


ROWS, WEIGHT, TARGET = normal(5, H), normal(H, seed=1), torch.arange(7) * 17 % H
LOGS, LABELS = torch.log_softmax(ROWS, -1), torch.log_softmax(normal(5, H, seed=2), -1)
#: name: (Liger's, the formula, tensors, those without a gradient, what the baseline computes)
OPERATIONS = {
    "softmax": (
        lambda x: liger("softmax", "SoftmaxFunction", x),
        lambda x: torch.softmax(x, -1),
        (ROWS,),
    ),
    "rms_norm": (
        lambda x, w: liger("rms_norm", "RMSNormFunction", x, w, 1e-6, 0.0, "llama", False),
        rms_norm,
        (ROWS, WEIGHT),
    ),
    "fused_add_rms_norm": (
        lambda x, r, w: liger(
            "fused_add_rms_norm", "FusedAddRMSNormFunction", x, r, w, 1e-6, 0.0, "llama", False
        )[0],
        lambda x, r, w: rms_norm(x + r, w),
        (ROWS, normal(5, H, seed=3), WEIGHT),
    ),
    "layer_norm": (
        lambda x, w, b: liger("layer_norm", "LayerNormFunction", x, w, b, 1e-6),
        lambda x, w, b: F.layer_norm(x, (H,), w, b, 1e-6),
        (ROWS, WEIGHT, normal(H, seed=4)),
    ),
    "group_norm": (
        lambda x, w, b: liger("group_norm", "GroupNormFunction", x, w, b, 6, 3, 1e-5),
        lambda x, w, b: F.group_norm(x, 3, w, b, 1e-5),
        (normal(2, 6, 50), normal(6), normal(6, seed=1)),
    ),
    "poly_norm": (
        lambda x, w, b: liger("poly_norm", "PolyNormFunction", x, w, b, 1e-6, False),
        poly_norm,
        (ROWS, normal(3), normal()),
    ),
    "swiglu": (
        lambda a, b: liger("swiglu", "SiLUMulFunction", a.clone(), b.clone()),
        lambda a, b: F.silu(a) * b,
        (ROWS, normal(5, H, seed=3)),
    ),
    "geglu": (
        lambda a, b: liger("geglu", "GELUMulFunction", a.clone(), b.clone()),
        lambda a, b: F.gelu(a, approximate="tanh") * b,
        (ROWS, normal(5, H, seed=3)),
    ),
    "relu_squared": (
        lambda x: liger("relu_squared", "ReLUSquaredFunction", x),
        lambda x: F.relu(x).square(),
        (ROWS,),
    ),
    "rope": (liger_rope, rope, (normal(2, 2, 6, 32), normal(2, 1, 6, 32))),
    "cross_entropy": (cross_entropy(), F.cross_entropy, (normal(7, H), TARGET)),
    "cross_entropy with a softcap": (
        cross_entropy(5.0),
        lambda x, target: F.cross_entropy(5 * torch.tanh(x / 5), target),
        (normal(7, H), TARGET),
    ),
    "kl_div": (
        lambda x, y: liger("kl_div", "KLDivLossFunction", x, y, "batchmean", False, 1e-10),
        lambda x, y: F.kl_div(x, y, reduction="batchmean"),
        (LOGS, LABELS.exp()),
    ),
    "jsd": (
        lambda x, y: liger("jsd", "JSDFunction", x, y, None, 0.5, -100),
        jensen_shannon,
        (LOGS, LABELS),
    ),
    "tvd": (
        lambda p, q: liger("tvd", "TVDLossFunction", p, q, None, "batchmean", -100),
        lambda p, q: (p - q).abs().sum() / 2 / p.shape[0],
        (LOGS.exp(), LABELS.exp()),
        lambda p, q: ((p - q).abs() / 2).sum(-1).float().sum() / p.shape[0],
    ),
    # Logits of the inputs' dtype, and a loss of float32: torch's own route is judged as such.
    "fused_linear_cross_entropy": (
        linear_cross_entropy,
        lambda x, w, target: F.cross_entropy(x @ w.T, target),
        (normal(7, 16), normal(H, 16, seed=1), TARGET),
        lambda x, w, target: F.cross_entropy((x @ w.T).float(), target),
    ),
}
NO_GRADIENT = {
    **dict.fromkeys(("kl_div", "jsd", "tvd"), ("argument 1",)),
    **dict.fromkeys(("cross_entropy", "cross_entropy with a softcap"), ("argument 1",)),
    "fused_linear_cross_entropy": ("argument 2",),
}


@pytest.mark.proof
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_liger_operation_is_within_the_error_budget(name, dtype):
    operation, reference, tensors, *baseline = OPERATIONS[name]
    case = Case(name, tensors, constant=NO_GRADIENT.get(name, ()))
    check_op(operation, reference, [case], [dtype], baseline=baseline[0] if baseline else None)
