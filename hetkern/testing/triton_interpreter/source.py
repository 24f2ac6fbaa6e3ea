"""A kernel's source, rewritten so that Python runs what Triton's compiler would make of it.

Triton compiles a kernel's syntax tree; a plain call of the function means something else wherever
Python's own rules decide: ``and``, ``or``, ``not`` and a condition ask for an object's truth, a
number that is assigned stays Python's, a loop's counter too, and a name lives until the function
ends. Each such place becomes a call of control, which has the compiler's rule, and what the
compiler does not take becomes an error there, raised only if it is reached: a branch that a
constant switches off is not compiled either.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from hetkern.testing.triton_interpreter.suspicion import of_source

RUNTIME = "__hetkern__"  # the name under which a rewritten kernel finds control
_REPLACED = {"min": "least", "max": "greatest", "range": "counting"}


def rewrite(
    tree: ast.Module, outside: Mapping[str, Any], supported: Callable[..., bool]
) -> frozenset[str]:
    """Rewrite the one function of ``tree``; what the compiler may get wrong in it (suspicion).

    ``outside`` has the names it sees, ``supported`` tells which nodes the compiler takes.
    """
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list = []
    suspicious = of_source(definition)
    _Rewriter(definition, outside, supported).body_of(definition)
    ast.fix_missing_locations(tree)
    return suspicious


def _names(nodes: Iterable[ast.AST]) -> set[str]:
    """The names that these statements assign."""
    return {
        n.id
        for node in nodes
        for n in ast.walk(node)
        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }


def _load(name: str) -> ast.expr:
    return ast.Name(name, ast.Load())


def _call(function: str, *arguments: ast.expr) -> ast.expr:
    return ast.Call(ast.Attribute(_load(RUNTIME), function, ast.Load()), list(arguments), [])


def _later(value: ast.expr) -> ast.expr:
    nothing = ast.arguments([], [], None, [], [], None, [])
    return ast.Lambda(nothing, value)


def _assign(name: str, value: ast.expr) -> ast.stmt:
    return ast.Assign([ast.Name(name, ast.Store())], value)


def _refusal(what: str) -> ast.expr:
    return _call("refuse", ast.Constant(what))


class _Rewriter(ast.NodeTransformer):
    """Statements become lists of statements; ``bound`` are the names that surely have a value."""

    def __init__(
        self,
        definition: ast.FunctionDef,
        outside: Mapping[str, Any],
        supported: Callable[..., bool],
    ) -> None:
        self.outside, self.supported = outside, supported
        self.bound = {a.arg for a in (*definition.args.posonlyargs, *definition.args.args)}
        self.local = self.bound | _names(definition.body)
        self.count = 0

    def body_of(self, definition: ast.FunctionDef) -> None:
        definition.body = self.block(definition.body)

    def block(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        out: list[ast.stmt] = []
        for statement in statements:
            made = self.visit(statement)
            for one in made if isinstance(made, list) else [made]:
                out.append(ast.copy_location(one, statement))
        return out

    def visit(self, node: ast.AST) -> Any:
        """Replace a node, or what the compiler has no rule for by an error."""
        if isinstance(node, ast.expr | ast.stmt) and not self.supported(node):
            what = f"{type(node).__name__.lower()!r} is no part of Triton's language"
            refused = _refusal(what)
            return ast.copy_location(
                refused if isinstance(node, ast.expr) else ast.Expr(refused), node
            )
        made = super().visit(node)
        if isinstance(made, ast.expr):
            ast.copy_location(made, node)
        return made

    def fresh(self, what: str) -> str:
        self.count += 1
        return f"__hetkern_{what}_{self.count}"

    # ---- Expressions. ----------------------------------------------------------------------------

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in self.local or not isinstance(node.ctx, ast.Load):
            return node
        if node.id in self.outside:
            if isinstance(self.outside[node.id], int | float | str | list | dict):
                known = f"{node.id} = tl.constexpr(…)"
                return _refusal(f"{node.id!r} is a global variable, and no constant as {known} is")
            return node
        if node.id in _REPLACED and hasattr(builtins, node.id):
            return ast.Attribute(_load(RUNTIME), _REPLACED[node.id], ast.Load())
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        word = "conjunction" if isinstance(node.op, ast.And) else "disjunction"
        return _call(word, *(_later(self.visit(value)) for value in node.values))

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        node.operand = self.visit(node.operand)
        return _call("negation", node.operand) if isinstance(node.op, ast.Not) else node

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        if len(node.ops) != 1:
            return _refusal(
                f"a chained comparison, {ast.unparse(node)!r}: write two of them and '&' between"
            )
        if isinstance(node.ops[0], ast.In | ast.NotIn):
            return _refusal(f"{ast.unparse(node)!r}: 'in' is no part of Triton's language")
        return self.generic_visit(node)  # type: ignore[return-value]

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        free = [
            ast.Constant(not any(isinstance(n, ast.Call | ast.Subscript) for n in ast.walk(part)))
            for part in (node.body, node.orelse)
        ]
        parts = [_later(self.visit(part)) for part in (node.body, node.orelse)]
        return _call("choice", self.visit(node.test), *parts, *free)

    # ---- Assignments. ----------------------------------------------------------------------------

    def visit_Assign(self, node: ast.Assign) -> Any:
        value = self.visit(node.value)
        if len(node.targets) != 1:
            return ast.Expr(_refusal("an assignment to several targets, 'a = b = …'"))
        return self.assign(node.targets[0], _call("assigned", value))

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        if not isinstance(node.target, ast.Name):
            return self.assign(node.target, node.value)
        old = ast.copy_location(_load(node.target.id), node)
        value = ast.copy_location(ast.BinOp(old, node.op, node.value), node)
        return self.assign(node.target, _call("assigned", self.visit(value)))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        if node.value is None:
            return ast.Pass()
        return self.assign(node.target, _call("annotated", node.annotation, self.visit(node.value)))

    def assign(self, target: ast.expr, value: ast.expr) -> ast.stmt:
        for part in ast.walk(target):
            if isinstance(part, ast.Subscript | ast.Attribute | ast.Starred):
                what = f"an assignment to {ast.unparse(target)!r}: a block's elements, attributes"
                return ast.Expr(_refusal(f"{what} and starred names cannot be assigned"))
        self.bound |= _names([target])
        return ast.Assign([target], value)

    # ---- Statements. -----------------------------------------------------------------------------

    def visit_Assert(self, node: ast.Assert) -> ast.stmt:
        text = node.msg if node.msg is not None else ast.Constant(ast.unparse(node.test))
        return ast.Expr(_call("claim", self.visit(node.test), _later(self.visit(text))))

    def visit_If(self, node: ast.If) -> Any:
        before, (then, other) = set(self.bound), (_names(node.body), _names(node.orelse))
        acts = any(
            isinstance(n, ast.Call) for part in (*node.body, *node.orelse) for n in ast.walk(part)
        )
        test = _call("truth", self.visit(node.test), ast.Constant(acts))
        node.body = self.block(node.body)
        after_then, self.bound = self.bound, set(before)
        node.orelse = self.block(node.orelse)
        self.bound &= after_then
        kept, lost = (then | other) & before & self.bound, (then ^ other) - before
        if not kept and not lost:
            node.test = test
            return node
        # Both branches are compiled, unless the condition is a constant: a name keeps its type, and
        # lives on only if it had a value before or gets one in both.
        result = self.fresh("if")
        node.test = _load(result)
        begin = [_assign(result, test), *self.remember(result, kept, lost)]
        return [*begin, node, *self.compare(result, kept, "branch"), *self.forget(result, lost)]

    def visit_While(self, node: ast.While) -> Any:
        before, node.test = set(self.bound), _call("condition", self.visit(node.test))
        return self.loop(node, self.fresh("while"), _call("a_loop"), before, set())

    def visit_For(self, node: ast.For) -> Any:
        before, result = set(self.bound), self.fresh("for")
        over = _call("steps", self.visit(node.iter))
        if not isinstance(node.target, ast.Name):
            return ast.Expr(_refusal("a loop over more than one name"))
        node.iter = _load(result)
        return self.loop(node, result, over, before, {node.target.id})

    def loop(
        self,
        node: ast.For | ast.While,
        result: str,
        over: ast.expr,
        before: set[str],
        counter: set[str],
    ) -> list[ast.stmt]:
        """A loop's names keep their types, and those that begin in it end with it."""
        if node.orelse:
            return [ast.Expr(_refusal("'else' after a loop"))]
        names = _names(node.body) - counter
        self.bound = before | counter
        node.body = self.block(node.body)
        self.bound = (before & self.bound) - counter
        kept, lost = names & self.bound, names - before
        node.body += self.compare(result, kept, "loop")
        begin = [_assign(result, over), *self.remember(result, kept, lost)]
        return [*begin, node, *self.forget(result, lost, counter)]

    def remember(self, result: str, kept: set[str], lost: set[str]) -> list[ast.stmt]:
        """Before: the types of the names that have a value, and which of the others have one."""
        out: list[ast.stmt] = []
        if kept:
            types_of = _call("types", *(_load(name) for name in sorted(kept)))
            out.append(_assign(result + "_types", types_of))
        if lost:
            names = ast.Call(_load("set"), [ast.Call(_load("locals"), [], [])], [])
            out.append(_assign(result + "_names", names))
        return out

    def compare(self, result: str, kept: set[str], where: str) -> list[ast.stmt]:
        if not kept:
            return []
        names = sorted(kept)
        known = [ast.Constant(where), ast.Constant(" ".join(names)), _load(result + "_types")]
        return [ast.Expr(_call("same", _load(result), *known, *map(_load, names)))]

    def forget(self, result: str, lost: set[str], always: Iterable[str] = ()) -> list[ast.stmt]:
        """After: a name that began inside is unknown, if what it began in was compiled as such."""
        drop: list[ast.stmt] = []
        for name in sorted(lost.union(always)):
            ends: list[ast.stmt] = [
                _assign(name, ast.Constant(None)),
                ast.Delete([ast.Name(name, ast.Del())]),
            ]
            if name in lost:
                new = ast.Compare(ast.Constant(name), [ast.NotIn()], [_load(result + "_names")])
                drop.append(ast.If(new, ends, []))
            else:
                drop += ends
        if not drop:
            return []
        return [ast.If(ast.Attribute(_load(result), "compiled", ast.Load()), drop, [])]
