"""Inline PTX as C++: each instruction becomes calls of csrc/cuda/emulation/inline_ptx.h.

An instruction that is not known here is refused by name. What an instruction means stands in
NVIDIA's PTX ISA; fragments of matrices in its "Matrix Fragments for …" sections.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from hetkern.testing.emulation import inline_memory
from hetkern.testing.emulation.inline_arithmetic import ARITHMETIC
from hetkern.testing.emulation.inline_words import (
    BYTES,
    NAMESPACE,
    Instruction,
    Unknown,
    literal,
    of_type,
    special,
)
from hetkern.testing.ptx.parse import split

_STATEMENT = re.compile(
    r"\s*(?:(?P<open>\{)|(?P<close>\})|(?P<label>[A-Za-z_$][\w$]*)\s*:(?!:)"
    r"|(?P<text>[^;{}][^;]*?)\s*(?:;|$))"
)
_GUARD = re.compile(r"@(!?)\s*([\w%$\x01]+)\s+")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
#: Instructions that do nothing here, by their beginning.
_NOTHING = (
    "prefetch", "prefetchu", "griddepcontrol", "setmaxnreg", "applypriority", "discard", "pragma",
)  # fmt: skip


@dataclass
class Assembler:
    """Translates the text of one asm statement."""

    sizes: list[int]  #: bytes of each operand's register; 0 for a constant
    labels: list[str] = field(default_factory=list)
    scopes: list[dict[str, tuple[str, int]]] = field(default_factory=lambda: [{}])
    made: int = 0

    def translate(self, text: str) -> str:
        """The C++ statements; labels that they jump to are in ``labels``."""
        text = _COMMENT.sub(" ", text)
        self.labels = [
            self._label(name) for name in re.findall(r"\bbra(?:\.uni)?\s+([\w$]+)", text)
        ]
        parts: list[str] = []
        at = 0
        while at < len(text) and text[at:].strip(" \t\n\r;"):
            match = _STATEMENT.match(text, at)
            if match is None:
                raise Unknown(" ".join(text[at : at + 60].split()))
            at = match.end()
            if match["open"]:
                self.scopes.append({})
                parts.append("{")
            elif match["close"]:
                if len(self.scopes) < 2:
                    raise Unknown("a brace that nobody opens")
                self.scopes.pop()
                parts.append("}")
            elif match["label"]:
                parts.append(f"{self._label(match['label'])}: ;")
            else:
                parts.append(self.statement(match["text"]))
        if len(self.scopes) > 1:
            raise Unknown("a brace that nobody closes")
        return " ".join(parts)

    @staticmethod
    def _label(name: str) -> str:
        return "hetkern_l_" + name.replace("$", "_S")

    def statement(self, text: str) -> str:
        """One declaration or instruction."""
        if text.startswith(".reg"):
            return self._declared(text)
        guard = ""
        if match := _GUARD.match(text):
            guard, text = f"if ({match[1]}{self.predicate(match[2])}) ", text[match.end() :]
        word = re.match(r"[\w.:]+", text)
        if word is None:
            raise Unknown(" ".join(text.split()))
        name, *modifiers = word[0].split(".")
        i = Instruction(name, modifiers, split(text[word.end() :]), " ".join(text.split()), self)
        return f"{guard}{{ {self.instruction(i)} }}"

    def _declared(self, text: str) -> str:
        match = re.fullmatch(r"\.reg\s*\.(\w+)\s+(.*)", text, re.S)
        if match is None or match[1] not in BYTES:
            raise Unknown(" ".join(text.split()))
        size = BYTES[match[1]]
        kind = "bool" if match[1] == "pred" else f"uint{8 * size}_t"
        names: list[str] = []
        for declared in split(match[2]):
            if many := re.fullmatch(r"(\S+?)<(\d+)>", declared):
                names += [f"{many[1]}{n}" for n in range(int(many[2]))]
            else:
                names.append(declared)
        # A jump may not cross a value that is given at once.
        begin = "" if self.labels else " = {}"
        parts = []
        for name in names:
            self.made += 1
            cpp = f"hetkern_v{self.made}"
            self.scopes[-1][name] = cpp, 0 if kind == "bool" else size
            parts.append(f"[[maybe_unused]] {kind} {cpp}{begin};")
        return " ".join(parts)

    # ---- Operands. ----

    def _named(self, operand: str) -> tuple[str, int] | None:
        if operand.startswith("\x01"):
            n = int(operand[1:])
            if n >= len(self.sizes):
                raise Unknown(f"an operand of number {n}, which the statement has not")
            return f"hetkern_r{n}", self.sizes[n]
        for scope in reversed(self.scopes):
            if operand in scope:
                return scope[operand]
        return None

    def register(self, operand: str) -> str:
        """A register that may be written."""
        named = self._named(operand)
        if named is None:
            raise Unknown(f"the register {operand}")
        return named[0]

    def size(self, operand: str) -> int:
        """Its bytes; 0 of a constant and of a predicate."""
        named = self._named(operand)
        return named[1] if named else 0

    def predicate(self, operand: str) -> str:
        """A bool."""
        if operand.startswith("!"):
            return f"!{self.predicate(operand[1:].strip())}"
        return self.register(operand)

    def value(self, operand: str, kind: str) -> str:
        """What is read, as C++'s ``kind``."""
        named = self._named(operand)
        if named and operand.startswith("\x01") and named[1] == 0:  # a constant
            return f"static_cast<{kind}>({named[0]})"
        if named:
            return f"{NAMESPACE}as<{kind}>({named[0]})"
        if (read := special(operand)) is not None:
            return f"static_cast<{kind}>({read})"
        return literal(operand, kind)

    def set(self, operand: str, value: str) -> str:
        """The assignment; of "_" nothing is kept."""
        if operand == "_":
            return f"(void)({value});"
        return f"{NAMESPACE}set({self.register(operand)}, {value});"

    def address(self, operand: str, space: str) -> str:
        """A pointer: ``[register + offset]`` of a state space, or "" for a generic address."""
        match = re.fullmatch(r"\[\s*([^\s+\-\]]+)\s*(?:([+-])\s*(-?\w+|\x01\d+))?\s*\]", operand)
        if match is None:
            raise Unknown(f"the address {operand}")
        register = self._named(match[1])
        if register is None or register[1] not in (4, 8):
            raise Unknown(f"the address {operand}")
        where = "shared" if space.startswith("shared") else "generic"
        offset = f" {match[2]} {self.value(match[3], 'int64_t')}" if match[2] else ""
        return f"{NAMESPACE}from_{where}({register[0]}){offset}"

    # ---- Instructions. ----

    def instruction(self, i: Instruction) -> str:
        """One of them as C++ statements."""
        if i.name in _NOTHING:
            return ""
        if i.name == "bra":
            return f"goto {self._label(i.operands[0])};"
        if i.type == "pred" and i.name in ("and", "or", "xor", "not", "mov"):
            return self._of_predicates(i)
        for table in (_PLAIN, inline_memory.KNOWN):
            if i.name in table:
                return table[i.name](i)
        if i.name in ARITHMETIC:
            return self._arithmetic(i)
        raise i.unknown()

    def _of_predicates(self, i: Instruction) -> str:
        read = [self.predicate(o) for o in i.operands[1:]]
        word = {"and": " && ", "or": " || ", "xor": " != ", "not": "", "mov": ""}[i.name]
        text = f"!{read[0]}" if i.name == "not" else word.join(read)
        return f"{self.register(i.operands[0])} = {text};"

    def _arithmetic(self, i: Instruction) -> str:
        target, *given = i.operands
        expression, kinds = ARITHMETIC[i.name](i)
        if len(given) != len(kinds):
            raise i.unknown()
        names = "abcd"[: len(kinds)]
        if i.type in ("f16x2", "bf16x2"):
            half = of_type(i.type.removesuffix("x2"))
            read = "".join(", " + self.value(g, "uint32_t") for g in given)
            takes = ", ".join(f"{half} {n}" for n in names)
            call = f"{NAMESPACE}pairwise<{half}>([&]({takes}) {{ return {expression}; }}{read})"
        else:
            takes = ", ".join(f"{kind} {n}" for kind, n in zip(kinds, names, strict=True))
            values = [self.value(g, k) for g, k in zip(given, kinds, strict=True)]
            if i.flushes:
                values = [f"{NAMESPACE}flushed({v})" for v in values]
                expression = f"{NAMESPACE}flushed({expression})"
            call = f"[&]({takes}) {{ return {expression}; }}({', '.join(values)})"
        return self.set(target, call)


