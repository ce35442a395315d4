"""A function's syntax tree as steps between which groups of samples can part and meet.

Every operation becomes a step of its own, whose operands are variables: ``y = f(x.item()) + 1`` becomes ``a = item(x)``,
``b = call(f, a)``, ``y = b + 1``. So nothing is half done where samples part, and nothing has to be done twice. The steps come in
two forms, made in one walk: a flat list with jumps, and the function as it was, with a mark before each step (`MARK`) that tells
where it is.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .source import Node, NotSplitError

MARK = "_vmap_step"
CALL, GET, SET, ITEM, ITER, NEXT, END, ENTER, CAUGHT, SLICE = HELPERS = (
    "_vmap_call", "_vmap_get", "_vmap_set", "_vmap_item", "_vmap_iter", "_vmap_next", "_vmap_end", "_vmap_enter", "_vmap_caught",
    "_vmap_slice",
)
SELF = "_vmap_self"  # fmt: skip
_SEES_VARIABLES = {"locals", "vars", "eval", "exec", "dir"}


class Label:
    """A place in the list of steps that is jumped to."""

    step = -1


@dataclass
class Step:
    """One step.

    Attributes:
        kind: ``"do"`` a statement, ``"branch"`` by a variable's truth to the first or the second target, ``"jump"``, ``"return"``.
        node: the statement; of a branch or return the expression.
        targets: where it goes on.
        within: the variables that hold the contexts it runs in, outermost first.
        whole: why samples cannot part in it, if they cannot; "" else.
    """

    kind: str
    node: Any = None
    targets: tuple[Label, ...] = ()
    within: tuple[str, ...] = ()
    whole: str = ""


@dataclass
class Lowering:
    """Walks a function's syntax tree.

    Attributes:
        steps: the flat form.
            body: the other one: the statements of the block that the walk is in.
        within: the variables that hold the contexts around.
        loops: where ``break`` and ``continue`` go, innermost last.
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
    at: Any = None
    line: Any = None

    def run(self) -> None:
        """Fill `steps` and `body`."""
        body = self.func.body
        self.at = self.line = self.func
        self.statements(body if isinstance(body, list) else [ast.copy_location(ast.Return(body), body)])
        self.returns(ast.Constant(None))

    # ---- steps

    def do(self, node: ast.stmt, whole: str = "") -> None:
        """Add a statement as a step."""
        ast.copy_location(node, self.line)
        self.mark()
        self.body.append(node)
        self.steps.append(Step("do", node, within=self.within, whole=whole))

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
                    go_on: Any = lambda other=other: self.into(name, other)
                    ways = (go_on, _nothing) if isinstance(op, ast.And) else (_nothing, go_on)
                    self.branch(loaded(name), *ways)
            case ast.IfExp(test, body, orelse):
                self.branch(self.own(test), lambda: self.into(name, body), lambda: self.into(name, orelse))
            case ast.Compare(left, [op, *ops], [right, *others]) if ops:
                a, b = self.atom(left), self.atom(right)
                self.do(assigned(name, ast.Compare(a, [op], [b])))
                rest = ast.copy_location(ast.Compare(b, ops, others), e)
                self.branch(loaded(name), lambda: self.into(name, rest), _nothing)
            case _:
                self.do(assigned(name, self.value(e)))

    def atoms(self, expressions: Sequence[ast.expr | None]) -> list[Any]:
        """Return variables and constants for expressions, computed from left to right; None for None."""
        found = []
        for i, e in enumerate(expressions):
            if isinstance(e, ast.Starred):
                found.append(ast.Starred(self.atom(e.value), ast.Load()))
                continue
            is_global = isinstance(e, ast.Name) and e.id not in self.variables
            if is_global and any(isinstance(x, ast.Call) for later in expressions[i + 1 :] if later for x in ast.walk(later)):
                name = self.variable()  # a call that comes later may give it another value
                self.do(assigned(name, e))
                e = loaded(name)
            found.append(None if e is None else self.atom(e))
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
                return ast.Compare(a, [op], [b])
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
        """Return an expression or statement as it is, but with calls that `calls` makes."""
        return _Calls(self).visit(e)

    @property
    def changes_names(self) -> bool:
        """Whether the statement assigns within an expression (``:=``)."""
        return any(isinstance(x, ast.NamedExpr) for x in ast.walk(self.at))

    def mangled(self, name: str) -> str:
        """Return a private name as its class has it."""
        private = name.startswith("__") and not name.endswith("__") and self.class_name
        return f"_{self.class_name.lstrip('_')}{name}" if private else name

    # ---- statements

    def statements(self, body: Sequence[ast.stmt]) -> None:
        """Add the steps of a block."""
        for s in body:
            self.at = self.line = s
            getattr(self, f"on_{type(s).__name__}", self.on_other)(s)

    def on_other(self, s: ast.stmt) -> None:
        """A statement of a kind that is one step, in which samples cannot part."""
        kind = type(s).__name__.lower()
        if isinstance(s, ast.Global | ast.Nonlocal):
            raise NotSplitError(f"it has a {kind} variable")
        if any(isinstance(x, ast.Yield | ast.YieldFrom | ast.Await) for x in ast.walk(s)):
            raise NotSplitError("it is a generator or a coroutine")
        leaves = "which leaves it by a jump" if _jumps(s) else ""
        self.do(self.opaque(s), whole=f"it is in a {kind} statement{leaves and ', '}{leaves}")

    def on_Pass(self, s: ast.Pass) -> None:
        """Nothing."""

    def on_Import(self, s: ast.Import | ast.ImportFrom) -> None:
        """An import, as it is."""
        self.do(s)

    on_ImportFrom = on_Import

    def on_FunctionDef(self, s: ast.FunctionDef | ast.ClassDef) -> None:
        """A definition, as it is."""
        self.do(s)

    on_ClassDef = on_FunctionDef

    def on_Expr(self, s: ast.Expr) -> None:
        """An expression for what it does."""
        if not isinstance(s.value, ast.Constant):
            self.do(ast.Expr(self.value(s.value)))

    def on_Assign(self, s: ast.Assign) -> None:
        """``target = value``."""
        first, *others = s.targets
        if isinstance(first, ast.Name):
            if isinstance(s.value, ast.IfExp | ast.BoolOp) or (isinstance(s.value, ast.Compare) and s.value.ops[1:]):
                value = self.atom(s.value)  # not piece by piece: the value may name the target
                self.do(assigned(first.id, value))
            else:
                self.into(first.id, s.value)
            for target in others:
                self.store(target, loaded(first.id))
        else:
            value = self.atom(s.value)
            for target in s.targets:
                self.store(target, value)

    def on_AnnAssign(self, s: ast.AnnAssign) -> None:
        """``target: type = value``."""
        if s.value is not None:
            self.on_Assign(ast.copy_location(ast.Assign([s.target], s.value), s))

    def store(self, target: ast.expr, value: ast.expr) -> None:
        """Add the steps that store a value."""
        match target:
            case ast.Name():
                self.do(assigned(target.id, value))
            case ast.Attribute(of, name):
                self.do(ast.Assign([ast.Attribute(self.atom(of), self.mangled(name), ast.Store())], value))
            case ast.Subscript(of, index):
                self.do(ast.Expr(called(SET, *self.atoms([of, index]), value)))
            case ast.Tuple(elements) | ast.List(elements):
                later, names = [], []
                for element in elements:
                    starred = isinstance(element, ast.Starred)
                    inner: Any = element.value if isinstance(element, ast.Starred) else element
                    if not isinstance(inner, ast.Name):
                        later.append((inner, self.variable()))
                        inner = ast.Name(later[-1][1], ast.Store())
                    names.append(ast.Starred(inner, ast.Store()) if starred else inner)
                self.do(ast.Assign([ast.Tuple(names, ast.Store())], value))
                for inner, name in later:
                    self.store(inner, loaded(name))
            case _:
                raise NotSplitError(f"it assigns to a {type(target).__name__}")

    def on_AugAssign(self, s: ast.AugAssign) -> None:
        """``target += value``."""
        match s.target:
            case ast.Name():
                self.do(ast.AugAssign(s.target, s.op, self.atom(s.value)))
            case ast.Attribute(of, name):
                of, name = self.atom(of), self.mangled(name)
                now = self.atom(ast.Attribute(of, name, ast.Load()))
                self.do(ast.AugAssign(stored(now), s.op, self.atom(s.value)))
                self.do(ast.Assign([ast.Attribute(of, name, ast.Store())], now))
            case ast.Subscript(of, index):
                of, index = self.atoms([of, index])
                now = loaded(self.variable())
                self.do(assigned(now.id, called(GET, of, index)))
                self.do(ast.AugAssign(stored(now), s.op, self.atom(s.value)))
                self.do(ast.Expr(called(SET, of, index, now)))

    def on_Delete(self, s: ast.Delete) -> None:
        """``del target``."""
        for target in s.targets:
            match target:
                case ast.Name():
                    self.do(ast.Delete([target]))
                case ast.Subscript(of, index):
                    of, index = self.atoms([of, index])
                    self.do(ast.Delete([ast.Subscript(of, index, ast.Del())]))
                case ast.Attribute(of, name):
                    self.do(ast.Delete([ast.Attribute(self.atom(of), self.mangled(name), ast.Del())]))

    def on_Raise(self, s: ast.Raise) -> None:
        """``raise error``."""
        self.do(ast.Raise(*self.atoms([s.exc, s.cause])))

    def on_Assert(self, s: ast.Assert) -> None:
        """``assert test, message``."""
        args = [] if s.msg is None else [s.msg]
        error = ast.Raise(ast.Call(loaded("AssertionError"), args, []), None)
        self.branch(self.own(s.test), _nothing, lambda: self.on_Raise(ast.copy_location(error, s)))

    def on_Return(self, s: ast.Return) -> None:
        """``return value``."""
        match s.value:
            case None:
                self.returns(ast.Constant(None))
            case ast.IfExp(test, body, orelse):
                ways = [ast.copy_location(ast.Return(x), s) for x in (body, orelse)]
                self.branch(self.own(test), *(lambda way=way: self.on_Return(way) for way in ways))  # type: ignore[misc]
            case ast.Call(ast.Name(name)) if name == getattr(self.func, "name", "") and (given := self.given(s.value)):
                self.again(name, given)
                self.returns(self.own(s.value))
            case _:
                self.returns(self.own(s.value))

    def given(self, call: ast.Call) -> list[tuple[str, ast.expr]]:
        """Return what a call of the function itself gives its arguments; nothing if that is not to be seen."""
        a = self.func.args
        names = [x.arg for x in (*a.posonlyargs, *a.args)]
        if a.vararg or a.kwarg or a.kwonlyargs or any(isinstance(x, ast.Starred) for x in call.args):
            return []
        given: dict[Any, ast.expr] = dict(zip(names, call.args, strict=False))
        given.update({k.arg: k.value for k in call.keywords})
        if len(call.args) > len(names) or not given.keys() <= set(names) or len(given) < len(call.args) + len(call.keywords):
            return []
        defaults = ast.Attribute(loaded(SELF), "__defaults__", ast.Load())
        first = len(names) - len(a.defaults)
        for i, name in enumerate(names):
            if name not in given:
                if i < first:
                    return []
                given[name] = ast.Subscript(defaults, ast.Constant(i - first), ast.Load())
        return list(given.items())

    def again(self, name: str, given: list[tuple[str, ast.expr]]) -> None:
        """Add steps that begin the function again, where it returns a call of itself: groups meet at its first step."""
        is_self = loaded(self.variable())
        body, self.body = self.body, []
        self.do(assigned(is_self.id, ast.Compare(loaded(name), [ast.Is()], [loaded(SELF)])))
        start, other = Label(), Label()
        start.step = 0
        this = Label()
        self.steps.append(Step("branch", is_self, (this, other), self.within))
        self.place(this)
        new = [(argument, self.variable()) for argument, _ in given]
        for (_, value), (_, variable) in zip(given, new, strict=True):
            self.into(variable, value)
        for argument, variable in new:
            self.do(assigned(argument, loaded(variable)))
        self.jump(start)
        self.place(other)
        self.body = body  # the other form calls itself

    def on_If(self, s: ast.If) -> None:
        """``if``, ``elif``, ``else``."""
        self.branch(self.own(s.test), lambda: self.statements(s.body), lambda: self.statements(s.orelse))

    def on_While(self, s: ast.While) -> None:
        """``while test: ...``."""
        self.loop(s, None if isinstance(s.test, ast.Constant) and s.test.value else s.test)

    def on_For(self, s: ast.For) -> None:
        """``for target in iterable: ...``: takes the next value until it is the end."""
        iterator, value = self.variable(), self.variable()
        self.do(assigned(iterator, called(ITER, self.atom(s.iter))))
        following = called(NEXT, loaded(iterator))
        head = ast.Compare(ast.NamedExpr(ast.Name(value, ast.Store()), following), [ast.IsNot()], [loaded(END)])
        self.loop(s, head, lambda: self.store(s.target, loaded(value)))

    def loop(self, s: Any, test: ast.expr | None, first: Callable[[], None] | None = None) -> None:
        """Add the steps of a loop.

        Args:
            s: its statement.
            test: is true as long as it goes on; None for ever.
            first: adds the first steps of its body.
        """
        head, orelse, out = Label(), Label(), Label()
        ended = self.variable() if s.orelse else None
        at, outer = self.at, self.body
        if ended:
            self.do(assigned(ended, ast.Constant(False)))
        self.body = []
        self.place(head)
        if test is not None:
            if isinstance(test, ast.Compare) and isinstance(test.left, ast.NamedExpr):  # of a for statement
                self.do(assigned(test.left.target.id, test.left.value))
                name = self.variable()
                self.do(assigned(name, ast.Compare(loaded(test.left.target.id), test.ops, test.comparators)))
                answer: ast.expr = loaded(name)
            else:
                answer = self.own(test)
            body = Label()
            self.mark()
            self.steps.append(Step("branch", answer, (body, orelse), self.within))
            leave: list[ast.stmt] = [assigned(ended, ast.Constant(True))] if ended else []
            self.body.append(ast.copy_location(ast.If(ast.UnaryOp(ast.Not(), answer), [*leave, ast.Break()], []), at))
            self.place(body)
        if first is not None:
            first()
        self.loops.append((out, head))
        self.statements(s.body)
        self.loops.pop()
        self.jump(head)
        inner, self.body, self.at = self.body, outer, at
        self.body.append(ast.copy_location(ast.While(ast.Constant(True), inner, []), at))
        self.place(orelse)
        if ended:
            self.body, outer = [], self.body
            self.statements(s.orelse)
            outer.append(ast.copy_location(ast.If(loaded(ended), self.body or [ast.Pass()], []), at))
            self.body = outer
        self.place(out)

    def on_Break(self, s: ast.Break) -> None:
        """``break``."""
        self.jump(self.loops[-1][0])
        self.body.append(s)

    def on_Continue(self, s: ast.Continue) -> None:
        """``continue``."""
        self.jump(self.loops[-1][1])
        self.body.append(s)

    def on_With(self, s: ast.With) -> None:
        """``with context: ...``: a group enters it again where it goes on."""
        if any(item.optional_vars is not None for item in s.items):
            return self.on_other(s)
        before, at = self.within, self.at
        outers = []
        for item in s.items:
            name = self.variable()
            self.do(assigned(name, called(ENTER, self.atom(item.context_expr))))
            self.within = (*self.within, name)
            outers.append((self.body, name))
            self.body = []
        self.statements(s.body)
        for outer, name in reversed(outers):
            node = ast.With([ast.withitem(loaded(name))], self.body or [ast.Pass()])
            self.body = [*outer, ast.copy_location(node, at)]
        self.within = before


