"""What the steps of a function call: each function of the user's runs in steps, too, so that samples can part in it."""

from __future__ import annotations

import functools
import sys
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch.nn import Module

from vmap_core.errors import internal_modules
from vmap_core.extend import (
    BatchedTensor,
    Level,
    current_levels,
    is_refused,
    make_batched,
    narrow,
    physical_with_dims,
    refuse_writes,
    storage_of,
    taken_off,
)

from ..fork import Fork
from . import steps
from .around import code_of, entered_code, outside
from .contents import note_made
from .groups import restored
from .helpers import END, Range, RangeIterator, augmented, caught, contains, entered, following, get, put
from .machine import Machine
from .numbers import KEEPS, PURE, PerSample, elementwise, first_of, holds, item, number
from .parting import Part, Results, Returned, raise_part
from .places import place_of
from .program import Program, program_of, with_code
from .source import NotSplitError
from .structure import Copier, tensors_in

_NUMBERS = {int, float, bool}


def call(f: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Return ``f(*args, **kwargs)``."""
    kind = type(f)
    if kind is FunctionType:
        program = _program(f)
        if program is not None:
            return run(program, f, args, kwargs)
        f = _around(f)
    elif kind is MethodType:
        program = _program(f.__func__)
        if program is not None:
            return run(program, f.__func__, (f.__self__, *args), kwargs)
    elif kind is partial:
        return call(f.func, *f.args, *args, **{**f.keywords, **kwargs})
    elif f in _NUMBERS if kind is type else False:
        if len(args) == 1 and type(args[0]) in (BatchedTensor, PerSample) and not kwargs:
            return number(f, args[0])
    elif isinstance(f, Module):
        forward = _forward(f)
        if forward is not None:
            return call(forward, *args, **kwargs)
    else:
        method = getattr(kind, "__call__", None)  # noqa: B004  # a method that runs in steps is meant
        if type(method) is FunctionType and (program := _program(method)) is not None:
            return run(program, method, (f, *args), kwargs)
    for a in (*args, *kwargs.values()):
        if holds(a):
            return _with_numbers(f, args, kwargs)
    if isinstance(f, type):
        return note_made(f(*args, **kwargs))
    try:
        return f(*args, **kwargs)
    except Part as part:
        why = _half_done(f, args)
        if not why:
            raise
        raise part.as_error(why) from None


def _half_done(f: Any, args: tuple[Any, ...]) -> str:
    """Say why a call in which samples part cannot be made again for each group; "" if it can."""
    name = getattr(f, "__name__", type(f).__name__)
    inner: Any = getattr(f, "__func__", f)
    if type(inner) is FunctionType:
        found = program_of(inner) if _is_users(inner) else None
        return f"{name}: {found}" if isinstance(found, NotSplitError) else ""  # else its frame tells
    owner = getattr(f, "__self__", None)
    known = (
        isinstance(owner, torch.Tensor | list | dict | set | tuple | str | range)
        or str(getattr(f, "__module__", "") or "").startswith("torch")
        or (getattr(f, "__hash__", None) is not None and f in _REPEATABLE)
    )
    if known and not any(_moves_on(a) for a in args):
        return ""
    return f"{name}, called there, is half done"


def _moves_on(a: Any) -> bool:
    return hasattr(type(a), "__next__") and not isinstance(a, torch.Tensor | RangeIterator)


_REPEATABLE = PURE | KEEPS | {sorted, sum, any, all, range, print, getattr, hasattr, next, type}


def _with_numbers(f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function that has no steps, with numbers that differ from sample to sample among its arguments."""
    if getattr(f, "__hash__", None) is not None and not kwargs:
        if f in PURE and not any(isinstance(a, torch.Tensor | list | tuple | dict) for a in args):
            return elementwise(f, args)
        if f is range:
            return Range(*args)
        if f in KEEPS:
            return f(*args)
    owner = getattr(f, "__self__", None)
    if type(owner) in (list, dict, set) or getattr(f, "__module__", "") == __name__:
        return f(*args, **kwargs)
    if getattr(f, "__name__", "") in torch.Tensor.__dict__ and type(owner) is BatchedTensor:
        return f(*args, **kwargs)  # asks the number (see `PerSample.__torch_function__`)
    first = first_of([*args, *kwargs.values()])
    if first is None:  # in a slice or dict
        return f(*args, **kwargs)
    raise first.part(f"an argument of {getattr(f, '__name__', f)}")


# ---- which functions run in steps

_programs: dict[Any, Program | None] = {}


def _program(f: FunctionType) -> Program | None:
    code = f.__code__
    if code in _programs:
        return _programs[code]
    found = program_of(f) if _is_users(f) else None
    program = None if isinstance(found, NotSplitError) else found
    _programs[code] = program
    return program


def _is_users(f: FunctionType) -> bool:
    """Tell whether a function is neither PyTorch's, nor vmap's, nor of the standard library."""
    top = str(f.__globals__.get("__name__", "")).partition(".")[0]
    if f.__code__.co_filename.startswith("<doctest"):  # of any module
        return True
    return top not in internal_modules and (top not in sys.stdlib_module_names or top == "__main__")


def _around(f: FunctionType) -> Any:
    """Return a library's function around one of the user's (``torch.no_grad()``'s, ``grad``'s) as one around that one in steps."""
    inner = f.__dict__.get("__wrapped__")
    if inner is None or f.__closure__ is None or hasattr(f, "__vmap__") or not _runs_in_steps(inner):
        return f
    replaced = split(inner)
    cells = tuple(CellType(replaced) if _holds(c, inner) else c for c in f.__closure__)
    made = FunctionType(f.__code__, f.__globals__, f.__name__, f.__defaults__, cells)
    made.__kwdefaults__ = f.__kwdefaults__
    return made


def _holds(cell: CellType, x: Any) -> bool:
    try:
        return cell.cell_contents is x
    except ValueError:
        return False


def _runs_in_steps(f: Any) -> bool:
    while isinstance(f, partial):
        f = f.func
    if isinstance(f, Module):
        return _forward(f) is not None
    f = getattr(f, "__func__", f)
    return type(f) is FunctionType and (_program(f) is not None or _around(f) is not f)


def _forward(module: Module) -> Any:
    """Return a module's forward if that is all that a call runs, and runs in steps; None else."""
    if type(module).__call__ is not Module.__call__:
        return None
    forward = module.forward
    if any(module.__dict__.get(name) for name in _HOOKS) or any(
        getattr(torch.nn.modules.module, name, None) for name in _GLOBAL_HOOKS
    ):
        return None
    return forward if _runs_in_steps(forward) else None


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_compiled_call_impl")
_GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)


