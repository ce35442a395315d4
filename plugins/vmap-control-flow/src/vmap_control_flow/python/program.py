"""A function that groups of samples can run: as a whole, or from any step on.

Both forms are compiled from the steps of `lowering`, with the lines of the user's file: tracebacks and errors show these.
"""

from __future__ import annotations

import ast
import copy
import inspect
from collections.abc import Iterable
from types import CellType, CodeType, FunctionType
from typing import Any

from .lowering import Lowering
from .source import NotSplitError, node_of
from .steps import HELPERS, MARK, SELF, Step, assigned, loaded

_FLAGS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class Program:
    """The steps of a function, and what is compiled of them.

    Attributes:
        steps: the flat form (see `steps.Step`).
        live: the variables that each step, or one after it, may use before it gives them another value.
        starts: the steps that are jumped to, where groups of samples meet.
        refused: why samples cannot part in it; "" if they can.
    """

    def __init__(self, func: FunctionType) -> None:
        """Make it of a function.

        Raises:
            NotSplitError: the function cannot be run in steps.
        """
        code = func.__code__
        if code.co_flags & _FLAGS:
            raise NotSplitError("it is a generator or a coroutine")
        self.node = node = copy.deepcopy(node_of(func))
        *_, of_class, _ = ("", "", *func.__qualname__.split("."))
        self.variables = {*code.co_varnames, *code.co_cellvars}
        if any(isinstance(x, ast.Nonlocal) for x in ast.walk(node)):
            raise NotSplitError("an inner function sets a variable of its")
        low = Lowering(node, self.variables, "" if of_class == "<locals>" else of_class)
        low.run()
        self.name, self.file, self.free = code.co_name, code.co_filename, code.co_freevars
        self.flags = code.co_flags & 0x1FF0000  # those of ``from __future__ import``
        self.steps = low.steps
        self.refused = _kept(node, code)
        self.starts = {label.step for step in self.steps for label in step.targets}
        self.live = self._live()
        args = copy.copy(node.args)
        args.defaults = [ast.Constant(None)] * len(
            args.defaults
        )  # only their number counts: the function's own are set
        args.kw_defaults = [d and ast.Constant(None) for d in args.kw_defaults]
        for arg in ast.walk(args):
            if isinstance(arg, ast.arg):
                arg.annotation = None
        self.whole = self._compiled(args, low.body)
        self.parts: dict[tuple[int, frozenset[str]], tuple[CodeType, list[str], int]] = {}

    def part(self, start: int, missing: frozenset[str]) -> tuple[CodeType, list[str], int]:
        """Return what runs from a step up to the next branch, jump, return or meeting place.

        Args:
            start: the step.
            missing: variables that are live there, and have no value.

        Returns:
            The code, the names of its arguments, and the step at which it ends. It returns its variables.
        """
        found = self.parts.get((start, missing))
        if found is None:
            found = self.parts[start, missing] = self._part(start, missing)
        return found

    def _part(self, start: int, missing: frozenset[str]) -> tuple[CodeType, list[str], int]:
        end, body, within = start, [], self.steps[start].within
        while self.steps[end].kind == "do" and self.steps[end].within == within:
            body += [assigned(MARK, ast.Constant(end)), self.steps[end].node]
            ast.copy_location(body[-2], body[-1])
            end += 1
            if end in self.starts:
                break
        body.append(ast.Return(ast.Call(loaded("_vmap_locals"), [], [])))
        for context in reversed(within):
            body = [ast.With([ast.withitem(loaded(context))], body)]
        names = sorted(self.live[start] - missing)
        if missing:
            unset = [assigned(name, ast.Constant(None)) for name in sorted(missing)]
            body.insert(0, ast.If(ast.Constant(False), unset, []))
        args = ast.arguments([], [ast.arg(name) for name in names], None, [], [], None, [])
        return self._compiled(args, body), names, end

    def _compiled(self, args: ast.arguments, body: list[ast.stmt]) -> CodeType:
        """Return the code of a function; what it has from around it are free variables: the helpers, and the user's."""
        inner = ast.FunctionDef("_vmap_inner", args, body, [])
        around = [ast.arg(name) for name in dict.fromkeys((*HELPERS, SELF, "_vmap_locals", *self.free))]
        outer = ast.FunctionDef("_vmap_around", ast.arguments([], around, None, [], [], None, []), [inner], [])
        for node in (inner, outer):
            ast.copy_location(node, self.node)
            if "type_params" in node._fields:  # from Python 3.12 on
                node.type_params = []  # type: ignore[attr-defined]
        module = ast.fix_missing_locations(ast.Module([outer], []))
        code = compile(module, self.file, "exec", flags=self.flags, dont_inherit=True)
        for name in ("_vmap_around", inner.name):
            code = next(c for c in code.co_consts if isinstance(c, CodeType) and c.co_name == name)
        return code.replace(co_name=self.name, co_qualname=self.name)

    def _live(self) -> list[set[str]]:
        uses, sets = zip(*(self._uses(step) for step in self.steps), strict=True)
        live: list[set[str]] = [set() for _ in self.steps]
        changed = True
        while changed:
            changed = False
            for i in range(len(self.steps) - 1, -1, -1):
                step = self.steps[i]
                after: set[str] = set()
                for to in [t.step for t in step.targets] or ([i + 1] if step.kind == "do" else []):
                    after |= live[to]
                now = uses[i] | (after - sets[i])
                if now != live[i]:
                    live[i], changed = now, True
        return live

    def _uses(self, step: Step) -> tuple[set[str], set[str]]:
        """Return the variables that a step uses, and those that it surely gives a value."""
        uses, sets = set(step.within), set[str]()
        for x in [] if step.node is None else ast.walk(step.node):
            if isinstance(x, ast.Name) and x.id in self.variables and not isinstance(x.ctx, ast.Store):
                uses.add(x.id)
        node = step.node
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            uses.add(node.target.id)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                inner = target.elts if isinstance(target, ast.Tuple) else [target]
                names = [x.value if isinstance(x, ast.Starred) else x for x in inner]
                sets |= {x.id for x in names if isinstance(x, ast.Name)}
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            sets.add(node.name)
        return uses & self.variables, sets


