"""rms_norm.cu on the CPU: values and gradients, memory, races, traffic."""

from pathlib import Path

import pytest
import torch
from cases import CASES, reference

from hetkern.testing import assert_close_to_exact, check_op, emulate_cuda

SOURCE = Path(__file__).with_name("rms_norm.cu")
EPS = 1e-6


def rms_norm_of(forward_kernel, backward_kernel):
    class RMSNorm(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            x, w = x.contiguous(), w.contiguous()
            y, r = torch.empty_like(x), torch.empty(x.shape[0])
            forward_kernel(x, w, y, r, *x.shape, EPS)
            ctx.save_for_backward(x, w, r)
            return y

        @staticmethod
        def backward(ctx, dy):
            x, w, r = ctx.saved_tensors
            dx, dw = torch.empty_like(x), torch.empty_like(w)
            backward_kernel(dy.contiguous(), x, w, r, dx, dw, *x.shape)
            return dx, dw

    return RMSNorm.apply


def test_rms_norm_and_its_gradients_are_within_the_error_budget():
    forward = emulate_cuda(SOURCE, "rms_norm_forward")
    backward = emulate_cuda(SOURCE, "rms_norm_backward")
    op = rms_norm_of(forward, backward)
    summary = check_op(op, reference, CASES, [torch.float32], layouts=["dense", "permuted"])
    assert summary.comparisons == len(CASES) * 2 * 3  # y, dx, dw
    assert summary.worst > 0.01


@pytest.mark.parametrize("sanitize", ["address", "thread"])
def test_rms_norm_runs_clean_under_a_sanitizer(sanitize):
    forward = emulate_cuda(SOURCE, "rms_norm_forward", sanitize=sanitize)
    backward = emulate_cuda(SOURCE, "rms_norm_backward", sanitize=sanitize)
    op = rms_norm_of(forward, backward)
    for case in CASES[2:4]:
        x, w = (t.clone().requires_grad_() for t in case.args)
        y = op(x, w)
        y.backward(torch.ones_like(y))
        assert_close_to_exact(
            y, lambda dtype, x=x, w=w: reference(x.to(dtype), w.to(dtype)), name=case.name
        )
        assert x.grad.isfinite().all() and w.grad.isfinite().all()


def test_rms_norm_moves_its_bytes_once_and_coalesced():
    M, N = 3, 1024
    x, w = torch.randn(M, N), torch.randn(N)
    y, r = torch.empty_like(x), torch.empty(M)
    counted = emulate_cuda(SOURCE, "rms_norm_forward", traffic=True)(x, w, y, r, M, N, EPS)
    print(counted)
    counted.assert_within(
        read={"x": x.nbytes, "w": M * w.nbytes}, written={"y": y.nbytes, "r": r.nbytes}
    )