# ---- running one


def run(program: Program, f: FunctionType, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a function as a whole; where samples part, by groups of them from there on."""
    whole = with_code(program.whole, f, HELPERS)
    try:
        return whole(*args, **kwargs)
    except Part as part:
        step, variables = place_of(part, whole, program)
        found = part
    return _resumed(program, f, (*args, *kwargs.values()), step, variables, found)


def _resumed(
    program: Program, f: FunctionType, args: tuple[Any, ...], step: int, variables: dict[str, Any], part: Part
) -> Any:
    level = current_levels()[-1]
    shared, outer = outside(f, args)
    at_once = part if part.rows is not None and part.level is level else None
    with taken_off([level]):
        _, dims = physical_with_dims(part.of)
        if [x for x, bdim in dims if bdim is not None] == [level]:
            return Machine(program, f, HELPERS, level, shared).run(step, variables, outer, at_once)
        fork = (
            part.fork
            if isinstance(part, Results) and part.fork is not None
            else Fork(level, _of_all(level, part), part.what)
        )
        with taken_off(fork.outer):
            return _of_pairs(Machine(program, f, HELPERS, fork.all, shared), fork, level, step, variables, outer, part)


def _of_pairs(
    machine: Machine, fork: Fork, level: Level, step: int, variables: dict[str, Any], outer: list[Any], part: Part
) -> Any:
    """Run a machine for the samples of several levels, as those of one; return the results as tensors of the levels."""
    every = fork.all
    seen: dict[int, Any] = {}
    tensors_in([*variables.values(), outer], machine.shared, seen)
    tensors = [x for x in seen.values() if isinstance(x, torch.Tensor)]
    given = {id(x): narrow(every, x) for x in tensors}
    copier = Copier(given, lambda k: k.at(every.rows[k.level], every) if k.level in every.rows else k, machine.shared)
    new = {name: copier(x) for name, x in variables.items()}
    copies = [copier(x) for x in outer]
    at_once = None
    if part.level is every and isinstance(part, Results):
        at_once, part.outer = part, [copier(x) for x in part.outer]
    try:
        value = machine.run(step, new, copies, at_once)
    except Results as results:
        results.outer, results.fork = outer, fork
        raise

    found: dict[int, Any] = {}
    tensors_in([value, copies], machine.shared, found)
    if any(type(x) is PerSample and x.level is every for x in found.values()):  # no number for each sample of one level
        returned = Returned(every, torch.arange(every.batch_size), value, copies)
        of_one = Results(every, [returned], outer, machine.program.name)
        of_one.fork = fork
        raise of_one
    before = {storage_of(given[id(x)]): x for x in tensors}
    back: dict[int, Any] = {id(given[id(x)]): x for x in tensors}  # what it returns as it was given it is what it was
    for i, x in found.items():
        if i not in back and type(x) is BatchedTensor and x._level is every:
            back[i] = fork.as_levels(x)
            of = before.get(storage_of(x))
            if of is not None or is_refused(every, x):
                refuse_writes(level, [y for y in (back[i], of) if type(y) is BatchedTensor])

    last = Copier(back, lambda k: k, machine.shared)
    return restored(last(value), outer, [last(x) for x in copies], machine.shared)


def _of_all(level: Level, part: Part) -> Any:
    """Return a tensor that depends on the levels which a part does, and is one of the running level."""
    of = part.of
    if of._level is not level:
        of = make_batched(of, None, level)
    return of


HELPERS: dict[str, Any] = {
    steps.CALL: call, steps.GET: get, steps.SET: put, steps.ITEM: item, steps.ITER: iter,
    steps.NEXT: following, steps.END: END, steps.ENTER: entered, steps.CAUGHT: caught, steps.SLICE: slice,
    steps.AUGMENTED: augmented, steps.CONTAINS: contains, "_vmap_locals": locals,
}  # fmt: skip


def split(func: Any) -> Any:
    """Return a function whose samples part where its control flow goes by their values, when it runs in a mapped function.

    ``vmap(f, control_flow="split")`` is ``vmap(split(f))``; as a decorator it is for functions that something else maps.

    Args:
        func: a function, method, module, lambda or partial, whose source is to be found.

    Returns:
        A function of the same arguments. Outside of mapped functions it is the function itself.

    Raises:
        VmapError: samples cannot part where their answers differ; it says why. (When the returned function is called.)

    Examples:
        >>> import torch
        >>> from vmap_core import vmap
        >>> from vmap_control_flow import split
        >>> @split
        ... def halved(x):
        ...     while x > 1:
        ...         x = x / 2
        ...     return x
        >>> vmap(halved)(torch.tensor([1.0, 6.0, 16.0]))
        tensor([1.0000, 0.7500, 1.0000])

    The schedule (the group at the earliest step goes first) is that of TensorFlow Probability's auto-batching:
    https://arxiv.org/abs/1910.11141.
    """

    @functools.wraps(func)
    def in_steps(*args: Any, **kwargs: Any) -> Any:
        levels = current_levels()
        if not levels:
            return func(*args, **kwargs)
        code = code_of(func)
        entered_code.append(code)
        before = [level.part for level in levels]
        for level in levels:  # those further out, too: a condition may depend on their samples only
            level.part = raise_part
        try:
            return call(func, *args, **kwargs)
        except Part as part:
            error = part.as_error()
        finally:
            entered_code.remove(code)
            for level, was in zip(levels, before, strict=True):
                level.part = was
        raise error

    return in_steps
