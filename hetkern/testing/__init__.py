"""The test kit: what holds an operation to its reference. For anyone who writes kernels.

It needs torch, numpy and pytest, not hetkern's native library, and works on anybody's operations:

    from hetkern.testing import Case, check_op

    print(check_op(my_softmax, torch.softmax, [Case("plain", (torch.randn(8, 1000), -1))]))

A page on how to use it: docs/kernels.md, "Test your own kernel".

==========================  ====================================================================
``values``                  what judges an operation
``values.budget``           ``assert_close_to_exact``: the error budget, row by row, against float64
``values.check``            ``check_op``: values, gradients, determinism, over dtypes and layouts
``values.guard``            ``assert_stays_inside``: inputs between bands of poison
``cases``                   what it is judged on
``cases.inputs``            sizes, logits and targets that have broken kernels before
``cases.random_cases``      random configurations by seed; ``repro`` reruns them from a shell
``cases.families``          ``check_op`` made ready for softmax and for cross-entropy
``cases.mutants``           planted errors, to prove that a test can fail
``layouts``, ``devices``    strides that have broken kernels before; where a test's tensors belong
``implementations``         what can run on this machine
``emulation``               ``emulate_cuda``: CUDA kernels on the CPU, checked or counted
``triton_interpreter``      Triton kernels on the CPU, checked: ``pytest -p`` with its full name
``ptx``                     PTX on the CPU, which ``--compiled`` compares the interpreter with
``triton_aot``              what Triton compiles a kernel to: registers, spills, opcodes
``traffic``                 what a CUDA or Triton kernel moves, as a command
``pytest_plugin``           the ``impl`` fixture and the ``proof`` marker
==========================  ====================================================================
"""

import sys

from hetkern.testing.cases.random_cases import check_seed
from hetkern.testing.emulation import (
    EmulatedKernel,
    EmulationError,
    emulate_cuda,
    emulated_cuda,
    why_no_emulation,
)
from hetkern.testing.implementations import IMPLEMENTATIONS, Implementation
from hetkern.testing.triton_interpreter import checked_memory as triton_memory
from hetkern.testing.triton_interpreter import numbers as triton_numbers
from hetkern.testing.triton_interpreter.checked_memory import KernelError
from hetkern.testing.values.budget import assert_close_to_exact
from hetkern.testing.values.check import Case, Summary, check_op
from hetkern.testing.values.guard import Guarded, assert_stays_inside

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

# Scripts outside import these two by the names that they had beside the interpreter.
sys.modules[f"{__name__}.triton_memory"] = triton_memory
sys.modules[f"{__name__}.triton_numbers"] = triton_numbers
