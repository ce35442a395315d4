"""Expressions as steps: what they are made of is computed first, from left to right, each in a step of its own."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from .source import Node, NotSplitError
from .steps import (
    CALL,
    CAUGHT,
    CONTAINS,
    ENTER,
    GET,
    ITEM,
    MARK,
    Label,
    Step,
    assigned,
    called,
    loaded,
    slice_of,
)

_SEES_VARIABLES = {"locals", "vars", "eval", "exec", "dir"}


@dataclass
class Expressions:
    """Walks the expressions of a function.

    Attributes:
        steps: the flat form.
            body: the other one: the statements of the block that the walk is in.
        within: the variables that hold the contexts around.
        loops: where ``break`` and ``continue`` go, innermost last.
        whole: why samples cannot part in the next step; "" if they can.
        at: the statement that the walk is in.
        line: what tells the line of the next step.
    """

    func: Node
    variables: set[str]
    class_name: str
    steps: list[Step] = field(default_factory=list)
    body: list[ast.stmt] = field(default_factory=list)
    within: tuple[str, ...] = ()
    loops: list[tuple[Label, Label]] = field(default_factory=list)
    made: int = 0
    whole: str = ""
    at: Any = None
    line: Any = None

    # ---- steps

    def do(self, node: ast.stmt, whole: str = "") -> None:
        """Add a statement as a step."""
        ast.copy_location(node, self.line)
        self.mark()
        self.body.append(node)
        self.steps.append(Step("do", node, within=self.within, whole=whole or self.whole))
        self.whole = ""

    def mark(self) -> None:
        """Say in the other form which step comes."""
        self.body.append(ast.copy_location(assigned(MARK, ast.Constant(len(self.steps))), self.line))

    def jump(self, to: Label) -> None:
        """Go on elsewhere."""
        self.steps.append(Step("jump", targets=(to,)))

    def place(self, label: Label) -> None:
        """Let a label be the next step."""
        label.step = len(self.steps)

    def returns(self, value: ast.expr) -> None:
        """End the function."""
        self.steps.append(Step("return", value, within=self.within))
        self.body.append(ast.copy_location(ast.Return(value), self.at))

    def branch(self, test: ast.expr, then: Callable[[], None], orelse: Callable[[], None]) -> None:
        """Go one of two ways, which meet again."""
        hit, miss, out = Label(), Label(), Label()
        at, outer = self.at, self.body
        self.mark()
        self.steps.append(Step("branch", test, (hit, miss), self.within))
        self.body = []
        self.place(hit)
        then()
        self.jump(out)
        hits, self.body = self.body or [ast.Pass()], []
        self.place(miss)
        orelse()
        self.place(out)
        node = ast.If(test, hits, self.body)
        self.body = outer
        self.at = at
        self.body.append(ast.copy_location(node, at))

    def variable(self) -> str:
        """Return the name of a new variable."""
        self.made += 1
        name = f"_vmap_{self.made}"
        self.variables.add(name)
        return name

    # ---- expressions

    def atom(self, e: ast.expr) -> ast.expr:
        """Return a variable or a constant that is an expression's value, after the steps that compute it."""
        if isinstance(e, ast.Constant) or (isinstance(e, ast.Name) and not self.changes_names):
            return e
        name = self.variable()
        self.into(name, e)
        return loaded(name)

    def own(self, e: ast.expr) -> ast.expr:
        """Return a variable of the function, or a constant, that is an expression's value."""
        found = self.atom(e)
        if isinstance(found, ast.Name) and found.id not in self.variables:
            name = self.variable()
            self.do(assigned(name, found))
            found = loaded(name)
        return found

    def into(self, name: str, e: ast.expr) -> None:
        """Add the steps that give a variable the value of an expression."""
        self.line = e if hasattr(e, "lineno") else self.line
        match e:
            case ast.BoolOp(op, [first, *rest]):
                self.into(name, first)
                for other in rest:
                    ways = [partial(self.into, name, other), nothing]
                    self.branch(loaded(name), *(ways if isinstance(op, ast.And) else reversed(ways)))
            case ast.IfExp(test, body, orelse):
                self.branch(self.own(test), lambda: self.into(name, body), lambda: self.into(name, orelse))
            case ast.Compare(left, [op, *ops], [right, *others]) if ops:
                a, b = self.atom(left), self.atom(right)
                self.do(assigned(name, compared(a, b, op)))
                further = ast.copy_location(ast.Compare(b, ops, others), e)
                self.branch(loaded(name), lambda: self.into(name, further), nothing)
            case _:
                self.do(assigned(name, self.value(e)))

    def atoms(self, expressions: Sequence[ast.expr | None]) -> list[Any]:
        """Return variables and constants for expressions, computed from left to right; None for None."""
        found: list[Any] = []
        for i, e in enumerate(expressions):
            if e is None or isinstance(e, ast.Starred):
                found.append(None if e is None else ast.Starred(self.atom(e.value), ast.Load()))
                continue
            is_global = isinstance(e, ast.Name) and e.id not in self.variables
            if is_global and any(
                isinstance(x, ast.Call) for later in expressions[i + 1 :] if later for x in ast.walk(later)
            ):
                name = self.variable()  # a call that comes later may give it another value
                self.do(assigned(name, e))
                e = loaded(name)
            found.append(self.atom(e))
        return found

    def value(self, e: ast.expr) -> ast.expr:
        """Return an expression of one operation on variables and constants, after the steps before it."""
        match e:
            case ast.Constant() | ast.Name():
                return e
            case ast.BinOp(left, op, right):
                a, b = self.atoms([left, right])
                return ast.BinOp(a, op, b)
            case ast.UnaryOp(op, operand):
                return ast.UnaryOp(op, self.atom(operand))
            case ast.Compare(left, [op], [right]):
                a, b = self.atoms([left, right])
                return compared(a, b, op)
            case ast.Call():
                return self.call(e)
            case ast.Attribute(value, name):
                return ast.Attribute(self.atom(value), self.mangled(name), ast.Load())
            case ast.Subscript(value, index):
                if isinstance(index, ast.Slice):
                    a, *ends = self.atoms([value, index.lower, index.upper, index.step])
                    return called(GET, a, slice_of(ends))
                a, b = self.atoms([value, index])
                return called(GET, a, b)
            case ast.Slice(lower, upper, step):
                return slice_of(self.atoms([lower, upper, step]))
            case ast.Tuple(elements) | ast.List(elements):
                return type(e)(self.atoms(elements), ast.Load())
            case ast.Set(elements):
                return ast.Set(self.atoms(elements))
            case ast.Dict(keys, values):
                pairs = self.atoms([x for pair in zip(keys, values, strict=True) for x in pair])
                return ast.Dict(pairs[::2], pairs[1::2])
            case ast.NamedExpr(target, value):
                self.into(target.id, value)
                return loaded(target.id)
            case ast.BoolOp() | ast.IfExp() | ast.Compare():
                return self.atom(e)
            case ast.Yield() | ast.YieldFrom() | ast.Await():
                raise NotSplitError("it is a generator or a coroutine")
        return self.opaque(e)

    def call(self, e: ast.Call) -> ast.expr:
        """Return a call, as one that `calls` makes."""
        match e:
            case ast.Call(ast.Name("super"), [], []) if "__class__" not in self.variables:
                return ast.Call(loaded("super"), [loaded("__class__"), loaded(self.func.args.args[0].arg)], [])
            case ast.Call(ast.Name(name)) if name in _SEES_VARIABLES - self.variables:
                raise NotSplitError(f"it calls {name}()")
            case ast.Call(ast.Attribute(value, "item"), [], []):
                return called(ITEM, self.atom(value))
        keywords = [k.value for k in e.keywords]
        func, *rest = self.atoms([e.func, *e.args, *keywords])
        args, values = rest[: len(e.args)], rest[len(e.args) :]
        named = [ast.keyword(k.arg, v) for k, v in zip(e.keywords, values, strict=True)]
        return ast.Call(loaded(CALL), [func, *args], named)

    def opaque(self, e: Any) -> Any:
        """Return an expression or statement as it is, but with calls that `calls` makes; these cannot be made twice."""
        if any(isinstance(x, ast.Call) for x in ast.walk(e)):
            self.whole = "it is in a comprehension or a format string"
        return _Calls(self).visit(e)

    @property
    def changes_names(self) -> bool:
        """Whether the statement assigns within an expression (``:=``)."""
        return any(isinstance(x, ast.NamedExpr) for x in ast.walk(self.at))

    def mangled(self, name: str) -> str:
        """Return a private name as its class has it."""
        private = name.startswith("__") and not name.endswith("__") and self.class_name
        return f"_{self.class_name.lstrip('_')}{name}" if private else name


