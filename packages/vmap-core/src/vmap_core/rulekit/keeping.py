"""How long plans are kept: for good, or until the next full garbage collection where what they are for may die.

A plan holds the function that it runs, so a weak key would not let go of it. Classes die in full collections only.
"""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

from ..errors import internal_modules

_passing: list[Callable[[], Any]] = []  # what the next full collection begins with


def keep(entries: dict[Any, Any], key: Any, value: Any) -> None:
    """Enter a value under a key of functions, types, and tuples and sets of them, for as long as they last."""
    mortal = [part for part in _parts(key) if not lasts(part)]
    if any(isinstance(part, type) and issubclass(part, list | tuple | dict) for part in mortal):
        return  # what it holds decides, and such a class is not known by then
    entries[key] = value
    if mortal:
        _passing.append(functools.partial(entries.pop, key, None))


def lasts(x: Any) -> bool:
    """Tell whether a function or a class is there as long as the process: built in, or found by its name in a module."""
    if not isinstance(x, type | FunctionType):
        parts = [getattr(x, name, None) for name in ("__self__", "__func__")]  # of what is bound to something
        return _root(type(x)) in _BUILT_IN and all(lasts(part) for part in parts if part is not None)
    if _root(x) in _BUILT_IN or _root(x) in internal_modules:
        return True
    found: Any = sys.modules.get(x.__module__)
    for name in x.__qualname__.split("."):
        found = getattr(found, "__dict__", {}).get(name)
    return found is x


_BUILT_IN = {"builtins", "types", "torch"}


def _root(x: Any) -> str:
    return str(x.__module__).partition(".")[0]


def _parts(key: Any) -> Iterator[Any]:
    for part in key:
        if isinstance(part, tuple | frozenset):
            yield from _parts(part)
        else:
            yield part


def _forget(phase: str, info: dict[str, int]) -> None:
    if phase == "start" and info["generation"] == 2:
        while _passing:
            _passing.pop()()


gc.callbacks.append(_forget)
