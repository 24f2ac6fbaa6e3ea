"""``ldmatrix`` and ``mma``: products of small matrices whose elements lie in a warp's lanes.

How lanes hold a matrix: PTX ISA, "Matrix Fragments for mma.m16n8k8" to "m16n8k32". A tensor core's
order of addition is not documented: products and sum are exact here (float64) and rounded once.
"""

from __future__ import annotations

import numpy as np

from hetkern.testing.ptx.parse import Instruction, PtxError, split
from hetkern.testing.ptx.threads import Threads
from hetkern.testing.ptx.values import Array, from_float, mask, to_float, width

_LANES = np.arange(32)
_GROUP, _IN_GROUP = _LANES // 4, _LANES % 4


def run(machine: Threads, i: Instruction, active: Array) -> None:
    """Execute one."""
    if not active.all():
        raise PtxError("ptx: a matrix instruction that some threads skip is not known")
    if i.name == "ldmatrix":
        _load(machine, i, active)
    else:
        _multiply(machine, i, active)


def _load(machine: Threads, i: Instruction, active: Array) -> None:
    """Eight rows of 16 bytes for each matrix, whose addresses eight lanes give."""
    known = {"sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared_cta", "b16"}
    if unknown := set(i.modifiers) - known:
        raise PtxError(f"ptx: ldmatrix with .{'.'.join(sorted(unknown))} is not known")
    at, targets = machine.address(i.operands[1]), split(i.operands[0].strip("{}"))
    threads = np.arange(machine.threads)
    warp, lane = threads - threads % 32, threads % 32
    for n, target in enumerate(targets):
        parts = []
        for half in range(2):
            row, column = lane // 4, lane % 4 * 2 + half
            if "trans" in i.modifiers:
                row, column = column, row
            address = at[warp + 8 * n + row] + np.uint64(2) * column.astype(np.uint64)
            parts.append(machine.memory.load("shared", address, 2, active))
        machine.write(target, parts[1] << np.uint64(16) | parts[0], active)


def _fragments(bits: int, k: int) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Where element e of a lane lies in A (row, column) and B (row, column)."""
    packed = 32 // bits  # elements a register
    count = 16 * k // 32
    e = np.arange(count)[None, :]
    register, inside = e // packed, e % packed
    group, member = _GROUP[:, None], _IN_GROUP[:, None]
    of_a = (
        group + 8 * (register % 2),
        member * packed + inside + 4 * packed * (register // 2),
    )
    e = np.arange(8 * k // 32)[None, :]
    register, inside = e // packed, e % packed
    of_b = (member * packed + inside + 4 * packed * register, group + 0 * e)
    return of_a, of_b


_SHAPE = {"m16n8k4": 4, "m16n8k8": 8, "m16n8k16": 16, "m16n8k32": 32}
_OPERANDS = {"f16", "bf16", "tf32"}


def _multiply(machine: Threads, i: Instruction, active: Array) -> None:
    _, _, shape, *layout, to, kind, other, added = i.modifiers
    if shape not in _SHAPE or layout != ["row", "col"] or kind not in _OPERANDS or kind != other:
        raise PtxError("ptx: this mma is not known")
    if to != added or to not in ("f32", "f16"):
        raise PtxError("ptx: this mma is not known")
    bits, k = (32 if kind == "tf32" else width(kind)), _SHAPE[shape]
    of_a, of_b = _fragments(bits, k)
    registers = [split(o.strip("{}")) for o in i.operands]
    parts = [_elements(machine, names, kind, bits) for names in registers[1:3]]
    start = _elements(machine, registers[3], to, width(to))
    a, b, c = np.zeros((16, k)), np.zeros((k, 8)), np.zeros((16, 8))
    e = np.arange(4)[None, :]
    of_c = _GROUP[:, None] + 8 * (e // 2), _IN_GROUP[:, None] * 2 + e % 2
    results = np.zeros((machine.threads, 4))
    for begin in range(0, machine.threads, 32):
        warp = slice(begin, begin + 32)
        a[of_a], b[of_b], c[of_c] = parts[0][warp], parts[1][warp], start[warp]
        results[warp] = (a @ b + c)[of_c]
    out = from_float(results.reshape(-1), to).reshape(results.shape)
    packed = 32 // width(to)
    for n, name in enumerate(registers[0]):
        word = np.zeros(machine.threads, np.uint64)
        for part in range(packed):
            word |= out[:, n * packed + part] << np.uint64(part * width(to))
        machine.write(name, word, active)


def _elements(machine: Threads, names: list[str], kind: str, bits: int) -> Array:
    """float64, (threads, elements)."""
    columns = []
    for name in names:
        word = machine.read(name, "b32")
        if kind == "tf32":
            word = word & np.uint64(0xFFFFE000)
        for part in range(32 // bits):
            raw = word >> np.uint64(part * bits) & mask(bits)
            columns.append(to_float(raw, "f32" if kind == "tf32" else kind).astype(np.float64))
    return np.stack(columns, 1)
