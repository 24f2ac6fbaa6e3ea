"""PTX on the CPU: what a compiled kernel computes, instruction by instruction, without a GPU.

    program = parse(text)
    machine = Machine(program, threads=128, parameters=[address, n])
    address = machine.memory.add(bytes_of_a_tensor)
    machine.run((4, 1, 1))

All threads of a block run side by side in numpy arrays: elementwise arithmetic, loops, shuffles,
votes, shared memory, atomics, ``ldmatrix`` and ``mma``; what is not known raises
:class:`PtxError` with the instruction. ``triton_interpreter.compiled`` compares Triton's
interpreter with it.

==============  ================================================================================
``parse``       text to instructions
``values``      bits of registers to numbers and back
``floats``      arithmetic of floating numbers, rounded once an instruction
``bits``        integers, shifts, bytes
``convert``     ``cvt``
``memory``      global memory by tensors, shared memory, stacks
``threads``     what an instruction sees of the machine
``exchange``    shuffles, votes, ``redux``, atomics
``matrix``      ``ldmatrix``, ``mma``
``machine``     registers, program counters, blocks
==============  ================================================================================
"""

from hetkern.testing.ptx.machine import Machine
from hetkern.testing.ptx.parse import Instruction, Program, PtxError, parse

__all__ = ["Instruction", "Machine", "Program", "PtxError", "parse"]
