"""CUDA kernels on the CPU: values, bounds, barriers, races and memory traffic without a GPU.

:func:`emulate_cuda` runs anybody's ``.cu`` file; :func:`emulated_cuda` lets ``impl="cuda"`` of
hetkern's own operations run on CPU tensors.

What a foreign file must do: include ``cuda/device/launch.cuh``; launch with ``HETKERN_LAUNCH`` or
``HETKERN_LAUNCH_CLUSTER``; take shared memory with ``HETKERN_SHARED``; reach PTX through
``hetkern::ptx`` (``cuda/device/ptx.cuh``); and offer a launcher, an ``extern "C"`` function that
returns nothing and takes raw pointers, numbers and last a stream. The same file compiles with nvcc.
"""

from hetkern.testing.emulation.build import EmulationError
from hetkern.testing.emulation.foreign import EmulatedKernel, emulate_cuda
from hetkern.testing.emulation.library import emulated_cuda, why_no_emulation

__all__ = ["EmulatedKernel", "EmulationError", "emulate_cuda", "emulated_cuda", "why_no_emulation"]
