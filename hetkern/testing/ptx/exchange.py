"""What threads give to one another: shuffles, votes, reductions of a warp, atomics, matrices."""

from __future__ import annotations

import numpy as np

from hetkern.testing.ptx import matrix
from hetkern.testing.ptx.parse import Instruction, PtxError, split
from hetkern.testing.ptx.threads import Threads
from hetkern.testing.ptx.values import (
    FLOATS,
    PAIRS,
    Array,
    flush,
    from_float,
    integers,
    mask,
    to_float,
    width,
)

NAMES = frozenset(
    {"shfl", "vote", "redux", "elect", "atom", "red", "activemask", "mma", "ldmatrix"}
)
_ATOMICS = ("add", "max", "min", "and", "or", "xor", "exch", "cas")


def run(machine: Threads, i: Instruction, active: Array) -> None:
    """Execute one of NAMES."""
    if i.name == "shfl":
        _shuffle(machine, i, active)
    elif i.name in ("atom", "red"):
        _atomic(machine, i, active)
    elif i.name in ("mma", "ldmatrix"):
        matrix.run(machine, i, active)
    elif i.name == "elect":
        leader = machine.read("%laneid", "b32") == 0
        machine.write(i.operands[0].split("|")[-1].strip(), leader.astype(np.uint64), active)
    else:
        machine.write(i.operands[0], _of_warp(machine, i, active), active)


def _shuffle(machine: Threads, i: Instruction, active: Array) -> None:
    mode = i.modifiers[1]
    targets = [t.strip() for t in i.operands[0].split("|")]
    value = machine.read(i.operands[1], "b32")
    by, clamp = (machine.read(o, "b32").astype(np.int64) for o in i.operands[2:4])
    lane = np.arange(machine.threads) % 32
    segment = clamp >> 8 & 31
    least, most = lane & segment, (lane & segment) | (clamp & 31 & ~segment)
    by = by & 31
    if mode == "up":
        source = lane - by
        valid = source >= most
    else:
        source = {
            "down": lane + by, "bfly": lane ^ by, "idx": least | (by & ~segment),
        }[mode]  # fmt: skip
        valid = source <= most
    place = np.arange(machine.threads) - lane + np.where(valid, source, lane)
    machine.write(targets[0], value[np.clip(place, 0, machine.threads - 1)], active)
    if len(targets) > 1:
        machine.write(targets[1], valid.astype(np.uint64), active)


def _of_warp(machine: Threads, i: Instruction, active: Array) -> Array:
    """``vote``, ``redux``, ``activemask``: one value a warp."""
    result = np.zeros(machine.threads, np.uint64)
    kind = "pred" if i.name == "vote" else "b32"
    value = machine.read(i.operands[1], kind) if i.name != "activemask" else active
    for begin in range(0, machine.threads, 32):
        warp = slice(begin, begin + 32)
        takes = active[warp]
        part = value[warp]
        if i.name == "redux":
            result[warp] = _reduced(i, part[takes])
            continue
        holds = takes & (part != 0)
        if i.name == "activemask" or "ballot" in i.modifiers:
            result[warp] = int(sum(1 << n for n in np.nonzero(holds)[0]))
        elif "any" in i.modifiers or "all" in i.modifiers:
            result[warp] = int(holds.any() if "any" in i.modifiers else holds.sum() == takes.sum())
        else:
            raise PtxError("ptx: this vote is not known")
    return result


def _reduced(i: Instruction, part: Array) -> int:
    word = i.modifiers[1]
    known = {
        "add": np.add, "min": np.minimum, "max": np.maximum,
        "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    }  # fmt: skip
    if word not in known or i.type not in ("u32", "s32", "b32"):
        raise PtxError("ptx: this redux is not known")
    numbers = integers(part, i.type)
    return int(known[word].reduce(numbers)) % (1 << 32) if part.size else 0


def _atomic(machine: Threads, i: Instruction, active: Array) -> None:
    """Threads in turn. float32 in global memory flushes subnormals (PTX ISA, "atom")."""
    space = "shared" if {"shared", "shared_cta"} & set(i.modifiers) else "global"
    words = [w for w in i.modifiers if w in _ATOMICS]
    others = set(i.modifiers[:-1]) - set(words)
    others -= {"global", "shared", "shared_cta", "gpu", "cta", "sys", "noftz", "relaxed", "acquire"}
    others -= {"release", "acq_rel", "v2", "v4", "v8"}
    if len(words) != 1 or others:
        raise PtxError("ptx: this atomic is not known")
    target, place, *sources = i.operands if i.name == "atom" else ("_", *i.operands)
    at, size = machine.address(place), width(i.type) // 8
    targets = split(target.strip("{}")) if target != "_" else ["_"] * 8
    parts = [split(o.strip("{}")) for o in sources]
    for n in range(len(parts[0])):
        values = [machine.read(part[n], i.type) for part in parts]
        old = np.zeros(machine.threads, np.uint64)
        here = at + np.uint64(n * size)
        for thread in np.nonzero(active)[0]:
            alone = np.zeros(machine.threads, bool)
            alone[thread] = True
            before = machine.memory.load(space, here, size, alone)
            mine = [v[thread : thread + 1] for v in values]
            after = _updated(words[0], i.type, space, before[thread : thread + 1], mine)
            old[thread] = before[thread]
            machine.memory.store(space, here, size, np.where(alone, after, before), alone)
        machine.write(targets[n], old, active)


def _updated(word: str, kind: str, space: str, old: Array, values: list[Array]) -> Array:
    new = values[0]
    if word == "exch":
        return new
    if word == "cas":
        return np.where(old == new, values[1], old)
    if word in ("and", "or", "xor"):
        result: Array = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[word](
            old, new
        )
        return result
    if kind in PAIRS:
        halves = [
            _updated(word, PAIRS[kind], space, *((old >> s) & mask(16), [(new >> s) & mask(16)]))
            for s in (np.uint64(0), np.uint64(16))
        ]
        return halves[1] << np.uint64(16) | halves[0]
    if kind in FLOATS:
        if word != "add":
            raise PtxError("ptx: this atomic of floats is not known")
        a, b = to_float(old, kind), to_float(new, kind)
        flushes = kind == "f32" and space == "global"
        total = flush(a) + flush(b) if flushes else a + b
        return from_float(flush(total) if flushes else total, kind)
    if kind not in ("u32", "s32", "u64", "s64"):
        raise PtxError(f"ptx: an atomic on .{kind} is not known")
    a, b = integers(old, kind), integers(new, kind)
    total = a + b if word == "add" else np.maximum(a, b) if word == "max" else np.minimum(a, b)
    return total.view(np.uint64) & mask(width(kind))
