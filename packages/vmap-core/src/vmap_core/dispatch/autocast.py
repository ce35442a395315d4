"""Autocast inside mapped functions and around them.

PyTorch casts the arguments of the operators on its lists. A rule may say an operator in other operations, which are
on other lists, or on none. So where autocast is on, the samples' tensors are cast first, as PyTorch casts them for the
operator that was called, and its rule runs below, without autocast. A composite operator that is on no list goes through
the dispatcher (door 2), down to its parts.

What autocast costs must be paid by those who use it: a level has plans of its own for it, and learns of a change where
PyTorch sets the state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..levels.args import any_batched
from ..levels.containers import leaves, map_leaves
from ..levels.level import Level, call
from ..levels.tensor import BatchedTensor, make_batched
from ..rulekit import shared_weight
from ..torch_compat.autocast import KEYS, is_autocast_enabled, state, without_autocast_cache
from ..torch_compat.dispatcher import TorchDispatchMode, WithoutDispatchKeys
from ..torch_compat.mode_stack import DisableTorchFunction, disabled_torch_function_impl
from ..torch_compat.operators import OpOverload, has_kernel, is_composite, returns_view
from ..torch_compat.tensors import make_wrapper
from . import door2, lowering
from .plan import Plan, Run


@dataclass(frozen=True)
class Casts:
    """What PyTorch changes about a call.

    Attributes:
        dtypes: that of each tensor; None as it is.
        options: further keyword arguments.
    """

    dtypes: tuple[torch.dtype | None, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


def cast_first(level: Level, func: Any, op: OpOverload, plan: Plan) -> Run:
    """Return what runs calls of an operator at a level under autocast.

    Args:
        level: the level.
        func: what was called.
        op: the overload it means.
        plan: how they run without autocast.
    """
    rule, run = plan.served.rule, plan.run
    emits_itself = rule is not None and rule.agreeing is not None and plan.served.written is None
    if op.namespace != "aten" or emits_itself or returns_view(op):
        return run
    native = door2.native(func, op)
    mutates = op._schema.is_mutable
    composite = is_composite(op)
    known: dict[Any, Casts | None] = {}

    def cast(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not is_autocast_enabled() or not any_batched(level, args, kwargs):
            return run(level, args, kwargs)
        tensors = [a for a in leaves((args, kwargs)) if isinstance(a, Tensor)]
        key = (*map(_traits, tensors), state())
        if key not in known:
            known[key] = _learn(op, native, tensors, args, kwargs)
        casts = known[key]
        if casts is None:
            watch = _Watch()
            with without_autocast_cache():
                out = lowering.run_lowered(level, watch.over(native), args, kwargs, mutates=mutates)
            if composite and not watch.casts and not any(map(_may_be_told_a_dtype, tensors)):
                known[key] = Casts()  # nor does any of its parts need one
            return out
        if any(casts.dtypes):
            new = iter([t if d is None else _cast(level, t, d) for t, d in zip(tensors, casts.dtypes, strict=True)])
            args, kwargs = _with(new, args, kwargs)
        if casts.options:  # another signature
            return call(level, func, args, {**kwargs, **casts.options})
        with WithoutDispatchKeys(KEYS):
            return run(level, args, kwargs)

    return cast


def _traits(x: Any) -> tuple[torch.dtype, torch.device]:
    while type(x) is BatchedTensor:
        x = x._value
    return x.dtype, x.device


def _may_be_told_a_dtype(x: Any) -> bool:
    """Tell whether autocast may hand an operator on a tensor a dtype, where it casts nothing; on the CPU it never does."""
    dtype, device = _traits(x)
    return device.type != "cpu" and dtype.is_floating_point and dtype.itemsize < 4


def _with(tensors: Iterator[Any], args: Any, kwargs: dict[str, Any]) -> Any:
    """Return arguments with other tensors, in their order."""
    return map_leaves(lambda a: next(tensors) if isinstance(a, Tensor) else a, (args, kwargs))


def _cast(level: Level, x: Any, dtype: torch.dtype) -> Any:
    if type(x) is BatchedTensor and x._level is level:
        value = shared_weight.cast(x._value, x._bdim, dtype)
        return make_batched(value, x._bdim, level, x._origin if value is x._value else None)
    return x.to(dtype)


class _Watch(TorchDispatchMode):
    """Notes the casts of a call: dtypes, by the tensors cast."""

    def __init__(self) -> None:
        super().__init__()
        self.casts: dict[int, torch.dtype] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default:
            self.casts[id(args[0])] = kwargs["dtype"]
        return self.go_on(func, args, kwargs)

    def go_on(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)

    def over(self, function: Any) -> Any:
        """Return the function, watched."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return watched

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep PyTorch from importing its compiler for us."""
        return False


class _Seen(Exception):
    """Ends a call where its first casts do."""


class _WatchFirst(_Watch):
    """Computes nothing; notes the first operation after the first casts."""

    first: Any = None

    def go_on(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func is torch.ops.aten._to_copy.default:
            return _stand_in(args[0], kwargs["dtype"])
        self.first = func, *map_leaves(_told, (args, kwargs))
        raise _Seen


class _StandIn(Tensor):
    """What tells the dispatcher about a tensor, and has no data."""

    __torch_function__ = disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise _Seen


def _stand_in(x: Any, dtype: torch.dtype) -> Any:
    with DisableTorchFunction():
        return make_wrapper(_StandIn, x.shape, strides=x.stride(), dtype=dtype, device=_traits(x)[1])


def _told(a: Any) -> Any:
    """Return what can be compared of an argument's leaf."""
    return (a.dtype, a.shape) if isinstance(a, Tensor) else a


