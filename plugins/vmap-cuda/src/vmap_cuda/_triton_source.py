"""What a Triton kernel's source says: which pointers it writes to, and how the same kernel runs on a batch of samples."""

from __future__ import annotations

import ast
import copy
import inspect
import itertools
import linecache
import textwrap
from collections.abc import Iterator, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from vmap_core.extend import UnsupportedError

_WRITERS = ("store", "store_tensor_descriptor", "scatter", "inline_asm_elementwise")
_READERS = ("load", "load_tensor_descriptor", "gather")  # what they return is data, no pointer
_UNKNOWN = object()


def jitted(kernel: Any) -> Any:
    """Return the function under ``triton.autotune`` and ``triton.heuristics``."""
    while not isinstance(kernel, JITFunction | InterpretedFunction):
        kernel = kernel.fn
    return kernel


class _Source:
    """The syntax tree of a jitted function, and what the names in it mean."""

    def __init__(self, kernel: Any) -> None:
        function = jitted(kernel).fn
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        self.function = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
        self.function.decorator_list = []
        self.names = {**function.__globals__, **inspect.getclosurevars(function).nonlocals}
        arguments = self.function.args
        self.parameters = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        local = {n.id for n in ast.walk(self.function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        self.local = local.union(self.parameters)

    def resolve(self, node: ast.expr) -> Any:
        """Return the object from outside that an expression names, if it names one."""
        if isinstance(node, ast.Name):
            return _UNKNOWN if node.id in self.local else self.names.get(node.id, _UNKNOWN)
        if isinstance(node, ast.Attribute):
            base = self.resolve(node.value)
            return getattr(base, node.attr, _UNKNOWN) if isinstance(base, ModuleType) else _UNKNOWN
        return _UNKNOWN

    def arguments(self, call: ast.Call, of: _Source) -> Iterator[tuple[str, ast.expr]]:
        """Iterate over the arguments of a call to another jitted function, by its names for them."""
        yield from zip(of.parameters, call.args, strict=False)
        yield from ((k.arg, k.value) for k in call.keywords if k.arg is not None)


_source = cache(_Source)


@cache
def written(kernel: Any) -> frozenset[str]:
    """Return the parameters of a jitted function through which it may write to memory.

    These are the ones from which the address of a ``tl.store``, an atomic operation or the like is computed, in the
    function or in another that it calls.
    """
    source = _source(kernel)
    comes_from: dict[str, set[str]] = {name: {name} for name in source.parameters}

    def origins(node: ast.AST) -> set[str]:
        if isinstance(node, ast.Name):
            return comes_from.get(node.id, set())
        if isinstance(node, ast.Call) and _name(node.func).startswith((*_READERS, "atomic_")):
            return set()
        return set().union(*map(origins, ast.iter_child_nodes(node)))

    nodes = list(ast.walk(source.function))
    for _ in nodes:  # names may be assigned below their use, in a loop
        before = copy.deepcopy(comes_from)
        for node in nodes:
            value = node.iter if isinstance(node, ast.For) else getattr(node, "value", None)
            if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.NamedExpr | ast.For) and value:
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    for name in ast.walk(target):
                        if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store):
                            comes_from.setdefault(name.id, set()).update(origins(value))
        if comes_from == before:
            break
    found: set[str] = set()
    for call in nodes:
        if isinstance(call, ast.Call):
            found.update(*map(origins, _addresses(source, call)))
    return frozenset(found)


def _addresses(source: _Source, call: ast.Call) -> list[ast.expr]:
    """Return the arguments of a call from which addresses of writes may be computed."""
    callee, name = source.resolve(call.func), _name(call.func)
    given = [*call.args, *(k.value for k in call.keywords)]
    if isinstance(callee, JITFunction | InterpretedFunction):
        if jitted(callee).fn.__module__.startswith("triton."):
            return []  # the standard library only computes
        targets = written(callee)
        return [value for parameter, value in source.arguments(call, _source(callee)) if parameter in targets]
    if name in _WRITERS or name.startswith("atomic_"):
        if callee is _UNKNOWN and isinstance(call.func, ast.Attribute):
            return [call.func.value]  # a method of a descriptor
        if name == "inline_asm_elementwise":
            return given
        return call.args[:1] or [k.value for k in call.keywords if k.arg in ("pointer", "desc")]
    if isinstance(call.func, ast.Name) and call.func.id in source.parameters:
        return given  # a function that is an argument
    return []


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


@cache
def places(kernel: Any) -> bool:
    """Tell whether a jitted function, or one that it calls, asks for its place in the first grid axis."""
    source = _source(kernel)
    for node in ast.walk(source.function):
        if isinstance(node, ast.Name | ast.Attribute):
            meant = source.resolve(node)
            if _is_place(meant) or (_is_user(meant) and meant is not jitted(kernel) and places(meant)):
                return True
    return False


def _is_place(meant: Any) -> bool:
    return getattr(meant, "__name__", "") in ("program_id", "num_programs") and (
        getattr(meant, "__module__", None) or ""
    ).startswith("triton.")


def _is_user(meant: Any) -> bool:
    is_jitted = isinstance(meant, JITFunction | InterpretedFunction)
    return is_jitted and not meant.fn.__module__.startswith("triton.")