class _Calls(ast.NodeTransformer):
    """Lets calls within an expression or statement go through `calls`; functions defined in it are left alone."""

    def __init__(self, lowering: Expressions) -> None:
        self.lowering = lowering

    def visit_Call(self, node: ast.Call) -> Any:
        match node:
            case ast.Call(ast.Name(name)) if name in _SEES_VARIABLES | {"super"} - self.lowering.variables:
                raise NotSplitError(f"it calls {name}() within an expression")
        node = self.generic_visit(node)  # type: ignore[assignment]
        return ast.copy_location(ast.Call(loaded(CALL), [node.func, *node.args], node.keywords), node)

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        node.attr = self.lowering.mangled(node.attr)
        return self.generic_visit(node)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> Any:
        node = self.generic_visit(node)  # type: ignore[assignment]
        node.body.insert(0, ast.copy_location(ast.Expr(called(CAUGHT)), node))
        return node

    def visit_Try(self, node: ast.Try) -> Any:
        node = self.generic_visit(node)  # type: ignore[assignment]
        if node.finalbody:
            node.finalbody.insert(0, ast.copy_location(ast.Expr(called(CAUGHT)), node))
        return node

    def visit_withitem(self, node: ast.withitem) -> Any:
        node = self.generic_visit(node)  # type: ignore[assignment]
        node.context_expr = ast.copy_location(called(ENTER, node.context_expr), node.context_expr)
        return node

    def _alone(self, node: Any) -> Any:
        return node

    visit_Lambda = visit_FunctionDef = visit_ClassDef = visit_AsyncFunctionDef = _alone


def nothing() -> None:
    """Add no step."""


def compared(a: ast.expr, b: ast.expr, op: ast.cmpop) -> ast.expr:
    """Return a comparison of variables."""
    if isinstance(op, ast.In | ast.NotIn):
        found = called(CONTAINS, a, b)
        return found if isinstance(op, ast.In) else ast.UnaryOp(ast.Not(), found)
    return ast.Compare(a, [op], [b])
