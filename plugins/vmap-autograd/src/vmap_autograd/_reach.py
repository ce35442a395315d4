"""Which levels a function can meet batched tensors of: a transform's input need not have the batch dims of the others.

A function that sees nothing batched at a level computes the same for all its samples, so once, on inputs without that
level's batch dim. What is batched may come as an argument, or from wherever a function may have it: a closure, a
global, a module, an object. Those are looked through before it runs. A tensor that is found in none of these, and is
batched, makes the outputs so: then gradients by the inputs are taken sample by sample, which is slower, and right.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor

from vmap_core.extend import BatchedTensor, Level, below_levels, current_levels, current_recorder

from ._torch import transforms_active

LIMIT = 5000  # objects looked at

# What asks of autograd that every sample has its own node in the graph: hooks, `.grad`, custom Functions, checkpoints.
OWN_GRAPH = frozenset(
    ("apply", "backward", "checkpoint", "grad_fn", "register_hook", "register_post_accumulate_grad_hook", "retain_grad")
)
# What reverse mode takes for a constant, and forward mode does not.
OWN_TANGENTS = OWN_GRAPH | {"inference_mode", "no_grad", "set_grad_enabled"}
_INERT = frozenset(
    (
        int, float, bool, complex, str, bytes, type(None), type(...), slice, range, torch.dtype, torch.device, torch.layout,
        torch.memory_format, torch.Generator, torch.Size, Tensor, torch.nn.Parameter, BuiltinFunctionType, ModuleType,
        Level,
    )
)  # fmt: skip


_CONTAINERS = frozenset((tuple, list, set, dict, OrderedDict))
_LISTS = (list, tuple, set, frozenset, deque)


def levels_met(func: Any, given: Any, own: frozenset[str] = OWN_GRAPH) -> frozenset[Level] | None:
    """Return the active levels that a function may meet batched tensors of; None for all of them.

    Args:
        func: the function.
        given: its arguments.
        own: names; a function that has one of them in its code is to have the batch dims of all levels.
    """
    levels = current_levels()
    if not levels or current_recorder() is not None or transforms_active():
        return None
    left = {level for level in levels if level.randomness != "different" and not level.rows}
    todo: deque[Any] = deque((given, func))
    known: set[int] = set()
    while left and todo:
        x = todo.popleft()
        kind = type(x)
        if kind in _INERT or id(x) in known:
            continue
        known.add(id(x))
        if len(known) > LIMIT:
            return None
        if kind is BatchedTensor:
            while type(x) is BatchedTensor:
                if x._bdim is not None:
                    left.discard(x._level)
                x = x._value
        elif kind in _CONTAINERS:
            todo += x.values() if kind is dict or kind is OrderedDict else x
        elif kind is FunctionType:
            if not _is_ours(x.__globals__.get("__name__")) and not _of_code(x.__code__, x.__globals__, own, todo):
                return None
            _of_function(x, todo)
        elif kind is MethodType:
            todo += (x.__self__, x.__func__)
        elif isinstance(x, type):
            if not _of_class(x, todo):
                return None
        elif not _of_instance(x, todo):
            return None
    return frozenset(levels) - left if left else None


def levels_of(tensors: Sequence[Any]) -> frozenset[Level]:
    """Return the levels at which one of these tensors is batched."""
    return frozenset().union(*(below_levels(t)[1] for t in tensors))


def _is_ours(name: Any) -> bool:
    """Tell whether a module is PyTorch's or this product's: its globals hold nothing of a mapped function's."""
    return isinstance(name, str) and name.partition(".")[0] in ("torch", "vmap_core", "vmap_autograd", "builtins")


def _of_function(func: Any, todo: deque[Any]) -> None:
    """Add what a function holds."""
    for cell in func.__closure__ or ():
        try:
            todo.append(cell.cell_contents)
        except ValueError:  # it is empty yet
            continue
    todo += func.__defaults__ or ()
    todo += (func.__kwdefaults__ or {}).values()
    todo += func.__dict__.values()


def _of_code(code: CodeType, around: dict[str, Any], own: frozenset[str], todo: deque[Any]) -> bool:
    """Add the globals that a function names; tell whether there is none of those names among them."""
    if not own.isdisjoint(code.co_names):
        return False
    todo += [around[name] for name in code.co_names if name in around]
    return all(_of_code(c, around, own, todo) for c in code.co_consts if type(c) is CodeType)


def _of_class(cls: type, todo: deque[Any]) -> bool:
    """Add what the methods of a class and of its bases hold."""
    for base in cls.__mro__:
        if not _is_ours(base.__module__):
            todo += [v for v in vars(base).values() if type(v) not in _INERT]
    return not issubclass(cls, torch.autograd.Function)


def _of_instance(x: Any, todo: deque[Any]) -> bool:
    """Add what an object holds; a Tensor of another class may hold anything."""
    if isinstance(x, Tensor):
        return False
    kind = type(x)
    todo += [
        v for v in getattr(x, "__dict__", {}).values()
        if type(v) not in _INERT and (type(v) not in _CONTAINERS or v)
    ]  # fmt: skip
    if not _is_ours(kind.__module__):
        todo.append(kind)
        todo += [getattr(x, name, None) for base in kind.__mro__ for name in getattr(base, "__slots__", ())]
    if isinstance(x, dict):
        todo += x.values()
    elif isinstance(x, _LISTS):
        todo += x
    elif isinstance(x, partial):
        todo += (x.func, x.args, x.keywords)
    elif isinstance(x, property):
        todo += (x.fget, x.fset)
    elif isinstance(x, staticmethod | classmethod):
        todo.append(x.__func__)
    return True
