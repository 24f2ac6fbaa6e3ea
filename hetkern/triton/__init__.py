"""Triton kernels and their launchers: one module a family, imported by the first call.

Each offers one function an op, with the op's name and the schema's positional arguments
(hetkern/ops). On CPU tensors they run in Triton's interpreter (hetkern.testing.triton_interpreter).
"""
