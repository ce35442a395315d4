"""Short cuts: plans of the commonest calls, for which there is nothing to sort out. Anything else takes the general plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..levels.args import wrap
from ..levels.level import Level
from ..levels.tensor import BatchedTensor, make_batched
from ..rulekit.by_shape import learn
from .binding import Arrange
from .plan import Plan


def single_plan(function: Callable[..., Any], general: Plan, rest: tuple[None, ...]) -> Plan:
    """Make the short cut of an operation on one tensor, with numbers and the like: nothing to sort out."""

    def plan(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = args[0]
        if x._level is level and x._bdim is not None and not kwargs:
            out, bdim = function(level, (x._bdim, *rest), x._value, *args[1:])
            if type(bdim) is int:
                return make_batched(out, bdim, level)
            return wrap(level, out, bdim)
        return general(level, args, kwargs)

    return plan


def by_shape_plan(function: Callable[..., Any], general: Plan, arrange: Arrange | None) -> Plan:
    """Make the short cut of a rule that looks at nothing but shapes: what it did before is done again (`_by_shape`)."""
    known: dict[Any, Any] = {}
    sized = False  # the rule looks at sizes; for most, the rank tells all

    def plan(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = args[0]
        bdim = x._bdim
        if x._level is not level or bdim is None:
            return general(level, args, kwargs)
        value = x._value
        key: Any = (bdim, value.shape if sized else value.ndim, args[1] if len(args) == 2 else args[1:])
        if kwargs:
            key += tuple(kwargs.values())
        try:
            found = known.get(key)
        except TypeError:  # a list of dims
            found = False
        if found:
            operation, bdim = found
            try:
                return make_batched(operation(value), bdim, level)
            except (RuntimeError, IndexError):
                pass  # to be told in the sample's terms; or there is another way
        elif found is None:
            ask(level, value.shape, key, args, kwargs)
        del value  # what it shares memory with may matter, and this frame is none of it
        return general(level, args, kwargs)

    def ask(level: Level, shape: torch.Size, key: Any, args: Any, kwargs: Any) -> None:
        nonlocal sized
        given, rest = (args, kwargs) if arrange is None else arrange(args, kwargs)
        looked, found = learn(function, level, key[0], shape, given[1:], rest)
        if (looked and not sized) or len(known) == _ENTRIES:
            known.clear()
        sized = sized or looked
        known[(key[0], shape if sized else len(shape), *key[2:])] = found or False

    return plan


_ENTRIES = 1024  # that one plan remembers


def pair_plan(function: Callable[..., Any], general: Plan) -> Plan:
    """Make the short cut of an operation on two tensors and nothing else."""

    def plan(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x, y = args
        x_bdim = y_bdim = None
        if type(x) is BatchedTensor and x._level is level:
            x, x_bdim = x._value, x._bdim
        if type(y) is BatchedTensor and y._level is level:
            y, y_bdim = y._value, y._bdim
        if (x_bdim is None and y_bdim is None) or kwargs:
            return general(level, args, kwargs)
        out, bdim = function(level, (x_bdim, y_bdim), x, y)
        return make_batched(out, bdim, level) if type(bdim) is int else wrap(level, out, bdim)

    return plan


def list_plan(function: Callable[..., Any], general: Plan, rest: tuple[None, ...]) -> Plan:
    """Make the short cut of an operation on a list of tensors, all of them batched."""

    def plan(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        values, dims = [], []
        for x in args[0]:
            if x._level is not level or x._bdim is None:
                return general(level, args, kwargs)
            values.append(x._value)
            dims.append(x._bdim)
        out, bdim = function(level, (dims, *rest), values, *args[1:])
        return make_batched(out, bdim, level) if type(bdim) is int else wrap(level, out, bdim)

    return plan


def arranged_plan(function: Callable[..., Any], general: Plan, arrange: Arrange) -> Plan:
    """Make the same short cut for a call whose arguments have another order, or names."""

    def plan(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = args[0]
        if x._level is level and x._bdim is not None:
            given, rest = arrange(args, kwargs)
            out, bdim = function(level, (x._bdim, *(None,) * (len(given) - 1)), x._value, *given[1:], **rest)
            if type(bdim) is int:
                return make_batched(out, bdim, level)
            return wrap(level, out, bdim)
        return general(level, args, kwargs)

    return plan


def pointwise_plan(emit: Callable[..., Any], general: Plan, types: list[type]) -> Plan:
    """Make the short cut of an elementwise operation: operands that agree need no alignment.

    Operands of equal rank with the batch dim at one place broadcast and promote as the samples do.
    """
    if types == [BatchedTensor]:

        def plan(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            x = args[0]
            if x._level is level and x._bdim is not None and not kwargs:
                return make_batched(emit(x._value), x._bdim, level)
            return general(level, args, kwargs)

        return plan
    if types == [BatchedTensor, BatchedTensor]:

        def plan(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            x, y = args
            bdim = x._bdim
            if x._level is level and y._level is level and bdim is not None and bdim == y._bdim and not kwargs:
                a, b = x._value, y._value
                more = a.ndim - b.ndim
                if not more:
                    return make_batched(emit(a, b), bdim, level)
                if not bdim and a.dtype == b.dtype:  # ones between the batch dim and the shorter operand's own
                    if more == 1:
                        b = b.unsqueeze(1)
                    elif more > 0:
                        b = b.reshape(b.shape[0], *(1,) * more, *b.shape[1:])
                    else:
                        a = a.reshape(a.shape[0], *(1,) * -more, *a.shape[1:])
                    return make_batched(emit(a, b), 0, level)
            return general(level, args, kwargs)

        return plan
    if types == [BatchedTensor] * 3:

        def plan(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            x, y, z = args
            bdim = x._bdim
            if x._level is level and y._level is level and z._level is level and not kwargs:
                if bdim is not None and bdim == y._bdim and bdim == z._bdim:
                    a, b, c = x._value, y._value, z._value
                    if a.ndim == b.ndim == c.ndim:
                        return make_batched(emit(a, b, c), bdim, level)
            return general(level, args, kwargs)

        return plan
    if len(types) == 2 and BatchedTensor in types and (Tensor in types or torch.nn.Parameter in types):
        first = types[0] is BatchedTensor

        def plan(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            x, shared = args if first else args[::-1]
            if x._level is level and x._bdim == 0 and not kwargs:
                value = x._value
                if shared.ndim < value.ndim and shared.dtype == value.dtype:
                    return make_batched(emit(value, shared) if first else emit(shared, value), 0, level)
            return general(level, args, kwargs)

        return plan
    if types in ([BatchedTensor, float], [BatchedTensor, int]):

        def plan(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            x, number = args
            if x._level is level and x._bdim is not None and not kwargs:
                return make_batched(emit(x._value, number), x._bdim, level)
            return general(level, args, kwargs)

        return plan
    return general
