"""What a function has from around it: what groups share, and the objects that they have their own of."""

from __future__ import annotations

import contextlib
from collections import deque
from functools import partial
from types import FunctionType
from typing import Any

import torch

from vmap_core.extend import BatchedTensor, values_around

from .contents import contents, is_mutable, is_unknown
from .numbers import PerSample

entered_code: list[Any] = []
"""The code of functions that are running by `split`: what is around them comes from outside."""


def code_of(f: Any) -> Any:
    """Return the code of a function, method or partial; None where there is none."""
    while isinstance(f, partial):
        f = f.func
    return getattr(getattr(f, "__func__", f), "__code__", None)


def _free(f: FunctionType) -> dict[str, Any]:
    """Return the variables that an inner function has from around it, but for itself, by name."""
    found = {}
    for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # it is empty yet
            if cell.cell_contents is not f:
                found[name] = cell.cell_contents
    return found


def outside(f: FunctionType, args: tuple[Any, ...]) -> tuple[set[int], list[Any]]:
    """Return what a function has from around it: the ids of what groups share, and the objects that they have their own of.

    Those hold tensors of samples, or are lists, dicts and sets among its arguments.
    """
    shared: set[int] = set()
    outer: list[Any] = []
    seen: dict[int, bool] = {}

    def visit(x: Any, is_given: bool) -> bool:
        if type(x) in (BatchedTensor, PerSample):
            return True
        if id(x) in seen or isinstance(x, torch.Tensor):
            return seen.get(id(x), False)
        inside = contents(x)
        if inside is None:
            return False
        seen[id(x)] = False
        found = [visit(v, is_given) for v in inside[1]]
        plain = is_mutable(x)
        kind = type(x)
        builtin = kind in (list, dict, set, deque) or isinstance(x, dict)
        own = any(found) or (plain and (not builtin or is_given))
        seen[id(x)] = own
        if plain or is_unknown(x):
            if own:
                outer.append(x)
            else:
                shared.add(id(x))
        return own

    for x in args:
        visit(x, True)
    made_here = f.__code__ not in entered_code  # what is around it, by a function that is mapped, too
    free = _free(f) if made_here else {}
    known = set(map(id, free.values()))
    for x in values_around(f):
        visit(x, made_here and id(x) in known)
    return shared, [free, *outer]