class _Relocated(ast.NodeTransformer):
    """Puts names in the place of ``tl.program_id(0)`` and ``tl.num_programs(0)``, also in functions that are called."""

    def __init__(self, source: _Source, names: dict[str, Any]) -> None:
        self.source, self.names = source, names

    def visit_Call(self, node: ast.Call) -> Any:
        meant = self.source.resolve(node.func)
        if _is_place(meant):
            axis = node.args[0] if node.args else node.keywords[0].value
            name = ast.Name(f"_vmap_{meant.__name__}", ast.Load())
            if isinstance(axis, ast.Constant):
                return node if axis.value else name
            return ast.IfExp(ast.Compare(axis, [ast.Eq()], [ast.Constant(0)]), name, node)
        if _is_user(meant) and places(meant):
            inner = f"_vmap_{_name(node.func)}_{len(self.names)}"
            self.names[inner] = relocated(meant)
            node.func = ast.Name(inner, ast.Load())
            node.keywords += [ast.keyword(p, ast.Name(p, ast.Load())) for p in _PLACE]
            node.args = [self.visit(a) for a in node.args]
            node.keywords = [self.visit(k) for k in node.keywords]
            return node
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> Any:
        self.check(node)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        self.check(node)
        return self.generic_visit(node)

    def check(self, node: ast.expr) -> None:
        meant = self.source.resolve(node)
        if _is_place(meant) or (_is_user(meant) and places(meant)):
            raise UnsupportedError(
                f"vmap: a Triton kernel hands on {ast.unparse(node)}, which tells a program's place in the grid, without "
                f"calling it. Instead: call it where the grid is known."
            )


_PLACE = ("_vmap_program_id", "_vmap_num_programs")


@cache
def relocated(helper: Any) -> Any:
    """Return a jitted function that is told its place in the first grid axis, by keyword."""
    return _remade(helper, _Source(helper), "", _PLACE)


@cache
def batched(kernel: Any, pointers: Sequence[str], levels: int) -> Any:
    """Return a kernel that does what the given one does, on a batch of samples.

    Its first grid axis is ``samples`` times as long. It has further parameters: ``_vmap_samples``; the size of each
    level, ``_vmap_size_{level}``, innermost first; and for each pointer its strides, ``_vmap_stride_{pointer}_{level}``.

    Args:
        kernel: a jitted function, also under ``triton.autotune`` and ``triton.heuristics``.
        pointers: the parameters that have a batch dim at some level.
        levels: their number.
    """
    if not isinstance(kernel, JITFunction | InterpretedFunction):
        outer = copy.copy(kernel)  # what it has tuned holds for one sample
        outer.fn, outer.cache = batched(kernel.fn, pointers, levels), {}
        return outer
    lines = [
        "_vmap_num_programs = _vmap_tl.num_programs(0) // _vmap_samples",
        "_vmap_program_id = _vmap_tl.program_id(0) % _vmap_num_programs",
        "_vmap_sample = _vmap_tl.program_id(0) // _vmap_num_programs",
    ]
    for i in range(levels):
        lines.append(f"_vmap_index_{i} = (_vmap_sample % _vmap_size_{i}).to(_vmap_tl.int64)")
        lines.append(f"_vmap_sample = _vmap_sample // _vmap_size_{i}")
        lines += [f"{p} = {p} + _vmap_index_{i} * _vmap_stride_{p}_{i}" for p in pointers]
    parameters = ["_vmap_samples", *(f"_vmap_size_{i}" for i in range(levels))]
    parameters += [f"_vmap_stride_{p}_{i}" for p, i in itertools.product(pointers, range(levels))]
    return _remade(kernel, _Source(kernel), "\n".join(lines), parameters)


_count = itertools.count()


def _remade(kernel: Any, source: _Source, prologue: str, parameters: Sequence[str]) -> Any:
    """Return a jitted function with more parameters, and lines before its own."""
    names: dict[str, Any] = {**source.names, "_vmap_tl": tl}
    function = source.function
    function.body = [_Relocated(source, names).visit(statement) for statement in function.body]
    function.body[:0] = ast.parse(prologue).body
    function.name += "_vmap"
    if function.args.vararg or function.args.kwonlyargs:
        raise UnsupportedError(
            f"vmap: the Triton function {function.name} has keyword-only parameters. Instead: ordinary ones."
        )
    function.args.args += [ast.arg(p) for p in parameters]
    function.args.defaults += [ast.Constant(0) for _ in parameters]
    text = ast.unparse(ast.fix_missing_locations(function)) + "\n"
    file = f"<vmap of {jitted(kernel).__name__} {next(_count)}>"  # inspect finds the source there
    linecache.cache[file] = len(text), None, text.splitlines(keepends=True), file
    exec(compile(text, file, "exec", dont_inherit=True), names)
    made = names[function.name]
    options = getattr(kernel, "kwargs", None)
    if options is None:
        options = {name: getattr(kernel, name) for name in _OPTIONS if hasattr(kernel, name)}
    made = triton.jit(made, **options)
    made.pre_run_hooks = getattr(kernel, "pre_run_hooks", [])
    return made


_OPTIONS = ("version", "do_not_specialize", "do_not_specialize_on_alignment", "debug", "noinline", "launch_metadata")
