"""All threads of a block side by side: the instruction of the least program counter is next.

Threads that took different branches so meet again where the code does. A barrier needs nothing
more, since every thread is at it or behind it. Memory is written in the order of instructions, and
of threads within one: a race shows no other outcome here, which the interpreter looks for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from hetkern.testing.ptx import bits, convert, exchange, floats
from hetkern.testing.ptx.memory import Memory
from hetkern.testing.ptx.parse import Instruction, Program, PtxError, split
from hetkern.testing.ptx.values import FLOATS, PAIRS, Array, integers, literal, mask, width

_NOTHING = frozenset(
    {"bar", "barrier", "fence", "membar", "griddepcontrol", "prefetch", "nanosleep"}
)
_UNWRITTEN = np.uint64(0xDEADBEEFDEADBEEF)
_STEPS = 10_000_000
_OF_INTEGERS = {"add", "sub", "mul", "mad", "div", "rem", "min", "max", "abs", "neg"}
_PURE: dict[str, Callable[[Instruction, floats.Source], Array]] = {
    **dict.fromkeys(("and", "or", "xor", "not"), bits.logic),
    **dict.fromkeys(("shl", "shr"), bits.shift),
    **dict.fromkeys(("bfe", "bfi"), bits.field),
    **dict.fromkeys(("popc", "clz", "brev", "bfind"), bits.count),
    "shf": bits.funnel, "lop3": bits.three_inputs, "prmt": bits.permute,
    "copysign": bits.select_sign, "cvt": convert.convert, "testp": floats.test_property,
}  # fmt: skip


class Machine:
    """One kernel over a grid of blocks."""

    def __init__(self, program: Program, threads: int, parameters: Sequence[int]) -> None:
        self.program, self.threads, self.parameters = program, threads, parameters
        self.memory = Memory(threads)
        self.symbols = {name: 0 for name in ("global_smem", "__local_depot0")}
        for name, content in program.data.items():
            self.symbols[name] = self.memory.add(np.frombuffer(content, np.uint8).copy())
        self._all = np.ones(threads, bool)
        self._rows = np.arange(threads, dtype=np.uint64)

    def run(self, grid: tuple[int, int, int]) -> None:
        """Blocks one after another.

        Raises:
            PtxError: an instruction is not known, or an access is in no tensor.
        """
        with np.errstate(all="ignore"):
            for z in range(grid[2]):
                for y in range(grid[1]):
                    for x in range(grid[0]):
                        self._block((x, y, z), grid)

    def _block(self, index: tuple[int, int, int], grid: tuple[int, int, int]) -> None:
        self.memory.begin_block()
        self.registers: dict[str, Array] = {}
        numbers = {f"%ctaid.{a}": n for a, n in zip("xyz", index, strict=True)}
        numbers |= {f"%nctaid.{a}": n for a, n in zip("xyz", grid, strict=True)}
        numbers |= {"%ntid.x": self.threads, "%ntid.y": 1, "%ntid.z": 1, "%tid.y": 0, "%tid.z": 0}
        numbers |= {"%clusterid.x": index[0], "%cluster_ctarank": 0, "%cluster_ctaid.x": 0}
        self._special = {name: np.full(self.threads, n, np.uint64) for name, n in numbers.items()}
        self._special["%tid.x"] = self._rows
        self._special["%laneid"] = self._rows % np.uint64(32)
        self._special["%warpid"] = self._rows // np.uint64(32)
        at, end = np.zeros(self.threads, np.int64), len(self.program.instructions)
        for _ in range(_STEPS):
            here = int(at.min())
            if here >= end:
                return
            together = bool((at == here).all())
            active = self._all if together else at == here
            i = self.program.instructions[here]
            runs = active if not i.guard else active & self._guard(i)
            if i.name in ("bra", "ret", "exit"):
                target = self._target(i) if i.name == "bra" else end
                at = np.where(runs, target, np.where(active, here + 1, at))
                continue
            if runs.any():
                self._execute(i, runs)
            at = np.where(active, here + 1, at)
        raise PtxError(f"ptx: {self.program.name} did not end after {_STEPS} steps")

    def _target(self, i: Instruction) -> int:
        return self.program.labels[i.operands[0]]

    def _guard(self, i: Instruction) -> Array:
        value = self.read(i.guard, "pred") != 0
        return ~value if i.negated else value

    # ---- Registers. ------------------------------------------------------------------------------

    def read(self, operand: str, kind: str) -> Array:
        """An operand's bits."""
        size = width(kind)
        if operand.startswith("{"):
            parts = split(operand[1:-1])
            each = size // len(parts)
            result = np.zeros(self.threads, np.uint64)
            for n, part in enumerate(parts):
                result |= self.read(part, f"b{each}") << np.uint64(each * n)
            return result
        if operand.startswith("!"):
            return self.read(operand[1:], kind) ^ np.uint64(1)
        if operand in self.registers:
            return self.registers[operand] & mask(size)
        if operand in self._special:
            return self._special[operand] & mask(size)
        if (number := literal(operand)) is not None:
            return np.full(self.threads, number % (1 << size), np.uint64)
        if found := re.fullmatch(r"([\w$]+)(?:\+(\d+))?", operand):
            if found[1] in self.symbols:
                at = self.symbols[found[1]] + int(found[2] or 0)
                return np.full(self.threads, at, np.uint64)
        if re.fullmatch(r"%[a-z]+\d+(@\d+)?", operand) or "@" in operand:
            return np.full(self.threads, _UNWRITTEN & mask(size), np.uint64)
        raise PtxError(f"ptx: the operand {operand} is not known")

    def write(self, operand: str, value: Array, active: Array) -> None:
        """Give a register its bits, in the active threads."""
        if operand == "_":
            return
        if not active.all():
            old = self.registers.get(operand)
            if old is None:
                old = np.full(self.threads, _UNWRITTEN, np.uint64)
            value = np.where(active, value, old)
        self.registers[operand] = value

    def address(self, operand: str) -> Array:
        """What stands in brackets."""
        found = re.fullmatch(r"\[\s*([%\w$@]+)\s*(?:\+\s*(-?\d+))?\s*\]", operand)
        if found is None:
            raise PtxError(f"ptx: the address {operand} is not known")
        return self.read(found[1], "b64") + np.uint64(int(found[2] or 0) % (1 << 64))

    # ---- Instructions. ---------------------------------------------------------------------------

    def _execute(self, i: Instruction, active: Array) -> None:
        try:
            self._dispatch(i, active)
        except PtxError as error:
            raise PtxError(f"{error} (in {self.program.name}: {i.text})") from None

    def _dispatch(self, i: Instruction, active: Array) -> None:
        if i.name in _NOTHING:
            return
        if i.name == "createpolicy":
            self.write(i.operands[0], np.zeros(self.threads, np.uint64), active)
        elif i.name == "mov":
            self._move(i, active)
        elif i.name == "cvta":
            self.write(i.operands[0], self.read(i.operands[1], "b64"), active)
        elif i.name in ("ld", "ldu"):
            self._load(i, active)
        elif i.name == "st":
            self._store(i, active)
        elif i.name in exchange.NAMES:
            exchange.run(self, i, active)
        elif i.name == "setp":
            self._set_predicate(i, active)
        elif i.name == "selp":
            yes, no = self.read(i.operands[1], i.type), self.read(i.operands[2], i.type)
            chosen = np.where(self.read(i.operands[3], "pred") != 0, yes, no)
            self.write(i.operands[0], chosen, active)
        else:
            value = self._pure(i)
            self.write(i.operands[0], value, active)

    def _pure(self, i: Instruction) -> Array:
        def source(n: int, kind: str) -> Array:
            return self.read(i.operands[n + 1], kind)

        if i.name in _PURE:
            return _PURE[i.name](i, source)
        if i.name in floats.NAMES and (i.type in FLOATS or i.type in PAIRS):
            return floats.arithmetic(i, source)
        if i.name in _OF_INTEGERS and i.type[0] in "us":
            return bits.arithmetic(i, source)
        raise PtxError(f"ptx: the instruction {i.name} is not known")

    def _move(self, i: Instruction, active: Array) -> None:
        to = i.operands[0]
        value = self.read(i.operands[1], i.type)
        if not to.startswith("{"):
            return self.write(to, value, active)
        parts = split(to[1:-1])
        each = width(i.type) // len(parts)
        for n, part in enumerate(parts):
            self.write(part, value >> np.uint64(each * n) & mask(each), active)

    def _space(self, i: Instruction) -> str:
        known = {"volatile", "relaxed", "acquire", "release", "gpu", "sys", "cta", "weak", "nc"}
        known |= {"L1_evict_first", "L1_evict_last", "L1_no_allocate", "L2_cache_hint", "cg", "ca"}
        known |= {"wb", "cs", "wt", "cv", "lu", "v2", "v4", "v8", "global", "shared", "shared_cta"}
        known |= {"local", "param"}
        if unknown := set(i.modifiers[:-1]) - known:
            raise PtxError(f"ptx: {i.name} with .{'.'.join(sorted(unknown))} is not known")
        for space in ("param", "shared", "local", "global"):
            if space in i.modifiers or (space == "shared" and "shared_cta" in i.modifiers):
                return space
        raise PtxError(f"ptx: {i.name} of generic addresses is not known")

    def _load(self, i: Instruction, active: Array) -> None:
        space, size = self._space(i), width(i.type) // 8
        targets = split(i.operands[0].strip("{}"))
        if space == "param":
            found = re.fullmatch(r"\[\w+_param_(\d+)\]", i.operands[1])
            if found is None or len(targets) != 1:
                raise PtxError("ptx: a parameter that is a structure is not known")
            number = self.parameters[int(found[1])] % (1 << width(i.type))
            return self.write(targets[0], np.full(self.threads, number, np.uint64), active)
        at = self.address(i.operands[1])
        values = [
            self.memory.load(space, at + np.uint64(n * size), size, active)
            for n in range(len(targets))
        ]
        for target, value in zip(targets, values, strict=True):
            signed = integers(value, i.type).view(np.uint64) if i.type[0] == "s" else value
            self.write(target, signed, active)

    def _store(self, i: Instruction, active: Array) -> None:
        space, size = self._space(i), width(i.type) // 8
        at = self.address(i.operands[0])
        for n, part in enumerate(split(i.operands[1].strip("{}"))):
            value = self.read(part, i.type)
            self.memory.store(space, at + np.uint64(n * size), size, value, active)

    def _set_predicate(self, i: Instruction, active: Array) -> None:
        kind, first, second = i.type, *(self.read(o, i.type) for o in i.operands[1:3])
        targets = i.operands[0].split("|")
        if kind in PAIRS:
            for n, target in enumerate(targets):
                parts = [(v >> np.uint64(16 * n)) & mask(16) for v in (first, second)]
                value = floats.comparison(i, PAIRS[kind], *parts).astype(np.uint64)
                self.write(target.strip(), value, active)
            return
        if kind in FLOATS:
            result = floats.comparison(i, kind, first, second)
        else:
            a, b = integers(first, kind), integers(second, kind)
            result = floats.compare_integers(i.modifiers[0], a, b)
        value = result.astype(np.uint64)
        other = value ^ np.uint64(1)
        words = [w for w in i.modifiers[1:-1] if w in ("and", "or", "xor")]
        if words:
            join = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[words[0]]
            third = self.read(i.operands[3], "pred")
            value, other = join(value, third), join(other, third)
        self.write(targets[0].strip(), value, active)
        if len(targets) > 1:
            self.write(targets[1].strip(), other, active)
