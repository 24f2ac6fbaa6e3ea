"""Which kernels the one library file registers, beside whatever torch it was loaded."""

import os

import pytest
import torch

import hetkern
from hetkern import impl

OPS = sorted(
    name.partition(".")[0]
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("hetkern::")
)
CPU_ALONE = {"hetkern::rnn_layer", "hetkern::rnn_layer_backward"}
needs_library = pytest.mark.skipif(
    impl.missing_library is not None, reason=str(impl.missing_library)
)


@needs_library
def test_there_are_ops():
    assert {"hetkern::softmax", "hetkern::cross_entropy_backward"} <= set(OPS)


@needs_library
@pytest.mark.parametrize("op", OPS)
def test_a_library_with_cuda_kernels_registers_them_also_beside_a_torch_without_cuda(op):
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    assert has(op, "CPU")
    if impl.native is not None:
        assert has(op, "CUDA") == (op not in CPU_ALONE and impl.native.why_no_cuda() == "")


@pytest.mark.skipif("HETKERN_WANTED_CUDA" not in os.environ, reason="a rung of `make proof`")
def test_the_rung_loads_what_it_says():
    """The library with CUDA kernels, beside a torch for the wanted version of CUDA."""
    assert hetkern.doctor()["CUDA kernels"] == "built"
    assert (torch.version.cuda or "none").startswith(os.environ["HETKERN_WANTED_CUDA"])