# ---- Those that are no arithmetic and touch no memory. ----

_COMPARISONS = {
    "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
    "lo": "<", "ls": "<=", "hi": ">", "hs": ">=",
}  # fmt: skip


def _setp(i: Instruction) -> str:
    words = [w for w in i.modifiers[:-1] if w != "ftz"]
    kind, a = of_type(i.type), i.assembler
    x, y = (f"{NAMESPACE}plain({a.value(o, kind)})" for o in i.operands[1:3])
    if i.flushes:
        x, y = (f"{NAMESPACE}flushed({v})" for v in (x, y))
    floating = "f" in i.type
    either = f"{NAMESPACE}unordered({x}, {y})"
    word = words[0] if words else ""
    if word in ("num", "nan"):
        text = either if word == "nan" else f"!{either}"
    elif floating and word.endswith("u") and word[:-1] in _COMPARISONS:
        text = f"({either} || {x} {_COMPARISONS[word[:-1]]} {y})"
    elif word in _COMPARISONS and not (floating and word in ("lo", "ls", "hi", "hs")):
        text = f"({x} {_COMPARISONS[word]} {y})"
        if floating and word == "ne":
            text = f"(!{either} && {text})"
    else:
        raise i.unknown()
    targets = [t.strip() for t in i.operands[0].split("|")]
    both = [text, f"!{text}"]
    if len(words) == 2:
        joined = {"and": "&&", "or": "||", "xor": "!="}[words[1]]
        third = a.predicate(i.operands[3])
        both = [f"({t}) {joined} {third}" for t in both]
    elif len(words) != 1 or len(i.operands) != 3:
        raise i.unknown()
    names = [f"hetkern_p{n}" for n in range(len(targets))]
    read = "".join(f"const bool {n} = {t}; " for n, t in zip(names, both, strict=False))
    return read + " ".join(
        f"{a.register(t)} = {n};" for n, t in zip(names, targets, strict=True) if t != "_"
    )