def _kept(node: Any, code: CodeType) -> str:
    """Say why a function cannot be run in steps: an inner one would not see what its variables become; "" if it can."""
    classes = {x.name for x in _own(node) if isinstance(x, ast.ClassDef)}
    for x in ast.walk(node):
        if isinstance(x, ast.Attribute) and isinstance(x.ctx, ast.Store) and getattr(x.value, "id", "") in classes:
            return "it sets an attribute of a class that it defines"
    kept = _free_in_functions(code) & {*code.co_varnames, *code.co_cellvars}
    args = {a.arg for a in ast.walk(node.args) if isinstance(a, ast.arg)}
    loops = [x for x in _own(node) if isinstance(x, ast.For | ast.While)]
    for name in sorted(kept):
        places = [x for x in _own(node) if name in _names_set(x)]
        looped = any(place is x for loop in loops for x in ast.walk(loop) for place in places)
        first = min(
            (x.lineno, x.col_offset) for x in _own(node) if isinstance(x, ast.Lambda | ast.FunctionDef | ast.ClassDef)
        )
        later = any((place.lineno, place.col_offset) > first for place in places)
        if len(places) + (name in args) > 1 or looped or (later and not _defines(places, name)):
            return f"an inner function uses the variable {name!r}, which is set more than once"
    return ""


def _defines(places: list[Any], name: str) -> bool:
    """Tell whether a variable is an inner function itself."""
    return all(isinstance(place, ast.FunctionDef | ast.ClassDef) and place.name == name for place in places)


def _free_in_functions(code: CodeType) -> set[str]:
    """Return the variables that inner functions have from around them; comprehensions, which run at once, are none."""
    names: set[str] = set()
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            names |= _free_in_functions(inner) if inner.co_name in _AT_ONCE else set(inner.co_freevars)
    return names


_AT_ONCE = {"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"}


def _own(node: Any) -> Iterable[Any]:
    """Yield the nodes of a function that are not an inner one's."""
    for x in ast.iter_child_nodes(node):
        yield x
        if not isinstance(x, ast.Lambda | ast.FunctionDef | ast.ClassDef):
            yield from _own(x)


def _names_set(x: Any) -> set[str]:
    if isinstance(x, ast.FunctionDef | ast.ClassDef):
        return {x.name}
    return {x.id} if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store) else set()


def with_code(code: CodeType, func: FunctionType, helpers: dict[str, Any]) -> FunctionType:
    """Return a function that runs code with another one's globals and variables from around it."""
    around = dict(zip(func.__code__.co_freevars, func.__closure__ or (), strict=True))
    around[SELF] = CellType(func)
    cells = tuple(around[n] if n in around else CellType(helpers[n]) for n in code.co_freevars)
    made = FunctionType(code, func.__globals__, func.__name__, func.__defaults__, cells)
    made.__kwdefaults__ = func.__kwdefaults__
    return made


def with_free(run: FunctionType, free: dict[str, Any]) -> FunctionType:
    """Return a function of a program with a group's own values of variables from around it, by name."""
    if not free:
        return run
    closure = zip(run.__code__.co_freevars, run.__closure__ or (), strict=True)
    cells = tuple(CellType(free[name]) if name in free else cell for name, cell in closure)
    return FunctionType(run.__code__, run.__globals__, run.__name__, None, cells)


_programs: dict[CodeType, Program | NotSplitError] = {}


def program_of(func: FunctionType) -> Program | NotSplitError:
    """Return the program of a function, or why it has none; made once."""
    found = _programs.get(func.__code__)
    if found is None:
        try:
            found = Program(func)
        except NotSplitError as e:
            found = NotSplitError(str(e))
        _programs[func.__code__] = found
    return found
