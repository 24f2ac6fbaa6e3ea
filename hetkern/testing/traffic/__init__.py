"""Prints the memory traffic of a kernel, counted without a GPU.

Anybody's CUDA kernel, by its launcher's arguments (the names are the launcher's own):

    python -m hetkern.testing.traffic my.cu y=float32:64x1000 x=float32:64x1000 64 1000

hetkern's own, by a public operation and a shape; for CUDA the emulated library that counts must be
built (``cmake -DHETKERN_EMULATION=ON``, target ``hetkern_traffic``), and Triton is interpreted:

    python -m hetkern.testing.traffic softmax 64x1000 --dtype bfloat16 --backward
    python -m hetkern.testing.traffic softmax 64x1000 --impl triton

Below the table: the time that the bytes alone take an H100, and each kernel's registers, spills,
shared memory and occupancy, from hetkern's own record, or as nvcc or Triton compile it here.
"""
