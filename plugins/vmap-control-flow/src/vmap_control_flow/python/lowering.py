"""A function's syntax tree as steps between which groups of samples can part and meet.

Every operation becomes a step of its own, whose operands are variables: ``y = f(x.item()) + 1`` becomes ``a = item(x)``,
``b = call(f, a)``, ``y = b + 1``. So nothing is half done where samples part, and nothing has to be done twice. The steps come in
two forms, made in one walk: a flat list with jumps, and the function as it was, with a mark before each step (`MARK`) that tells
where it is.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import Any

from .expressions import Expressions, nothing
from .source import NotSplitError
from .steps import AUGMENTED, END, ENTER, GET, ITER, NEXT, SELF, SET, Label, Step, assigned, called, loaded


class Lowering(Expressions):
    """Walks a function's syntax tree."""

    def run(self) -> None:
        """Fill `steps` and `body`."""
        body = self.func.body
        self.at = self.line = self.func
        self.statements(body if isinstance(body, list) else [ast.copy_location(ast.Return(body), body)])
        self.returns(ast.Constant(None))

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
        around: list[Any] = list(s.decorator_list)
        around += [*s.args.defaults, *s.args.kw_defaults] if isinstance(s, ast.FunctionDef) else [s]
        calls = any(isinstance(x, ast.Call) for e in around if e is not None for x in ast.walk(e))
        self.do(s, whole="it is in what a definition computes" if calls else "")

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
                inner = [x.value if isinstance(x, ast.Starred) else x for x in elements]
                plain = all(isinstance(x, ast.Name) for x in inner)
                names: list[Any] = [x if plain else ast.Name(self.variable(), ast.Store()) for x in inner]
                given = [
                    ast.Starred(n, ast.Store()) if isinstance(x, ast.Starred) else n
                    for x, n in zip(elements, names, strict=True)
                ]
                self.do(ast.Assign([ast.Tuple(given, ast.Store())], value))
                for x, n in [] if plain else zip(inner, names, strict=True):  # one after the other, as Python does
                    self.store(x, loaded(n.id))
            case _:
                raise NotSplitError(f"it assigns to a {type(target).__name__}")

    def on_AugAssign(self, s: ast.AugAssign) -> None:
        """``target += value``."""
        match s.target:
            case ast.Name(name):
                now = loaded(name)
                if any(isinstance(x, ast.NamedExpr) for x in ast.walk(s.value)):
                    now = loaded(self.variable())
                    self.do(assigned(now.id, loaded(name)))
                self.do(assigned(name, augmented(now, s.op, self.atom(s.value))))
            case ast.Attribute(of, name):
                of, name = self.atom(of), self.mangled(name)
                now = loaded(self.variable())
                self.do(assigned(now.id, ast.Attribute(of, name, ast.Load())))
                self.do(assigned(now.id, augmented(now, s.op, self.atom(s.value))))
                self.do(ast.Assign([ast.Attribute(of, name, ast.Store())], now))
            case ast.Subscript(of, index):
                of, index = self.atoms([of, index])
                now = loaded(self.variable())
                self.do(assigned(now.id, called(GET, of, index)))
                self.do(assigned(now.id, augmented(now, s.op, self.atom(s.value))))
                self.do(ast.Expr(called(SET, of, index, now)))

    def on_Delete(self, s: ast.Delete) -> None:
        """``del target``."""
        for target in s.targets:
            match target:
                case ast.Name():
                    self.do(ast.Delete([target]))
                case ast.Tuple(elements) | ast.List(elements):
                    self.on_Delete(ast.copy_location(ast.Delete(elements), s))
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
        self.branch(self.own(s.test), nothing, lambda: self.on_Raise(ast.copy_location(error, s)))

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
        if (
            len(call.args) > len(names)
            or not given.keys() <= set(names)
            or len(given) < len(call.args) + len(call.keywords)
        ):
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


def augmented(now: ast.expr, op: ast.operator, value: ast.expr) -> ast.expr:
    """Return what ``now op= value`` gives."""
    return called(AUGMENTED, ast.Constant(_OPERATORS[type(op)]), now, value)


_OPERATORS: dict[type, str] = {
    ast.Add: "iadd", ast.Sub: "isub", ast.Mult: "imul", ast.Div: "itruediv", ast.FloorDiv: "ifloordiv", ast.Mod: "imod", ast.Pow: "ipow",
    ast.MatMult: "imatmul", ast.BitAnd: "iand", ast.BitOr: "ior", ast.BitXor: "ixor", ast.LShift: "ilshift", ast.RShift: "irshift",
}  # fmt: skip