def _learn(op: OpOverload, native: Any, tensors: list[Any], args: Any, kwargs: Any) -> Casts | None:
    """Return what PyTorch changes about a call under autocast; None if that takes the dispatcher to know."""
    devices = {_traits(t)[1].type for t in tensors}
    if not any(has_kernel(op, f"Autocast{d.upper()}") for d in devices if torch.is_autocast_enabled(d)):
        return None if is_composite(op) else Casts()

    def watch(dtypes: Any, **options: Any) -> tuple[Any, list[torch.dtype | None]]:
        new = [_stand_in(t, d or t.dtype) for t, d in zip(tensors, dtypes, strict=True)]
        watch = _WatchFirst()
        own_args, own_kwargs = _with(iter(new), args, kwargs)
        with DisableTorchFunction(), contextlib.suppress(_Seen):
            watch.over(native)(*own_args, **own_kwargs, **options)
        return watch.first, [watch.casts.get(id(x)) for x in new]

    with without_autocast_cache(), torch.no_grad():
        first, dtypes = watch([None] * len(tensors))
        with WithoutDispatchKeys(KEYS):
            again, more = watch(dtypes)
            if again != first and _takes_dtype(op, args, kwargs):  # what its parts are told may follow from it
                told, _ = watch(dtypes, **_FLOAT)
                if told == first:
                    return Casts(tuple(dtypes), _FLOAT)
    if first is None or again is None or any(more) or first[:2] != again[:2]:
        return None
    if first[2] == again[2]:
        return Casts(tuple(dtypes))
    options = {k: v for k, v in first[2].items() if k not in again[2]}
    return Casts(tuple(dtypes), options) if first[0] is op and first[2] == {**again[2], **options} else None


_FLOAT = {"dtype": torch.float32}


def _takes_dtype(op: OpOverload, args: Any, kwargs: Any) -> bool:
    """Tell whether an operator could be given a dtype, and is not."""
    names = [a.name for a in op._schema.arguments]
    return "dtype" in names and names.index("dtype") >= len(args) and kwargs.get("dtype") is None
