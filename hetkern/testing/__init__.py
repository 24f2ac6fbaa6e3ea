"""The test kit: what holds an operation to its reference. For anyone who writes kernels.

It needs torch, numpy and pytest, not hetkern's native library, and works on anybody's operations:

    from hetkern.testing import Case, check_op

    print(check_op(my_softmax, torch.softmax, [Case("plain", (torch.randn(8, 1000), -1))]))

A page on how to use it: docs/kernels.md, "Test your own kernel".

========================  =======================================================================
``budget``                ``assert_close_to_exact``: the error budget, row by row, against float64
``check``                 ``check_op``: values, gradients, determinism, over dtypes and layouts
``devices``               where a test's tensors belong
``inputs``, ``layouts``   sizes, logits, targets and strides that have broken kernels before
``guard``                 ``assert_stays_inside``: inputs between bands of poison
``random_cases``          random configurations by seed; ``repro`` reruns them from a shell
``families``              ``check_op`` made ready for softmax and for cross-entropy
``mutants``               planted errors, to prove that a test can fail
``triton_interpreter``    Triton kernels on the CPU, checked: ``pytest -p`` with its full name
``triton_aot``            what Triton compiles a kernel to: registers, spills, opcodes
``emulation``             ``emulate_cuda``: CUDA kernels on the CPU, checked or counted
``traffic``               what a CUDA or Triton kernel moves, as a command
``implementations``       what can run on this machine
``pytest_plugin``         the ``impl`` fixture and the ``proof`` marker
========================  =======================================================================
"""

from hetkern.testing.budget import assert_close_to_exact
from hetkern.testing.check import Case, Summary, check_op
from hetkern.testing.emulation import (
    EmulatedKernel,
    EmulationError,
    emulate_cuda,
    emulated_cuda,
    why_no_emulation,
)
from hetkern.testing.guard import Guarded, assert_stays_inside
from hetkern.testing.implementations import IMPLEMENTATIONS, Implementation
from hetkern.testing.random_cases import check_seed
from hetkern.testing.triton_memory import KernelError

__all__ = [
    "IMPLEMENTATIONS",
    "Case",
    "EmulatedKernel",
    "EmulationError",
    "Guarded",
    "Implementation",
    "KernelError",
    "Summary",
    "assert_close_to_exact",
    "assert_stays_inside",
    "check_op",
    "check_seed",
    "emulate_cuda",
    "emulated_cuda",
    "why_no_emulation",
]
