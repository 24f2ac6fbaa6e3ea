"""Inline PTX that moves memory or matrices: loads, stores, atomics, copies, fragments."""

from __future__ import annotations

import re
from collections.abc import Callable

from hetkern.testing.emulation.inline_words import (
    BYTES,
    NAMESPACE,
    Instruction,
    Unknown,
    of_type,
)
from hetkern.testing.ptx.parse import split

_SPACES = ("global", "shared", "shared::cta")
_SCOPES = ("cta", "cluster", "gpu", "sys")
_HINTS = ("weak", "ca", "cg", "cs", "cv", "lu", "wb", "wt", "nc", "volatile")


def _taken_apart(i: Instruction, *known: str) -> tuple[str, list[str]]:
    """The state space, and what of the words is neither that nor a hint to the caches."""
    words = [w for w in i.modifiers[:-1] if not w.startswith(("L1::", "L2::"))]
    spaces = [w for w in words if w in _SPACES]
    left = [w for w in words if w not in (*_SPACES, *_SCOPES, *_HINTS)]
    if len(spaces) > 1 or set(left) - set(known):
        raise i.unknown()
    return "".join(spaces), left


def _elements(operand: str, count: int) -> list[str]:
    parts = split(operand[1:-1]) if operand.startswith("{") else [operand]
    if len(parts) != count:
        raise Unknown(operand.replace("\x01", "%"))
    return parts


def _access(i: Instruction, words: list[str]) -> tuple[int, bool]:
    """How many elements, and whether it is one atomic access."""
    count = next((int(w[1:]) for w in words if w in ("v2", "v4", "v8")), 1)
    atomic = "volatile" in i.modifiers or bool({"relaxed", "acquire", "release"} & set(words))
    if i.type in ("f16x2", "bf16x2") or (count > 1 and atomic):
        raise i.unknown()
    return count, atomic and count == 1


def _load(i: Instruction) -> str:
    space, words = _taken_apart(i, "relaxed", "acquire", "v2", "v4", "v8")
    count, atomic = _access(i, words)
    a, kind = i.assembler, of_type(i.type, bits=True)
    p = a.address(i.operands[1], space)
    if atomic:
        acquires = str("acquire" in words).lower()
        value = f"{NAMESPACE}load_atomic<{kind}>({p}, {acquires})"
        return a.set(i.operands[0], _sign(i, value))
    sets = (
        a.set(t, _sign(i, f"hetkern_e[{n}]")) for n, t in enumerate(_elements(i.operands[0], count))
    )
    load = "load_from_memory" if {"cg", "cv"} & set(i.modifiers) else "load"
    return f"{kind} hetkern_e[{count}]; {NAMESPACE}{load}({p}, hetkern_e); " + " ".join(sets)


def _sign(i: Instruction, value: str) -> str:
    return f"static_cast<{of_type(i.type)}>({value})" if i.type[0] == "s" else value


def _store(i: Instruction) -> str:
    space, words = _taken_apart(i, "relaxed", "release", "v2", "v4", "v8")
    count, atomic = _access(i, words)
    a, kind = i.assembler, of_type(i.type, bits=True)
    p = a.address(i.operands[0], space)
    read = [_bits_of(i, o, kind) for o in _elements(i.operands[1], count)]
    if atomic:
        releases = str("release" in words).lower()
        return f"{NAMESPACE}store_atomic<{kind}>({p}, {read[0]}, {releases});"
    values = f"const {kind} hetkern_e[{count}] = {{{', '.join(read)}}};"
    return f"{values} {NAMESPACE}store({p}, hetkern_e);"


def _bits_of(i: Instruction, operand: str, kind: str) -> str:
    """A register is cut to the type; a number is one of the type."""
    if i.type in ("f32", "f64") and not i.assembler.size(operand):
        return f"{NAMESPACE}in<{BYTES[i.type]}>({i.assembler.value(operand, of_type(i.type))})"
    return i.assembler.value(operand, kind)


_ATOMICS = {
    "add": "atomicAdd", "min": "atomicMin", "max": "atomicMax", "and": "atomicAnd",
    "or": "atomicOr", "xor": "atomicXor", "exch": "atomicExch", "cas": "atomicCAS",
    "inc": "atomicInc", "dec": "atomicDec",
}  # fmt: skip
_ATOMIC_TYPES = {
    "u32": "unsigned", "b32": "unsigned", "s32": "int", "f32": "float", "f64": "double",
    "u64": "unsigned long long", "b64": "unsigned long long", "s64": "long long",
}  # fmt: skip