def _selp(i: Instruction) -> str:
    kind, a = of_type(i.type, bits=True), i.assembler
    target, x, y, p = i.operands
    return a.set(target, f"{a.predicate(p)} ? {a.value(x, kind)} : {a.value(y, kind)}")


def _mov(i: Instruction) -> str:
    target, source = i.operands
    size, a = BYTES.get(i.type, 0), i.assembler
    if not size or len(i.modifiers) != 1:
        raise i.unknown()
    kind = f"uint{8 * size}_t"
    if source.startswith("{"):
        parts = split(source[1:-1])
        part = 8 * size // len(parts)
        text = " | ".join(
            f"static_cast<{kind}>(static_cast<{kind}>({a.value(p, f'uint{part}_t')}) << {part * n})"
            for n, p in enumerate(parts)
        )
        return a.set(target, f"static_cast<{kind}>({text})")
    if target.startswith("{"):
        parts = split(target[1:-1])
        part = 8 * size // len(parts)
        sets = (
            a.set(p, f"static_cast<uint{part}_t>(hetkern_whole >> {part * n})")
            for n, p in enumerate(parts)
        )
        return f"const {kind} hetkern_whole = {a.value(source, kind)}; " + " ".join(sets)
    if i.type in ("f32", "f64") and not a.size(source):
        kind = of_type(i.type)
    return a.set(target, a.value(source, kind))


_WAYS = {"n": "nearest", "z": "zero", "m": "down", "p": "up"}


def _cvt(i: Instruction) -> str:
    *words, to, have = i.modifiers
    a, target = i.assembler, i.operands[0]
    if to == "tf32" and have == "f32" and words in (["rna"], ["rna", "satfinite"]):
        return a.set(target, f"{NAMESPACE}to_tf32({a.value(i.operands[1], 'uint32_t')})")
    way, whole = "nearest", False
    for word in words:
        if match := re.fullmatch(r"r([nzmp])(i?)", word):
            way, whole = _WAYS[match[1]], bool(match[2])
        elif word not in ("ftz", "sat"):
            raise i.unknown()
    integer = to[0] in "su" and have[0] in "su"
    if not integer and not whole and way in ("down", "up"):
        raise i.unknown()
    ends = f", {NAMESPACE}Way::{way}, {str(whole).lower()}, {str('sat' in words).lower()})"

    def number(operand: str, wanted: str) -> str:
        read = a.value(operand, of_type(have))
        if "ftz" in words and have == "f32":
            read = f"{NAMESPACE}flushed({read})"
        made = f"{NAMESPACE}number<{of_type(wanted)}>({read}{ends}"
        return f"{NAMESPACE}flushed({made})" if "ftz" in words and wanted == "f32" else made

    if to in ("f16x2", "bf16x2") and have == "f32":
        high, low = (number(o, to.removesuffix("x2")) for o in i.operands[1:3])
        return a.set(target, f"{NAMESPACE}packed({low}, {high})")
    return a.set(target, number(i.operands[1], to))


