"""Arguments and results: split into physical values and batch dims, and put together again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import ownership
from .containers import LEAVES, SIZED, children, dims_like, map_with_dims, rebuild
from .layout import settled
from .level import Level
from .tensor import BatchedTensor, make_batched

__all__ = ["any_batched", "has_tensor", "holds_batched", "rebuild", "unwrap", "unwrap_kwargs", "wrap"]

_TENSORS = frozenset((Tensor, BatchedTensor, torch.nn.Parameter))
_PLAIN = frozenset(LEAVES) - _TENSORS  # a list of these needs no further look


def has_tensor(args: Iterable[Any]) -> bool:
    """Tell whether a tensor is among arguments, also in containers."""
    for a in args:
        if type(a) in _TENSORS or isinstance(a, Tensor):
            return True
        held = children(a)
        if held is not None and has_tensor(held):
            return True
    return False


def holds_batched(args: Iterable[Any]) -> bool:
    """Tell whether a BatchedTensor is among the arguments of a call, also in containers."""
    for a in args:
        kind = type(a)
        if kind is BatchedTensor:
            return True
        if kind not in LEAVES:
            held = children(a)
            if held is not None and holds_batched(held):
                return True
    return False


def any_batched(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell whether a call has a tensor that is batched at this level."""
    return _any_batched(level, args) or (bool(kwargs) and _any_batched(level, kwargs.values()))


def _any_batched(level: Level, args: Iterable[Any]) -> bool:
    for a in args:
        kind = type(a)
        if kind is BatchedTensor:
            if a._level is level and a._bdim is not None:
                return True
        elif kind not in LEAVES:
            held = children(a)
            if held is not None and _any_batched(level, held):
                return True
    return False


def unwrap(level: Level, args: Sequence[Any]) -> tuple[list[Any], list[Any], bool]:
    """Split arguments into physical values and batch dims; say whether any is batched at this level.

    Returns:
        The values; one entry each of int, None or, for a container with tensors, a list of entries for its children (for a
        dict, a dict of them); the flag.
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
        elif kind in LEAVES or ((kind is tuple or kind is list) and _PLAIN.issuperset(map(type, a))):
            values.append(a)
            dims.append(None)
        else:
            value, dim, inner = _unwrap_container(level, a)
            values.append(value)
            dims.append(dim)
            batched = batched or inner
    return values, dims, batched


def _unwrap_container(level: Level, x: Any) -> tuple[Any, Any, bool]:
    """Split what may be a container; one without tensors stays as it is."""
    held = children(x)
    if held is None or not has_tensor(held):
        return x, None, False
    if type(x) in SIZED:  # its leading dims are those of one sample
        return x, None, False
    values, dims, batched = unwrap(level, held)
    return rebuild(x, values), dims_like(x, dims), batched


def unwrap_kwargs(level: Level, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """Do the same for keyword-only arguments; the dims are those of tensors and containers only, by name."""
    values, dims, batched = unwrap(level, tuple(kwargs.values()))
    named = {
        k: d
        for (k, v), d in zip(kwargs.items(), dims, strict=True)
        if d is not None or isinstance(v, Tensor | list | tuple)
    }
    return dict(zip(kwargs, values, strict=True)), named, batched


def wrap(level: Level, out: Any, out_dims: Any) -> Any:
    """Turn what a rule returned into what the mapped function sees."""
    kind = type(out)
    if kind is Tensor or kind is BatchedTensor:
        return make_batched(*settled(out, out_dims), level) if type(out_dims) is int else ownership.fresh(level, out)
    if kind is tuple or kind is list or hasattr(kind, "n_sequence_fields"):  # the commonest, written out for speed
        dims = out_dims if isinstance(out_dims, list | tuple) else (out_dims,) * len(out)
        items = [wrap(level, o, d) for o, d in zip(out, dims, strict=True)]
        return items if kind is list else kind(items)
    if isinstance(out, Tensor):
        return make_batched(*settled(out, out_dims), level) if type(out_dims) is int else ownership.fresh(level, out)
    return out if children(out) is None else map_with_dims(lambda o, d: wrap(level, o, d), out, out_dims)