class _Calls(ast.NodeTransformer):
    """Lets calls within an expression or statement go through `calls`; functions defined in it are left alone."""

    def __init__(self, lowering: Lowering) -> None:
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

    def _alone(self, node: Any) -> Any:
        return node

    visit_Lambda = visit_FunctionDef = visit_ClassDef = visit_AsyncFunctionDef = _alone


def _nothing() -> None:
    """Add no step."""


def _jumps(s: ast.stmt) -> bool:
    """Tell whether a statement leaves by a jump: a return, or a break of a loop around it."""
    if isinstance(s, ast.Return | ast.Break | ast.Continue):
        return True
    if isinstance(s, ast.FunctionDef | ast.ClassDef):
        return False
    inner = [x for x in ast.iter_child_nodes(s) if isinstance(x, ast.stmt | ast.ExceptHandler | ast.match_case)]
    if isinstance(s, ast.For | ast.While):
        return any(isinstance(x, ast.Return) for x in ast.walk(s))
    return any(_jumps(x) for x in inner)  # type: ignore[arg-type]


def loaded(name: str) -> Any:
    """Return the use of a variable."""
    return ast.Name(name, ast.Load())


def stored(name: ast.expr) -> Any:
    """Return a variable as one that is given a value."""
    assert isinstance(name, ast.Name)
    return ast.Name(name.id, ast.Store())


def assigned(name: str, value: ast.expr) -> ast.stmt:
    """Return ``name = value``."""
    return ast.Assign([ast.Name(name, ast.Store())], value)


def called(name: str, *args: Any) -> ast.expr:
    """Return a call of a helper."""
    return ast.Call(loaded(name), list(args), [])


def slice_of(ends: Sequence[Any]) -> ast.expr:
    """Return a slice."""
    return called(SLICE, *(ast.Constant(None) if e is None else e for e in ends))
