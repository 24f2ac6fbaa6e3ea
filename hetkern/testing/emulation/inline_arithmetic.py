"""Arithmetic of inline PTX: for each instruction an expression of a, b, c and what these are."""

from __future__ import annotations

from collections.abc import Callable

from hetkern.testing.emulation.inline_words import NAMESPACE, Instruction, of_type

_Parts = tuple[str, list[str]]


def _checked(i: Instruction, *known: str) -> None:
    if set(i.modifiers[:-1]) - set(known):
        raise i.unknown()


def _floats(i: Instruction, count: int, expression: str, *known: str) -> _Parts:
    """Rounded to nearest, and between 0 and 1 if .sat asks for it."""
    _checked(i, "rn", "ftz", "sat", *known)
    if "ftz" in i.modifiers and i.type != "f32":
        raise i.unknown()
    kind = of_type(i.type.removesuffix("x2"))
    if "sat" in i.modifiers:
        if "f32" not in i.type and "f64" not in i.type:
            raise i.unknown()
        expression = f"{NAMESPACE}saturated({expression})"
    return expression, [kind] * count


def _is_float(i: Instruction) -> bool:
    return i.type in ("f16", "bf16", "f16x2", "bf16x2", "f32", "f64")


def _sum(name: str, sign: str) -> Callable[[Instruction], _Parts]:
    def parts(i: Instruction) -> _Parts:
        if _is_float(i):
            call = f"{NAMESPACE}{name}(a, b)"
            if "rn" in i.modifiers:
                call = f"{NAMESPACE}rounded({call})"
            return _floats(i, 2, call)
        _checked(i)
        kind = of_type(i.type)
        return f"static_cast<{kind}>(uint64_t(a) {sign} uint64_t(b))", [kind, kind]

    return parts


def _products(i: Instruction) -> tuple[str, str]:
    """Of integers: the product of a and b, and its type."""
    _checked(i, "lo", "hi", "wide")
    kind = of_type(i.type)
    if "wide" in i.modifiers:
        wide = of_type(f"{i.type[0]}{2 * int(i.type[1:])}")
        return f"{NAMESPACE}wide_product(a, b)", wide
    if "hi" in i.modifiers:
        return f"{NAMESPACE}high_product(a, b)", kind
    if "lo" in i.modifiers:
        return f"{NAMESPACE}low_product(a, b)", kind
    raise i.unknown()


def _mul(i: Instruction) -> _Parts:
    if _is_float(i):
        call = f"{NAMESPACE}mul(a, b)"
        return _floats(i, 2, f"{NAMESPACE}rounded({call})" if "rn" in i.modifiers else call)
    product, _ = _products(i)
    return product, [of_type(i.type)] * 2


def _mad(i: Instruction) -> _Parts:
    if _is_float(i):
        return _fma(i)
    product, kind = _products(i)
    added = f"static_cast<{kind}>(uint64_t({product}) + uint64_t(c))"
    return added, [of_type(i.type), of_type(i.type), kind]


def _fma(i: Instruction) -> _Parts:
    return _floats(i, 3, f"{NAMESPACE}fused(a, b, c)")


def _div(i: Instruction) -> _Parts:
    if i.type in ("f32", "f64"):
        return _floats(i, 2, f"{NAMESPACE}quotient(a, b)", "approx", "full")
    _checked(i)
    return f"{NAMESPACE}divided(a, b)", [of_type(i.type)] * 2


def _extreme(name: str) -> Callable[[Instruction], _Parts]:
    def parts(i: Instruction) -> _Parts:
        keep = str("NaN" in i.modifiers).lower()
        call = f"{NAMESPACE}{name}(a, b, {keep})"
        if _is_float(i):
            return _floats(i, 2, call, "NaN")
        _checked(i)
        return call, [of_type(i.type)] * 2

    return parts