def _shfl(i: Instruction) -> str:
    if i.modifiers[0] != "sync" or i.type != "b32" or len(i.operands) != 5:
        raise i.unknown()
    a = i.assembler
    target, *inside = (t.strip() for t in i.operands[0].split("|"))
    by, clamp, mask = (a.value(o, "uint32_t") for o in i.operands[2:5])
    call = (
        f"{NAMESPACE}shuffle({NAMESPACE}Shuffle::{i.modifiers[1]}, "
        f"{a.value(i.operands[1], 'uint32_t')}, {by}, {clamp}, {mask}, hetkern_inside)"
    )
    kept = f"{a.register(inside[0])} = hetkern_inside;" if inside and inside[0] != "_" else ""
    return f"bool hetkern_inside = false; {a.set(target, call)} {kept}"


def _vote(i: Instruction) -> str:
    a = i.assembler
    target, given, mask = i.operands
    p, lanes = a.predicate(given), a.value(mask, "uint32_t")
    if i.modifiers == ["sync", "ballot", "b32"]:
        return a.set(target, f"::__ballot_sync({lanes}, {p})")
    call = {"all": "__all_sync", "any": "__any_sync"}
    if i.modifiers[0] != "sync" or i.modifiers[1] not in call:
        raise i.unknown()
    return f"{a.register(target)} = ::{call[i.modifiers[1]]}({lanes}, {p});"


def _bar(i: Instruction) -> str:
    a = i.assembler
    words = [w for w in i.modifiers if w not in ("cta", "aligned")]
    if words == ["warp", "sync"]:
        return f"::__syncwarp({a.value(i.operands[0], 'uint32_t')});"
    if i.name == "barrier" and words and words[0] == "cluster":
        if len(words) > 1 and words[1] in ("arrive", "wait") and "relaxed" not in words:
            return f"::hetkern::emulation::cluster_{words[1]}(::hetkern::emulation::Site::here());"
        raise i.unknown()
    if words != ["sync"] or len(i.operands) != 1:
        raise i.unknown()
    return f"{NAMESPACE}whole_block({a.value(i.operands[0], 'uint32_t')});"


def _redux(i: Instruction) -> str:
    if i.modifiers[0] != "sync" or i.type not in ("u32", "s32", "b32"):
        raise i.unknown()
    a, kind = i.assembler, "int" if i.type == "s32" else "unsigned"
    value, mask = a.value(i.operands[1], kind), a.value(i.operands[2], "unsigned")
    return a.set(i.operands[0], f"::__reduce_{i.modifiers[1]}_sync({mask}, {value})")


def _elect(i: Instruction) -> str:
    a, (target, inside) = i.assembler, i.operands[0].split("|")
    mask = a.value(i.operands[1], "uint32_t")
    first = f"static_cast<uint32_t>(__builtin_ctz({mask}))"
    lane = "::hetkern::emulation::current->lane"
    return (
        f"::__syncwarp({mask}); {a.set(target.strip(), first)} "
        f"{a.register(inside.strip())} = {lane} == {first};"
    )


_PLAIN = {
    "setp": _setp, "selp": _selp, "mov": _mov, "cvt": _cvt, "shfl": _shfl, "vote": _vote,
    "bar": _bar, "barrier": _bar, "redux": _redux, "elect": _elect,
    "trap": lambda i: "::__trap();",
    "activemask": lambda i: i.assembler.set(i.operands[0], "::__activemask()"),
    "nanosleep": lambda i: "::__nanosleep(0);",
    "createpolicy": lambda i: i.assembler.set(i.operands[0], "uint64_t{}"),
}  # fmt: skip