def _atomic(i: Instruction) -> str:
    space, words = _taken_apart(i, "relaxed", "acquire", "release", "acq_rel", *_ATOMICS)
    operations = [w for w in words if w in _ATOMICS]
    if len(operations) != 1 or i.type not in _ATOMIC_TYPES:
        raise i.unknown()
    kind = _ATOMIC_TYPES[i.type]
    if kind == "long long" and operations[0] not in ("min", "max"):
        kind = "unsigned long long"
    a, kept = i.assembler, i.name == "atom"
    address, *given = i.operands[1:] if kept else i.operands
    if len(given) != (2 if operations[0] == "cas" else 1):
        raise i.unknown()
    values = "".join(f", {a.value(o, kind)}" for o in given)
    acquires = str(bool({"acquire", "acq_rel"} & set(words))).lower()
    releases = str(bool({"release", "acq_rel"} & set(words))).lower()
    call = (
        f"{NAMESPACE}atomic<{kind}>({a.address(address, space)}, {acquires}, {releases}, "
        f"[&]({kind}* hetkern_p) {{ return ::{_ATOMICS[operations[0]]}(hetkern_p{values}); }})"
    )
    return a.set(i.operands[0], call) if kept else f"{call};"


def _copy(i: Instruction) -> str:
    a, words = i.assembler, i.modifiers
    if words[:1] != ["async"]:
        raise i.unknown()
    if words == ["async", "commit_group"]:
        return "::hetkern::emulation::commit_copies();"
    if words == ["async", "wait_all"]:
        return "::hetkern::emulation::commit_copies(); ::hetkern::emulation::wait_copies(0);"
    if words == ["async", "wait_group"]:
        return f"::hetkern::emulation::wait_copies({a.value(i.operands[0], 'unsigned')});"
    cache, *rest = (w for w in words[1:] if not w.startswith("L2::"))
    if cache not in ("ca", "cg") or rest not in (["shared", "global"], ["shared::cta", "global"]):
        raise i.unknown()
    to, source, size, *more = i.operands
    if "L2::cache_hint" in words:
        more = more[:-1]
    if len(more) > 1 or (cache == "cg" and size.isdigit() and size != "16"):
        raise i.unknown()
    count = a.value(size, "unsigned")
    taken = count
    if more and (more[0].startswith("!") or (not more[0].isdigit() and _is_predicate(i, more[0]))):
        taken = f"{a.predicate(more[0])} ? 0u : {count}"
    elif more:
        taken = a.value(more[0], "unsigned")
    where = f"{a.address(to, 'shared')}, {a.address(source, 'global')}"
    return f'::hetkern::ptx::copy_async_of({where}, {count}, int({taken}), "cp.async");'


def _is_predicate(i: Instruction, operand: str) -> bool:
    return not operand.startswith(("\x01", "%")) and i.assembler.size(operand) == 0


def _cvta(i: Instruction) -> str:
    a, (target, source) = i.assembler, i.operands
    space = i.modifiers[-2]
    if i.type != "u64" or space not in _SPACES:
        raise i.unknown()
    if space == "global":
        return a.set(target, a.value(source, "uint64_t"))
    if i.modifiers[0] == "to":
        pointer = f"{NAMESPACE}from_generic({a.register(source)})"
        return a.set(target, f"uint64_t{{{NAMESPACE}to_shared({pointer})}}")
    pointer = f"{NAMESPACE}from_shared({a.register(source)})"
    return a.set(target, f"reinterpret_cast<uint64_t>({pointer})")


# ---- Matrices. ----


def _ldmatrix(i: Instruction) -> str:
    known = {"sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared::cta", "b16"}
    counts = [int(w[1:]) for w in i.modifiers if w in ("x1", "x2", "x4")]
    if set(i.modifiers) - known or len(counts) != 1 or "m8n8" not in i.modifiers:
        raise i.unknown()
    loads, a, n = i.name == "ldmatrix", i.assembler, counts[0]
    registers, place = i.operands if loads else reversed(i.operands)
    space = "shared" if {"shared", "shared::cta"} & set(i.modifiers) else ""
    pointer, turned = a.address(place, space), str("trans" in i.modifiers).lower()
    parts = _elements(registers, n)
    if loads:
        sets = " ".join(a.set(p, f"hetkern_m[{k}]") for k, p in enumerate(parts))
        call = f"{NAMESPACE}load_matrices(hetkern_m, {pointer}, {turned});"
        return f"uint32_t hetkern_m[{n}]; {call} {sets}"
    read = ", ".join(a.value(p, "uint32_t") for p in parts)
    return (
        f"const uint32_t hetkern_m[{n}] = {{{read}}}; "
        f"{NAMESPACE}store_matrices({pointer}, hetkern_m, {turned});"
    )


