"""The general plan of a rule, and of a call without batched arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..levels import ownership, randomness
from ..levels.args import rebuild, unwrap, unwrap_kwargs, wrap
from ..levels.containers import LEAVES, leaves
from ..levels.layout import lay_out, same_storage
from ..levels.level import Level, call
from ..levels.tensor import EXACT, BatchedTensor
from ..rulekit.rule import Rule
from ..torch_compat.bindings import emitter
from ..torch_compat.operators import RANDOM, OpOverload, may_return_argument
from .binding import Arrange
from .plan import Run


def general_run(rule: Rule, func: Any, op: OpOverload | None, arrange: Arrange | None) -> Run:
    """Make what runs a rule on any arguments."""
    function = rule.function
    if rule.kind == "logical":

        def logical_plan(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if arrange is not None:
                args, kwargs = arrange(args, kwargs)
            return function(level, *args, **kwargs) if kwargs else function(level, *args)

        return logical_plan

    always = op is not None and RANDOM in op.tags
    run_unbatched = unbatched_run(func, op)
    named = _return_type(func, op)
    may_return_self = rule.may_return_self

    def plan(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given, given_kwargs = args, kwargs
        if arrange is not None:
            args, kwargs = arrange(args, kwargs)
        values, dims, batched = unwrap(level, args)
        if kwargs:
            kwargs, kw_dims, kw_batched = unwrap_kwargs(level, kwargs)
            if kw_dims:
                dims.append(kw_dims)
                batched = batched or kw_batched
        if batched or always:
            out, out_dims = function(level, tuple(dims), *values, **kwargs)
            if may_return_self and out is values[0]:
                return args[0]
            result = wrap(level, out, out_dims)
            return result if named is None or type(result) is named else named(result)
        return run_unbatched(level, given, given_kwargs)

    return plan


def view_run(run: Run) -> Run:
    """Make what runs an operator whose results may be views of its arguments (see Note [The layout invariant])."""

    def run_view(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = [x for x in leaves(args) if type(x) is BatchedTensor and x._level is level and x._bdim is not None]
        for x in given:
            lay_out(x)
        result = run(level, args, kwargs)
        for x in leaves(result):
            if type(x) is BatchedTensor and x._level is level and x._bdim and x._origin is None:
                if any(same_storage(x._value, a._value) for a in given):
                    x._origin = EXACT
        return result

    return run_view


def _return_type(func: Any, op: OpOverload | None) -> Any:
    """Return the torch.return_types class that a call to ``func`` gives, if it gives one; an overload gives a tuple."""
    if op is None or isinstance(func, OpOverload) or len(op._schema.returns) < 2 or op.namespace != "aten":
        return None
    return getattr(torch.return_types, op._schema.name.partition("::")[2], None)


def unbatched_run(func: Any, op: OpOverload | None) -> Run:
    """Make the plan for a call without batched arguments: run it once; its results belong to the level."""
    emit = emitter(func)
    may_alias = op is None or may_return_argument(op)
    watched = randomness.may_draw_unannounced(op)

    def plan(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        values = unwrap(level, args)[0]
        given = unwrap_kwargs(level, kwargs)[0] if kwargs else kwargs
        before = randomness.snapshot(values) if watched else None
        out = emit(*values, **given)
        if before is not None and randomness.drawn(before):
            randomness.refuse_unannounced(level, op, "different")
        return own(level, func, out, args, kwargs, (*values, *given.values())) if may_alias else wrap(level, out, None)

    return plan


def own(level: Level, func: Any, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any], values: Sequence[Any]) -> Any:
    """Wrap results that may be views of, or the same object as, an argument.

    Args:
        level: the running level.
        func: what was called; again for a view, when its base is promoted.
        out: what it gave.
        args: arguments as the mapped function has them.
        kwargs: its keyword arguments.
        values: of both, what ``func`` was called with.
    """
    own_args: Any = (*args, *kwargs.values())
    if not LEAVES.issuperset(map(type, own_args)):  # else there is nothing to take apart, as most often
        own_args, values = leaves(own_args), [*leaves(values)]
    given = [*zip(own_args, values, strict=True)]

    def one(out: Any, i: int | None) -> Any:
        if not isinstance(out, Tensor):
            return out
        for arg, value in given:
            if out is value:
                return arg
            if isinstance(value, Tensor) and same_storage(out, value):
                if type(arg) is not BatchedTensor or arg._level is not level:
                    # A view of a tensor from outside stays what it is; a detached one may become a leaf per sample.
                    return ownership.shared(level, out) if getattr(func, "__name__", "") == "detach" else out

                def replay() -> BatchedTensor:
                    again = call(level, func, args, kwargs)
                    return again if i is None else again[i]

                return ownership.view(level, out, arg, replay)
        return ownership.fresh(level, out)

    return rebuild(out, [one(o, i) for i, o in enumerate(out)]) if isinstance(out, list | tuple) else one(out, None)
