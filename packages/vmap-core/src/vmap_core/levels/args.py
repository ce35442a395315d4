"""Arguments and results: split into physical values and batch dims, and put together again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from . import ownership
from .level import Level
from .tensor import BatchedTensor, make_batched

_NUMBERS = frozenset((int, float, bool, type(None), str))


def has_tensor(args: Any) -> bool:
    """Tell whether a tensor is among arguments, also in lists."""
    for a in args:
        if isinstance(a, Tensor) or (isinstance(a, list | tuple) and has_tensor(a)):
            return True
    return False


def unwrap(level: Level, args: Sequence[Any]) -> tuple[list[Any], list[Any], bool]:
    """Split arguments into physical values and batch dims; say whether any is batched at this level.

    Returns:
        The values; one entry each of int, None or (for a list of tensors) a list of those; the flag.
    """
    values: list[Any] = []
    dims: list[Any] = []
    batched = False
    for a in args:
        kind = type(a)
        if kind is BatchedTensor and a._level is level:
            values.append(a._value)
            dims.append(a._bdim)
            if a._bdim is not None:
                batched = True
        elif kind in _NUMBERS:
            values.append(a)
            dims.append(None)
        elif isinstance(a, list | tuple) and not _NUMBERS.issuperset(map(type, a)) and has_tensor(a):
            inner, inner_dims, inner_batched = unwrap(level, a)
            values.append(inner)
            dims.append(inner_dims)
            batched = batched or inner_batched
        else:
            values.append(a)
            dims.append(None)
    return values, dims, batched


def unwrap_kwargs(level: Level, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """Do the same for keyword-only arguments; the dims are those of tensors only, by name."""
    values, dims, batched = unwrap(level, tuple(kwargs.values()))
    tensors = {k: d for (k, v), d in zip(kwargs.items(), dims, strict=True) if isinstance(v, Tensor | list | tuple)}
    return dict(zip(kwargs, values, strict=True)), tensors, batched


def wrap(level: Level, out: Any, out_dims: Any) -> Any:
    """Turn what a rule returned into what the mapped function sees."""
    if type(out_dims) is int:
        if isinstance(out, list | tuple):
            return rebuild(out, [wrap(level, o, out_dims) for o in out])
        return make_batched(out, out_dims, level)
    if isinstance(out, Tensor):
        return ownership.fresh(level, out)
    if isinstance(out, list | tuple):
        dims = out_dims if isinstance(out_dims, list | tuple) else [out_dims] * len(out)
        return rebuild(out, [wrap(level, o, d) for o, d in zip(out, dims, strict=True)])
    return out


def rebuild(like: Any, items: list[Any]) -> Any:
    """Make a list, tuple, namedtuple or torch.return_types value like another one, from new items."""
    kind = type(like)
    if kind is list:
        return items
    return kind(*items) if hasattr(like, "_fields") else kind(items)


def any_batched(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell whether a call has a tensor that is batched at this level."""
    return unwrap(level, (*args, *kwargs.values()))[2]


def holds_batched(args: Any) -> bool:
    """Tell whether a BatchedTensor is among the arguments of a call, also in lists, tuples and dicts."""
    for a in args:
        kind = type(a)
        if kind is BatchedTensor:
            return True
        if kind is list or kind is tuple:
            if holds_batched(a):
                return True
        elif kind is dict and holds_batched(a.values()):
            return True
    return False