def _movmatrix(i: Instruction) -> str:
    if i.modifiers != ["sync", "aligned", "m8n8", "trans", "b16"]:
        raise i.unknown()
    a = i.assembler
    value = a.value(i.operands[1], "uint32_t")
    return a.set(i.operands[0], f"{NAMESPACE}transposed({value})")


_ELEMENTS = {
    "f16": "F16", "bf16": "BF16", "tf32": "Tf32", "e4m3": "E4M3", "e5m2": "E5M2",
    "s8": "int8_t", "u8": "uint8_t", "s4": "S4", "u4": "U4", "f64": "double",
    "f32": "float", "s32": "int32_t",
}  # fmt: skip
#: Which element types go together, in which shapes, with which sums.
_PRODUCTS: tuple[tuple[set[str], set[str], set[str]], ...] = (
    ({"f16"}, {"m16n8k8", "m16n8k16"}, {"f16", "f32"}),
    ({"bf16"}, {"m16n8k8", "m16n8k16"}, {"f32"}),
    ({"tf32"}, {"m16n8k4", "m16n8k8"}, {"f32"}),
    ({"e4m3", "e5m2"}, {"m16n8k16", "m16n8k32"}, {"f16", "f32"}),
    ({"s8", "u8"}, {"m8n8k16", "m16n8k16", "m16n8k32"}, {"s32"}),
    ({"s4", "u4"}, {"m8n8k32", "m16n8k32", "m16n8k64"}, {"s32"}),
    ({"f64"}, {"m8n8k4"}, {"f64"}),
)


def _named(*kinds: str) -> str:
    return ", ".join(
        e if e.endswith("_t") or e in ("float", "double") else NAMESPACE + e
        for e in (_ELEMENTS[kind] for kind in kinds)
    )


def _mma(i: Instruction) -> str:
    words = [w for w in i.modifiers if w != "satfinite"]
    saturates = "satfinite" in i.modifiers
    if len(words) != 9 or words[:2] != ["sync", "aligned"]:
        raise i.unknown()
    _, _, shape, major_a, major_b, to, kind_a, kind_b, added = words
    m, k = (int(n) for n in re.fullmatch(r"m(\d+)n\d+k(\d+)", shape).groups())  # type: ignore[union-attr]
    register = "uint64_t" if to == "f64" else "uint32_t"
    if shape == "m8n8k4" and kind_a == kind_b == "f16" and to == added and to in ("f16", "f32"):
        rows = ", ".join(str(major == "row").lower() for major in (major_a, major_b))
        call = f"mma_884<{rows}, {_named(to, to)}>"
    elif (
        any(
            {kind_a, kind_b} <= kinds and shape in shapes and to in sums
            for kinds, shapes, sums in _PRODUCTS
        )
        and [major_a, major_b, added] == ["row", "col", to]
        and (not saturates or to == "s32")
    ):
        call = f"mma<{m}, {k}, {_named(kind_a, kind_b, to)}, {str(saturates).lower()}>"
    else:
        raise i.unknown()
    a = i.assembler
    lists = [split(o[1:-1]) if o.startswith("{") else [o] for o in i.operands]
    if len(lists) != 4:
        raise i.unknown()
    given = " ".join(
        f"const {register} hetkern_{name}[] = {{{', '.join(a.value(p, register) for p in parts)}}};"
        for name, parts in zip("abc", lists[1:], strict=True)
    )
    sets = " ".join(a.set(p, f"hetkern_d[{n}]") for n, p in enumerate(lists[0]))
    return (
        f"{register} hetkern_d[{len(lists[0])}]; {given} "
        f"{NAMESPACE}{call}(hetkern_d, hetkern_a, hetkern_b, hetkern_c); {sets}"
    )


def _fence(i: Instruction) -> str:
    words = set(i.modifiers)
    if i.operands or words - {"sc", "acq_rel", "cta", "gl", "gpu", "sys"}:
        raise i.unknown()
    return "::__threadfence_block();" if "cta" in words else "::__threadfence();"


KNOWN: dict[str, Callable[[Instruction], str]] = {
    "ld": _load, "st": _store, "atom": _atomic, "red": _atomic, "cp": _copy, "cvta": _cvta,
    "ldmatrix": _ldmatrix, "stmatrix": _ldmatrix, "movmatrix": _movmatrix, "mma": _mma,
    "fence": _fence, "membar": _fence,
}  # fmt: skip
