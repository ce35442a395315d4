"""Rules that look at nothing but shapes: each is asked once, and the one operation it makes is kept.

What a view or a reduction calls follows from the shape, often only the rank, the batch dim and the other arguments. So
a rule marked with `by_shape` is run on a `_StandIn` that has a shape and nothing else; the operation it makes on it is
remembered, and later calls go straight there. A rule that makes two operations, or looks at anything else, runs as any
other does.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from types import MethodDescriptorType
from typing import Any

import torch

from ..levels.level import Level
from ..torch_compat.mode_stack import EnableTorchFunction, without_modes
from .rule import Rule, RuleFunction

Known = tuple[Callable[[Any], Any], Callable[[Any], Any], int]


def by_shape(rule: RuleFunction) -> Rule:
    """Mark the rule of an operator from one tensor to one: its shape and the other arguments tell what the rule does.

    Of ``info`` it may look at ``batch_size``. The operation has no effect but its result, for one that raises is run
    again by the rule.
    """
    return Rule(rule, by_shape=rule)


def learn(
    rule: RuleFunction, level: Level, bdim: int, shape: torch.Size, args: Any, kwargs: Any
) -> tuple[bool, Known | None]:
    """Ask a rule what it does with a tensor of a shape.

    Args:
        rule: the rule, marked with `by_shape`.
        level: where it is asked.
        bdim: the tensor's batch dim.
        shape: the tensor's physical shape.
        args: the arguments after the tensor, in the schema's order.
        kwargs: the keyword-only arguments.

    Returns:
        Whether the rule looked at sizes, and not only at the rank. The operation, to be called on the physical tensor, and the
        same for a tensor of an outer level, with the batch dim of its result; None if the rule takes more than one
        operation, or raises.
    """
    asked = _StandIn(shape)
    try:
        with EnableTorchFunction(), without_modes():  # type: ignore[no-untyped-call]
            out, out_bdim = rule(_Info(level, asked), (bdim, *(None,) * len(args)), asked, *args, **kwargs)
    except Exception:  # if it was not the stand-in that it stumbled on, it raises again when it runs on the tensor
        return asked.looked, None
    one = type(out) is _Result and asked.operations == 1 and type(out_bdim) is int
    return asked.looked, (out.operation, out.method, out_bdim) if one else None


def watched(rule: RuleFunction) -> RuleFunction:
    """Return the rule with an operation that raises where its result has no batch dim of the tensor's: then it runs itself."""

    def asked(info: Any, in_dims: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        out, out_bdim = rule(info, in_dims, x, *args, **kwargs)
        if type(out) is not _Result:
            return out, out_bdim
        bdim = in_dims[0]

        def watched(operation: Any) -> Any:
            def watched(x: Any) -> Any:
                made = operation(x)
                if not 0 <= out_bdim < made.dim() or made.size(out_bdim) != x.size(bdim):
                    raise IndexError(out_bdim)
                return made

            return watched

        return _Result(watched(out.operation), watched(out.method)), out_bdim

    return asked


class _Result:
    """What an operation on a stand-in gives: good for being returned, and for nothing else."""

    __slots__ = ("method", "operation")

    def __init__(self, operation: Callable[[Any], Any], method: Callable[[Any], Any]) -> None:
        self.operation, self.method = operation, method

    def __bool__(self) -> bool:
        raise TypeError("a stand-in has no values")


class _StandIn:
    """A tensor that has a shape, and keeps what is called on it."""

    __slots__ = ("_shape", "looked", "operations")

    def __init__(self, shape: torch.Size) -> None:
        self._shape = shape
        self.looked = False
        self.operations = 0

    @property
    def shape(self) -> torch.Size:
        self.looked = True
        return self._shape

    @property
    def ndim(self) -> int:
        return len(self._shape)

    def __getattr__(self, name: str) -> Callable[..., _Result]:
        if not callable(getattr(torch.Tensor, name)):
            raise TypeError(f"a stand-in has no {name}")
        return lambda *args, **kwargs: self._keep(name, None, args, kwargs)

    def _keep(self, name: str | None, func: Any, args: Any, kwargs: Any) -> _Result:
        """Keep a call of a method, or of a function, or of either, which are the same."""
        if _holds_one((*args, *kwargs.values())):
            raise TypeError("the operation takes more than one tensor")
        self.operations += 1
        if name in _FUNCTIONS:
            func = getattr(torch, name)
        if func is None:
            assert name is not None
            operation: Callable[[Any], Any] = operator.methodcaller(name, *args, **kwargs)
            return _Result(operation, operation)
        operation = _call_of(func, args, kwargs)
        return _Result(operation, operation if name is None else operator.methodcaller(name, *args, **kwargs))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> _Result:
        self, *others = args
        if type(self) is not _StandIn:
            raise TypeError("the operation takes more than one tensor")
        name = func.__name__
        is_method = (
            type(getattr(torch.Tensor, name, None)) is MethodDescriptorType and getattr(torch, name, None) is func
        )
        return self._keep(name if is_method else None, func, others, kwargs or {})


# Methods that are called the same as the function, which takes PyTorch less.
_FUNCTIONS = {"diagonal", "movedim", "narrow", "select", "squeeze", "t", "transpose", "unsqueeze"}


def _call_of(func: Any, others: Any, kwargs: dict[str, Any]) -> Callable[[Any], Any]:
    """Return a function of the tensor alone: the shortest that Python has for it."""
    if kwargs or len(others) not in (1, 2):
        return lambda x: func(x, *others, **kwargs)
    if len(others) == 1:
        (a,) = others
        return lambda x: func(x, a)
    a, b = others
    return lambda x: func(x, a, b)


class _Info:
    """The ``info`` of a rule that is asked: the batch size is one of the sizes, and there is nothing else."""

    __slots__ = ("_asked", "_level")

    def __init__(self, level: Level, asked: _StandIn) -> None:
        self._level = level
        self._asked = asked

    @property
    def batch_size(self) -> int:
        self._asked.looked = True
        return self._level.batch_size


def _holds_one(args: Any) -> bool:
    """Tell whether a stand-in, or a result of one, is among arguments."""
    return any(_holds_one(a) if type(a) in (list, tuple) else type(a) in (_StandIn, _Result) for a in args)
