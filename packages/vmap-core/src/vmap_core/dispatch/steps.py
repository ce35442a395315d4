"""What the lines of short cuts call (see `specialise`): steps that would be too long there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..levels.level import Level
from ..levels.tensor import BatchedTensor, make_batched, rank_of
from ..rulekit.by_shape import learn
from .binding import Arrange


def padded(a: Tensor, b: Tensor, more: int) -> tuple[Tensor, Tensor]:
    """Give the one of fewer dims as many, with ones behind the batch dim, which is in front."""
    if more > 0:
        return a, b.reshape(b.shape[0], *(1,) * more, *b.shape[1:])
    return a.reshape(a.shape[0], *(1,) * -more, *a.shape[1:]), b


def beside_shared(level: Level, emit: Any, a: BatchedTensor, b: BatchedTensor) -> BatchedTensor | None:
    """Operate on a tensor that is batched here, in front, and one of fewer dims that all samples share; None for others."""
    if a._level is level and a._bdim == 0:
        x, shared, second = a, b, True
    elif b._level is level and b._bdim == 0:
        x, shared, second = b, a, False
    else:
        return None
    if shared._level is level:
        if shared._bdim is not None:
            return None
        shared = shared._value
    value = x._value
    rank = x._rank or rank_of(x)
    if shared.ndim >= rank or shared.dtype != value.dtype:
        return None
    out = make_batched(emit(value, shared) if second else emit(shared, value), 0, level)
    out._rank = rank
    return out


def joined(level: Level, join: Any, tensors: Any, dim: int) -> BatchedTensor | None:
    """Join tensors that have their batch dims in front; None for others."""
    values = []
    for x in tensors:
        if type(x) is not BatchedTensor or x._level is not level or x._bdim != 0:
            return None
        values.append(x._value)
    if dim >= 0:
        dim += 1
    elif not values or dim <= -values[0].ndim:
        return None
    try:
        return make_batched(join(values, dim), 0, level)
    except (RuntimeError, IndexError):
        return None  # to be told in the sample's terms; or there is another way


def unlisted(level: Level, tensors: Any) -> tuple[Any, Any]:
    """Return the values and batch dims of tensors that are all batched at a level; else nothing."""
    values, dims = [], []
    for x in tensors:
        if type(x) is not BatchedTensor or x._level is not level or x._bdim is None:
            return None, None
        values.append(x._value)
        dims.append(x._bdim)
    return values, dims


class Known:
    """What a rule that looks at nothing but shapes has done (see `vmap_core.rulekit.by_shape`).

    Attributes:
        sized: whether it looks at sizes; for most, the rank tells all.
        get: looks up what it did: the operation and the result's batch dim; False where there is no one operation, or the
            rule is to be run each time.
    """

    __slots__ = ("arrange", "found", "function", "get", "sized")

    def __init__(self, function: Callable[..., Any], arrange: Arrange | None) -> None:
        self.function, self.arrange = function, arrange
        self.found: dict[Any, Any] = {}
        self.get = self.found.get
        self.sized = False

    def ask(self, level: Level, shape: torch.Size, key: Any, args: Any, kwargs: Any) -> None:
        """Run the rule on a stand-in, and keep what it does, while there is room."""
        if len(self.found) >= ENTRIES:
            return
        given, rest = (args, kwargs) if self.arrange is None else self.arrange(args, kwargs)
        looked, found = learn(self.function, level, key[0], shape, given[1:], rest)
        if looked and not self.sized:
            self.found.clear()
            self.sized = True
        self.found[(key[0], shape if self.sized else len(shape), *key[2:])] = found or False


ENTRIES = 4096  # that one signature remembers
