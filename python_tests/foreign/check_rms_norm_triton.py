"""Run with ``-p hetkern.testing.triton_interpreter``."""

import pytest
import torch
from cases import CASES, reference
from rms_norm_triton import forward_kernel, rms_norm

from hetkern.testing import assert_close_to_exact, check_op
from hetkern.testing import triton_interpreter as interpreter


def test_rms_norm_and_its_gradients_are_within_the_error_budget():
    assert interpreter.active()
    dtypes = [torch.float32, torch.bfloat16, torch.float16]
    summary = check_op(rms_norm, reference, CASES, dtypes, layouts=["dense", "permuted"])
    assert summary.comparisons == len(CASES) * len(dtypes) * 2 * 3  # y, dx, dw
    assert summary.worst > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_moves_its_bytes_once(dtype):
    M, N = 3, 200
    x, w = torch.randn(M, N).to(dtype), torch.randn(N).to(dtype)
    y, r = torch.empty_like(x), torch.empty(M)
    with interpreter.traffic() as counted:
        forward_kernel[(M,)](x, w, y, r, N, 1e-6, BLOCK=256)
    counted.assert_within(
        read={"x": x.nbytes, "w": M * w.nbytes}, written={"y": y.nbytes, "r": r.nbytes}
    )
    assert_close_to_exact(y, lambda dtype: reference(x.to(dtype), w.to(dtype)))
