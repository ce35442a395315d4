"""What Python values hold: taken apart, and made again with other values in them.

Groups go on with lists, dicts, sets, iterators, inner functions and objects of their own. What comes from outside of the mapped
function is left as it is: objects that hold no tensor of a sample.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Sequence
from functools import partial
from types import (
    BuiltinMethodType,
    CellType,
    CodeType,
    FunctionType,
    GeneratorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
)
from typing import Any

import torch

from vmap_core import UnsupportedError
from vmap_core.extend import BatchedTensor, user_location

from .numbers import PerSample

ATOMS = {
    range, int, float, bool, complex, str, bytes, type(None), type(...), type, ModuleType, CodeType, torch.dtype, torch.device, torch.Size,
}  # fmt: skip
_ITERABLES: tuple[Any, ...] = ([], (), range(0), "", {}, {}.values(), {}.items(), set(), b"")
_ITERATORS: set[type] = {type(iter(x)) for x in _ITERABLES} | {
    zip, enumerate, map, filter, reversed, type(reversed([])), type(iter(range(2**70))), type(reversed(range(2))), type(reversed({})),
}  # fmt: skip
_SEQUENCES: dict[type, Callable[[Any, list[Any]], None]] = {
    list: list.extend, deque: deque.extend, set: set.update,
}  # fmt: skip
_VIEWS = {type({}.keys()), type({}.values()), type({}.items())}
_BUILTIN = {BuiltinMethodType, MethodWrapperType}
_HEAP_TYPE = 1 << 9


def is_mutable(x: Any) -> bool:
    """Tell whether a value is one that can be changed, and that groups have their own of."""
    kind = type(x)
    return kind in _SEQUENCES or isinstance(x, dict) or kind in _ITERATORS or _is_plain(x)


def _is_plain(x: Any) -> bool:
    """Tell whether a value is an object of a Python class whose state is its attributes, and that is the function's own.

    It was made by the function, or holds tensors of samples; any other may be known elsewhere, and is shared.
    """
    kind = type(x)
    if (
        kind in ATOMS
        or isinstance(x, torch.Tensor | PerSample | type | FunctionType | MethodType | BaseException)
        or not hasattr(x, "__dict__")
    ):
        return False
    if (
        kind.__reduce_ex__ is not object.__reduce_ex__
        or kind.__reduce__ is not object.__reduce__
        or hasattr(kind, "__copy__")
    ):
        return False
    if not all(t is object or (t.__flags__ & _HEAP_TYPE and not t.__dict__.get("__slots__")) for t in kind.__mro__):
        return False
    return id(x) in _made or any(map(_holds_samples, x.__dict__.values()))


def _holds_samples(x: Any) -> bool:
    kind = type(x)
    if kind is list or kind is tuple:
        return any(map(_holds_samples, x))
    return any(map(_holds_samples, x.values())) if kind is dict else kind is BatchedTensor or kind is PerSample


_made: dict[int, Any] = {}


def note_made(x: Any) -> Any:
    """Return an object, which is known from now on as one that was made by a function that runs in steps."""
    if hasattr(x, "__dict__"):
        with contextlib.suppress(TypeError):  # it cannot be referred to weakly
            key = id(x)
            _made[key] = weakref.ref(x, lambda _: _made.pop(key, None))
    return x


def contents(x: Any) -> tuple[Any, Sequence[Any]] | None:
    """Return what is fixed about a value, and the values in it; None for one that is not taken apart."""
    kind = type(x)
    if kind in ATOMS or kind is PerSample:
        return None
    if kind is list or kind is tuple or kind is deque:
        return (kind, len(x)), list(x)
    if isinstance(x, dict) and not _is_unknown_dict(x):
        keys = list(x)
        return (kind, tuple(k if isinstance(k, str | int) else id(k) for k in keys)), [*keys, *x.values()]
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return (kind, len(x)), list(x)
    if kind is set or kind is frozenset:
        return (kind, frozenset(x)), list(x)
    if kind is slice:
        return (kind,), [x.start, x.stop, x.step]
    if kind is MethodType:
        return (kind, x.__func__), [x.__self__]
    if kind in _BUILTIN:  # a list's append, a function of a module
        of = x.__self__
        return None if of is None or isinstance(of, ModuleType | type) else ((kind, x.__name__), [of])
    if kind is partial:
        return (kind, len(x.args), tuple(x.keywords)), [x.func, *x.args, *x.keywords.values()]
    if kind is FunctionType:
        cells, defaults = x.__closure__ or (), x.__defaults__ or ()
        own = cells or x.__dict__ or any(map(is_mutable, defaults))
        return (
            ((kind, x.__code__, tuple(x.__dict__)), [*map(_content, cells), *defaults, *x.__dict__.values()])
            if own
            else None
        )
    if kind in _ITERATORS:
        _, args, *state = x.__reduce__()
        return (kind, *state), list(args)
    if kind is GeneratorType or kind in _VIEWS:
        return (kind, id(x)), []
    if kind is bytearray or _is_array(x):
        return (kind, bytes(x), getattr(x, "shape", None)), []
    if _is_plain(x):
        return (kind, tuple(x.__dict__)), list(x.__dict__.values())
    return ((kind, id(x)), []) if is_unknown(x) else None


def _is_unknown_dict(x: Any) -> bool:
    return type(x) not in (dict, OrderedDict, defaultdict, Counter) and bool(getattr(x, "__dict__", None))


def is_unknown(x: Any) -> bool:
    """Tell whether a value can be changed, and groups cannot have their own of it."""
    kind = type(x)
    if kind in _SEQUENCES or kind is bytearray or (isinstance(x, dict) and not _is_unknown_dict(x)) or _is_plain(x):
        return False
    if (
        isinstance(x, list | set | deque | dict | bytearray)
        or (isinstance(x, BaseException) and x.__dict__)
        or hasattr(kind, "__next__")
    ):
        return True
    slots = any(t.__dict__.get("__slots__") for t in kind.__mro__)
    return (
        bool(kind.__flags__ & _HEAP_TYPE and slots and not isinstance(x, torch.Tensor | tuple))
        and kind.__module__ != "typing"
    )


def _is_array(x: Any) -> bool:
    kind = type(x)
    return kind.__module__ == "numpy" and kind.__name__ == "ndarray"


def changes(x: Any) -> bool:
    """Tell whether a value without a shell can be changed all the same, or moves on."""
    kind = type(x)
    return (
        kind in _ITERATORS
        or kind in _VIEWS
        or kind is GeneratorType
        or kind is bytearray
        or _is_array(x)
        or is_unknown(x)
    )


class _Empty:
    """What is in a cell that has no value yet."""


_EMPTY = _Empty()


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _EMPTY


def shell_of(x: Any) -> Any:
    """Return an empty value of a mutable kind, to be filled; None for an immutable one."""
    kind = type(x)
    if is_unknown(x):
        return None
    if kind in _SEQUENCES:
        return deque(maxlen=x.maxlen) if kind is deque else kind()
    if isinstance(x, dict):
        if kind is defaultdict:
            return defaultdict(getattr(x, "default_factory", None))
        return kind() if kind in (dict, OrderedDict) else _cleared(copy.copy(x))
    if kind is FunctionType:
        cells = x.__closure__ and tuple(CellType() for _ in x.__closure__)
        made = FunctionType(x.__code__, x.__globals__, x.__name__, x.__defaults__, cells)
        made.__kwdefaults__ = x.__kwdefaults__
        return made
    return note_made(object.__new__(kind)) if _is_plain(x) else None


def _cleared(x: Any) -> Any:
    x.clear()
    return x


def fill(shell: Any, like: Any, values: Sequence[Any]) -> None:
    """Put values into an empty one of a mutable kind, as they are in another one."""
    kind = type(like)
    if kind in _SEQUENCES:
        _SEQUENCES[kind](shell, values)  # type: ignore[arg-type]
    elif isinstance(like, dict):
        half = len(values) // 2
        shell.update(zip(values[:half], values[half:], strict=True))
    elif kind is FunctionType:
        cells, count = shell.__closure__ or (), len(like.__defaults__ or ())
        for cell, value in zip(cells, values, strict=False):
            if value is not _EMPTY:
                cell.cell_contents = value
        rest = values[len(cells) :]
        shell.__defaults__ = tuple(rest[:count]) or None
        shell.__dict__.update(zip(like.__dict__, rest[count:], strict=True))
    else:
        shell.__dict__.update(zip(like.__dict__, values, strict=True))


def remade(x: Any, values: list[Any]) -> Any:
    """Return a value of an immutable kind, or an iterator, with other values in it."""
    kind = type(x)
    if kind is GeneratorType or kind in _VIEWS:
        what = f"a generator ({x.__name__})" if kind is GeneratorType else f"what {kind.__name__[5:]}() of a dict gives"
        raise UnsupportedError(
            f"vmap: {what} is kept, at {user_location()}, where samples part: it cannot be had for some of them. Instead: take its "
            f"values into a list first."
        )
    if kind is bytearray or _is_array(x):
        return x.copy()
    if kind not in _ITERATORS and is_unknown(x):
        raise UnsupportedError(
            f"vmap: a value of the class {kind.__module__}.{kind.__qualname__} is kept, at {user_location()}, where samples part: they cannot "
            f"have one each. Instead: a list, a dict, or an object whose state is its attributes, made after they have parted."
        )
    if kind in _ITERATORS:
        func, _, *state = x.__reduce__()
        made = func(*values)
        if state and state[0] is not None:  # from Python 3.12 on there may be one that says nothing
            made.__setstate__(*state)
        return made
    if kind is slice:
        return slice(*values)
    if kind is MethodType:
        return MethodType(x.__func__, values[0])
    if kind in _BUILTIN:
        return getattr(values[0], x.__name__)
    if kind is partial:
        n = len(x.args)
        return partial(values[0], *values[1 : n + 1], **dict(zip(x.keywords, values[n + 1 :], strict=True)))
    return kind(*values) if hasattr(x, "_fields") else kind(values)