def _sign(name: str) -> Callable[[Instruction], _Parts]:
    def parts(i: Instruction) -> _Parts:
        if _is_float(i):
            return _floats(i, 1, f"{NAMESPACE}{name}(a)")
        _checked(i)
        return f"{NAMESPACE}{name}(a)", [of_type(i.type)]

    return parts


def _function(body: str) -> Callable[[Instruction], _Parts]:
    def parts(i: Instruction) -> _Parts:
        call = f"{NAMESPACE}applied(a, [](double x) {{ return {body}; }})"
        return _floats(i, 1, call, "approx")

    return parts


def _integers(
    expression: str, *kinds: str, known: tuple[str, ...] = ()
) -> Callable[[Instruction], _Parts]:
    """In an expression T is the instruction's type, as among the kinds "T"."""

    def parts(i: Instruction) -> _Parts:
        _checked(i, *known)
        kind = of_type(i.type)
        if _is_float(i):
            raise i.unknown()
        text = expression.replace("$", NAMESPACE).replace("{T}", kind)
        return text, [kind if k == "T" else k for k in kinds]

    return parts


def _funnel(i: Instruction) -> _Parts:
    if len(i.modifiers) != 3 or i.modifiers[0] not in "lr" or i.type != "b32":
        raise i.unknown()
    direction, how, _ = i.modifiers
    clamps = {"wrap": "", "clamp": "c"}
    if how not in clamps:
        raise i.unknown()
    return f"::__funnelshift_{direction}{clamps[how]}(a, b, c)", ["uint32_t"] * 3


def _dot(i: Instruction) -> _Parts:
    kinds = {"s32": "int8_t", "u32": "uint8_t"}
    if len(i.modifiers) != 2 or set(i.modifiers) - set(kinds):
        raise i.unknown()
    a, b = (kinds[w] for w in i.modifiers)
    return f"{NAMESPACE}dot4<{a}, {b}>(a, b, c)", ["uint32_t"] * 3


ARITHMETIC: dict[str, Callable[[Instruction], _Parts]] = {
    "add": _sum("add", "+"), "sub": _sum("sub", "-"), "mul": _mul, "mad": _mad, "fma": _fma,
    "div": _div, "rem": _integers("$remainder(a, b)", "T", "T"),
    "min": _extreme("smallest"), "max": _extreme("largest"),
    "abs": _sign("absolute"), "neg": _sign("negated"),
    "rcp": _function("1 / x"), "sqrt": _function("std::sqrt(x)"),
    "rsqrt": _function("1 / std::sqrt(x)"), "ex2": _function("std::exp2(x)"),
    "lg2": _function("std::log2(x)"), "sin": _function("std::sin(x)"),
    "cos": _function("std::cos(x)"), "tanh": _function("std::tanh(x)"),
    "and": _integers("{T}(a & b)", "T", "T"), "or": _integers("{T}(a | b)", "T", "T"),
    "xor": _integers("{T}(a ^ b)", "T", "T"), "not": _integers("{T}(~a)", "T"),
    "shl": _integers("$shl(a, b)", "T", "uint32_t"),
    "shr": _integers("$shr(a, b)", "T", "uint32_t"),
    "popc": _integers("uint32_t(__builtin_popcountll(a))", "T"),
    "clz": _integers("$leading_zeros(a)", "T"), "brev": _integers("$reversed(a)", "T"),
    "bfe": _integers("$field(a, b, c)", "T", "uint32_t", "uint32_t"),
    "bfi": _integers("$inserted(a, b, c, d)", "T", "T", "uint32_t", "uint32_t"),
    "prmt": _integers("$prmt(a, b, c)", "uint32_t", "uint32_t", "uint32_t"),
    "lop3": _integers("$lop3(a, b, c, d)", *["uint32_t"] * 4),
    "sad": _integers("{T}((a < b ? b - a : a - b) + c)", "T", "T", "T"),
    "shf": _funnel, "dp4a": _dot,
}  # fmt: skip
